"""Schemes by name, and those that need to know more than one weight at a time."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import final

from lightning_lth.initialization import rules
from lightning_lth.initialization.choice import auto
from lightning_lth.initialization.drawing import Rule, check_rule, is_rule


@final
@dataclass(frozen=True)
class Fixup:
    """Made by ``fixup``."""

    base: Rule


@final
@dataclass(frozen=True)
class LSUV:
    """Made by ``lsuv``."""

    base: Rule


@final
@dataclass(frozen=True)
class DataDependent:
    """Made by ``data_dependent``."""

    base: Rule
    iterations: int
    tolerance: float


Scheme = Rule | Fixup | LSUV | DataDependent


def fixup(base: Rule | None = None) -> Fixup:
    """Residual networks without normalization: scaled branches that end in zero.

    With ``L`` residual branches, the layers of a branch of ``m`` layers are scaled by
    ``L ** (-1 / (2 m - 2))``, its last layer is zero, and so is the last layer of the network. The
    logits are exactly 0 then, and the loss of ``c`` classes is ``ln(c)``.

    Args:
        base: Draws what is scaled; ``lightning_lth.initialization.rules.he`` by default.

    Note:
        Fixup also adds a scalar multiplier and scalar biases to each branch. Those belong to the
        architecture and are yours to add.

    Source:
        Zhang, Dauphin & Ma 2019, arXiv:1901.09321: section 3.
    """
    return Fixup(_base(base, rules.he()))


def lsuv(base: Rule | None = None) -> LSUV:
    """Scale every layer so that its output has variance 1 on the example batch.

    Args:
        base: Draws what is scaled; ``lightning_lth.initialization.rules.orthogonal`` by
            default.

    Source:
        Mishkin & Matas 2015, arXiv:1511.06422: algorithm 1; here in one forward pass.
    """
    return LSUV(_base(base, rules.orthogonal()))


def data_dependent(
    base: Rule | None = None, *, iterations: int = 10, tolerance: float = 0.01
) -> DataDependent:
    """Every unit has mean 0 and variance 1 on the example batch, all layers learn at one rate.

    Args:
        base: Draws what is scaled; ``lightning_lth.initialization.rules.he`` by default.
        iterations: How often layers are scaled against each other, at most; 0 for never.
        tolerance: Stop when no layer changes by more than this share.

    Source:
        Krähenbühl et al. 2015, arXiv:1511.06856: algorithms 1 and 2.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"`iterations` must be an integer of at least 0, got {iterations!r}.")
    if not (isinstance(tolerance, Real) and tolerance > 0):
        raise ValueError(f"`tolerance` must be a number above 0, got {tolerance!r}.")
    return DataDependent(_base(base, rules.he()), iterations, tolerance)


def _base(base: Rule | None, default: Rule) -> Rule:
    if base is None:
        return default
    check_rule("base", base)
    return base


_BY_NAME: dict[str, Callable[[], Scheme]] = {
    "auto": auto,
    "xavier": rules.xavier,
    "he": rules.he,
    "lecun": rules.lecun,
    "orthogonal": rules.orthogonal,
    "random_walk": rules.random_walk,
    "torch_default": rules.torch_default,
    "zeros": rules.zeros,
    "fixup": fixup,
    "lsuv": lsuv,
    "data_dependent": data_dependent,
}


def scheme_of(scheme: str | Scheme) -> Scheme:
    """A scheme by its name, with all defaults; or the one that was given.

    Raises:
        ValueError: If there is no scheme of that name.
        TypeError: If it is neither a name nor callable.

    Examples:
        >>> str(scheme_of("he"))
        'he'
    """
    if isinstance(scheme, str):
        if scheme not in _BY_NAME:
            close = difflib.get_close_matches(scheme, _BY_NAME, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"No scheme is called {scheme!r}.{hint} Schemes: "
                f"{', '.join(map(repr, _BY_NAME))}, and `constant_std(std)` from "
                f"lightning_lth.initialization."
            )
        return _BY_NAME[scheme]()
    if isinstance(scheme, (Fixup, LSUV, DataDependent)):
        return scheme
    if not is_rule(scheme):
        raise TypeError(
            f"`scheme` must be the name of a scheme or a rule, got {scheme!r}. "
            f"Functions of lightning_lth.initialization make rules, such as `he()`."
        )
    return scheme


def base_rule(scheme: Scheme) -> Rule:
    """What draws the values before the scheme goes over them."""
    return scheme.base if isinstance(scheme, (Fixup, LSUV, DataDependent)) else scheme


def needs_example(scheme: Scheme) -> bool:
    """Whether a scheme cannot do without a forward pass."""
    return isinstance(scheme, (Fixup, LSUV, DataDependent))
