"""See what Dropout does to the BatchNorms behind it, and what BatchNorm does to the loss.

Run:
    python examples/dropout_before_batch_norm.py                         # downloads to `data`
    python examples/dropout_before_batch_norm.py --data-dir DIRECTORY    # where torchvision looks
    python examples/dropout_before_batch_norm.py --output runs           # with TensorBoard events

Three small CNNs on Fashion-MNIST, with Dropout 0, 0.2 and 0.5 before each but the first BatchNorm.
In evaluation, without Dropout, the variance behind it is smaller than the running variance says;
LayerStatsMonitor measures that in each validation, and warns (Li et al. 2019). Then two
perceptrons, with BatchNorm and without: how fast does the gradient change along itself (Santurkar
et al. 2018)? They start from He's initialization: with PyTorch's own, which is smaller, the one
without BatchNorm stays on a plateau at first, which is smooth, too.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from pathlib import Path
from statistics import mean, median

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torchvision.datasets import FashionMNIST

from lightning_lth import Initializer, LayerStatsMonitor

RATES = (0.0, 0.2, 0.5)
NUM_IMAGES, NUM_EPOCHS, SEED = 12_000, 4, 1


class Classifier(LightningModule):
    """Any network, trained by SGD; knows nothing of monitors."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__()
        self.network = network
        self.rate = rate

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        is_correct = self.network(batch[0]).argmax(1) == batch[1]
        self.log("val_accuracy", is_correct.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


def cnn(rate: float) -> nn.Module:
    """Four convolutions, each with BatchNorm and ReLU, and Dropout between them."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
        layers += [nn.Dropout(rate)] if layers else []
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def perceptron(*, has_norm: bool) -> nn.Module:
    """784-128-128-128-128-128-10."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (784, 128, 128, 128, 128):
        norm = [nn.BatchNorm1d(128)] if has_norm else []
        layers += [nn.Linear(inputs, 128), *norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def train(
    module: Classifier, data: list[TensorDataset], monitor: LayerStatsMonitor, **settings: object
) -> None:
    """Train from the same seed; the monitor is all that is added."""
    seed_everything(SEED, verbose=False)
    order = RandomSampler(data[0], generator=torch.Generator().manual_seed(SEED))
    batches = BatchSampler(order, 64, drop_last=True)
    trainer = Trainer(
        callbacks=[Initializer(seed=SEED), monitor],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )
    loader = DataLoader(data[0], batch_size=None, sampler=batches)
    trainer.fit(module, loader, DataLoader(data[1], 1000))


def show_shift(data: list[TensorDataset], epochs: int, output: str | None) -> dict[float, float]:
    """Train the CNNs; mean shift over the BatchNorms behind a Dropout, by rate."""
    shifts = {}
    for rate in RATES:
        monitor = LayerStatsMonitor(10)
        logger = TensorBoardLogger(output, f"dropout_{rate}") if output else False
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(Classifier(cnn(rate), 0.01), data, monitor, max_epochs=epochs, logger=logger)
        layers = [row for row in monitor.layers if row["kind"] == "batch_norm"]
        shifts[rate] = mean(row["train_eval_shift"] for row in layers[1:])
        behind = ", ".join(f"{row['train_eval_shift']:.2f}" for row in layers)
        ratios = ", ".join(f"{row['train_eval_ratio']:.2f}" for row in layers)
        negative = ", ".join(f"{row['neg_beta']:.0%}" for row in layers)
        told = sum("runs behind Dropout" in str(warning.message) for warning in said)
        shown = f"shift {behind}; ratio {ratios}; negative beta {negative}; {told} warnings"
        print(f"Dropout {rate}: {shown}")
    return shifts


def show_smoothness(data: list[TensorDataset], epochs: int) -> dict[bool, float]:
    """Train the perceptrons; median effective beta-smoothness with and without BatchNorm."""
    betas = {}
    for has_norm in (False, True):
        monitor = LayerStatsMonitor(landscape=True)
        settings = {"max_epochs": epochs, "limit_train_batches": 10, "limit_val_batches": 0}
        train(
            Classifier(perceptron(has_norm=has_norm), 0.05), data, monitor, logger=False, **settings
        )
        betas[has_norm] = median(measured.beta for _, measured in monitor.landscapes)
        name = "with BatchNorm" if has_norm else "without"
        print(f"Effective beta-smoothness {name}: {betas[has_norm]:.1f} (median)")
    return betas


def load_data(folder: str | Path) -> list[TensorDataset]:
    """The first images of Fashion-MNIST, standardized, and the first 5,000 test images."""
    parts = []
    for is_train, num in ((True, NUM_IMAGES), (False, 5_000)):
        official = FashionMNIST(folder, train=is_train, download=True)
        images = (official.data[:num, None] / 255 - 0.286) / 0.353
        parts.append(TensorDataset(images, official.targets[:num]))
    return parts


def main() -> None:
    """Show both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("LIGHTNING_LTH_DATA", "data"))
    parser.add_argument("--output", help="folder for TensorBoard events")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    arguments = parser.parse_args()
    data = load_data(arguments.data_dir)
    show_shift(data, 1 if arguments.quick else NUM_EPOCHS, arguments.output)
    show_smoothness(data, 3 if arguments.quick else 20)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    main()
