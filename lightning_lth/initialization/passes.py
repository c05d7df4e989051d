"""A forward pass on an example, and a module that is after it as it was before."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy


def call(module: Module, example_input: Any) -> Any:
    """Call a module as Lightning does with ``example_input_array``.

    Args:
        module: What to call.
        example_input: A tuple gives positional arguments, a mapping keyword arguments, anything
            else is the only argument.

    Examples:
        >>> call(torch.nn.Bilinear(2, 2, 1), (torch.zeros(3, 2), torch.zeros(3, 2))).shape
        torch.Size([3, 1])
    """
    if isinstance(example_input, tuple):
        return module(*example_input)
    if isinstance(example_input, Mapping):
        return module(**example_input)
    return module(example_input)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries (and what inherits from them).

    Examples:
        >>> [len(tensor) for tensor in tensors_in({"a": torch.zeros(1), "b": [torch.zeros(2), 3]})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


@contextlib.contextmanager
def unchanged(module: Module, *, parameters: bool = False) -> Iterator[None]:
    """Afterwards everything is as before: buffers, gradients, train flags, random states.

    Args:
        module: May be run, trained or evaluated inside.
        parameters: Restore the values of parameters as well, if an exception leaves the context.

    Examples:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> with unchanged(norm):
        ...     _ = norm(torch.randn(8, 2))
        >>> norm.running_mean
        tensor([0., 0.])
    """
    modes = {layer: layer.training for layer in module.modules()}
    buffers = [(layer, _own_buffers(layer)) for layer in modes]
    saved = {id(b): b.clone() for _, own in buffers for b in own.values()}
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    weights = [(p, p.detach().clone()) for p in module.parameters()] if parameters else []
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with random_states_kept():
            yield
    except BaseException:
        for parameter, weight in weights:
            parameter.data.copy_(weight)
        raise
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        for layer, own in buffers:
            _restore_buffers_(layer, own)
            for buffer in own.values():
                buffer.data.copy_(saved[id(buffer)])
        for parameter, gradient in gradients:
            parameter.grad = gradient


def eager() -> contextlib.AbstractContextManager[Any]:
    """Inside, compiled modules run as if they were not."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _own_buffers(layer: Module) -> dict[str, Tensor]:
    own = layer.named_buffers(recurse=False, remove_duplicate=False)
    return {name: buffer for name, buffer in own if not is_lazy(buffer)}


def _restore_buffers_(layer: Module, before: dict[str, Tensor]) -> None:
    """The same tensors under the same names, wherever they have been replaced, set or added."""
    if isinstance(layer, torch.jit.ScriptModule):  # it can only overwrite them
        return
    for name in list(layer._buffers):
        present = layer._buffers[name]
        if name in before or (present is not None and not is_lazy(present)):
            layer._buffers[name] = before.get(name)


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Afterwards torch's global generators are as before, on the CPU and on every GPU in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
