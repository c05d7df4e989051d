"""A module whose validation losses are given, and what its tests look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from tests.callbacks.modules import Classifier, loader, trainer


class Scripted(Classifier):
    """Logs given values as `val_loss`, one after the other; the last again and again.

    Counted by the module, so that a resumed one goes on where the checkpoint was.
    """

    def __init__(self, losses: Sequence[float] = (1.0,), **others: Sequence[float]) -> None:
        super().__init__()
        self.scripts = {"val_loss": losses, **others}
        self.register_buffer("num_validations", torch.tensor(0))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            self.log("val_loss", -100.0)
            return
        index = int(self.num_validations)
        self.num_validations += 1
        for name, values in self.scripts.items():
            self.log(name, values[min(index, len(values) - 1)])


def fit(
    callback: pl.Callback,
    losses: Sequence[float] = (1.0,),
    *callbacks: pl.Callback,
    ckpt_path: Any = None,
    **settings: Any,
) -> tuple[Scripted, pl.Trainer]:
    """Six batches an epoch, for at most 20 epochs."""
    module = Scripted(losses)
    fitter = trainer(callback, *callbacks, **({"max_epochs": 20} | settings))
    fitter.fit(module, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return module, fitter


def values(validations: Any) -> list[float]:
    """As Python's numbers, of what was logged as a float32."""
    return [round(one.value, 6) for one in validations]
