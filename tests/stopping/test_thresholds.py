"""A target that is reached, a divergence, a value that is not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_lth.stopping import Criterion, Divergence, NotFinite, StopReason, Target
from lightning_lth.stopping.validations import Mode
from tests.stopping.curves import first_stop, record, stop_index


@pytest.mark.parametrize(
    ("criterion", "values", "mode", "index"),
    [
        (Target(2.5), [9, 8, 3, 2, 1], "min", 3),
        (Target(2.0), [3, 2, 1.5], "min", 2),  # equal is not better
        (Target(2.0), [3, 2], "min", None),
        (Target(0.9), [0.5, 0.9, 0.95], "max", 2),
        (Target(2.0), [math.nan, 3], "min", None),
        (Target(2.0), [math.nan, math.inf], "max", 1),
        (Divergence(15.5), [9, 4, 2, 16, 32], "min", 3),
        (Divergence(16.0), [9, 16, 17], "min", 2),  # equal is not worse
        (Divergence(0.1), [0.5, 0.1, 0.05], "max", 2),
        (Divergence(15.0), [math.nan, 3], "min", None),
        (Divergence(15.0), [3, math.inf], "min", 1),
        (NotFinite(), [4, 3, math.nan, 2], "min", 2),
        (NotFinite(), [4, math.inf], "min", 1),
        (NotFinite(), [4, -math.inf], "max", 1),
        (NotFinite(), [4, 3], "min", None),
        (Target(1.0), [], "min", None),
        (Divergence(1.0), [], "min", None),
        (NotFinite(), [], "min", None),
    ],
)
def test_where_they_stop(
    criterion: Criterion, values: list[float], mode: Mode, index: int | None
) -> None:
    assert stop_index(criterion, record(values, mode=mode)) == index


def test_only_the_last_validation_counts() -> None:
    assert Target(2.0)(record([1, 3])) is None
    assert Divergence(2.0)(record([3, 1])) is None
    assert NotFinite()(record([math.nan, 1])) is None


@pytest.mark.parametrize(
    ("criterion", "mode", "reason", "message"),
    [
        (Target(0.5), "min", StopReason.TARGET, "loss = 0.25 has reached its target: < 0.5"),
        (Target(0.125), "max", StopReason.TARGET, "loss = 0.25 has reached its target: > 0.125"),
        (Divergence(0.125), "min", StopReason.DIVERGENCE, "loss = 0.25 diverges: > 0.125"),
        (Divergence(0.5), "max", StopReason.DIVERGENCE, "loss = 0.25 diverges: < 0.5"),
    ],
)
def test_the_reason(criterion: Criterion, mode: Mode, reason: StopReason, message: str) -> None:
    stop = criterion(record([0.25], mode=mode))
    assert stop is not None
    assert (stop.reason, stop.message) == (reason, message)


def test_the_reason_of_values_that_are_not_finite() -> None:
    first = first_stop(NotFinite(), record([1.0, -math.inf]))
    assert first is not None
    assert first[1].reason is StopReason.NOT_FINITE
    assert first[1].message == "loss = -inf is not finite"


def test_metrics_of_their_own() -> None:
    validations = record([3, 2, 1], accuracy=[0.5, 0.9, 0.95], other=[1, math.nan, 1])
    assert stop_index(Target(0.8, "accuracy", "max"), validations) == 1
    assert stop_index(Target(0.8, "accuracy", "min"), validations) == 0
    assert stop_index(Divergence(0.6, "accuracy", "max"), validations) == 0
    assert stop_index(Divergence(0.92, "accuracy", "min"), validations) == 2
    assert stop_index(Target(2.5, "loss"), validations) == 1  # that of the callback, by its name
    assert stop_index(NotFinite("other"), validations) == 1


@pytest.mark.parametrize("criterion", [Target(0.9, "top5"), Divergence(0.9, "top5")])
def test_the_mode_of_another_metric_is_not_guessed(criterion: Criterion) -> None:
    message = r"`mode` must be given with `monitor='top5'`, as the callback monitors 'loss': 'min' "
    with pytest.raises(ValueError, match=message):
        criterion(record([0.5], mode="max", top5=[0.5]))


@pytest.mark.parametrize("kind", [Target, Divergence])
def test_an_unknown_mode_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"`mode` must be one of \['min', 'max'\], got 'best'\."):
        kind(1.0, mode="best")
