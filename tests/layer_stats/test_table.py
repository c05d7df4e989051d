"""Numbers by step in bounded memory."""

from __future__ import annotations

import math

import pytest

from lightning_lth.layer_stats.table import Table


def filled(num_steps: int, capacity: int) -> Table:
    table = Table(capacity)
    for step in range(num_steps):
        table.add(step, {("bn", "dead"): float(step)})
    return table


@pytest.mark.parametrize(
    ("num_steps", "kept"),
    [
        (0, []),
        (1, [0]),
        (4, [0, 1, 2, 3]),
        (5, [0, 2, 4]),  # full: every other one goes; 4 is a multiple of 2
        (6, [0, 2, 4]),
        (7, [0, 2, 4, 6]),
        (8, [0, 2, 4, 6]),
        (9, [0, 4, 8]),
        (100, [0, 32, 64, 96]),
    ],
)
def test_when_full_every_other_step_goes(num_steps: int, kept: list[int]) -> None:
    table = filled(num_steps, capacity=4)
    assert table.steps == kept
    assert len(table) == len(kept)
    assert table.series("bn", "dead") == kept
    assert table.latest == ({"bn": {"dead": num_steps - 1.0}} if num_steps else {})


def test_an_odd_capacity() -> None:
    table = filled(100, capacity=5)
    assert table.steps == [0, 32, 64, 96]
    assert [len(filled(n, capacity=3)) <= 3 for n in range(30)] == [True] * 30


def test_memory_is_bounded() -> None:
    table = Table()
    for step in range(20_000):
        table.add(step, {("bn", "dead"): 0.5})
    assert 500 <= len(table) <= 1000
    assert len(table.rows()) == len(table.series("bn", "dead")) == len(table)


def test_what_comes_twice_under_a_step_is_one_step() -> None:
    """A validation follows the step that it belongs to; both survive when others go."""
    table = Table(capacity=4)
    for step in range(20):
        table.add(step, {("bn", "drift_mean"): 1.0, ("bn", "dead"): 0.0})
        table.add(step, {("bn", "train_eval_shift"): 2.0, ("bn", "dead"): 0.5})
    assert table.steps == [0, 8, 16]
    expected = {"layer": "bn", "drift_mean": 1.0, "train_eval_shift": 2.0, "dead": 0.5}
    assert table.rows() == [{"step": step, **expected} for step in (0, 8, 16)]
    assert table.latest == {"bn": {"drift_mean": 1.0, "train_eval_shift": 2.0, "dead": 0.5}}


def test_the_latest_is_there_though_its_step_is_not_kept() -> None:
    table = filled(8, capacity=4)
    table.add(8, {("bn", "keep"): 1.0})
    table.add(9, {("drop", "keep"): 0.25})
    assert table.steps == [0, 4, 8]
    assert table.latest == {"bn": {"dead": 7.0, "keep": 1.0}, "drop": {"keep": 0.25}}
    assert [row["layer"] for row in table.rows()] == ["bn", "bn", "bn"]


def test_what_was_not_there_is_nan_in_a_series_and_absent_from_rows() -> None:
    table = Table()
    table.add(3, {("a", "x"): 1.0})
    table.add(5, {("b", "x"): 2.0})
    table.add(7, {("a", "x"): 3.0, ("a", "y"): 4.0})
    assert table.series("a", "x")[::2] == [1.0, 3.0]
    assert [math.isnan(value) for value in table.series("a", "x")] == [False, True, False]
    assert [math.isnan(value) for value in table.series("a", "y")] == [True, True, False]
    assert all(math.isnan(value) for value in table.series("no", "x"))
    assert len(table.series("no", "x")) == 3
    assert table.rows() == [
        {"step": 3, "layer": "a", "x": 1.0},
        {"step": 5, "layer": "b", "x": 2.0},
        {"step": 7, "layer": "a", "x": 3.0, "y": 4.0},
    ]


def test_infinity_and_numbers_beyond_float32() -> None:
    table = Table()
    table.add(0, {("a", "x"): math.inf, ("a", "y"): 1e300, ("a", "z"): math.nan})
    assert table.rows() == [{"step": 0, "layer": "a", "x": math.inf, "y": math.inf}]
    assert table.latest["a"]["y"] == 1e300


def test_a_series_is_a_copy() -> None:
    table = filled(2, capacity=4)
    table.series("bn", "dead").append(9.0)
    table.steps.append(9)
    assert table.series("bn", "dead") == [0.0, 1.0]
    assert table.steps == [0, 1]


def test_too_small_a_capacity() -> None:
    with pytest.raises(ValueError, match="`capacity` must be at least 2, got 1"):
        Table(1)
    assert len(filled(3, capacity=2)) == 2
