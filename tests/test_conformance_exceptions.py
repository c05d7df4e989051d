"""After an exception or Ctrl-C everything is as it would be without our callbacks."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_lth import IterativeMagnitudePruning
from tests.callbacks.modules import loader
from tests.conforming import MAKERS, PASSIVE, Project, combination, loggers, silent

PHASES = [
    "setup",
    "sanity_check",
    "on_train_start",
    "on_train_epoch_start",
    "training_step",
    "optimizer_step",
    "validation_step",
    "on_save_checkpoint",
    "on_train_end",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:BatchNorm 'net.1' is evaluated after"),
    pytest.mark.filterwarnings("ignore:Initializer could not try a training step"),
]


class Late(pl.Callback):
    """Lets a later round fail."""

    def __init__(self, pruning: IterativeMagnitudePruning, phase: str) -> None:
        self.pruning = pruning
        self.phase = phase

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        if self.pruning.round == 1:
            pl_module.fails_in = self.phase  # type: ignore[union-attr]


def failing_fit(
    folder: Path, phase: str, error: type[BaseException], *callbacks: pl.Callback
) -> tuple[pl.Trainer, Project]:
    """A fit that fails in a phase; every phase comes."""
    module = Project()
    if not any(isinstance(one, Late) for one in callbacks):
        module.fails_in = phase
    module.error = error
    settings = {
        "num_sanity_val_steps": 1,
        "logger": loggers(folder),
        "enable_checkpointing": True,
        "default_root_dir": folder,
    }
    fitter = pl.Trainer(callbacks=list(callbacks), **silent(settings))
    torch.manual_seed(5)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((error, SystemExit)):
            fitter.fit(module, loader(), loader())
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning ignores further ones
    return fitter, module


def footprint(fitter: pl.Trainer, module: Project) -> dict[str, Any]:
    """Where a callback could leave something: names, hooks, modes; no values."""
    loops = {
        "fit": fitter.fit_loop,
        "epoch": fitter.fit_loop.epoch_loop,
        "val": fitter.fit_loop.epoch_loop.val_loop,
        "automatic": fitter.fit_loop.epoch_loop.automatic_optimization,
    }
    return {
        "layers": [
            (name, sorted(vars(layer)), layer.training, num_hooks(layer))
            for name, layer in module.named_modules()
        ],
        "parameters": [
            (name, p.requires_grad, p.is_leaf, len(p._post_accumulate_grad_hooks or ()))
            for name, p in module.named_parameters()
        ],
        "optimizers": [
            (sorted(vars(one)), sorted(one.param_groups[0]), num_hooks(one))
            for one in fitter.optimizers
        ],
        "schedulers": len(fitter.lr_scheduler_configs),
        "loops": {name: sorted(vars(loop)) for name, loop in loops.items()},
        # Lightning sets this one in training; a phase may come in a range test before.
        "trainer": sorted(vars(fitter).keys() - {"_last_val_time"}),
        "loggers": [type(one).__name__ for one in fitter.loggers],
        "accumulation": fitter.accumulate_grad_batches,
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def num_hooks(owner: Any) -> dict[str, int]:
    """Hooks of each kind."""
    return {name: len(value) for name, value in vars(owner).items() if name.endswith("_hooks")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Any], dict[str, Any]]:
    """What such fits leave without a callback of ours."""
    return {
        (phase, error): footprint(*failing_fit(tmp_path_factory.mktemp(phase), phase, error))
        for phase in PHASES
        for error in (KeyError, KeyboardInterrupt)
    }


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("phase", PHASES)
def test_nothing_of_all_callbacks_stays(
    plain: dict[Any, Any], tmp_path: Path, phase: str, error: type[BaseException]
) -> None:
    callbacks = combination(tmp_path / "tickets").values()
    fitter, module = failing_fit(tmp_path, phase, error, *callbacks)
    assert fitter.callbacks[:6] == list(callbacks)  # type: ignore[attr-defined]
    assert footprint(fitter, module) == plain[phase, error]


@pytest.mark.parametrize("phase", ["training_step", "optimizer_step", "validation_step"])
def test_nothing_stays_when_a_later_round_fails(
    plain: dict[Any, Any], tmp_path: Path, phase: str
) -> None:
    callbacks = combination(tmp_path / "tickets")
    pruning = callbacks["pruning"]
    assert isinstance(pruning, IterativeMagnitudePruning)
    late = Late(pruning, phase)
    fitter, module = failing_fit(tmp_path, phase, KeyError, *callbacks.values(), late)
    assert pruning.round == 1
    assert footprint(fitter, module) == plain[phase, KeyError]


@pytest.mark.parametrize("phase", ["training_step", "validation_step", "on_train_end"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_nothing_of_one_callback_stays(
    plain: dict[Any, Any], tmp_path: Path, make: Any, phase: str
) -> None:
    fitter, module = failing_fit(tmp_path, phase, KeyError, make())
    assert footprint(fitter, module) == plain[phase, KeyError]
    module.fails_in = ""
    module.train()  # Lightning leaves it in eval mode when validation fails
    pruned = module.net[0].weight == 0
    pl.Trainer(**silent({"max_epochs": 1})).fit(module, loader(), loader())
    assert not (module.net[0].weight[pruned] == 0).any()  # nothing holds them any more


@pytest.mark.parametrize("phase", PHASES)
def test_watchers_leave_the_weights_and_random_states_of_a_fit_without_them(
    tmp_path: Path, phase: str
) -> None:
    ends = []
    # A finder's own steps fail before those of the training do.
    finders = {"LRFinder", "HyperparameterFinder"} if phase == "optimizer_step" else set()
    for name, names in (("plain", set()), ("watched", PASSIVE.keys() - finders)):
        callbacks = [PASSIVE[one]() for one in sorted(names)]
        fitter, module = failing_fit(tmp_path / name, phase, KeyError, *callbacks)
        state = [value.clone() for value in module.state_dict().values()]
        ends.append(([torch.get_rng_state(), *state], fitter.global_step))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(one, other) for one, other in zip(ends[0][0], ends[1][0], strict=True))
