"""Training that leaves no trace: a copy in memory of all that it changes, put back in place."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_lth._hidden import modules_in, with_wrapped

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer


class Stateful(Protocol):
    """Anything with a state that can be taken and put back: gradient scalers, LR schedulers."""

    def state_dict(self) -> dict[str, Any]:
        """The state; may hold live references."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take over a state; may change the dictionary."""
        ...


@final
class Snapshot:
    """The state of a training, to be put back as often as needed.

    Unlike a rewind point, which loads values into any like network, it belongs to these very
    objects: parameters, buffers, gradients and the tensors in the optimizers stay the same
    objects, so that whatever refers to them (optimizers, DDP) still does.

    Covered are: parameters, all buffers, tensors held as plain attributes of modules, ``.grad``,
    ``requires_grad``, train/eval flags, state, param groups and counters of optimizers, and the
    random states of Python, NumPy, torch and CUDA. Modules that a module hides from its
    ``state_dict``, a teacher in a list say, and optimizers that an optimizer wraps are covered,
    too. Not covered: other attributes of modules, and submodules or hooks added since. The copies
    live on the CPU.

    Examples:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> snapshot = Snapshot.take(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(7.0)
        >>> snapshot.restore()
        >>> bool((layer.weight == 7.0).any())
        False
    """

    def __init__(self, parts: Sequence[Callable[[], object]]) -> None:
        self._parts = tuple(parts)

    @classmethod
    def take(
        cls,
        module: Module,
        optimizers: Sequence[Optimizer] = (),
        *,
        generators: Sequence[torch.Generator] = (),
        extra: Sequence[Stateful] = (),
    ) -> Snapshot:
        """Copy the present state; nothing is changed.

        Args:
            module: What is trained.
            optimizers: What trains it. Parameters that only they know are covered too.
            generators: Random generators other than the global ones, e.g. of data loaders.
            extra: Whatever else changes in training and has a state dict, e.g. a gradient scaler.

        Raises:
            ValueError: If a parameter or buffer is still uninitialized.
        """
        _check_initialized(module)
        layers, optimizers = modules_in(module), with_wrapped(optimizers)
        contents = _Contents()
        parts: list[Callable[[], object]] = [_layer(layer, contents) for layer in layers]
        parts += [_parameter(p, contents) for p in _parameters(layers, optimizers)]
        parts += [_optimizer(optimizer, contents) for optimizer in optimizers]
        parts += [contents.write_back]
        parts += [_stateful(one) for one in extra]
        parts += [_generator(generator) for generator in generators]
        return cls([*parts, _random_states()])

    def restore(self) -> None:
        """Put everything back. If one part fails, the others are put back all the same."""
        with contextlib.ExitStack() as stack:
            for part in reversed(self._parts):  # the stack runs the last one first
                stack.callback(part)


@contextlib.contextmanager
def undone(
    module: Module,
    optimizers: Sequence[Optimizer] = (),
    *,
    generators: Sequence[torch.Generator] = (),
    extra: Sequence[Stateful] = (),
) -> Iterator[Snapshot]:
    """Afterwards everything is as before, also after an exception or Ctrl-C.

    Args:
        module: May be trained inside.
        optimizers: As for ``Snapshot.take``.
        generators: As for ``Snapshot.take``.
        extra: As for ``Snapshot.take``.

    Yields:
        The snapshot, to go back in between as well.

    Examples:
        >>> layer = torch.nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> with undone(layer, [optimizer]):
        ...     optimizer.param_groups[0]["lr"] = 100.0
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """
    snapshot = Snapshot.take(module, optimizers, generators=generators, extra=extra)
    try:
        yield snapshot
    finally:
        snapshot.restore()


