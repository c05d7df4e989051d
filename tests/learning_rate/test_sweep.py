"""Values to try, when a sweep ends, and sweeps that restart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lth.learning_rate.sweep import DivergenceDetector, ladder, restarting_sweep, sweep


def replay(losses: Iterable[float]) -> Callable[[float], float]:
    waiting = iter(losses)
    return lambda value: next(waiting)


def test_equal_ratios() -> None:
    assert ladder(0.01, 100, 5) == pytest.approx((0.01, 0.1, 1, 10, 100))


def test_the_first_ratio_is_like_the_others() -> None:
    values = ladder(1e-8, 1, 100)  # Lightning 2.6: 1e-8, 1.45e-8, 1.74e-8
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert ratios == pytest.approx([10 ** (8 / 99)] * 99, rel=1e-12)


def test_equal_differences() -> None:
    assert ladder(0, 1, 5, "linear") == pytest.approx((0, 0.25, 0.5, 0.75, 1))


@given(
    st.floats(1e-12, 1e3),
    st.floats(1.001, 1e9),
    st.integers(2, 300),
    st.sampled_from(["exponential", "linear"]),
)
def test_ladders_rise_from_end_to_end(low: float, ratio: float, num: int, mode: str) -> None:
    values = ladder(low, low * ratio, num, mode)  # type: ignore[arg-type]
    assert (values[0], values[-1], len(values)) == (low, low * ratio, num)
    assert all(a < b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, 5), "`low` must be below `high`, got 1.0 and 1.0"),
        ((2.0, 1.0, 5), "`low` must be below `high`, got 2.0 and 1.0"),
        ((math.nan, 1.0, 5), "`low` must be a finite number, got nan"),
        ((0.1, math.inf, 5), "`high` must be a finite number, got inf"),
        ((0.0, 1.0, 5), r"`low` must be positive for mode='exponential', got 0.0\. Use mode="),
        ((0.1, 1.0, 1), "`num_steps` must be at least 2, got 1"),
        ((0.1, 1.0, 0), "`num_steps` must be at least 2, got 0"),
        ((0.1, 1.0, 5, "log"), "`mode` must be 'exponential' or 'linear', got 'log'"),
    ],
)
def test_what_is_no_ladder(arguments: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ladder(*arguments)


def test_a_sweep_tries_each_value_once_and_keeps_its_loss() -> None:
    tried: list[float] = []

    def step(value: float) -> float:
        tried.append(value)
        return 10 - value

    curve = sweep((1.0, 2.0, 3.0), step, parameter="weight_decay")
    assert tried == [1, 2, 3]
    assert (curve.parameter, curve.values, curve.losses) == ("weight_decay", (1, 2, 3), (9, 8, 7))


def test_divergence_ends_the_sweep_with_the_point_that_showed_it() -> None:
    losses = [2.0] * 10 + [8.0, 8.1, 2.0]
    curve = sweep(range(13), replay(losses), smoothing=0)
    assert curve.losses == tuple(losses[:12])  # 8.0 is 4 times 2.0, not over it


def test_divergence_is_of_the_smoothed_loss() -> None:
    # 10 points of 2, then 9.5: at beta 0.5 (0.5 * 2 * (1 - 2**-10) + 0.5 * 9.5) / (1 - 2**-11) < 8
    assert len(sweep(range(13), replay([2.0] * 10 + [9.5, 2.0, 2.0]), smoothing=0.5)) == 13
    assert len(sweep(range(13), replay([2.0] * 10 + [9.5, 2.0, 2.0]), smoothing=0.0)) == 11


def test_no_average_of_few_losses_counts() -> None:
    # One easy batch among the first, as with a batch size of 1.
    assert len(sweep(range(30), replay([0.01] + [2.0] * 29))) == 30
    # A rise before the tenth does not end the sweep either.
    assert len(sweep(range(12), replay([1.0] + [9.0] * 11), smoothing=0)) == 12


def test_the_lowest_may_come_late() -> None:
    losses = [2.0] * 10 + [0.1, 0.5, 0.0]
    assert len(sweep(range(13), replay(losses), smoothing=0)) == 12


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_sweep(loss: float) -> None:
    for factor in (4.0, None):
        curve = sweep((1.0, 2.0, 3.0), replay([1.0, loss, 1.0]), diverge_factor=factor)
        assert curve.values == (1, 2)
        assert repr(curve.losses[-1]) == repr(loss)


def test_nan_from_the_first_step_is_a_curve_of_one_point() -> None:
    assert len(sweep((1.0, 2.0), replay([math.nan]))) == 1


def test_no_factor_goes_on_to_the_end() -> None:
    losses = [2.0] * 10 + [1e9, 1e12]
    assert len(sweep(range(12), replay(losses), diverge_factor=None)) == 12


def test_negative_losses_do_not_look_diverged() -> None:
    # A log-likelihood: 4 times the lowest would be lower still.
    falling = [-float(i) for i in range(1, 21)]
    assert len(sweep(range(20), replay(falling), smoothing=0)) == 20
    # From -1 to a lowest of -20: may rise by 3 times 20, to 40.
    assert len(sweep(range(23), replay([*falling, 40.0, 40.1, 0.0]), smoothing=0)) == 22


def test_a_lowest_of_almost_0_is_measured_by_the_fall() -> None:
    # From 1 at the tenth point to 0: may rise by 3 times that.
    losses = [1.0] * 10 + [0.0, 3.0, 3.1, 0.0]
    assert len(sweep(range(14), replay(losses), smoothing=0)) == 13


@pytest.mark.parametrize("factor", [1.0, 0.0, -4.0, math.nan])
def test_the_factor_is_over_1(factor: float) -> None:
    with pytest.raises(ValueError, match="`diverge_factor` must be over 1, got"):
        DivergenceDetector(factor)


def test_smoothing_is_checked_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        sweep((1.0,), lambda value: pytest.fail("a step was trained"), smoothing=1.0)


def test_there_must_be_values() -> None:
    with pytest.raises(ValueError, match="`values` must hold at least one"):
        sweep((), lambda value: value)
    with pytest.raises(ValueError, match="`values` must hold at least one"):
        restarting_sweep((), 1, lambda value: value, lambda: None)


def test_every_value_starts_from_the_same_state() -> None:
    state = {"weight": 1.0}
    log: list[float] = []

    def restore() -> None:
        state["weight"] = 1.0

    def step(value: float) -> float:
        log.append(state["weight"])
        state["weight"] -= value
        return state["weight"]

    curve = restarting_sweep((0.25, 0.5), 2, step, restore)
    assert log == [1.0, 0.75, 1.0, 0.5]
    assert curve.losses == (0.5, 0.0)
    assert curve.parameter == "momentum"


def test_restores_before_each_value_only() -> None:
    calls: list[str] = []

    def step(value: float) -> float:
        calls.append("step")
        return value

    restarting_sweep((1.0, 2.0), 1, step, lambda: calls.append("restore"))
    assert calls == ["restore", "step", "restore", "step"]


@pytest.mark.parametrize(("num_steps", "loss"), [(1, 1.0), (5, 5.0), (9, 9.0), (10, 9.5)])
def test_the_loss_is_the_mean_of_the_last_fifth(num_steps: int, loss: float) -> None:
    # Losses 1, 2, ...: of 10 steps the last fifth is 9 and 10; below 10 it is the last one.
    curve = restarting_sweep((1.0,), num_steps, replay(range(1, 11)), lambda: None)
    assert curve.losses == (loss,)


def test_one_value_that_diverges_does_not_end_the_others() -> None:
    losses = [1.0, math.inf, 3.0, 4.0, 5.0, 6.0]
    curve = restarting_sweep((1.0, 2.0), 3, replay(losses), lambda: None)
    assert curve.losses == (math.inf, 5.0)  # third step of the first value is not taken


def test_there_must_be_steps() -> None:
    with pytest.raises(ValueError, match="`steps_per_value` must be at least 1, got 0"):
        restarting_sweep((1.0,), 0, lambda value: value, lambda: None)
