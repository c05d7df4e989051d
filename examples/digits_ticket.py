"""Find winning tickets in handwritten digits, and test them against a control.

    python examples/digits_ticket.py    # 20 s on 2 cores

One fit trains, prunes and rewinds six times. Then each round's mask is trained once more from fresh
random weights: if the original initialization did not matter, that would do as well. One seed is a
demonstration and no proof; the papers use five and more.

Prints accuracy by round; writes tickets, a table, a plot and TensorBoard events (densities, losses,
charts by round) to `results/digits_ticket`. See them with `tensorboard --logdir results`.
"""

import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_lth import EarlyStopping, FixedMasks, IterativeMagnitudePruning, Ticket
from lightning_lth.pruning.figures import against_density

MAX_STEPS, VALIDATE_EVERY = 300, 20  # of one training
ROUNDS = 5
FRACTION = 0.4  # the papers prune 0.2 and more rounds; this gets to 8 % in five
SEED, CONTROL_SEED = 1, 1001
RESULTS = Path("results/digits_ticket")


class LeNet(LightningModule):
    """64-300-100-10, as in Frankle & Carbin but for the size of the images; an ordinary module."""

    def __init__(self):
        super().__init__()
        hidden = nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(100, 10))

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
        """Adam, as in Frankle & Carbin."""
        return torch.optim.Adam(self.parameters(), lr=4e-3, fused=True)


def train(data, seed, *callbacks, logger=False):
    """`max_steps` is the budget of one training; the pruning callback runs several."""
    seed_everything(seed, verbose=False)
    order = RandomSampler(data[0], generator=torch.Generator().manual_seed(SEED))
    batches = BatchSampler(order, batch_size=60, drop_last=False)  # faster than one by one
    trainer = Trainer(
        max_steps=MAX_STEPS,
        callbacks=list(callbacks),
        logger=logger,
        accelerator="cpu",
        val_check_interval=VALIDATE_EVERY,
        log_every_n_steps=10,
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    whole = [DataLoader([part[:]], batch_size=None) for part in data[1:]]  # one batch each
    trainer.fit(LeNet(), DataLoader(data[0], batch_size=None, sampler=batches), whole)


def main():
    """Find tickets, train the controls, and report."""
    images, labels = map(torch.tensor, load_digits(return_X_y=True))  # 1,797 of 8 x 8 pixels
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    split = order.split([1000, 300, 497])
    data = [TensorDataset(images[part].float() / 16, labels[part]) for part in split]

    pruning = IterativeMagnitudePruning(
        ROUNDS,
        fraction=FRACTION,
        scope="layer",
        fractions={"layers.4.weight": FRACTION / 2},  # the output, as in Frankle & Carbin
        ticket_dir=RESULTS / "tickets",
    )
    train(data, SEED, pruning, logger=TensorBoardLogger(RESULTS, name="events"))
    pruning.history.to_csv(RESULTS / "history.csv")

    print("round  remaining  ticket at early stop  same mask, fresh random weights")
    tickets, controls = [], []
    for found in pruning.history:
        ticket = Ticket.load(RESULTS / "tickets" / f"round_{found.round:02d}.safetensors")
        record = EarlyStopping("val_loss", stop=False)  # where the loss is lowest, no more
        train(data, CONTROL_SEED + found.round, FixedMasks(ticket.masks), record)
        accuracy, control = found.best_metrics["test_acc"], record.best.metrics["test_acc"]
        tickets.append((found.density, 100 * accuracy))
        controls.append((found.density, 100 * control))
        steps = found.best_step, record.best.step
        print(f"{found.round:5}  {found.density:9.1%}  step {steps[0]:4}  {accuracy:8.2%}", end="")
        print(f"  step {steps[1]:4}  {control:8.2%}")

    curves = {"ticket": tickets, "same mask, fresh random weights": controls}
    figure = against_density(curves, ylabel="test accuracy at early stop (%)", title="One seed")
    figure.savefig(RESULTS / "accuracy.png", dpi=150)
    print(f"Tickets, table, plot and events are in {RESULTS}: tensorboard --logdir {RESULTS}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a small network gains nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec).*")
    main()
