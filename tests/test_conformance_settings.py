"""Under whatever a Trainer can be told: watchers are invisible, and rounds are whole trainings."""

from __future__ import annotations

import copy
import csv
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_lth import (
    CyclicalLR,
    EarlyStopping,
    FixedMasks,
    IterativeMagnitudePruning,
    Ticket,
)
from tests.callbacks.modules import assert_equal, loader, trainer, weights
from tests.conforming import (
    PASSIVE,
    SETTINGS,
    Project,
    Setting,
    combination,
    loggers,
    silent,
)
from tests.contents import plain

every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:BatchNorm 'net.1' is evaluated after"),
    pytest.mark.filterwarnings("ignore:You are running in `Trainer.barebones"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


def fit(
    setting: Setting, *callbacks: pl.Callback, module: Project | None = None, **kwargs: Any
) -> tuple[pl.Trainer, Project]:
    settings, training, validation = setting
    fitter = pl.Trainer(callbacks=list(callbacks), **(silent(settings) | kwargs))
    module = module or Project()
    torch.manual_seed(5)
    fitter.fit(module, training(), None if validation is None else validation())
    return fitter, module


def everything(fitter: pl.Trainer, module: Project) -> dict[str, Any]:
    """What a user could see or use after a fit."""
    return {
        "weights": weights(module),
        "optimizer": copy.deepcopy(fitter.optimizers[0].state_dict()),
        "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()],
        "progress": (fitter.global_step, fitter.current_epoch, fitter.should_stop),
        "is_training": [layer.training for layer in module.modules()],
        "metrics": {
            name: value
            for name, value in fitter.callback_metrics.items()
            if name in ("train_loss", "val_loss")
        },
    }


@every_setting
def test_all_watchers_together_change_nothing(setting: Setting) -> None:
    alone = everything(*fit(setting))
    watched = everything(*fit(setting, *(make() for make in PASSIVE.values())))
    assert plain(watched) == plain(alone)


@pytest.mark.parametrize("make", PASSIVE.values(), ids=PASSIVE)
def test_a_watcher_changes_nothing(make: Any, tmp_path: Path) -> None:
    setting = SETTINGS["shuffled"]
    alone = everything(*fit(setting, logger=loggers(tmp_path / "plain"), log_every_n_steps=1))
    callback = make()
    logger = loggers(tmp_path / "watched")
    watched = everything(*fit(setting, callback, logger=logger, log_every_n_steps=1))
    assert plain(watched) == plain(alone)
    assert users_rows(tmp_path / "watched") == users_rows(tmp_path / "plain")


def users_rows(folder: Path) -> list[tuple[str, str, str, str]]:
    """Epoch, step and the user's metrics in the CSV logger's file."""
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = [
            tuple(row.get(name, "") for name in ("epoch", "step", "train_loss", "val_loss"))
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if any(row[2:])]  # type: ignore[misc]


class Ends(pl.Callback):
    """Remembers the weights at the end of each training, and learning rates of all steps."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rates.append([])

    def on_before_zero_grad(self, trainer: pl.Trainer, *args: object) -> None:
        self.rates[-1].append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights.append(weights(pl_module))


@every_setting
def test_a_round_is_the_training_of_its_ticket(setting: Setting, tmp_path: Path) -> None:
    """Steps, weights and learning rates are those of a fit with FixedMasks; without Dropout.

    Where every epoch is shuffled anew, a later round sees other orders: that one is left out.
    """
    if setting is SETTINGS["shuffled"]:
        setting = SETTINGS["plain"]
    pruning, rounds = IterativeMagnitudePruning(2, ticket_dir=tmp_path), Ends()
    stopping = EarlyStopping("val_loss", patience=9, strict=False)
    cycles = CyclicalLR(0.05, 0.2, step_size=3)
    fit(setting, pruning, rounds, cycles, stopping, module=Project(dropout=0))
    # 144 weights, 29 and 23 of them pruned.
    assert [record.density for record in pruning.history] == [1, 115 / 144, 92 / 144]
    for record in pruning.history:
        ticket = Ticket.load(tmp_path / f"round_{record.round:02}.safetensors")
        module, ends = Project(dropout=0), Ends()
        ticket.apply_(module)
        watcher = EarlyStopping("val_loss", patience=9, strict=False)
        cycles = CyclicalLR(0.05, 0.2, step_size=3)
        fitter, _ = fit(setting, FixedMasks(ticket.masks), ends, cycles, watcher, module=module)
        assert_equal(rounds.weights[record.round], ends.weights[0])
        assert rounds.rates[record.round] == ends.rates[0]
        assert record.steps == fitter.global_step
        assert plain([one.value for one in stopping.rounds[record.round]]) == plain(
            [one.value for one in watcher.validations]
        )


@every_setting
def test_cycles_are_those_of_the_formula(setting: Setting) -> None:
    ends = Ends()
    fit(setting, CyclicalLR(0.05, 0.2, step_size=3), ends)
    expected = [0.05, 0.1, 0.15, 0.2, 0.15, 0.1]
    assert ends.rates[0] == pytest.approx(
        [expected[step % 6] for step in range(len(ends.rates[0]))]
    )


def orders() -> list[list[str]]:
    """Every callback at every place, and some more."""
    names = ["initializer", "finder", "cycles", "stopping", "monitor", "pruning"]
    rotations = [names[i:] + names[:i] for i in range(len(names))]
    return [*rotations, *(order[::-1] for order in rotations)]


def test_any_order_of_the_callbacks_gives_the_same_or_is_refused(tmp_path: Path) -> None:
    seen = []
    for index, order in enumerate(orders()):
        callbacks = combination(tmp_path / str(index))
        fitter = trainer(*(callbacks[name] for name in order), max_epochs=2)
        module = Project()
        torch.manual_seed(5)
        if order.index("cycles") < order.index("finder"):
            with pytest.raises(ValueError, match=r"`callbacks=\[finder, cycles\]`"):
                fitter.fit(module, loader(), loader())
            continue
        fitter.fit(module, loader(), loader())
        pruning, stopping = callbacks["pruning"], callbacks["stopping"]
        assert isinstance(pruning, IterativeMagnitudePruning)
        assert isinstance(stopping, EarlyStopping)
        seen.append(
            {
                "weights": weights(module),
                "history": pruning.history.rows(),
                "validations": [[one.value for one in run] for run in stopping.rounds],
                "masks": pruning.masks.fingerprint(),
                "step": fitter.global_step,
            }
        )
    assert len(seen) == 6
    for other in seen[1:]:
        assert plain(other) == plain(seen[0])
