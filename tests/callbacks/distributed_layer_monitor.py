"""Run in two processes for test_layer_monitor.py: fits with and without a monitor."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_lth import LayerStatsMonitor
from tests.callbacks.distributed_fits import batches
from tests.callbacks.modules import Classifier, trainer, weights


class Remembering(Classifier):
    """Keeps what goes into its batch norm while training; has dropout before it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(self.net[0], nn.Dropout(0.5), *self.net[1:])
        self.seen: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = self.net[:2](batch[0])
        self.seen.append(hidden.detach().clone())
        return nn.functional.cross_entropy(self.net[2:](hidden), batch[1])


def main(folder: Path) -> None:
    """Two fits on two ranks, which see other batches."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    monitor = LayerStatsMonitor(1, activations=True, histograms=True, landscape=True)
    for name, callbacks in (("without", []), ("with", [monitor])):
        torch.manual_seed(rank)
        module = Remembering()
        logger = TensorBoardLogger(folder, "", name, default_hp_metric=False)
        fitter = trainer(
            *callbacks,
            logger=logger,
            strategy="ddp",
            devices=2,
            max_epochs=2,
            use_distributed_sampler=False,
        )
        fitter.fit(module, batches(2, rank), batches(2, rank))
        end = {**weights(module), "random": torch.get_rng_state(), "seen": module.seen}
        torch.save(end, folder / f"{name}_{rank}.pt")
    torch.save((monitor.table.steps, len(monitor.diagnoses)), folder / f"table_{rank}.pt")
