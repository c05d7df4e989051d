"""Initialize a whole module, by layer type and following nonlinearity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from lightning_lth.initialization.activations import Branch, DataFlow, data_flow
from lightning_lth.initialization.advice import warn_of_plan, warn_of_refused_weights
from lightning_lth.initialization.data_driven import use_data_
from lightning_lth.initialization.drawing import Rule
from lightning_lth.initialization.lazy import lazy_layers, materialize_
from lightning_lth.initialization.overrides import Overrides
from lightning_lth.initialization.passes import call, fresh, tensors_in, unchanged
from lightning_lth.initialization.plan import Decision, Plan
from lightning_lth.initialization.report import InitializationReport, InitializedParameter
from lightning_lth.initialization.schemes import (
    LSUV,
    DataDependent,
    Fixup,
    Scheme,
    base_rule,
    needs_example,
    scheme_of,
)
from lightning_lth.initialization.targets import Target, targets
from lightning_lth.initialization.writing import Refused, effective, write_

Forward = Callable[[Module, Any], Any]


def initialize_(
    module: Module,
    scheme: str | Scheme = "auto",
    *,
    seed: int | None = None,
    example_input: Any = None,
    forward: Forward | None = None,
    overrides: Mapping[str | type[Module], Rule] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    zero_branch_ends: bool = False,
    reset_running_stats: bool = False,
) -> InitializationReport:
    """Draw new weights for a module: by type of layer, and by the nonlinearity that follows.

    The nonlinearity is found in one forward pass of ``example_input``, whether it is a module or a
    function. Biases become 0, normalization 1 and 0; what cannot or must not be changed (frozen,
    quantized, of unknown type) stays as it is and is listed with the reason. Values depend on
    ``seed`` and on the name and shape of their parameter alone: not on the order, the device or
    other layers. Global random states stay as they are.

    Args:
        module: Its parameters are overwritten; nothing else of it changes.
        scheme: ``"auto"``, ``"he"``, ``"xavier"``, ``"lecun"``, ``"orthogonal"``,
            ``"random_walk"``, ``"torch_default"``, ``"zeros"``, ``"fixup"``, ``"lsuv"``,
            ``"data_dependent"``; or one of these with arguments, or a function of your own, from
            ``lightning_lth.initialization``.
        seed: Any integer; by default ``torch.initial_seed()``, which ``torch.manual_seed`` and
            ``seed_everything`` set.
        example_input: A batch. A tuple gives positional arguments, a dictionary keyword arguments.
            Without it, ReLU is assumed after every layer, with a warning.
        forward: ``forward(module, example_input)`` runs the module, if calling it will not do.
        overrides: Glob patterns on names of parameters or layers, or types of layers, to rules; the
            first that matches counts. Biases and normalization are meant only by patterns that end
            in their name, such as ``"*.bias"``.
        masks: Names of pruned weights to masks, such as those of a ticket: fans count surviving
            inputs only, and pruned weights are 0. For ``torch.nn.utils.prune``, see
            ``lightning_lth.initialization.pruning_masks``.
        zero_branch_ends: Start residual branches at 0: the scale of their last normalization, or
            their last weight where the branch ends in none.
        reset_running_stats: Forget the running statistics of BatchNorm and InstanceNorm as well.

    Returns:
        A row for each parameter; ``print`` it.

    Raises:
        ValueError: If a scheme, a key of ``overrides`` or ``masks`` does not exist, if a scheme
            needs an example and there is none, or if the example is not finite.
        RuntimeError: If a layer is lazy and no example shows its shape, or if it is on the meta
            device. The module is unchanged then, as it is if a forward pass fails; only lazy layers
            may have got their shapes.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        >>> report = initialize_(model, seed=0, example_input=torch.randn(8, 64))
        >>> print(report["0.weight"].rule, report["0.weight"].activation, report["2.weight"].rule)
        he relu xavier

    Source:
        He et al. 2015, arXiv:1502.01852; Glorot & Bengio 2010; for each scheme see its function.
    """
    chosen = scheme_of(scheme)
    seed = checked_seed(seed)
    run = _runner(chosen, example_input, forward, zero_branch_ends=zero_branch_ends)
    _refuse_lazy(materialize_(module, run) if run is not None else list(lazy_layers(module)))
    found = targets(module)
    own_rules = _checked_overrides(overrides or {}, found)
    masks = _checked_masks(masks or {}, found)
    flow = data_flow(module, lambda: run(module)) if run is not None else None
    zeroed, factors = _branch_ends(chosen, flow, zero_branch_ends=zero_branch_ends)
    plan = Plan(base_rule(chosen), own_rules, flow, masks, seed, zeroed, factors)
    pairs = [(target, plan.decide(target)) for target in found]
    warn_of_plan(plan, pairs)
    is_risky = _may_fail(chosen, own_rules, found)
    with unchanged(module, parameters=True) if is_risky else contextlib.nullcontext():
        _write_all_(pairs)
        warn_of_refused_weights(pairs)
        if run is not None and isinstance(chosen, (LSUV, DataDependent)):
            use_data_(module, lambda: run(module), chosen, pairs, seed)
    if reset_running_stats:
        _reset_running_stats_(module)
    return InitializationReport(tuple(_row(*pair) for pair in pairs), seed)


def _may_fail(scheme: Scheme, overrides: Overrides, found: list[Target]) -> bool:
    """Whether code that is not ours runs between the first write and the last."""
    rules = (base_rule(scheme), *overrides.rules.values())
    is_ours = all(type(rule).__module__.startswith(__package__) for rule in rules)
    has_parametrizations = any(parametrize.is_parametrized(target.layer) for target in found)
    return needs_example(scheme) or not is_ours or has_parametrizations


def checked_seed(seed: int | None) -> int:
    """The seed, which is by default that of torch.

    Raises:
        TypeError: If it is not an integer.
    """
    if seed is None:
        return torch.initial_seed()
    if isinstance(seed, bool) or not isinstance(seed, int):
        hint = " Use its `initial_seed()`." if isinstance(seed, torch.Generator) else ""
        raise TypeError(f"`seed` must be an integer or None, got {type(seed).__name__}.{hint}")
    return seed


def _runner(
    scheme: Scheme, example_input: Any, forward: Forward | None, *, zero_branch_ends: bool
) -> Callable[[Module], object] | None:
    """What runs a module on the example; None if there is none and it is not needed."""
    if example_input is None and forward is None:
        if needs_example(scheme) or zero_branch_ends:
            what = "`zero_branch_ends`" if zero_branch_ends else f"{type(scheme).__name__}"
            raise ValueError(f"{what} needs a forward pass. Pass a batch as `example_input`.")
        return None
    for tensor in tensors_in(example_input):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                "`example_input` must be finite, got a tensor with NaN or infinite values. "
                "Pass another batch."
            )
    return lambda module: (forward or call)(module, fresh(example_input))


def _refuse_lazy(names: list[str]) -> None:
    if names:
        raise RuntimeError(
            f"Lazy and without a shape yet: {', '.join(map(repr, names))}. Pass an "
            f"`example_input` that reaches every layer, or run one forward pass first."
        )


def _checked_overrides(rules: Mapping[str | type[Module], Rule], found: list[Target]) -> Overrides:
    overrides = Overrides(rules)
    overrides.check_all_match({t.name: (t.layer, t.is_weight) for t in found}, _tied(found))
    return overrides


def _tied(found: list[Target]) -> dict[str, str]:
    return {target.name: target.tied_to for target in found if target.tied_to is not None}


def _checked_masks(masks: Mapping[str, Tensor], found: list[Target]) -> dict[str, Tensor]:
    """The masks, by the name under which a weight is drawn."""
    tied = _tied(found)
    masks = {tied.get(name, name): mask for name, mask in masks.items()}
    shapes = {t.name: tuple(effective(t.layer, t.attribute).shape) for t in found if t.is_weight}
    for name, mask in masks.items():
        if name not in shapes:
            listed = ", ".join(map(repr, shapes)) or "none"
            raise ValueError(f"No weight is called {name!r}, as in `masks`. Weights: {listed}.")
        if tuple(mask.shape) != shapes[name]:
            raise ValueError(
                f"The mask of {name!r} must have its shape {shapes[name]}, got {tuple(mask.shape)}."
            )
        if not mask.any():
            raise ValueError(f"The mask of {name!r} keeps no weight, so that there is no fan.")
    return masks


def _branch_ends(
    scheme: Scheme, flow: DataFlow | None, *, zero_branch_ends: bool
) -> tuple[frozenset[str], dict[str, float]]:
    """Names of parameters that must be 0, and layers to a factor of their values."""
    if flow is None or not (isinstance(scheme, Fixup) or zero_branch_ends):
        return frozenset(), {}
    if not flow.branches:
        raise ValueError(
            "No residual branch was found in the forward pass, so there is none to end in zero. "
            "Use another scheme, and no `zero_branch_ends`."
        )
    if not isinstance(scheme, Fixup):
        return frozenset(f"{b.end_norm or b.end}.weight" for b in flow.branches), {}
    zeroed = {f"{branch.end}.weight" for branch in flow.branches}
    zeroed |= {f"{name}.weight" for name in flow.outputs}
    return frozenset(zeroed), _fixup_factors(flow.branches)


def _fixup_factors(branches: tuple[Branch, ...]) -> dict[str, float]:
    factors = {}
    for branch in branches:
        for name in branch.layers[:-1]:
            factors[name] = len(branches) ** (-1 / (2 * len(branch.layers) - 2))
    return factors


def _write_all_(pairs: list[tuple[Target, Decision]]) -> None:
    for target, decision in pairs:
        decision.std_before = decision.std_after = target.std()
        if decision.values is not None:
            note = write_(target.layer, target.attribute, decision.values())
            decision.rule = None if isinstance(note, Refused) else decision.rule
            decision.notes += [note] if note else []
            decision.std_after = target.std()  # at once, while it is in the cache


def _reset_running_stats_(module: Module) -> None:
    for layer in module.modules():
        if isinstance(layer, _NormBase):
            layer.reset_running_stats()


def _row(target: Target, decision: Decision) -> InitializedParameter:
    return InitializedParameter(
        name=target.name,
        type=target.type,
        rule=decision.rule,
        fan=decision.fan,
        gain=decision.gain,
        activation=decision.activation,
        std_before=decision.std_before,
        std_after=decision.std_after,
        note="; ".join(decision.notes),
    )
