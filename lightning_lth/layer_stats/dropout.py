"""How much a dropout layer keeps, and how far it shifts the variance behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_WILSON_Z = 1.959964  # 95 % of a normal distribution lie within as many standard deviations
_SELU_FLOOR = 1.7580993408473766  # what alpha dropout puts in for a unit, up to its affine map
_OF_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)


def drawn_count(input: Tensor, layer: nn.Module) -> Tensor:
    """How many draws a dropout layer makes for a part of the batch.

    A draw is an element, or a channel for layers that drop channels. Where the input already is
    what a dropped unit becomes, nobody can tell; such draws do not count.

    Args:
        input: What the layer is given, before it overwrites it (``inplace=True``).
        layer: Any dropout layer of torch.

    Examples:
        >>> drawn_count(torch.tensor([[3.0, 0.0, 1.0]]), nn.Dropout(0.5))
        tensor(2.)
    """
    return _count(input, layer, -_SELU_FLOOR if is_alpha_dropout(layer) else 0.0)


def kept_count(output: Tensor, layer: nn.Module) -> Tensor:
    """How many of the draws of ``drawn_count`` were kept, from what the layer gave in training.

    Examples:
        >>> kept_count(torch.tensor([[6.0, 0.0, 0.0]]), nn.Dropout(0.5))
        tensor(1.)
    """
    keep_probability = 1 - drop_probability(layer)
    if not is_alpha_dropout(layer) or keep_probability == 0:
        return _count(output, layer, 0.0)
    scale = (keep_probability * (1 + _SELU_FLOOR**2 * (1 - keep_probability))) ** -0.5
    return _count(output, layer, -_SELU_FLOOR * scale * keep_probability, scale)


def drop_probability(layer: nn.Module) -> float:
    """The ``p`` of a dropout layer.

    Examples:
        >>> drop_probability(nn.Dropout2d(0.1))
        0.1
    """
    probability: Any = layer.p
    return float(probability)


def is_alpha_dropout(layer: nn.Module) -> bool:
    """Whether mean and variance stay as they are, and dropped units do not become zero."""
    return isinstance(layer, (nn.AlphaDropout, nn.FeatureAlphaDropout))


def keep_statistics(counts: Tensor, keep_probability: Tensor) -> dict[str, Tensor]:
    """How much was kept, and whether that agrees with what was asked for.

    Args:
        counts: Kept and drawn of each layer, shape ``(layers, 2)``.
        keep_probability: ``1 - p`` of each, shape ``(layers,)``.

    Returns:
        ``keep``, the share of the draws; its 95 % confidence interval ``keep_low`` to
        ``keep_high``; ``keep_z``, the distance from ``keep_probability`` in standard errors. NaN
        without draws, and the last one if the probability is 0 or 1.

    Examples:
        >>> keep_statistics(torch.tensor([[60.0, 100.0]]), torch.tensor([0.5]))["keep_z"]
        tensor([2.0000])

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    kept, drawn = counts.float().unbind(-1)
    keep = kept / drawn
    error = (keep_probability * (1 - keep_probability) / drawn).sqrt()
    z = torch.where(error > 0, (keep - keep_probability) / error, torch.nan)
    square = _WILSON_Z**2
    center = (kept + square / 2) / (drawn + square)
    half = _WILSON_Z / (drawn + square) * (kept * (1 - keep) + square / 4).sqrt()
    low, high = (center - half).clamp(min=0), (center + half).clamp(max=1)
    return {"keep": keep, "keep_low": low, "keep_high": high, "keep_z": z}


def variance_ratio(input: Tensor, keep_probability: float, *, channel_dim: int = 1) -> Tensor:
    """The variance behind a dropout layer in evaluation, relative to that in training.

    For a channel with mean ``c`` and variance ``v`` it is ``v / ((c^2 + v) / q - c^2)``; here the
    mean over channels that are not constantly zero. Batch normalization behind the layer is off
    by that much. In a part of the batch, as in ``first_eighth``.

    Args:
        input: What the layer was given.
        keep_probability: ``q``, in ``[0, 1]``.
        channel_dim: See ``channel_dim``.

    Returns:
        One number between 0 and ``q``; NaN if all is zero, and if channels have one value.

    Examples:
        >>> variance_ratio(torch.tensor([[0.0], [2.0]] * 8), keep_probability=0.5)
        tensor(0.3333)

    Source:
        Li et al. 2019, arXiv:1801.05134, case (a).
    """
    values = first_eighth(input.reshape(-1, 1) if input.dim() < 2 else input).float()
    others = [dim for dim in range(values.dim()) if dim != channel_dim % values.dim()]
    if values.numel() == values.shape[channel_dim % values.dim()]:
        return torch.full((), torch.nan, device=values.device)
    mean = values.mean(others, keepdim=True)
    variance = (values - mean).square_().mean(others)
    square = mean.flatten().square()
    # Both sides times q / v, which leaves nothing that cancels or is divided by q = 0.
    return (keep_probability * variance / (variance + (1 - keep_probability) * square)).nanmean()


def channel_dim(input: Tensor, layer: nn.Module) -> int:
    """Which dimension of an input to a dropout layer is that of the channels.

    The second; but the last of ``(batch, time, features)``, which is what ``nn.Dropout`` in
    transformers and recurrent networks gets. Layers that drop channels take the second anyway.

    Examples:
        >>> [channel_dim(torch.ones(shape), nn.Dropout()) for shape in ((2, 3, 4), (2, 3, 4, 4))]
        [2, 1]
    """
    return 2 if input.dim() == 3 and not isinstance(layer, _OF_CHANNELS) else 1


def _count(values: Tensor, layer: nn.Module, dropped: float, scale: float = 1.0) -> Tensor:
    """The number of draws that differ from what a dropped unit is."""
    if values.numel() == 0:
        return torch.zeros((), device=values.device)
    if isinstance(layer, nn.Dropout1d) and values.dim() == 2:  # no batch, as in torch
        values = values.unsqueeze(0)
    if isinstance(layer, nn.Dropout3d) and values.dim() == 4:
        values = values.unsqueeze(0)
    # Rounded several times on the way; zeros are exact.
    tolerance = 4 * torch.finfo(values.dtype).eps * _SELU_FLOOR * scale if dropped else 0.0
    distance = (first_eighth(values) - dropped).abs_()
    if isinstance(layer, _OF_CHANNELS) and distance.dim() > 2:
        distance = distance.flatten(2).amax(2)
    # In floats: counting booleans is a hundred times slower on a CPU.
    return distance.gt_(tolerance).sum(dtype=torch.float32)


def first_eighth(values: Tensor) -> Tensor:
    """The first eighth of a batch, at least one sample: enough to read, and cheap.

    Examples:
        >>> first_eighth(torch.arange(9.0))
        tensor([0., 1.])
    """
    values = values.detach()
    return values.narrow(0, 0, -(-len(values) // 8)) if values.dim() else values.reshape(1)
