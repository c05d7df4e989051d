"""Figures of range tests; needs ``lightning-lth[plots]``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_lth._figures import new_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_lth.learning_rate.curves import Curve
    from lightning_lth.learning_rate.range_test import RangeTest

MIN_DECADES = 1.0  # narrower ranges are drawn on a linear axis


def range_test(result: RangeTest, *, title: str = "") -> Figure:
    """Loss against the values of a range test, with what each rule suggests.

    The measured loss is faint, the smoothed one strong. The loss axis is cut not far above where
    the smoothed one falls from, as a divergence would flatten the rest. Shaded is the range for a
    cyclical schedule.

    Args:
        result: From a range test.
        title: Above the figure.

    Returns:
        A figure that pyplot does not know of; ``figure.savefig(path)`` writes it.

    Raises:
        ImportError: If matplotlib is not installed.

    Examples:
        >>> from lightning_lth.learning_rate.curves import Curve
        >>> from lightning_lth.learning_rate.range_test import RangeTest
        >>> result = RangeTest.of(Curve("lr", (0.01, 0.1, 1.0), (3.0, 2.0, 4.0)), "valley")
        >>> range_test(result).axes[0].get_xlabel()
        'lr'

    Source:
        Smith 2017, arXiv:1506.01186: figure 3, there with the accuracy.
    """
    figure, axes = new_axes(title)
    curve = result.curve
    _plot_losses(axes, curve)
    if result.range.base is not None and result.range.max is not None:
        label = f"range {result.range.base:.2g} to {result.range.max:.2g}"
        axes.axvspan(result.range.base, result.range.max, color="tab:gray", alpha=0.15, label=label)
    _mark_suggestions(axes, result)
    axes.set(xlabel=curve.parameter, ylabel="loss", xscale=_scale(curve.values))
    axes.legend(fontsize="small")
    axes.grid(visible=True, alpha=0.3)
    return figure


def _plot_losses(axes: Axes, curve: Curve) -> None:
    measured = [loss if math.isfinite(loss) else math.nan for loss in curve.losses]
    smoothed = curve.smoothed()
    if curve.parameter != "lr":  # a run for each value: there is no noise from one to the next
        axes.plot(curve.values, measured, color="tab:blue", marker="o", label="measured")
        return
    axes.plot(curve.values, measured, color="tab:blue", alpha=0.35, label="measured")
    axes.plot(curve.values, smoothed, color="tab:blue", label="smoothed")
    finite = [loss for loss in smoothed if math.isfinite(loss)]
    if finite and min(finite) < max(finite):
        low, high = _loss_limits(finite, min(loss for loss in measured if loss == loss))
        if low < high:
            axes.set_ylim(low, high)


def _loss_limits(smoothed: Sequence[float], lowest_measured: float) -> tuple[float, float]:
    """Room for the fall, half as much above and as much below; above for all without a fall."""
    lowest = min(smoothed)
    start = max(smoothed[: smoothed.index(lowest) + 1])
    fall = start - lowest
    top = min(max(smoothed), start + 0.5 * fall) if fall > 0 else max(smoothed)
    bottom = max(lowest_measured, lowest - fall)
    margin = 0.05 * (top - bottom)
    return bottom - margin, top + margin


def _mark_suggestions(axes: Axes, result: RangeTest) -> None:
    for i, (rule, one) in enumerate(result.suggestions.items(), start=1):
        if one.value is None:
            continue
        chosen = rule == result.chosen.rule
        axes.axvline(
            one.value,
            color=f"C{i}",
            linestyle="-" if chosen else "--",
            label=f"{rule} {one.value:.2g}" + (" (chosen)" if chosen else ""),
        )


def _scale(values: Sequence[float]) -> str:
    return "log" if values[0] > 0 and values[-1] >= 10**MIN_DECADES * values[0] else "linear"
