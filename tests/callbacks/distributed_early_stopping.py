"""Run in two processes for test_early_stopping.py; writes down what each of them sees."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_lth import EarlyStopping
from tests.callbacks.modules import Classifier, loader, trainer, weights

LOSSES = [[4.0, 2.0, 1.0, 1.0, 1.0], [2.0, 2.0, 5.0, 5.0, 5.0]]


class Differing(Classifier):
    """Logs other validation losses on each rank, without `sync_dist`."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.Identity()  # batch statistics differ between ranks
        self.losses: list[list[float]] = [[]]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses[-1].append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", LOSSES[self.global_rank][self.current_epoch])
        self.log("rank", float(self.global_rank))

    def on_validation_end(self) -> None:
        self.losses.append([])


class SaveSecond(pl.Callback):
    """Writes the weights of the second validation to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step == 6:
            torch.save(weights(pl_module), self.folder / "at_step_6.pt")


def run(where: str, folder: Path) -> dict[str, Any]:
    """Fit until patience ends, and write the weights to a file."""
    path = folder / "best.safetensors" if where == "file" else None
    stopping = EarlyStopping("val_loss", patience=2, restore_best=True, best_weights_path=path)
    fitter = trainer(stopping, SaveSecond(folder), strategy="ddp", devices=2, max_epochs=5)
    module = Differing()
    fitter.fit(module, loader(), loader())
    torch.save(weights(module), folder / f"{where}_{fitter.global_rank}.pt")
    return {
        "rows": stopping.validations.rows(),
        "own_means": [sum(one) / len(one) for one in module.losses if one],
        "stopped_at": fitter.global_step,
        "decision": str(stopping.decision),
    }


def main(folder: Path) -> None:
    """Twice: with the best weights in memory and in a file."""
    results = {where: run(where, folder) for where in ("memory", "file")}
    rank = os.environ["LOCAL_RANK"]
    (folder / f"result_{rank}.json").write_text(json.dumps(results))
