"""The figure of a schedule shows the values of its cycle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_lth.learning_rate.cycles import CosineRestarts, Triangular
from lightning_lth.learning_rate.one_cycle import OneCycle
from lightning_lth.learning_rate.schedule_figures import MOST_POINTS, schedule


def points(line: Any) -> tuple[list[float], list[float]]:
    return list(line.get_xdata()), list(line.get_ydata())


def test_rate_above_momentum() -> None:
    cycle = Triangular(1, 3, 2, base_momentum=0.5, max_momentum=1.0)
    figure = schedule(cycle, 5, title="Two up, two down")
    upper, lower = figure.axes
    assert points(upper.lines[0]) == ([0, 1, 2, 3, 4], [1, 2, 3, 2, 1])
    assert points(lower.lines[0]) == ([0, 1, 2, 3, 4], [1, 0.75, 0.5, 0.75, 1])
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("learning rate", "momentum")
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("", "optimizer step")
    assert figure.get_suptitle() == "Two up, two down"


def test_without_momentum_there_is_one_panel() -> None:
    figure = schedule(CosineRestarts(0, 1, 2), 4)
    (axes,) = figure.axes
    assert points(axes.lines[0]) == ([0, 1, 2, 3], pytest.approx([1, 0.5, 1, 0.5]))
    assert axes.get_xlabel() == "optimizer step"


def test_a_momentum_that_is_not_always_there_leaves_a_gap() -> None:
    class Sometimes:
        def rate(self, step: int) -> float:
            return 1.0

        def momentum(self, step: int) -> float | None:
            return 0.9 if step else None

    values = schedule(Sometimes(), 3).axes[1].lines[0].get_ydata()
    assert np.array_equal(values, [np.nan, 0.9, 0.9], equal_nan=True)


def test_long_schedules_are_thinned_out() -> None:
    (axes,) = schedule(Triangular(0, 1, 5_000_000), 10_000_000).axes
    steps, values = points(axes.lines[0])
    assert len(steps) == MOST_POINTS
    assert (steps[0], steps[-1]) == (0, 9_999_999)
    assert values == pytest.approx([1 - abs(step / 5_000_000 - 1) for step in steps], abs=1e-12)
    assert len(points(schedule(Triangular(0, 1, 5), MOST_POINTS).axes[0].lines[0])[0]) == 10_000


def test_it_is_written_as_a_picture(tmp_path: Path) -> None:
    figure = schedule(OneCycle(1.0, 100), 120)
    figure.axes[0].set_yscale("log")
    figure.savefig(tmp_path / "schedule.png")  # warnings are errors
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")


def test_pyplot_does_not_know_of_it() -> None:
    from matplotlib import pyplot

    schedule(Triangular(0, 1, 2), 4)
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("num_steps", [0, -1])
def test_there_must_be_a_step(num_steps: int) -> None:
    message = f"`num_steps` must be at least 1, got {num_steps}. Show a whole cycle."
    with pytest.raises(ValueError, match=message):
        schedule(Triangular(0, 1, 2), num_steps)


def test_one_step() -> None:
    assert points(schedule(Triangular(0, 1, 2), 1).axes[0].lines[0]) == ([0], [0])


def test_the_error_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-lth\[plots\]'"):
        schedule(Triangular(0, 1, 2), 4)
