"""Exact selection on the CPU in one pass, given a bracket around the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_lth.pruning.bisection import Part, refuse_nan
from lightning_lth.pruning.sharding import Ranks

_SPAN = 1 << 22  # elements that one thread takes at a time
_CHUNK = (
    1 << 19
)  # elements; smaller ones lose more to the threads' waiting for the GIL than caches win
_TORCH_CHUNK = (1 << 15) - 64  # elements; from 2^15 on torch starts threads, which fight with ours
_MIN_CANDIDATES = 1 << 16
_CANDIDATE_SHARE = 1 / 32  # of all weights, at 12 bytes each: a tenth of the weights' memory

_Array = NDArray[Any]


def drop_smallest(
    parts: Sequence[Part], *, count: int, num_survivors: int, bracket: tuple[float, float]
) -> list[Tensor] | None:
    """Prune the ``count`` lowest-scored survivors; equal scores fall by position.

    Args:
        parts: The parameters, all on the CPU, in the order in which equal scores fall.
        count: How many weights fall; at least 1 and at most all survivors.
        num_survivors: How many weights survive so far.
        bracket: The lowest and the highest score that the threshold may have.

    Returns:
        New flat masks, one for each part; or none if the threshold lies outside the bracket, or
        more scores inside than there should be in memory.

    Raises:
        ValueError: If the score of a survivor is NaN.
    """
    sieve = _Sieve(parts, bracket)
    num_kept, values, positions = sieve.run()
    if np.isnan(values).any():
        refuse_nan(parts, Ranks())
    rank = count - (num_survivors - num_kept)
    if sieve.is_full or not 0 < rank <= len(values):
        return None
    sieve.drop(positions[_smallest(values, rank)])
    return [torch.from_numpy(kept) for kept in sieve.kept]


def _smallest(values: _Array, count: int) -> _Array:
    """Which of the values are the ``count`` lowest; among equal ones, the first."""
    threshold = np.partition(values, count - 1)[count - 1]
    falls: _Array = values < threshold
    ties = np.flatnonzero(values == threshold)
    falls[ties[: count - np.count_nonzero(falls)]] = True
    return falls


class _Sieve:
    """One pass over all scores: prunes what is below the bracket, collects what is inside."""

    def __init__(self, parts: Sequence[Part], bracket: tuple[float, float]) -> None:
        self.parts = parts
        sizes = [len(part.mask) for part in parts]
        self.offsets = [0, *accumulate(sizes)]
        self.kept = [np.empty(size, dtype=np.bool_) for size in sizes]  # numpy takes huge pages
        self.bracket = bracket
        self.room = max(_MIN_CANDIDATES, int(self.offsets[-1] * _CANDIDATE_SHARE))
        # Threads may lose each other's subtractions from `room`; what is full must stay so.
        self.is_full = False

    def run(self) -> tuple[int, _Array, _Array]:
        """How many weights are kept so far, and the candidates: their scores and positions."""
        spans = [
            (index, start)
            for index, part in enumerate(self.parts)
            for start in range(0, len(part.mask), _SPAN)
        ]
        threads = min(torch.get_num_threads(), len(spans))
        if threads == 1:
            return _join([self._sift(span) for span in spans])
        with ThreadPoolExecutor(threads) as pool:  # numpy lets other threads run meanwhile
            return _join(list(pool.map(self._sift, spans)))

    def drop(self, positions: _Array) -> None:
        """Prune at these positions, which count on from tensor to tensor and ascend."""
        borders = np.searchsorted(positions, self.offsets)
        for index, kept in enumerate(self.kept):
            kept[positions[borders[index] : borders[index + 1]] - self.offsets[index]] = False

    def _sift(self, span: tuple[int, int]) -> tuple[int, list[_Array], list[_Array]]:
        index, start = span
        part, kept, offset = self.parts[index], self.kept[index], self.offsets[index]
        num_kept, values, positions = 0, [], []
        spare = np.empty(min(_CHUNK, len(kept) - start), dtype=np.bool_)
        for first, scores in _scores(part, start, min(start + _SPAN, len(kept))):
            chunk = slice(first, first + len(scores))
            inside = self._sift_chunk(
                scores, part.mask.numpy()[chunk], kept[chunk], spare[: len(scores)]
            )
            num_kept += np.count_nonzero(kept[chunk])
            self.room -= len(inside)
            if self.room < 0:
                self.is_full = True
            if self.is_full:
                break
            values.append(scores[inside])
            inside += first + offset
            positions.append(inside)
        return num_kept, values, positions

    def _sift_chunk(self, scores: _Array, mask: _Array, kept: _Array, spare: _Array) -> _Array:
        low, high = (scores.dtype.type(end) for end in self.bracket)
        # `greater` of booleans is "and not". NaN is neither below nor above, so it is collected.
        np.greater(mask, np.less(scores, low, out=spare), out=kept)
        np.greater(kept, np.greater(scores, high, out=spare), out=spare)
        return np.flatnonzero(spare)


def _scores(part: Part, start: int, stop: int) -> Iterator[tuple[int, _Array]]:
    """Scores chunk by chunk, with the position of each chunk; valid until the next one."""
    if part.weights is None:
        for first in range(start, stop, _TORCH_CHUNK):
            yield first, part.read(slice(first, min(first + _TORCH_CHUNK, stop))).numpy()
        return
    weights = part.weights.numpy()
    buffer = np.empty(min(_CHUNK, stop - start), dtype=weights.dtype)
    for first in range(start, stop, _CHUNK):
        chunk = weights[first : min(first + _CHUNK, stop)]
        yield first, np.absolute(chunk, out=buffer[: len(chunk)])


def _join(outcomes: list[tuple[int, list[_Array], list[_Array]]]) -> tuple[int, _Array, _Array]:
    values = [array for _, arrays, _ in outcomes for array in arrays]
    positions = [array for _, _, arrays in outcomes for array in arrays]
    empty = np.empty(0)
    return (
        sum(num_kept for num_kept, _, _ in outcomes),
        np.concatenate(values) if values else empty,
        np.concatenate(positions) if positions else empty,
    )
