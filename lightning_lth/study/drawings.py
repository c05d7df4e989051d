"""Which figures a study has to show, each with a caption that says what is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from lightning_lth.study import plots
from lightning_lth.study.figure_parts import listed
from lightning_lth.study.plots import MEASURES, STABILITY, summary_of
from lightning_lth.study.results import Results

SHOWN: Final = (
    *("early_stop_step", "early_stop_test_accuracy"),
    *("end_test_accuracy", "end_train_accuracy"),
)
"""Measures of ``rounds`` that get a figure and a table, as those of ``stability`` do."""


@final
@dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    Args:
        name: Of its files, without an ending.
        figure: The picture.
        caption: What is drawn.
    """

    name: str
    figure: Figure
    caption: str


def drawings_of(results: Results) -> Iterator[Drawing]:
    """All figures of a study that have something to show."""
    shown, stability = (
        [measure for measure in measures if is_measured(results, measure)]
        for measures in (SHOWN, STABILITY)
    )
    yield from (_by_density(results, measure) for measure in shown)
    yield from (_side_by_side(results, measure) for measure in shown[:2])
    yield from (_by_density(results, measure) for measure in stability)
    for name, metric in _metrics(results.curves).items():
        num_seeds = results.curves.groupby(["arm", "round"])["seed"].nunique()
        caption = (
            f"{metric} during training, by share of weights remaining: mean of "
            f"{_trials(num_seeds)}; bands from the least to the largest training. "
            "The first tenth may lie outside."
        )
        yield Drawing(f"curves_{name}", plots.training_curves(results, metric), caption)
    if len(results.layers):
        caption = (
            "Share of weights that each layer keeps, by round: mean over all trainings. "
            "Colours run from the first layer to the last."
        )
        yield Drawing("layer_densities", plots.layer_densities(results), caption)


def _by_density(results: Results, measure: str) -> Drawing:
    summary = summary_of(results, measure)
    if summary["round"].nunique() == 1 and measure in STABILITY:
        return _side_by_side(results, measure)
    each = "pair of trainings" if measure in STABILITY else "training"
    caption = (
        f"{sentence_case(MEASURES[measure])} by share of weights remaining: mean of "
        f"{_trials(summary['num_trials'])}; bars from the least to the largest {each}."
    )
    return Drawing(measure, plots.against_density(results, measure), caption)


def _side_by_side(results: Results, measure: str) -> Drawing:
    """At the sparsest of the rounds that the most arms have."""
    summary = summary_of(results, measure)
    num_arms = summary.groupby("round")["arm"].nunique()
    round = int(num_arms[num_arms == num_arms.max()].index.max())
    there = summary[summary["round"] == round]
    caption = (
        f"{sentence_case(MEASURES[measure])} in round {round}, with "
        f"{listed(100 * there['density'], digits=3)} % of the weights: a dot for each trial "
        f"({_trials(there['num_trials'])}), a bar at their mean."
    )
    name = f"{measure}_by_arm"
    return Drawing(name, plots.arms_at_round(results, measure, round), caption)


def _metrics(curves: pd.DataFrame) -> dict[str, str]:
    """Name for files to logged metric, of those with numbers; no two have the same name."""
    keys = ("arm", "seed", "draw", "round", "density", "step")
    names: dict[str, str] = {}
    for metric in curves.columns.difference(keys, sort=False):
        if np.isfinite(curves[metric]).any():
            name = re.sub(r"[^\w.-]+", "_", metric)
            while name in names:
                name += "_"
            names[name] = metric
    return names


def is_measured(results: Results, measure: str) -> bool:
    """Whether there is at least one number."""
    frame = results.stability if measure in STABILITY else results.rounds
    return measure in frame and bool(np.isfinite(frame[measure]).any())


def plural(count: int, noun: str) -> str:
    """For example ``1 trial`` and ``1,000 trials``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def sentence_case(text: str) -> str:
    """The text with a capital first."""
    return text[0].upper() + text[1:]


def _trials(counts: pd.Series) -> str:
    """For example ``5 trials`` and ``3 to 5 trials``."""
    low, high = int(counts.min()), int(counts.max())
    return plural(high, "trial") if low == high else f"{low} to {plural(high, 'trial')}"
