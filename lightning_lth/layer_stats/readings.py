"""Numbers about layers, read from the device in one go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Readings:
    """Statistics of layers, still where they were computed.

    Attributes:
        names: ``(layer, statistic)`` of each value.
        values: Shape ``(len(names),)``; NaN where a statistic does not exist at present.

    Examples:
        >>> names = (("bn", "drift_mean"), ("bn", "dead"))
        >>> readings = Readings(names, torch.tensor([0.5, torch.nan]))
        >>> readings.to_numbers()
        {('bn', 'drift_mean'): 0.5}
    """

    names: tuple[tuple[str, str], ...]
    values: Tensor

    def to_numbers(self) -> dict[tuple[str, str], float]:
        """The values that exist, as numbers; waits for the device once."""
        numbers = zip(self.names, self.values.tolist(), strict=True)
        return {name: value for name, value in numbers if not math.isnan(value)}


def joined(parts: Sequence[Readings]) -> Readings:
    """All readings as one, on the device of the first.

    Examples:
        >>> a = Readings((("bn", "dead"),), torch.tensor([0.25]))
        >>> b = Readings((("drop", "keep"),), torch.tensor([0.5]))
        >>> joined([a, b]).to_numbers()
        {('bn', 'dead'): 0.25, ('drop', 'keep'): 0.5}
    """
    parts = [part for part in parts if part.names]
    if not parts:
        return Readings((), torch.empty(0))
    device = parts[0].values.device
    values = torch.cat([part.values.to(device, torch.float32) for part in parts])
    return Readings(tuple(name for part in parts for name in part.names), values)
