"""Schemes that go over the weights once more, with forward passes on an example."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import Module

from lightning_lth.initialization.layer_variance import lsuv_
from lightning_lth.initialization.layers import Maps
from lightning_lth.initialization.passes import seeded
from lightning_lth.initialization.plan import Decision
from lightning_lth.initialization.schemes import LSUV, DataDependent
from lightning_lth.initialization.targets import Target
from lightning_lth.initialization.unit_variance import data_dependent_
from lightning_lth.initialization.writing import effective


def use_data_(
    module: Module,
    run: Callable[[], object],
    scheme: LSUV | DataDependent,
    drawn: list[tuple[Target, Decision]],
    seed: int,
) -> None:
    """Scale what the scheme itself has drawn; what the user has ruled stays.

    Args:
        module: Is changed in place, and so are the decisions, for the report.
        run: Calls the module once on the example.
        scheme: How to scale.
        drawn: All targets, with what has been done to them.
        seed: As of the initialization.
    """
    scaled = {target.layer_name: own for target, own in drawn if _is_scalable(target, own)}
    biases = [
        (target, own, effective(target.layer, "bias").clone())
        for target, own in drawn
        if target.attribute == "bias" and target.layer_name in scaled
    ]
    layers = dict.fromkeys(scaled, "weight")
    if isinstance(scheme, LSUV):
        name, notes = "lsuv", lsuv_(module, partial(seeded, run, seed), layers)
    else:
        name = "data_dependent"
        notes = data_dependent_(
            module,
            run,
            layers,
            seed=seed,
            iterations=scheme.iterations,
            tolerance=scheme.tolerance,
            kept_biases={target.layer_name for target, own, _ in biases if own.is_override},
        )
    for layer_name, own in scaled.items():
        if layer_name in notes:
            own.notes = list(dict.fromkeys([*own.notes, notes[layer_name]]))
        else:
            own.rule = f"{name} of {own.rule}"
    for target, own, before in biases:
        if not torch.equal(effective(target.layer, "bias"), before):
            own.rule = name
    for target, own in drawn:
        own.std_after = target.std()


def _is_scalable(target: Target, own: Decision) -> bool:
    is_map = isinstance(target.part, Maps) and target.part.weight.role in ("map", "projection")
    is_ours = own.rule is not None and not own.is_override
    return is_ours and is_map and target.attribute == "weight"
