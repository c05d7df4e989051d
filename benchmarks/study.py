"""What an iteration of a study costs: LeNet-300-100 on MNIST as in Frankle & Carbin 2019.

Run:
    python benchmarks/study.py --data-dir DIRECTORY   # default: LIGHTNING_LTH_DATA; 4 minutes
    python benchmarks/study.py --check                # exit 1 and name the rows that miss a target
    python benchmarks/study.py --quick                # shorter trainings, under a minute

Batches of 60, Adam, validation on 5,000 images every 100 iterations, on one core. The figure is the
whole time of a training, by the clock and from an untrained network to the last validation, over
its iterations; the slow ones have fewer of these. The trainings take turns in a shuffled order;
ratios are between trainings of the same turn, and the table has medians over the turns.

* plain: a bare loop over tensors, fused Adam, dense; no Lightning and nothing of ours.
* ours: the Trainer of a study, Classifier, TensorLoader, and FixedMasks that hold 80 % of the
  weights at zero.
* openlth: weights are multiplied by such masks before each forward pass, and images come from
  torchvision's data set through a DataLoader, as in facebookresearch/open_lth.
* lightning: a Trainer as it is by default, with progress bar, logger and checkpoints, and
  torchvision's data set through a DataLoader; dense.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from lightning_lth import FixedMasks, Masks
from lightning_lth.pruning import scoring, selection
from lightning_lth.pruning.parameters import prunable_parameters
from lightning_lth.study.experiments.classifier import Classifier
from lightning_lth.study.experiments.images import MNIST
from lightning_lth.study.experiments.networks import lenet_300_100
from lightning_lth.study.surroundings import NoProfiler

BATCH, VALIDATE_EVERY, SPARSITY, LR = 60, 100, 0.8, 1.2e-3
TARGETS = {"ours / plain": 1.3, "lightning / ours": 5.0}  # at most; at least
Training = Callable[[int], None]


def random_masks(module: nn.Module) -> Masks:
    """Prune 80 % of the weights at random."""
    parameters = prunable_parameters(module)
    scores = scoring.random(0)(parameters, parameters)
    return selection.prune(scores, Masks.dense(parameters), fraction=SPARSITY)


def plain(data: MNIST) -> Training:
    """As little as can be done."""
    (images, labels), (val_images, val_labels) = data.parts["train"], data.parts["val"]

    def train(num_steps: int) -> None:
        network, step = lenet_300_100(), 0
        optimizer = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
        while True:
            for chosen in torch.randperm(len(images)).split(BATCH):
                optimizer.zero_grad()
                batch = images.index_select(0, chosen), labels.index_select(0, chosen)
                cross_entropy(network(batch[0]), batch[1]).backward()
                optimizer.step()
                step += 1
                if step % VALIDATE_EVERY == 0:
                    network.eval()
                    with torch.inference_mode():
                        logits = network(val_images)
                        cross_entropy(logits, val_labels).item()
                        (logits.argmax(1) == val_labels).float().mean().item()
                    network.train()
                if step == num_steps:
                    return

    return train


def ours(data: MNIST) -> Training:
    """What a study does."""

    def train(num_steps: int) -> None:
        module = Classifier("lenet_300_100", lr=LR)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=num_steps,
            max_epochs=-1,
            val_check_interval=VALIDATE_EVERY,
            check_val_every_n_epoch=None,
            callbacks=[FixedMasks(random_masks(module))],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            profiler=NoProfiler(),
        )
        trainer.fit(module, datamodule=data)

    return train


def torchvision_loaders(data: MNIST) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Each image is a PIL image first, then a tensor; no workers, as is the default."""
    images = datasets.MNIST(data.folder, transform=transforms.ToTensor())
    order = torch.randperm(len(images)).tolist()
    training, validation = Subset(images, order[5000:]), Subset(images, order[:5000])
    return DataLoader(training, BATCH, shuffle=True), DataLoader(validation, BATCH)


