"""How normalization, dropout and ReLU follow each other in a forward pass."""

from __future__ import annotations

import contextlib
import itertools
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lightning_lth.layer_stats.facts import Facts, FunctionalDropout
from lightning_lth.layer_stats.layers import dropout_layers, normalization_layers

_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
# Function name -> where `p` and `training` are, and the default of `training`.
_DROPOUT = {
    **{f"dropout{kind}": (1, 2, True) for kind in ("", "1d", "2d", "3d")},
    **{f"feature_{kind}": (1, 2, False) for kind in ("dropout", "alpha_dropout")},
    "alpha_dropout": (1, 2, False),
    "native_dropout": (1, 2, True),
    "multi_head_attention_forward": (10, 13, True),
    "scaled_dot_product_attention": (4, None, True),
}


@final
class Survey(TorchFunctionMode):
    """Finds out how layers are connected, during one forward pass that it is entered around.

    Compiled modules and functions run as if they were not compiled meanwhile. Outputs and random
    numbers do not change, and no tensor is kept.

    Args:
        module: The network.

    Attributes:
        facts: What is known so far.

    Examples:
        >>> network = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(2), nn.ReLU())
        >>> with Survey(network) as survey:
        ...     output = network(torch.ones(4, 2))
        >>> survey.facts.dropout_before, survey.facts.before_relu
        ({'1': ['0']}, {'1'})
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.facts = Facts()
        self._names = {
            id(layer): name for name, layer in module.named_modules()
        }  # by id: metrics' hashes vary
        self._layers = {**normalization_layers(module), **dropout_layers(module)}
        self._normalized: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._stance = contextlib.ExitStack()

    def __enter__(self) -> Survey:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import takes seconds
            # Compiled code would be compiled again because of this mode, which it cannot trace.
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._stance.close()
        self._normalized.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        owner = self._owner()
        if owner is not None:
            self._note_call(owner, name.strip("_"), args, kwargs)
        output = func(*args, **kwargs)
        if args and output is args[0] and name.endswith("_"):  # changed in place
            self._normalized.pop(id(output), None)
        if isinstance(owner, _BatchNorm) and isinstance(output, Tensor):
            self._normalized[id(output)] = (weakref.ref(output), self._names[id(owner)])
        return output

    def _owner(self) -> nn.Module | None:
        """The module whose method runs."""
        frame = sys._getframe(2)
        while frame is not None:
            this = frame.f_locals.get("self")
            if isinstance(this, nn.Module) and id(this) in self._names:
                return this
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def _note_call(
        self, owner: nn.Module, function: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        name = self._names[id(owner)]
        if name in self._layers:
            self.facts.note(name, self._layers)
        if _is_relu(function, args, kwargs):
            value = args[0] if args else kwargs.get("input")
            reference, normalization = self._normalized.get(id(value), (None, ""))
            if reference is not None and reference() is value:
                self.facts.before_relu.add(normalization)
        if function in _RECURRENT and isinstance(owner, nn.RNNBase):
            self._note_dropout(_between_recurrent(name, owner), owner)
        elif function in _DROPOUT and not isinstance(owner, nn.modules.dropout._DropoutNd):
            p, is_training = _dropout_arguments(function, args, kwargs)
            self._note_dropout(FunctionalDropout(name, function, p, is_training), owner)

    def _note_dropout(self, found: FunctionalDropout, owner: nn.Module) -> None:
        found = replace(found, is_left_on=found.is_training and not owner.training)
        if found.p > 0 and found not in self.facts.functional_dropout:
            self.facts.functional_dropout.append(found)


def fallback(module: nn.Module) -> Facts:
    """Guess the facts from how modules are registered, where no forward pass can be surveyed.

    Functions are not seen: ``F.relu``, ``F.dropout``.

    Examples:
        >>> fallback(nn.Sequential(nn.BatchNorm1d(2), nn.ReLU())).before_relu
        {'0'}
    """
    facts = Facts(is_observed=False)
    layers = {**normalization_layers(module), **dropout_layers(module)}
    modules = dict(module.named_modules())
    for name in modules:
        if name in layers:
            facts.note(name, layers)
    leaves = [(name, m) for name, m in modules.items() if next(m.children(), None) is None]
    for (name, layer), (_, following) in itertools.pairwise(leaves):
        if isinstance(layer, _BatchNorm) and isinstance(following, (nn.ReLU, nn.ReLU6)):
            facts.before_relu.add(name)
    found = [_inside(name, layer) for name, layer in modules.items()]
    facts.functional_dropout = [dropout for dropout in found if dropout and dropout.p > 0]
    return facts


def has_fast_path(module: nn.Module) -> bool:
    """Whether a part may run by a fused kernel, as torch's attention does in evaluation mode.

    It does not under a survey, which would change outputs: at padding, and by rounding.

    Examples:
        >>> attention = nn.MultiheadAttention(2, 1)
        >>> has_fast_path(attention), has_fast_path(attention.eval())
        (False, True)
    """
    kinds = nn.MultiheadAttention, nn.TransformerEncoderLayer
    return any(isinstance(part, kinds) and not part.training for part in module.modules())


def is_compiled(module: nn.Module) -> bool:
    """Whether any part is compiled, by ``torch.compile``, ``Module.compile`` or Lightning.

    Examples:
        >>> is_compiled(torch.compile(nn.ReLU())), is_compiled(nn.ReLU())
        (True, False)
    """
    return any(
        hasattr(part, "_orig_mod")
        or getattr(part, "_compiled_call_impl", None) is not None
        or getattr(part, "_compiler_ctx", None) is not None  # of a LightningModule
        or hasattr(part.forward, "_torchdynamo_orig_callable")
        for part in module.modules()
    )


def _inside(name: str, layer: nn.Module) -> FunctionalDropout | None:
    """The dropout that is part of another layer."""
    if isinstance(layer, nn.RNNBase):
        return _between_recurrent(name, layer)
    if isinstance(layer, nn.MultiheadAttention):
        function = "multi_head_attention_forward"
        return FunctionalDropout(name, function, float(layer.dropout), layer.training)
    return None


def _between_recurrent(name: str, layer: nn.RNNBase) -> FunctionalDropout:
    p = float(layer.dropout) if layer.num_layers > 1 else 0.0  # it is between the layers
    return FunctionalDropout(name, layer.mode.lower(), p, layer.training)


def _is_relu(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if function == "hardtanh":  # which nn.ReLU6 calls
        return bool((args[1] if len(args) > 1 else kwargs.get("min_val", -1)) == 0)
    return function in ("relu", "relu6")


def _dropout_arguments(
    function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[float, bool]:
    """Drop probability, and whether anything is dropped."""
    p_position, training_position, is_training = _DROPOUT[function]
    p = kwargs.get("p", kwargs.get("dropout_p"))
    if p is None:
        default = 0.0 if function == "scaled_dot_product_attention" else 0.5
        p = args[p_position] if len(args) > p_position else default
    given = kwargs.get("training", kwargs.get("train"))
    if given is None and training_position is not None and len(args) > training_position:
        given = args[training_position]
    return float(p), bool(is_training if given is None else given)
