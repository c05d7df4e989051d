"""See what Dropout does to the BatchNorms behind it, and be warned.

    LIGHTNING_LTH_DATA=DIRECTORY python examples/dropout_before_batch_norm.py   # 2 min on 2 cores

DIRECTORY has `FashionMNIST/raw` in torchvision's layout; nothing is downloaded. Needs
`pip install -e ".[examples]"`.

Three small CNNs on Fashion-MNIST, with Dropout 0, 0.2 and 0.5 before each but the first BatchNorm.
In evaluation, without Dropout, the variance behind it is smaller than the running variance says;
LayerStatsMonitor measures that in each validation, and warns (Li et al. 2019). The table in the
documentation has `MAX_EPOCHS = 4`.

Prints the statistics of each BatchNorm and the first warning. TensorBoard events with charts of all
layers are in `results/dropout_before_batch_norm`: `tensorboard --logdir results`.
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

from lightning_lth import Initializer, LayerStatsMonitor

DROPOUT = (0.0, 0.2, 0.5)
NUM_IMAGES, NUM_TEST_IMAGES, MAX_EPOCHS = 12_000, 5_000, 2
SEED = 1
RESULTS = Path("results/dropout_before_batch_norm")


class Classifier(LightningModule):
    """Four convolutions, each with BatchNorm and ReLU, and Dropout between them."""

    def __init__(self, dropout):
        super().__init__()
        layers = []
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
            layers += [nn.Dropout(dropout)] if layers else []
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU()]
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        self.network = nn.Sequential(*layers, *head)

    def training_step(self, batch, batch_idx):
        """Cross entropy of one batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        """Accuracy."""
        is_correct = self.network(batch[0]).argmax(1) == batch[1]
        self.log("val_accuracy", is_correct.float().mean())

    def configure_optimizers(self):
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def train(data, dropout):
    """Train from the same seed; the monitor is all that is added."""
    module = Classifier(dropout)
    seed_everything(SEED, verbose=False)
    order = RandomSampler(data[0], generator=torch.Generator().manual_seed(SEED))
    batches = BatchSampler(order, 64, drop_last=True)  # faster than one by one
    monitor = LayerStatsMonitor(10)
    trainer = Trainer(
        max_epochs=MAX_EPOCHS,
        callbacks=[Initializer(seed=SEED), monitor],
        logger=TensorBoardLogger(RESULTS, name=f"dropout_{dropout}"),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    loader = DataLoader(data[0], batch_size=None, sampler=batches)
    trainer.fit(module, loader, DataLoader(data[1], 1000))
    return monitor


def main():
    """Train all three, and show what the monitors have seen."""
    folder = os.environ.get("LIGHTNING_LTH_DATA", "data")
    if not Path(folder, "FashionMNIST", "raw").is_dir():
        raise SystemExit(f"There is no FashionMNIST/raw in {folder!r}: set LIGHTNING_LTH_DATA.")
    data = []
    for is_train, size in ((True, NUM_IMAGES), (False, NUM_TEST_IMAGES)):
        official = FashionMNIST(folder, train=is_train)
        images = (official.data[:size, None] / 255 - 0.286) / 0.353
        data.append(TensorDataset(images, official.targets[:size]))

    for dropout in DROPOUT:
        monitor = train(data, dropout)
        layers = [row for row in monitor.layers if row["kind"] == "batch_norm"]
        print(f"Dropout {dropout}")
        for statistic in ("train_eval_shift", "train_eval_ratio", "neg_beta"):
            print(f"  {statistic:17}", *(f"{row[statistic]:5.2f}" for row in layers))
        print(f"  {len(monitor.diagnoses)} problems", *[x.message for x in monitor.diagnoses[:1]])
    print(f"tensorboard --logdir {RESULTS}")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")  # the monitors' warnings are printed above
    main()
