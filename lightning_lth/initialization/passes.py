"""A forward pass on an example, and a module that is after it as it was before."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map


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


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nest with other tensors; what was one tensor stays one."""
    done: dict[int, Tensor] = {}

    def once(item: Any) -> Any:
        if isinstance(item, Tensor) and id(item) not in done:
            done[id(item)] = function(item)
        return done.get(id(item), item)

    return tree_map(once, value)


def fresh(value: Any) -> Any:
    """A copy of a nest for one pass, which may write into its input."""
    return map_tensors(lambda t: t.detach().clone().requires_grad_(t.requires_grad), value)


@contextlib.contextmanager
def unchanged(module: Module, *, parameters: bool = False) -> Iterator[None]:
    """Afterwards all of these are as before: buffers, gradients, train flags, random states.

    Plain attributes, such as a counter that a forward pass adds to, are not watched.

    Args:
        module: May be run, trained or evaluated inside.
        parameters: New values of parameters, and of the buffers of ``weight_buffers``, stay;
            if an exception leaves the context, they are restored as well.

    Examples:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> with unchanged(norm):
        ...     _ = norm(torch.randn(8, 2))
        >>> norm.running_mean
        tensor([0., 0.])
    """
    layers = dict(module.named_modules())
    modes = {name: layer.training for name, layer in layers.items()}
    buffers = {name: _own_buffers(layer) for name, layer in layers.items()}
    saved = {id(b): b.clone() for own in buffers.values() for b in own.values()}
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    weights = [(p, p.detach().clone()) for p in module.parameters()] if parameters else []
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with random_states_kept():
            yield
        for name, buffer in weight_buffers(module).items() if parameters else ():
            layer_name, _, attribute = name.rpartition(".")
            buffers[layer_name][attribute] = buffer
            saved[id(buffer)] = buffer.clone()
    except BaseException:
        for parameter, weight in weights:
            parameter.data.copy_(weight)
        raise
    finally:
        for name, mode in modes.items():
            layers[name].training = mode
        for name, own in buffers.items():
            _restore_buffers_(layers[name], own)
            for buffer in own.values():
                buffer.data.copy_(saved[id(buffer)])
        for parameter, gradient in gradients:
            parameter.grad = gradient


def weight_buffers(module: Module) -> dict[str, Tensor]:
    """Buffers that weights are computed from: those of parametrizations and of spectral_norm.

    Examples:
        >>> layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(2, 2))
        >>> list(weight_buffers(layer))
        ['parametrizations.weight.0.base']
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {
        name: buffer
        for name, buffer in module.named_buffers()
        if "parametrizations" in name.split(".")
        or (name.endswith(("_u", "_v")) and f"{name[:-2]}_orig" in parameters)
    }


def saved_weights(module: Module) -> Callable[[], None]:
    """Remember what weights are and are computed from; calling what is returned restores it."""
    parameters = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    buffers = {name: buffer.clone() for name, buffer in weight_buffers(module).items()}
    computed = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}

    def restore_() -> None:
        for parameter, values in parameters:
            parameter.detach().copy_(values)
        for name, values in buffers.items():
            module.get_buffer(name).copy_(values)
        vars(module).update(computed)  # by hooks, anew in each pass

    return restore_


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
    """Afterwards the global generators of torch, GPUs in use, NumPy and Python are as before."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda_devices()):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def seeded(run: Callable[[], object], seed: int) -> object:
    """Run with torch's generators at this seed, so that dropout is the same in all runs."""
    seed = in_range(seed)
    with random_states_kept():
        if torch.cuda.is_available() and not cuda_devices():
            torch.default_generator.manual_seed(seed)  # the other waits for the first use of a GPU
        else:
            torch.manual_seed(seed)
        return run()


def in_range(seed: int) -> int:
    """A seed that generators take; they know 64 bits."""
    return seed % (1 << 64)


def cuda_devices() -> range:
    """All GPUs once one is used; none before, as asking for their state would start them."""
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if is_used else 0)
