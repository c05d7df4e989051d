"""Whole units instead of single weights: neurons of linear layers, filters of convolutions.

A unit is what one entry of a weight's first dimension computes: a row of a linear layer, a filter
of a convolution. Transposed convolutions have their inputs first, embeddings their tokens; there
the units are those.

Source:
    Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, section 3: filters
    by their L1 norm, each layer by itself. Liu et al. 2019, "Rethinking the Value of Network
    Pruning", arXiv:1810.05270, section 6: lottery tickets of such filters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.selection import prune


def prune_units(
    weights: Mapping[str, Tensor],
    masks: Masks,
    *,
    fraction: float,
    fractions: Mapping[str, float] | None = None,
) -> Masks:
    """Prune the units with the lowest L1 norm in each layer, all their weights at once.

    A unit survives as long as one of its weights does; of the surviving units of each layer,
    exactly ``lightning_lth.pruning.selection.num_pruned`` fall, equal norms by position.

    Args:
        weights: Parameter name to trained weights, units in the first dimension; at least those in
            ``masks``. What is pruned counts as 0.
        masks: The weights that survive so far. Weights that were pruned in a unit stay pruned.
        fraction: Share of the surviving units to prune in each layer, in ``[0, 1)``.
        fractions: Glob pattern on parameter names -> the fraction there; 0 leaves the layer as it
            is, as an output layer should be. The first pattern that matches counts.

    Returns:
        New masks with the same names and shapes, on the devices of the weights.

    Raises:
        ValueError: If a fraction is outside ``[0, 1)``, a pattern matches no parameter, names or
            shapes differ, or a norm is NaN.

    Examples:
        >>> weights = {"weight": torch.tensor([[-3.0, 1.0], [0.5, 1.0]])}
        >>> prune_units(weights, Masks.dense(weights), fraction=0.5)["weight"]
        tensor([[ True,  True],
                [False, False]])

    Note:
        A unit without weights still outputs what its bias and normalization make of 0, and what
        the next layer reads from it stays in the masks.
    """
    masks.check_matches(weights)
    placed = {name: mask.to(weights[name].device) for name, mask in masks.items()}
    norms = _norms({n: weights[n].detach().masked_fill(~mask, 0) for n, mask in placed.items()})
    units = Masks({name: _by_unit(mask).any(dim=1) for name, mask in placed.items()})
    left = prune(Scores.of(norms), units, fraction=fraction, scope="layer", fractions=fractions)
    return Masks({name: mask & _spread(left[name], mask) for name, mask in placed.items()})


def _norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One L1 norm for each unit, at least in ``float32``."""
    return {
        name: _by_unit(tensor.detach().abs()).sum(
            dim=1, dtype=torch.promote_types(tensor.dtype, torch.float32)
        )
        for name, tensor in weights.items()
    }


def _by_unit(tensor: Tensor) -> Tensor:
    """A row for each unit; a vector's units have one weight each."""
    return tensor.unsqueeze(-1).flatten(start_dim=1)


def _spread(units: Tensor, like: Tensor) -> Tensor:
    return units.view(-1, *[1] * (like.dim() - 1)).expand_as(like)
