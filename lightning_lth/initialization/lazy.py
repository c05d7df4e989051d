"""Lazy layers get their shapes from one forward pass of a copy of the module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn import Module
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer

from lightning_lth.initialization.passes import random_states_kept


def materialize_(module: Module, run: Callable[[Module], object]) -> list[str]:
    """Give lazy layers the parameters that their first call would give them.

    Args:
        module: Only its lazy layers are changed; none if ``run`` raises or does not reach them all.
        run: Calls the copy of ``module`` that it is given.

    Returns:
        The names of the layers that ``run`` does not reach.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.LazyLinear(2))
        >>> materialize_(model, lambda copy: copy(torch.zeros(1, 3)))
        []
        >>> model
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    lazy = lazy_layers(module)
    if not lazy:
        return []
    with random_states_kept(), torch.no_grad():
        arguments = _arguments(_replica(module), run)
        missing = [name for name in lazy if name not in arguments]
        for name, layer in lazy.items() if not missing else ():
            layer._infer_parameters(layer, *arguments[name])
    return missing


def lazy_layers(module: Module) -> dict[str, Any]:
    """The layers, by name, that have no shapes yet."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, LazyModuleMixin) and cast(Any, layer).has_uninitialized_params()
    }


def _replica(module: Module) -> Module:
    """A deep copy; ``deepcopy`` alone cannot copy buffers without a shape."""
    blank: Any = UninitializedBuffer
    memo = {
        id(buffer): blank(device=buffer.device, dtype=buffer.dtype)
        for buffer in module.buffers()
        if isinstance(buffer, UninitializedBuffer)
    }
    return copy.deepcopy(module, memo)


def _arguments(replica: Module, run: Callable[[Module], object]) -> dict[str, tuple[Any, Any]]:
    """What each lazy layer was called with first."""
    found: dict[str, tuple[Any, Any]] = {}

    def remember(name: str) -> Callable[[Module, Any, Any], None]:
        return lambda layer, args, kwargs: cast(None, found.setdefault(name, (args, kwargs)))

    for name, layer in lazy_layers(replica).items():
        layer.register_forward_pre_hook(remember(name), with_kwargs=True, prepend=True)
    replica.eval()  # a batch of one is enough
    run(replica)
    return found
