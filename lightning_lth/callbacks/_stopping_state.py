"""What EarlyStopping knows in the middle of a fit, and how it goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch

from lightning_lth.stopping import Stop, StopReason, Validation, Validations
from lightning_lth.stopping.best_weights import BestWeights

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

    from lightning_lth.stopping.validations import Mode


Validated = tuple[int, float | None]  # step; value, None where it was not logged


@final
class TrainLoss:
    """The mean training loss since the last validation; waits for the device only when read."""

    def __init__(self, total: float = 0.0, num_batches: int = 0) -> None:
        self._total: Tensor | float = total
        self._num_batches = num_batches

    def add(self, trainer: Trainer, outputs: Any) -> None:
        """Add what a training step returned, if there is a loss in it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        scale = trainer.accumulate_grad_batches  # by which Lightning has divided; 1 if manual
        wide = torch.float32 if loss.is_mps else torch.float64  # MPS has no float64
        # The mean: manual optimization may return a loss for each sample.
        self._total = self._total + loss.detach().to(wide).mean() * scale
        self._num_batches += 1

    def mean(self) -> float | None:
        """The mean; None where there was no loss."""
        return float(self._total) / self._num_batches if self._num_batches else None

    def state_dict(self) -> dict[str, Any]:
        """The sum and the number of batches."""
        return {"total": float(self._total), "num_batches": self._num_batches}


@dataclass
class StoppingState:
    """All that training changes; what a checkpoint keeps.

    Attributes:
        rounds: Validations of each round, the present one last.
        decision: Why the present round was stopped.
        train_loss: Since the last validation.
        best_weights: If they are kept in memory.
        validated: A validation that ended since the metric was looked at.
        has_ended: Whether the present training has come to its end; not kept.
    """

    rounds: list[Validations]
    decision: Stop | None = None
    train_loss: TrainLoss = field(default_factory=TrainLoss)
    best_weights: BestWeights | None = None
    validated: Validated | None = None
    has_ended: bool = False

    def begin_training(self) -> None:
        """Forget how an earlier training ended."""
        self.decision, self.has_ended = None, False

    def add(self, validation: Validation) -> None:
        """Record a validation; the next mean of the training loss starts after it."""
        self.rounds[-1].append(validation)
        self.train_loss = TrainLoss()
        self.validated = None

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors."""
        stop, weights = self.decision, self.best_weights
        return {
            "rounds": [validations.state_dict() for validations in self.rounds],
            "decision": None if stop is None else [stop.reason.value, stop.message],
            "train_loss": self.train_loss.state_dict(),
            "best_weights": None if weights is None else weights.state_dict(),
            "validated": self.validated,
        }

    @classmethod
    def from_state_dict(cls, monitor: str, mode: Mode, state: Mapping[str, Any]) -> StoppingState:
        """The state that ``state_dict`` described."""
        decision, weights = state["decision"], state["best_weights"]
        return cls(
            [Validations.from_state_dict(monitor, mode, one) for one in state["rounds"]],
            None if decision is None else Stop(StopReason(decision[0]), decision[1]),
            TrainLoss(**state["train_loss"]),
            None if weights is None else BestWeights(**weights),
            state["validated"],
        )
