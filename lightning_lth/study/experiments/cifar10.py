"""Reads CIFAR-10, from the files that torchvision downloads or from a zip of JPEG images."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets  # type: ignore[import-untyped]

Examples = tuple[Tensor, Tensor]  # images, labels
_BATCHES, _ZIP = "cifar-10-batches-py", "cifar10_jpg.zip"


def is_in(folder: Path) -> bool:
    """Whether a folder has CIFAR-10 in one of the two forms."""
    return (folder / _BATCHES).is_dir() or (folder / _ZIP).is_file()


@lru_cache(maxsize=1)  # decoding the JPEG images takes 10 s
def read(folder: Path) -> tuple[Examples, Examples]:
    """Read all images; a process that asks again gets the same tensors.

    Args:
        folder: Has ``cifar-10-batches-py``, or else ``cifar10_jpg.zip`` with files named
            ``train/<class>/<number>.jpg`` and ``test/<class>/<number>.jpg``.

    Returns:
        Training and test examples: images as ``uint8``, shaped ``(count, 3, 32, 32)``, and labels,
        which number the classes in alphabetical order. Not to be modified.
    """
    if (folder / _BATCHES).is_dir():
        training, test = (datasets.CIFAR10(folder, train=train) for train in (True, False))
        return _of_torchvision(training), _of_torchvision(test)
    with zipfile.ZipFile(folder / _ZIP) as archive:
        return _of_zip(archive, "train"), _of_zip(archive, "test")


def _of_torchvision(dataset: datasets.CIFAR10) -> Examples:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(dataset.targets)


def _of_zip(archive: zipfile.ZipFile, part: str) -> Examples:
    paths = sorted(path for path in map(Path, archive.namelist()) if path.match(f"{part}/*/*.jpg"))
    classes = sorted({path.parent.name for path in paths})
    pixels = bytearray().join(
        Image.open(BytesIO(archive.read(path.as_posix()))).tobytes() for path in paths
    )
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 32, 32, 3)
    labels = [classes.index(path.parent.name) for path in paths]
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
