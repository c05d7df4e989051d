"""What the conformance tests have in common: every callback, a user's module, and settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_lth import (
    CyclicalLR,
    EarlyStopping,
    FixedMasks,
    HyperparameterFinder,
    Initializer,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    LRFinder,
    Masks,
    Thresholds,
)
from tests.callbacks.modules import Classifier, data, loader

MASKS = Masks({"net.0.weight": torch.arange(96).remainder(2).view(16, 6)})
Makers = dict[str, Callable[[], pl.Callback]]


def monitor() -> LayerStatsMonitor:
    """Everything on, and no advice about networks as small as ours."""
    return LayerStatsMonitor(
        2,
        activations=True,
        landscape=True,
        thresholds=Thresholds(values_per_channel=8, train_eval_shift=99.0),
    )


MAKERS: Makers = {
    "IterativeMagnitudePruning": lambda: IterativeMagnitudePruning(1),
    "FixedMasks": lambda: FixedMasks(MASKS),
    "Initializer": lambda: Initializer(seed=3),
    "LRFinder": lambda: LRFinder(1e-3, 10, 100),
    "HyperparameterFinder": lambda: HyperparameterFinder("momentum", (0.2, 0.5), steps_per_value=3),
    "CyclicalLR": lambda: CyclicalLR(0.2, 0.4, step_size=3),
    "EarlyStopping": lambda: EarlyStopping("val_loss", patience=0, restore_best=True),
    "LayerStatsMonitor": monitor,
}
# They look, and do nothing.
PASSIVE: Makers = {
    "FixedMasks": lambda: FixedMasks(Masks.dense({"net.0.weight": torch.ones(16, 6)})),
    "LRFinder": lambda: LRFinder(1e-3, 10, 20, apply=False),
    "HyperparameterFinder": lambda: HyperparameterFinder(
        "momentum", (0.2, 0.5), steps_per_value=3, apply=False
    ),
    "EarlyStopping": lambda: EarlyStopping("val_loss", patience=0, stop=False, strict=False),
    "LayerStatsMonitor": monitor,
}
# They change nothing in an epoch with one validation.
WATCHERS = (EarlyStopping, LayerStatsMonitor)


def combination(folder: Path) -> dict[str, pl.Callback]:
    """All that can be together, by name."""
    finder = LRFinder(1e-3, 10, 100)
    return {
        "initializer": Initializer(seed=3),
        "finder": finder,
        "cycles": CyclicalLR.from_finder(finder, step_size=3),
        "stopping": EarlyStopping("val_loss", patience=1, restore_best=True),
        "monitor": monitor(),
        "pruning": IterativeMagnitudePruning(2, rewind_step=2, ticket_dir=folder),
    }


class Project(Classifier):
    """A user's module that draws random numbers, logs, and fails where it is told to."""

    fails_in = ""
    error: BaseException | type[BaseException] = KeyError

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def setup(self, stage: str) -> None:
        self.fail("setup")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.fail("training_step")
        loss = nn.functional.cross_entropy(self.net(self.dropout(batch[0])), batch[1])
        if not self.trainer.barebones:
            self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.fail("sanity_check" if self.trainer.sanity_checking else "validation_step")
        if not self.trainer.barebones:
            super().validation_step(batch, batch_idx)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_sum", self.net(batch[0]).sum())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.fail("optimizer_step")

    def on_train_start(self) -> None:
        self.fail("on_train_start")

    def on_train_epoch_start(self) -> None:
        self.fail("on_train_epoch_start")

    def on_train_end(self) -> None:
        self.fail("on_train_end")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.fail("on_save_checkpoint")

    def fail(self, phase: str) -> None:
        if phase == self.fails_in:
            raise self.error


class Stream(IterableDataset[Any]):
    """The samples of ``tests.callbacks.modules.data``, without a length."""

    def __iter__(self) -> Any:
        yield from data()


def stream() -> DataLoader[Any]:
    """Batches of 8 of an unknown number."""
    return DataLoader(Stream(), batch_size=8)


# By name: arguments of the Trainer, and the loaders of training and validation.
Setting = tuple[dict[str, Any], Callable[[], Any], Callable[[], Any] | None]
SETTINGS: dict[str, Setting] = {
    "plain": ({}, loader, loader),
    "shuffled": ({}, lambda: loader(shuffle=True), loader),
    "overfit_batches": ({"overfit_batches": 2}, loader, loader),
    "limit_train_batches": ({"limit_train_batches": 0.5}, loader, loader),
    "limit_val_batches": ({"limit_val_batches": 1}, loader, loader),
    "no validation batches": ({"limit_val_batches": 0}, loader, loader),
    "no validation": ({}, loader, None),
    "barebones": ({"barebones": True}, loader, loader),
    "sanity check": ({"num_sanity_val_steps": 2}, loader, loader),
    "iterable": ({}, stream, stream),
    "iterable, limited": ({"limit_train_batches": 4}, stream, loader),
    "val_check_interval": ({"val_check_interval": 2}, loader, loader),
    "validation across epochs": (
        {"val_check_interval": 4, "check_val_every_n_epoch": None},
        loader,
        loader,
    ),
    "check_val_every_n_epoch": ({"check_val_every_n_epoch": 2}, loader, loader),
    "accumulation": ({"accumulate_grad_batches": 4}, loader, loader),
    "clipping": ({"gradient_clip_val": 0.1}, loader, loader),
    "clipping by value": (
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        loader,
        loader,
    ),
    "max_steps": ({"max_steps": 7, "max_epochs": -1}, loader, loader),
    "max_time": ({"max_time": "00:01:00:00"}, loader, loader),
    "bf16-mixed": ({"precision": "bf16-mixed"}, loader, loader),
    "64-true": ({"precision": "64-true"}, loader, loader),
    "detect_anomaly": ({"detect_anomaly": True}, loader, loader),
}


def loggers(folder: Any) -> list[Any]:
    """Two of them."""
    return [CSVLogger(folder, name="csv", version=""), TensorBoardLogger(folder, name="board")]


def silent(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a silent Trainer; ``barebones`` brings its own."""
    if settings.get("barebones"):
        return {"accelerator": "cpu", "devices": 1, "max_epochs": 2, **settings}
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    quiet |= {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "max_epochs": 2}
    return quiet | settings
