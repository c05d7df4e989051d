"""A user's project: a small network, all callbacks that go together, and checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_lth import (
    CyclicalLR,
    EarlyStopping,
    Initializer,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    LRFinder,
)
from lightning_lth.study.experiments.loader import TensorLoader


class Net(LightningModule):
    """Its Dropout depends on the round and the step alone: Lightning keeps no random states."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        round = int(self.trainer.callback_metrics["round"])
        torch.manual_seed(1000 * round + self.trainer.global_step)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(folder: Path) -> None:
    """Train in a folder, from its last checkpoint if there is one; leave the end in `end.pt`.

    Checkpoints never come with the last batch of an epoch: Lightning 2.6, resumed from one of
    these, leaves out the validation that ends the epoch.
    """
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # most of the time is for figures
    seed_everything(0, verbose=False)
    callbacks = _callbacks(folder)
    saver = ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=5)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=[*callbacks.values(), saver],
        logger=TensorBoardLogger(folder, name="", version="events"),
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, checkpoint = Net(), newest_whole_checkpoint(folder)
    trainer.fit(module, _loader(True), _loader(False), ckpt_path=checkpoint, weights_only=True)
    torch.save(_end(trainer, module, callbacks), folder / "end.pt")


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """Lightning's newest checkpoint that loads, usually `last.ckpt`."""
    found = folder.glob("checkpoints/*.ckpt")
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if _loads(path):
            return path
    return None


def _loads(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def _callbacks(folder: Path) -> dict[str, Callback]:
    finder = LRFinder(1e-3, 10.0, 60)
    return {
        "initializer": Initializer(seed=1),
        "finder": finder,
        "cycles": CyclicalLR.from_finder(finder, step_size=7, base_momentum=0.8, max_momentum=0.9),
        "pruning": IterativeMagnitudePruning(2, rewind_step=3, ticket_dir=folder / "tickets"),
        "stopping": EarlyStopping("val_loss", patience=2, restore_best=True),
        "monitor": LayerStatsMonitor(every_n_steps=4),
    }


def _loader(is_training: bool) -> TensorLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(72, 6, generator=generator)
    labels = (inputs @ torch.randn(6, 3, generator=generator)).argmax(1)
    where = slice(0, 48) if is_training else slice(48, 72)  # 6 batches of 8, or 3
    return TensorLoader(inputs[where], labels[where], batch_size=8, shuffle=is_training, seed=0)


def _end(trainer: Trainer, module: Net, callbacks: dict[str, Callback]) -> dict[str, Any]:
    pruning, stopping = callbacks["pruning"], callbacks["stopping"]
    assert isinstance(pruning, IterativeMagnitudePruning)
    assert isinstance(stopping, EarlyStopping)
    return {
        "weights": module.state_dict(),
        "masks": dict(pruning.masks),
        "history": pruning.history.rows(),
        "validations": [validations.state_dict() for validations in stopping.rounds],
        "optimizer": trainer.optimizers[0].state_dict(),
        "step": trainer.global_step,
        "states": {name: one.state_dict() for name, one in callbacks.items()},
    }
