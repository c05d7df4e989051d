"""Conv-2 on CIFAR-10 as in Frankle & Carbin: convolutions are pruned more slowly than the rest.

    LIGHTNING_LTH_DATA=DIRECTORY python examples/conv2_cifar10.py    # 2 minutes on 2 cores

DIRECTORY has `cifar-10-batches-py` or `cifar10_jpg.zip`; nothing is downloaded. Needs
`pip install -e ".[examples,study]"`. Data and network are those that studies use.

The default is a quarter of the paper's channels and units, fewer steps, and twice its fractions, to
fit into two minutes. With `WIDTH, MAX_STEPS, ROUNDS, FRACTION = 1.0, 20_000, 12, 0.2` and a GPU it
is the paper's search. `lightning-lth study run` repeats that over seeds, with controls.

Prints accuracy by round. Tickets, a table and TensorBoard events are in `results/conv2_cifar10`:
`tensorboard --logdir results`.
"""

import logging
import os
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_lth import IterativeMagnitudePruning
from lightning_lth.study.experiments import cifar10
from lightning_lth.study.experiments.classifier import Classifier
from lightning_lth.study.experiments.images import CIFAR10

WIDTH = 0.25
MAX_STEPS, VALIDATE_EVERY = 400, 100
ROUNDS = 3
FRACTION = 0.4  # of the hidden linear layers; half of it elsewhere
BATCH_SIZE, NUM_VALIDATION = 60, 5000
SEED = 1
RESULTS = Path("results/conv2_cifar10")


def main():
    """Find tickets, and test the last one."""
    folder = Path(os.environ.get("LIGHTNING_LTH_DATA", "data"))
    if not cifar10.is_in(folder):
        raise SystemExit(f"There is no CIFAR-10 in '{folder}': set LIGHTNING_LTH_DATA.")

    seed_everything(SEED, verbose=False)
    pruning = IterativeMagnitudePruning(
        ROUNDS,
        fraction=FRACTION,
        scope="layer",
        fractions={"*.conv*": FRACTION / 2, "*.output.*": FRACTION / 2},
        ticket_dir=RESULTS / "tickets",
    )
    trainer = Trainer(
        max_steps=MAX_STEPS,
        callbacks=[pruning],
        logger=TensorBoardLogger(RESULTS, name="events"),
        val_check_interval=VALIDATE_EVERY,
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    data = CIFAR10(str(folder), batch_size=BATCH_SIZE, num_validation=NUM_VALIDATION)
    module = Classifier("conv2", width=WIDTH, lr=2e-4 if WIDTH == 1 else 1e-3)
    trainer.fit(module, data)

    pruning.history.to_csv(RESULTS / "history.csv")
    for found in pruning.history:
        accuracy, step = found.best_metrics["val_accuracy"], found.best_step
        print(f"round {found.round}: density {found.density:6.1%}, ", end="")
        print(f"validation accuracy at the lowest loss {accuracy:6.2%} (step {step})")
    (result,) = trainer.test(module, data, verbose=False)
    print(f"Test accuracy at the end of the last round: {result['test_accuracy']:.2%}")
    print(f"tensorboard --logdir {RESULTS}")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    main()
