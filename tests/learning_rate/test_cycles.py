"""Cycles follow the formulas of their papers, and torch's schedulers where these overlap."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LRScheduler

from lightning_lth.learning_rate.cycles import CosineRestarts, Cycle, Triangular, locate

CYCLES = [
    Triangular(0.001, 0.006, 2000),
    Triangular(0, 1, 3, step_size_down=5, policy="triangular2", cycle_multiplier=1.5),
    Triangular(0.1, 0.4, 7, policy="exp_range", gamma=0.99, base_momentum=0.8, max_momentum=0.9),
    CosineRestarts(0.0, 0.1, 10),
    CosineRestarts(
        0.01,
        0.1,
        10,
        cycle_multiplier=2,
        cycle_decay=0.5,
        base_momentum=0.85,
        max_momentum=0.95,
    ),
]
rates = st.floats(1e-6, 1.0)
momenta = st.floats(0.0, 1.0)


def torch_values(
    make: Callable[[SGD], LRScheduler], num_steps: int, *, lr: float = 0.1
) -> tuple[list[float], list[float]]:
    """Rates and momenta that the optimizer holds during each step."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.5)
    scheduler = make(optimizer)
    values = []
    for _ in range(num_steps):
        values.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return [lr for lr, _ in values], [momentum for _, momentum in values]


def our_rates(cycle: Cycle, num_steps: int) -> list[float]:
    return [cycle.rate(step) for step in range(num_steps)]


def our_momenta(cycle: Cycle, num_steps: int) -> list[float | None]:
    return [cycle.momentum(step) for step in range(num_steps)]


def begins(length: int, multiplier: float, last: int) -> list[int]:
    """The first step of each cycle up to a step, from exact fractions."""
    steps, begin, size = [], Fraction(0), Fraction(length)
    while begin <= last:
        steps.append(math.ceil(begin))
        begin, size = begin + size, size * Fraction(str(multiplier))
    return steps


# Values of the papers and of others.


@pytest.mark.parametrize(
    ("policy", "step", "expected"),
    [
        # base + (max - base) * max(0, 1 - x), x = |step / 2000 - 2 cycle + 1|
        ("triangular", 0, 0.001),
        ("triangular", 500, 0.00225),  # x = 3/4
        ("triangular", 2000, 0.006),  # x = 0
        ("triangular", 3000, 0.0035),  # x = 1/2
        ("triangular", 4000, 0.001),
        ("triangular", 10_000, 0.006),  # third cycle
        ("triangular2", 2000, 0.006),
        ("triangular2", 4000, 0.001),
        ("triangular2", 6000, 0.0035),  # 0.001 + 0.005 / 2
        ("triangular2", 10_000, 0.00225),  # 0.001 + 0.005 / 4
        ("exp_range", 2000, 0.001 + 0.005 * math.exp(2000 * math.log(0.99994))),
        ("exp_range", 5000, 0.001 + 0.0025 * math.exp(5000 * math.log(0.99994))),
    ],
)
def test_triangles_of_smith_on_cifar(policy: Any, step: int, expected: float) -> None:
    gamma = 0.99994 if policy == "exp_range" else 1.0
    cycle = Triangular(0.001, 0.006, 2000, policy=policy, gamma=gamma)
    assert cycle.rate(step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("cycle", "expected"),
    [
        (Triangular(1, 5, 4), [1, 2, 3, 4, 5, 4, 3, 2, 1, 2, 3, 4, 5, 4, 3, 2, 1, 2, 3, 4]),
        (
            Triangular(1, 5, 4, policy="triangular2"),
            [1, 2, 3, 4, 5, 4, 3, 2, 1, 1.5, 2, 2.5, 3, 2.5, 2, 1.5, 1, 1.25, 1.5, 1.75, 2, 1.75],
        ),
        (
            Triangular(1, 5, 4, policy="exp_range", gamma=0.9),
            [
                1 + height * 4 * 0.9**step
                for step, height in enumerate([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0.25])
            ],
        ),
        # Two up, four down.
        (Triangular(1, 5, 2, step_size_down=4), [1, 3, 5, 4, 3, 2, 1, 3, 5, 4]),
    ],
)
def test_the_expectations_of_torchs_own_tests_of_cyclic_lr(
    cycle: Triangular, expected: list[float]
) -> None:
    assert our_rates(cycle, len(expected)) == pytest.approx(expected, abs=1e-12)


