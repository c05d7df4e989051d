"""Run in several processes for test_conformance_distributed.py: all callbacks in one fit."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DistributedSampler

from lightning_lth import EarlyStopping, IterativeMagnitudePruning, LRFinder
from tests.callbacks.modules import data, trainer, weights
from tests.callbacks.test_pruning_resume import ResumableLoader
from tests.conforming import Project, combination

MIDDLE = (1, 8)  # a round, and one of its 12 steps: in the middle of the second epoch


class Spare(Project):
    """Has a layer that no batch goes through, as if it were chosen at random."""

    def __init__(self) -> None:
        super().__init__(dropout=0)
        self.net[1] = nn.Identity()  # statistics of parts of batches would differ
        self.unused = nn.Linear(6, 16)

    def log(self, *args: Any, **kwargs: Any) -> None:
        super().log(*args, sync_dist=True, **kwargs)


class Watch(pl.Callback):
    """Learning rates of all steps; saves a checkpoint in the middle of a round."""

    def __init__(self, folder: Path, pruning: IterativeMagnitudePruning) -> None:
        self.folder = folder
        self.pruning = pruning
        self.rates: list[float] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, *args: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if (self.pruning.round, trainer.global_step) == MIDDLE:
            trainer.save_checkpoint(self.folder / "middle.ckpt")


def fit(folder: Path, num_processes: int, checkpoint: Path | None = None) -> dict[str, Any]:
    """Three rounds on batches of 8, split among the processes; what this one ends with."""
    callbacks = combination(folder / "tickets")
    pruning, stopping, finder = (callbacks[key] for key in ("pruning", "stopping", "finder"))
    assert isinstance(pruning, IterativeMagnitudePruning)
    assert isinstance(stopping, EarlyStopping)
    assert isinstance(finder, LRFinder)
    watch, module = Watch(folder, pruning), Spare()
    strategy = DDPStrategy(find_unused_parameters=True) if num_processes > 1 else "auto"
    fitter = trainer(
        *callbacks.values(),
        watch,
        strategy=strategy,
        devices=num_processes,
        max_epochs=2,
        use_distributed_sampler=False,
    )
    loaders = [_part(num_processes, fitter.global_rank) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing is known of the unused layer
        fitter.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
    return {
        "weights": weights(module),
        "masks": dict(pruning.masks),
        "history": pruning.history.rows(),
        "validations": [[one.value for one in run] for run in stopping.rounds],
        "losses": finder.result.curve.losses,
        "rates": watch.rates,
    }


def _part(num_processes: int, rank: int) -> ResumableLoader:
    sampler: Any = DistributedSampler(data(), num_processes, rank, shuffle=False)
    return ResumableLoader(batch_size=8 // num_processes, sampler=sampler)


def main(num_processes: int, folder: Path) -> None:
    """Fit, and go on where one process stopped; write what this rank ends with."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.save(fit(folder, num_processes), folder / f"whole_{rank}.pt")
    resumed = fit(folder / "resumed", num_processes, folder.parent / "alone" / "middle.ckpt")
    torch.save(resumed, folder / f"resumed_{rank}.pt")
