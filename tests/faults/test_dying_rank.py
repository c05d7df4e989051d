"""A rank that dies ends the training of all: the others do not wait for it."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import nn

from lightning_lth import EarlyStopping, IterativeMagnitudePruning
from lightning_lth.pruning.scoring import magnitude
from tests.callbacks.distributed_fits import batches
from tests.callbacks.modules import Classifier, trainer
from tests.forked import run_ranks

pytestmark = pytest.mark.faults


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieIn(pl.Callback):
    """Kills one rank at a hook, in the second round."""

    def __init__(self, hook: str, rank: int, pruning: IterativeMagnitudePruning) -> None:
        def die_there(trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_rank == rank and pruning.round == 1:
                die()

        setattr(self, hook, die_there)


def fit(pruning: IterativeMagnitudePruning, *others: pl.Callback) -> None:
    module, rank = Classifier(), int(os.environ["LOCAL_RANK"])
    module.net[1] = nn.Identity()
    fitter = trainer(
        *others,
        pruning,
        EarlyStopping("val_loss", patience=9),
        strategy="ddp",
        devices=2,
        max_epochs=1,
        use_distributed_sampler=False,
    )
    fitter.fit(module, batches(2, rank), batches(2, rank))


def fit_and_die(hook: str, rank: int) -> None:
    pruning = IterativeMagnitudePruning(2)
    fit(pruning, DieIn(hook, rank, pruning))


def die_while_pruning() -> None:
    def criterion(*args: Any) -> Any:
        if os.environ["LOCAL_RANK"] == "1":
            die()
        return magnitude(*args)

    fit(IterativeMagnitudePruning(2, criterion=criterion))


def write_to_a_full_disk() -> None:
    """Only rank 0 writes tickets, so only that one fails."""
    fit(IterativeMagnitudePruning(2, ticket_dir="/dev/full/tickets"))


def test_without_a_death_both_end_well(tmp_path: Path) -> None:
    assert run_ranks(partial(fit_and_die, "on_train_end", 2), 2, tmp_path) == [0, 0]


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_end", "on_train_end"])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_rank_ends_too(hook: str, rank: int, tmp_path: Path) -> None:
    statuses = run_ranks(partial(fit_and_die, hook, rank), 2, tmp_path)
    assert statuses[rank] == -signal.SIGKILL
    assert statuses[1 - rank] == 1


def test_a_death_while_pruning(tmp_path: Path) -> None:
    assert run_ranks(die_while_pruning, 2, tmp_path) == [1, -signal.SIGKILL]


def test_an_error_of_one_rank_ends_both_and_is_told(tmp_path: Path) -> None:
    assert run_ranks(write_to_a_full_disk, 2, tmp_path) == [1, 1]
    assert "/dev/full/tickets" in (tmp_path / "output_0.txt").read_text()
