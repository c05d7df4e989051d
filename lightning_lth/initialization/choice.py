"""Which rule a weight gets, where the user leaves the choice to us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Generator, Tensor

from lightning_lth.initialization import rules
from lightning_lth.initialization.drawing import Distribution, Rule, Weight, check_choice
from lightning_lth.initialization.gains import gain

_XAVIER = frozenset(
    ("linear", "tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign", "tanhshrink", "softshrink")
)


@final
@dataclass(frozen=True)
class Auto:
    """Chooses by role and following nonlinearity; made by ``auto``."""

    distribution: Distribution = "normal"
    activation: str | None = None

    def __post_init__(self) -> None:
        check_choice("distribution", self.distribution, ("normal", "uniform", "truncated"))
        if self.activation is not None:
            gain(self.activation)

    def __str__(self) -> str:
        return "auto"

    def __call__(self, weight: Weight, generator: Generator) -> Tensor:
        """Draw the values."""
        return self.choose(weight)(weight, generator)

    def choose(self, weight: Weight) -> Rule:
        """The rule for this weight."""
        if weight.role == "embedding":
            return rules.TABLE
        if weight.role == "recurrent":
            return rules.orthogonal()
        if weight.role in ("gate", "projection"):
            return rules.xavier(self.distribution)
        if weight.activation.partition("(")[0] in _XAVIER:
            return rules.xavier(self.distribution, gain=None)
        return (
            rules.lecun(self.distribution)
            if weight.activation == "selu"
            else rules.he(self.distribution)
        )


def auto(distribution: Distribution = "normal", *, activation: str | None = None) -> Auto:
    """He before ReLU and its kin, Xavier before tanh, sigmoid or nothing, LeCun before SELU.

    He and Xavier with the gain of the nonlinearity. Gates of recurrent layers and projections of
    attention layers are Xavier, each by itself; recurrent weights are orthogonal. Embeddings have
    standard deviation ``1 / sqrt(dim)``.

    Args:
        distribution: How values are distributed, where they are independent.
        activation: The nonlinearity that follows, if you know better than the forward pass.

    Examples:
        >>> str(auto().choose(Weight(1, 2, 3, fan_in=3, fan_out=2, activation="tanh")))
        'xavier'
    """
    return Auto(distribution, activation)


def chosen(rule: Rule, weight: Weight) -> Rule:
    """The rule that really draws: ``auto`` decided, and no orthogonal matrix of a single row."""
    if isinstance(rule, Auto):
        rule = rule.choose(weight)
    if isinstance(rule, rules.Orthogonal) and weight.rows == 1 and weight.count > 1:
        return rules.he(gain=rule.gain)
    return rule


def covers_tables(rule: Rule) -> bool:
    """Whether a rule for a whole network means its embedding tables, which are no maps, too."""
    return isinstance(rule, (rules.Constant, rules.ConstantStd, rules.TorchDefault))


def needs_activation(rule: Rule, *, has_example: bool = True) -> bool:
    """Whether what a rule draws depends on the nonlinearity that follows.

    Without an example, ``he`` is taken at its word: it was derived for ReLU.
    """
    if isinstance(rule, Auto):
        return rule.activation is None
    if isinstance(rule, rules.VarianceScaling) and rule.name == "he" and not has_example:
        return False
    if isinstance(rule, (rules.VarianceScaling, rules.Orthogonal)):
        return rule.gain is None
    return isinstance(rule, rules.RandomWalk)
