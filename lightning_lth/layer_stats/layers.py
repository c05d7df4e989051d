"""Which layers of a network there are statistics of, and their channels laid end to end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

_OF_TORCH: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "batch_norm"),
    (_InstanceNorm, "instance_norm"),
    (nn.GroupNorm, "group_norm"),
    (nn.LayerNorm, "layer_norm"),
    (nn.RMSNorm, "rms_norm"),
)
# FrozenBatchNorm2d, LlamaRMSNorm, GroupNorm1, RmsNormAct2d; not LayerNormLinear.
_OF_OTHERS = re.compile(r"(batch|instance|group|layer|rms)_?norm\w{0,5}$", re.IGNORECASE)
_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def normalization_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every normalization layer by its name, in the order of ``named_modules()``.

    Those of torch, and of other libraries if the class name ends like torch's and there is a
    one-dimensional ``weight``. A layer shared under two names is there once, by the first. Lazy
    layers are there once they are materialized.

    Args:
        module: The network. If it is a normalization layer itself, its name is ``""``.

    Examples:
        >>> list(normalization_layers(nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))))
        ['1']
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if _group(layer) is not None and not _is_uninitialized(layer)
    }


def group(layer: nn.Module) -> str:
    """The kind of a normalization layer.

    Returns:
        ``"batch_norm"``, ``"instance_norm"``, ``"group_norm"``, ``"layer_norm"`` or ``"rms_norm"``.

    Raises:
        ValueError: If it is no normalization layer.

    Examples:
        >>> group(nn.SyncBatchNorm(2))
        'batch_norm'
    """
    found = _group(layer)
    if found is None:
        raise ValueError(
            f"`layer` must be a normalization layer, got {type(layer).__name__}. "
            "`normalization_layers(module)` gives those of a network."
        )
    return found


def dropout_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every dropout layer of torch by its name; one shared under two names is there once.

    Dropout that is no layer (``F.dropout``, ``nn.LSTM(dropout=...)``, attention) is not found.

    Examples:
        >>> list(dropout_layers(nn.Sequential(nn.Linear(1, 2), nn.AlphaDropout(0.1))))
        ['1']
    """
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _DROPOUT)}


@final
class Spans:
    """Where each of several vectors lies in one that holds them all end to end.

    Building it copies to the device; using it does not wait for the device.

    Args:
        widths: The number of entries of each vector.
        device: Where the vectors are.

    Examples:
        >>> spans = Spans([1, 2], torch.device("cpu"))
        >>> spans.means(torch.tensor([5.0, 1.0, 2.0]))
        tensor([5.0000, 1.5000])
        >>> spans.spread(torch.tensor([8.0, 9.0]))
        tensor([8., 9., 9.])
    """

    def __init__(self, widths: Sequence[int], device: torch.device) -> None:
        sizes = torch.tensor(widths, dtype=torch.int64)
        self._index = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
        self._shares = (1.0 / sizes).to(device, torch.float32)

    def means(self, values: Tensor) -> Tensor:
        """The mean of each vector; NaN for one without entries."""
        return torch.zeros_like(self._shares).index_add_(0, self._index, values).mul_(self._shares)

    def spread(self, values: Tensor) -> Tensor:
        """One value for each vector, repeated for all of its entries."""
        return values.index_select(0, self._index)


def _group(layer: nn.Module) -> str | None:
    for kind, name in _OF_TORCH:
        if isinstance(layer, kind):
            return name
    match = _OF_OTHERS.search(type(layer).__name__)
    weight = getattr(layer, "weight", None)
    if match is None or not isinstance(weight, Tensor) or is_lazy(weight) or weight.dim() != 1:
        return None
    return f"{match[1].lower()}_norm"


def _is_uninitialized(layer: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in chain(layer.parameters(), layer.buffers()))
