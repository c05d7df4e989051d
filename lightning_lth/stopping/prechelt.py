"""The stopping criteria of Prechelt: they ask how much is lost, not only how long ago.

``E_va`` is the validation error, ``E_opt`` its smallest value so far, ``E_tr`` the mean training
loss between two validations, and a strip is ``k`` validations in a row. Strips end at every
``k``-th validation.

Source:
    Prechelt 1998, "Early stopping -- but when?", section 2.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lightning_lth.stopping.decision import Stop, StopReason, check_mode, watched
from lightning_lth.stopping.validations import Mode, Validations, is_better


@final
@dataclass(frozen=True)
class GeneralizationLoss:
    """Stop when the validation error is too far above its minimum (GL).

    ``GL = 100 (E_va / E_opt - 1)``, in percent; stops where ``GL > alpha``. Undefined, so goes on,
    where ``E_opt`` is not above 0.

    Args:
        alpha: At least 0. Prechelt: 1 to 5.
        monitor: The metric; by default that of the callback. Small values must be good.

    Raises:
        ValueError: If ``alpha`` is out of its range, or large values are good.

    Examples:
        >>> from lightning_lth.stopping import Validation
        >>> values = [Validation(0, 0, 1.0), Validation(1, 1, 0.5), Validation(2, 2, 0.53)]
        >>> GeneralizationLoss(5)(Validations("loss", "min", values)).message  # 0.53 / 0.5 = 1.06
        'loss = 0.53 is 6 % above its minimum, 0.5: GL > 5'
    """

    alpha: float
    monitor: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_not_negative("alpha", self.alpha)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        name, values = _errors(validations, self.monitor)
        loss = generalization_loss(values)
        if not loss > self.alpha:
            return None
        return Stop(
            StopReason.GENERALIZATION_LOSS,
            f"{name} = {values[-1]:.6g} is {loss:.3g} % above its minimum, {_minimum(values):.6g}: "
            f"GL > {self.alpha:g}",
        )


@final
@dataclass(frozen=True)
class ProgressQuotient:
    """Stop when the generalization loss is too large for the training progress (PQ).

    ``PQ = GL / P_k`` with ``P_k = 1000 (sum(E_tr) / (k min(E_tr)) - 1)`` over the last strip; stops
    at the end of a strip where ``PQ > alpha``. Goes on where ``P_k`` is 0 or undefined.

    Args:
        alpha: At least 0. Prechelt: 0.5 to 3.
        strip: Validations in a strip, ``k``, at least 2.
        monitor: The metric; by default that of the callback. Small values must be good.
        train_metric: A logged training loss. Default: the mean loss of the training steps.

    Raises:
        ValueError: If an argument is out of its range, or large values are good.

    Examples:
        >>> from lightning_lth.stopping import Validation
        >>> values = [Validation(1, 1, 0.5, train_loss=0.11), Validation(2, 2, 0.6, train_loss=0.1)]
        >>> stop = ProgressQuotient(0.3, strip=2)(Validations("loss", "min", values))
        >>> stop.message  # GL = 20, P = 1000 (0.21 / 0.2 - 1) = 50
        'GL / P = 20 / 50 = 0.4 > 0.3'
    """

    alpha: float
    strip: int = 5
    monitor: str | None = None
    train_metric: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_not_negative("alpha", self.alpha)
        _check_strip(self.strip, 2)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        _, values = _errors(validations, self.monitor)
        if not _is_strip_end(values, self.strip):
            return None
        loss = generalization_loss(values)
        progress = training_progress(_train_losses(validations, self.strip, self.train_metric))
        if not progress > 0 or not loss / progress > self.alpha:
            return None
        return Stop(
            StopReason.PROGRESS_QUOTIENT,
            f"GL / P = {loss:.3g} / {progress:.3g} = {loss / progress:.3g} > {self.alpha:g}",
        )


@final
@dataclass(frozen=True)
class SuccessiveRises:
    """Stop when the validation error rose in some successive strips (UP).

    Compares the ends of strips. Where large values are good, falls count.

    Args:
        rises: How many, ``s``, at least 1. Prechelt: 2 to 8.
        strip: Validations in a strip, ``k``, at least 1.
        monitor: The metric; by default that of the callback.
        mode: Whether small or large values are good; by default as for the callback, and ``"min"``
            for a metric of its own.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> from lightning_lth.stopping import Validation
        >>> values = [Validation(i, i, value) for i, value in enumerate([9, 3, 2, 4, 1, 5])]
        >>> SuccessiveRises(2, strip=2)(Validations("loss", "min", values)).message
        'loss got worse in 2 successive strips of 2: 3, 4, 5'
    """

    rises: int
    strip: int = 5
    monitor: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if isinstance(self.rises, bool) or not isinstance(self.rises, int) or self.rises < 1:
            raise ValueError(f"`rises` must be an integer of at least 1, got {self.rises!r}.")
        _check_strip(self.strip, 1)
        check_mode(self.mode)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        name, mode, values = watched(validations, self.monitor, self.mode)
        ends = values[self.strip - 1 :: self.strip][-self.rises - 1 :]
        if not _is_strip_end(values, self.strip) or len(ends) <= self.rises:
            return None
        if not all(is_better(a, b, mode) for a, b in itertools.pairwise(ends)):
            return None
        shown = ", ".join(f"{end:.6g}" for end in ends)
        return Stop(
            StopReason.SUCCESSIVE_RISES,
            f"{name} got worse in {self.rises} successive strips of {self.strip}: {shown}",
        )


@final
@dataclass(frozen=True)
class NoProgress:
    """Stop when training itself makes no more progress: ``P_k`` at the end of a strip is too small.

    Prechelt stops every training where it falls below 0.1, whatever the other criterion.

    Args:
        threshold: Of ``P_k``, see ``ProgressQuotient``; above 0.
        strip: Validations in a strip, ``k``, at least 2.
        train_metric: A logged training loss. Default: the mean loss of the training steps.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> from lightning_lth.stopping import Validation
        >>> values = [Validation(1, 1, 0.5, train_loss=0.1), Validation(2, 2, 0.4, train_loss=0.1)]
        >>> NoProgress(strip=2)(Validations("loss", "min", values)).message
        'the training loss makes no progress: P = 0 < 0.1'
    """

    threshold: float = 0.1  # Prechelt 1998, section 3
    strip: int = 5
    train_metric: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ValueError(f"`threshold` must be above 0, got {self.threshold!r}.")
        _check_strip(self.strip, 2)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        if not _is_strip_end(validations, self.strip):
            return None
        progress = training_progress(_train_losses(validations, self.strip, self.train_metric))
        if not progress < self.threshold:
            return None
        return Stop(
            StopReason.NO_PROGRESS,
            f"the training loss makes no progress: P = {progress:.3g} < {self.threshold:g}",
        )


def generalization_loss(errors: Sequence[float]) -> float:
    """How far the last error is above the minimum, in percent; NaN where that is not above 0.

    Examples:
        >>> generalization_loss([2.0, 1.0, 1.5])
        50.0
    """
    lowest = _minimum(errors)
    return 100 * (errors[-1] / lowest - 1) if lowest > 0 else math.nan


def training_progress(losses: Sequence[float]) -> float:
    """How far the mean loss of a strip is above its minimum, per mille; NaN if that is not above 0.

    Examples:
        >>> training_progress([3.0, 2.0, 1.0])
        1000.0
    """
    lowest = _minimum(losses)
    return 1000 * (sum(losses) / (len(losses) * lowest) - 1) if lowest > 0 else math.nan


def _minimum(values: Sequence[float]) -> float:
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def _errors(validations: Validations, monitor: str | None) -> tuple[str, list[float]]:
    name, mode, values = watched(validations, monitor, None)
    if mode == "max":
        raise ValueError(
            f"Prechelt's GL is defined for errors, but large values of {name!r} are good. Give a "
            f"loss as `monitor` of the criterion, or use `SuccessiveRises` or `Patience`."
        )
    return name, values


def _is_strip_end(values: Sequence[object], strip: int) -> bool:
    return len(values) > 0 and len(values) % strip == 0


def _train_losses(validations: Validations, strip: int, metric: str | None) -> list[float]:
    if metric is not None:
        return validations.values(metric)[-strip:]
    losses = [validation.train_loss for validation in validations[-strip:]]
    present = [loss for loss in losses if loss is not None]
    if len(present) < len(losses):
        raise RuntimeError(
            "The training progress needs a loss from the training steps before each validation, "
            "but some gave none. Return it from `training_step`, or log it and name it in "
            "`train_metric`."
        )
    return present


def _check_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be at least 0, got {value!r}.")


def _check_strip(strip: int, minimum: int) -> None:
    if isinstance(strip, bool) or not isinstance(strip, int) or strip < minimum:
        raise ValueError(f"`strip` must be an integer of at least {minimum}, got {strip!r}.")
