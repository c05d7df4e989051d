"""The image data of the papers, split as they did, in memory and on the device of the training."""

from __future__ import annotations

from typing import final

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch.nn.functional import pad
from torchvision import datasets  # type: ignore[import-untyped]
from typing_extensions import override

from lightning_lth.study.experiments import cifar10
from lightning_lth.study.experiments._image_data import Examples, ImageData
from lightning_lth.study.experiments.augment import flip_and_crop
from lightning_lth.study.experiments.loader import keyed

_MNIST_FILES = [
    f"{part}-{content}-ubyte"
    for part in ("train", "t10k")
    for content in ("images-idx3", "labels-idx1")
]


class _MnistLike(ImageData):
    """Data sets in the format of MNIST."""

    kind: type[datasets.MNIST]

    @override
    def prepare_data(self) -> None:
        """Download the files if they are not there."""
        raw = self.folder / self.kind.__name__ / "raw"
        if all((raw / name).is_file() for name in _MNIST_FILES):
            return
        try:
            self.kind(self.folder, download=True)
        except (OSError, RuntimeError) as error:
            raise self.missing() from error

    @override
    def read(self) -> tuple[Examples, Examples]:
        """Read the files."""
        try:
            training, test = (self.kind(self.folder, train=train) for train in (True, False))
        except RuntimeError as error:
            raise self.missing() from error
        return _of_mnist(training), _of_mnist(test)


@final
class MNIST(_MnistLike):
    """Handwritten digits: 60,000 for training and validation, 10,000 for the test.

    Images are ``float32``, shaped ``(1, 28, 28)``, in [0, 1].

    Args:
        data_dir: Folder with ``MNIST/raw``; downloaded to it if it is not there. Default: the
            environment variable ``LIGHTNING_LTH_DATA``, or ``data``.
        batch_size: Training images in a batch.
        num_validation: Images that are set aside at random, and not trained on.
        split_seed: Decides which ones; the same for all trials of a study.

    Raises:
        ValueError: If an argument is out of its range.
        FileNotFoundError: When there are no files and no network.

    Examples:
        >>> data = MNIST(batch_size=60, num_validation=5000)
    """

    kind = datasets.MNIST

    def __init__(
        self,
        data_dir: str | None = None,
        *,
        batch_size: int = 60,
        num_validation: int = 5000,
        split_seed: int = 0,
    ) -> None:
        super().__init__(data_dir, batch_size, num_validation, split_seed)


@final
class FashionMNIST(_MnistLike):
    """Pictures of clothes: 60,000 for training and validation, 10,000 for the test.

    Images are ``float32``, shaped ``(1, 28, 28)``, in [0, 1].

    Args:
        data_dir: Folder with ``FashionMNIST/raw``; downloaded to it if it is not there. Default:
            the environment variable ``LIGHTNING_LTH_DATA``, or ``data``.
        batch_size: Training images in a batch.
        num_validation: Images that are set aside at random, and not trained on.
        split_seed: Decides which ones; the same for all trials of a study.

    Raises:
        ValueError: If an argument is out of its range.
        FileNotFoundError: When there are no files and no network.

    Examples:
        >>> data = FashionMNIST(batch_size=60, num_validation=5000)
    """

    kind = datasets.FashionMNIST

    def __init__(
        self,
        data_dir: str | None = None,
        *,
        batch_size: int = 60,
        num_validation: int = 5000,
        split_seed: int = 0,
    ) -> None:
        super().__init__(data_dir, batch_size, num_validation, split_seed)


@final
class CIFAR10(ImageData):
    """Small photographs of ten kinds: 50,000 for training and validation, 10,000 for the test.

    Images are ``float32``, shaped ``(3, 32, 32)``. Of the training images each channel has mean 0
    and standard deviation 1; the others are shifted and scaled alike.

    Args:
        data_dir: Folder with ``cifar-10-batches-py``, as torchvision has it, or with
            ``cifar10_jpg.zip``; the former is downloaded if neither is there. Default: the
            environment variable ``LIGHTNING_LTH_DATA``, or ``data``.
        batch_size: Training images in a batch.
        num_validation: Images that are set aside at random, and not trained on.
        split_seed: Decides which ones; the same for all trials of a study.
        augment: Flip training images at random, and shift them by up to 4 pixels.

    Raises:
        ValueError: If an argument is out of its range.
        FileNotFoundError: When there are no files and no network.

    Examples:
        >>> data = CIFAR10(batch_size=128, augment=True)  # as for ResNet-20
    """

    evaluation_batch_size = 500  # 5000 feature maps of Conv-2 would take 1.3 GB

    def __init__(
        self,
        data_dir: str | None = None,
        *,
        batch_size: int = 60,
        num_validation: int = 5000,
        split_seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(data_dir, batch_size, num_validation, split_seed)
        self.augment = augment
        self.augmentation = flip_and_crop if augment else None

    @override
    def prepare_data(self) -> None:
        """Download the files if they are not there."""
        if cifar10.is_in(self.folder):
            return
        try:
            datasets.CIFAR10(self.folder, download=True)
        except (OSError, RuntimeError) as error:
            raise self.missing() from error

    @override
    def read(self) -> tuple[Examples, Examples]:
        """Read the files."""
        if not cifar10.is_in(self.folder):
            raise self.missing()
        return cifar10.read(self.folder)

    @override
    def prepare(self, parts: dict[str, Examples]) -> dict[str, Examples]:
        """Standardize by channel."""
        scaled = {name: images.float().div_(255) for name, (images, _) in parts.items()}
        std, mean = torch.std_mean(scaled["train"], dim=(0, 2, 3), keepdim=True, correction=0)
        return {name: (scaled[name].sub_(mean).div_(std), parts[name][1]) for name in parts}


@final
class Digits(ImageData):
    """1,797 small handwritten digits that come with scikit-learn, for a first try; no files.

    They take the place of MNIST: ``(1, 28, 28)``, in [0, 1]. Each of the 8 x 8 pixels becomes 3 x
    3, with a border of 2. 1,500 are for training and validation, and always the same 297 for the
    test.

    Args:
        batch_size: Training images in a batch.
        num_validation: Images that are set aside at random, and not trained on.
        split_seed: Decides which ones; the same for all trials of a study.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> data = Digits(batch_size=60, num_validation=300)
        >>> data.setup()
        >>> len(data.train_dataloader())  # batches of the other 1,200
        20
    """

    def __init__(
        self, *, batch_size: int = 60, num_validation: int = 300, split_seed: int = 0
    ) -> None:
        super().__init__(None, batch_size, num_validation, split_seed)

    @override
    def read(self) -> tuple[Examples, Examples]:
        """Enlarge them, and set the test images apart."""
        pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        small = pixels.float().div_(16).view(-1, 1, 8, 8)
        images = pad(small.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3), (2, 2, 2, 2))
        order = torch.randperm(len(images), generator=keyed("test images of Digits"))
        test, training = order[:297], order[297:]
        return (images[training], labels[training]), (images[test], labels[test])


def _of_mnist(dataset: datasets.MNIST) -> Examples:
    return dataset.data.unsqueeze(1).float().div_(255), dataset.targets
