"""What of a curve is read, and why a curve is not."""

from __future__ import annotations

import math
import random

import pytest

from lightning_lth.learning_rate.curves import Curve
from lightning_lth.learning_rate.ramp_points import fall_of, points_of, why_unfit


def curve_of(losses: list[float]) -> Curve:
    return Curve("lr", tuple(range(1, len(losses) + 1)), tuple(losses))


@pytest.mark.parametrize(
    ("num_points", "first", "last"), [(100, 10, 94), (40, 4, 37), (10, 1, 9), (3, 0, 2)]
)
def test_a_tenth_and_a_twentieth_are_skipped(num_points: int, first: int, last: int) -> None:
    points = points_of(curve_of([1.0] * num_points))
    assert points.indices == tuple(range(first, last + 1))
    assert points.values == tuple(range(first + 1, last + 2))


def test_points_that_are_not_finite_are_left_out() -> None:
    losses = [1.0] * 20 + [math.nan, math.inf]
    losses[5] = math.nan
    points = points_of(curve_of(losses))
    # 19 finite points: without 1 at the start, and none at the end
    assert points.indices == (*range(1, 5), *range(6, 20))


@pytest.mark.parametrize(
    ("losses", "fall"), [((3.0, 5.0, 1.0, 9.0), 4.0), ((1.0, 2.0), 0.0), ((2.0,), 0.0)]
)
def test_the_fall_is_down_to_the_lowest(losses: tuple[float, ...], fall: float) -> None:
    assert fall_of(losses) == fall


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([math.nan], "the curve has 0 finite points, fewer than 10"),
        ([2.0, math.nan], "the curve has 1 finite point, fewer than 10"),
        ([2.0 - i / 10 for i in range(9)], "the curve has 9 finite points, fewer than 10"),
        ([2.0 - i / 10 for i in range(10)], ""),
        ([0.1] * 100, "the loss never fell"),  # of which the averages differ by rounding
        ([2.0 + i / 10 for i in range(20)], "the loss never fell"),
        ([0.0] * 20, "the loss never fell"),
    ],
)
def test_why_a_curve_is_not_read(losses: list[float], reason: str) -> None:
    curve = curve_of(losses)
    assert why_unfit(curve, points_of(curve)) == reason


def test_noise_is_no_fall() -> None:
    # Neighbours differ by 1, a standard deviation of 1 / (0.6745 * sqrt(2)) = 1.05; the averages
    # begin with that of six 3 and five 2, and end near 2.5.
    curve = curve_of([3.0, 2.0] * 50)
    assert "too little for its noise of 1" in why_unfit(curve, points_of(curve))


def test_pure_noise_is_hardly_ever_read() -> None:
    rng = random.Random(0)
    curves = [curve_of([rng.gauss(2, 0.1) for _ in range(100)]) for _ in range(200)]
    assert sum(why_unfit(curve, points_of(curve)) == "" for curve in curves) <= 20  # 10 %


def test_a_fall_four_times_the_noise_is_read() -> None:
    rng = random.Random(0)
    for _ in range(50):
        losses = [rng.gauss(2, 0.1) for _ in range(50)] + [rng.gauss(1.6, 0.1) for _ in range(50)]
        curve = curve_of(losses)
        assert why_unfit(curve, points_of(curve)) == ""


def test_an_explosion_at_the_end_is_not_noise() -> None:
    curve = curve_of([2.0 - i / 100 for i in range(100)] + [1e30])
    assert why_unfit(curve, points_of(curve)) == ""
