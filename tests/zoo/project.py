"""What a project of the zoo is, and the module that a user would write around a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
import torchmetrics
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NUM_CLASSES = 4


@dataclass(frozen=True)
class Refusal:
    """A callback of ours that does not go with a project, and what it says."""

    error: type[Exception]
    message: str
    is_early: bool = True  # before the first optimizer step


@dataclass(frozen=True)
class Project:
    """Code of others, and how its users train it.

    ``make`` gives the module, and what goes into ``trainer.fit`` beside it. ``dense`` are globs of
    the parameters with two dimensions and more that are not weights of layers: embeddings of
    positions and the like. ``output`` is what the network says to a batch.
    """

    name: str
    make: Callable[[], tuple[Any, dict[str, Any]]]
    settings: dict[str, Any] = field(default_factory=dict)
    lightning: str = "lightning.pytorch"
    monitor: str = "val_loss"
    dense: tuple[str, ...] = ()
    example: Callable[[], Any] = lambda: None  # for the Initializer, where a batch will not do
    output: Callable[[Any, Any], Tensor] = lambda module, batch: module(batch[0])
    is_checkpoint_plain: bool = True  # of tensors, numbers and strings
    refused: dict[str, Refusal] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def prunable(self, module: nn.Module) -> dict[str, Tensor]:
        """By dimensions alone, unlike the library: what has two, and no name in ``dense``."""
        return {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.dim() >= 2 and not any(fnmatchcase(name, glob) for glob in self.dense)
        }


class Classifier(LightningModule):
    """As the tutorials write it: a network that gives logits, its loss and its accuracy."""

    def __init__(
        self,
        net: nn.Module,
        make_optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.make_optimizer = make_optimizer
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=NUM_CLASSES)

    def forward(self, inputs: Any) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val_accuracy", self.accuracy)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.make_optimizer is not None:
            return self.make_optimizer(self.parameters())
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def loaders(*tensors: Tensor, batch_size: int = 4) -> dict[str, Any]:
    """Shuffled for training; the same samples to validate."""
    data = TensorDataset(*tensors)
    return {
        "train_dataloaders": DataLoader(data, batch_size, shuffle=True),
        "val_dataloaders": DataLoader(data, batch_size),
    }


def images(size: int = 32, num_samples: int = 8) -> Tensor:
    """Noise, as large as that of CIFAR-10."""
    return torch.randn(num_samples, 3, size, size)


def labels(*shape: int) -> Tensor:
    """One of the classes at each place."""
    return torch.randint(NUM_CLASSES, shape)


def batch_of(data: dict[str, Any]) -> Any:
    """The first batch of the validation, or of the training where there is none."""
    if "datamodule" in data:
        loader = data["datamodule"].val_dataloader() or data["datamodule"].train_dataloader()
        return next(iter(loader))
    return next(iter(data.get("val_dataloaders") or data["train_dataloaders"]))
