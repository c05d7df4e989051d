"""Which layers and activations run, recorded as they do."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from lightning_lth.initialization.jacobians import (
    extreme_singular_values,
    first_example,
    floating_tensors,
)
from lightning_lth.initialization.layer_signals import LayerSignal
from lightning_lth.initialization.statistics import at_least_float32
from lightning_lth.initialization.writing import name_of

_RESHAPES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle)
_ACTIVATIONS = {
    "celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "log_sigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid",
    "silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "threshold",
}  # fmt: skip
# Function name to the outputs at and beyond which it is saturated.
_SATURATION = {"tanh": (-0.99, 0.99), "sigmoid": (0.01, 0.99), "hardsigmoid": (0.0, 1.0)}
# Where the units are in the output of these functions, and of the activations that follow.
_UNIT_DIM = {
    **{f"conv{kind}{n}d": 1 for kind in ("", "_transpose") for n in (1, 2, 3)},
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm"), 1),
    **dict.fromkeys(("linear", "bilinear", "layer_norm", "rms_norm", "embedding"), -1),
    **dict.fromkeys(("multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"), -1),
}


@dataclass
class _Call:
    """A layer's forward, under way or done."""

    name: str
    type: str
    module: Module  # an empty one for a function
    function: Callable[[Any], Any]
    example: Any  # its argument
    can_be_dead: bool = False
    limits: tuple[float, float] | None = None
    is_leaf: bool = True


class Recorder(TorchFunctionMode):
    """Writes a row for every call of a leaf module, and of an activation outside its module."""

    def __init__(self, module: Module, singular_values: bool) -> None:
        super().__init__()
        self.rows: list[LayerSignal] = []
        self.edges: list[GradientEdge | None] = []
        self._layers = dict(module.named_modules())
        self._names = {
            id(layer): name_of(name) for name, layer in self._layers.items()
        }  # by id: metrics' hashes vary
        self._singular_values = singular_values
        self._counts: Counter[str] = Counter()
        self._calls: list[_Call] = []
        self._unit_dim = 1
        self._is_paused = False

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Record what runs inside."""
        with contextlib.ExitStack() as stack:
            for name, module in self._layers.items():
                if "parametrizations" not in name.split("."):  # these compute weights
                    enter = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                    leave = module.register_forward_hook(self._leave, always_call=True)
                    stack.callback(enter.remove)
                    stack.callback(leave.remove)
            yield stack.enter_context(self)

    def _enter(self, module: Module, args: Any, kwargs: Any) -> None:
        if self._is_paused:
            return
        if self._calls:
            self._calls[-1].is_leaf = False
        name = self._names[id(module)]
        example = self._example_of((args, kwargs))
        this = _Call(name, type(module).__name__, module, lambda v: module(*v[0], **v[1]), example)
        self._calls.append(this)

    def _leave(self, module: Module, args: Any, output: Any) -> None:
        if self._is_paused:
            return
        done = self._calls.pop()
        if done.is_leaf and not isinstance(module, _RESHAPES):
            self._record(done, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        self._unit_dim = _unit_dim(name, args, self._unit_dim)
        if self._is_paused or name not in _ACTIVATIONS:
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        value, *others = args or (kwargs.pop("input"),)

        def function(example: Any) -> Any:
            return func(example, *others, **kwargs)

        path = f"{self._calls[-1].name if self._calls else ''}.{name}".strip(".")
        this = _Call(path, name, Module(), function, self._example_of(value))
        output = function(value)
        is_module = bool(self._calls) and _is_activation(self._calls[-1].module)
        done = self._calls[-1] if is_module else this
        done.can_be_dead, done.limits = _character(name, others, kwargs)
        if not is_module:  # else its row is written when it is left
            self._record(done, output)
        return output

    def _example_of(self, value: Any) -> Any:
        return first_example(value) if self._singular_values else None

    def _record(self, done: _Call, output: Any) -> None:
        tensor = next(floating_tensors(output), None)
        if tensor is None or not tensor.numel():
            return
        name = done.name or done.type
        self._counts[name] += 1
        count = self._counts[name]
        values = tensor.detach()
        mean, std = mean_and_std_of_all(values)
        row = LayerSignal(
            name if count == 1 else f"{name} ({count})",
            done.type,
            mean,
            std,
            math.hypot(mean, std),
            dead=_dead(values, self._unit_dim) if done.can_be_dead else None,
            saturated=_saturated(values, *done.limits) if done.limits else None,
        )
        self.edges.append(get_gradient_edge(tensor) if tensor.requires_grad else None)
        self.rows.append(self._with_singular_values(row, done) if self._singular_values else row)

    def _with_singular_values(self, row: LayerSignal, done: _Call) -> LayerSignal:
        self._is_paused = True
        try:
            values, note = extreme_singular_values(done.function, done.example, done.module)
        finally:
            self._is_paused = False
        smallest, largest = values or (None, None)
        return dataclasses.replace(
            row, smallest_singular_value=smallest, largest_singular_value=largest, note=note
        )


def _is_activation(module: Module) -> bool:
    return any(base.__module__ == nn.ReLU.__module__ for base in type(module).__mro__)


def _character(
    name: str, others: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[bool, tuple[float, float] | None]:
    """Whether units of this activation can be dead, and where it is saturated."""
    if name not in ("relu6", "hardtanh"):
        return name in ("relu", "hardswish"), _SATURATION.get(name)
    low, high = 0.0, 6.0
    if name == "hardtanh":  # which nn.ReLU6 calls with 0 and 6
        low = others[0] if others else kwargs.get("min_val", -1.0)
        high = others[1] if len(others) > 1 else kwargs.get("max_val", 1.0)
    return low == 0, (-math.inf if low == 0 else low, high)


def mean_and_std_of_all(values: Tensor) -> tuple[float, float]:
    """As numbers; the variance is divided by the count."""
    values = at_least_float32(values)
    mean = values.mean()
    return float(mean), float((values - mean).square().mean().sqrt())


def _unit_dim(function: str, args: Sequence[Any], present: int) -> int:
    if function.startswith("conv") and function in _UNIT_DIM and args:
        return int(args[0].ndim) - 1 - int(function[-2])  # 0 without a batch
    return _UNIT_DIM.get(function, present)


def _dead(values: Tensor, unit_dim: int) -> float:
    values = values.reshape(1) if values.ndim == 0 else values
    units = values.movedim(unit_dim if values.ndim > 2 or unit_dim == 0 else -1, 0)
    return float(units.reshape(len(units), -1).abs().amax(1).eq(0).float().mean())


def _saturated(values: Tensor, low: float, high: float) -> float:
    return float((values.le(low).float() + values.ge(high).float()).mean())
