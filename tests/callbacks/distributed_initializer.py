"""Run in two processes for test_initializer.py; writes the weights at the start of training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_lth import Initializer
from tests.callbacks.modules import Classifier, data, loader, trainer, weights


class Noisy(Dataset[Any]):
    """Augmented with noise, which differs between the ranks."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        inputs, label = data()[index]
        return inputs + torch.randn(6), label


class Save(pl.Callback):
    """Writes the weights at the start of training to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(weights(pl_module), self.folder / f"{trainer.global_rank}.pt")


def main(scheme: str, folder: Path) -> None:
    """Fit on two ranks that are seeded differently."""
    module = Classifier()
    torch.manual_seed(7 + int(os.environ.get("LOCAL_RANK", "0")))
    fitter = trainer(Initializer(scheme), Save(folder), strategy="ddp", devices=2, max_epochs=1)
    fitter.fit(module, DataLoader(Noisy(), batch_size=8), loader())
