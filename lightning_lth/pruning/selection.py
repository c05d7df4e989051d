"""Scores + fraction -> which weights survive, over all layers together or in each layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor
from typing import Literal

from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.order_statistics import Ranking
from lightning_lth.pruning.scoring import Scores

Scope = Literal["global", "layer"]


def prune(
    scores: Scores,
    masks: Masks,
    *,
    fraction: float,
    scope: Scope = "global",
    fractions: Mapping[str, float] | None = None,
) -> Masks:
    """Prune the lowest-scored survivors once; a pruned weight stays pruned.

    Parameters with the same rule (the same pattern, or none) form a group. Of each group, or of
    each of its tensors, exactly ``num_pruned`` weights fall. Equal scores fall in the order of
    the parameters in ``masks``, then of the positions in the tensor, row by row. Apart from that
    the order of parameters does not matter.

    Args:
        scores: One score for each weight; the highest survive.
        masks: The weights that survive so far, with the names and shapes of ``scores``.
        fraction: Share of the surviving weights to prune, in ``[0, 1)``.
        scope: ``"global"`` ranks all weights of a group together, ``"layer"`` each tensor apart.
        fractions: Glob pattern (``fnmatch``) on parameter names -> the fraction there, in place of
            ``fraction``; 0 leaves the parameter as it is. The first pattern that matches counts.

    Returns:
        New masks with the same names and shapes, on the devices of the scores, distributed alike.

    Raises:
        ValueError: If a fraction is outside ``[0, 1)``, ``scope`` is unknown, a pattern matches no
            parameter, names or shapes differ, the score of a survivor is NaN, or a distributed
            parameter is sharded otherwise than by rows.

    Examples:
        >>> import torch
        >>> scores = Scores.of({"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([2.0, 3.0])})
        >>> masks = Masks.dense(scores.materialize())
        >>> dict(prune(scores, masks, fraction=0.5))
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}
        >>> dict(prune(scores, masks, fraction=0.5, fractions={"b*": 0.0}))
        {'a': tensor([ True, False]), 'b': tensor([True, True])}

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635: section 1, step 3; by layer with half the fraction
        for the output layer as in sections 2 and 3, global as in section 4.
    """
    _check_scope(scope)
    _check_match(scores, masks)
    pruned = dict(masks)
    for names, share in _groups(list(masks), fraction, fractions or {}, scope):
        ranking = Ranking(scores, {name: masks[name] for name in names})
        pruned.update(ranking.without_smallest(num_pruned(ranking.num_survivors, share)))
    return Masks(pruned)


def keep(scores: Scores, masks: Masks, *, num_remaining: int) -> Masks:
    """Keep exactly so many of the survivors, those with the highest scores over all layers.

    Equal scores fall in the same order as for ``prune``.

    Args:
        scores: One score for each weight.
        masks: The weights that survive so far, with the names and shapes of ``scores``.
        num_remaining: How many survive then, from 0 to as many as survive so far.

    Returns:
        New masks with the same names and shapes, on the devices of the scores, distributed alike.

    Raises:
        ValueError: If there are too few survivors, names or shapes differ, or the score of a
            survivor is NaN.

    Examples:
        >>> import torch
        >>> scores = Scores.of({"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([2.0, 3.0])})
        >>> dict(keep(scores, Masks.dense(scores.materialize()), num_remaining=1))
        {'a': tensor([ True, False]), 'b': tensor([False, False])}
    """
    _check_match(scores, masks)
    ranking = Ranking(scores, masks)
    if not 0 <= num_remaining <= ranking.num_survivors:
        raise ValueError(
            f"`num_remaining` must be in [0, {ranking.num_survivors}], the number of survivors, "
            f"got {num_remaining}."
        )
    return Masks(ranking.without_smallest(ranking.num_survivors - num_remaining))


def check_fractions(fractions: Mapping[str, float] | None, names: Iterable[str]) -> None:
    """Refuse fractions that ``prune`` would refuse, before there are scores.

    Args:
        fractions: Glob pattern on parameter names -> fraction.
        names: The parameters that will be pruned.

    Raises:
        ValueError: If a fraction is outside ``[0, 1)``, or a pattern matches no parameter.

    Examples:
        >>> check_fractions({"head.*": 0.1}, ["body.weight", "head.weight"])
    """
    names = list(names)
    for pattern, share in (fractions or {}).items():
        _check_fraction(f"fractions[{pattern!r}]", share)
        _check_pattern(pattern, names)


def num_pruned(num_survivors: int, fraction: float) -> int:
    """How many of the survivors fall: the nearest whole number, halves rounded up.

    The fraction counts as the decimal number that Python prints for it, and all is exact: 0.145 of
    100 weights are 14.5, so 15 fall, while ``round(0.145 * 100)`` is 14.

    Args:
        num_survivors: How many weights survive so far.
        fraction: Share of them to prune, in ``[0, 1)``.

    Raises:
        ValueError: If ``fraction`` is outside ``[0, 1)``.

    Examples:
        >>> num_pruned(266_200, 0.2)
        53240
        >>> num_pruned(100, 0.145)
        15
    """
    _check_fraction("fraction", fraction)
    return floor(Fraction(repr(float(fraction))) * num_survivors + Fraction(1, 2))


def emptied(masks: Masks) -> list[str]:
    """The parameters that have weights, but none that survives.

    Examples:
        >>> import torch
        >>> emptied(Masks({"a": torch.tensor([1, 0]), "b": torch.tensor([0, 0])}))
        ['b']
    """
    return [name for name, left in masks.remaining().items() if not left and masks[name].numel()]


def _groups(
    names: list[str], fraction: float, fractions: Mapping[str, float], scope: Scope
) -> Iterator[tuple[list[str], float]]:
    """Names that are ranked together, and the share of them that falls."""
    _check_fraction("fraction", fraction)
    check_fractions(fractions, names)
    members: dict[str | None, list[str]] = {}
    for name in names:
        rule = next((pattern for pattern in fractions if fnmatchcase(name, pattern)), None)
        members.setdefault(rule, []).append(name)
    for rule, group in members.items():
        share = fraction if rule is None else fractions[rule]
        yield from ((part, share) for part in ([group] if scope == "global" else _singles(group)))


def _singles(names: list[str]) -> list[list[str]]:
    return [[name] for name in names]


def _check_fraction(argument: str, fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(
            f"`{argument}` must be in [0, 1), got {fraction}. "
            "Percentages are written as fractions: 0.2."
        )


def _check_scope(scope: str) -> None:
    if scope not in ("global", "layer"):
        raise ValueError(f"`scope` must be 'global' or 'layer', got {scope!r}.")


def _check_pattern(pattern: str, names: list[str]) -> None:
    if any(fnmatchcase(name, pattern) for name in names):
        return
    close = get_close_matches(pattern, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"`fractions` has the pattern {pattern!r}, which matches no parameter.{hint} "
        f"Prunable: {', '.join(map(repr, names))}."
    )


def _check_match(scores: Scores, masks: Masks) -> None:
    if set(scores.names) != set(masks):
        raise ValueError(
            "`scores` and `masks` must have the same names, "
            f"got {sorted(scores.names)} and {sorted(masks)}."
        )
    for name, mask in masks.items():
        if mask.shape != scores.shape(name):
            raise ValueError(
                f"The mask of {name!r} has shape {tuple(mask.shape)}, "
                f"but its scores have {tuple(scores.shape(name))}."
            )
