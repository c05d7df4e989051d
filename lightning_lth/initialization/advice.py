"""What is not known of a module or cannot be done to it, and what its user can do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning_lth.initialization.overrides import shown
from lightning_lth.initialization.plan import ASSUMED, NO_RULE
from lightning_lth.initialization.writing import Refused

if TYPE_CHECKING:
    from lightning_lth.initialization.plan import Decision, Plan
    from lightning_lth.initialization.targets import Target

Pairs = list[tuple["Target", "Decision"]]


def warn_of_plan(plan: Plan, pairs: Pairs) -> None:
    """Say what will be guessed or left alone, although the user may want something else."""
    _warn_of_assumptions(plan, pairs)
    _warn_of_unknown_layers(plan, pairs)
    _warn_of_missing_ends(plan, pairs)
    _warn_of_idle_overrides(plan, pairs)


def warn_of_refused_weights(pairs: Pairs) -> None:
    """Say which weights have not taken the values that were drawn for them."""
    kept = [
        f"{target.name!r} ({', '.join(decision.notes)})"
        for target, decision in pairs
        if target.is_weight and any(isinstance(note, Refused) for note in decision.notes)
    ]
    if kept:
        _warn(
            f"{_some(kept)} cannot be drawn and keep their values. Set them yourself.", stacklevel=4
        )


def _warn_of_assumptions(plan: Plan, pairs: Pairs) -> None:
    names = [repr(target.layer_name) for target, decision in pairs if decision.is_assumed]
    if names:
        _warn(
            f"Which nonlinearity follows {', '.join(names)} is not known"
            + (" from the forward pass" if plan.flow else "; there is no `example_input`")
            + f". {ASSUMED} is assumed. To say it yourself: "
            + "`overrides={name: auto(activation=...)}`."
        )


def _warn_of_unknown_layers(plan: Plan, pairs: Pairs) -> None:
    """Of matrices: what layers call their weight, or what the forward pass multiplied with."""
    multiplied = plan.flow.order if plan.flow else ()
    unknown = [
        target
        for target, decision in pairs
        if decision.notes == [NO_RULE]
        and target.is_matrix
        and (target.attribute == "weight" or target.layer_name in multiplied)
    ]
    if unknown:
        types, names = ({getattr(t, key): None for t in unknown} for key in ("type", "name"))
        _warn(
            f"Layers of type {', '.join(types)} are not known, so that "
            f"{_some(map(repr, names))} keep their values. "
            f"To draw them: `overrides={{{next(iter(names))!r}: he()}}`, say."
        )


def _warn_of_missing_ends(plan: Plan, pairs: Pairs) -> None:
    # The user's own rule is as good.
    written = {target.name for target, decision in pairs if decision.rule is not None}
    missing = sorted(name.removesuffix(".weight") for name in plan.zeroed - written)
    if missing:
        _warn(
            f"{', '.join(map(repr, missing))} should start at 0 and cannot: there is no `weight` "
            f"that is drawn. What ends there starts like any other layer."
        )


def _warn_of_idle_overrides(plan: Plan, pairs: Pairs) -> None:
    used: set[object] = set()
    idle: dict[object, str] = {}
    for target, decision in pairs:
        key = plan.overrides.key(target.name, target.layer, is_weight=target.is_weight)
        if decision.rule is not None:
            used.add(key)
        else:
            idle.setdefault(key, f"{target.name!r} is skipped ({', '.join(decision.notes)})")
    for key in plan.overrides.rules:
        if key not in used:
            _warn(f"{shown(key)} in `overrides` draws nothing: {idle[key]}.")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")


def _warn(message: str, stacklevel: int = 5) -> None:
    warnings.warn(message, stacklevel=stacklevel)  # who calls `initialize_`
