"""Batches for a sweep: as many as needed, and what to put back afterwards."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_lth.snapshot import Stateful

Batch = TypeVar("Batch")


def endless(loader: Iterable[Batch]) -> Generator[Batch, None, None]:
    """Batch after batch; when the loader is exhausted, from its start again.

    Args:
        loader: Starts anew whenever it is iterated.

    Raises:
        ValueError: If a pass gives no batch.

    Examples:
        >>> batches = endless([1, 2])
        >>> [next(batches) for _ in range(5)]
        [1, 2, 1, 2, 1]
    """
    num_batches = 0
    while True:
        before = num_batches
        for batch in loader:
            num_batches += 1
            yield batch
        if num_batches == before == 0:
            raise ValueError("`loader` gave no batch. Is its data set empty, or smaller than one?")
        if num_batches == before:
            raise ValueError(
                f"`loader` gave {num_batches} batches, and none when it was iterated again. "
                "Pass one that starts anew each time, or fewer steps."
            )


def fresh(loader: Iterable[Batch]) -> Iterable[Batch]:
    """The same loader, or a shallow copy if iterating it would start workers that it keeps.

    Those workers would go on to serve the training that follows, their random states advanced.
    """
    if not (isinstance(loader, DataLoader) and loader.persistent_workers):
        return loader
    other = copy.copy(loader)
    other._iterator = None
    return other


def check_rewindable(loader: object) -> None:
    """Refuse what can be read only once.

    Args:
        loader: A ``DataLoader`` or any other iterable of batches.

    Raises:
        TypeError: If it cannot be iterated.
        ValueError: If it, its data set or a sampler is an iterator without a ``state_dict``.

    Note:
        Data sets that hide how far they have been read, e.g. in an open file, are not recognized.
    """
    if not isinstance(loader, Iterable):
        raise TypeError(
            "`loader` must be an iterable of batches, such as a DataLoader, "
            f"got {type(loader).__name__}."
        )
    for part in _parts(loader):
        if isinstance(part, Iterator) and (part is loader or not _is_stateful(part)):
            what = "`loader`" if part is loader else f"The {type(part).__name__} of `loader`"
            raise ValueError(
                f"{what} is an iterator: what the test reads would be missing from training. Pass "
                "an object that starts anew each time it is iterated, such as a list of batches."
            )


def generators_in(loader: object) -> list[torch.Generator]:
    """Torch's random generators that a loader, its samplers and its data set hold.

    Examples:
        >>> generator = torch.Generator()
        >>> loader = DataLoader([0, 1], shuffle=True, generator=generator)
        >>> generators_in(loader) == [generator]
        True
    """
    held = [value for part in _parts(loader) for value in _attributes(part)]
    return list(dict.fromkeys(value for value in held if isinstance(value, torch.Generator)))


def stateful_in(loader: object) -> list[Stateful]:
    """Samplers and data sets with a ``state_dict``, and generators of NumPy and Python in them."""
    parts = _parts(loader)
    stateful: list[Stateful] = [part for part in parts if part is not loader and _is_stateful(part)]
    held = {id(value): value for part in parts for value in _attributes(part)}
    for value in held.values():
        if isinstance(value, np.random.Generator):
            stateful.append(_of_numpy(value))
        elif isinstance(value, np.random.RandomState):
            get = functools.partial(value.get_state, legacy=False)
            stateful.append(_RandomState(get, value.set_state))
        elif isinstance(value, random.Random):
            stateful.append(_RandomState(value.getstate, value.setstate))
    return stateful


@final
@dataclass(frozen=True)
class _RandomState:
    """A generator as something with a state dict."""

    get: Callable[[], Any]
    set: Callable[[Any], object]

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.get()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.set(state_dict["state"])


def _of_numpy(generator: np.random.Generator) -> _RandomState:
    bits = generator.bit_generator
    return _RandomState(lambda: bits.state, lambda state: setattr(bits, "state", state))


def _parts(loader: object) -> list[Any]:
    """The loader and, however deep, its samplers and data sets."""
    parts: dict[int, Any] = {}
    waiting: list[Any] = [loader]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in parts:
            continue
        parts[id(part)] = part
        waiting += [getattr(part, name, None) for name in ("sampler", "batch_sampler", "dataset")]
        joined = getattr(part, "datasets", None)  # of a concatenation, a chain or a stack
        if isinstance(joined, (list, tuple, dict)):
            waiting += joined.values() if isinstance(joined, dict) else joined
    return list(parts.values())


def _attributes(part: object) -> list[Any]:
    return list(getattr(part, "__dict__", {}).values())


def _is_stateful(part: object) -> bool:
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
