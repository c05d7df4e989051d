"""Splits images, holds them on the device of the training, and gives them out in batches."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from typing_extensions import override

from lightning_lth.study.experiments.loader import TensorLoader, keyed

if TYPE_CHECKING:
    from lightning_lth.study.experiments.loader import Augment

Examples = tuple[Tensor, Tensor]  # images, labels


class ImageData(LightningDataModule):
    """Everything but how to read the images, and what to do to them.

    Args:
        data_dir: Folder of the files; None is that of the environment, or ``data``.
        batch_size: Training images in a batch.
        num_validation: Images that are set aside at random.
        split_seed: Decides which ones.

    Attributes:
        parts: After ``setup``: images and labels of ``"train"``, ``"val"`` and ``"test"``.
    """

    evaluation_batch_size = 5000
    augmentation: Augment | None = None

    def __init__(
        self, data_dir: str | None, batch_size: int, num_validation: int, split_seed: int
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if num_validation < 1:
            raise ValueError(f"`num_validation` must be at least 1, got {num_validation}.")
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.num_validation = num_validation
        self.split_seed = split_seed
        self.parts: dict[str, Examples] = {}

    @property
    def folder(self) -> Path:
        """``data_dir``, or what the environment variable ``LIGHTNING_LTH_DATA`` says."""
        return Path(self.data_dir or os.environ.get("LIGHTNING_LTH_DATA") or "data")

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read and split the data, once; move them to the device, so that no batch has to be."""
        if not self.parts:
            training, test = self.read()
            self.parts = self.prepare(self._split(training) | {"test": test})
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        self.parts = {
            name: (images.to(device), labels.to(device))
            for name, (images, labels) in self.parts.items()
        }

    @override
    def train_dataloader(self) -> TensorLoader:
        """Shuffled anew in each epoch."""
        return TensorLoader(
            *self._part("train"),
            batch_size=self.batch_size,
            shuffle=True,
            augment=self.augmentation,
        )

    @override
    def val_dataloader(self) -> TensorLoader:
        """The images set aside, in few batches."""
        return self._evaluation_loader("val")

    @override
    def test_dataloader(self) -> TensorLoader:
        """The test images, in few batches."""
        return self._evaluation_loader("test")

    @abstractmethod
    def read(self) -> tuple[Examples, Examples]:
        """Images and labels for training and validation, and for the test."""

    def prepare(self, parts: dict[str, Examples]) -> dict[str, Examples]:
        """Make what networks take of what was read; may be overridden."""
        return parts

    def _split(self, training: Examples) -> dict[str, Examples]:
        images, labels = training
        if self.num_validation >= len(images):
            raise ValueError(
                f"`num_validation` must be less than the {len(images)} images there are, "
                f"got {self.num_validation}."
            )
        order = torch.randperm(len(images), generator=keyed("split", self.split_seed))
        chosen = {"val": order[: self.num_validation], "train": order[self.num_validation :]}
        return {name: (images[where], labels[where]) for name, where in chosen.items()}

    def _part(self, name: str) -> Examples:
        if not self.parts:
            raise RuntimeError("There are no images before `setup()` has been called.")
        return self.parts[name]

    def _evaluation_loader(self, name: str) -> TensorLoader:
        size = self.evaluation_batch_size
        return TensorLoader(*self._part(name), batch_size=size, shuffle=False)

    def missing(self) -> FileNotFoundError:
        """The error that says where the files may be, and how to get them."""
        name = type(self).__name__
        return FileNotFoundError(
            f"There is no {name} in {str(self.folder)!r}, and it could not be downloaded. Pass "
            "`data_dir`, or set the environment variable LIGHTNING_LTH_DATA, to a folder that has "
            f"it; or run `torchvision.datasets.{name}({str(self.folder)!r}, download=True)` where "
            "there is a network."
        )
