"""What will be done to each parameter, decided before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from torch import Tensor

from lightning_lth.initialization import choice, rules
from lightning_lth.initialization.activations import DataFlow
from lightning_lth.initialization.drawing import Rule, Weight, empty, generator_for
from lightning_lth.initialization.gains import gain, gate_gain, is_gate
from lightning_lth.initialization.layers import Fill, Keep, Maps, generic
from lightning_lth.initialization.overrides import Overrides
from lightning_lth.initialization.targets import Target
from lightning_lth.initialization.writing import effective, reason_to_skip

ASSUMED = "relu"
NO_RULE = "no rule for this type; name one in `overrides`"


@final
@dataclass
class Decision:
    """What will happen to a target.

    Attributes:
        rule: The name of the rule; None if the target is skipped.
        values: Draws the values, ``float32`` on the CPU and shaped like the attribute.
        fan: For the report.
        gain: For the report.
        activation: For the report.
        notes: For the report.
        is_assumed: Whether the nonlinearity had to be guessed.
        is_override: Whether a rule of the user's decided.
        std_before: For the report.
        std_after: For the report.
    """

    rule: str | None
    values: Callable[[], Tensor] | None = None
    fan: float | None = None
    gain: float | None = None
    activation: str | None = None
    notes: list[str] = field(default_factory=list)
    is_assumed: bool = False
    is_override: bool = False
    std_before: float | None = None
    std_after: float | None = None


@final
@dataclass(frozen=True)
class Plan:
    """How to decide.

    Attributes:
        rule: For all weights without a rule of their own.
        overrides: Those with one.
        flow: What a forward pass showed; None without an example.
        masks: Name to the mask of a pruned weight.
        seed: All values depend on it and on names and shapes.
        zeroed: Names of parameters that must be 0.
        factors: Layer to what the values are multiplied by, unless an override draws them.
    """

    rule: Rule
    overrides: Overrides
    flow: DataFlow | None
    masks: Mapping[str, Tensor]
    seed: int
    zeroed: frozenset[str] = frozenset()
    factors: Mapping[str, float] = field(default_factory=dict)

    def decide(self, target: Target) -> Decision:
        """What to do to a target."""
        if target.tied_to is not None:
            return _skip(f"tied to {target.tied_to}")
        reason = reason_to_skip(target.layer, target.attribute, target.behind)
        if reason is not None:
            return _skip(reason)
        override = self.overrides.rule(target.name, target.layer, is_weight=target.is_weight)
        if override is not None:
            decision = self._draw(target, _as_maps(target), override, factor=1.0)
            return replace(decision, is_override=True)
        if target.name in self.zeroed:
            return self._zero(target)
        return self._by_type(target)

    def _by_type(self, target: Target) -> Decision:
        part = target.part
        if isinstance(part, Maps):
            is_table = part.weight.role == "embedding" and not choice.covers_tables(self.rule)
            factor = self.factors.get(target.layer_name, 1.0)
            return self._draw(target, part, rules.TABLE if is_table else self.rule, factor=factor)
        if isinstance(part, Fill):
            return self._fill(target, part)
        if isinstance(part, Keep):
            return _skip(part.reason)
        return _skip(NO_RULE)

    def _draw(self, target: Target, maps: Maps, rule: Rule, *, factor: float) -> Decision:
        weight, is_assumed = self._with_activation(target, maps.weight, rule)
        decision = Decision(
            None, is_assumed=is_assumed, activation=self._shown(target, weight, rule)
        )
        mask = self.masks.get(target.name)
        if mask is not None:
            density = float(mask.count_nonzero()) / mask.numel()
            weight = replace(
                weight, fan_in=weight.fan_in * density, fan_out=weight.fan_out * density
            )
            decision.notes.append(f"density {density:.4g}")
        rule = choice.chosen(rule, weight)
        if factor != 1:
            decision.notes.append(f"times {factor:.4g} in a residual branch")

        def values() -> Tensor:
            into = replace(weight, out=target.memory_for(maps))
            drawn = rule(into, generator_for(self.seed, target.name))
            arranged = maps.arrange(_checked(drawn, weight, target.name))
            if factor != 1:
                arranged = arranged * factor
            return arranged if mask is None else arranged * mask.to(arranged)

        decision.rule, decision.values = _name(rule), values
        decision.fan = getattr(rule, "fan_of", lambda _: None)(weight)
        decision.gain = getattr(rule, "gain_of", lambda _: None)(weight)
        return decision

    def _fill(self, target: Target, part: Fill) -> Decision:
        shape = tuple(effective(target.layer, target.attribute).shape)
        is_at_zero = f"{target.layer_name}.weight" in self.zeroed
        if isinstance(self.rule, rules.TorchDefault) and part.torch_bound and not is_at_zero:
            weight = Weight(1, 1, math.prod(shape), 1.0, 1.0, torch_std=part.torch_bound / 3**0.5)
            generator = generator_for(self.seed, target.name)
            return Decision(str(self.rule), lambda: self.rule(weight, generator).reshape(shape))

        def values() -> Tensor:
            filled = empty(shape).fill_(part.value)
            if part.ones is not None:
                filled[part.ones] = 1
            return filled

        name = {0.0: "zeros", 1.0: "ones"}[part.value]
        return Decision(name, values, notes=["forget gate 1"] if part.ones is not None else [])

    def _zero(self, target: Target) -> Decision:
        shape = tuple(effective(target.layer, target.attribute).shape)
        return Decision("zeros", lambda: empty(shape).zero_(), notes=["end of a residual branch"])

    def _with_activation(self, target: Target, weight: Weight, rule: Rule) -> tuple[Weight, bool]:
        """The weight before its nonlinearity, and whether that had to be guessed."""
        told = rule.activation if isinstance(rule, choice.Auto) else None
        if weight.role != "map" and told is None:
            return weight, False
        known = [name for name in self._following(target) if _is_known(name)]
        known = known if told is None else [told]
        activation = max(known, key=gain, default=ASSUMED)
        factor = gain(activation)
        gate = self.flow.gated_by.get(target.layer_name) if self.flow is not None else None
        if gate is not None and is_gate(gate) and _is_known(gate):
            factor *= gate_gain(gate)
        is_assumed = not known and choice.needs_activation(rule, has_example=self.flow is not None)
        return replace(weight, activation=activation, gain=factor), is_assumed

    def _following(self, target: Target) -> tuple[str, ...]:
        return self.flow.following.get(target.layer_name, ()) if self.flow is not None else ()

    def _shown(self, target: Target, weight: Weight, rule: Rule) -> str | None:
        if weight.role != "map":
            return None
        if isinstance(rule, choice.Auto) and rule.activation is not None:
            return rule.activation
        found = ", ".join(self._following(target))
        if not any(map(_is_known, self._following(target))) and choice.needs_activation(rule):
            return f"{found} ({ASSUMED} assumed)".strip()
        return found or None


def _as_maps(target: Target) -> Maps:
    if isinstance(target.part, Maps):
        return target.part
    return generic(effective(target.layer, target.attribute))


def _is_known(activation: str) -> bool:
    try:
        gain(activation)
    except ValueError:
        return False
    return True


def _skip(reason: str) -> Decision:
    return Decision(None, notes=[reason])


def _name(rule: Rule) -> str:
    if type(rule).__str__ is not object.__str__:
        return str(rule)
    return getattr(rule, "__name__", type(rule).__name__)


def _checked(values: object, weight: Weight, name: str) -> Tensor:
    if not isinstance(values, Tensor) or tuple(values.shape) != weight.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"The rule for {name!r} must return a tensor of {weight.shape}, got {got}."
        )
    return values
