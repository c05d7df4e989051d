"""Which values to try, and trying them: in one ramp, or each from the same start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, final, get_args

from lightning_lth.learning_rate.curves import DEFAULT_SMOOTHING, Curve, DebiasedMean

Mode = Literal["exponential", "linear"]

DEFAULT_DIVERGE_FACTOR = 4.0  # Gugger 2018, as in fastai
MIN_AVERAGED = 10  # an average of fewer losses is at the mercy of single batches


def ladder(
    low: float, high: float, num_steps: int, mode: Mode = "exponential"
) -> tuple[float, ...]:
    """Values from ``low`` to ``high``, both included, at equal ratios or differences.

    Args:
        low: First value; positive for ``"exponential"``.
        high: Last value, above ``low``.
        num_steps: How many values, at least 2.
        mode: ``"exponential"`` for equal ratios, ``"linear"`` for equal differences.

    Raises:
        ValueError: If the ends, their order, the number or the mode are not as above.

    Examples:
        >>> [round(value, 9) for value in ladder(0.001, 1.0, 4)]
        [0.001, 0.01, 0.1, 1.0]
    """
    check_ladder(low, high, num_steps, mode)
    shares = [i / (num_steps - 1) for i in range(1, num_steps - 1)]
    if mode == "linear":
        inner = [low + share * (high - low) for share in shares]
    else:
        start, end = math.log(low), math.log(high)
        inner = [math.exp(start + share * (end - start)) for share in shares]
    return (float(low), *inner, float(high))


def check_ladder(
    low: float,
    high: float,
    num_steps: int,
    mode: str,
    *,
    names: tuple[str, str] = ("low", "high"),
) -> None:
    """Refuse what ``ladder`` cannot make.

    Args:
        low: As for ``ladder``.
        high: As for ``ladder``.
        num_steps: As for ``ladder``.
        mode: As for ``ladder``.
        names: What the caller's users know the ends as, for the messages.

    Raises:
        ValueError: As for ``ladder``.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"`mode` must be 'exponential' or 'linear', got {mode!r}.")
    for name, value in zip(names, (low, high), strict=True):
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
    if mode == "exponential" and low <= 0:
        raise ValueError(
            f"`{names[0]}` must be positive for mode='exponential', got {low!r}. "
            "Use mode='linear' to start from 0."
        )
    if low >= high:
        raise ValueError(f"`{names[0]}` must be below `{names[1]}`, got {low!r} and {high!r}.")
    if num_steps < 2:
        raise ValueError(f"`num_steps` must be at least 2, got {num_steps!r}. 100 is usual.")


def sweep(
    values: Sequence[float],
    step: Callable[[float], float],
    *,
    parameter: str = "lr",
    smoothing: float = DEFAULT_SMOOTHING,
    diverge_factor: float | None = DEFAULT_DIVERGE_FACTOR,
) -> Curve:
    """Train one step with each value in turn, without a restart, until the loss diverges.

    The loss of a value is the one before its step, so it shows what the values before it did.
    The sweep ends after a loss that is NaN or infinite, which is the last point then, or after
    one that lifts the smoothed loss over ``diverge_factor`` times its lowest, as
    ``DivergenceDetector`` tells.

    Args:
        values: What to try, increasing.
        step: Trains one optimizer step with a value and returns the mean loss of its batches.
        parameter: What the values are of.
        smoothing: Weight of the past in the average that decides, in [0, 1).
        diverge_factor: Over 1; ``None`` goes on to the last value or a loss that is not finite.

    Returns:
        The losses, not smoothed, of the values that were tried.

    Raises:
        ValueError: If there are no values, or ``smoothing`` or ``diverge_factor`` is out of range.

    Examples:
        >>> sweep((0.1, 0.2, 0.4), lambda value: value if value < 0.3 else float("inf")).losses
        (0.1, 0.2, inf)

    Source:
        Smith 2017, arXiv:1506.01186: section 3.3; Gugger 2018 (smoothing, stop at 4 times).
    """
    if not values:
        raise ValueError("`values` must hold at least one value to try, got none.")
    divergence = DivergenceDetector(diverge_factor, smoothing)
    losses: list[float] = []
    for value in values:
        losses.append(float(step(value)))
        if divergence.reached_by(losses[-1]):
            break
    return Curve(parameter, tuple(values[: len(losses)]), tuple(losses))


