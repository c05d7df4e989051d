"""The record: the best, the values, the rows, and the way into a checkpoint and back."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from lightning_lth import Validation, Validations
from lightning_lth.stopping.validations import Mode, is_better
from tests.stopping.curves import record


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([3.0, 1.0, 2.0], "min", 1),
        ([3.0, 1.0, 1.0, 1.0], "min", 1),  # the first of equals
        ([3.0, 1.0, 3.0], "max", 0),
        ([math.nan, 2.0, 3.0], "min", 1),  # NaN is never the best
        ([2.0, math.nan, 1.0, math.nan], "min", 2),
        ([math.inf, math.inf], "min", 0),  # infinite, but a number
        ([math.inf, 5.0], "min", 1),
        ([-math.inf, 5.0], "max", 1),
        ([math.nan], "min", None),
        ([], "min", None),
    ],
)
def test_the_best_is_the_first_of_equals(values: list[float], mode: Mode, best: int | None) -> None:
    validations = record(values, mode=mode)
    assert validations.best is (None if best is None else validations[best])


def test_it_is_a_sequence_of_validations() -> None:
    validations = record([3.0, 1.0, 2.0])
    assert len(validations) == 3
    assert [one.step for one in validations] == [0, 10, 20]
    assert validations[-1].value == 2.0
    assert [one.epoch for one in validations[1:]] == [1, 2]
    assert validations[1] in validations
    with pytest.raises(dataclasses.FrozenInstanceError):
        validations[0].value = 0.0  # type: ignore[misc]


def test_values_of_the_monitored_metric_and_of_another() -> None:
    validations = record([3.0, 1.0], accuracy=[0.1, 0.7])
    assert validations.values() == validations.values("loss") == [3.0, 1.0]
    assert validations.values("accuracy") == [0.1, 0.7]


def test_a_metric_that_a_validation_lacks() -> None:
    validations = record([3.0])
    validations.append(Validation(20, 1, 2.0, metrics={"f1": 0.5, "accuracy": 0.1}))
    message = r"`monitor='f1'` was not logged at the validation of step 0\. Logged: \[\]\."
    with pytest.raises(RuntimeError, match=message):
        validations.values("f1")
    late = Validations("loss", "min", validations[1:])
    with pytest.raises(RuntimeError, match=r"step 20\. Logged: \['accuracy', 'f1'\]\."):
        late.values("recall")


def test_rows_are_flat() -> None:
    validations = record([3.0, 1.0], train=[None, 2.5], accuracy=[0.1, 0.7])
    assert validations.rows() == [
        {"step": 0, "epoch": 0, "value": 3.0, "train_loss": None, "accuracy": 0.1},
        {"step": 10, "epoch": 1, "value": 1.0, "train_loss": 2.5, "accuracy": 0.7},
    ]


def test_metrics_do_not_overwrite_the_columns_of_the_record() -> None:
    validations = Validations("loss", "min", [Validation(3, 1, 2.0, metrics={"step": 0.5})])
    assert validations.rows() == [
        {"step": 3, "epoch": 1, "value": 2.0, "train_loss": None, "metric/step": 0.5}
    ]


def test_the_state_is_plain_and_comes_back() -> None:
    validations = record([3.0, 1.0, 2.0], mode="max", train=[None, 2.5, 2.0], f1=[0.1, 0.7, 0.5])
    state = json.loads(json.dumps(validations.state_dict()))
    twin = Validations.from_state_dict("loss", "max", state)
    assert list(twin) == list(validations)
    assert twin.best == validations.best == validations[0]
    state[0]["metrics"]["f1"] = 9.0
    assert validations[0].metrics["f1"] == 0.1  # the state is a copy


@pytest.mark.parametrize(
    ("value", "other", "mode", "margin", "expected"),
    [
        (1.0, 2.0, "min", 0.0, True),
        (2.0, 2.0, "min", 0.0, False),
        (1.5, 2.0, "min", 0.5, False),  # by no more than the margin
        (1.25, 2.0, "min", 0.5, True),
        (2.0, 1.0, "max", 0.0, True),
        (2.5, 2.0, "max", 0.5, False),
        (2.75, 2.0, "max", 0.5, True),
        (math.nan, 2.0, "min", 0.0, False),
        (math.nan, 2.0, "max", 0.0, False),
    ],
)
def test_is_better(value: float, other: float, mode: Mode, margin: float, expected: bool) -> None:
    assert is_better(value, other, mode, margin=margin) is expected
