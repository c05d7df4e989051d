"""A round that goes on inside an epoch sees the batches that it would have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DistributedSampler, TensorDataset

from lightning_lth import IterativeMagnitudePruning
from tests.callbacks.modules import Classifier, data, loader, trainer
from tests.callbacks.test_pruning_resume import ResumableLoader


class Shuffled(ResumableLoader):
    """Shuffles by epoch, with the positions of the examples."""

    def __init__(self) -> None:
        positions = TensorDataset(*data().tensors, torch.arange(48))
        sampler = DistributedSampler(positions, num_replicas=1, rank=0, shuffle=True)
        super().__init__(positions, sampler=sampler)


class Order(pl.Callback):
    """Remembers the examples of each batch; saves a checkpoint after each into a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.seen: list[list[int]] = []
        self.folder = folder

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        self.seen.append(batch[2].tolist())
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{len(self.seen):02d}.ckpt")


def run(order: Order, checkpoint: Path | None = None) -> list[int]:
    """Three rounds of two epochs of six batches; how many epochs each has had."""
    pruning = IterativeMagnitudePruning(2)
    fitter = trainer(order, pruning, max_epochs=2)
    fitter.fit(Classifier(), Shuffled(), loader(), ckpt_path=checkpoint, weights_only=True)
    return [record.epochs for record in pruning.history]


def test_a_resumed_round_goes_on_in_the_order_of_its_epoch(tmp_path: Path) -> None:
    whole = Order(tmp_path)
    assert run(whole) == [2, 2, 2]
    assert len({tuple(seen) for seen in whole.seen}) == 36  # no round repeats another
    for path in sorted(tmp_path.iterdir()):
        resumed = Order()
        assert run(resumed, path) == [2, 2, 2], path.name
        assert resumed.seen == whole.seen[int(path.stem) :], path.name