class _Contents:
    """What was in tensors, copied once for each however often it is met."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, tensor: Tensor) -> None:
        if id(tensor) not in self._copies and is_writable(tensor):
            self._copies[id(tensor)] = (tensor, tensor.detach().to("cpu", copy=True))

    def remember(self, value: Any) -> Callable[[], Any]:
        """A function that gives ``value`` anew: other containers, but the same tensors."""
        if isinstance(value, Tensor):
            self.add(value)
            return lambda: value
        if type(value) is dict:
            entries = {key: self.remember(item) for key, item in value.items()}
            return lambda: {key: entry() for key, entry in entries.items()}
        if type(value) in (list, tuple):
            container, items = type(value), [self.remember(item) for item in value]
            return lambda: container(item() for item in items)
        saved = copy.deepcopy(value)
        return lambda: copy.deepcopy(saved)

    @torch.no_grad()
    def write_back(self) -> None:
        for tensor, content in self._copies.values():
            tensor.copy_(content)


def is_writable(tensor: Tensor) -> bool:
    """Whether torch writes into it outside inference mode; if not, it stays as it is anyway."""
    if tensor.is_inference() or tensor.is_meta:
        return False
    if tensor.layout != torch.strided:
        return True
    return all(s != 0 or n < 2 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _check_initialized(module: Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(
                f"All parameters and buffers must be initialized, {name!r} is not. "
                "Run one batch through the module first."
            )


def _parameters(layers: Sequence[Module], optimizers: Sequence[Optimizer]) -> list[Tensor]:
    own = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = [parameter for group in groups for parameter in group["params"]]
    return list(dict.fromkeys([*own, *trained]))


def _layer(layer: Module, contents: _Contents) -> Callable[[], object]:
    """Which tensors a layer holds under which names, and whether it is in training mode."""
    training = layer.training
    for buffer in layer.buffers(recurse=False):
        contents.add(buffer)
    if isinstance(layer, torch.jit.ScriptModule):  # its tensors can only be overwritten
        return lambda: setattr(layer, "training", training)
    tables = [(table, dict(table)) for table in (layer._parameters, layer._buffers)]
    attributes = dict(vars(layer))
    for value in attributes.values():
        if isinstance(value, Tensor):
            contents.add(value)

    def restore() -> None:
        layer.training = training
        for table, before in tables:
            table.clear()
            table.update(before)  # type: ignore[arg-type]  # parameters or buffers, as before
        _restore_attributes_(layer, attributes)

    return restore


def _restore_attributes_(layer: Module, before: dict[str, Any]) -> None:
    """Those that are tensors now, or were."""
    present = vars(layer)
    for name in [*before, *(name for name in present if name not in before)]:
        if isinstance(before.get(name), Tensor) or isinstance(present.get(name), Tensor):
            if name in before:
                present[name] = before[name]
            else:
                del present[name]


def _parameter(parameter: Tensor, contents: _Contents) -> Callable[[], object]:
    gradient, requires_grad = parameter.grad, parameter.requires_grad
    contents.add(parameter)
    if gradient is not None:
        contents.add(gradient)

    def restore() -> None:
        parameter.grad = gradient
        parameter.requires_grad_(requires_grad)

    return restore


def _optimizer(optimizer: Optimizer, contents: _Contents) -> Callable[[], object]:
    """Not by ``load_state_dict``, which casts the state to the dtype of its parameter."""
    groups = [(group, contents.remember(group)) for group in optimizer.param_groups]
    state = {key: contents.remember(value) for key, value in optimizer.state.items()}
    plain = (bool, int, float, str, type(None))
    counters = {name: value for name, value in vars(optimizer).items() if isinstance(value, plain)}

    def restore() -> None:
        vars(optimizer).update(counters)
        optimizer.param_groups[:] = [group for group, _ in groups]
        for group, before in groups:
            group.clear()
            group.update(before())
        optimizer.state.clear()
        optimizer.state.update({key: before() for key, before in state.items()})

    return restore


def _stateful(one: Stateful) -> Callable[[], object]:
    state = copy.deepcopy(one.state_dict())
    return lambda: one.load_state_dict(copy.deepcopy(state))


def _generator(generator: torch.Generator) -> Callable[[], object]:
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _random_states() -> Callable[[], object]:
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # Asking a CUDA that nobody uses would start it.
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda._initialized else []

    def restore() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)

    return restore
