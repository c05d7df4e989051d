"""Find winning tickets in a LeNet-300-100 style network, and test them against a control.

Run:
    python examples/digits_ticket.py                        # scikit-learn's digits, 20 s
    python examples/digits_ticket.py --data-dir DIRECTORY   # MNIST, where torchvision looks for it

One fit trains, prunes and rewinds six times. Then each round's mask is trained once more from fresh
random weights: if the original initialization did not matter, that would do as well. One seed is a
demonstration and no proof; the papers use five and more.

Writes TensorBoard events, the tickets, a table and a plot to `results/digits_ticket`.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lth import FixedMasks, History, IterativeMagnitudePruning, Ticket
from lightning_lth.pruning.figures import against_density

ROUNDS = 5
FRACTION = 0.4  # the papers prune 0.2 and more rounds; this gets to 8 % in five
OUTPUT_FRACTION = 0.2  # the output layer at half the rate, as in Frankle & Carbin
BATCH_SIZE = 60
SEED, CONTROL_SEED = 1, 1001
RESULTS = Path("results") / "digits_ticket"


@dataclass
class Data:
    """Training, validation and test set, and how to train on it."""

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    max_steps: int
    learning_rate: float
    validate_every: int  # steps

    def loaders(self) -> tuple[DataLoader, list[DataLoader]]:
        """Shuffled training batches; validation and test in one batch each."""
        generator = torch.Generator().manual_seed(SEED)  # the control sees the order of round 0
        train = DataLoader(self.train, BATCH_SIZE, shuffle=True, generator=generator)
        return train, [DataLoader(part, len(part)) for part in (self.val, self.test)]


class LeNet(LightningModule):
    """Two hidden layers of 300 and 100 units, as in Frankle & Carbin; knows nothing of pruning."""

    def __init__(self, num_inputs: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, 300),
            nn.ReLU(),
            nn.Linear(300, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )
        for layer in self.layers[::2]:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self.layers(inputs), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy on validation data (loader 0) and test data (loader 1)."""
        inputs, labels = batch
        outputs = self.layers(inputs)
        name = ("val", "test")[dataloader_idx]
        accuracy = (outputs.argmax(1) == labels).float().mean()
        loss = nn.functional.cross_entropy(outputs, labels)
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": accuracy}, add_dataloader_idx=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in Frankle & Carbin."""
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class AccuracyAtMinimum(Callback):
    """Test accuracy at the iteration of minimum validation loss."""

    def __init__(self) -> None:
        self.loss, self.step, self.accuracy = float("inf"), 0, 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics where the loss is the lowest so far."""
        if float(trainer.callback_metrics["val_loss"]) < self.loss:
            self.loss = float(trainer.callback_metrics["val_loss"])
            self.step, self.accuracy = (
                trainer.global_step,
                float(trainer.callback_metrics["test_acc"]),
            )


def main() -> None:
    """Find tickets, train the controls, and report."""
    start = time.perf_counter()
    data = load_data(parse_arguments())
    history = find_tickets(data)
    controls = [train_control(data, RESULTS / "tickets", record.round) for record in history]
    print(table(history, controls))
    history.to_csv(RESULTS / "history.csv")
    plot(history, controls).savefig(RESULTS / "accuracy.png", dpi=150)
    print(f"\nTickets, table, plot and TensorBoard events are in {RESULTS}.")
    print(f"tensorboard --logdir {RESULTS}   ({time.perf_counter() - start:.0f} s in all)")


def find_tickets(data: Data) -> History:
    """One fit: train, prune, rewind, and again."""
    seed_everything(SEED, verbose=False)
    pruning = IterativeMagnitudePruning(
        ROUNDS,
        fraction=FRACTION,
        scope="layer",
        fractions={"layers.4.weight": OUTPUT_FRACTION},
        ticket_dir=RESULTS / "tickets",
    )
    train(make_network(data), data, pruning)
    return pruning.history


def train_control(data: Data, ticket_dir: Path, round_: int) -> AccuracyAtMinimum:
    """The mask of a round with fresh random weights, trained alike."""
    ticket = Ticket.load(ticket_dir / f"round_{round_:02d}.safetensors")
    seed_everything(CONTROL_SEED + round_, verbose=False)
    result = AccuracyAtMinimum()
    train(make_network(data), data, FixedMasks(ticket.masks), result, is_control=True)
    return result


def train(module: LeNet, data: Data, *callbacks: Callback, is_control: bool = False) -> None:
    """`max_steps` is the budget of one training; the pruning callback runs several."""
    train_loader, val_loaders = data.loaders()
    trainer = Trainer(
        max_steps=data.max_steps,
        max_epochs=math.ceil(data.max_steps / len(train_loader)),
        callbacks=list(callbacks),
        logger=False if is_control else TensorBoardLogger(RESULTS, name="events"),
        accelerator="cpu",
        check_val_every_n_epoch=None,
        val_check_interval=data.validate_every,
        log_every_n_steps=data.validate_every,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not is_control,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, train_loader, val_loaders)


def table(history: History, controls: list[AccuracyAtMinimum]) -> str:
    """One line for each round."""
    header = "round  weights remaining  early-stop iteration      test accuracy       "
    lines = [header, "                        ticket  random init    ticket  random init"]
    for record, control in zip(history, controls, strict=True):
        lines.append(
            f"{record.round:5}  {100 * record.density:15.1f} %  {record.best_step:6}  "
            f"{control.step:11}  {100 * record.best_metrics['test_acc']:6.2f} %  "
            f"{100 * control.accuracy:9.2f} %"
        )
    return "\n".join(lines)


def plot(history: History, controls: list[AccuracyAtMinimum]):  # type: ignore[no-untyped-def]
    """Accuracy against weights remaining."""
    ticket = [(r.density, 100 * r.best_metrics["test_acc"]) for r in history]
    control = [(r.density, 100 * c.accuracy) for r, c in zip(history, controls, strict=True)]
    return against_density(
        {"ticket": ticket, "same mask, fresh random weights": control},
        ylabel="test accuracy at early stop (%)",
        title=f"One seed, {ROUNDS} rounds",
    )


def make_network(data: Data) -> LeNet:
    """A network with new random weights."""
    return LeNet(data.train.tensors[0].shape[1], data.learning_rate)


def load_data(arguments: argparse.Namespace) -> Data:
    """Digits, or MNIST if a folder was given."""
    if arguments.data_dir is None:
        inputs, labels = load_digits()
        parts = split(inputs, labels, [1000, 300, 497])
        return Data(*parts, arguments.max_steps or 500, learning_rate=4e-3, validate_every=10)
    from torchvision.datasets import MNIST

    official = [MNIST(arguments.data_dir, train=is_train) for is_train in (True, False)]
    images = [part.data.flatten(1).float() / 255 for part in official]
    parts = split(images[0], official[0].targets, [55_000, 5_000])
    test = TensorDataset(images[1], official[1].targets)
    max_steps = arguments.max_steps or 2_000
    validate_every = min(100, max_steps)  # this and the rate as Frankle & Carbin
    return Data(*parts, test, max_steps, learning_rate=1.2e-3, validate_every=validate_every)


def load_digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels, part of scikit-learn."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def split(inputs: Tensor, labels: Tensor, sizes: list[int]) -> list[TensorDataset]:
    """A random split that every run shares."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return [TensorDataset(inputs[part], labels[part]) for part in order.split(sizes)]


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST/raw; without it: digits")
    parser.add_argument("--max-steps", type=int, help="steps of one training; 500, MNIST 2000")
    return parser.parse_args()


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    main()
