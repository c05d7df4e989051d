"""Rules of the user's own for some parameters, by name pattern or by type of layer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, final

from torch.nn import Module

from lightning_lth.initialization.drawing import Rule, check_rule


@final
class Overrides:
    """Finds the rule for a parameter; the first key that matches counts.

    Args:
        rules: Glob patterns on names of parameters or layers, or types of layers, to rules.

    Raises:
        TypeError: If a key is neither a string nor a type of layer, or a value is not callable.

    Examples:
        >>> from lightning_lth.initialization.rules import he, zeros
        >>> overrides = Overrides({"head": zeros(), "*.weight": he()})
        >>> str(overrides.rule("head.weight", Module()))
        'zeros'
    """

    def __init__(self, rules: Mapping[str | type[Module], Rule]) -> None:
        self.rules = dict(rules)
        for key, rule in self.rules.items():
            _check(key, rule)

    def rule(self, name: str, layer: Module, *, is_weight: bool = True) -> Rule | None:
        """The rule for a parameter; None where no key matches.

        Args:
            name: Of the parameter, with that of its layer before the last dot.
            layer: To which it belongs.
            is_weight: Otherwise (biases, normalization) only patterns that end in the parameter's
                own name match, such as ``"*.bias"``.
        """
        key = self.key(name, layer, is_weight=is_weight)
        return None if key is None else self.rules[key]

    def key(self, name: str, layer: Module, *, is_weight: bool) -> str | type[Module] | None:
        """The key whose rule a parameter gets; arguments as for ``rule``."""
        matching = (key for key in self.rules if _matches(key, name, layer, is_weight=is_weight))
        return next(matching, None)

    def check_all_match(
        self, parameters: Mapping[str, tuple[Module, bool]], tied: Mapping[str, str]
    ) -> None:
        """Refuse keys that match nothing, nothing that is drawn, or nothing that is left for them.

        Args:
            parameters: Name to its layer and whether it is a weight.
            tied: Names of parameters to those that are drawn in their place.

        Raises:
            ValueError: If a key matches no parameter, only tied ones, or only what earlier keys do.
        """
        claimed: set[str] = set()
        for key in self.rules:
            matching = [
                name
                for name, (layer, is_weight) in parameters.items()
                if _matches(key, name, layer, is_weight=is_weight)
            ]
            if not matching:
                raise ValueError(_no_match(key, parameters))
            if all(name in tied for name in matching):
                raise ValueError(_only_tied(key, matching[0], tied[matching[0]]))
            if claimed.issuperset(matching):
                raise ValueError(
                    f"{shown(key)} in `overrides` never counts, as earlier keys match all that it "
                    f"does, and the first that matches counts. Put it before them."
                )
            claimed.update(matching)


def _matches(key: str | type[Module], name: str, layer: Module, *, is_weight: bool) -> bool:
    if not isinstance(key, str):
        return is_weight and isinstance(layer, key)
    layer_name, _, attribute = name.rpartition(".")
    if not is_weight:
        return key.rpartition(".")[2] == attribute and fnmatchcase(name, key)
    return fnmatchcase(name, key) or fnmatchcase(layer_name, key)


def shown(key: str | type[Module]) -> str:
    """A key in messages.

    Examples:
        >>> shown("*.weight"), shown(Module)
        ("'*.weight'", 'Module')
    """
    return repr(key) if isinstance(key, str) else key.__name__


def _check(key: Any, rule: Any) -> None:
    if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, Module)):
        raise TypeError(
            f"`overrides` maps name patterns or types of layers to rules, got the key {key!r}."
        )
    check_rule(f"overrides[{key!r}]", rule)


def _only_tied(key: str | type[Module], name: str, owner: str) -> str:
    return (
        f"{shown(key)} in `overrides` matches only {name!r}, which is tied to {owner!r} and drawn "
        f"under that name. Use {owner!r} as the key."
    )


def _no_match(key: str | type[Module], parameters: Mapping[str, tuple[Module, bool]]) -> str:
    near = [n for n, (layer, _) in parameters.items() if _matches(key, n, layer, is_weight=True)]
    if near:
        return (
            f"{shown(key)} in `overrides` matches no weight, and biases and normalization are "
            f"meant only by patterns that end in their name, such as {near[0]!r}."
        )
    if not isinstance(key, str):
        types = dict.fromkeys(type(layer).__name__ for layer, _ in parameters.values())
        return (
            f"No layer is a {key.__name__}, as `overrides` says. Types with parameters: "
            f"{', '.join(types) or 'none'}."
        )
    close = difflib.get_close_matches(key, parameters, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(map(repr, parameters)) or "none, the module has no parameters"
    return f"No parameter matches {key!r} in `overrides`.{hint} Parameters: {listed}."
