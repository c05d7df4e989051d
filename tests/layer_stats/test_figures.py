"""The heat map of a statistic."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from lightning_lth.layer_stats.figures import heat_map
from lightning_lth.layer_stats.table import Table


def table() -> Table:
    table = Table()
    table.add(49, {("a", "drift_mean"): 1.0, ("b", "drift_mean"): 3.0})
    table.add(59, {("a", "train_eval_shift"): 9.0})
    table.add(99, {("a", "drift_mean"): 2.0, ("b", "drift_mean"): 4.0})
    table.add(149, {("a", "drift_mean"): 5.0})
    return table


def test_a_row_for_each_layer_and_a_column_for_each_step_that_has_it() -> None:
    figure = heat_map(table(), ["b", "a"], "drift_mean")
    axes = figure.axes[0]
    (image,) = axes.images
    shown = np.ma.filled(image.get_array().astype(float), math.nan)
    np.testing.assert_array_equal(shown, [[3.0, 4.0, math.nan], [1.0, 2.0, 5.0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    assert image.get_extent() == [49, 149, 1.5, -0.5]  # the first layer at the top
    assert (axes.get_title(), axes.get_xlabel()) == ("drift_mean", "step")
    assert len(figure.axes) == 2  # with a scale of colors


@pytest.mark.parametrize(
    ("statistic", "extent"),
    [("train_eval_shift", (59, 60)), ("nothing", (0, 1))],
    ids=["one step", "no step"],
)
def test_one_step_or_none_can_be_drawn(statistic: str, extent: tuple[int, int]) -> None:
    figure = heat_map(table(), ["a", "b"], statistic)
    assert tuple(figure.axes[0].images[0].get_extent()[:2]) == extent
    figure.canvas.draw()


def test_an_empty_table_can_be_drawn() -> None:
    heat_map(Table(), ["a"], "drift_mean").canvas.draw()


def test_more_layers_make_it_taller() -> None:
    heights = [heat_map(table(), ["a"] * n, "drift_mean").get_figheight() for n in (1, 51)]
    assert heights == pytest.approx([1.7, 11.7])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install .*lightning-lth\[plots\]"):
        heat_map(table(), ["a"], "drift_mean")
