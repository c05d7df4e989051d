"""What the figures of a study share: style, colours, panels, legends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from pandas import Series  # type: ignore[import-untyped]

COLUMN_INCHES: Final = 3.5  # the width of a column of a paper
PAGE_INCHES: Final = 7.2
STYLE: Final[Any] = {  # of matplotlib, whose types name every key
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.formatter.useoffset": False,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "errorbar.capsize": 1.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.title_fontsize": 7.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.6,
    "figure.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
# Okabe & Ito 2008, told apart by the colour-blind, without yellow, which is too light for lines.
_COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#808080"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINE_STYLES = ("-", "--", ":")  # the next for every eight arms


def arm_style(index: int) -> dict[str, Any]:
    """Colour, marker and line style of an arm, by its place among the arms."""
    return {
        "color": _COLORS[index % len(_COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINE_STYLES[index // len(_COLORS) % len(_LINE_STYLES)],
    }


def sequence_colors(count: int) -> list[Any]:
    """Colours of things in an order, from dark to light, all dark enough for lines."""
    return [colormaps["viridis"](0.88 * i / max(count - 1, 1)) for i in range(count)]


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the values, evenly spread, with the first and the last."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[place] for place in places]


def listed(values: Iterable[float], *, digits: int) -> str:
    """Each number once, with so many digits.

    Examples:
        >>> listed([0.5, 0.25, 0.25004], digits=3)
        '0.5 / 0.25'
    """
    return " / ".join(dict.fromkeys(f"{value:.{digits}g}" for value in values))


def new_panels(
    titles: Sequence[str], *, xlabel: str, ylabel: str
) -> tuple[Figure, dict[str, Axes]]:
    """A figure with one panel by title, three in a row, with the same axes.

    Args:
        titles: Above the panels. Without any, there is one panel without a title.
        xlabel: Below the lowest panels.
        ylabel: On the left of the figure.

    Returns:
        The figure, and title to panel.
    """
    count = max(1, len(titles))
    num_columns = min(3, count)
    num_rows = math.ceil(count / num_columns)
    width = COLUMN_INCHES if num_columns == 1 else PAGE_INCHES
    figure = Figure(figsize=(width, 0.55 + 1.7 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for i, axes in enumerate(grid):
        axes.grid(visible=True, alpha=0.3)
        if i + num_columns >= count:  # nothing below
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
        if i >= count:
            axes.remove()
    figure.supylabel(ylabel, parse_math=False)
    panels = dict(zip(titles, grid, strict=False))
    for title, axes in panels.items():
        axes.set_title(title, parse_math=False)
    return figure, panels


def scale_densities(axes: Axes, percentages: Series) -> None:
    """Make the vertical axis logarithmic, with 0 below if it occurs."""
    low = percentages[percentages > 0].min()
    ticks = [tick for tick in (100, 30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01) if tick >= low / 1.3]
    if (percentages > 0).all():
        axes.set(yscale="log", ylim=(low / 1.3, 130))
    else:
        axes.set_yscale("symlog", linthresh=low)
        axes.set_ylim(-low / 5, 130)
        ticks.append(0)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def add_legend(figure: Figure, handles: Mapping[str, Artist], *, title: str | None = None) -> None:
    """Below the axes, in as many columns as fit; the figure grows by its rows.

    Args:
        figure: Gets the legend.
        handles: Name to line; if there are none, there is no legend.
        title: Above the names.
    """
    if not handles:
        return
    inches = 0.45 + 0.075 * max(map(len, handles))
    num_columns = max(1, min(len(handles), int(figure.get_figwidth() / inches)))
    num_rows = math.ceil(len(handles) / num_columns) + (title is not None)
    figure.set_figheight(figure.get_figheight() + 0.16 * num_rows)
    legend = figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=num_columns,
        title=title,
        handlelength=1.8,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def note_if_empty(figure: Figure, *, is_empty: bool) -> Figure:
    """The figure; if it shows nothing, it says so."""
    if is_empty:
        axes = figure.axes[0]
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    return figure
