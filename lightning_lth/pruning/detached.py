"""Gradients of a network that leave no trace in it: it runs on copies of its tensors."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from lightning_lth.pruning.parameters import prunable_parameters

if TYPE_CHECKING:
    from torch.nn import Module

Batches = Sequence[tuple[Any, Any]]  # inputs and targets
Loss = Callable[[Any, Any], Tensor]  # outputs and targets -> scalar


@final
@dataclass(frozen=True, eq=False)
class DetachedNetwork:
    """A module that runs with other tensors in place of its parameters and buffers.

    Run it inside ``without_trace``.

    Attributes:
        module: Gives the computation, and is not written to.
        tensors: Name in the module to the tensor that stands in.
        weights: Those of the selected parameters, by the names of masks; the only ones of which
            gradients are taken.

    Examples:
        >>> network = DetachedNetwork.of(torch.nn.Linear(2, 1), None, torch.zeros_like)
        >>> network.run(torch.ones(1, 2))
        tensor([[0.]], grad_fn=<AddmmBackward0>)
    """

    module: Module
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        module: Module,
        parameters: Sequence[str] | None,
        convert: Callable[[Tensor], Tensor],
    ) -> DetachedNetwork:
        """A network on converted copies.

        Args:
            module: A network.
            parameters: Globs that select the weights, as for
                ``lightning_lth.pruning.parameters.prunable_parameters``.
            convert: A tensor to the new tensor that stands in for it.
        """
        selected = prunable_parameters(module, parameters)
        weights = {name: convert(p.detach()).requires_grad_() for name, p in selected.items()}
        copies = {id(p): weights[name] for name, p in selected.items()}
        tensors = {
            name: copies[id(tensor)] if id(tensor) in copies else convert(tensor.detach())
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        return cls(module, tensors, weights)

    def run(self, inputs: Any) -> Any:
        """The module's output."""
        return torch.func.functional_call(self.module, self.tensors, (inputs,))

    def mean_gradients(self, batches: Batches, loss: Loss) -> list[Tensor]:
        """The gradient of the loss, averaged over the batches: one tensor for each weight."""
        return _mean(self._gradients(batch, loss) for batch in batches)

    def mean_hessian_product(
        self, batches: Batches, loss: Loss, vector: Sequence[Tensor]
    ) -> list[Tensor]:
        """The Hessian of the loss times a vector, averaged over the batches."""
        return _mean(self._hessian_product(batch, loss, vector) for batch in batches)

    def derivatives(self, value: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Of a scalar, by each weight; zeros for weights on which it does not depend."""
        return torch.autograd.grad(
            value, list(self.weights.values()), create_graph=create_graph, materialize_grads=True
        )

    def _gradients(
        self, batch: tuple[Any, Any], loss: Loss, *, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        inputs, targets = batch
        value = loss(self.run(inputs), targets)
        if value.numel() != 1:
            raise ValueError(
                f"`loss` must return a scalar, got a tensor of shape {tuple(value.shape)}. "
                "Average it over the batch."
            )
        return self.derivatives(value, create_graph=create_graph)

    def _hessian_product(
        self, batch: tuple[Any, Any], loss: Loss, vector: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        gradients = self._gradients(batch, loss, create_graph=True)
        terms = [(one * other).sum() for one, other in zip(gradients, vector, strict=True)]
        return self.derivatives(torch.stack(terms).sum())


@contextlib.contextmanager
def without_trace(module: Module) -> Iterator[None]:
    """Inside, gradients can be taken; afterwards modes and random states are as before.

    Args:
        module: May be set to train or eval mode inside. Compiled modules run uncompiled.

    Examples:
        >>> module = torch.nn.Dropout()
        >>> with without_trace(module):
        ...     _ = module.eval()
        >>> module.training
        True
    """
    modes = {layer: layer.training for layer in module.modules()}
    try:
        with (
            _random_states_kept(module),
            _eager(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def _mean(items: Iterator[tuple[Tensor, ...]]) -> list[Tensor]:
    total, count = list(next(items)), 1
    for item in items:
        total = [one + other for one, other in zip(total, item, strict=True)]
        count += 1
    return [tensor / count for tensor in total]


@contextlib.contextmanager
def _random_states_kept(module: Module) -> Iterator[None]:
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Inside, compiled modules run as if they were not: their gradients have no gradients."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
