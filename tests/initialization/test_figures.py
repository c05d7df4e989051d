"""Figures show the numbers of the reports."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from lightning_lth.initialization.figures import MOST_NAMES, signal_propagation
from lightning_lth.initialization.signal import LayerSignal, SignalReport


def report(*stds: tuple[float, float | None], name: str = "layer") -> SignalReport:
    rows = [
        LayerSignal(f"{name}{i}", "Linear", 0.0, activation, activation, 0.0, gradient)
        for i, (activation, gradient) in enumerate(stds)
    ]
    return SignalReport(tuple(rows))


def test_two_panels_with_a_curve_for_each_report() -> None:
    reports = {"he": report((1.0, 0.5), (2.0, 0.25)), "xavier": report((3.0, 4.0), (5.0, 6.0))}
    figure = signal_propagation(reports, title="Two schemes")
    upper, lower = figure.axes
    assert [list(line.get_ydata()) for line in upper.lines] == [[1, 2], [3, 5]]
    assert [list(line.get_ydata()) for line in lower.lines] == [[0.5, 0.25], [4, 6]]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["he", "xavier"]
    assert figure.get_suptitle() == "Two schemes"
    assert upper.lines[1].get_color() == lower.lines[1].get_color() != upper.lines[0].get_color()


def test_layers_are_named_if_all_reports_have_the_same() -> None:
    same = {"a": report((1.0, 1.0), (1.0, 1.0)), "b": report((2.0, 2.0), (2.0, 2.0))}
    lower = signal_propagation(same).axes[1]
    assert [label.get_text() for label in lower.get_xticklabels()] == ["layer0", "layer1"]
    other = same | {"c": report((3.0, 3.0), name="another")}
    assert signal_propagation(other).axes[1].get_xlabel() == "layer"
    many = {"a": report(*[(1.0, 1.0)] * (MOST_NAMES + 1))}
    assert signal_propagation(many).axes[1].get_xlabel() == "layer"


def test_missing_values_and_zeros_are_gaps(tmp_path: Path) -> None:
    figure = signal_propagation({"a": report((1.0, None), (0.0, 1.0), (2.0, 0.0))})
    values = [line.get_ydata() for axes in figure.axes for line in axes.lines]
    assert [[math.isnan(y) for y in ys] for ys in values] == [  # type: ignore[union-attr]
        [False, True, False],
        [True, False, True],
    ]
    figure.savefig(tmp_path / "figure.png")  # warnings are errors
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_without_gradients(tmp_path: Path) -> None:
    signal_propagation({"a": report((1.0, None))}).savefig(tmp_path / "figure.png")


def test_there_must_be_a_report() -> None:
    with pytest.raises(ValueError, match="`reports` must hold at least one report, got none"):
        signal_propagation({})


def test_the_error_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-lth\[plots\]'"):
        signal_propagation({"a": report((1.0, 1.0))})
