"""Suggestions on curves whose answers can be worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lth.learning_rate.curves import Curve
from lightning_lth.learning_rate.suggestions import (
    Rule,
    SmithRange,
    Suggestion,
    smith_range,
    suggest,
    suggest_all,
)
from lightning_lth.learning_rate.sweep import ladder

RAMP_RULES: tuple[Rule, ...] = ("valley", "slide", "steep", "minimum")


def powers(num: int) -> tuple[float, ...]:
    return tuple(2.0**i for i in range(num))


def unsmoothed(smoothed: Sequence[float], beta: float = 0.98) -> tuple[float, ...]:
    """The losses of which these are the debiased averages."""
    averages = [0.0] + [value * (1 - beta**n) for n, value in enumerate(smoothed, start=1)]
    pairs = itertools.pairwise(averages)
    return tuple((new - beta * old) / (1 - beta) for old, new in pairs)


def noisy_parabola(seed: int = 0, noise: float = 0.1) -> Curve:
    """Lowest at 0.01."""
    rng = random.Random(seed)
    values = ladder(1e-6, 1, 100)
    return Curve(
        "lr", values, tuple((math.log10(v) + 2) ** 2 + rng.gauss(0, noise) for v in values)
    )


def test_the_helper_inverts_smoothing() -> None:
    wanted = [3.0, 1.0, 4.0, 1.5]
    assert Curve("lr", powers(4), unsmoothed(wanted)).smoothed() == pytest.approx(wanted)


def test_valley() -> None:
    # Of 20 points 2 and 1 are skipped: indices 2 to 18 remain. Index 6 to 15 is the longest fall,
    # 10 points. 10 points before its end, plus 10 // 3 and 10 // 6: index 5 + 3 + 1.
    rise, fall, end = [0.9, 0.95, 1.0, 1.1, 1.2, 1.3, 1.4], [1.35 - i / 10 for i in range(9)], [2.0]
    curve = Curve("lr", powers(20), unsmoothed([*rise, *fall, *end * 4]))
    assert suggest(curve, "valley") == Suggestion(2.0**9, "valley", index=9)


def test_valley_goes_through_bumps() -> None:
    # As above with a bump at index 10: the longest decreasing subsequence leaves it out, 9 points.
    rise, fall, end = [0.9, 0.95, 1.0, 1.1, 1.2, 1.3, 1.4], [1.35 - i / 10 for i in range(9)], [2.0]
    fall[3] = 1.5
    curve = Curve("lr", powers(20), unsmoothed([*rise, *fall, *end * 4]))
    assert suggest(curve, "valley").index == 15 - 9 + 9 // 3 + 9 // 6


def test_valley_does_not_count_equals() -> None:
    # Indices 2 to 18 remain. Averages of zeros are 0; one of them and 9 to 18 fall, 11 points.
    losses = [0.0] * 9 + [-float(i) for i in range(1, 12)]
    found = suggest(Curve("lr", powers(20), tuple(losses)), "valley")
    assert found.index == 18 - 11 + 11 // 3 + 11 // 6


@given(st.lists(st.integers(0, 30), min_size=10, max_size=60))
def test_valley_is_of_the_longest_decreasing_subsequence(losses: list[int]) -> None:
    # Against another algorithm, which takes quadratic time.
    curve = Curve("lr", powers(len(losses)), tuple(float(loss) for loss in losses))
    found = suggest(curve, "valley")
    if found.value is None:
        return
    start, stop = len(losses) // 10, len(losses) - len(losses) // 20
    kept = curve.smoothed()[start:stop]
    lengths: list[int] = []
    for i, loss in enumerate(kept):
        lengths.append(1 + max((lengths[j] for j in range(i) if kept[j] > loss), default=0))
    longest = max(lengths)
    position = lengths.index(longest) - longest + longest // 3 + longest // 6
    assert found.index == start + max(0, position)


def test_slide() -> None:
    # Of 40 points 4 and 2 are skipped: positions 0 to 33 remain. The loss falls by 0.1 up to
    # position 24 and rises by 0.1 from there: slopes -0.1, 0 at position 24, 0.1. The window's
    # ends first agree with the right one at 23, the left one at 8. One before: position 9.
    positions = range(-4, 36)
    curve = Curve("lr", powers(40), unsmoothed([5 + 0.1 * abs(p - 24) for p in positions]))
    assert suggest(curve, "slide") == Suggestion(2.0**13, "slide", index=13)


@pytest.mark.parametrize(
    ("smoothed", "reason"),
    [
        ([5 - 0.1 * i for i in range(40)], "as steep at the end as before: it never turned"),
        ([0.01 * (i - 30) ** 2 for i in range(40)], "slope changes everywhere within 15 points"),
        ([5 - 0.1 * i for i in range(16)], "15 points remain without the ends, slide needs over"),
    ],
)
def test_why_slide_gives_nothing(smoothed: list[float], reason: str) -> None:
    found = suggest(Curve("lr", powers(len(smoothed)), unsmoothed(smoothed)), "slide")
    assert found.value is None
    assert found.index is None
    assert reason in found.reason


def test_steep() -> None:
    # Falls by 1, by 3 from index 7 to 8, and by 1 again.
    smoothed = [20.0 - i for i in range(8)] + [10.0 - i for i in range(7)]
    curve = Curve("lr", powers(15), unsmoothed(smoothed))
    assert suggest(curve, "steep") == Suggestion(2.0**7, "steep", index=7)


def test_steep_is_over_the_logarithm() -> None:
    # The loss falls by 1 / value: d loss / d value is steepest at the first value, and
    # d loss / d log value at the last one. Values 1 to 20; 3 to 19 remain; slope from 18 to 19.
    values = tuple(range(1, 21))
    smoothed = [20 - value for value in values]
    assert suggest(Curve("lr", values, unsmoothed(smoothed)), "steep").value == 18
    falls = Curve("lr", values, unsmoothed([1 / value for value in values]))
    assert suggest(falls, "steep").value == 3  # d / d log value is -1 / value


def test_steep_needs_positive_values() -> None:
    values = tuple(i - 5.0 for i in range(20))
    found = suggest(Curve("lr", values, tuple(20.0 - i for i in range(20))), "steep")
    assert (found.value, found.reason) == (None, "steep needs positive values, the curve has -3")


def test_minimum() -> None:
    curve = Curve("lr", powers(20), unsmoothed([9 + abs(i - 12) for i in range(20)]))
    assert suggest(curve, "minimum") == Suggestion(2.0**12 / 10, "minimum", index=12)


def test_lowest_is_of_the_losses_as_measured() -> None:
    curve = Curve("momentum", (0.5, 0.8, 0.9, 0.99), (3.0, math.nan, 1.0, 2.0))
    assert suggest(curve, "lowest") == Suggestion(0.9, "lowest", index=2)
    nothing = suggest(Curve("momentum", (0.5,), (math.inf,)), "lowest")
    assert nothing == Suggestion(None, "lowest", "the curve has no finite point")


@pytest.mark.parametrize("rule", RAMP_RULES)
@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([2.0] * 9, "the curve has 9 finite points, fewer than 10"),
        ([2.0] * 50, "the loss never fell"),
        ([2.0 + i for i in range(50)], "the loss never fell"),
        ([math.nan] * 50, "the curve has 0 finite points, fewer than 10"),
    ],
)
def test_no_suggestion_without_support(rule: Rule, losses: list[float], reason: str) -> None:
    curve = Curve("lr", powers(len(losses)), tuple(losses))
    assert suggest(curve, rule) == Suggestion(None, rule, reason)
    assert smith_range(curve) == SmithRange(None, None, reason)


def test_rules_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"one of \('valley', .*'lowest'\), got 'steepest'"):
        suggest(noisy_parabola(), "steepest")  # type: ignore[arg-type]


def test_all_rules() -> None:
    curve = noisy_parabola()
    assert suggest_all(curve) == {rule: suggest(curve, rule) for rule in RAMP_RULES}
    other = Curve("weight_decay", (0.1, 0.2), (2.0, 1.0))
    assert suggest_all(other) == {"lowest": Suggestion(0.2, "lowest", index=1)}


@pytest.mark.parametrize("seed", range(10))
def test_noisy_parabola(seed: int) -> None:
    curve = noisy_parabola(seed)
    for rule in ("valley", "steep"):
        value = suggest(curve, rule).value  # type: ignore[arg-type]
        assert value is not None
        assert 1e-6 < value < 0.01  # on the way down
    span = smith_range(curve)
    assert span.base is not None
    assert span.max is not None
    assert 1e-6 <= span.base < 1e-4 < span.max < 0.02  # falls from the start, lowest at 0.01


@pytest.mark.parametrize("rule", ["valley", "steep", "minimum"])
@given(seed=st.integers(0, 100), power=st.integers(-20, 20), shift=st.floats(-5, 5))
def test_the_unit_of_the_loss_does_not_matter(
    rule: Rule, seed: int, power: int, shift: float
) -> None:
    curve = noisy_parabola(seed)
    other = Curve("lr", curve.values, tuple(2.0**power * (x + shift) for x in curve.losses))
    assert suggest(other, rule) == suggest(curve, rule)
    assert smith_range(other) == smith_range(curve)


@pytest.mark.parametrize("rule", RAMP_RULES)
@given(seed=st.integers(0, 100), factor=st.floats(1e-6, 1e6))
def test_the_unit_of_the_values_does_not_matter(rule: Rule, seed: int, factor: float) -> None:
    curve = noisy_parabola(seed)
    other = Curve("lr", tuple(factor * value for value in curve.values), curve.losses)
    here, there = suggest(curve, rule), suggest(other, rule)
    assert (here.value is None) == (there.value is None)
    if here.value is not None and there.value is not None:
        assert there.index == here.index
        assert there.value == pytest.approx(factor * here.value)


def test_points_that_are_not_finite_are_as_if_not_there() -> None:
    curve = noisy_parabola()
    values, losses = list(curve.values), list(curve.losses)
    for i in (30, 60, len(values)):
        values.insert(i, 1.01 * values[i - 1])
        losses.insert(i, math.nan if i < 60 else math.inf)
    with_gaps = Curve("lr", tuple(values), tuple(losses))
    for rule in RAMP_RULES:
        found = suggest(with_gaps, rule)
        assert found.value == suggest(curve, rule).value
        if found.value is not None and found.index is not None:
            assert math.isfinite(losses[found.index])


def test_smith_range() -> None:
    # Of 20 points 2 and 1 are skipped. The loss falls from 10 to 0 by 1 for each point after
    # index 4, to index 14. A tenth has happened at index 5; nine tenths at index 13.
    smoothed = [10.0] * 5 + [9.0 - i for i in range(10)] + [5.0] * 5
    curve = Curve("lr", powers(20), unsmoothed(np.add(smoothed, 1e-9 * np.arange(20)), beta=0.8))
    assert smith_range(curve).max == 2.0**13
    assert smith_range(curve).base in (2.0**4, 2.0**5)  # 9 is a tenth to within rounding


def test_smith_range_ends_where_it_gets_ragged() -> None:
    # The fall is 10, a tenth of it 1: from 5 at index 9 the loss rises to 6.5 before it falls on.
    smoothed = [10.0] * 5 + [9.5, 8.5, 7.0, 6.0, 5.0, 5.5, 6.5, 4.0, 2.0, 0.0] + [5.0] * 5
    curve = Curve("lr", powers(20), unsmoothed(smoothed, beta=0.8))
    assert smith_range(curve) == SmithRange(2.0**5, 2.0**9)


def test_smith_range_does_not_mind_small_bumps() -> None:
    smoothed = [10.0] * 5 + [9.5, 8.5, 7.0, 6.0, 5.0, 5.5, 5.8, 4.0, 0.5, 0.0] + [5.0] * 5
    curve = Curve("lr", powers(20), unsmoothed(smoothed, beta=0.8))
    assert smith_range(curve) == SmithRange(2.0**5, 2.0**13)


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=60))
def test_whatever_the_curve_there_is_a_range_or_a_reason(losses: list[float]) -> None:
    curve = Curve("lr", powers(len(losses)), tuple(losses))
    span = smith_range(curve)
    assert (span.base is None) == (span.max is None) == bool(span.reason)
    if span.base is not None and span.max is not None:
        assert span.base < span.max
    for one in suggest_all(curve).values():
        assert (one.value is None) == (one.index is None) == bool(one.reason)


def test_no_range_without_a_fall_of_the_lightly_smoothed_loss() -> None:
    # One low loss at the first point that counts: the 0.98 average falls after it, as it forgets
    # the high losses before; the 0.8 average is lowest there.
    curve = Curve("lr", powers(20), (30.0, 30.0, -20.0, *[10.0 + i / 20 for i in range(17)]))
    assert suggest(curve, "minimum").value is not None
    assert smith_range(curve) == SmithRange(None, None, "the loss never fell")


def test_a_range_is_of_learning_rates() -> None:
    assert "not of momentum" in smith_range(Curve("momentum", (0.5, 0.9), (1.0, 0.5))).reason


def test_what_is_printed() -> None:
    assert str(Suggestion(0.0123456, "valley")) == "0.0123"
    assert str(Suggestion(None, "valley", "the loss never fell")) == "none: the loss never fell"
    assert str(SmithRange(0.001, 0.006)) == "0.001 to 0.006"
    assert str(SmithRange(None, None, "the loss never fell")) == "none: the loss never fell"