def openlth(data: MNIST) -> Training:
    """As OpenLTH does."""
    loader, val_loader = torchvision_loaders(data)

    def validate(network: nn.Module) -> None:
        network.eval()
        with torch.no_grad():
            for images, labels in val_loader:
                logits = network(images)
                cross_entropy(logits, labels).item()
                (logits.argmax(1) == labels).sum().item()

    def train(num_steps: int) -> None:
        network, step = lenet_300_100(), 0
        optimizer = torch.optim.Adam(network.parameters(), lr=LR)
        parameters = prunable_parameters(network)
        pairs = [(parameters[name], mask.float()) for name, mask in random_masks(network).items()]
        while True:
            for images, labels in loader:
                network.train()
                optimizer.zero_grad()
                for parameter, mask in pairs:
                    parameter.data *= mask
                cross_entropy(network(images), labels).backward()
                optimizer.step()
                step += 1
                if step % VALIDATE_EVERY == 0:
                    validate(network)
                if step == num_steps:
                    return

    return train


class PlainModule(LightningModule):
    """As in Lightning's introduction."""

    def __init__(self) -> None:
        super().__init__()
        self.network = lenet_300_100()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        logits = self.network(batch[0])
        self.log("val_loss", cross_entropy(logits, batch[1]))
        self.log("val_accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=LR)


def lightning(data: MNIST) -> Training:
    """A Trainer as it is by default; its files and its output go where nobody sees them."""
    loader, val_loader = torchvision_loaders(data)

    def train(num_steps: int) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            trainer = Trainer(
                accelerator="cpu",
                max_steps=num_steps,
                val_check_interval=VALIDATE_EVERY,
                default_root_dir=folder,
            )
            trainer.fit(PlainModule(), loader, val_loader)

    return train


METHODS = {"plain": plain, "ours": ours, "openlth": openlth, "lightning": lightning}
RATIOS = (("ours", "plain"), ("openlth", "ours"), ("lightning", "ours"))


def measure(data: MNIST, num_steps: int, num_steps_slow: int, turns: int) -> list[dict[str, float]]:
    """Milliseconds per iteration by method, for each turn."""
    trainings = {name: method(data) for name, method in METHODS.items()}
    for train in trainings.values():
        train(VALIDATE_EVERY)  # everything is imported, and every page is there
    order, shuffler = list(METHODS), random.Random(0)
    measured = []
    for _ in range(turns):
        shuffler.shuffle(order)
        milliseconds = {}
        for name in order:
            torch.manual_seed(0)
            steps = num_steps if name in ("plain", "ours") else num_steps_slow
            start = time.perf_counter()
            trainings[name](steps)
            milliseconds[name] = 1000 * (time.perf_counter() - start) / steps
        measured.append(milliseconds)
    return measured


def misses(ratios: dict[str, float]) -> list[str]:
    """What the figures do not keep of our promises."""
    found, most, least = [], "ours / plain", "lightning / ours"
    if ratios[most] > TARGETS[most]:
        found.append(f"{most} is {ratios[most]:.2f}, the target is at most {TARGETS[most]}")
    if ratios[least] < TARGETS[least]:
        found.append(f"{least} is {ratios[least]:.2f}, the target is at least {TARGETS[least]}")
    return found


def main() -> int:
    """Print the table; 1 if ``--check`` found a miss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST/raw; downloaded if it is not there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a row misses its target")
    parser.add_argument("--quick", action="store_true", help="shorter trainings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Otherwise torch looks for a GPU in every optimizer step, 0.3 ms, if it was built for one.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = MNIST(arguments.data_dir, batch_size=BATCH)
    data.prepare_data()
    data.setup()
    num_steps, num_steps_slow, turns = (800, 100, 3) if arguments.quick else (2000, 500, 7)
    measured = measure(data, num_steps, num_steps_slow, turns)
    print(f"torch {torch.__version__}, {num_steps} iterations, {turns} turns, one thread")
    for name in METHODS:
        print(f"{name:20}{statistics.median(turn[name] for turn in measured):8.2f} ms / iteration")
    ratios = {
        f"{one} / {other}": statistics.median(turn[one] / turn[other] for turn in measured)
        for one, other in RATIOS
    }
    for name, ratio in ratios.items():
        print(f"{name:20}{ratio:8.2f}")
    missed = misses(ratios)
    for line in missed:
        print(f"misses its target: {line}")
    return int(arguments.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
