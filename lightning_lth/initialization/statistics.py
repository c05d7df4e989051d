"""Standard deviations for reports, in less time than it took to draw the values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALL = 1 << 12  # elements; one call is faster than several
_BLOCK = 1 << 16  # elements
_MAX_BLOCKS = 16


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision, widened."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def standard_deviation(values: Tensor) -> float:
    """The standard deviation, without Bessel's correction; of a sample where values are many.

    The sample is 16 blocks of 65,536 consecutive values, evenly spread: of independent values, its
    standard deviation is off by 0.07 % (one sigma). Torch's own ``std`` of all values would take
    longer on a CPU than drawing them.

    Args:
        values: Floating-point numbers of any shape; at least one.

    Examples:
        >>> standard_deviation(torch.tensor([1.0, 3.0]))
        1.0
    """
    flat = values.detach().reshape(-1)
    if flat.device.type != "cpu":
        return float(flat.float().std(correction=0))
    if flat.dtype != torch.float32 or flat.numel() <= _SMALL:
        return float(flat.double().std(correction=0))
    total = squares = 0.0
    blocks = _blocks(flat)
    for block in blocks:
        total += float(block.sum())
        squares += float(block.dot(block))
    size = sum(map(len, blocks))
    mean = total / size
    variance = squares / size - mean**2
    if variance < 1e-3 * mean**2:  # the difference of two numbers that are almost equal
        return float(flat.double().std(correction=0))
    return math.sqrt(variance)


def _blocks(flat: Tensor) -> list[Tensor]:
    if flat.numel() <= _BLOCK * _MAX_BLOCKS:
        return [flat]
    step = (flat.numel() - _BLOCK) // (_MAX_BLOCKS - 1)
    return [flat[index * step : index * step + _BLOCK] for index in range(_MAX_BLOCKS)]
