"""What the hooks of a watch do in a forward pass, so that ``torch.compile`` takes them along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from lightning_lth.layer_stats.dropout import (
    channel_dim,
    drawn_count,
    drop_probability,
    first_eighth,
    is_alpha_dropout,
    kept_count,
    variance_ratio,
)


@final
@dataclass
class Switch:
    """What all hooks of a watch look at; plain attributes, one recompilation each."""

    is_on: bool = False
    is_evaluating: bool = False


@final
class DropoutCollector:
    """Adds up kept, drawn, variance ratios and calls of a dropout layer.

    The input is read before the call, which may overwrite it, but counts only once the call is
    over: checkpointing interrupts calls.
    """

    def __init__(self, layer: nn.Module, switch: Switch) -> None:
        self.layer = layer
        self._switch = switch
        self._totals = _zeros(4)
        self._pending = _zeros(4)

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks, which do nothing until switched on."""
        before = self.layer.register_forward_pre_hook(self._before, with_kwargs=True)
        return [before, self.layer.register_forward_hook(self._after, with_kwargs=True)]

    def prepare(self, device: torch.device) -> None:
        """Have what is added up on this device."""
        self._totals, self._pending = _moved(self._totals, device), _moved(self._pending, device)

    def totals_and_reset(self) -> Tensor:
        """Kept, drawn, sum of the variance ratios and their number, shape ``(4,)``."""
        return _taken(self._totals)

    def _before(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        if not (self._switch.is_on and layer.training and _is_first_run()):
            return
        if (values := _values(args, kwargs)) is None:
            return
        drawn = drawn_count(values, layer)
        if is_alpha_dropout(layer):
            ratio = torch.full_like(drawn, torch.nan)
        else:
            keep_probability = 1 - drop_probability(layer)
            dim = channel_dim(values, layer)
            ratio = variance_ratio(values, keep_probability, channel_dim=dim)
        is_known = ratio.isfinite()
        parts = (torch.zeros_like(drawn), drawn, ratio.where(is_known, 0.0), is_known.float())
        self._pending.copy_(torch.stack(parts))

    def _after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._switch.is_on and layer.training and _is_first_run()):
            return
        values = _values((output,), {})
        if values is not None and _values(args, kwargs) is not None:
            self._totals.add_(self._pending)
            self._totals[0].add_(kept_count(values, layer).to(self._totals.device))


@final
class NormCollector:
    """Adds up what goes into a normalization layer."""

    def __init__(self, layer: nn.Module, switch: Switch, activations: bool) -> None:
        self.layer = layer
        self._switch = switch
        self._activations = activations
        self._fewest = _zeros(1).fill_(torch.inf)
        self._moments = _zeros(3)
        self._sums = _zeros(3, 0)

    def attach(self) -> list[RemovableHandle]:
        """Register the hook, which does nothing until switched on."""
        return [self.layer.register_forward_pre_hook(self._before, with_kwargs=True)]

    def prepare(self, device: torch.device) -> None:
        """Have what is added up on this device, with room for all channels."""
        self._fewest, self._moments = _moved(self._fewest, device), _moved(self._moments, device)
        mean = getattr(self.layer, "running_mean", None)
        channels = 0 if mean is None else mean.numel()
        if self._sums.shape[1] != channels:
            self._sums = _zeros(3, channels)
        self._sums = _moved(self._sums, device)

    def values_per_channel_and_reset(self) -> Tensor:
        """How many values each channel's mean was taken over in training; NaN without any."""
        fewest = self._fewest.clone()
        self._fewest.fill_(torch.inf)
        return torch.where(fewest.isinf(), torch.nan, fewest)

    def moments_and_reset(self) -> Tensor:
        """Mean and standard deviation of the inputs, shape ``(2,)``; NaN without any."""
        calls, mean, variance = _taken(self._moments)
        return torch.stack((mean / calls, (variance / calls).sqrt()))

    def shifts_and_reset(self) -> Tensor:
        """Shift and ratio of the variance, and shift of the mean; shape ``(3,)``."""
        layer, (count, total, square) = self.layer, _taken(self._sums)
        mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if mean is None or variance is None or mean.numel() != count.numel():
            return torch.full((3,), torch.nan, device=count.device)
        epsilon = getattr(layer, "eps", 0.0)
        shift = total / count
        expected = variance.float().to(count.device) + epsilon
        spread = (square - total * shift) / (count - 1)  # unbiased, as the running one
        ratio = (spread + epsilon) / expected
        mean_shift = (shift.square() / expected).mean().sqrt()
        size = torch.maximum(ratio, 1 / ratio).mean()
        return torch.stack((size, ratio.log().mean().exp(), mean_shift))

    def _before(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        if not (self._switch.is_on or self._switch.is_evaluating) or not _is_first_run():
            return
        values = _values(args, kwargs)
        if values is None or values.numel() == 0:
            return
        if self._switch.is_on and self._activations:
            self._add_moments(values)
        if isinstance(layer, _BatchNorm) and self._switch.is_on and layer.training:
            self._fewest.clamp_(max=values.numel() // values.shape[1])
        if isinstance(layer, _BatchNorm) and self._switch.is_evaluating and not layer.training:
            self._add_sums(layer, values)

    def _add_moments(self, values: Tensor) -> None:
        part = first_eighth(values).float()
        mean = part.mean()
        variance = (part - mean).square_().mean()
        self._moments.add_(
            torch.stack((torch.ones_like(mean), mean, variance)).to(self._moments.device)
        )

    def _add_sums(self, layer: _BatchNorm, values: Tensor) -> None:
        center = layer.running_mean
        if center is None or center.numel() != self._sums.shape[1]:
            return
        others = [dim for dim in range(values.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(values.dim())]
        centered = values.float() - center.view(shape)
        total, square = centered.sum(others), centered.square_().sum(others)
        count = torch.full_like(total, values.numel() // values.shape[1])
        self._sums.add_(torch.stack((count, total, square)).to(self._sums.device))


Collector = DropoutCollector | NormCollector


def _values(args: Any, kwargs: Any) -> Tensor | None:
    """The first argument, without its graph, if it is a plain tensor of floating point."""
    value: Any = args[0] if args else next(iter(kwargs.values()), None)
    is_plain = type(value) in (Tensor, nn.Parameter) and not value.is_nested
    return value.detach() if is_plain and value.is_floating_point() else None


def _is_first_run() -> bool:
    """Not when checkpointing computes again, nor inside of ``torch.func`` transforms."""
    if torch.compiler.is_compiling():
        return True
    # Private: as torch.utils.module_tracker does it, and nothing public tells.
    is_backward = torch._C._current_graph_task_id() != -1
    return not is_backward and torch._C._functorch.peek_interpreter_stack() is None


@torch.inference_mode(False)
def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32)


@torch.inference_mode(False)
def _moved(totals: Tensor, device: torch.device) -> Tensor:
    return totals.to(device)


def _taken(totals: Tensor) -> Tensor:
    """A copy, and zeros in its place."""
    copy = totals.clone()
    totals.zero_()
    return copy
