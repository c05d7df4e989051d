"""Stop at values: a target that is reached, a divergence, a value that is not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_lth.stopping.decision import Stop, StopReason, check_mode, watched
from lightning_lth.stopping.validations import Mode, Validations, is_better


@final
@dataclass(frozen=True)
class Target:
    """Stop as soon as the metric is better than a threshold.

    Args:
        threshold: Itself neither better nor worse.
        monitor: The metric; by default that of the callback.
        mode: Whether small or large values are good; by default as for the callback. Needed for a
            metric of its own.

    Raises:
        ValueError: If ``mode`` is another, or lacks where it is needed.

    Examples:
        >>> from lightning_lth.stopping import Validation
        >>> validations = Validations("accuracy", "max", [Validation(100, 1, value=0.991)])
        >>> Target(0.99)(validations).message
        'accuracy = 0.991 has reached its target: > 0.99'
    """

    threshold: float
    monitor: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_mode(self.mode)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        name, mode, values = _watched(validations, self.monitor, self.mode)
        if not values or not is_better(values[-1], self.threshold, mode):
            return None
        sign = "<" if mode == "min" else ">"
        message = f"{name} = {values[-1]:.6g} has reached its target: {sign} {self.threshold:.6g}"
        return Stop(StopReason.TARGET, message)


@final
@dataclass(frozen=True)
class Divergence:
    """Stop as soon as the metric is worse than a threshold.

    Args:
        threshold: Itself neither better nor worse.
        monitor: The metric; by default that of the callback.
        mode: Whether small or large values are good; by default as for the callback. Needed for a
            metric of its own.

    Raises:
        ValueError: If ``mode`` is another, or lacks where it is needed.

    Examples:
        >>> from lightning_lth.stopping import Validation
        >>> validations = Validations("loss", "min", [Validation(100, 1, value=16.0)])
        >>> Divergence(15.9)(validations).message
        'loss = 16 diverges: > 15.9'
    """

    threshold: float
    monitor: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_mode(self.mode)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        name, mode, values = _watched(validations, self.monitor, self.mode)
        if not values or not is_better(-values[-1], -self.threshold, mode):
            return None
        sign = ">" if mode == "min" else "<"
        message = f"{name} = {values[-1]:.6g} diverges: {sign} {self.threshold:.6g}"
        return Stop(StopReason.DIVERGENCE, message)


@final
@dataclass(frozen=True)
class NotFinite:
    """Stop as soon as the metric is NaN or infinite.

    Args:
        monitor: The metric; by default that of the callback.

    Examples:
        >>> from lightning_lth.stopping import Validation
        >>> NotFinite()(Validations("loss", "min", [Validation(100, 1, value=math.nan)])).message
        'loss = nan is not finite'
    """

    monitor: str | None = None

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        name, _, values = watched(validations, self.monitor, None)
        if not values or math.isfinite(values[-1]):
            return None
        return Stop(StopReason.NOT_FINITE, f"{name} = {values[-1]} is not finite")


def _watched(
    validations: Validations, monitor: str | None, mode: Mode | None
) -> tuple[str, Mode, list[float]]:
    """As ``watched``, but no guess: with the wrong mode, a threshold stops at once or never."""
    if mode is None and monitor not in (None, validations.monitor):
        raise ValueError(
            f"`mode` must be given with `monitor={monitor!r}`, as the callback monitors "
            f"{validations.monitor!r}: 'min' if small values are good, 'max' if large ones are."
        )
    return watched(validations, monitor, mode)