def test_cosine_of_loshchilov_and_hutter() -> None:
    # min + (max - min) / 2 * (1 + cos(pi * t / T)), T = 4, then 8; cos(pi / 4) = sqrt(1/2).
    cycle = CosineRestarts(0.1, 0.3, 4, cycle_multiplier=2)
    high, low = 0.1 + 0.1 * (1 + 0.5**0.5), 0.1 + 0.1 * (1 - 0.5**0.5)
    assert our_rates(cycle, 5) == pytest.approx([0.3, high, 0.2, low, 0.3], abs=1e-12)
    assert [cycle.rate(step) for step in (6, 8, 10, 12)] == pytest.approx(
        [high, 0.2, low, 0.3], abs=1e-12
    )


def test_restarts_lose_height_by_the_decay() -> None:
    cycle = CosineRestarts(0.1, 0.5, 10, cycle_decay=0.5)
    # 0.1 + 0.4, then 0.1 + 0.2, then 0.1 + 0.1
    assert [cycle.rate(step) for step in (0, 10, 20)] == pytest.approx([0.5, 0.3, 0.2])


def test_each_triangle_is_longer_by_the_multiplier() -> None:
    cycle = Triangular(0, 1, 2, step_size_down=4, cycle_multiplier=2)
    # 2 up and 4 down, then 4 up and 8 down
    expected = [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]
    expected += [0, 1 / 4, 1 / 2, 3 / 4, 1, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 0]
    assert our_rates(cycle, 19) == pytest.approx(expected, abs=1e-15)


# Equal to torch.


@settings(deadline=None)
@given(
    base_lr=rates,
    span=rates,
    up=st.integers(1, 40),
    down=st.none() | st.integers(1, 40),
    policy=st.sampled_from(["triangular", "triangular2", "exp_range"]),
    gamma=st.floats(0.9, 0.99999),
    bounds=st.tuples(momenta, momenta).map(sorted),
)
def test_triangles_are_those_of_torch(
    base_lr: float,
    span: float,
    up: int,
    down: int | None,
    policy: Any,
    gamma: float,
    bounds: list[float],
) -> None:
    gamma = gamma if policy == "exp_range" else 1.0
    low, high = bounds
    cycle = Triangular(
        base_lr,
        base_lr + span,
        up,
        step_size_down=down,
        policy=policy,
        gamma=gamma,
        base_momentum=low,
        max_momentum=high,
    )

    def make(optimizer: SGD) -> LRScheduler:
        return CyclicLR(
            optimizer,
            base_lr,
            base_lr + span,
            up,
            down,
            mode=policy,
            gamma=gamma,
            base_momentum=low,
            max_momentum=high,
        )

    expected_rates, expected_momenta = torch_values(make, 150)
    assert our_rates(cycle, 150) == pytest.approx(expected_rates, abs=1e-12, rel=0)
    assert our_momenta(cycle, 150) == pytest.approx(expected_momenta, abs=1e-12, rel=0)


@settings(deadline=None)
@given(
    base_lr=st.just(0.0) | rates,
    span=rates,
    length=st.integers(1, 40),
    multiplier=st.integers(1, 4),
)
def test_restarts_are_those_of_torch(
    base_lr: float, span: float, length: int, multiplier: int
) -> None:
    max_lr = base_lr + span
    expected, _ = torch_values(
        lambda optimizer: CosineAnnealingWarmRestarts(optimizer, length, multiplier, base_lr),
        150,
        lr=max_lr,
    )
    cycle = CosineRestarts(base_lr, max_lr, length, cycle_multiplier=multiplier)
    assert our_rates(cycle, 150) == pytest.approx(expected, abs=1e-12, rel=0)


@given(step_size=st.integers(1, 10_000), step=st.integers(0, 10_000_000))
def test_triangles_follow_the_formula_of_the_paper(step_size: int, step: int) -> None:
    number = math.floor(1 + Fraction(step, 2 * step_size))
    x = abs(Fraction(step, step_size) - 2 * number + 1)
    cycle = Triangular(0.25, 0.75, step_size)
    exact = Fraction(1, 4) + Fraction(1, 2) * max(0, 1 - x)
    assert cycle.rate(step) == pytest.approx(float(exact), rel=1e-15, abs=0)


# Cycles and their borders.


@pytest.mark.parametrize("multiplier", [1, 1.000000001, 1.1, 1.5, 2, 3, 100])
@pytest.mark.parametrize("length", [1, 2, 3, 10, 64, 1001])
def test_every_border_is_in_the_right_cycle(length: int, multiplier: float) -> None:
    borders = begins(length, multiplier, 10_000_000 if multiplier >= 1.1 else 300 * length)
    for cycle, (begin, end) in enumerate(itertools.pairwise(borders)):
        assert locate(begin, length, multiplier) == (cycle, 0, end - begin)
        assert locate(end - 1, length, multiplier) == (cycle, end - begin - 1, end - begin)


