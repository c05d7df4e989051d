"""How values reach a parameter that may be computed from others: normed, pruned or parametrized."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lightning_lth.initialization.passes import random_states_kept, saved_weights

_SPECTRAL = "spectral_norm divides the scale away"
_POWER_ITERATIONS = 15  # as torch takes when spectral_norm is put on a layer


@final
class Refused(str):
    """A note that says why a layer cannot have other values than its old ones."""


def own_parameters(layer: Module) -> dict[str, list[Parameter]]:
    """What a layer computes with, by attribute, and the parameters behind each.

    Examples:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 1))
        >>> {name: len(behind) for name, behind in own_parameters(layer).items()}
        {'weight': 2, 'bias': 1}
    """
    found: dict[str, list[Parameter]] = {}
    if parametrize.is_parametrized(layer):
        lists = cast("dict[str, Module]", layer.parametrizations)
        for name, behind in lists.items():
            found[name] = list(behind.parameters(recurse=False))
    for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
        base, _, suffix = name.rpartition("_")
        is_behind = suffix in ("orig", "g", "v") and base in vars(layer)
        found.setdefault(base if is_behind else name, []).append(parameter)
    return dict(sorted(found.items(), key=lambda item: item[0] != "weight"))


def effective(layer: Module, attribute: str) -> Tensor:
    """The values that the layer computes with.

    Examples:
        >>> layer = torch.nn.utils.prune.l1_unstructured(torch.nn.Linear(4, 1), "weight", amount=3)
        >>> int((effective(layer, "weight") != 0).sum())
        1
    """
    if attribute in layer._parameters:
        return cast(Tensor, layer._parameters[attribute]).detach()
    with torch.no_grad():
        hook = _hook(layer, attribute)
        if isinstance(hook, WeightNorm):
            return cast(Tensor, hook.compute_weight(layer))
        mask = pruning_mask(layer, attribute)
        if mask is not None:
            return cast(Tensor, getattr(layer, f"{attribute}_orig") * mask)
        return cast(Tensor, getattr(layer, attribute)).detach()


def pruning_mask(layer: Module, attribute: str) -> Tensor | None:
    """The mask of ``torch.nn.utils.prune``, if the layer has one."""
    return layer._buffers.get(f"{attribute}_mask")


def pruning_masks(module: Module) -> dict[str, Tensor]:
    """All masks of ``torch.nn.utils.prune`` by the name of the weight.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1))
        >>> _ = torch.nn.utils.prune.random_unstructured(model[0], "weight", amount=1)
        >>> pruning_masks(model)["0.weight"].shape
        torch.Size([1, 2])
    """
    return {
        name_of(layer_name, attribute.removesuffix("_mask")): buffer
        for layer_name, layer in module.named_modules()
        for attribute, buffer in layer.named_buffers(recurse=False)
        if attribute.endswith("_mask")
        and f"{attribute.removesuffix('_mask')}_orig" in vars(layer)["_parameters"]
    }


def name_of(layer_name: str, attribute: str = "") -> str:
    """The name of a parameter or a layer, without the ``_orig_mod`` of compiled modules.

    Examples:
        >>> name_of("encoder._orig_mod.0", "weight")
        'encoder.0.weight'
    """
    parts = [part for part in layer_name.split(".") if part not in ("", "_orig_mod")]
    return ".".join([*parts, attribute] if attribute else parts)


def reason_to_skip(layer: Module, attribute: str, behind: list[Parameter]) -> str | None:
    """Why a parameter cannot, or must not, be initialized; None if it can.

    Raises:
        RuntimeError: If it is lazy or on the meta device, so that there is nothing to write to.
    """
    if any(is_lazy(parameter) for parameter in behind):
        raise RuntimeError(
            f"{type(layer).__name__} is lazy and its {attribute!r} has no shape yet. "
            f"Pass `example_input`, or run one forward pass first."
        )
    if any(parameter.is_meta for parameter in behind):
        raise RuntimeError(
            f"{attribute!r} of {type(layer).__name__} is on the meta device and has no values. "
            f"Call `module.to_empty(device=...)` first."
        )
    if not any(parameter.requires_grad for parameter in behind):
        return "frozen" if behind[0].is_floating_point() else f"quantized: {behind[0].dtype}"
    if not all(parameter.requires_grad for parameter in behind):
        return "partly frozen"
    if behind[0].is_complex():
        return Refused("complex numbers")
    if behind[0].numel() == 0:
        return "empty"
    for step in _parametrizations(layer, attribute):
        if not hasattr(step, "right_inverse"):
            return Refused(f"{type(step).__name__} has no right_inverse")
    return None


@torch.no_grad()
def write_(layer: Module, attribute: str, values: Tensor) -> str:
    """Make a layer compute with these values, as far as its parametrizations let it.

    Args:
        layer: Is changed in place; its parameters stay the same objects.
        attribute: As of ``own_parameters``.
        values: ``float32``, on the CPU; shaped like the attribute.

    Returns:
        What the user should know, e.g. that the scale is lost; mostly nothing. ``Refused``
        if the parametrization cannot give these values, and nothing has changed.

    Examples:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 1))
        >>> write_(layer, "weight", torch.tensor([[3.0, 4.0]]))
        ''
        >>> layer.weight
        tensor([[3., 4.]], grad_fn=<WeightNormInterfaceBackward0>)
    """
    if attribute in layer._parameters:
        _copy_(getattr(layer, attribute), values)
        return ""
    restore_ = saved_weights(layer)
    try:
        note = _write_behind_(layer, attribute, values)
    except NotImplementedError as error:
        # Only its right inverse knows that it has none: torch's orthogonal (not Householder's),
        # with `use_trivialization=False`, or a parametrization of the user's.
        restore_()
        return Refused(error)
    if bool(effective(layer, attribute).isfinite().all()):
        return note
    restore_()
    return Refused("its parametrization cannot take the values")


def _write_behind_(layer: Module, attribute: str, values: Tensor) -> str:
    if parametrize.is_parametrized(layer, attribute):
        return _write_parametrized_(layer, attribute, values)
    hook = _hook(layer, attribute)
    if isinstance(hook, WeightNorm):
        norm = torch.norm_except_dim(values, 2, hook.dim)
        directions = getattr(layer, f"{attribute}_v")  # rows of zeros have none of their own
        _copy_(directions, torch.where(norm > 0, values, directions.to(values)))
        _copy_(getattr(layer, f"{attribute}_g"), norm)
        setattr(layer, attribute, hook.compute_weight(layer))
        return ""
    if isinstance(hook, SpectralNorm):
        _copy_(getattr(layer, f"{attribute}_orig"), values)
        for _ in range(_POWER_ITERATIONS):
            setattr(layer, attribute, hook.compute_weight(layer, do_power_iteration=True))
        return _SPECTRAL
    mask = pruning_mask(layer, attribute)
    if mask is None:
        return Refused("it is computed in a way that is not known")
    _copy_(getattr(layer, f"{attribute}_orig"), values)
    setattr(layer, attribute, getattr(layer, f"{attribute}_orig") * mask)
    return ""


def _write_parametrized_(layer: Module, attribute: str, values: Tensor) -> str:
    values = values.to(getattr(layer, attribute))
    chain = _parametrizations(layer, attribute)
    own = cast(Any, layer.parametrizations)[attribute]
    directions = own.original1.clone() if isinstance(chain[0], _WeightNorm) else None
    with random_states_kept():  # right inverses may draw random numbers
        setattr(layer, attribute, values.clone())  # they may become the memory of a parameter
        if any(isinstance(step, _SpectralNorm) for step in chain):
            _iterate_(layer, attribute, chain)
            return _SPECTRAL
    if any(isinstance(step, _Orthogonal) for step in chain):
        return "the orthogonal parametrization keeps directions only"
    if directions is not None:  # rows of zeros have none of their own
        is_set = getattr(layer, attribute).isfinite()
        _copy_(own.original1, torch.where(is_set, own.original1, directions))
    is_kept = (getattr(layer, attribute) - values).norm() <= 0.01 * values.norm()
    return "" if bool(is_kept) else "its parametrization changes the values"


def _iterate_(layer: Module, attribute: str, chain: list[Module]) -> None:
    """Let spectral_norm find the new singular vectors, as it does whenever it is read to train."""
    modes = [step.training for step in chain]
    for step in chain:
        step.train(isinstance(step, _SpectralNorm))
    for _ in range(_POWER_ITERATIONS):
        getattr(layer, attribute)
    for step, mode in zip(chain, modes, strict=True):
        step.train(mode)


def _parametrizations(layer: Module, attribute: str) -> list[Module]:
    if not parametrize.is_parametrized(layer, attribute):
        return []
    return list(cast(Any, layer.parametrizations)[attribute])


def _hook(layer: Module, attribute: str) -> object:
    """The forward pre-hook of the old ``weight_norm`` and ``spectral_norm``."""
    kinds = (WeightNorm, SpectralNorm)
    hooks = layer._forward_pre_hooks.values()
    return next((h for h in hooks if isinstance(h, kinds) and h.name == attribute), None)


def _copy_(parameter: Tensor, values: Tensor) -> None:
    if values.data_ptr() != parameter.data_ptr():  # otherwise they have been drawn right there
        parameter.detach().copy_(values)
