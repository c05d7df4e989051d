"""What a winning ticket is compared with: other masks, other initial weights, other seeds."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from lightning_lth.pruning import scoring
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.selection import keep


def shuffled_masks(masks: Masks, *, seed: int) -> Masks:
    """Masks at random positions, with as many survivors in each layer as before.

    A shuffle of each mask and a random mask with the densities of the layers are the same thing:
    both give every choice of that many positions the same probability.

    Args:
        masks: How many weights survive where.
        seed: Each parameter has its own random numbers, which depend on its name alone otherwise.

    Returns:
        New masks with the same names, shapes and devices.

    Examples:
        >>> import torch
        >>> masks = Masks({"a": torch.tensor([1, 1, 0, 0, 0]), "b": torch.tensor([0, 1])})
        >>> shuffled_masks(masks, seed=0).remaining()
        {'a': 2, 'b': 1}

    Source:
        Frankle et al. 2021, "Pruning Neural Networks at Initialization: Why Are We Missing the
        Mark?", arXiv:2009.08576, section 5 (shuffling). Frankle et al. 2019, arXiv:1903.01611,
        section 3 (random subnetworks with the proportions of the layers).
    """
    scores = scoring.random(seed)(masks, masks).materialize()
    shuffled: dict[str, Tensor] = {}
    for name, count in masks.remaining().items():
        layer = {name: scores[name]}
        shuffled |= keep(scoring.Scores.of(layer), Masks.dense(layer), num_remaining=count)
    return Masks(shuffled)


def random_masks(masks: Masks, *, seed: int) -> Masks:
    """Masks at random positions of the whole network, with as many survivors in all as before.

    The densities of the layers are not kept: they all come near the overall density.

    Args:
        masks: How many weights survive.
        seed: Each parameter has its own random numbers, which depend on its name alone otherwise.

    Returns:
        New masks with the same names, shapes and devices.

    Examples:
        >>> import torch
        >>> masks = Masks({"a": torch.tensor([1, 1, 1, 1]), "b": torch.tensor([0, 0, 0, 0])})
        >>> random_masks(masks, seed=0).num_remaining
        4

    Source:
        Tanaka et al. 2020, arXiv:2006.05467, section 3; Frankle et al. 2021, arXiv:2009.08576,
        section 3 (random pruning).
    """
    scores = scoring.random(seed)(masks, masks)
    return keep(scores, Masks.dense(masks), num_remaining=masks.num_remaining)


def keep_signs(
    fresh: Mapping[str, Tensor], initial: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """``|fresh| * sign(initial)``: new initial weights, with the signs of the old ones.

    Args:
        fresh: Name to newly drawn values.
        initial: Name to the original initial values; at least ``names``. Where they are 0, so is
            the result.
        names: Whose signs are kept, as a rule the prunable weights.

    Returns:
        All tensors of ``fresh``, copied; those in ``names`` with other signs.

    Raises:
        ValueError: If a name is missing in ``fresh`` or ``initial``, or the shapes differ.

    Examples:
        >>> import torch
        >>> fresh, initial = {"w": torch.tensor([0.5, -2.0])}, {"w": torch.tensor([-1.0, -1.0])}
        >>> keep_signs(fresh, initial, ["w"])
        {'w': tensor([-0.5000, -2.0000])}

    Source:
        Zhou et al. 2019, arXiv:1905.01067: section 3, "reinit" with signs kept.
    """
    names = set(names)
    _check_names("initial", initial, names)

    def with_sign(name: str, tensor: Tensor) -> Tensor:
        if tensor.shape != initial[name].shape:
            raise ValueError(
                f"{name!r} must have one shape in `fresh` and `initial`, "
                f"got {tuple(tensor.shape)} and {tuple(initial[name].shape)}."
            )
        return tensor.abs() * initial[name].detach().sign().to(tensor)

    return _replaced("fresh", fresh, names, with_sign)


def signed_constants(initial: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """``sign(initial) * std(initial)``: one magnitude for all weights of a tensor.

    Args:
        initial: Name to the original initial values; all of them, pruned ones included, make up
            the standard deviation.
        names: Which tensors become constant, as a rule the prunable weights.

    Returns:
        All tensors of ``initial``, copied; those in ``names`` with constant magnitude.

    Raises:
        ValueError: If a name is missing in ``initial``.

    Examples:
        >>> import torch
        >>> signed_constants({"w": torch.tensor([3.0, -3.0, 1.0, -1.0])}, ["w"])  # sqrt(20 / 4)
        {'w': tensor([ 2.2361, -2.2361,  2.2361, -2.2361])}

    Source:
        Zhou et al. 2019, arXiv:1905.01067: section 3, "constant" with signs kept; the magnitude is
        the standard deviation of the layer's initialization.
    """
    return _replaced("initial", initial, set(names), lambda _, t: t.sign() * t.std(correction=0))


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for everything that has a name, so that nothing else can change it.

    Seeds that are counted up, or drawn one after the other, change when an arm is added in front;
    these depend on the seed and the names alone, and are the same on every machine.

    Args:
        seed: Of the whole trial.
        names: What the seed is for, from the general to the special; 1 and "1" are different.

    Returns:
        A number in ``[0, 2**31)``: whatever takes seeds takes these.

    Raises:
        TypeError: If something is neither a string nor a whole number.

    Examples:
        >>> derive_seed(0, "random_reinit", 1)
        407231860
    """
    parts = [part if isinstance(part, str) else operator.index(part) for part in (seed, *names)]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _replaced(
    argument: str,
    tensors: Mapping[str, Tensor],
    names: set[str],
    function: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    _check_names(argument, tensors, names)
    return {
        name: function(name, tensor.detach()) if name in names else tensor.detach().clone()
        for name, tensor in tensors.items()
    }


def _check_names(argument: str, tensors: Mapping[str, Tensor], names: set[str]) -> None:
    missing = sorted(names - tensors.keys())
    if missing:
        raise ValueError(
            f"`{argument}` must have all of `names`, it lacks {missing}. It has: {sorted(tensors)}."
        )
