"""How the values of a weight are drawn: from its fans, its gain and a generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Generator, Tensor
from torch.nn import init

from lightning_lth.initialization.drawing import (
    Distribution,
    Fan,
    Weight,
    check_choice,
    check_number,
    check_scale,
    draw,
    empty,
)
from lightning_lth.initialization.gains import gain


@final
@dataclass(frozen=True)
class VarianceScaling:
    """Independent values with standard deviation ``gain / sqrt(fan)``; made by ``he`` and kin.

    Attributes:
        name: In reports.
        fan: Which fan.
        distribution: ``"truncated"`` cuts off at two standard deviations and makes up for it.
        gain: A number, or None for that of the nonlinearity that follows.
    """

    name: str
    fan: Fan
    distribution: Distribution = "normal"
    gain: float | None = None

    def __post_init__(self) -> None:
        check_choice("fan", self.fan, ("fan_in", "fan_out", "average"))
        check_choice("distribution", self.distribution, ("normal", "uniform", "truncated"))
        if self.gain is not None:
            check_scale("gain", self.gain)

    def __str__(self) -> str:
        return self.name if self.distribution == "normal" else f"{self.name} {self.distribution}"

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """Draw the values."""
        std = self.gain_of(weight) / math.sqrt(weight.fan(self.fan))
        return draw(weight, std, self.distribution, generator)

    def gain_of(self, weight: Weight) -> float:
        """The gain, as in the report."""
        return weight.gain if self.gain is None else self.gain

    def fan_of(self, weight: Weight) -> float:
        """The fan, as in the report."""
        return weight.fan(self.fan)


def he(
    distribution: Distribution = "normal", *, fan: Fan = "fan_in", gain: float | None = None
) -> VarianceScaling:
    """Variance ``gain^2 / fan``, with the gain of the nonlinearity that follows.

    Examples:
        >>> rule = he()
        >>> rule.gain_of(Weight(1, 10, 50, fan_in=50, fan_out=10, activation="relu", gain=2**0.5))
        1.4142135623730951

    Source:
        He et al. 2015, arXiv:1502.01852: equations 10 and 14.
    """
    return VarianceScaling("he", fan, distribution, gain)


def xavier(
    distribution: Distribution = "normal", *, fan: Fan = "average", gain: float | None = 1.0
) -> VarianceScaling:
    """Variance ``2 gain^2 / (fan_in + fan_out)``; ``gain=None`` is by the nonlinearity.

    Source:
        Glorot & Bengio 2010: equation 16.
    """
    return VarianceScaling("xavier", fan, distribution, gain)


def lecun(
    distribution: Distribution = "normal", *, fan: Fan = "fan_in", gain: float | None = 1.0
) -> VarianceScaling:
    """Variance ``1 / fan_in``, as self-normalizing networks need it.

    Source:
        LeCun et al. 1998, Efficient BackProp: section 4.6; Klambauer et al. 2017, arXiv:1706.02515.
    """
    return VarianceScaling("lecun", fan, distribution, gain)


# Logits of a head that is tied to the table then have variance 1 for features of variance 1.
TABLE = VarianceScaling("embedding", "fan_out", gain=1.0)


@final
@dataclass(frozen=True)
class Orthogonal:
    """Rows (or columns, where there are fewer) that are orthogonal; made by ``orthogonal``."""

    gain: float | None = None

    def __post_init__(self) -> None:
        if self.gain is not None:
            check_scale("gain", self.gain)

    def __str__(self) -> str:
        return "orthogonal"

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """Draw the values."""
        scale = self.gain_of(weight) * math.sqrt(weight.columns / weight.fan_in)
        values = empty(weight.shape)
        for matrix in values:
            init.orthogonal_(matrix, scale, generator=generator)
        return values

    def gain_of(self, weight: Weight) -> float:
        """The gain, as in the report."""
        return weight.gain if self.gain is None else self.gain


def orthogonal(*, gain: float | None = None) -> Orthogonal:
    """Semi-orthogonal matrices times a gain: one for each group, gate or projection.

    Args:
        gain: A number, or None for that of the nonlinearity that follows.

    Note:
        A matrix of one row, as in a depthwise convolution, has no direction to be orthogonal to;
        there ``he`` is used instead.

    Source:
        Saxe et al. 2013, arXiv:1312.6120: section 3.
    """
    return Orthogonal(gain)


@final
@dataclass(frozen=True)
class RandomWalk:
    """Gaussian with the scale that keeps the log of the norm unbiased."""

    def __str__(self) -> str:
        return "random_walk"

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """Draw the values."""
        std = self.gain_of(weight) / math.sqrt(weight.fan_in)
        return draw(weight, std, "normal", generator)

    def gain_of(self, weight: Weight) -> float:
        """The gain, as in the report."""
        if weight.activation not in ("relu", "tanh"):
            return weight.gain * math.exp(1 / (2 * weight.fan_in))
        behind_gate = weight.gain / gain(weight.activation)
        if weight.activation == "tanh":
            return behind_gate * 1.15  # measured by the authors
        return behind_gate * math.sqrt(2) * math.exp(1.2 / (max(weight.fan_in, 6) - 2.4))

    def fan_of(self, weight: Weight) -> float:
        """The fan, as in the report."""
        return weight.fan_in


def random_walk() -> RandomWalk:
    """Gaussian weights whose product neither grows nor shrinks in the typical case.

    The expected *logarithm* of the norm stays, not the expected norm: ``g N(0, 1/N)`` with
    ``g = sqrt(2) exp(1.2 / (max(N, 6) - 2.4))`` before ReLU, 1.15 before tanh, and ``exp(1 / 2N)``
    without a nonlinearity; for others ``exp(1 / 2N)`` times their gain, which is our guess.

    Source:
        Sussillo & Abbott 2014, arXiv:1412.6558: equations 16 and 18.
    """
    return RandomWalk()


@final
@dataclass(frozen=True)
class Constant:
    """One value everywhere; made by ``zeros`` and ``constant``."""

    value: float

    def __post_init__(self) -> None:
        check_number("value", self.value)

    def __str__(self) -> str:
        return "zeros" if self.value == 0 else f"constant({self.value:g})"

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """The values."""
        return empty(weight.shape).fill_(float(self.value))


def zeros() -> Constant:
    """Zeros: as the weights of a whole network, the classic mistake; no symmetry is ever broken."""
    return Constant(0.0)


def constant(value: float) -> Constant:
    """The same value everywhere, e.g. ``1e-5`` for a layer scale."""
    return Constant(value)


@final
@dataclass(frozen=True)
class ConstantStd:
    """The same standard deviation in every layer; made by ``constant_std``."""

    std: float

    def __post_init__(self) -> None:
        check_scale("std", self.std)

    def __str__(self) -> str:
        return f"constant_std({self.std:g})"

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """Draw the values."""
        return draw(weight, self.std, "normal", generator)


def constant_std(std: float) -> ConstantStd:
    """Gaussian weights of the same standard deviation in every layer, whatever its fan."""
    return ConstantStd(std)


@final
@dataclass(frozen=True)
class TorchDefault:
    """What torch's ``reset_parameters`` draws, biases included; made by ``torch_default``."""

    def __str__(self) -> str:
        return "torch_default"

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """Draw the values."""
        return draw(weight, weight.torch_std, weight.torch_distribution, generator)


def torch_default() -> TorchDefault:
    """The distributions of torch's own layers, e.g. ``U(-1, 1) / sqrt(fan_in)`` for linear ones."""
    return TorchDefault()
