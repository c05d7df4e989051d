"""Pictures of what layers did over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_lth._figures import new_figure
from lightning_lth.layer_stats.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_map(table: Table, layers: Sequence[str], statistic: str) -> Figure:
    """A statistic of each layer (from top to bottom) at each step where any layer has it.

    Args:
        table: Of the statistics.
        layers: Names, in the order of the picture.
        statistic: Its name, e.g. ``"drift_mean"``.

    Returns:
        A figure that no window shows.

    Raises:
        ImportError: If matplotlib is not installed.

    Examples:
        >>> table = Table()
        >>> table.add(0, {("bn", "drift_mean"): 0.3})
        >>> heat_map(table, ["bn"], "drift_mean").axes[0].get_title()
        'drift_mean'
    """
    columns = zip(*(table.series(layer, statistic) for layer in layers), strict=True)
    known = [
        (step, column)
        for step, column in zip(table.steps, columns, strict=True)
        if not all(map(math.isnan, column))
    ]
    steps = [step for step, _ in known] or [0]
    values = [column for _, column in known] or [(math.nan,) * len(layers)]
    figure = new_figure(7, 1.5 + 0.2 * len(layers))
    axes = figure.subplots()
    image = axes.imshow(
        [*zip(*values, strict=True)],
        aspect="auto",
        interpolation="nearest",
        extent=(steps[0], max(steps[-1], steps[0] + 1), len(layers) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(layers)), layers)
    axes.set(title=statistic, xlabel="step")
    figure.colorbar(image)
    return figure
