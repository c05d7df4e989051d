"""Which parameters of a module are pruned."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn import Module, Parameter

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_PRUNABLE_BY_LAYER: tuple[tuple[tuple[type[Module], ...], tuple[str, ...]], ...] = (
    ((nn.Linear, nn.Bilinear, *_CONVOLUTIONS, *_EMBEDDINGS), ("weight",)),
    ((nn.MultiheadAttention,), ("in_proj_weight", "[qkv]_proj_weight")),
    ((nn.RNNBase, nn.RNNCellBase), ("weight_[ih]h*", "weight_hr*")),
)
_PRUNABLE_TEXT = (
    "the weights of Linear, Bilinear, Conv*, ConvTranspose*, Embedding, EmbeddingBag, "
    "MultiheadAttention, RNN, LSTM and GRU layers, and `weight` of two dimensions or more in "
    "layers of other libraries"
)
_NORMALIZATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def prunable_parameters(
    module: Module, parameters: Sequence[str] | None = None
) -> dict[str, Parameter]:
    """The parameters of a module that pruning ranks and masks.

    By default these are the weights of linear, convolution, embedding, attention and recurrent
    layers and of their subclasses, and what other libraries' layers call ``weight``, if it has two
    dimensions or more; biases, normalization layers and everything else stay dense.
    Weights that do not train (``requires_grad`` is false), that are empty, or that get sparse
    gradients (``Embedding(sparse=True)``) are left out too.

    Args:
        module: A network. Not modified.
        parameters: Globs (``fnmatch``, case counts) on parameter names that replace the default:
            exactly the parameters with at least one dimension that match one of them, be they
            frozen, empty or biases. Any name of a tied parameter will do.

    Returns:
        Name to parameter in the order of ``named_parameters``; a tied parameter comes once, by its
        first name, and the ``_orig_mod`` of a compiled module is left out of the name.

    Raises:
        TypeError: If ``parameters`` is a single string.
        ValueError: If nothing is selected, a pattern matches no parameter, or a selected parameter
            cannot be pruned: parametrized, on the meta device, not real floating point, or with
            sparse gradients.
        RuntimeError: If a selected parameter is lazy and not initialized yet.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
        >>> list(prunable_parameters(model))
        ['0.weight', '2.weight']
        >>> list(prunable_parameters(model, ["2.*"]))
        ['2.weight', '2.bias']

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635, prune the weights of linear and convolution layers.
    """
    candidates = _candidates(module)
    if parameters is None:
        selected = _select_by_layer(module, candidates)
    else:
        selected = _select_by_pattern(candidates, parameters)
    for candidate in selected:
        _refuse_unprunable(candidate)
    chosen = {id(candidate.parameter) for candidate in selected}
    return {
        strip_compiled(name): parameter
        for name, parameter in module.named_parameters()
        if id(parameter) in chosen
    }


def named_parameters(module: Module) -> dict[str, Parameter]:
    """Every parameter by its name, without the ``_orig_mod`` of compiled modules; ties once.

    Examples:
        >>> list(named_parameters(torch.nn.Linear(2, 1)))
        ['weight', 'bias']
    """
    return {strip_compiled(name): parameter for name, parameter in module.named_parameters()}


def strip_compiled(name: str) -> str:
    """A parameter's name without the ``_orig_mod`` that ``torch.compile`` puts into it.

    Examples:
        >>> strip_compiled("encoder._orig_mod.0.weight")
        'encoder.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One name of one parameter; ``layer`` and ``attribute`` are of the weight it stands for."""

    name: str
    layer: Module
    attribute: str
    parameter: Parameter
    remedy: str | None  # how to undo a parametrization, if the weight is computed from others
    has_sparse_gradient: bool

    @property
    def is_uninitialized(self) -> bool:
        return isinstance(self.parameter, UninitializedParameter)

    @property
    def weight_name(self) -> str:
        """The name that the weight would have without a parametrization."""
        if not self.remedy:
            return self.name
        prefix = self.name.partition("parametrizations.")[0].rpartition(".")[0]
        return f"{prefix}.{self.attribute}" if prefix else self.attribute


def _candidates(module: Module) -> list[_Candidate]:
    sparse_ids = {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, _EMBEDDINGS) and layer.sparse
        for parameter in layer.parameters(recurse=False)
    }
    return [
        _candidate(module, name, parameter, has_sparse_gradient=id(parameter) in sparse_ids)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    ]


def _candidate(
    module: Module, name: str, parameter: Parameter, *, has_sparse_gradient: bool
) -> _Candidate:
    prefix, _, attribute = name.rpartition(".")
    if "parametrizations" in name.split("."):
        prefix, _, rest = name.partition("parametrizations.")
        prefix, attribute = prefix.rstrip("."), rest.split(".")[0]
        remedy = "torch.nn.utils.parametrize.remove_parametrizations(layer, {!r})"
    else:
        base, remedy = _legacy_parametrization(module.get_submodule(prefix), attribute)
        attribute = base or attribute
    return _Candidate(
        name=strip_compiled(name),
        layer=module.get_submodule(prefix),
        attribute=attribute,
        parameter=parameter,
        remedy=remedy.format(attribute) or None,
        has_sparse_gradient=has_sparse_gradient,
    )


