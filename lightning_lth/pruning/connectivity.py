"""How far apart two trained networks are, and what lies on the line between them.

Source:
    Frankle, Dziugaite, Roy & Carbin 2019, "Stabilizing the Lottery Ticket Hypothesis",
    arXiv:1903.01611, section 3 (distances and angles). Frankle, Dziugaite, Roy & Carbin 2020,
    "Linear Mode Connectivity and the Lottery Ticket Hypothesis", arXiv:1912.05671, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_lth.pruning.masks import Masks


def l2_distance(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], masks: Masks | None = None
) -> float:
    """The Euclidean distance of two networks, all their weights taken as one vector.

    Args:
        first: Name to weights.
        second: Likewise, with the same shapes.
        masks: If given, only their parameters count, and of those only the survivors. Otherwise
            all floating-point tensors do, and both must have the same names.

    Raises:
        ValueError: If names or shapes differ.

    Examples:
        >>> first, second = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}
        >>> l2_distance(first, second)
        5.0
    """
    # The same infinity in both, as in the buffer of a causal mask, is no distance.
    pairs = _pairs(first, second, masks)
    return math.sqrt(sum(_squared((a - b).masked_fill_(a == b, 0)) for a, b in pairs))


def angle_degrees(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], masks: Masks | None = None
) -> float:
    """The angle between two networks as vectors of weights, in degrees from 0 to 180.

    Args:
        first: As for ``l2_distance``.
        second: As for ``l2_distance``.
        masks: As for ``l2_distance``.

    Returns:
        The angle; NaN if one of the vectors is 0.

    Raises:
        ValueError: If names or shapes differ.

    Examples:
        >>> angle_degrees({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])})
        90.0
    """
    pairs = list(_pairs(first, second, masks))
    length = math.sqrt(sum(_squared(a) for a, _ in pairs))
    other_length = math.sqrt(sum(_squared(b) for _, b in pairs))
    if length == 0 or other_length == 0:
        return math.nan
    # Unlike the arc cosine, exact for angles near 0 and 180.
    apart = sum(_squared(a / length - b / other_length) for a, b in pairs)
    along = sum(_squared(a / length + b / other_length) for a, b in pairs)
    return math.degrees(2 * math.atan2(math.sqrt(apart), math.sqrt(along)))


def interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """``alpha * first + (1 - alpha) * second``: a network on the line through two others.

    Args:
        first: Name to tensor: parameters and, if there are any, buffers.
        second: The same names and shapes.
        alpha: 1 gives ``first``, 0 gives ``second``.

    Returns:
        New tensors on the devices of ``first``. What is not floating-point, as the
        ``num_batches_tracked`` of BatchNorm, is copied from ``first``.

    Raises:
        ValueError: If names or shapes differ.

    Examples:
        >>> interpolate({"w": torch.tensor([4.0])}, {"w": torch.tensor([0.0])}, alpha=0.25)
        {'w': tensor([1.])}

    Note:
        The running statistics of BatchNorm are interpolated like weights. Those of the network in
        between are others: measure them anew before its error, or keep this in mind.
    """
    _check_same(first, second, set(first) | set(second))
    return {name: _between(tensor, second[name], alpha) for name, tensor in first.items()}


def error_barrier(errors: Sequence[float]) -> float:
    """How much worse the worst point of a line is than its ends on average: the instability.

    Args:
        errors: Errors at evenly spaced points of the line, from one end to the other.

    Returns:
        The largest error less the mean of the first and the last; NaN if an error is.

    Raises:
        ValueError: If there are fewer than two errors.

    Examples:
        >>> error_barrier([0.25, 0.75, 0.5])
        0.375

    Note:
        The source calls networks stable if this is below 0.02, with 30 points.
    """
    if len(errors) < 2:
        raise ValueError(f"`errors` must hold both ends of the line, got {list(errors)}.")
    if any(math.isnan(error) for error in errors):
        return math.nan
    return max(errors) - fmean([errors[0], errors[-1]])


def _pairs(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], masks: Masks | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers that count, as flat ``float64`` tensors on the CPU."""
    _check_same(first, second, set(first) | set(second) if masks is None else set(masks))
    if masks is None:
        names = [name for name, tensor in first.items() if tensor.is_floating_point()]
        yield from ((_flat(first[name]), _flat(second[name])) for name in names)
        return
    masks.check_matches(first)
    for name, mask in masks.items():
        where = mask.flatten().cpu()
        yield _flat(first[name])[where], _flat(second[name])[where]


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64).flatten()


def _squared(vector: Tensor) -> float:
    return float(vector @ vector)


def _between(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    first = first.detach()
    if not first.is_floating_point():
        return first.clone()
    second = second.detach().to(first.device)
    # Where both are the same infinity, the sum would be NaN at the ends of the line.
    return torch.where(first == second, first, alpha * first + (1 - alpha) * second)


def _check_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: set[str]) -> None:
    for name in sorted(names):
        if name not in first or name not in second:
            lacking = "first" if name not in first else "second"
            raise ValueError(f"Both networks must have {name!r}, `{lacking}` has not.")
        if first[name].shape != second[name].shape:
            raise ValueError(
                f"{name!r} must have one shape in both networks, got "
                f"{tuple(first[name].shape)} and {tuple(second[name].shape)}."
            )
