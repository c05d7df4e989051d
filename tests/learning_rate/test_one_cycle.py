"""One cycle follows Smith's policy, and torch's scheduler where these overlap."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from lightning_lth.learning_rate.cycles import Cycle
from lightning_lth.learning_rate.one_cycle import OneCycle

momenta = st.floats(0.0, 1.0)
# Of 10 steps, step 0.4 * 10 - 1 = 3 is the top, and step 2 * 3 = 6 the end of the fall.
SMITH: dict[str, Any] = {"warm_up_fraction": 0.4, "shape": "linear", "three_phases": True}


def torch_values(num_steps: int, **keywords: Any) -> tuple[list[float], list[float]]:
    """Rates and momenta that the optimizer holds during each step."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.5)
    scheduler = OneCycleLR(optimizer, total_steps=num_steps, **keywords)
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


# Rates of torch's own tests; momenta likewise, 1..22 there, scaled to 1/22..1.
@pytest.mark.parametrize(
    ("setting", "expected_rates", "expected_momenta"),
    [
        (
            {"shape": "linear", "final_div_factor": 2},
            [1, 13, 25, 21.5, 18, 14.5, 11, 7.5, 4, 0.5],
            [22, 11.5, 1, 4, 7, 10, 13, 16, 19, 22],
        ),
        (
            SMITH | {"final_div_factor": 4},
            [1, 9, 17, 25, 17, 9, 1, 0.75, 0.5, 0.25],
            [22, 15, 8, 1, 8, 15, 22, 22, 22, 22],
        ),
        (
            {"final_div_factor": 2},
            # 25 + (1 - 25) / 2 * (1 + cos(pi / 2)) = 13, then 0.5 + 24.5 / 2 * (1 + cos(k pi / 7))
            [1, 13, *(0.5 + 12.25 * (1 + math.cos(k * math.pi / 7)) for k in range(8))],
            [22, 11.5, *(22 - 10.5 * (1 + math.cos(k * math.pi / 7)) for k in range(8))],
        ),
    ],
)
def test_the_expectations_of_torchs_own_tests(
    setting: dict[str, Any], expected_rates: list[float], expected_momenta: list[float]
) -> None:
    cycle = OneCycle(25, 10, base_momentum=1 / 22, max_momentum=1, **setting)
    assert our_rates(cycle, 10) == pytest.approx(expected_rates, abs=1e-12)
    assert our_momenta(cycle, 10) == pytest.approx([m / 22 for m in expected_momenta], abs=1e-12)


def test_smiths_policy_as_the_note_gives_it() -> None:
    cycle = OneCycle(
        3.0,
        1000,
        shape="linear",
        three_phases=True,
        warm_up_fraction=0.45,
        div_factor=10,
        final_div_factor=1000,
    )
    # The top after 450 steps, 0.3 again after as many more, and 0.0003 with the last of 1000.
    assert [cycle.rate(step) for step in (0, 449, 898, 999)] == pytest.approx([0.3, 3, 0.3, 0.0003])
    assert cycle.rate(449 - 100) == pytest.approx(cycle.rate(449 + 100))
    assert [cycle.momentum(step) for step in (0, 449, 898, 950)] == [0.95, 0.85, 0.95, 0.95]


@settings(deadline=None)
@given(
    max_lr=st.floats(1e-6, 1.0),
    num_steps=st.integers(1, 150),
    fraction=st.floats(0.01, 0.99),
    div_factor=st.floats(1.01, 100),
    final_div_factor=st.floats(1, 1e6),
    shape=st.sampled_from(["cosine", "linear"]),
    three_phases=st.booleans(),
    bounds=st.tuples(momenta, momenta).map(sorted),
)
def test_one_cycle_is_that_of_torch(
    max_lr: float,
    num_steps: int,
    fraction: float,
    div_factor: float,
    final_div_factor: float,
    shape: Any,
    three_phases: bool,
    bounds: list[float],
) -> None:
    fraction = fraction / 2 if three_phases else fraction
    assume(fraction * num_steps != 1)  # torch divides by zero
    low, high = bounds
    cycle = OneCycle(
        max_lr,
        num_steps,
        warm_up_fraction=fraction,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        shape=shape,
        three_phases=three_phases,
        base_momentum=low,
        max_momentum=high,
    )
    expected_rates, expected_momenta = torch_values(
        num_steps,
        max_lr=max_lr,
        pct_start=fraction,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        anneal_strategy={"cosine": "cos", "linear": "linear"}[shape],
        three_phase=three_phases,
        base_momentum=low,
        max_momentum=high,
    )
    assert our_rates(cycle, num_steps) == pytest.approx(expected_rates, abs=1e-12, rel=0)
    assert our_momenta(cycle, num_steps) == pytest.approx(expected_momenta, abs=1e-12, rel=0)


