"""Rules of the user's own for some parameters, by name pattern or by type of layer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, final

from torch.nn import Module

from lightning_lth.initialization.drawing import Rule, is_rule


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
        for key, rule in self.rules.items():
            if _matches(key, name, layer, is_weight=is_weight):
                return rule
        return None

    def check_all_match(
        self, parameters: Mapping[str, tuple[Module, bool]], tied: Mapping[str, str]
    ) -> None:
        """Refuse keys that match nothing, or nothing that is drawn.

        Args:
            parameters: Name to its layer and whether it is a weight.
            tied: Names of parameters to those that are drawn in their place.

        Raises:
            ValueError: If a key matches no parameter, or only tied ones.
        """
        for key in self.rules:
            matching = [
                name
                for name, (layer, is_weight) in parameters.items()
                if _matches(key, name, layer, is_weight=is_weight)
            ]
            if not matching:
                raise ValueError(_no_match(key, list(parameters)))
            if all(name in tied for name in matching):
                raise ValueError(_only_tied(key, matching[0], tied[matching[0]]))


def _matches(key: str | type[Module], name: str, layer: Module, *, is_weight: bool) -> bool:
    if not isinstance(key, str):
        return is_weight and isinstance(layer, key)
    layer_name, _, attribute = name.rpartition(".")
    if not is_weight:
        return key.rpartition(".")[2] == attribute and fnmatchcase(name, key)
    return fnmatchcase(name, key) or fnmatchcase(layer_name, key)


def _check(key: Any, rule: Any) -> None:
    if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, Module)):
        raise TypeError(
            f"`overrides` maps name patterns or types of layers to rules, got the key {key!r}."
        )
    if not is_rule(rule):
        raise TypeError(
            f"`overrides[{key!r}]` must be a rule, got {rule!r}. "
            f"Functions of lightning_lth.initialization make them, such as `he()` and `zeros()`."
        )


def _only_tied(key: str | type[Module], name: str, owner: str) -> str:
    shown = repr(key) if isinstance(key, str) else key.__name__
    return (
        f"{shown} in `overrides` matches only {name!r}, which is tied to {owner!r} and drawn "
        f"under that name. Use {owner!r} as the key."
    )


def _no_match(key: str | type[Module], names: list[str]) -> str:
    if not isinstance(key, str):
        return f"No layer is a {key.__name__}, as `overrides` says."
    close = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(map(repr, names)) or "none, the module has no parameters"
    return f"No parameter matches {key!r} in `overrides`.{hint} Parameters: {listed}."
