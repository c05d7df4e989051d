"""See that BatchNorm makes the loss smoother: how fast does the gradient change along itself?

    LIGHTNING_LTH_DATA=DIRECTORY python examples/batch_norm_landscape.py    # 30 s on 2 cores

DIRECTORY has `FashionMNIST/raw` in torchvision's layout; nothing is downloaded. Needs
`pip install -e ".[examples]"`.

Two perceptrons, with BatchNorm and without, at the same rate (Santurkar et al. 2018). They start
from He's initialization: with PyTorch's own, which is smaller, the one without BatchNorm stays on a
plateau at first, which is smooth, too.

Prints the median effective beta-smoothness; lower is smoother. TensorBoard events are in
`results/batch_norm_landscape`: `tensorboard --logdir results`.
"""

import logging
import os
import warnings
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torchvision.datasets import FashionMNIST

from lightning_lth import Initializer, LayerStatsMonitor

NUM_IMAGES, MAX_EPOCHS, BATCHES_PER_EPOCH = 12_000, 20, 10
SEED = 1
RESULTS = Path("results/batch_norm_landscape")


class Classifier(LightningModule):
    """784-128-128-128-128-128-10."""

    def __init__(self, *, has_norm):
        super().__init__()
        layers = [nn.Flatten()]
        for inputs in (784, 128, 128, 128, 128):
            norm = [nn.BatchNorm1d(128)] if has_norm else []
            layers += [nn.Linear(inputs, 128), *norm, nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        """Cross entropy of one batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def measure(data, *, has_norm):
    """The beta-smoothness at the end of each epoch."""
    seed_everything(SEED, verbose=False)
    order = RandomSampler(data, generator=torch.Generator().manual_seed(SEED))
    monitor = LayerStatsMonitor(landscape=True)
    trainer = Trainer(
        max_epochs=MAX_EPOCHS,
        limit_train_batches=BATCHES_PER_EPOCH,
        callbacks=[Initializer(seed=SEED), monitor],
        logger=TensorBoardLogger(RESULTS, name="batch_norm" if has_norm else "plain"),
        log_every_n_steps=BATCHES_PER_EPOCH,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    batches = BatchSampler(order, 64, drop_last=True)  # faster than one by one
    trainer.fit(Classifier(has_norm=has_norm), DataLoader(data, batch_size=None, sampler=batches))
    return [measured.beta for _, measured in monitor.landscapes]


def main():
    """Measure both."""
    folder = os.environ.get("LIGHTNING_LTH_DATA", "data")
    if not Path(folder, "FashionMNIST", "raw").is_dir():
        raise SystemExit(f"There is no FashionMNIST/raw in {folder!r}: set LIGHTNING_LTH_DATA.")
    official = FashionMNIST(folder, train=True)
    images = (official.data[:NUM_IMAGES, None] / 255 - 0.286) / 0.353
    data = TensorDataset(images, official.targets[:NUM_IMAGES])
    for has_norm in (False, True):
        beta = median(measure(data, has_norm=has_norm))
        name = "with BatchNorm" if has_norm else "without"
        print(f"Effective beta-smoothness {name}: {beta:.1f} (median)")
    print(f"tensorboard --logdir {RESULTS}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks gain nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec).*")
    main()
