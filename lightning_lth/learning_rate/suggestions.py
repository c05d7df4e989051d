"""Which value to take, read off the curve of a sweep."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np

from lightning_lth.learning_rate.curves import Curve
from lightning_lth.learning_rate.ramp_points import Points, fall_of, noise_of, points_of, why_unfit

Rule = Literal["valley", "slide", "steep", "minimum", "lowest"]

SLIDE_WIDTH, SLIDE_THRESHOLD = 15, 0.005  # points, loss per point: fastai's defaults
MINIMUM_DIVISOR = 10  # Gugger 2018
FALL_PART = 0.1  # of the whole fall; ours, see smith_range
RANGE_SMOOTHING = 0.8  # lags by 4 points; the usual 0.98 by up to 49, here by a factor of 2 to 5


@final
@dataclass(frozen=True)
class Suggestion:
    """A value to train with, or why there is none.

    Attributes:
        value: The suggestion; ``None`` if the curve does not support one.
        rule: How it was found.
        reason: Why there is none; empty otherwise.
        index: Point of the curve that decided; ``None`` without a value.
    """

    value: float | None
    rule: Rule
    reason: str = ""
    index: int | None = None

    def __str__(self) -> str:
        return f"none: {self.reason}" if self.value is None else f"{self.value:.3g}"


@final
@dataclass(frozen=True)
class SmithRange:
    """Ends of a cyclical schedule, or why there are none.

    Attributes:
        base: Where the loss starts to fall; ``None`` if the curve does not support a range.
        max: Where it has almost stopped to fall, or becomes ragged.
        reason: Why there is none; empty otherwise.
    """

    base: float | None
    max: float | None
    reason: str = ""

    def __str__(self) -> str:
        return f"none: {self.reason}" if self.base is None else f"{self.base:.3g} to {self.max:.3g}"


def suggest(curve: Curve, rule: Rule = "valley") -> Suggestion:
    """A value to train with.

    All rules but ``"lowest"`` are for a ramp of learning rates. They look at the smoothed loss
    without the first tenth of the points (too few for an average) and the last twentieth (past
    divergence), and at finite points only.

    * ``"valley"``: in the middle of the longest decreasing subsequence of the losses, which is
      taken to be contiguous up to its end.
    * ``"slide"``: a window of 15 points slides left from the end, until the loss per point is as
      steep at its right end as at its left (to 0.005); its left end one point earlier.
    * ``"steep"``: where the loss falls most over the logarithm of the value.
    * ``"minimum"``: the value with the lowest loss, divided by 10.
    * ``"lowest"``: the value with the lowest loss as measured; for sweeps that restart, whose
      points are independent of each other.

    Args:
        curve: From a sweep.
        rule: One of the above.

    Returns:
        The suggestion. Without 10 finite points, or if the loss did not fall by more than its
        noise, it has no value, but a reason.

    Raises:
        ValueError: If the rule is none of the above.

    Examples:
        >>> values = [10.0 ** (exponent / 10) for exponent in range(-40, 1)]
        >>> curve = Curve("lr", tuple(values), tuple((value - 0.3) ** 2 for value in values))
        >>> suggest(curve, "minimum").index, suggest(Curve("lr", (0.1,), (2.3,)), "minimum").reason
        (37, 'the curve has 1 finite point, fewer than 10')

    Note:
        As in fastai 2.8 (``valley`` by ESRI, ``slide`` by Chang, Novetta), except that fastai skips
        10 and 5 points of any curve, and without such a window ``slide`` gives an end of the curve,
        here a reason. ``valley`` lives on noise: without any, as with one batch again and again,
        even the flat start decreases, and the suggestion is low.
    """
    check_rule(rule)
    if rule == "lowest":
        return _lowest(curve)
    points = points_of(curve)
    reason = why_unfit(curve, points)
    if reason:
        return Suggestion(None, rule, reason)
    return RAMP_RULES[rule](points)


def check_rule(rule: str) -> None:
    """Refuse a rule that ``suggest`` does not know.

    Raises:
        ValueError: If it does not.
    """
    rules = get_args(Rule)
    if rule not in rules:
        raise ValueError(f"The rule of a suggestion must be one of {rules}, got {rule!r}.")


def suggest_all(curve: Curve) -> dict[Rule, Suggestion]:
    """What each rule suggests: of a ``"lr"`` curve all ramp rules, of others ``"lowest"``."""
    rules: tuple[Rule, ...] = tuple(RAMP_RULES) if curve.parameter == "lr" else ("lowest",)
    return {rule: suggest(curve, rule) for rule in rules}


def smith_range(curve: Curve) -> SmithRange:
    """Base and maximum of a cyclical learning rate.

    On the loss smoothed with 0.8 (more lags behind, and sets the maximum too high), skipping points
    as ``suggest`` does, the fall is from the highest loss before the minimum to the minimum.

    * Base: the last value at which not more than a tenth of the fall has happened.
    * Maximum: the first value at which nine tenths have happened (it slows down), or the lowest
      point before the loss rises by a tenth of the fall and more than its noise (it gets ragged),
      whichever is first.

    Args:
        curve: A ramp of learning rates.

    Returns:
        The two ends, or why there are none.

    Source:
        Smith 2017, arXiv:1506.01186: section 3.3: base where the accuracy starts to increase,
        maximum where it slows, becomes ragged or falls. The tenths are ours: the paper reads the
        values off the figure, of the accuracy in place of the training loss.
    """
    if curve.parameter != "lr":
        return SmithRange(None, None, f"a range is of learning rates, not of {curve.parameter}")
    reason = why_unfit(curve, points_of(curve))
    if reason:
        return SmithRange(None, None, reason)
    points = points_of(curve, RANGE_SMOOTHING)
    losses, part = points.losses, FALL_PART * fall_of(points.losses)
    if part == 0:
        return SmithRange(None, None, "the loss never fell")
    lowest = losses.index(min(losses))
    highest = max(losses[: lowest + 1])
    base = max(i for i in range(lowest) if losses[i] >= highest - part)
    slow = next(i for i in range(base, lowest + 1) if losses[i] <= losses[lowest] + part)
    top = _lowest_before_rise(losses[: slow + 1], base, max(part, noise_of(curve)))
    return SmithRange(points.values[base], points.values[top])


def _lowest_before_rise(losses: tuple[float, ...], start: int, rise: float) -> int:
    """The lowest point from ``start`` on, up to where the loss is over it by ``rise``."""
    lowest = start
    for i in range(start, len(losses)):
        if losses[i] < losses[lowest]:
            lowest = i
        elif losses[i] > losses[lowest] + rise:
            break
    return lowest


def _valley(points: Points) -> Suggestion:
    lengths = _falling_lengths(points.losses)
    longest = max(lengths)
    start = lengths.index(longest) - longest
    return _at(points, max(0, start + longest // 3 + longest // 6), "valley")


def _falling_lengths(losses: tuple[float, ...]) -> list[int]:
    """For each point, the length of the longest strictly decreasing subsequence that ends there."""
    lengths = []
    lasts: list[float] = []  # lasts[k]: minus the highest loss that ends a subsequence of k + 1
    for loss in losses:
        k = bisect.bisect_left(lasts, -loss)
        lasts[k : k + 1] = [-loss]
        lengths.append(k + 1)
    return lengths


def _slide(points: Points) -> Suggestion:
    num_points = len(points.losses)
    if num_points <= SLIDE_WIDTH:
        reason = f"{num_points} points remain without the ends, slide needs over {SLIDE_WIDTH}"
        return Suggestion(None, "slide", reason)
    slopes = np.gradient(points.losses)
    changes = np.abs(slopes[SLIDE_WIDTH:] - slopes[:-SLIDE_WIDTH])
    level = np.flatnonzero(changes <= SLIDE_THRESHOLD)
    if not level.size:
        return Suggestion(
            None, "slide", f"the slope changes everywhere within {SLIDE_WIDTH} points"
        )
    if level[-1] == len(changes) - 1:
        return Suggestion(
            None, "slide", "the loss is as steep at the end as before: it never turned"
        )
    return _at(points, int(level[-1]) + 1, "slide")


def _steep(points: Points) -> Suggestion:
    if points.values[0] <= 0:
        reason = f"steep needs positive values, the curve has {points.values[0]:g}"
        return Suggestion(None, "steep", reason)
    slopes = np.diff(points.losses) / np.diff(np.log(points.values))
    return _at(points, int(slopes.argmin()), "steep")


def _minimum(points: Points) -> Suggestion:
    lowest = _at(points, points.losses.index(min(points.losses)), "minimum")
    assert lowest.value is not None
    return dataclasses.replace(lowest, value=lowest.value / MINIMUM_DIVISOR)


def _lowest(curve: Curve) -> Suggestion:
    finite = [i for i, loss in enumerate(curve.losses) if math.isfinite(loss)]
    if not finite:
        return Suggestion(None, "lowest", "the curve has no finite point")
    if len(curve) > 1 and len(set(curve.losses)) == 1:
        return Suggestion(None, "lowest", "all values have the same loss")
    index = min(finite, key=lambda i: curve.losses[i])
    return Suggestion(curve.values[index], "lowest", index=index)


def _at(points: Points, position: int, rule: Rule) -> Suggestion:
    return Suggestion(points.values[position], rule, index=points.indices[position])


RAMP_RULES: dict[Rule, Callable[[Points], Suggestion]] = {
    "valley": _valley,
    "slide": _slide,
    "steep": _steep,
    "minimum": _minimum,
}
