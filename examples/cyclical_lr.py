"""See if a cycling rate reaches in a third of the steps what a fixed rate reaches in all of them.

    LIGHTNING_LTH_DATA=DIRECTORY python examples/cyclical_lr.py    # 2 minutes on 2 cores

DIRECTORY has `FashionMNIST/raw`; nothing is downloaded. Needs `pip install -e ".[examples]"`.

A range test finds the rates of the cycle; its steps count into the third. Is it the cycle, or just
a better rate? Other fixed rates for a third of the steps tell. All runs of a seed have the same
initial weights and the same batches. The table in the documentation has `SEEDS = 4, 5, 6`.

Prints test accuracy. The curve of the range test, and events with the rates of the cycle, are in
`results/cyclical_lr`: `tensorboard --logdir results`.
"""

import logging
import os
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torchvision.datasets import FashionMNIST

from lightning_lth import CyclicalLR, LRFinder

STEPS, RANGE_TEST_STEPS = 9_000, 100
USUAL_RATE, OTHER_RATES = 0.01, (0.03, 0.1)
BATCH_SIZE = 128
SEEDS = (4,)
RESULTS = Path("results/cyclical_lr")


class Classifier(LightningModule):
    """784-256-128-10, trained by SGD at a fixed rate; knows nothing of cycles."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        hidden = nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(128, 10))
        self.accuracy = {}  # by step

    def training_step(self, batch, batch_idx):
        """Cross entropy of one batch."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        """Accuracy on all test images."""
        is_correct = self.layers(batch[0]).argmax(1) == batch[1]
        self.accuracy[self.global_step] = is_correct.double().mean().item()

    def configure_optimizers(self):
        """SGD with momentum, and no schedule."""
        return torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)


def train(data, name, seed, rate, steps, *callbacks):
    """Accuracy by step; a seed stands for initial weights and order of the data."""
    seed_everything(seed, verbose=False)
    module = Classifier(rate)
    order = RandomSampler(data[0], generator=torch.Generator().manual_seed(seed))
    batches = BatchSampler(order, BATCH_SIZE, drop_last=False)  # faster than one by one
    trainer = Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(RESULTS, name=f"seed_{seed}", version=name),
        accelerator="cpu",
        check_val_every_n_epoch=None,
        val_check_interval=STEPS // 3 if steps == STEPS else steps,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    test = DataLoader([data[1][:]], batch_size=None)  # one batch
    trainer.fit(module, DataLoader(data[0], batch_size=None, sampler=batches), test)
    return module.accuracy


def compare(data, seed):
    """Test accuracy of each way to train."""
    third = STEPS // 3
    usual = train(data, f"fixed_{USUAL_RATE}", seed, USUAL_RATE, STEPS)
    rows = {f"{third} steps at {USUAL_RATE}": usual[third]}
    for rate in OTHER_RATES:
        rows[f"{third} steps at {rate}"] = train(data, f"fixed_{rate}", seed, rate, third)[third]
    rows[f"{STEPS} steps at {USUAL_RATE}"] = usual[STEPS]
    steps = third - RANGE_TEST_STEPS
    finder = LRFinder(num_steps=RANGE_TEST_STEPS, apply=False, plot_dir=RESULTS / f"seed_{seed}")
    cycle = CyclicalLR.from_finder(finder, step_size=int(0.45 * steps), policy="one_cycle")
    cycled = train(data, "cycle", seed, USUAL_RATE, steps, finder, cycle)
    print(f"Seed {seed}: one cycle from {finder.result.range}")
    return {**rows, f"{third} steps in a cycle": cycled[steps]}


def main():
    """Load Fashion-MNIST, and compare with each seed."""
    folder = os.environ.get("LIGHTNING_LTH_DATA", "data")
    if not Path(folder, "FashionMNIST", "raw").is_dir():
        raise SystemExit(f"There is no FashionMNIST/raw in {folder!r}: set LIGHTNING_LTH_DATA.")
    official = [FashionMNIST(folder, train=is_train) for is_train in (True, False)]
    images, test_images = [(part.data.flatten(1) / 255 - 0.286) / 0.353 for part in official]
    chosen = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))[:55_000]
    test = TensorDataset(test_images, official[1].targets)
    data = [TensorDataset(images[chosen], official[0].targets[chosen]), test]
    tables = [compare(data, seed) for seed in SEEDS]
    for label in tables[0]:
        print(f"{label:21}", *(f"{table[label]:.2%}" for table in tables))
    print(f"tensorboard --logdir {RESULTS}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a small network gains nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec).*")
    main()
