"""How the statistics of layers are shown in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lightning_lth.callbacks import _tensorboard
from lightning_lth.callbacks._tensorboard import Band, Chart, Lines, tag_pattern

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_lth.layer_stats.observer import LayerObserver
    from lightning_lth.layer_stats.table import Table

_BATCH_NORM = {
    "drift_mean": "Batch mean against running mean",
    "drift_logvar": "Batch variance against running variance",
    "step_shift": "Shift of the input between logged steps",
    "train_eval_shift": "Shift of the variance in evaluation",
    "train_eval_ratio": "Variance in evaluation over running variance",
    "neg_beta": "Share of negative beta",
    "gamma_abs": "Mean size of gamma",
    "gamma_zero": "Share of small gamma",
    "dead": "Share of dead channels",
}
_DROPOUT = {"keep": "Share of values kept", "var_shift": "Variance in evaluation against training"}
_ACTIVATIONS = {"input_mean": "Mean of the input", "input_std": "Spread of the input"}
_SUMMARIZED = ("drift_mean", "drift_logvar", "step_shift", "train_eval_shift", "neg_beta")
_SCALES = ("gamma_abs", "gamma_zero")  # change slowly, and would be a quarter of the events
_SHOWN = {*_BATCH_NORM, *_DROPOUT, *_ACTIVATIONS} - {*_SCALES}  # the others are in the table


def add(trainer: Trainer, observer: LayerObserver) -> None:
    """Add the charts of the layers that there are to the Custom Scalars page."""
    groups = set(observer.groups.values())
    if "batch_norm" in groups:
        bands = [Band(_BATCH_NORM[name], f"summary/{name}") for name in _SUMMARIZED]
        _tensorboard.add_charts(trainer, "Summary", bands)
        _tensorboard.add_charts(trainer, "BatchNorm", _lines("batch_norm", _BATCH_NORM))
    if "dropout" in groups:
        _tensorboard.add_charts(trainer, "Dropout", _lines("dropout", _DROPOUT))


def scalars(observer: LayerObserver, numbers: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Tags to values, the summary over all BatchNorm layers among them."""
    shown = {
        f"{observer.groups[layer]}/{layer}/{statistic}": value
        for (layer, statistic), value in numbers.items()
        if statistic in _SHOWN
    }
    return shown | _summary(observer, numbers)


def scales(observer: LayerObserver, table: Table) -> dict[str, float]:
    """Tags to the latest sizes of the scales."""
    return {
        f"{observer.groups[layer]}/{layer}/{name}": statistics[name]
        for layer, statistics in table.latest.items()
        for name in _SCALES
        if name in statistics and layer in observer.groups
    }


def add_figures(trainer: Trainer, table: Table, observer: LayerObserver) -> None:
    """Draw the drift of every BatchNorm layer over the steps."""
    layers = [name for name, group in observer.groups.items() if group == "batch_norm"]
    if not layers or len(table) == 0:
        return
    from lightning_lth.layer_stats.figures import heat_map

    for statistic in ("drift_mean", "drift_logvar"):
        draw = partial(heat_map, table, layers, statistic)
        _tensorboard.add_figure(trainer, f"batch_norm/{statistic}", draw)


def _lines(group: str, titles: Mapping[str, str]) -> list[Chart]:
    return [Lines(title, (tag_pattern(group, name),)) for name, title in titles.items()]


def _summary(observer: LayerObserver, numbers: Mapping[tuple[str, str], float]) -> dict[str, float]:
    summary = {}
    for statistic in _SUMMARIZED:
        values = [
            value
            for (layer, name), value in numbers.items()
            if name == statistic and observer.groups[layer] == "batch_norm"
        ]
        if values:
            with np.errstate(invalid="ignore"):  # between infinities
                low, median, high = np.percentile(values, (5, 50, 95)).tolist()
            summary[f"summary/{statistic}/median"] = median
            summary[f"summary/{statistic}/p05"] = low
            summary[f"summary/{statistic}/p95"] = high
    return summary