@given(
    length=st.integers(1, 1000),
    multiplier=st.floats(1.0001, 100).map(lambda value: round(value, 4)),
    data=st.data(),
)
def test_any_step_is_in_the_right_cycle(length: int, multiplier: float, data: Any) -> None:
    borders = begins(length, multiplier, min(10_000_000, 500 * length))
    step = data.draw(st.integers(0, borders[-1] - 1))
    cycle = max(i for i, begin in enumerate(borders) if begin <= step)
    size = borders[cycle + 1] - borders[cycle]
    assert locate(step, length, multiplier) == (cycle, step - borders[cycle], size)


def test_a_multiplier_just_above_1_is_almost_1() -> None:
    assert locate(9_999_999, 10, math.nextafter(1, 2))[0] == 999_999
    assert locate(59, 20, math.nextafter(1, 2)) == (2, 19, 20)


@pytest.mark.parametrize("multiplier", [1, 1.5, 2])
def test_each_cycle_begins_at_the_end_of_its_range_exactly(multiplier: float) -> None:
    # 0.2 + (0.9 - 0.2) is not 0.9 in floating point.
    triangles = Triangular(0.2, 0.9, 5, cycle_multiplier=multiplier)
    restarts = CosineRestarts(0.2, 0.9, 10, cycle_multiplier=multiplier)
    for step in begins(10, multiplier, 100_000)[:30]:
        assert (triangles.rate(step), restarts.rate(step)) == (0.2, 0.9)
    assert triangles.rate(5) == 0.9


def test_late_steps_are_as_exact_as_early_ones() -> None:
    triangles = Triangular(0.1, 0.7, 3, step_size_down=4)
    restarts = CosineRestarts(0.1, 0.7, 7)
    late = 7 * 1_428_571  # 9,999,997
    assert [triangles.rate(late + i) for i in range(7)] == our_rates(triangles, 7)
    assert [restarts.rate(late + i) for i in range(7)] == our_rates(restarts, 7)


@pytest.mark.parametrize(
    "cycle",
    [
        Triangular(0.1, 0.2, 1, policy="triangular2"),  # torch overflows in cycle 1025
        Triangular(0.1, 0.2, 1, policy="exp_range", gamma=0.5),
        CosineRestarts(0.1, 0.2, 1, cycle_decay=0.5),
    ],
)
def test_heights_may_vanish(cycle: Cycle) -> None:
    assert cycle.rate(9_999_999) == 0.1


@given(step=st.integers(0, 10_000_000))
@pytest.mark.parametrize("cycle", CYCLES, ids=repr)
def test_rate_and_momentum_stay_within_their_bounds(cycle: Any, step: int) -> None:
    slack = 1e-15
    assert cycle.base_lr - slack <= cycle.rate(step) <= cycle.max_lr + slack
    momentum = cycle.momentum(step)
    if momentum is not None:
        assert cycle.base_momentum - slack <= momentum <= cycle.max_momentum + slack


# Momentum.


@given(step=st.integers(0, 1000))
@pytest.mark.parametrize("cycle", [CYCLES[2], CYCLES[4]], ids=repr)
def test_momentum_falls_as_far_as_the_rate_rises(cycle: Any, step: int) -> None:
    height = (cycle.rate(step) - cycle.base_lr) / (cycle.max_lr - cycle.base_lr)
    momentum = cycle.momentum(step)
    depth = (cycle.max_momentum - momentum) / (cycle.max_momentum - cycle.base_momentum)
    assert depth == pytest.approx(height, abs=1e-12)


def test_momentum_of_a_triangle() -> None:
    cycle = Triangular(0.1, 0.5, 2, base_momentum=0.8, max_momentum=0.9)
    expected = [0.9, 0.85, 0.8, 0.85, 0.9]
    assert our_momenta(cycle, 5) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("cycle", [Triangular(0.1, 0.5, 2), CosineRestarts(0.1, 0.5, 2)], ids=repr)
def test_without_bounds_momentum_is_left_alone(cycle: Cycle) -> None:
    assert our_momenta(cycle, 5) == [None] * 5


# As values.


@pytest.mark.parametrize("cycle", CYCLES, ids=repr)
def test_cycles_are_values(cycle: Any) -> None:
    assert isinstance(cycle, Cycle)
    copy = pickle.loads(pickle.dumps(cycle))
    assert copy == cycle
    assert hash(copy) == hash(cycle)
    assert our_rates(copy, 50) == our_rates(cycle, 50)
    assert eval(repr(cycle)) == cycle
    assert dataclasses.replace(cycle, max_lr=2.0) != cycle
    with pytest.raises(dataclasses.FrozenInstanceError):
        cycle.max_lr = 1.0


# Bad settings.

