"""Batches for a sweep: as many as needed, and what to put back afterwards."""

from __future__ import annotations

import copy
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_lth.snapshot import Stateful

Batch = TypeVar("Batch")

MAX_PARTS, MAX_ITEMS = 1000, 100  # of what a loader holds, and of a list in it, to look through
MAX_INDICES = 2**24  # of an array to copy; the tokens of a corpus are longer
_BACK_REFERENCES = ("trainer", "_trainer")
_LEAVES = (
    *(str, bytes, int, float, complex, type(None), type, torch.Tensor, np.ndarray),
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType),
)
# Loggers, locks, queues and files have a state, and it is not that of the data.
_NOT_OF_DATA = sys.stdlib_module_names - {"builtins", "collections", "functools", "random", "types"}


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
    """A shallow copy of a ``DataLoader``, without the iterator that some keep; others as they are.

    Kept workers would go on to serve the training that follows, their random states advanced; and
    a loader that can be saved tells the position of the iterator that it made last.
    """
    if not isinstance(loader, DataLoader):
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
    for part in _sources(loader):
        if isinstance(part, Iterator) and (part is loader or not _is_stateful(part)):
            what = "`loader`" if part is loader else f"The {type(part).__name__} of `loader`"
            raise ValueError(
                f"{what} is an iterator: what the test reads would be missing from training. Pass "
                "an object that starts anew each time it is iterated, such as a list of batches."
            )


def generators_in(loader: object) -> list[torch.Generator]:
    """Torch's random generators that a loader, its samplers, data sets and transforms hold.

    Examples:
        >>> generator = torch.Generator()
        >>> loader = DataLoader([0, 1], shuffle=True, generator=generator)
        >>> generators_in(loader) == [generator]
        True
    """
    return [part for part in _parts(loader) if isinstance(part, torch.Generator)]


def stateful_in(loader: object) -> list[Stateful]:
    """What else reading changes in them, as objects with a ``state_dict``.

    That is samplers and data sets that have one; the generators of NumPy and Python; attributes
    that are set anew, such as counters, and lists, dictionaries and index arrays that are
    reordered in place. What hides in a closure, or in a list of more than 100, is not found.
    """
    stateful: list[Stateful] = [
        part for part in _sources(loader) if part is not loader and _is_stateful(part)
    ]
    for part in _parts(loader):
        if isinstance(part, np.random.Generator):
            bits = part.bit_generator
            stateful.append(
                _State(partial(getattr, bits, "state"), partial(setattr, bits, "state"))
            )
        elif isinstance(part, np.random.RandomState):
            stateful.append(_State(partial(part.get_state, legacy=False), part.set_state))
        elif isinstance(part, random.Random):
            stateful.append(_State(part.getstate, part.setstate))
        elif not isinstance(part, torch.nn.Module):
            stateful.append(_State(partial(_restorer, part), lambda restore: restore()))
    return stateful


@final
@dataclass(frozen=True)
class _State:
    """Two functions as something with a state dict."""

    get: Callable[[], Any]
    set: Callable[[Any], object]

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.get()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.set(state_dict["state"])


def _restorer(part: object) -> Callable[[], None]:
    """A function that gives an object its present attributes back, and their order to indices."""
    attributes = dict(_attributes(part))
    orders = [(value, copy.copy(value)) for value in attributes.values() if _has_order(value)]

    def restore() -> None:
        present = _attributes(part)
        present.update(attributes)
        for name in [name for name in present if name not in attributes]:
            del present[name]
        for value, before in orders:
            if isinstance(value, dict):
                value.clear()
                value.update(before)
            else:
                value[:] = before

    return restore


def _has_order(value: Any) -> bool:
    """Whether it is a container, or indices, that could be reordered in place."""
    if isinstance(value, (list, dict)):
        return True
    if isinstance(value, np.ndarray):
        is_integer = value.dtype.kind in "iu" and value.flags.writeable
    else:
        is_integer = isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64)
    return is_integer and value.ndim == 1 and len(value) <= MAX_INDICES


def _sources(loader: object) -> list[Any]:
    """The loader and, however deep, its samplers and data sets."""
    sources: dict[int, Any] = {}
    waiting: list[Any] = [loader]
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in sources:
            continue
        sources[id(part)] = part
        waiting += [getattr(part, name, None) for name in ("sampler", "batch_sampler", "dataset")]
        joined = getattr(part, "datasets", None)  # of a concatenation, a chain or a stack
        if isinstance(joined, (list, tuple, dict)):
            waiting += joined.values() if isinstance(joined, dict) else joined
    return list(sources.values())


def _parts(loader: object) -> list[Any]:
    """The loader and all that it holds, nearest first: samplers, data sets, transforms."""
    parts: dict[int, Any] = {}
    waiting: deque[Any] = deque([loader])
    while waiting and len(parts) < MAX_PARTS:
        part = waiting.popleft()
        if id(part) not in parts and not _is_leaf(part):
            parts[id(part)] = part
            waiting += _contents(part)
    return list(parts.values())


def _is_leaf(part: object) -> bool:
    library = type(part).__module__.partition(".")[0]
    return isinstance(part, _LEAVES) or library in _NOT_OF_DATA


def _contents(part: Any) -> list[Any]:
    if isinstance(part, (list, tuple, dict)):
        items = part.values() if isinstance(part, dict) else part
        return list(items) if len(items) <= MAX_ITEMS else []  # longer ones hold samples
    if isinstance(part, types.MethodType):
        return [part.__self__]
    if isinstance(part, partial):
        return [part.func, *part.args, *part.keywords.values()]
    return [value for name, value in _attributes(part).items() if name not in _BACK_REFERENCES]


def _attributes(part: object) -> dict[str, Any]:
    return getattr(part, "__dict__", {})


def _is_stateful(part: object) -> bool:
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
