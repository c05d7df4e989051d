"""Figure of a schedule before training; needs ``lightning-lth[plots]``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_lth._figures import new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from lightning_lth.learning_rate.cycles import Cycle

MOST_POINTS = 10_000  # of longer schedules, that many steps at even distances are shown


def schedule(cycle: Cycle, num_steps: int, *, title: str = "") -> Figure:
    """Learning rate over optimizer steps, and below it the momentum if the cycle has one.

    Args:
        cycle: Tells both for each step; a momentum of None leaves a gap.
        num_steps: How many steps to show, from step 0; at least 1.
        title: Above the figure.

    Returns:
        A figure that pyplot does not know of; ``figure.savefig(path)`` writes it, and
        ``figure.axes[0].set_yscale("log")`` shows small rates.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no steps to show.

    Examples:
        >>> from lightning_lth.learning_rate.cycles import Triangular
        >>> figure = schedule(Triangular(0.001, 0.006, 2000), 8000)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['learning rate']

    Source:
        Smith 2015, arXiv:1506.01186: figure 2.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}. Show a whole cycle.")
    steps = _steps(num_steps)
    curves: dict[str, Sequence[float]] = {"learning rate": [cycle.rate(step) for step in steps]}
    momenta = [cycle.momentum(step) for step in steps]
    if any(momentum is not None for momentum in momenta):
        curves["momentum"] = [math.nan if momentum is None else momentum for momentum in momenta]
    figure = new_figure(height=1.6 + 2.4 * len(curves))
    figure.suptitle(title)
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (label, values) in zip(panels, curves.items(), strict=True):
        axes.plot(steps, values)
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
    panels[-1].set_xlabel("optimizer step")
    return figure


def _steps(num_steps: int) -> Sequence[int]:
    if num_steps <= MOST_POINTS:
        return range(num_steps)
    return [i * (num_steps - 1) // (MOST_POINTS - 1) for i in range(MOST_POINTS)]
