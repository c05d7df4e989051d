"""See if a cycling rate reaches in a third of the steps what a fixed rate reaches in all of them.

Run:
    python examples/cyclical_lr.py                         # downloads Fashion-MNIST to `data`
    python examples/cyclical_lr.py --data-dir DIRECTORY    # where torchvision looks for it
    python examples/cyclical_lr.py --output accuracy.png   # with a picture; --quick: fewer steps

A range test finds the rates of the cycle; its steps count into the third. Is it the cycle, or just
a better rate? Other fixed rates for a third of the steps tell; the best is best on validation data.
All runs of a seed have the same initial weights and the same batches.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import warnings
from statistics import mean

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torchvision.datasets import FashionMNIST

from lightning_lth import CyclicalLR, LRFinder

STEPS, QUICK_STEPS, RANGE_TEST_STEPS = 9_000, 375, 100
USUAL_RATE, *OTHER_RATES = 0.01, 0.03, 0.1
BATCH_SIZE = 128
SEEDS = (4, 5, 6)


class Classifier(LightningModule):
    """784-256-128-10, trained by SGD at a fixed rate; knows nothing of cycles."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        hidden = nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(128, 10))
        self.accuracy: dict[str, dict[int, float]] = {"val": {}, "test": {}}  # percent by step

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accuracy on validation and test data, each in one batch."""
        is_correct = self.layers(batch[0]).argmax(1) == batch[1]
        name = ("val", "test")[dataloader_idx]
        self.accuracy[name][self.global_step] = 100 * is_correct.double().mean().item()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum, and no schedule."""
        return torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)


Data = list[TensorDataset]  # for training, validation and test


def train(data: Data, seed: int, rate: float, steps: int, *callbacks: Callback) -> Classifier:
    """Train; a seed stands for initial weights and order of the data."""
    seed_everything(seed, verbose=False)
    module = Classifier(rate)
    order = RandomSampler(data[0], generator=torch.Generator().manual_seed(seed))
    batches = BatchSampler(order, BATCH_SIZE, drop_last=False)  # fast: no images one by one
    evaluation = [DataLoader(part, len(part)) for part in data[1:]]
    switched_off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        accelerator="cpu",
        check_val_every_n_epoch=None,
        val_check_interval=math.gcd(steps, 500),  # so that the last step is checked, too
        num_sanity_val_steps=0,
        **dict.fromkeys(switched_off, False),
    )
    trainer.fit(module, DataLoader(data[0], batch_size=None, sampler=batches), evaluation)
    return module


def train_in_cycle(data: Data, seed: int, steps: int, *callbacks: Callback) -> Classifier:
    """The same, but with a range test and one cycle between the rates that it finds."""
    steps -= RANGE_TEST_STEPS
    finder = LRFinder(num_steps=RANGE_TEST_STEPS, apply=False)
    cycle = CyclicalLR.from_finder(finder, step_size=int(0.45 * steps), policy="one_cycle")
    module = train(data, seed, USUAL_RATE, steps, finder, cycle, *callbacks)
    print(f"Seed {seed}: one cycle from {finder.result.range}, {steps} steps after the range test")
    return module


def scores(runs: list[Classifier], step: int, name: str = "test") -> list[float]:
    """Accuracy of each seed after some steps."""
    return [run.accuracy[name][step] for run in runs]


def table(rows: dict[str, list[float]], seeds: tuple[int, ...]) -> str:
    """Test accuracy of each seed, and the spread."""
    names = [*(f"seed {seed}" for seed in seeds), "mean", "min", "max"]
    lines = ["test accuracy (%)    " + "".join(f"{name:>8}" for name in names)]
    for label, values in rows.items():
        cells = [*values, mean(values), min(values), max(values)]
        lines.append(f"{label:21}" + "".join(f"{cell:8.2f}" for cell in cells))
    return "\n".join(lines)


def claim(rows: dict[str, list[float]], label: str, other: str) -> str:
    """In how many seeds one row reaches another."""
    pairs = list(zip(rows[label], rows[other], strict=True))
    held, gain = sum(a >= b for a, b in pairs), mean(a - b for a, b in pairs)
    return f"{label} reach {other} in {held} of {len(pairs)} seeds, {gain:+.2f} in the mean."


def plot(runs: dict[str, list[Classifier]]) -> Figure:
    """Test accuracy of the first seed against steps."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    for label, (run, *_) in runs.items():
        axes.plot(*zip(*run.accuracy["test"].items(), strict=True), label=label)
    axes.set(xlabel="optimizer steps", ylabel=f"test accuracy (%), seed {SEEDS[0]}")
    axes.legend()
    return figure


def load_data(folder: str) -> Data:
    """Fashion-MNIST, standardized; the last 5,000 of a shuffled training set are for validation."""
    official = [FashionMNIST(folder, train=is_train, download=True) for is_train in (True, False)]
    images, test_images = [(part.data.flatten(1) / 255 - 0.286) / 0.353 for part in official]
    labels, test_labels = [part.targets for part in official]
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    parts = [TensorDataset(images[some], labels[some]) for some in order.split([55_000, 5_000])]
    return [*parts, TensorDataset(test_images, test_labels)]


def main() -> None:
    """Train both ways, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("LIGHTNING_LTH_DATA", "data"))
    parser.add_argument("--output", help="file for the picture")
    parser.add_argument("--quick", action="store_true", help="one seed, too few steps")
    arguments = parser.parse_args()
    steps, seeds = (QUICK_STEPS, SEEDS[:1]) if arguments.quick else (STEPS, SEEDS)
    data = load_data(arguments.data_dir)
    third = steps // 3
    lengths = {USUAL_RATE: steps, **dict.fromkeys(OTHER_RATES, third)}
    fixed = {rate: [train(data, seed, rate, lengths[rate]) for seed in seeds] for rate in lengths}
    cycles = [train_in_cycle(data, seed, third) for seed in seeds]
    rows = {f"{third} steps at {rate}": scores(runs, third) for rate, runs in fixed.items()}
    rows[f"{steps} steps at {USUAL_RATE}"] = scores(fixed[USUAL_RATE], steps)
    rows[f"{third} steps in a cycle"] = scores(cycles, third - RANGE_TEST_STEPS)
    best = max(fixed, key=lambda rate: mean(scores(fixed[rate], third, "val")))
    print(table(rows, seeds) + "\n")
    for other in (f"{steps} steps at {USUAL_RATE}", f"{third} steps at {best}"):
        print(claim(rows, f"{third} steps in a cycle", other))
    if arguments.output:
        runs = {f"rate {rate}": fixed[rate] for rate in fixed}
        plot({**runs, "cycle": cycles}).savefig(arguments.output, dpi=150)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    main()
