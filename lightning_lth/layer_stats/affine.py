"""What the scales and offsets of normalization layers say about them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_lth.layer_stats.layers import Spans, group
from lightning_lth.layer_stats.readings import Readings, joined

if TYPE_CHECKING:
    from torch.nn import Module

DEAD_VARIANCE = 1e-6
DEAD_BOUND = 3.090232306167813  # Phi(3.0902...) = 0.999: 1 of 1000 values passes the ReLU

_Part = tuple[str, dict[str, int], Tensor]  # statistic, width by layer, values end to end


@torch.no_grad()
def affine_statistics(
    layers: Mapping[str, Module], *, before_relu: Container[str] = (), small_gamma: float = 1e-2
) -> Readings:
    r"""Read the parameters ``weight`` (gamma) and ``bias`` (beta) of normalization layers.

    * ``gamma_abs``: mean of abs(gamma).
    * ``gamma_zero``: share of abs(gamma) below ``small_gamma``, in [0, 1].
    * ``neg_beta``: share of beta below 0, in [0, 1].
    * ``dead``, for batch norm: share of the channels whose running variance is below 1e-6, or,
      where a ReLU follows, of which it would pass less than 1 in 1000 values of a Gaussian:
      ``Phi(-beta / abs(gamma)) > 0.999``; for gamma 0, ``beta <= 0``.

    A layer without the parameter or buffer has no such statistic.

    Args:
        layers: Name to normalization layer.
        before_relu: Names of the layers that a ReLU follows.
        small_gamma: Below this a scale counts as zero.

    Raises:
        ValueError: If a layer is no normalization layer.

    Examples:
        >>> layer = torch.nn.BatchNorm1d(2)
        >>> layer.bias.data = torch.tensor([-4.0, 1.0])
        >>> affine_statistics({"bn": layer}, before_relu={"bn"}).to_numbers()[("bn", "dead")]
        0.5

    Note:
        For layers that scale by ``1 + weight`` (Gemma) the figures of gamma are off by that 1.
    """
    devices: dict[torch.device, dict[str, _Layer]] = {}
    for name, module in layers.items():
        layer = _Layer.of(module, is_before_relu=name in before_relu)
        if (tensor := layer.first) is not None:
            devices.setdefault(tensor.device, {})[name] = layer
    return joined([_read(found, device, small_gamma) for device, found in devices.items()])


@dataclass(frozen=True, eq=False)
class _Layer:
    """What is read of a layer; None where it has no such thing, or it does not matter."""

    gamma: Tensor | None
    beta: Tensor | None
    running_var: Tensor | None
    is_before_relu: bool

    @classmethod
    def of(cls, module: Module, *, is_before_relu: bool) -> _Layer:
        gamma, beta = getattr(module, "weight", None), getattr(module, "bias", None)
        if group(module) != "batch_norm":
            return cls(gamma, beta, None, False)
        return cls(gamma, beta, getattr(module, "running_var", None), is_before_relu)

    @property
    def first(self) -> Tensor | None:
        tensors = (self.gamma, self.beta, self.running_var)
        return next((tensor for tensor in tensors if tensor is not None), None)


def _read(layers: Mapping[str, _Layer], device: torch.device, small_gamma: float) -> Readings:
    parts = [*_gammas(layers, small_gamma), _betas(layers), _dead(layers, device)]
    parts = [part for part in parts if part[1]]
    names = tuple((name, statistic) for statistic, widths, _ in parts for name in widths)
    spans = Spans([width for _, widths, _ in parts for width in widths.values()], device)
    return Readings(names, spans.means(torch.cat([values for _, _, values in parts])))


def _gammas(layers: Mapping[str, _Layer], small_gamma: float) -> list[_Part]:
    gammas = {name: layer.gamma for name, layer in layers.items() if layer.gamma is not None}
    size, widths = _flat(gammas).abs_(), _widths(gammas)
    return [("gamma_abs", widths, size), ("gamma_zero", widths, (size < small_gamma).float())]


def _betas(layers: Mapping[str, _Layer]) -> _Part:
    betas = {name: layer.beta for name, layer in layers.items() if layer.beta is not None}
    return "neg_beta", _widths(betas), (_flat(betas) < 0).float()


def _dead(layers: Mapping[str, _Layer], device: torch.device) -> _Part:
    one, zero = torch.ones((), device=device), torch.zeros((), device=device)
    variances, gammas, betas = {}, {}, {}
    for name, layer in layers.items():
        gamma, beta = (layer.gamma, layer.beta) if layer.is_before_relu else (None, None)
        shape = next((t.shape for t in (layer.running_var, gamma, beta) if t is not None), None)
        if shape is not None:  # what is missing counts as alive
            variances[name] = one.expand(shape) if layer.running_var is None else layer.running_var
            gammas[name] = one.expand(shape) if gamma is None else gamma
            betas[name] = zero.expand(shape) if beta is None else beta
    # Not by Phi(-beta / abs(gamma)), which is NaN at 0 / 0.
    is_shut = _flat(betas) + DEAD_BOUND * _flat(gammas).abs_() <= 0
    dead = (_flat(variances) < DEAD_VARIANCE).logical_or_(is_shut)
    return "dead", _widths(variances), dead.float()


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """A copy of them all, end to end."""
    if not tensors:
        return torch.empty(0)
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).float()


def _widths(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: tensor.numel() for name, tensor in tensors.items()}