@final
class DivergenceDetector:
    """Tells from one loss after the other when training has diverged.

    It has with a loss that is NaN or infinite, or once the smoothed loss is above ``factor`` times
    its lowest. Averages of fewer than 10 losses neither count as lowest nor end anything: after one
    easy batch among the first, all others would look diverged.

    Args:
        factor: Over 1; ``None`` minds only losses that are not finite.
        smoothing: Weight of the past in the average, in [0, 1).

    Raises:
        ValueError: If ``factor`` or ``smoothing`` is out of range.

    Note:
        Where the lowest is not positive, its multiples mean nothing. Then the loss may rise by
        ``factor - 1`` times the lowest's size, or the fall to it if that is larger.

    Examples:
        >>> divergence = DivergenceDetector(factor=4.0, smoothing=0.0)
        >>> [divergence.reached_by(loss) for loss in [1.0] * 10 + [4.0, 4.1]][-2:]
        [False, True]
    """

    def __init__(
        self,
        factor: float | None = DEFAULT_DIVERGE_FACTOR,
        smoothing: float = DEFAULT_SMOOTHING,
    ) -> None:
        if factor is not None and not factor > 1:
            raise ValueError(
                f"`diverge_factor` must be over 1, got {factor!r}. None turns the stop off."
            )
        self._factor = factor
        self._mean = DebiasedMean(smoothing)
        self._first: float | None = None
        self._lowest = math.inf

    def reached_by(self, loss: float) -> bool:
        """Take in the next loss, and tell whether training has diverged with it."""
        if not math.isfinite(loss):
            return True
        average = self._mean.update(loss)
        if self._factor is None or self._mean.num_values < MIN_AVERAGED:
            return False
        if self._first is None:
            self._first = average
        self._lowest = min(self._lowest, average)
        size = self._lowest
        if size <= 0:
            size = max(-size, self._first - self._lowest)
        return average - self._lowest > (self._factor - 1) * size


def restarting_sweep(
    values: Sequence[float],
    steps_per_value: int,
    step: Callable[[float], float],
    restore: Callable[[], None],
    *,
    parameter: str = "momentum",
) -> Curve:
    """Train some steps with each value, every time from the same state.

    What a ramp cannot measure: momentum acts over ``1 / (1 - momentum)`` steps and weight decay
    over ``1 / (lr * weight_decay)``, so a ramp mixes what the value does with how long training has
    lasted. The loss of a value is the mean over the last fifth of its steps, at least one. A value
    whose loss becomes NaN or infinite gets that loss, and the next one is tried.

    Args:
        values: What to try, increasing.
        steps_per_value: Optimizer steps with each value; more than those over which it acts.
        step: Trains one optimizer step with a value and returns the mean loss of its batches.
        restore: Puts back the state to start from, the position in the data included. Called
            before every value, and not after the last.
        parameter: What the values are of.

    Raises:
        ValueError: If there are no values, or no steps.

    Examples:
        >>> total = []
        >>> def step(value):
        ...     total.append(value)
        ...     return sum(total)
        >>> restarting_sweep((1.0, 2.0), 5, step, total.clear).losses
        (5.0, 10.0)

    Source:
        Smith 2018, arXiv:1803.09820: sections 4.3 and 4.4 compare values in runs of their own.
    """
    if not values:
        raise ValueError("`values` must hold at least one value to try, got none.")
    if steps_per_value < 1:
        raise ValueError(f"`steps_per_value` must be at least 1, got {steps_per_value!r}.")
    losses = []
    for value in values:
        restore()
        losses.append(_late_loss(value, steps_per_value, step))
    return Curve(parameter, tuple(values), tuple(losses))


def _late_loss(value: float, num_steps: int, step: Callable[[float], float]) -> float:
    losses: list[float] = []
    for _ in range(num_steps):
        losses.append(float(step(value)))
        if not math.isfinite(losses[-1]):
            return losses[-1]
    late = losses[-max(1, num_steps // 5) :]
    return math.fsum(late) / len(late)
