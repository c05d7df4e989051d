"""Drop the k lowest-scored of many weights: exact, without sorting or joining the tensors.

A strided sample of the scores brackets the threshold. One pass over the scores then writes the new
masks and keeps the few scores inside the bracket, among which the threshold is found (``sifting``).
On other devices than the CPU, over shards, and where that does not work (a bad sample, very many
equal scores), counting finds it (``bisection``). All ways give the same masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, inf, isnan, sqrt
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_lth.pruning import bisection, sifting
from lightning_lth.pruning.bisection import Part, num_true
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.sharding import Ranks, as_shard, check_placement, is_sharded, local_part

# Sample size, and how many standard deviations of its quantile the bracket reaches to each side.
# The first misses about once in ten thousand times, if weights are in no particular order.
_SAMPLES = ((1 << 18, 4.0), (1 << 19, 20.0))
_MIN_STRIDE = 64  # samples of small tensors: fewer, or they would take longer than the pass itself
_PIECE = (1 << 15) - 64  # samples; from 2^15 on torch starts threads: slow on a busy machine
_MAX_UNSAMPLED = 1 << 14  # survivors that are all sifted, without a bracket


@final
@dataclass(frozen=True)
class Ranking:
    """The surviving weights of several tensors, in the order of their scores.

    Equal scores are in the order of the parameters in ``masks``, then of flat positions. Infinite
    scores are allowed. What is pruned has no place in the order, whatever its score.

    Args:
        scores: Scores for at least the names in ``masks``.
        masks: Parameter name to boolean mask, shaped and distributed like the parameter.

    Raises:
        ValueError: If the mask of a distributed parameter is placed differently, or the placement
            is other than whole or by rows over one one-dimensional mesh.

    Examples:
        >>> scores = Scores.of({"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([2.0])})
        >>> masks = {"a": torch.tensor([True, True]), "b": torch.tensor([True])}
        >>> Ranking(scores, masks).without_smallest(2)
        {'a': tensor([ True, False]), 'b': tensor([False])}
    """

    scores: Scores
    masks: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            check_placement(name, mask, self.scores.inputs[name])
        Ranks.of(self.masks.values())

    @cached_property
    def num_survivors(self) -> int:
        """How many weights survive so far, over all ranks; every rank must ask for it."""
        ranks = Ranks.of(self.masks.values())
        own = [mask for mask in self.masks.values() if is_sharded(mask) or ranks.index == 0]
        return ranks.total(sum(num_true(local_part(mask)) for mask in own))

    def without_smallest(self, count: int) -> dict[str, Tensor]:
        """Masks without the ``count`` lowest-scored survivors.

        Every rank must call this if the parameters are distributed.

        Args:
            count: How many weights fall, over all ranks; from 0 to the number of survivors.

        Returns:
            New masks by parameter name, on the devices of the scores, distributed as before.

        Raises:
            ValueError: If ``count`` is too low or too high, or the score of a survivor is NaN;
                that is not looked for if nothing falls.
        """
        num_survivors = self.num_survivors
        if not 0 <= count <= num_survivors:
            raise ValueError(f"`count` must be in [0, {num_survivors}], got {count}.")
        if count == 0:
            return {n: mask.to(self.scores.device(n)) for n, mask in self.masks.items()}
        kept = self._select(count, num_survivors)
        return {
            name: as_shard(flat, mask)
            for (name, mask), flat in zip(self.masks.items(), kept, strict=True)
        }

    def _select(self, count: int, num_survivors: int) -> list[Tensor]:
        ranks = Ranks.of(self.masks.values())
        dtype = self._dtype()
        parts = [self._part(name, mask, dtype) for name, mask in self.masks.items()]
        if ranks.mesh is not None:
            return bisection.drop_smallest(parts, count=count, dtype=dtype, ranks=ranks)
        for sample in _SAMPLES:
            bracket = _bracket(parts, count, num_survivors, sample)
            kept = _sift(parts, count, num_survivors, bracket)
            if kept is not None:
                return kept
        return bisection.drop_smallest(
            parts, count=count, dtype=dtype, ranks=ranks, bracket=bracket
        )

    def _dtype(self) -> torch.dtype:
        dtypes = {self.scores.dtype(name) for name in self.masks}
        return torch.float64 if torch.float64 in dtypes else torch.float32

    def _part(self, name: str, mask: Tensor, dtype: torch.dtype) -> Part:
        read = self.scores.reader(name)
        first = self.scores.inputs[name][0]
        is_magnitude = self.scores.function is torch.abs and first.dtype == dtype
        return Part(
            name,
            lambda where: read(where).to(dtype),
            local_part(mask).reshape(-1).to(self.scores.device(name)),
            weights=local_part(first).detach().reshape(-1) if is_magnitude else None,
            is_sharded=is_sharded(mask),
        )


def _sift(
    parts: Sequence[Part], count: int, num_survivors: int, bracket: tuple[float, float]
) -> list[Tensor] | None:
    if bracket[0] == bracket[1] or any(part.mask.device.type != "cpu" for part in parts):
        return None
    return sifting.drop_smallest(parts, count=count, num_survivors=num_survivors, bracket=bracket)


def _bracket(
    parts: Sequence[Part], count: int, num_survivors: int, sample: tuple[int, float]
) -> tuple[float, float]:
    """Two scores that the ``count``-th lowest is probably between; infinite for small tensors."""
    if num_survivors <= _MAX_UNSAMPLED:
        return -inf, inf
    size, deviations = sample
    values = _sample(parts, size)
    share = count / num_survivors
    margin = deviations * (sqrt(len(values) * share * (1 - share)) + 1)
    ends = floor(len(values) * share - margin), ceil(len(values) * share + margin)
    inside = [end for end in ends if 0 <= end < len(values)]
    ordered = np.partition(values, inside) if inside else values
    low = float(ordered[ends[0]]) if ends[0] in inside else -inf
    high = float(ordered[ends[1]]) if ends[1] in inside else inf
    return (-inf, inf) if isnan(low) or isnan(high) else (low, high)


def _sample(parts: Sequence[Part], size: int) -> NDArray[Any]:
    """The scores of the survivors at evenly spaced positions, all tensors taken as one."""
    total = sum(len(part.mask) for part in parts)
    stride = max(_MIN_STRIDE, total // size) | 1  # odd: rows are often a power of two long
    values, start = [], stride // 2
    for part in parts:
        for first in range(start, len(part.mask), stride * _PIECE):
            where = slice(first, first + stride * _PIECE, stride)
            values.append(part.read(where)[part.mask[where]].cpu().numpy())
        start = (start - len(part.mask)) % stride
    return np.concatenate(values) if values else np.empty(0)
