"""What alternatives do to a training, beside us: the claims of the README's table, shown.

Run:
    python benchmarks/alternatives.py          # under a minute
    python benchmarks/alternatives.py --check  # ... and exit 1 if a row is not as the README says
    python benchmarks/alternatives.py --quick  # the same

A perceptron on scikit-learn's digits, three trainings of one epoch, half of the weights pruned
between them. Each row is read at the start of each training, the last two at the end as well.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelPruning
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_lth import IterativeMagnitudePruning

NUM_TRAININGS = 3
EXPECTED = {  # row: ours, ModelPruning's
    "weights rewound at every start": ("yes", "no"),
    "momentum is zero at every start": ("yes", "no"),
    "learning rate rewound": ("yes", "no"),
    "batch statistics rewound": ("yes", "no"),
    "biases and BatchNorm stay dense": ("yes", "no"),
    "keys of the state_dict as before, while training": ("yes", "no"),
}


class Net(LightningModule):
    """64-100-10 with batch normalization, momentum and a schedule."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10))
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Half the rate after each epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Look(Callback):
    """Writes down what a training starts with: that of ours a round, else an epoch."""

    def __init__(self, hook: str) -> None:
        self.starts: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        setattr(self, hook, self.look)

    def look(self, trainer: Trainer, module: LightningModule) -> None:
        """At the start of a training."""
        layer, norm = module.net[0], module.net[1]
        optimizer = trainer.optimizers[0]
        buffers = [one["momentum_buffer"] for one in optimizer.state.values() if one]
        momentum = max((float(one.abs().max()) for one in buffers if one is not None), default=0.0)
        weight = layer.weight.detach().clone()
        rate = optimizer.param_groups[0]["lr"]
        statistics = int(norm.num_batches_tracked)
        self.starts.append(
            {"weight": weight, "momentum": momentum, "rate": rate, "batches": statistics}
        )
        self.keys |= set(module.state_dict())


def train(callback: Callback, look: Look, module: Net, max_epochs: int) -> None:
    """One fit, without files."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(accelerator="cpu", max_epochs=max_epochs, callbacks=[callback, look], **quiet)
    trainer.fit(module, DataLoader(data, batch_size=64))


def run(callback: Callback, hook: str, max_epochs: int) -> dict[str, str]:
    """The rows of one tool."""
    seed_everything(0, verbose=False)
    module, look = Net(), Look(hook)
    before, keys = module.net[0].weight.detach().clone(), set(module.state_dict())
    train(callback, look, module, max_epochs)

    def is_rewound(start: dict[str, Any]) -> bool:
        alive = start["weight"] != 0
        return bool(torch.equal(start["weight"][alive], before[alive]))

    rows = {
        "weights rewound at every start": all(map(is_rewound, look.starts)),
        "momentum is zero at every start": all(one["momentum"] == 0 for one in look.starts),
        "learning rate rewound": all(one["rate"] == 0.1 for one in look.starts),
        "batch statistics rewound": all(one["batches"] == 0 for one in look.starts),
        "biases and BatchNorm stay dense": bool(module.net[1].weight.all())
        and bool(module.net[3].bias.all()),
        "keys of the state_dict as before, while training": look.keys == keys,
    }
    assert len(look.starts) == NUM_TRAININGS
    return {name: "yes" if holds else "no" for name, holds in rows.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a row is otherwise")
    parser.add_argument("--quick", action="store_true", help="the same")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tools: dict[str, Callable[[], dict[str, str]]] = {
        "ours": lambda: run(IterativeMagnitudePruning(2, fraction=0.5), "on_train_start", 1),
        "ModelPruning": lambda: run(
            ModelPruning("l1_unstructured", amount=0.5), "on_train_epoch_start", NUM_TRAININGS
        ),
    }
    found = {name: tool() for name, tool in tools.items()}
    print(f"torch {torch.__version__}, Lightning {lightning.__version__}")
    print(f"{'':50}" + "".join(f"{name:>14}" for name in found))
    for row in EXPECTED:
        print(f"{row:50}" + "".join(f"{rows[row]:>14}" for rows in found.values()))
    wrong = [row for row in EXPECTED if tuple(r[row] for r in found.values()) != EXPECTED[row]]
    if arguments.check and wrong:
        sys.exit(f"not as in the README: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
