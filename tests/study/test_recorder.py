"""What is recorded of a training whose validations are as the test says."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_lth import Masks
from lightning_lth.stopping.best_weights import BestWeights
from lightning_lth.study import Measures
from lightning_lth.study.recorder import Recorder

NAN = math.nan


class Scripted(LightningModule):
    """Its weight is the number of steps; each validation logs the next value."""

    def __init__(self, values: list[float], *, stop_after: int = 99) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.values = values
        self.stop_after = stop_after
        self.count = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", self.values[self.count])
            self.count += 1
            self.trainer.should_stop = self.count == self.stop_after

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def _recorded(module: Scripted, mode: Literal["min", "max"], **budget: Any) -> Recorder:
    def weight(trainer: Trainer, weights: BestWeights) -> dict[str, float]:
        return {"test_accuracy": float(weights.tensors["weight"])}

    recorder = Recorder(
        key={"arm": "a", "seed": 7, "draw": 0},
        measures=Measures(monitor="score", mode=mode),
        round=lambda: 3,
        masks=lambda: Masks({"weight": torch.ones(1)}),
        accuracies=weight,
        progress=lambda round, fraction: notes.append((round, fraction)),
        at_round_end=lambda trainer, round: None,
    )
    notes: list[tuple[int, float]] = []
    trainer = Trainer(
        accelerator="cpu",
        **{"max_epochs": -1, "val_check_interval": 2, "num_sanity_val_steps": 1, **budget},
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    loader = DataLoader(torch.zeros(4), batch_size=1)
    trainer.fit(module, loader, DataLoader(torch.zeros(1)))
    steps = trainer.max_steps
    assert notes == [(3, row["step"] / steps if steps > 0 else 0) for row in recorder.curves]
    return recorder


# Validations after every second step: with the weights 2, 4, 6 and so on.
@pytest.mark.parametrize(
    ("values", "mode", "step", "value"),
    [
        ([3.0, 1.0, NAN, 1.0, 2.0], "min", 4, 1.0),  # the first of equals
        ([3.0, 1.0, NAN, 5.0, 5.0], "max", 8, 5.0),
        ([NAN, -math.inf, 0.0, NAN, 0.0], "min", 4, -math.inf),
        ([NAN] * 5, "min", NAN, NAN),
    ],
)
def test_the_early_stop_is_at_the_best_validation(
    values: list[float], mode: Literal["min", "max"], step: float, value: float
) -> None:
    recorder = _recorded(Scripted(values), mode, max_steps=11)
    assert [row["step"] for row in recorder.curves] == [2, 4, 6, 8, 10]
    assert [row["score"] for row in recorder.curves] == pytest.approx(values, nan_ok=True)
    (row,) = recorder.rounds
    early = [row[f"early_stop_{name}"] for name in ("step", "value", "test_accuracy")]
    assert early == pytest.approx([step, value, step], nan_ok=True)
    assert (row["steps"], row["end_test_accuracy"], row["stop_reason"]) == (11, 11, "max_steps")
    assert math.isnan(row["end_train_accuracy"])


@pytest.mark.parametrize(
    ("budget", "stop_after", "reason", "steps"),
    [
        ({"max_epochs": 2}, 99, "max_epochs", 8),
        ({"max_epochs": 2}, 3, "should_stop", 6),
        ({"max_epochs": 2, "val_check_interval": 1.0}, 99, "max_epochs", 8),
    ],
)
def test_why_a_training_ended(
    budget: dict[str, Any], stop_after: int, reason: str, steps: int
) -> None:
    recorder = _recorded(Scripted([4.0, 3.0, 2.0, 1.0], stop_after=stop_after), "min", **budget)
    (row,) = recorder.rounds
    assert (row["stop_reason"], row["steps"], row["early_stop_step"]) == (reason, steps, steps)


def test_the_best_of_a_training_before_is_forgotten() -> None:
    recorder = _recorded(module := Scripted([1.0, 2.0, 8.0, 9.0]), "min", max_epochs=1)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        val_check_interval=2,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(torch.zeros(4)), DataLoader(torch.zeros(1)))
    assert [row["early_stop_value"] for row in recorder.rounds] == [1.0, 8.0]
