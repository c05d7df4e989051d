"""Late rewinding: rewind the survivors of LeNet-300-100 on MNIST to step 0, or to a later one.

    LIGHTNING_LTH_DATA=DIRECTORY python examples/mnist_ticket.py    # 90 s on 2 cores

DIRECTORY has `MNIST/raw` in torchvision's layout; nothing is downloaded. Needs
`pip install -e ".[examples,study]"`.

Deep networks have tickets only at a step a little after the initialization (Frankle et al. 2019).
This network is small enough to have them at both, so expect two columns that are much alike. Each
later round trains only the steps from the rewind point to the end.

Prints test accuracy by round at the lowest validation loss. Tickets and TensorBoard events are in
`results/mnist_ticket`: `tensorboard --logdir results` shows the two searches beside each other.
"""

import logging
import os
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_lth import IterativeMagnitudePruning
from lightning_lth.study.experiments.images import MNIST

MAX_STEPS, VALIDATE_EVERY = 800, 100
REWIND_STEPS = (0, 100)
ROUNDS = 4
FRACTION = 0.5  # the papers prune 0.2 and more rounds; this gets to 6 % in four
BATCH_SIZE = 60
SEED = 1
RESULTS = Path("results/mnist_ticket")


class LeNet(LightningModule):
    """784-300-100-10, trained as by Frankle & Carbin; an ordinary module."""

    def __init__(self):
        super().__init__()
        hidden = nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))

    def training_step(self, batch, batch_idx):
        """Cross entropy of one batch."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        """Loss and accuracy on validation data (loader 0) and test data (loader 1)."""
        outputs, name = self.layers(batch[0]), ("val", "test")[dataloader_idx]
        accuracy = (outputs.argmax(1) == batch[1]).float().mean()
        loss = nn.functional.cross_entropy(outputs, batch[1])
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": accuracy}, add_dataloader_idx=False)

    def configure_optimizers(self):
        """Adam, with the rate of the paper."""
        return torch.optim.Adam(self.parameters(), lr=1.2e-3, fused=True)


def find_tickets(data, rewind_step):
    """One fit of all rounds; what each of them did."""
    seed_everything(SEED, verbose=False)  # the same initial weights and batches for both
    name = f"rewind_to_{rewind_step}"
    pruning = IterativeMagnitudePruning(
        ROUNDS,
        fraction=FRACTION,
        scope="layer",
        fractions={"layers.5.weight": FRACTION / 2},  # the output layer
        rewind_step=rewind_step,
        ticket_dir=RESULTS / name / "tickets",
    )
    trainer = Trainer(
        max_steps=MAX_STEPS,
        callbacks=[pruning],
        logger=TensorBoardLogger(RESULTS, name=name),
        accelerator="cpu",
        val_check_interval=VALIDATE_EVERY,
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    loaders = [data.val_dataloader(), data.test_dataloader()]
    trainer.fit(LeNet(), data.train_dataloader(), loaders)
    return pruning.history


def main():
    """Search from both rewind points, and compare."""
    folder = os.environ.get("LIGHTNING_LTH_DATA", "data")
    if not Path(folder, "MNIST", "raw").is_dir():
        raise SystemExit(f"There is no MNIST/raw in {folder!r}: set LIGHTNING_LTH_DATA.")
    data = MNIST(folder, batch_size=BATCH_SIZE)
    data.setup()

    searches = [find_tickets(data, rewind_step) for rewind_step in REWIND_STEPS]
    print("test accuracy (and its step), rewinding to step " + " or ".join(map(str, REWIND_STEPS)))
    for records in zip(*searches, strict=True):
        found = [f"{one.best_metrics['test_acc']:7.2%} ({one.best_step})" for one in records]
        print(f"round {records[0].round}, density {records[0].density:6.1%}:", *found)
    print(f"tensorboard --logdir {RESULTS}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a small network gains nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    main()
