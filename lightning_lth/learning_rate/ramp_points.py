"""The part of a ramp's curve that can be read, or why there is none."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import final

from lightning_lth.learning_rate.curves import DEFAULT_SMOOTHING, Curve

MIN_POINTS = 10
SKIPPED_AT_START, SKIPPED_AT_END = 0.1, 0.05  # shares; 10 and 5 of 100 points, as in fastai
MIN_FALL = 0.7  # times the noise; of flat noise with 100 points, 5 % fall by more
ROUNDING = 1e-9  # relative; smaller falls come from floating point
MEDIAN_OF_HALF_NORMAL = 0.6745  # in standard deviations


@final
@dataclass(frozen=True)
class Points:
    """The finite points of a curve without its ends, the losses smoothed."""

    indices: tuple[int, ...]
    values: tuple[float, ...]
    losses: tuple[float, ...]


def points_of(curve: Curve, smoothing: float = DEFAULT_SMOOTHING) -> Points:
    """What can be read: not the first losses, of which an average says little, nor the last."""
    finite = [i for i, loss in enumerate(curve.losses) if math.isfinite(loss)]
    start = int(len(finite) * SKIPPED_AT_START)
    kept = finite[start : len(finite) - int(len(finite) * SKIPPED_AT_END)]
    losses = curve.smoothed(smoothing)
    return Points(tuple(kept), tuple(curve.values[i] for i in kept), tuple(losses[i] for i in kept))


def why_unfit(curve: Curve, points: Points) -> str:
    """Why no rule for ramps applies, or nothing."""
    finite = [loss for loss in curve.losses if math.isfinite(loss)]
    if len(finite) < MIN_POINTS:
        plural = "" if len(finite) == 1 else "s"
        return f"the curve has {len(finite)} finite point{plural}, fewer than {MIN_POINTS}"
    fall, noise = fall_of(points.losses), noise_of(curve)
    if fall <= ROUNDING * abs(min(points.losses) + fall):
        return "the loss never fell"
    if fall <= MIN_FALL * noise:
        return f"the loss fell by {fall:.2g}, too little for its noise of {noise:.2g}"
    return ""


def fall_of(losses: tuple[float, ...]) -> float:
    """From the highest loss before the lowest, to the lowest."""
    lowest = losses.index(min(losses))
    return max(losses[: lowest + 1]) - losses[lowest]


def noise_of(curve: Curve) -> float:
    """Standard deviation about the trend, from neighbours; the jumps of divergence hardly count."""
    finite = [loss for loss in curve.losses if math.isfinite(loss)]
    differences = [abs(b - a) for a, b in itertools.pairwise(finite)]
    return statistics.median(differences) / (MEDIAN_OF_HALF_NORMAL * math.sqrt(2))