def _legacy_parametrization(layer: Module, attribute: str) -> tuple[str, str]:
    """The weight behind ``weight_orig``, ``weight_g`` or ``weight_v`` and how to get it back."""
    base, _, suffix = attribute.rpartition("_")
    if suffix not in ("orig", "g", "v") or base not in vars(layer):
        return "", ""
    if suffix != "orig":
        return base, "torch.nn.utils.remove_weight_norm(layer, {!r})"
    if f"{base}_mask" in dict(layer.named_buffers(recurse=False)):
        return base, "torch.nn.utils.prune.remove(layer, {!r})"
    return base, "torch.nn.utils.remove_spectral_norm(layer, {!r})"


def _select_by_layer(module: Module, candidates: list[_Candidate]) -> list[_Candidate]:
    eligible = [candidate for candidate in candidates if _is_layer_weight(candidate)]
    reasons = [_reason_to_leave_out(candidate) for candidate in eligible]
    selected = [candidate for candidate, why in zip(eligible, reasons, strict=True) if not why]
    if not selected:
        left_out = ", ".join(
            f"{candidate.weight_name!r} ({why})"
            for candidate, why in zip(eligible, reasons, strict=True)
        )
        raise ValueError(
            f"{type(module).__name__} has no prunable parameter. Prunable by default: "
            f"{_PRUNABLE_TEXT}, if they train."
            + (f" Left out: {left_out}." if left_out else "")
            + " Choose others by name in `parameters`."
        )
    return selected


def _is_layer_weight(candidate: _Candidate) -> bool:
    return _is_matrix_of_others(candidate) or any(
        isinstance(candidate.layer, layers)
        and any(fnmatchcase(candidate.attribute, pattern) for pattern in attributes)
        for layers, attributes in _PRUNABLE_BY_LAYER
    )


def _is_matrix_of_others(candidate: _Candidate) -> bool:
    """Linear maps such as ``Conv1D`` of transformers and ``Linear`` of torch_geometric.

    They are modules of their own kind, but call their matrix ``weight``, as torch does.
    """
    if candidate.attribute != "weight" or isinstance(candidate.layer, _NORMALIZATION):
        return False
    return candidate.is_uninitialized or sum(size > 1 for size in candidate.parameter.shape) > 1


def _reason_to_leave_out(candidate: _Candidate) -> str | None:
    if not candidate.parameter.requires_grad:
        return "frozen: `requires_grad` is false"
    if candidate.has_sparse_gradient:
        return "sparse gradients"
    if not candidate.is_uninitialized and candidate.parameter.numel() == 0:
        return "empty"
    return None


def _select_by_pattern(candidates: list[_Candidate], patterns: Sequence[str]) -> list[_Candidate]:
    if isinstance(patterns, str):
        raise TypeError(f"`parameters` must be a sequence of globs, got the string {patterns!r}.")
    if not patterns:
        raise ValueError(
            "`parameters` must name at least one parameter; None is the default choice."
        )
    choices = [c for c in candidates if c.is_uninitialized or c.parameter.dim() > 0]
    for pattern in patterns:
        if not any(_matches(candidate, pattern) for candidate in choices):
            raise ValueError(_no_match(pattern, [candidate.weight_name for candidate in choices]))
    return [c for c in choices if any(_matches(c, pattern) for pattern in patterns)]


def _matches(candidate: _Candidate, pattern: str) -> bool:
    return fnmatchcase(candidate.name, pattern) or fnmatchcase(candidate.weight_name, pattern)


def _no_match(pattern: str, names: list[str]) -> str:
    close = difflib.get_close_matches(pattern, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(map(repr, dict.fromkeys(names))) or "none, the module has no parameters"
    return f"No parameter matches {pattern!r} in `parameters`.{hint} Parameters: {listed}."


def _refuse_unprunable(candidate: _Candidate) -> None:
    name, parameter = candidate.weight_name, candidate.parameter
    if candidate.remedy:
        raise ValueError(
            f"{name!r} is parametrized: it is computed from {candidate.name!r}, so zeros in it "
            f"would not last. Call `{candidate.remedy}` first, or leave it out with `parameters`."
        )
    if candidate.is_uninitialized:
        raise RuntimeError(
            f"{name!r} is lazy and has no shape yet. Run one forward pass before pruning."
        )
    if parameter.is_meta:
        raise ValueError(
            f"{name!r} is on the meta device and has no values. "
            f"Materialize the module first, as with `to_empty` and an initialization."
        )
    if parameter.dtype not in _DTYPES:
        raise ValueError(
            f"{name!r} is {parameter.dtype}; only {', '.join(map(str, _DTYPES))} can be pruned. "
            f"Leave it out with `parameters`."
        )
    if candidate.has_sparse_gradient:
        raise ValueError(
            f"{name!r} gets sparse gradients, which cannot be masked. "
            f"Build its embedding with `sparse=False`, or leave it out of `parameters`."
        )
