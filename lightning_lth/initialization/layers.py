"""What each type of layer is made of: weights with their true fans, and constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_lth.initialization.drawing import Role, Weight
from lightning_lth.initialization.writing import effective, own_parameters


@final
@dataclass(frozen=True)
class Maps:
    """A parameter that a rule draws.

    Attributes:
        weight: It as linear maps.
        arrange: From values shaped ``weight.shape`` to the shape of the parameter.
    """

    weight: Weight
    arrange: Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class Fill:
    """A parameter with given values: biases, and the affine part of normalization.

    Attributes:
        value: In every place.
        ones: Except here, where it is 1: the forget gate of an LSTM.
        torch_bound: Torch draws from ``U(-bound, bound)``; 0 if it takes ``value`` as well.
    """

    value: float
    ones: slice | None = None
    torch_bound: float = 0.0


@final
@dataclass(frozen=True)
class Keep:
    """A parameter that stays as it is, and why."""

    reason: str


Part = Maps | Fill | Keep


def parts(layer: Module) -> dict[str, Part] | None:
    """The parameters of a layer by attribute, in the order of the layer; None for unknown types.

    Examples:
        >>> found = parts(nn.Conv2d(64, 128, 3, groups=4, stride=2))
        >>> found["weight"].weight.fan_in, found["weight"].weight.fan_out, found["bias"].value
        (144.0, 72.0, 0.0)

    Note:
        Torch's own fan_out does not divide by groups and stride, and its fans of transposed
        convolutions are swapped.
    """
    for types, describe in _BY_TYPE:
        if isinstance(layer, types):
            return describe(layer)
    for kind in type(layer).__mro__:
        if (name := f"{kind.__module__}.{kind.__qualname__}") in _BY_NAME:
            return _BY_NAME[name](layer)
    return None


def generic(parameter: Tensor) -> Maps:
    """Any tensor as one map from all its later dimensions to the first, for rules given by name."""
    rows = parameter.shape[0] if parameter.dim() > 1 else parameter.numel()
    columns = parameter.numel() // max(rows, 1)
    receptive = math.prod(parameter.shape[2:])
    weight = Weight(1, rows, columns, fan_in=float(columns), fan_out=float(rows * receptive))
    return Maps(weight, lambda values: values.reshape(parameter.shape))


def _linear(layer: nn.Linear) -> dict[str, Part]:
    is_projection = isinstance(layer, NonDynamicallyQuantizableLinear)  # of an attention layer
    bound = 1 / math.sqrt(max(layer.in_features, 1))
    role: Role = "projection" if is_projection else "map"
    weight = _maps(1, layer.out_features, layer.in_features, bound, role)
    return {"weight": weight, "bias": Fill(0.0, torch_bound=0.0 if is_projection else bound)}


def _linear_of_torch_geometric(layer: Module) -> dict[str, Part]:
    rows, columns = _sizes(layer)
    bound = 1 / math.sqrt(max(columns, 1))
    return {"weight": _maps(1, rows, columns, bound, "map"), "bias": Fill(0.0, torch_bound=bound)}


def _conv1d_of_transformers(layer: Module) -> dict[str, Part]:
    """A linear map whose weight is transposed; drawn with a standard deviation of 0.02."""
    columns, rows = _sizes(layer)
    weight = Weight(
        1, rows, columns, float(columns), float(rows), torch_std=0.02, torch_distribution="normal"
    )
    maps = Maps(weight, lambda values: values.reshape(rows, columns).T)
    return {"weight": maps, "bias": Fill(0.0)}


def _sizes(layer: Module) -> tuple[int, int]:
    assert isinstance(layer.weight, Tensor)
    rows, columns = layer.weight.shape
    return rows, columns


def _convolution(layer: _ConvNd) -> dict[str, Part]:
    groups, kernel = layer.groups, math.prod(layer.kernel_size)
    inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
    strides = math.prod(layer.stride)
    is_transposed = isinstance(layer, _ConvTransposeNd)
    bound = 1 / math.sqrt(max((outputs if is_transposed else inputs) * kernel, 1))
    weight = Weight(
        count=groups,
        rows=outputs,
        columns=inputs * kernel,
        fan_in=inputs * kernel / (strides if is_transposed else 1),
        fan_out=outputs * kernel / (1 if is_transposed else strides),
        torch_std=bound / math.sqrt(3),
    )

    def arrange(values: Tensor) -> Tensor:
        values = values.reshape(groups, outputs, inputs, *layer.kernel_size)
        if is_transposed:
            values = values.transpose(1, 2)
        return values.flatten(0, 1)

    return {"weight": Maps(weight, arrange), "bias": Fill(0.0, torch_bound=bound)}


def _bilinear(layer: nn.Bilinear) -> dict[str, Part]:
    first, second, outputs = layer.in1_features, layer.in2_features, layer.out_features
    bound = 1 / math.sqrt(first)
    weight = Weight(
        count=1,
        rows=outputs,
        columns=first * second,
        fan_in=float(first * second),
        fan_out=float(outputs * second),
        torch_std=bound / math.sqrt(3),
    )
    maps = Maps(weight, lambda values: values.reshape(outputs, first, second))
    return {"weight": maps, "bias": Fill(0.0, torch_bound=bound)}


def _recurrent(layer: nn.RNNBase | nn.RNNCellBase) -> dict[str, Part]:
    gates = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
    count = next((number for kind, number in gates.items() if isinstance(layer, kind)), 1)
    bound = 1 / math.sqrt(layer.hidden_size)
    forget = slice(layer.hidden_size, 2 * layer.hidden_size) if count == 4 else None
    roles: dict[str, tuple[int, Role]] = {
        "weight_ih": (count, "gate"),
        "weight_hh": (count, "recurrent"),
        "weight_hr": (1, "projection"),
    }
    found: dict[str, Part] = {}
    for name in own_parameters(layer):
        if name.startswith(("bias_ih", "bias_hh")):
            # Both biases are added up, so that one of them opens the forget gate.
            ones = forget if name.startswith("bias_ih") else None
            found[name] = Fill(0.0, ones, torch_bound=bound)
        elif name[:9] in roles:  # what else there is belongs to a subclass
            maps, role = roles[name[:9]]
            rows, columns = effective(layer, name).shape
            found[name] = _maps(maps, rows // maps, columns, bound, role)
    return found


def _attention(layer: nn.MultiheadAttention) -> dict[str, Part]:
    size = layer.embed_dim
    found: dict[str, Part] = {
        "in_proj_weight": _maps(3, size, size, math.sqrt(6 / (4 * size)), "projection"),
        "in_proj_bias": Fill(0.0),
    }
    for name, inputs in (("q", size), ("k", layer.kdim), ("v", layer.vdim)):
        bound = math.sqrt(6 / (size + inputs))
        found[f"{name}_proj_weight"] = _maps(1, size, inputs, bound, "projection")
    for name in ("bias_k", "bias_v"):  # a token that every sequence gets
        found[name] = _table(1, size, torch_std=1 / math.sqrt(size), shape=(1, 1, size))
    return found


def _embedding(layer: nn.Embedding | nn.EmbeddingBag) -> dict[str, Part]:
    shape = (layer.num_embeddings, layer.embedding_dim)
    return {"weight": _table(*shape, torch_std=1.0, shape=shape, padding=layer.padding_idx)}


def _normalization(layer: Module) -> dict[str, Part]:
    return {"weight": Fill(1.0), "bias": Fill(0.0)}


def _maps(count: int, rows: int, columns: int, torch_bound: float, role: Role) -> Maps:
    weight = Weight(
        count,
        rows,
        columns,
        fan_in=float(columns),
        fan_out=float(rows),
        role=role,
        torch_std=torch_bound / math.sqrt(3),
    )
    return Maps(weight, lambda values: values.reshape(count * rows, columns))


def _table(
    rows: int, size: int, *, torch_std: float, shape: tuple[int, ...], padding: int | None = None
) -> Maps:
    def arrange(values: Tensor) -> Tensor:
        values = values.reshape(shape)
        if padding is not None:
            values[padding] = 0
        return values

    # A row is looked up, not added up: fan_in is 1.
    weight = Weight(
        1, rows, size, 1.0, float(size), role="embedding",
        torch_std=torch_std, torch_distribution="normal",
    )  # fmt: skip
    return Maps(weight, arrange)


_NORMALIZATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_BY_TYPE: tuple[tuple[type[Module] | tuple[type[Module], ...], Callable[..., dict[str, Part]]], ...]
_BY_TYPE = (
    (nn.Linear, _linear),
    (_ConvNd, _convolution),
    (nn.Bilinear, _bilinear),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (nn.MultiheadAttention, _attention),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (_NORMALIZATION, _normalization),
    (nn.PReLU, lambda layer: {"weight": Keep("slopes are kept")}),
)
# Layers of libraries that need not be installed.
_BY_NAME: dict[str, Callable[[Module], dict[str, Part]]] = {
    "torch_geometric.nn.dense.linear.Linear": _linear_of_torch_geometric,
    "transformers.pytorch_utils.Conv1D": _conv1d_of_transformers,
}
