"""Carry a ticket of Fashion-MNIST over to MNIST: do its weights and masks help there, too?

    LIGHTNING_LTH_DATA=DIRECTORY python examples/ticket_transfer.py    # 90 s on 2 cores

DIRECTORY has `FashionMNIST/raw` and `MNIST/raw` in torchvision's layout; nothing is downloaded.
Needs `pip install -e ".[examples,study]"`.

The ticket goes through a file, and all but its output layer into a new network: that one stays
dense and starts afresh, as it has to when classes differ (Morcos et al. 2019). Two controls train
alike: the same masks with fresh random weights, and a dense network.

Prints test accuracy after little training. With this small network the ticket does no better than
random weights: what transfers in the papers are late-rewound tickets of deep ones. The ticket and
TensorBoard events are in `results/ticket_transfer`: `tensorboard --logdir results`.
"""

import logging
import os
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_lth import FixedMasks, IterativeMagnitudePruning, Masks, Ticket
from lightning_lth.study.experiments.classifier import Classifier
from lightning_lth.study.experiments.images import MNIST, FashionMNIST

MAX_STEPS = 800  # of each training on Fashion-MNIST
TRANSFER_STEPS = 400  # on MNIST
ROUNDS = 3
FRACTION = 0.5  # to 12 % in three rounds
SEED, OTHER_SEED = 1, 2
RESULTS = Path("results/ticket_transfer")


def train(module, data, name, max_steps, *callbacks):
    """Train from a seed that is the same for all, so that they see the same batches."""
    seed_everything(SEED, verbose=False)
    trainer = Trainer(
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(RESULTS, name=name),
        accelerator="cpu",
        val_check_interval=max(1, max_steps // 8),
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    print(f"{name:35} {result['test_accuracy']:.2%} on the test data of {type(data).__name__}")


def main():
    """Find a ticket, save it, and train it elsewhere."""
    folder = os.environ.get("LIGHTNING_LTH_DATA", "data")
    for name in ("FashionMNIST", "MNIST"):
        if not Path(folder, name, "raw").is_dir():
            raise SystemExit(f"There is no {name}/raw in {folder!r}: set LIGHTNING_LTH_DATA.")

    seed_everything(SEED, verbose=False)
    pruning = IterativeMagnitudePruning(ROUNDS, fraction=FRACTION, scope="layer")
    train(Classifier("lenet_300_100"), FashionMNIST(folder), "search", MAX_STEPS, pruning)
    pruning.ticket.save(RESULTS / "fashion_mnist.safetensors")

    found = Ticket.load(RESULTS / "fashion_mnist.safetensors")
    print(found)
    hidden = Masks({name: mask for name, mask in found.masks.items() if "output" not in name})
    weights = {name: one for name, one in found.weights.items() if "output" not in name}
    ticket = Ticket(hidden, weights, round=found.round, step=found.step)

    mnist = MNIST(folder)
    seed_everything(OTHER_SEED, verbose=False)
    modules = [Classifier("lenet_300_100") for _ in range(3)]
    print("Transferred:", ticket.apply_(modules[0], strict=False))
    train(modules[0], mnist, "ticket", TRANSFER_STEPS, FixedMasks(ticket.masks))
    train(modules[1], mnist, "same masks, random weights", TRANSFER_STEPS, FixedMasks(ticket.masks))
    train(modules[2], mnist, "dense, random weights", TRANSFER_STEPS)
    print(f"tensorboard --logdir {RESULTS}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a small network gains nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    main()