@pytest.mark.parametrize("three_phases", [False, True])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_past_the_end_it_stays(shape: Any, three_phases: bool) -> None:
    cycle = OneCycle(1.0, 100, shape=shape, three_phases=three_phases)
    assert cycle.rate(98) > cycle.rate(99) == 1 / 25 / 1e4
    assert {cycle.rate(step) for step in (99, 100, 101, 150, 10_000_000)} == {1 / 25 / 1e4}
    assert {cycle.momentum(step) for step in (99, 100, 150, 10_000_000)} == {0.95}


@pytest.mark.parametrize("setting", [{"num_steps": 10, "warm_up_fraction": 0.1}, {"num_steps": 1}])
def test_a_climb_of_one_step_or_less(setting: dict[str, Any]) -> None:
    cycle = OneCycle(1.0, **setting)
    # A climb of one step is at its end at once; in a run of one step the end is the last rate.
    expected = (1.0, 0.85) if setting["num_steps"] == 10 else (1 / 25 / 1e4, 0.95)
    assert (cycle.rate(0), cycle.momentum(0)) == expected
    assert cycle.rate(9) == 1 / 25 / 1e4


def test_ten_million_steps() -> None:
    cycle = OneCycle(1.0, 10_000_000, warm_up_fraction=0.25)
    assert cycle.rate(2_499_999) == 1.0
    assert cycle.rate(0) == 1 / 25
    assert cycle.rate(9_999_999) == 1 / 25 / 1e4


def test_without_bounds_momentum_is_left_alone() -> None:
    cycle = OneCycle(1.0, 10, base_momentum=None, max_momentum=None)
    assert our_momenta(cycle, 12) == [None] * 12


def test_it_is_a_value() -> None:
    cycle = OneCycle(1.0, 10, **SMITH)
    assert isinstance(cycle, Cycle)
    copy = pickle.loads(pickle.dumps(cycle))
    assert copy == cycle != OneCycle(1.0, 10)
    assert our_rates(copy, 12) == our_rates(cycle, 12)
    assert eval(repr(cycle)) == cycle


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_lr": 0}, r"`max_lr` must be in \(0, inf\), got 0. It is the highest rate"),
        ({"max_lr": math.nan}, r"`max_lr` must be in \(0, inf\), got nan"),
        ({"num_steps": 0}, "`num_steps` must be an integer of at least 1, got 0. It counts the op"),
        (
            {"warm_up_fraction": 30},
            r"`warm_up_fraction` must be in \(0, 1\), got 30. Percentages are written as fractions",
        ),
        ({"warm_up_fraction": 0.0}, r"`warm_up_fraction` must be in \(0, 1\), got 0.0"),
        ({"warm_up_fraction": 1.0}, r"`warm_up_fraction` must be in \(0, 1\), got 1.0"),
        (
            {"warm_up_fraction": 0.6, "three_phases": True},
            r"`warm_up_fraction` must be in \(0, 0.5\], got 0.6. With `three_phases`, the rate fal",
        ),
        ({"div_factor": 1}, r"`div_factor` must be in \(1, inf\), got 1. The cycle begins that"),
        (
            {"final_div_factor": 0.5},
            r"`final_div_factor` must be in \[1, inf\), got 0.5. The last rate is",
        ),
        ({"shape": "cos"}, "`shape` must be one of 'cosine', 'linear', got 'cos'."),
        ({"base_momentum": None}, "must be given both or not at all, got None and 0.95"),
        ({"base_momentum": 0.96}, "`base_momentum` must not be above `max_momentum`, got 0.96"),
    ],
)
def test_bad_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneCycle(**{"max_lr": 1.0, "num_steps": 10} | setting)


@pytest.mark.parametrize(("num_steps", "settings"), [(10, {}), (1, {}), (2, SMITH)])
def test_settings_at_the_ends_of_their_ranges(num_steps: int, settings: dict[str, Any]) -> None:
    cycle = OneCycle(1.0, num_steps, **settings | {"final_div_factor": 1})
    assert all(0.04 - 1e-15 <= rate <= 1 for rate in our_rates(cycle, 12))
    half = OneCycle(1.0, num_steps, warm_up_fraction=0.5, three_phases=True)
    assert all(0 < rate <= 1 for rate in our_rates(half, 12))
