"""Find a ticket in several processes: DDP, started from the command line.

    torchrun --nproc-per-node 2 examples/ddp.py    # 30 s on 2 cores
    python examples/ddp.py                         # the same in one process

Needs `pip install -e ".[examples]"`. Nothing about pruning differs from one process: all ranks find
the same masks, which the callback checks each round, and rank 0 writes the tickets.

Rank 0 prints the history; every rank prints a hash of its masks and the sum of its weights:
all alike. Tickets and TensorBoard events are in `results/ddp`: `tensorboard --logdir results`.
"""

import logging
import os
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lth import IterativeMagnitudePruning

ACCELERATOR = "cpu"  # or "gpu"
MAX_EPOCHS, ROUNDS, FRACTION = 10, 3, 0.4
BATCH_SIZE = 64  # over all processes
SEED = 1
RESULTS = Path("results/ddp")


class Digits(LightningModule):
    """64-300-100-10; an ordinary module."""

    def __init__(self):
        super().__init__()
        hidden = nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(100, 10))

    def training_step(self, batch, batch_idx):
        """Cross entropy."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        """Loss and accuracy over all processes."""
        outputs = self.layers(batch[0])
        loss = nn.functional.cross_entropy(outputs, batch[1])
        accuracy = (outputs.argmax(1) == batch[1]).float().mean()
        self.log_dict({"val_loss": loss, "val_acc": accuracy}, sync_dist=True)

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main():
    """Train on every rank, and compare what they have."""
    seed_everything(SEED, verbose=False)
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    data = TensorDataset(images.float() / 16, labels)
    train, val = torch.utils.data.random_split(data, [1500, 297])

    pruning = IterativeMagnitudePruning(ROUNDS, fraction=FRACTION, ticket_dir=RESULTS / "tickets")
    trainer = Trainer(
        max_epochs=MAX_EPOCHS,
        callbacks=[pruning],
        logger=TensorBoardLogger(RESULTS, name="events"),
        accelerator=ACCELERATOR,
        devices=num_processes,
        strategy="ddp" if num_processes > 1 else "auto",
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module = Digits()
    loader = DataLoader(train, BATCH_SIZE // num_processes, shuffle=True)
    trainer.fit(module, loader, DataLoader(val, 297))  # Lightning gives each rank its share

    if trainer.is_global_zero:
        print(pruning.history, flush=True)
    total = sum(float(one.detach().double().sum()) for one in module.parameters())
    masks = pruning.masks.fingerprint()[:12]
    print(f"rank {trainer.global_rank}: masks {masks}, sum of the weights {total:.9f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(many workers|is deprecated).*")
    main()
