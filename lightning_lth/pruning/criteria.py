"""Ways to score weights by both ends of training, after Zhou et al. 2019.

Source:
    Zhou, Lan, Liu & Yosinski 2019, "Deconstructing Lottery Tickets", arXiv:1905.01067: mask
    criteria, and for the two about signs, supermasks. There the best of them are ``large_final``
    and ``magnitude_increase``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from lightning_lth.pruning.scoring import NOT_GIVEN, Criterion, Scores, magnitude

large_final = magnitude


def small_final(final: Mapping[str, Tensor], initial: Mapping[str, Tensor] = NOT_GIVEN) -> Scores:
    """``-|final|``: keep the weights that end up near zero. ``initial`` is not looked at.

    Examples:
        >>> small_final({"weight": torch.tensor([-3.0, 1.0])}).materialize()
        {'weight': tensor([-3., -1.])}
    """
    return Scores({name: (tensor,) for name, tensor in final.items()}, _negative_magnitude)


def large_init(final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
    """``|initial|``: keep the weights that began far from zero.

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> large_init(final, initial).materialize()
        {'w': tensor([0.5000, 2.0000])}
    """
    return Scores({name: (start,) for name, (_, start) in _pairs(final, initial)}, torch.abs)


def small_init(final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
    """``-|initial|``: keep the weights that began near zero.

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> small_init(final, initial).materialize()
        {'w': tensor([-0.5000, -2.0000])}
    """
    inputs = {name: (start,) for name, (_, start) in _pairs(final, initial)}
    return Scores(inputs, _negative_magnitude)


def large_init_large_final(alpha: float = 1.0) -> Criterion:
    """``min(alpha * |final|, |initial|)``: keep what was far from zero before and after training.

    Args:
        alpha: How much the end counts against the beginning, above 0.

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> large_init_large_final(alpha=1.0)(final, initial).materialize()
        {'w': tensor([0.5000, 1.0000])}
    """
    return functools.partial(_joint, _smaller_magnitude, _check_alpha(alpha))


def small_init_small_final(alpha: float = 1.0) -> Criterion:
    """``-max(alpha * |final|, |initial|)``: keep what was near zero before and after training.

    Args:
        alpha: How much the end counts against the beginning, above 0.

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> small_init_small_final(alpha=1.0)(final, initial).materialize()
        {'w': tensor([-3., -2.])}
    """
    return functools.partial(_joint, _negative_larger_magnitude, _check_alpha(alpha))


def magnitude_increase(final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
    """``|final| - |initial|``: keep the weights that moved away from zero.

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> magnitude_increase(final, initial).materialize()
        {'w': tensor([ 2.5000, -1.0000])}
    """
    return Scores(dict(_pairs(final, initial)), _magnitude_increase)


def movement(final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
    """``|final - initial|``: keep the weights that moved far.

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> movement(final, initial).materialize()
        {'w': tensor([3.5000, 1.0000])}
    """
    return Scores(dict(_pairs(final, initial)), _distance)


def large_final_same_sign(final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
    """``max(0, sign(initial) * final)``: keep large weights that kept their sign (supermasks).

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> large_final_same_sign(final, initial).materialize()
        {'w': tensor([0., 1.])}

    Note:
        The source writes ``initial * final / |initial|``, which is undefined where ``initial`` is
        0; here the score is 0 there.
    """
    return Scores(dict(_pairs(final, initial)), _same_sign)


def large_final_diff_sign(final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
    """``max(0, -sign(initial) * final)``: keep large weights that changed sign (a control).

    Examples:
        >>> final, initial = {"w": torch.tensor([-3.0, 1.0])}, {"w": torch.tensor([0.5, 2.0])}
        >>> large_final_diff_sign(final, initial).materialize()
        {'w': tensor([3., 0.])}
    """
    return Scores(dict(_pairs(final, initial)), _different_sign)


# Plain functions and `functools.partial`, no lambdas: criteria and scores can be pickled.


def _negative_magnitude(weights: Tensor) -> Tensor:
    return -weights.abs()


def _smaller_magnitude(final: Tensor, initial: Tensor, *, alpha: float) -> Tensor:
    return torch.minimum(alpha * final.abs(), initial.abs())


def _negative_larger_magnitude(final: Tensor, initial: Tensor, *, alpha: float) -> Tensor:
    return -torch.maximum(alpha * final.abs(), initial.abs())


def _magnitude_increase(final: Tensor, initial: Tensor) -> Tensor:
    return final.abs() - initial.abs()


def _distance(final: Tensor, initial: Tensor) -> Tensor:
    return (final - initial).abs()


def _same_sign(final: Tensor, initial: Tensor) -> Tensor:
    return (initial.sign() * final).clamp(min=0)


def _different_sign(final: Tensor, initial: Tensor) -> Tensor:
    return (-initial.sign() * final).clamp(min=0)


def _joint(
    function: Callable[..., Tensor],
    alpha: float,
    final: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
) -> Scores:
    return Scores(dict(_pairs(final, initial)), functools.partial(function, alpha=alpha))


def _pairs(
    final: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    missing = [name for name in final if name not in initial]
    if missing:
        raise ValueError(f"`initial` has no weights for {missing}. It has: {sorted(initial)}.")
    return ((name, (weights, initial[name])) for name, weights in final.items())


def _check_alpha(alpha: float) -> float:
    if not alpha > 0:
        raise ValueError(f"`alpha` must be above 0, got {alpha}.")
    return alpha
