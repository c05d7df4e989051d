"""Whether to stop, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, final

from lightning_lth.stopping.validations import Mode, Validations


@final
class StopReason(Enum):
    """Why a criterion says to stop."""

    TARGET = "target"
    DIVERGENCE = "divergence"
    PATIENCE = "patience"
    NOT_FINITE = "not_finite"
    GENERALIZATION_LOSS = "generalization_loss"
    PROGRESS_QUOTIENT = "progress_quotient"
    SUCCESSIVE_RISES = "successive_rises"
    NO_PROGRESS = "no_progress"


@final
@dataclass(frozen=True)
class Stop:
    """The decision to stop.

    Attributes:
        reason: By which rule.
        message: The same in words, with the numbers.
    """

    reason: StopReason
    message: str


class Criterion(Protocol):
    """Decides from all validations so far; looks at nothing else, and remembers nothing."""

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on, as always where there are no validations."""
        ...


def check_mode(mode: str | None) -> None:
    """Refuse anything but ``"min"``, ``"max"`` and None."""
    if mode not in ("min", "max", None):
        raise ValueError(f"`mode` must be one of ['min', 'max'], got {mode!r}.")


def watched(
    validations: Validations, monitor: str | None, mode: Mode | None
) -> tuple[str, Mode, list[float]]:
    """Name, mode and values of the metric that a criterion looks at: its own, or the monitored."""
    if monitor is None:
        return validations.monitor, mode or validations.mode, validations.values()
    own_mode = validations.mode if monitor == validations.monitor else "min"
    return monitor, mode or own_mode, validations.values(monitor)
