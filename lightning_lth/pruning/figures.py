"""Figures of a history, in the form of the papers; needs ``lightning-lth[plots]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lth._figures import new_axes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_lth.pruning.history import History


MOST_NAMES = 8  # in a legend


def against_density(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, ylabel: str, title: str = ""
) -> Figure:
    """Curves over the share of weights remaining: logarithmic, from dense on the left to sparse.

    Args:
        curves: Label to points, each a density in (0, 1] and a value.
        ylabel: What the values are.
        title: Above the figure.

    Returns:
        A figure that pyplot does not know of; ``figure.savefig(path)`` writes it.

    Raises:
        ImportError: If matplotlib is not installed.

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635: figure 4 and its kin.
    """
    figure, axes = new_axes(title)
    for label, points in curves.items():
        densities, values = zip(*points, strict=True)
        axes.plot([100 * density for density in densities], values, marker="o", label=label)
    style_density_axis(axes)
    axes.set_ylabel(ylabel)
    axes.legend()
    return figure


def best_value(history: History) -> Figure:
    """Best monitored value of every round against the share of weights remaining."""
    points = [(r.density, r.best_value) for r in history if r.best_value is not None]
    monitor = next(r.monitor for r in history if r.monitor is not None)
    return against_density({monitor: points}, ylabel=f"best {monitor} of the round")


def layer_densities(history: History) -> Figure:
    """Share of surviving weights by layer and round, the first layers dark; a legend of some."""
    figure, axes = new_axes("")
    from matplotlib import colormaps

    names, rounds = list(history[0].layer_densities), [record.round for record in history]
    named = {round(i * (len(names) - 1) / (MOST_NAMES - 1)) for i in range(MOST_NAMES)}
    for place, name in enumerate(names):
        values = [100 * record.layer_densities[name] for record in history]
        color = colormaps["viridis"](0.88 * place / max(len(names) - 1, 1))
        label = name if place in named else f"_{name}"  # which hides it
        axes.plot(rounds, values, marker="o", color=color, label=label)
    axes.set(
        xlabel="round", ylabel="weights remaining in the layer (%)", yscale="symlog", ylim=(0, 110)
    )
    axes.legend(fontsize="small")
    axes.grid(visible=True, alpha=0.3)
    return figure


def style_density_axis(axes: Axes) -> None:
    """Make the horizontal axis that of the papers; call it once, when all points are drawn.

    Args:
        axes: Its values are percentages of weights remaining. The axis becomes logarithmic, with
            100 % on the left.
    """
    axes.set(xlabel="weights remaining (%)", xscale="log")
    ticks = [
        tick
        for tick in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)
        if tick >= axes.get_xlim()[0] * 0.9
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(visible=True, alpha=0.3)
