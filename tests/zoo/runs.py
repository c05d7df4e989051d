"""Trains a project: as it is, beside callbacks that only look, and with all that we have."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_lth import (
    CyclicalLR,
    EarlyStopping,
    FixedMasks,
    HyperparameterFinder,
    Initializer,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    LRFinder,
    Masks,
    Thresholds,
)
from tests.contents import plain
from tests.zoo.project import Project, batch_of

ROUNDS = 2
Callbacks = dict[str, Any]


@dataclass
class Run:
    """What is left of a fit: the trained module, callbacks by name, and a batch of the data."""

    project: Project
    trainer: Any
    module: Any
    ours: Callbacks
    own: Callbacks
    batch: Any
    random: Any

    @property
    def checkpoint_path(self) -> Path:
        return Path(self.own["checkpoint"].best_model_path)

    def checkpoint(self) -> dict[str, Any]:
        """As plain with our states in it as without."""
        is_plain = self.project.is_checkpoint_plain
        found = torch.load(self.checkpoint_path, weights_only=is_plain)
        for name, value in found.get("hyper_parameters", {}).items():
            if isinstance(value, torch.nn.Module):  # which is equal to itself only
                found["hyper_parameters"][name] = repr(value)
        return found


def monitor(module: Any) -> LayerStatsMonitor:
    """Everything on, and no advice about batches as small as ours."""
    lenient = Thresholds(
        variance_shift=1e9, train_eval_shift=1e9, values_per_channel=1, dead_channels=1.0
    )
    # It takes a hundred passes where there are as many layers.
    has_landscape = module.automatic_optimization and len(list(module.modules())) < 60
    return LayerStatsMonitor(2, activations=True, landscape=has_landscape, thresholds=lenient)


def active(project: Project, module: Any) -> Callbacks:
    """All of ours that can be together."""
    return {
        "initializer": Initializer(seed=3, example_input=project.example()),
        "finder": LRFinder(1e-4, 1e-1, 10, rounds=(0, ROUNDS), apply="cycles" in project.refused),
        "momentum": HyperparameterFinder("momentum", (0.5, 0.8), steps_per_value=1),
        "cycles": CyclicalLR(1e-3, 1e-2, step_size=2),
        "stopping": EarlyStopping(project.monitor, patience=9),
        "monitor": monitor(module),
        "pruning": IterativeMagnitudePruning(ROUNDS),
    }


def allowed(project: Project, module: Any) -> Callbacks:
    """Those of ``active`` that the project does not refuse."""
    callbacks = active(project, module)
    return {name: one for name, one in callbacks.items() if name not in project.refused}


def passive(project: Project, module: Any) -> Callbacks:
    """They look, and do nothing."""
    callbacks: Callbacks = {
        "masks": FixedMasks(Masks.dense(project.prunable(module))),
        "finder": LRFinder(1e-4, 1e-1, 10, apply=False),
        "momentum": HyperparameterFinder("momentum", (0.5, 0.8), steps_per_value=1, apply=False),
        "stopping": EarlyStopping(project.monitor, stop=False, strict=False),
        "monitor": monitor(module),
    }
    left_out = {"finder", "momentum"} & set(project.refused)  # they can stop no training
    return {name: one for name, one in callbacks.items() if name not in left_out}


def recorder(package: Any) -> Any:
    """A callback of the user's Lightning that notes each call, and the metrics it could see."""

    def noting(name: str) -> Callable[..., None]:
        def note(self: Any, trainer: Any, *_: Any, **__: Any) -> None:
            metrics = {"callback": trainer.callback_metrics, "logged": trainer.logged_metrics}
            self.seen.append((name, trainer.global_step, plain(metrics)))

        return note

    hooks = {name: noting(name) for name in dir(package.Callback) if name.startswith("on_")}
    del hooks["on_exception"]
    return type("Recorder", (package.Callback,), {"seen": [], **hooks})()


def zeros(package: Any, pruning: IterativeMagnitudePruning) -> Any:
    """Counts, after each step of an optimizer, the pruned weights that are not zero.

    It has no hook between backward pass and step: with one, pruning would mask weights after each
    step instead of the gradients.
    """

    class Zeros(package.Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.nonzero: list[tuple[int, int]] = []

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            def count(*_: Any) -> None:
                wrong = sum(
                    int(pl_module.get_parameter(name)[~mask].count_nonzero())
                    for name, mask in pruning.masks.items()
                )
                self.nonzero.append((pruning.round, wrong))

            self.handles = [one.register_step_post_hook(count) for one in trainer.optimizers]

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            for handle in self.handles:
                handle.remove()

    return Zeros()


def seed(number: int) -> None:
    """All generators that a project may draw from."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def fit(
    project: Project,
    folder: Path,
    make_ours: Callable[[Project, Any], Callbacks] = lambda project, module: {},
    *,
    is_recorded: bool = True,
    **settings: Any,
) -> Run:
    """Train it as its users do, with their callbacks before ours."""
    seed(7)
    module, data = project.make()
    ours = make_ours(project, module)
    package = importlib.import_module(project.lightning)
    own: Callbacks = {
        "checkpoint": package.callbacks.ModelCheckpoint(folder / "checkpoints"),
        "rates": package.callbacks.LearningRateMonitor(),
    }
    if is_recorded:
        own["recorder"] = recorder(package)
    if "pruning" in ours:
        own["zeros"] = zeros(package, ours["pruning"])
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "log_every_n_steps": 1,
        "logger": package.loggers.CSVLogger(folder, name="", version=""),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    first = [own["checkpoint"], own["rates"]]
    last = [one for name, one in own.items() if name not in ("checkpoint", "rates")]
    trainer = package.Trainer(
        callbacks=[*first, *ours.values(), *last], **(arguments | project.settings | settings)
    )
    seed(5)
    trainer.fit(module, **data)
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    return Run(project, trainer, module, ours, own, batch_of(data), plain(states))
