"""Figures of how signals fare in a network; needs ``lightning-lth[plots]``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_lth._figures import new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_lth.initialization.signal import SignalReport

MOST_NAMES = 40  # more layers are numbered


def signal_propagation(reports: Mapping[str, SignalReport], *, title: str = "") -> Figure:
    """Standard deviation of activations (above) and gradients (below) by layer, logarithmic.

    Args:
        reports: Label to report; each is one curve in both panels. A value that is missing, or 0,
            leaves a gap.
        title: Above the figure.

    Returns:
        A figure that pyplot does not know of; ``figure.savefig(path)`` writes it.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no reports.

    Examples:
        >>> import torch
        >>> from lightning_lth.initialization import signal
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> report = signal.signal_propagation(module, torch.ones(4, 2))
        >>> [axes.get_ylabel() for axes in signal_propagation({"default": report}).axes]
        ['std of activations', 'std of gradients']

    Source:
        Glorot & Bengio 2010: figures 6 and 7 show the same as histograms.
    """
    if not reports:
        raise ValueError("`reports` must hold at least one report, got none.")
    figure, (activations, gradients) = _new_figure(title)
    of_activations = {k: [row.activation_std for row in report] for k, report in reports.items()}
    of_gradients = {k: [row.gradient_std for row in report] for k, report in reports.items()}
    _plot(activations, of_activations, ylabel="std of activations")
    _plot(gradients, of_gradients, ylabel="std of gradients")
    figure.legend(handles=activations.lines, loc="outside right upper", fontsize="small")
    _name_layers(gradients, reports)
    return figure


def _plot(axes: Axes, curves: Mapping[str, Sequence[float | None]], *, ylabel: str) -> None:
    for label, values in curves.items():
        gapped = [value or math.nan for value in values]
        axes.plot(range(1, len(values) + 1), gapped, marker="o", label=label)
    axes.set(ylabel=ylabel, yscale="log")
    axes.grid(visible=True, alpha=0.3)


def _new_figure(title: str) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = new_figure(height=6.4)
    figure.suptitle(title)
    upper, lower = figure.subplots(2, sharex=True)
    return figure, (upper, lower)


def _name_layers(axes: Axes, reports: Mapping[str, SignalReport]) -> None:
    """Names on the axis if all reports have the same, else the position."""
    names = {tuple(row.name for row in report) for report in reports.values()}
    shared = names.pop()
    if names or len(shared) > MOST_NAMES:
        axes.set(xlabel="layer")
    else:
        axes.set_xticks(range(1, len(shared) + 1), shared, rotation=90, fontsize="small")
