"""What a reader of the pages has: a module, and data for it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 16  # a batch of fewer values for each channel is worth a warning of LayerStatsMonitor


class Net(LightningModule):
    """A small classifier with BatchNorm and Dropout: 6 features, 3 classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(width, 3),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        outputs = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]))
        self.log("val_acc", (outputs.argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Data(LightningDataModule):
    """96 examples in 6 batches, and 32 each for validation and test."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(160, 6, generator=generator)
        labels = (inputs @ torch.randn(6, 3, generator=generator)).argmax(1)
        parts = zip(inputs.split([96, 32, 32]), labels.split([96, 32, 32]), strict=True)
        self.parts = [TensorDataset(*part) for part in parts]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], batch_size=BATCH_SIZE)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=BATCH_SIZE)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=BATCH_SIZE)


def names() -> dict[str, Any]:
    """What the pages call it."""
    datamodule = Data()
    return {
        "__name__": "__main__",
        "module": Net(),
        "datamodule": datamodule,
        "train_dataloader": datamodule.train_dataloader(),
        "val_dataloader": datamodule.val_dataloader(),
        "batch": datamodule.parts[0][:BATCH_SIZE][0],
    }
