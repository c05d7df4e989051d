"""What is known about a weight, and random values for it that depend on a seed and a name alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from numbers import Real
from types import FunctionType
from typing import Literal, Protocol, final, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn import init

Distribution = Literal["normal", "uniform", "truncated"]
Fan = Literal["fan_in", "fan_out", "average"]
Role = Literal["map", "gate", "recurrent", "projection", "embedding"]

# Std of a standard normal that is cut off at 2: exact 0.8796256610342398.
_TRUNCATED_STD = 0.87962566


@final
@dataclass(frozen=True)
class Weight:
    """A weight as linear maps: what a rule needs to know about it.

    Attributes:
        count: Maps side by side: groups of a convolution, gates of an LSTM, projections of an
            attention layer.
        rows: Outputs of each.
        columns: Inputs of each, kernel positions included.
        fan_in: Terms that are added up in an output, on average; of a strided transposed
            convolution these are fewer than ``columns``.
        fan_out: Outputs that each input contributes to, on average.
        activation: The nonlinearity that follows.
        gain: What makes up for it.
        role: ``"map"`` for layers whose scale the following nonlinearity decides.
        torch_std: Standard deviation that torch's own ``reset_parameters`` draws with.
        torch_distribution: How torch draws.
        out: Memory of the parameter itself, shaped like the values, if a rule may draw there and
            save a copy; rules need not look at it.
    """

    count: int
    rows: int
    columns: int
    fan_in: float
    fan_out: float
    activation: str = "linear"
    gain: float = 1.0
    role: Role = "map"
    torch_std: float = 0.0
    torch_distribution: Distribution = "uniform"
    out: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the values that a rule returns: maps, outputs, inputs."""
        return self.count, self.rows, self.columns

    def fan(self, mode: Fan) -> float:
        """The fan by its name; ``"average"`` is of both."""
        fans = {
            "fan_in": self.fan_in,
            "fan_out": self.fan_out,
            "average": (self.fan_in + self.fan_out) / 2,
        }
        return fans[mode]


@runtime_checkable
class Rule(Protocol):
    """Draws the values of a weight; any function with this signature will do.

    Examples:
        >>> def cauchy(weight, generator):
        ...     return torch.empty(weight.shape).cauchy_(0, 0.01, generator=generator)
    """

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """Draw the values.

        Args:
            weight: What is known about it.
            generator: On the CPU, seeded for this weight alone.

        Returns:
            ``float32`` values on the CPU with the shape ``weight.shape``.
        """


def draw(weight: Weight, std: float, distribution: Distribution, generator: Generator) -> Tensor:
    """Independent values with mean 0 and this standard deviation, whatever the distribution.

    Examples:
        >>> weight = Weight(1, 10, 100, fan_in=100.0, fan_out=10.0)
        >>> values = draw(weight, 2.0, "uniform", generator_for(0, "weight"))
        >>> bool(values.abs().max() <= 2 * 3**0.5)
        True
    """
    values = empty(weight.shape) if weight.out is None else weight.out
    if distribution == "uniform":
        bound = math.sqrt(3) * std
        return values.uniform_(-bound, bound, generator=generator)
    if distribution == "truncated" and std > 0:
        wide = std / _TRUNCATED_STD
        return init.trunc_normal_(values, 0, wide, -2 * wide, 2 * wide, generator=generator)
    return values.normal_(0, std, generator=generator)


def generator_for(seed: int, name: str) -> Generator:
    """A generator that depends on a seed and a name alone.

    Examples:
        >>> torch.rand(2, generator=generator_for(0, "0.weight"))
        tensor([0.2818, 0.2654])
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))


def empty(shape: tuple[int, ...]) -> Tensor:
    """Memory for values: ``float32`` on the CPU, whatever the defaults of torch are now."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}.")


def check_number(name: str, value: object) -> None:
    """Refuse what is no finite number."""
    if not (isinstance(value, Real) and math.isfinite(value)):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}.")


def check_scale(name: str, value: object) -> None:
    """Refuse what cannot be a standard deviation or a gain."""
    if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= 0):
        raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")


def check_rule(name: str, value: object) -> None:
    """Refuse what cannot draw values."""
    if not is_rule(value):
        raise TypeError(
            f"`{name}` must be a rule, got {value!r}. "
            f"Functions of lightning_lth.initialization make them, such as `he()` and `zeros()`."
        )


def is_rule(value: object) -> bool:
    """Whether this may be a rule: not a type, and not one of our functions that *make* rules."""
    makes_rules = str(getattr(value, "__module__", "")).startswith(__package__)
    return (
        callable(value)
        and not isinstance(value, type)
        and not (isinstance(value, FunctionType) and makes_rules)
    )
