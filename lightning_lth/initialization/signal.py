"""The scale of activations and gradients, layer by layer: one forward and one backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from lightning_lth.initialization.drawing import empty
from lightning_lth.initialization.jacobians import (
    extreme_singular_values,
    first_example,
    floating_tensors,
)
from lightning_lth.initialization.layer_calls import Recorder, mean_and_std_of_all
from lightning_lth.initialization.layer_signals import LayerSignal, SignalReport
from lightning_lth.initialization.passes import call, eager, fresh, tensors_in, unchanged

__all__ = ["LayerSignal", "SignalReport", "signal_propagation"]


def signal_propagation(
    module: Module,
    example_input: Any,
    *,
    forward: Callable[[Module, Any], Any] | None = None,
    seed: int = 0,
    singular_values: bool = False,
) -> SignalReport:
    """Measure activations and gradients by layer, in one forward and one backward pass.

    The module runs in its present train or eval mode, uncompiled, and is afterwards as it was.

    Args:
        module: What to measure. Activations that are called as functions get their own rows.
        example_input: A batch; a tuple gives positional, a dictionary keyword arguments.
        forward: Runs the module on the example and returns output or loss; ``None`` calls it.
        seed: Of the standard normal gradient with respect to the output, from which the backward
            pass starts, the same on every device. A scalar output is the loss and starts from 1.
        singular_values: Whether to compute those of the Jacobian of every layer and of the network,
            at the first example (index 0 of the first dimension). This takes a backward pass for
            every output; Jacobians above 2048 x 2048 elements are left out.

    Returns:
        The layers in order of execution; reshaping modules are left out.

    Raises:
        ValueError: If ``example_input`` is empty or not finite, or no output is floating-point.

    Examples:
        >>> from torch import nn
        >>> module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Hardtanh())
        >>> _ = nn.init.ones_(module[0].weight)
        >>> report = signal_propagation(module, torch.tensor([[0.0], [9.0]]))
        >>> [(row.name, row.activation_mean, row.saturated) for row in report]
        [('0', 4.5, None), ('1', 0.5, 0.5)]

    Source:
        Glorot & Bengio 2010: sections 3 and 4 (activations and gradients by layer). Lee et al.
        2020, arXiv:1906.06307: singular values of layerwise Jacobians.
    """
    _check_input(example_input)
    run = call if forward is None else forward
    with eager(), unchanged(module), torch.inference_mode(False), torch.enable_grad():
        recorder = Recorder(module, singular_values)
        with recorder.attached():
            output = run(module, fresh(example_input))
        _check_output(output)
        rows = tuple(_with_gradients(recorder, output, seed))
        if not singular_values:
            return SignalReport(rows)
        example = first_example(example_input)
        of_network = extreme_singular_values(lambda value: run(module, value), example, module)
        return SignalReport(rows, *of_network)


def _with_gradients(recorder: Recorder, output: Any, seed: int) -> Iterator[LayerSignal]:
    """The rows with gradient columns; computes no gradients of parameters."""
    generator = torch.Generator("cpu").manual_seed(seed)
    outputs = list(floating_tensors(output))
    starts = [empty(tensor.shape).normal_(generator=generator).to(tensor) for tensor in outputs]
    if len(outputs) == 1 and outputs[0].ndim == 0:
        starts = [torch.ones_like(outputs[0])]
    flowing = [pair for pair in zip(outputs, starts, strict=True) if pair[0].requires_grad]
    edges = [edge for edge in recorder.edges if edge is not None]
    gradients: Sequence[Tensor | None] = [None] * len(edges)
    if flowing and edges:
        gradients = torch.autograd.grad(
            [output for output, _ in flowing],
            edges,
            [start for _, start in flowing],
            allow_unused=True,
        )
    remaining = iter(gradients)
    for row, edge in zip(recorder.rows, recorder.edges, strict=True):
        gradient = None if edge is None else next(remaining)
        mean, std = (None, None) if gradient is None else mean_and_std_of_all(gradient)
        yield dataclasses.replace(row, gradient_mean=mean, gradient_std=std)


def _check_input(example_input: Any) -> None:
    for tensor in tensors_in(example_input):
        shape = tuple(tensor.shape)
        num_bad = int((~tensor.isfinite()).float().sum())
        if not tensor.numel():
            raise ValueError(
                f"`example_input` must hold at least one example, got a tensor of shape {shape}. "
                "Pass a batch of training data."
            )
        if num_bad:
            raise ValueError(
                f"`example_input` must be finite, got {num_bad} NaN or infinite values in a tensor "
                f"of shape {shape}. Replace them, or pass another batch."
            )


def _check_output(output: Any) -> None:
    if next(floating_tensors(output), None) is None:
        got = [str(t.dtype) for t in tensors_in(output)] or type(output).__name__
        raise ValueError(
            f"The output must hold a floating-point tensor, got {got}. "
            "Pass a `forward` that returns the scores or the loss."
        )
