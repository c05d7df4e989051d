"""Modules and optimizers that others hold without saying so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch.nn import Module
from torch.optim import Optimizer

T = TypeVar("T")


def modules_in(module: Module) -> list[Module]:
    """All modules of a module, those hidden from its ``state_dict`` included.

    Hidden are modules that stand in its ``__dict__``, or in a list, tuple or dictionary there.

    Examples:
        >>> from torch.nn import Linear
        >>> student = Linear(1, 1)
        >>> student.teacher = [Linear(1, 1)]
        >>> len(list(student.modules())), len(modules_in(student))
        (1, 2)
    """
    found: dict[Module, None] = {}
    waiting = [module]
    while waiting:
        for layer in waiting.pop().modules():
            if layer not in found:
                found[layer] = None
                waiting += _held(vars(layer).values(), Module)
    return list(found)


def with_wrapped(optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """The optimizers, and those that they hold: Lookahead and SAM step another."""
    every = list(optimizers)
    for optimizer in every:  # grows meanwhile
        held = _held(vars(optimizer).values(), Optimizer)
        every += [one for one in held if one not in every]
    return every


def _held(values: Iterable[Any], kind: type[T]) -> list[T]:
    """Those of a kind among some values, and in lists, tuples and dictionaries among them."""
    held = [value for value in values if isinstance(value, kind)]
    for value in values:
        if isinstance(value, (list, tuple, dict)):
            items = value.values() if isinstance(value, dict) else value
            held += [item for item in items if isinstance(item, kind)]
    return held
