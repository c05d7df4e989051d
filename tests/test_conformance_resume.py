"""Interrupted and resumed equals uninterrupted: at every epoch border, and inside epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from tests.callbacks.modules import loader
from tests.callbacks.test_pruning_resume import ResumableLoader, SaveAll
from tests.conforming import MAKERS, Project, combination, silent
from tests.contents import plain

pytestmark = pytest.mark.filterwarnings("ignore:BatchNorm 'net.1' is evaluated after")
Callbacks = Callable[[], Sequence[pl.Callback]]


class SaveEverywhere(SaveAll):
    """After every batch, and at the end of every epoch.

    Not between the last batch of an epoch and the validation: where Lightning resumes from there it
    leaves that validation out, with and without us.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if not trainer.is_last_batch:
            self.save(trainer, "batch")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, "epoch")


def run(*callbacks: pl.Callback, checkpoint: Path | None = None) -> dict[str, Any]:
    """What a fit of three epochs ends with."""
    module = Project(dropout=0)
    if checkpoint is not None:
        torch.nn.init.zeros_(module.net[0].weight)  # the checkpoint must bring everything
    fitter = pl.Trainer(callbacks=list(callbacks), **silent({"max_epochs": 3}))
    torch.manual_seed(5)
    fitter.fit(module, ResumableLoader(), loader(), ckpt_path=checkpoint, weights_only=True)
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "optimizer": copy.deepcopy(fitter.optimizers[0].state_dict()),
        "progress": (fitter.global_step, fitter.current_epoch),
        "callbacks": [
            one.state_dict()
            for one in fitter.callbacks
            if not isinstance(one, SaveAll)  # type: ignore[attr-defined]
        ],
    }


def check_all(make: Callbacks, folder: Path, *, every: int) -> int:
    """Resume from one in so many checkpoints; returns how many there are."""
    uninterrupted = run(*make(), SaveEverywhere(folder))
    checkpoints = sorted(folder.iterdir())
    for checkpoint in checkpoints[::every]:
        resumed = run(*make(), checkpoint=checkpoint)
        assert plain(resumed) == plain(uninterrupted), checkpoint.name
    return len(checkpoints)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_callback_alone(make: Callable[[], pl.Callback], tmp_path: Path) -> None:
    assert check_all(lambda: [make()], tmp_path, every=2) >= 7


def test_all_together(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    count = check_all(
        lambda: list(combination(tmp_path / "tickets").values()), tmp_path / "checkpoints", every=5
    )
    assert count > 30
