"""Patience: how long without improvement, counted in validations, steps or epochs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_lth.stopping import Patience, StopReason
from tests.stopping.curves import first_stop, record, stop_index


@pytest.mark.parametrize(
    ("values", "patience", "index"),
    [
        # After the best, at index 1, the third validation is the one at index 4.
        ([6, 5, 5, 5, 5, 5], 3, 4),
        ([6, 5, 4, 4, 3, 3], 1, 3),  # 4 at index 3 does not improve on 4 at index 2
        ([6, 5, 6, 5, 5, 5], 3, 4),  # equal to the best is no improvement
        ([6, 5, 6, 4, 5, 6, 3], 3, None),  # never three in a row
        ([6, 5, 7, 7, 4], 2, 3),
        ([6, 6], 0, 1),  # 0: the first without improvement
        ([6, 5, 4], 0, None),
        ([6, 6], 1, 1),
        ([6], 0, None),
        ([], 0, None),
        ([math.nan, math.nan, 1], 2, 1),  # nothing ever improved
        ([2, math.nan, math.nan, 1], 2, 2),
        ([math.inf, math.inf], 2, 1),  # infinity is no improvement on nothing, as for Lightning
    ],
)
def test_validations(values: list[float], patience: int, index: int | None) -> None:
    assert stop_index(Patience(patience), record(values)) == index


@pytest.mark.parametrize(
    ("values", "min_delta", "is_relative", "index"),
    [
        # Patience 2. Falls by 0.25 are not *more* than 0.25: no improvement since index 0.
        ([2.0, 1.75, 1.75, 1.75], 0.25, False, 2),
        ([2.0, 1.5, 1.5, 1.5], 0.25, False, 3),
        # Small falls add up against the best that counted: 2 -> 1.5 is 0.5 > 0.25, at index 2.
        ([2.0, 1.75, 1.5, 1.5, 1.5], 0.25, False, 4),
        # Relative to the best: 8 * 0.25 = 2, so 7 is none and 5 is one; then 5 * 0.25 = 1.25, so
        # 4 is none and 3 is one.
        ([8.0, 7.0, 5.0, 4.0, 3.0, 3.0, 3.0], 0.25, True, 6),
        ([8.0, 7.0, 6.0], 0.25, True, 2),  # 6 is not more than 2 below
        # Negative values: the share is of the absolute value, -4 - 1 = -5 is not reached.
        ([-4.0, -4.5, -5.0], 0.25, True, 2),
        ([-4.0, -4.5, -5.5, -5.5], 0.25, True, None),
    ],
)
def test_min_delta(
    values: list[float], min_delta: float, is_relative: bool, index: int | None
) -> None:
    criterion = Patience(2, min_delta=min_delta, is_relative=is_relative)
    assert stop_index(criterion, record(values)) == index
    negated = record([-value for value in values], mode="max")
    assert stop_index(criterion, negated) == index


@pytest.mark.parametrize(
    ("patience", "unit", "index", "message"),
    [
        # Best at step 30 in epoch 1. Waited steps: 30, 70, 120; epochs: 0, 1, 2; validations 1 2 3.
        (70, "step", 3, "loss has not improved for 70 steps; the best was 1 at step 30"),
        (71, "step", 4, "loss has not improved for 120 steps; the best was 1 at step 30"),
        (121, "step", None, ""),
        (1, "epoch", 3, "loss has not improved for 1 epoch; the best was 1 at step 30"),
        (2, "epoch", 4, "loss has not improved for 2 epochs; the best was 1 at step 30"),
        (3, "epoch", None, ""),
        (1, "validation", 2, "loss has not improved for 1 validation; the best was 1 at step 30"),
    ],
)
def test_units(patience: int, unit: Any, index: int | None, message: str) -> None:
    validations = record([2, 1, 1, 1, 1], steps=[10, 30, 60, 100, 150], epochs=[0, 1, 1, 2, 3])
    first = first_stop(Patience(patience, unit=unit), validations)
    assert (None if first is None else (first[0], first[1].message)) == (
        None if index is None else (index, message)
    )
    assert first is None or first[1].reason is StopReason.PATIENCE


def test_zero_patience_in_epochs_waits_for_the_next_epoch() -> None:
    validations = record([1, 2, 2], epochs=[0, 0, 1])
    assert stop_index(Patience(0, unit="epoch"), validations) == 2


@pytest.mark.parametrize(("unit", "waited"), [("validation", 3), ("step", 50), ("epoch", 2)])
def test_before_any_improvement_the_wait_began_at_the_first_validation(
    unit: Any, waited: int
) -> None:
    validations = record([math.nan] * 3, steps=[10, 30, 60], epochs=[1, 2, 3])
    criterion = Patience(2, unit=unit)
    assert criterion.waited(validations) == waited
    units = f"{unit}s"
    stop = criterion(validations)
    assert stop is not None
    assert stop.message == f"loss has not improved for {waited} {units}; it never has"


def test_how_long_it_has_waited() -> None:
    assert Patience().waited(record([])) == 0
    assert Patience().waited(record([2, 1])) == 0
    assert Patience().waited(record([2, 1, 1, 3])) == 2


def test_a_metric_of_its_own() -> None:
    validations = record([3, 2, 1, 0], mode="min", accuracy=[0.5, 0.6, 0.6, 0.6])
    assert stop_index(Patience(2, monitor="accuracy", mode="max"), validations) == 3
    # Unless told otherwise, small values of it are good.
    assert stop_index(Patience(2, monitor="accuracy"), validations) == 2
    maximized = record([3, 2, 1], mode="max", other=[3, 2, 1])
    assert stop_index(Patience(2, monitor="other"), maximized) is None
    assert stop_index(Patience(2, monitor="loss"), maximized) == 2  # that of the record
    assert stop_index(Patience(2, mode="min"), maximized) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": -1}, r"`patience` must be at least 0, got -1\."),
        ({"patience": 2.5}, r"`patience` must be an integer, got 2\.5\."),
        ({"patience": True}, r"`patience` must be an integer, got True\."),
        (
            {"unit": "batch"},
            r"`unit` must be one of \['validation', 'step', 'epoch'\], got 'batch'",
        ),
        ({"min_delta": -0.1}, r"`min_delta` must be at least 0, got -0\.1\."),
        ({"min_delta": math.nan}, r"`min_delta` must be at least 0, got nan\."),
        ({"min_delta": math.inf}, r"`min_delta` must be at least 0, got inf\."),
        ({"mode": "minimum"}, r"`mode` must be one of \['min', 'max'\], got 'minimum'\."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patience(**arguments)
