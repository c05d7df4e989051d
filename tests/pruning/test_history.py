"""Records and their table."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from lightning_lth import History, RoundRecord
from lightning_lth.pruning.figures import against_density, best_value, layer_densities
from lightning_lth.pruning.history import BestValue


def history() -> History:
    dense = RoundRecord(0, 1.0, {"a": 1.0, "b": 1.0}, 10, 2, "max_epochs", metrics={"acc": 0.5})
    sparse = RoundRecord(
        1, 0.5, {"a": 0.25, "b": 1.0}, 8, 1, "early_stopping", "loss", 0.25, 4, {"loss": 0.25}
    )
    return History([dense, sparse])


def test_rows_and_csv(tmp_path: Path) -> None:
    path = history().to_csv(tmp_path / "deep" / "history.csv")
    with path.open() as file:
        first, second = csv.DictReader(file)
    assert (first["density/a"], first["best_value"], first["end/acc"]) == ("1.0", "", "0.5")
    assert (second["best/loss"], second["best_step"], second["end/acc"]) == ("0.25", "4", "")
    assert [p.name for p in path.parent.iterdir()] == ["history.csv"]  # no temporary file


def test_a_history_survives_its_state_dict() -> None:
    assert History.from_state_dict(history().state_dict()).rows() == history().rows()
    assert history()[1:][0] == history()[1]


@pytest.mark.parametrize(
    ("value", "mode", "expected"),
    [(1.0, "min", False), (0.9, "min", True), (1.0, "max", False), (1.1, "max", True)],
)
def test_the_first_of_equals_stays_the_best(value: float, mode: str, expected: bool) -> None:
    assert BestValue.is_better(value, BestValue("loss", 1.0, 0, {}), mode) is expected


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_never_the_best(mode: str) -> None:
    assert not BestValue.is_better(math.nan, None, mode)
    assert not BestValue.is_better(math.nan, BestValue("loss", 1.0, 0, {}), mode)


def test_figures_show_percent_remaining_from_dense_to_sparse() -> None:
    axes = best_value(history()).axes[0]
    assert list(axes.lines[0].get_xdata()) == [50.0]
    figure = against_density({"ticket": [(1.0, 90.0), (0.1, 95.0)]}, ylabel="accuracy")
    axes = figure.axes[0]
    assert list(axes.lines[0].get_xdata()) == [100.0, 10.0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    lines = {
        line.get_label(): list(line.get_ydata())
        for line in layer_densities(history()).axes[0].lines
    }
    assert lines == {"a": [100.0, 25.0], "b": [100.0, 100.0]}


def test_the_legend_of_many_layers_is_short() -> None:
    layers = {f"layer_{index}": 1.0 for index in range(60)}
    record = RoundRecord(0, 1.0, layers, 10, 1, "max_epochs")
    figure = layer_densities(History([record]))
    figure.draw_without_rendering()  # matplotlib warns where a legend leaves no space
    axes = figure.axes[0]
    assert len(axes.lines) == 60
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert (shown[0], shown[-1], len(shown)) == ("layer_0", "layer_59", 8)
