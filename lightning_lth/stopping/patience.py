"""Stop when nothing has improved for some time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from lightning_lth.stopping.decision import Stop, StopReason, check_mode, watched
from lightning_lth.stopping.validations import Mode, Validation, Validations, is_better


@final
@dataclass(frozen=True)
class Patience:
    """Stop when the metric has not improved for ``patience`` validations, steps or epochs.

    Args:
        patience: How long to wait; at least 0. 0 stops at the first validation without improvement.
        unit: What is counted.
        min_delta: An improvement is larger than this, at least 0.
        is_relative: Whether ``min_delta`` is a share of the best value so far, instead of a
            difference.
        monitor: The metric; by default that of the callback.
        mode: Whether small (``"min"``) or large values are good; by default as for the callback,
            and ``"min"`` for a metric of its own.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> validations = Validations("loss", "min")
        >>> for step, value in enumerate([1.0, 0.5, 0.6, 0.7]):
        ...     validations.append(Validation(step, epoch=0, value=value))
        >>> Patience(3)(validations)  # waits for a third
        >>> Patience(2)(validations).message
        'loss has not improved for 2 validations; the best was 0.5 at step 1'
    """

    patience: int = 3
    unit: Literal["validation", "step", "epoch"] = "validation"
    min_delta: float = 0.0
    is_relative: bool = False
    monitor: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if isinstance(self.patience, bool) or not isinstance(self.patience, int):
            raise ValueError(f"`patience` must be an integer, got {self.patience!r}.")
        if self.patience < 0:
            raise ValueError(f"`patience` must be at least 0, got {self.patience}.")
        if self.unit not in ("validation", "step", "epoch"):
            raise ValueError(
                f"`unit` must be one of ['validation', 'step', 'epoch'], got {self.unit!r}."
            )
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueError(f"`min_delta` must be at least 0, got {self.min_delta!r}.")
        check_mode(self.mode)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        name, _, values = watched(validations, self.monitor, self.mode)
        best = self._last_improvement(validations, values)
        waited = self._waited(validations, best)
        if not values or waited == 0 or waited < self.patience:
            return None
        since = f"the best was {values[best]:.6g} at step {validations[best].step}"
        if best < 0:
            since = "it never has"
        units = self.unit if waited == 1 else f"{self.unit}s"
        return Stop(StopReason.PATIENCE, f"{name} has not improved for {waited} {units}; {since}")

    def waited(self, validations: Validations) -> int:
        """Validations, steps or epochs since the last improvement."""
        _, _, values = watched(validations, self.monitor, self.mode)
        return self._waited(validations, self._last_improvement(validations, values))

    def _last_improvement(self, validations: Validations, values: list[float]) -> int:
        """Index of the best value, as far as improvements count; -1 if there was none."""
        _, mode, _ = watched(validations, self.monitor, self.mode)
        best, index = math.inf if mode == "min" else -math.inf, -1
        for i, value in enumerate(values):
            share = abs(best) if self.is_relative and math.isfinite(best) else 1.0
            if is_better(value, best, mode, margin=self.min_delta * share):
                best, index = value, i
        return index

    def _waited(self, validations: Validations, best: int) -> int:
        if not validations:
            return 0
        if self.unit == "validation":
            return len(validations) - 1 - best
        # Before any improvement, the wait began at the first validation.
        start: Validation = validations[max(best, 0)]
        if self.unit == "step":
            return validations[-1].step - start.step
        return validations[-1].epoch - start.epoch
