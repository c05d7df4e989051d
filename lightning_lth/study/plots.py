"""Figures of a study, in the form of the papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from lightning_lth.pruning.figures import style_density_axis
from lightning_lth.study.figure_parts import (
    COLUMN_INCHES,
    STYLE,
    add_legend,
    arm_style,
    listed,
    new_panels,
    note_if_empty,
    scale_densities,
    sequence_colors,
    spread,
)
from lightning_lth.study.statistics import check_measure, summarize, trials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from pandas import DataFrame  # type: ignore[import-untyped]

    from lightning_lth.study.results import Results

MEASURES: Final[Mapping[str, str]] = {
    "early_stop_step": "early-stop iteration (steps)",
    "early_stop_value": "monitored metric at early stop",
    "early_stop_train_accuracy": "training accuracy at early stop",
    "early_stop_validation_accuracy": "validation accuracy at early stop",
    "early_stop_test_accuracy": "test accuracy at early stop",
    "end_train_accuracy": "training accuracy at the end",
    "end_validation_accuracy": "validation accuracy at the end",
    "end_test_accuracy": "test accuracy at the end",
    "steps": "length of training (steps)",
    "barrier": "error barrier (share of examples)",
    "l2_distance": "L2 distance between the two ends",
}
"""Measures of ``rounds``, then of ``stability``, in plain words."""
STABILITY: Final = ("barrier", "l2_distance")  # those of ``stability``
STEPS: Final = ("early_stop_step", "steps")  # those that count steps
MOST_DENSITIES = 5  # of training curves, as far as all arms have them
MOST_LAYERS = 8  # in a legend

_SHIFT = 0.9  # points between the error bars of neighbouring arms


@rc_context(STYLE)
def against_density(results: Results, measure: str) -> Figure:
    """Mean over the trials, with bars from the least to the largest training, by weights remaining.

    Args:
        results: Of the study.
        measure: A column of ``rounds``, or one of `STABILITY`. Where it is NaN, there is no point.

    Returns:
        A figure that pyplot does not know of. The arms are drawn next to each other, up to a few
        points beside their density, so that all bars can be seen.

    Raises:
        ValueError: If nothing that was measured has this name.

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635: figures 4 and 5.
    """
    figure = Figure(figsize=(COLUMN_INCHES, 2.4), layout="constrained")
    axes = figure.subplots()
    arms, summary = arm_names(results), summary_of(results, measure)
    handles = {}
    for i, arm in enumerate(arms):
        rows = summary[summary["arm"] == arm]
        if len(rows):
            handles[arm] = _draw_arm(axes, rows, i, shift=_SHIFT * (i - (len(arms) - 1) / 2))
    axes.set_ylabel(MEASURES.get(measure, measure), parse_math=False)
    _format_steps(axes, measure, "y")
    if handles:
        axes.set_xlim(summary["density"].min() * 100 / 1.15, 100 * 1.15)
    style_density_axis(axes)
    add_legend(figure, handles)
    return note_if_empty(figure, is_empty=not handles)


@rc_context(STYLE)
def training_curves(results: Results, metric: str) -> Figure:
    """A metric during training, one panel by arm, one line by density.

    The line is the mean over the trials, the band reaches from the least to the largest training.
    Both end where the first training ends. The height is that of the values after the first tenth
    of training; earlier ones may lie outside.

    Args:
        results: Of the study.
        metric: A column of ``curves``.

    Returns:
        A figure with up to `MOST_DENSITIES` rounds, evenly spread, and the last round of any arm
        that has none of them.

    Raises:
        ValueError: If no metric has this name.

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635: figure 3.
    """
    curves = _finite(results.curves, metric)
    lines = _mean_and_range(curves, metric)
    arms = [arm for arm in arm_names(results) if arm in set(lines["arm"])]
    figure, panels = new_panels(arms, xlabel="step", ylabel=metric)
    rounds = _telling_rounds(lines)
    handles: dict[str, Artist] = {}
    for color, round in zip(sequence_colors(len(rounds)), rounds, strict=True):
        densities = curves[curves["round"] == round].groupby("arm")["density"].mean()
        for arm, axes in panels.items():
            rows = lines[(lines["arm"] == arm) & (lines["round"] == round)]
            if len(rows):
                marker = "o" if len(rows) == 1 else ""
                (line,) = axes.plot(rows["step"], rows["mean"], color=color, marker=marker)
                band = {"color": color, "alpha": 0.15, "linewidth": 0}
                axes.fill_between(rows["step"], rows["min"], rows["max"], **band)
                handles[f"{listed(100 * densities, digits=3)} %"] = line
    _limit_to_settled(figure.axes[0], lines)
    _format_steps(figure.axes[0], "steps", "x")
    add_legend(figure, handles, title="weights remaining")
    return note_if_empty(figure, is_empty=not handles)


@rc_context(STYLE)
def layer_densities(results: Results) -> Figure:
    """Share of weights that each layer keeps, by round, one panel by arm; mean over the trainings.

    Args:
        results: Of the study.

    Returns:
        A figure whose colours run from the first layer to the last; at most `MOST_LAYERS` of them
        are named.
    """
    means = _by_layer(results.layers)
    arms = [arm for arm in arm_names(results) if arm in set(means["arm"])]
    ylabel = "weights remaining in the layer (%)"
    figure, panels = new_panels(arms, xlabel="round of pruning", ylabel=ylabel)
    layers = list(means["layer"].unique())
    handles: dict[str, Artist] = {}
    for color, layer in zip(sequence_colors(len(layers)), layers, strict=True):
        for arm, axes in panels.items():
            rows = means[(means["arm"] == arm) & (means["layer"] == layer)]
            if len(rows):
                style = {"color": color, "marker": "o", "markersize": 2.2}
                (line,) = axes.plot(rows["round"], 100 * rows["density"], **style)
                handles[str(layer)] = line
    if handles:
        scale_densities(figure.axes[0], 100 * means["density"])
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    add_legend(figure, {layer: handles[layer] for layer in spread(list(handles), MOST_LAYERS)})
    return note_if_empty(figure, is_empty=not handles)


@rc_context(STYLE)
def arms_at_round(results: Results, measure: str, round: int) -> Figure:
    """The arms below each other at one round: a dot for every trial, a bar at their mean.

    Args:
        results: Of the study.
        measure: As for `against_density`.
        round: The round.

    Returns:
        A figure in which a seed is at the same height of every arm. Draws are averaged. A seed
        with a draw that has no value is left out, and so are arms without any.

    Raises:
        ValueError: If nothing that was measured has this name.
    """
    frame = _records(results, measure)
    all_trials = {arm: trials(frame, (arm, round), measure) for arm in arm_names(results)}
    finite = {arm: values[np.isfinite(values)] for arm, values in all_trials.items()}
    seeds = sorted(set().union(*(values.index for values in finite.values())))
    styles = {arm: arm_style(i) for i, (arm, values) in enumerate(finite.items()) if len(values)}
    figure = Figure(figsize=(COLUMN_INCHES, 0.8 + 0.3 * max(len(styles), 1)), layout="constrained")
    axes = figure.subplots()
    for i, (arm, style) in enumerate(styles.items()):
        values = finite[arm]
        heights = [i + _height(seeds.index(seed), len(seeds)) for seed in values.index]
        axes.plot(values, heights, **style | {"linestyle": "", "markersize": 3.2, "alpha": 0.75})
        axes.vlines(values.mean(), i - 0.36, i + 0.36, color=style["color"], linewidth=1.8)
    axes.set_yticks(range(len(styles)), list(styles), parse_math=False)
    axes.set_ylim(max(len(styles), 1) - 0.4, -0.6)
    axes.set_xlabel(MEASURES.get(measure, measure), parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x", alpha=0.3)
    _format_steps(axes, measure, "x")
    return note_if_empty(figure, is_empty=not styles)


def arm_names(results: Results) -> list[str]:
    """The arms in the order in which they appear in ``rounds``."""
    return [str(arm) for arm in results.rounds["arm"].unique()]


def summary_of(results: Results, measure: str) -> DataFrame:
    """As `summarize`, without what was not measured; pairs of ``stability`` count as draws.

    Raises:
        ValueError: If nothing that was measured has this name.
    """
    return _finite(summarize(_records(results, measure), measure), "mean")


def _records(results: Results, measure: str) -> DataFrame:
    """The frame that has the measure."""
    frame = results.stability if measure in STABILITY and len(results.stability) else results.rounds
    check_measure(measure, frame)
    return frame


def _finite(frame: DataFrame, measure: str) -> DataFrame:
    if len(frame) == 0:  # perhaps without columns
        return frame.reindex(columns=["arm", "seed", "draw", "round", "density", "step", measure])
    check_measure(measure, frame)
    return frame[np.isfinite(frame[measure])]


def _draw_arm(axes: Axes, rows: DataFrame, index: int, *, shift: float) -> Artist:
    """One line; the data are as in ``rows``, only the picture is moved by ``shift`` points."""
    # A mean of equal numbers may be rounded to one beside them.
    below = (rows["mean"] - rows["min"]).clip(lower=0)
    above = (rows["max"] - rows["mean"]).clip(lower=0)
    container = axes.errorbar(
        100 * rows["density"],
        rows["mean"],
        yerr=np.stack([below, above]),
        elinewidth=0.7,
        **arm_style(index),
    )
    moved = ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    for artist in container.get_children():
        artist.set_transform(axes.transData + moved)
    line: Artist = container.lines[0]
    return line


def _mean_and_range(curves: DataFrame, metric: str) -> DataFrame:
    """By arm, round and step, as far as no training has ended; the mean is that of the trials."""
    keys = ["arm", "round", "step"]
    curves = curves.drop_duplicates([*keys, "seed", "draw"])  # accumulated: the same weights twice
    at_step = curves.groupby(keys)[metric].transform("size")
    most = at_step.groupby([curves["arm"], curves["round"]]).transform("max")
    whole = curves[at_step == most]
    mean = whole.groupby([*keys, "seed"])[metric].mean().groupby(keys).mean().rename("mean")
    extremes = whole.groupby(keys)[metric].agg(["min", "max"])
    return extremes.join(mean).reset_index()


def _telling_rounds(lines: DataFrame) -> list[int]:
    """Some rounds that all arms have, or else some of all; at least one of each arm."""
    by_arm = [set(rounds) for _, rounds in lines.groupby("arm")["round"]]
    shared = set.intersection(*by_arm) if by_arm else set()
    candidates = shared if len(shared) > 1 else set().union(*by_arm)
    chosen = set(spread(sorted(candidates), MOST_DENSITIES))
    return sorted(chosen.union(max(rounds) for rounds in by_arm if not rounds & chosen))


def _limit_to_settled(axes: Axes, lines: DataFrame) -> None:
    """Axes from step 0, and as high as the values after the first tenth of training."""
    if lines.empty:
        return
    settled = lines[lines["step"] >= lines["step"].max() / 10]
    low, high = settled["min"].min(), settled["max"].max()
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, max(lines["step"].max(), 1) * 1.02)


def _by_layer(layers: DataFrame) -> DataFrame:
    """Mean density by arm, layer and round, the layers in their order."""
    if len(layers) == 0:
        return layers.reindex(columns=["arm", "layer", "round", "density"])
    return layers.groupby(["arm", "layer", "round"], sort=False)["density"].mean().reset_index()


def _format_steps(axes: Axes, measure: str, which: str) -> None:
    if measure in STEPS:
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _height(index: int, count: int) -> float:
    """Evenly between -0.22 and 0.22; the middle if there is one."""
    return 0.0 if count == 1 else -0.22 + 0.44 * index / (count - 1)
