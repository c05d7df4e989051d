"""The figure shows the numbers of the result."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from lightning_lth.learning_rate import figures
from lightning_lth.learning_rate.curves import Curve
from lightning_lth.learning_rate.range_test import RangeTest


def result(*last: float) -> RangeTest:
    """Falls from 3 to 1, and ends as given."""
    values = [10.0 ** (i / 10 - 6) for i in range(60 + len(last))]
    losses = [3 - 2 / (1 + 0.001 / value) for value in values[:60]]
    return RangeTest.of(Curve("lr", tuple(values), (*losses, *last)), "steep")


def test_losses_and_suggestions(tmp_path: Path) -> None:
    tested = result()
    figure = figures.range_test(tested, title="A test")
    (axes,) = figure.axes
    measured, smoothed, *marks = axes.lines
    assert tuple(measured.get_ydata()) == tested.curve.losses
    assert tuple(smoothed.get_ydata()) == tested.curve.smoothed()
    assert measured.get_alpha() < 1  # type: ignore[operator]
    assert tuple(smoothed.get_xdata()) == tested.curve.values
    found = {rule: one.value for rule, one in tested.suggestions.items() if one.value}
    assert [mark.get_xdata()[0] for mark in marks] == list(found.values())  # type: ignore[index]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert f"steep {found['steep']:.2g} (chosen)" in labels
    assert f"valley {found['valley']:.2g}" in labels
    assert f"range {tested.range.base:.2g} to {tested.range.max:.2g}" in labels
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_title()) == ("log", "lr", "A test")
    figure.savefig(tmp_path / "figure.png")  # warnings are errors
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("last", [(1e3, 1e30), (50.0, math.nan), (math.inf,)])
def test_divergence_does_not_flatten_the_rest(last: tuple[float, ...], tmp_path: Path) -> None:
    figure = figures.range_test(result(*last))
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < 1.1  # the lowest measured loss is seen
    assert 3 < high < 5
    figure.savefig(tmp_path / "figure.png")


def test_one_very_low_loss_does_not_flatten_the_rest() -> None:
    values = [10.0 ** (i / 10 - 6) for i in range(60)]
    losses = [3 - 2 / (1 + 0.001 / value) for value in values]
    losses[40] = -20.0
    tested = RangeTest.of(Curve("lr", tuple(values), tuple(losses)), "valley")
    low, high = figures.range_test(tested).axes[0].get_ylim()
    assert -3 < low < 2 < high


def test_what_is_not_suggested_is_not_marked() -> None:
    curve = Curve("lr", tuple(range(1, 41)), tuple(40.0 - i for i in range(40)))
    tested = RangeTest.of(curve, "valley")
    assert tested.suggestions["slide"].value is None
    legend = figures.range_test(tested).axes[0].get_legend()
    labels = [text.get_text().split()[0] for text in legend.get_texts()]  # type: ignore[union-attr]
    assert labels == ["measured", "smoothed", "range", "valley", "steep", "minimum"]


def test_a_loss_that_only_rises_is_shown_whole() -> None:
    curve = Curve("lr", (0.01, 0.1, 1.0), (1.0, 5.0, 9.0))
    low, high = figures.range_test(RangeTest.of(curve, "valley")).axes[0].get_ylim()
    assert low < 1
    assert high > max(curve.smoothed())


@pytest.mark.parametrize(
    ("values", "scale"),
    [((0.5, 0.8, 0.9), "linear"), ((0.0, 1.0), "linear"), ((1e-5, 1e-4, 1e-3), "log")],
)
def test_values_over_a_decade_are_on_a_logarithmic_axis(
    values: tuple[float, ...], scale: str
) -> None:
    curve = Curve("momentum", values, tuple(values))
    axes = figures.range_test(RangeTest.of(curve, "lowest")).axes[0]
    assert (axes.get_xscale(), axes.get_xlabel()) == (scale, "momentum")


def test_nothing_to_show(tmp_path: Path) -> None:
    tested = RangeTest.of(Curve("lr", (0.1,), (math.nan,)), "valley")
    figures.range_test(tested).savefig(tmp_path / "figure.png")


def test_the_error_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-lth\[plots\]'"):
        figures.range_test(result())
