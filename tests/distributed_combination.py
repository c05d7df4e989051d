"""Run in several processes for test_conformance_distributed.py: all callbacks in one fit."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DistributedSampler

from lightning_lth import EarlyStopping, IterativeMagnitudePruning, LayerStatsMonitor, LRFinder
from lightning_lth.pruning.sharding import whole
from tests.callbacks.modules import data, trainer, weights
from tests.callbacks.test_pruning_resume import ResumableLoader
from tests.conforming import Project, combination

MIDDLE = (1, 8)  # a round, and one of its 12 steps: in the middle of the second epoch


class Spare(Project):
    """Has a layer that no batch goes through, as if it were chosen at random."""

    def __init__(self) -> None:
        super().__init__(dropout=0)
        self.net[1] = nn.LayerNorm(16)  # statistics of parts of batches would differ
        self.unused = nn.Linear(6, 16)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            for layer in (self.net[0], self.net[1], self.net[3], self.unused):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

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


def fit(
    folder: Path,
    num_processes: int,
    checkpoint: Path | None = None,
    *,
    strategy: Any = "auto",
    can_shard: bool = False,
) -> dict[str, Any]:
    """Three rounds on batches of 8, split among the processes; what this one ends with.

    Without the callbacks that cannot go with sharded weights, if it must be so.
    """
    callbacks = combination(folder / "tickets")
    if can_shard:
        del callbacks["initializer"]
        callbacks["stopping"] = EarlyStopping("val_loss", patience=1)
        callbacks["monitor"] = LayerStatsMonitor(2, activations=True)
    names = ("pruning", "stopping", "finder", "monitor")
    pruning, stopping, finder, monitor = (callbacks[name] for name in names)
    assert isinstance(pruning, IterativeMagnitudePruning)
    assert isinstance(stopping, EarlyStopping)
    assert isinstance(finder, LRFinder)
    assert isinstance(monitor, LayerStatsMonitor)
    watch, module = Watch(folder, pruning), Spare()
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
        "weights": {name: whole(value) for name, value in weights(module).items()},
        "masks": {name: whole(mask) for name, mask in pruning.masks.items()},
        "history": pruning.history.rows(),
        "validations": [[one.value for one in run] for run in stopping.rounds],
        "losses": finder.result.curve.losses,
        "rates": watch.rates,
        "table": monitor.table.rows(),
    }


def _part(num_processes: int, rank: int) -> ResumableLoader:
    sampler: Any = DistributedSampler(data(), num_processes, rank, shuffle=False)
    return ResumableLoader(batch_size=8 // num_processes, sampler=sampler)


def main(num_processes: int, folder: Path) -> None:
    """Fit, and go on where one process stopped; write what this rank ends with."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    ddp = partial(DDPStrategy, find_unused_parameters=True)
    torch.save(fit(folder, num_processes, strategy=ddp()), folder / f"whole_{rank}.pt")
    begun = folder.parent / "alone" / "middle.ckpt"
    resumed = fit(folder / "resumed", num_processes, begun, strategy=ddp())
    torch.save(resumed, folder / f"resumed_{rank}.pt")


def main_sharded(num_processes: int, folder: Path) -> None:
    """Fit with FSDP2; write what this rank ends with."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    strategy = ModelParallelStrategy(num_processes, 1)
    end = fit(folder, num_processes, strategy=strategy, can_shard=True)
    torch.save(end, folder / f"whole_{rank}.pt")
