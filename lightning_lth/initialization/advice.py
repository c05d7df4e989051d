"""What is not known of a module, and what its user can say."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lightning_lth.initialization.plan import ASSUMED

if TYPE_CHECKING:
    from lightning_lth.initialization.plan import Decision
    from lightning_lth.initialization.targets import Target


def warn_of_assumptions(
    found: list[Target], decisions: list[Decision], *, has_example: bool
) -> None:
    """Say where a nonlinearity had to be guessed."""
    names = [t.layer_name for t, d in zip(found, decisions, strict=True) if d.is_assumed]
    if names:
        warnings.warn(
            f"Which nonlinearity follows {', '.join(map(repr, names))} is not known"
            + (" from the forward pass" if has_example else "; there is no `example_input`")
            + f". {ASSUMED} is assumed. To say it yourself: "
            + "`overrides={name: auto(activation=...)}`.",
            stacklevel=3,
        )


def warn_of_missing_ends(
    found: list[Target], decisions: list[Decision], zeroed: frozenset[str]
) -> None:
    """Say which ends of residual branches have no weight that can be made 0."""
    written = {
        target.name
        for target, decision in zip(found, decisions, strict=True)
        if decision.rule is not None  # the user's own rule is as good
    }
    missing = sorted(name.removesuffix(".weight") for name in zeroed - written)
    if missing:
        warnings.warn(
            f"{', '.join(map(repr, missing))} should start at 0 and cannot: there is no `weight` "
            f"that is drawn. What ends there starts like any other layer.",
            stacklevel=3,
        )


def warn_of_unknown_layers(found: list[Target], decisions: list[Decision]) -> None:
    """Say which matrices stay as they are, because nothing is known of their layers."""
    unknown = [
        target
        for target, decision in zip(found, decisions, strict=True)
        if target.part is None and decision.rule is None and target.is_matrix
    ]
    if unknown:
        types, names = ({getattr(t, key): None for t in unknown} for key in ("type", "name"))
        listed = ", ".join(map(repr, list(names)[:5])) + (", ..." if len(names) > 5 else "")
        warnings.warn(
            f"Layers of type {', '.join(types)} are not known, so that {listed} keep their values. "
            f"To draw them: `overrides={{{next(iter(names))!r}: he()}}`, say.",
            stacklevel=3,
        )