TRIANGULAR: dict[str, Any] = {"base_lr": 0.1, "max_lr": 0.2, "step_size": 10}
RESTARTS: dict[str, Any] = {"base_lr": 0.1, "max_lr": 0.2, "cycle_steps": 10}
ON_BOTH = [
    ({"base_lr": -0.1}, r"`base_lr` must be in \[0, inf\), got -0.1. It is the lowest rate of"),
    ({"base_lr": math.nan}, r"`base_lr` must be in \[0, inf\), got nan"),
    ({"max_lr": math.inf}, r"`max_lr` must be in \(0, inf\), got inf. It is the highest rate of"),
    ({"max_lr": 0.0}, r"`max_lr` must be in \(0, inf\), got 0.0"),
    ({"max_lr": 0.05}, "`base_lr` must be below `max_lr`, got 0.1 and 0.05. It is the lowest"),
    ({"max_lr": 0.1}, "`base_lr` must be below `max_lr`, got 0.1 and 0.1."),
    ({"cycle_multiplier": 0.5}, r"`cycle_multiplier` must be in \[1, 100\], got 0.5. 1 keeps the"),
    ({"cycle_multiplier": 101}, r"`cycle_multiplier` must be in \[1, 100\], got 101"),
    ({"base_momentum": 0.8}, "must be given both or not at all, got 0.8 and None. Equal ones hold"),
    ({"max_momentum": 0.8}, "must be given both or not at all, got None and 0.8"),
    (
        {"base_momentum": -0.1, "max_momentum": 0.9},
        r"`base_momentum` must be in \[0, 1\], got -0.1. It goes with the highest rate",
    ),
    (
        {"base_momentum": 0.8, "max_momentum": 1.1},
        r"`max_momentum` must be in \[0, 1\], got 1.1. It goes with the lowest rate",
    ),
    (
        {"base_momentum": 0.9, "max_momentum": 0.8},
        "`base_momentum` must not be above `max_momentum`, got 0.9 and 0.8. It goes with the",
    ),
]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *ON_BOTH,
        ({"step_size": 0}, "`step_size` must be an integer of at least 1, got 0. It counts optim"),
        ({"step_size_down": 0}, "`step_size_down` must be an integer of at least 1, got 0"),
        ({"policy": "saw"}, "`policy` must be one of 'triangular', 'triangular2', 'exp_range', go"),
        ({"gamma": 0.0}, r"`gamma` must be in \(0, 1\], got 0.0. Smith 2015 uses 0.99994."),
        ({"gamma": 1.1}, r"`gamma` must be in \(0, 1\], got 1.1"),
    ],
)
def test_bad_settings_of_triangles(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Triangular(**TRIANGULAR | setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *ON_BOTH,
        ({"cycle_steps": 0}, "`cycle_steps` must be an integer of at least 1, got 0. It counts"),
        ({"cycle_decay": 0.0}, r"`cycle_decay` must be in \(0, 1\], got 0.0. 1 keeps the height"),
        ({"cycle_decay": 1.1}, r"`cycle_decay` must be in \(0, 1\], got 1.1"),
    ],
)
def test_bad_settings_of_restarts(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosineRestarts(**RESTARTS | setting)


@pytest.mark.parametrize("value", ["0.1", None, True, torch.tensor(0.1)], ids=repr)
def test_a_rate_must_be_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"`max_lr` must be a number, got .*\. It is the highest"):
        Triangular(0.01, value, 10)


@pytest.mark.parametrize("value", ["a", 2.0, None, True], ids=repr)
def test_a_count_must_be_an_integer(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"`step_size` must be an integer of at least 1, got .*\. I"
    ):
        Triangular(0.1, 0.2, value)


@pytest.mark.parametrize(
    "setting", [{"gamma": 0.9}, {"policy": "triangular2", "gamma": 0.9}, {"policy": "exp_range"}]
)
def test_a_gamma_without_effect_warns_where_it_was_given(setting: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=r"`gamma=.*` has no effect with `policy=") as record:
        Triangular(**TRIANGULAR | setting)
    assert record[0].filename == __file__


@pytest.mark.parametrize(
    "cycle",
    [
        Triangular(0, 1, 1, step_size_down=1, cycle_multiplier=100),
        Triangular(0, 1, 1, base_momentum=0, max_momentum=1),
        Triangular(0, 1, 1, base_momentum=0.9, max_momentum=0.9),
        CosineRestarts(0, 1, 1, cycle_decay=1, base_momentum=0.0, max_momentum=0.0),
    ],
    ids=repr,
)
def test_settings_at_the_ends_of_their_ranges(cycle: Cycle) -> None:
    assert all(0 <= rate <= 1 for rate in our_rates(cycle, 300))
