"""Find winning tickets in handwritten digits, and test them against a control.

    pip install -e ".[examples]" && python examples/digits_ticket.py    # 20 s on 2 cores

One fit trains, prunes and rewinds six times. Then each round's mask is trained once more from fresh
random weights: if the original initialization did not matter, that would do as well. One seed is a
demonstration and no proof; the papers use five and more.

Prints accuracy by round; writes tickets, a table, a plot and TensorBoard events to
`results/digits_ticket`. See how density falls and what the validation loss does:
    tensorboard --logdir results
"""

import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, random_split

from lightning_lth import EarlyStopping, FixedMasks, IterativeMagnitudePruning, Ticket
from lightning_lth.pruning.figures import against_density

MAX_STEPS = 300  # of one training
VALIDATE_EVERY = 20
ROUNDS = 5
FRACTION = 0.4  # the papers prune 0.2 and more rounds; this gets to 8 % in five
OUTPUT_FRACTION = 0.2  # the output layer at half the rate, as in Frankle & Carbin
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
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    train_loader = DataLoader(data[0], batch_size=None, sampler=batches)
    trainer.fit(LeNet(), train_loader, [DataLoader(part, batch_size=500) for part in data[1:]])


def main():
    """Find tickets, train the controls, and report."""
    start = time.perf_counter()
    images, labels = load_digits(return_X_y=True)  # 1,797 images of 8 x 8 pixels
    data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
    parts = random_split(data, [1000, 300, 497], torch.Generator().manual_seed(0))

    pruning = IterativeMagnitudePruning(
        ROUNDS,
        fraction=FRACTION,
        scope="layer",
        fractions={"layers.4.weight": OUTPUT_FRACTION},
        ticket_dir=RESULTS / "tickets",
    )
    train(parts, SEED, pruning, logger=TensorBoardLogger(RESULTS, name="events"))
    pruning.history.to_csv(RESULTS / "history.csv")

    curves = {"ticket": [], "same mask, fresh random weights": []}
    print("round  weights remaining  early-stop iteration      test accuracy")
    print("                        ticket  random init    ticket  random init")
    for found in pruning.history:
        ticket = Ticket.load(RESULTS / "tickets" / f"round_{found.round:02d}.safetensors")
        record = EarlyStopping("val_loss", stop=False)  # where the loss is lowest, no more
        train(parts, CONTROL_SEED + found.round, FixedMasks(ticket.masks), record)
        accuracies = [100 * best["test_acc"] for best in (found.best_metrics, record.best.metrics)]
        for points, accuracy in zip(curves.values(), accuracies, strict=True):
            points.append((found.density, accuracy))
        steps = f"{found.best_step:6}  {record.best.step:11}"
        shown = f"{accuracies[0]:6.2f} %  {accuracies[1]:9.2f} %"
        print(f"{found.round:5}  {100 * found.density:15.1f} %  {steps}  {shown}")

    figure = against_density(curves, ylabel="test accuracy at early stop (%)", title="One seed")
    figure.savefig(RESULTS / "accuracy.png", dpi=150)
    print(f"\nTickets, table, plot and TensorBoard events are in {RESULTS}:")
    print(f"tensorboard --logdir {RESULTS}   ({time.perf_counter() - start:.0f} s in all)")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    main()
