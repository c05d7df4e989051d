"""Singular values of the Jacobian of a layer or network at one example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_lth.initialization.passes import map_tensors, tensors_in, unchanged
from lightning_lth.initialization.statistics import at_least_float32

LARGEST_JACOBIAN = 2048 * 2048  # elements: 16 MB, and seconds for the singular values


def extreme_singular_values(
    function: Callable[[Any], Any], example: Any, module: Module
) -> tuple[tuple[float, float] | None, str | None]:
    """Smallest and largest of d function / d example, or why there are none."""
    if any(map(_uses_batch_statistics, module.modules())):
        return None, "batch norm on batch statistics mixes the examples"
    try:
        with unchanged(module):
            values = torch.linalg.svdvals(at_least_float32(_jacobian(function, example)).cpu())
    except (RuntimeError, ValueError) as error:
        return None, str(error).splitlines()[0]
    return (float(values[-1]), float(values[0])), None


def _uses_batch_statistics(layer: Module) -> bool:
    return isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)


def _jacobian(function: Callable[[Any], Any], example: Any) -> Tensor:
    inputs: list[Tensor] = []

    def differentiable(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        inputs.append(tensor.detach().requires_grad_())
        return inputs[-1].clone()  # the function may write into it

    arguments = map_tensors(differentiable, example)
    if not inputs:
        raise ValueError("there is no floating-point input")
    output = next(floating_tensors(function(arguments))).flatten()
    shape = output.numel(), sum(tensor.numel() for tensor in inputs)
    if 0 in shape:
        raise ValueError(f"the Jacobian of {shape[0]} x {shape[1]} is empty")
    if math.prod(shape) > LARGEST_JACOBIAN:
        raise ValueError(f"the Jacobian of {shape[0]} x {shape[1]} is too large")
    rows = (
        torch.autograd.grad(element, inputs, retain_graph=True, materialize_grads=True)
        for element in output
    )
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def first_example(value: Any) -> Any:
    """A copy with index 0 of the first dimension, in all tensors with as many as the first one."""
    sizes = [len(tensor) for tensor in floating_tensors(value) if tensor.ndim > 1]

    def first(tensor: Tensor) -> Tensor:
        is_batch = tensor.ndim > 0 and sizes[:1] == [len(tensor)]
        return (tensor[:1] if is_batch else tensor).detach().clone()

    return map_tensors(first, value)


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a nest."""
    return (tensor for tensor in tensors_in(value) if tensor.is_floating_point())
