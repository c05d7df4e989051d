"""New figures; needs ``lightning-lth[plots]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """An empty figure that pyplot does not know of.

    Args:
        width: In inches.
        height: Likewise.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'lightning-lth[plots]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def new_axes(title: str) -> tuple[Figure, Axes]:
    """Such a figure with one panel, and its panel.

    Args:
        title: Above the panel.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure()
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes
