"""What is refused before any training: whatever can be known without one."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.functional import cross_entropy

from lightning_lth.pruning import at_initialization
from lightning_lth.pruning.parameters import prunable_parameters
from lightning_lth.pruning.selection import check_fractions
from lightning_lth.stopping.best_weights import BestWeights
from lightning_lth.study import processes
from lightning_lth.study.accuracy import accuracies
from lightning_lth.study.arm import Part
from lightning_lth.study.arms import AtInitialization, IterativePruning
from lightning_lth.study.claims import check_claims
from lightning_lth.study.design import Ladder, Measures, Settings, Study
from lightning_lth.study.jobs import Job, settings_of
from lightning_lth.study.recorder import MEASURES
from lightning_lth.study.settings import build, trainer_arguments
from lightning_lth.study.statistics import check_measure
from lightning_lth.study.surroundings import quiet, seeds
from lightning_lth.study.trial import Trial


def check_design(study: Study) -> None:
    """Refuse a study whose parts do not fit together.

    Raises:
        ValueError: With the reason.
    """
    _check_seeds(study.seeds)
    if not study.arms:
        raise ValueError("`arms` must have at least one arm, got none. Name one in the config.")
    for name in study.arms:
        _check_source(study, name)
        study.arms[name].check(study.pruning)
        _check_rounds(study, name)
    rounds = {name: arm.rounds_run(study.pruning) for name, arm in study.arms.items()}
    check_claims(study.claims, rounds)
    for claim in study.claims:
        check_measure(claim.measure, pd.DataFrame(columns=MEASURES, dtype=float))


def rehearse(study: Study) -> None:
    """Build models and data of all arms, and train and validate each on one batch.

    So errors in the user's code, and metrics that are never logged, are found before all else.

    Raises:
        ValueError: With the reason.
    """
    rehearsed: list[Settings] = []
    for name, arm in study.arms.items():
        settings = settings_of(study, name)
        try:
            if settings not in rehearsed:
                with seeds(), quiet():
                    _rehearse(settings, study.pruning, study.measures)
                rehearsed.append(settings)
            if isinstance(arm, IterativePruning):
                _check_rewind_step(arm.own_ladder(study.pruning), settings["trainer"]["max_steps"])
            if isinstance(arm, AtInitialization):
                with seeds(), quiet():
                    _rehearse_scores(Trial(study, Job(name, study.seeds[0], Part()), Path()), arm)
        except Exception as error:
            raise ValueError(f"The arm {name!r} cannot run: {error}") from error


def check_processes(num_jobs: int | None) -> None:
    """Refuse to run several jobs at once in processes that train together.

    Raises:
        ValueError: With the reason.
    """
    if processes.count() > 1 and num_jobs not in (None, 1):
        raise ValueError(
            f"Processes that train together run one job after the other, got `num_jobs={num_jobs}`."
            " Leave `--jobs` out."
        )


def _check_seeds(seeds: list[int]) -> None:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"`seeds` must be different numbers, at least one, got {seeds}.")


def _check_source(study: Study, name: str) -> None:
    seen = [name]
    while (source := study.arms[seen[-1]].source) is not None:
        if source not in study.arms:
            close = get_close_matches(source, study.arms, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"The arm {seen[-1]!r} takes tickets `of` {source!r}, which is no arm.{hint} "
                f"Arms: {', '.join(study.arms)}."
            )
        if source in seen:
            raise ValueError(f"The arms {seen} take tickets of each other. Start with another arm.")
        seen.append(source)


def _check_rounds(study: Study, name: str) -> None:
    arm = study.arms[name]
    listed = arm.rounds_run(study.pruning)
    rounds = set(listed)
    if not rounds or len(rounds) < len(listed):
        raise ValueError(
            f"The `rounds` of the arm {name!r} must be different numbers, at least one, "
            f"got {listed}."
        )
    ladder = study.pruning
    if isinstance(arm, IterativePruning):
        ladder = arm.own_ladder(ladder)
    available = set(range(ladder.rounds + 1))
    if arm.source is not None:
        of_source = set(study.arms[arm.source].rounds_run(study.pruning))
        if not arm.needs_dense_source:
            available = of_source
        elif 0 not in of_source:
            raise ValueError(
                f"The arm {name!r} needs the dense training of {arm.source!r}, which has none. "
                "Take an arm of iterative pruning."
            )
    if missing := sorted(rounds - available):
        raise ValueError(
            f"The arm {name!r} has the rounds {missing}, which do not exist. "
            f"Rounds to choose from: {sorted(available)}."
        )


def _check_rewind_step(ladder: Ladder, max_steps: int) -> None:
    if 0 <= max_steps <= ladder.rewind_step:
        raise ValueError(
            f"`rewind_step` must be less than `max_steps={max_steps}`, the budget of one training, "
            f"got {ladder.rewind_step}."
        )


def _rehearse(settings: Settings, ladder: Ladder, measures: Measures) -> None:
    model: LightningModule = build(LightningModule, settings["model"])
    parameters = prunable_parameters(model, ladder.parameters)
    check_fractions(ladder.fractions, parameters)
    data = build(LightningDataModule, settings["data"]) if settings["data"] else None
    trainer = Trainer(**_shortened(trainer_arguments(settings["trainer"])))
    _check_devices(trainer)
    trainer.fit(model, datamodule=data)
    if measures.monitor not in trainer.callback_metrics:
        logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        raise ValueError(
            f"`monitor={measures.monitor!r}` was not logged in the validation. Logged: {logged}. "
            "Name one of them in `measures`, or log it in `validation_step`."
        )
    fresh: LightningModule = build(LightningModule, settings["model"])
    weights = BestWeights.of(model, step=0, value=0.0)
    accuracies(trainer, fresh, weights, measures, limit_batches=1)


def _rehearse_scores(trial: Trial, arm: AtInitialization) -> None:
    """Try whether the batches and the model are such as scores by gradients need."""
    if arm.method in ("magnitude", "random"):
        return
    batches = trial.batches(1)
    if arm.method != "synflow":  # which needs no labels
        patterns = trial.ladder.parameters
        at_initialization.snip(trial.model(), batches, cross_entropy, parameters=patterns)


def _check_devices(trainer: Trainer) -> None:
    """One device, or DDP in processes that are there already: Lightning's would start us again."""
    strategy, wanted = trainer.strategy, trainer.world_size
    launched = processes.launched()
    if launched is not None and launched != wanted:
        raise ValueError(
            f"`torchrun` started {launched} processes, and the trainer has {wanted} devices. "
            "Set `trainer.devices` and `trainer.num_nodes` to what `torchrun` was given."
        )
    if wanted == 1:
        return
    environment = getattr(strategy, "cluster_environment", None)
    if environment is None or not environment.creates_processes_externally:
        raise ValueError(
            f"the trainer has {wanted} devices, whose processes must be there before the study. "
            f"Start it by `torchrun --nproc-per-node {wanted} -m lightning_lth study run CONFIG`, "
            "or set `trainer.devices` to 1; trainings run beside each other with `--jobs`."
        )
    if not isinstance(strategy, DDPStrategy):
        raise ValueError(
            "a study needs whole weights on each device, "
            f"and `trainer.strategy` is {type(strategy).__name__}. Use 'ddp'."
        )


def _shortened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same Trainer for one batch, which writes nothing."""
    return {
        **arguments,
        **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), 1),
        "max_steps": -1,
        "max_epochs": 1,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "logger": DummyLogger(),  # some modules and callbacks need one
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
