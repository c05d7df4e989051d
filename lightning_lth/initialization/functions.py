"""What a torch function is, by its name: a layer, a nonlinearity, a norm, a gate by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WEIGHTED = frozenset(
    ["linear", "bilinear", "embedding", "embedding_bag"]
    + [f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3)]
)
RECURRENT = frozenset(
    f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")
)
BIASED_PRODUCTS = frozenset(["addmm", "addmv", "addbmm", "baddbmm"])  # the bias is the first tensor
PRODUCTS = BIASED_PRODUCTS | _names(
    "matmul mm bmm mv dot vdot inner einsum tensordot chain_matmul multi_dot"
)
PARTS = _names(
    "chunk split unsafe_split unsafe_chunk split_with_sizes tensor_split hsplit vsplit dsplit "
    "unbind narrow getitem select"
)
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "response_norm")
_CONSUMERS = _names(
    "softmax softmin gumbel_softmax logsumexp scaled_dot_product_attention cosine_similarity "
    "pairwise_distance cdist"
)
_LOSSES = _names("log_softmax kl_div")
AVERAGES = _names("mean sum nanmean nansum cumsum max min amax amin aminmax median")
FORGETFUL = _names(
    "var std var_mean std_mean norm vector_norm matrix_norm prod argmax argmin argsort nonzero "
    "isnan isinf isfinite multinomial bernoulli"
)
DISTORTING = _names(
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 arctan sinh cosh asinh "
    "acosh atanh sinc pow square sqrt rsqrt abs sign sgn reciprocal erfc erfinv logit xlogy "
    "lgamma digamma i0 round floor ceil trunc frac fmod remainder floor_divide heaviside hypot "
    "maximum minimum fmax fmin gt lt ge le eq ne logical_not polar"
)
_ALIASES = {
    "add": _names("iadd radd"),
    "mul": _names("imul rmul multiply"),
    "div": _names("idiv truediv itruediv divide true_divide"),
    "reciprocal": _names("rdiv rtruediv"),
    "pow": _names("rpow ipow float_power"),
    "matmul": _names("imatmul rmatmul"),
    "abs": _names("absolute"),
    "clamp": _names("clip"),
    "sigmoid": _names("expit"),
    "logsigmoid": _names("log_sigmoid"),
}
_SAME = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_PLAIN = _names(
    "relu relu6 selu gelu silu mish hardswish tanh sigmoid hardsigmoid logsigmoid softsign "
    "tanhshrink glu"
)
_GATED = {"sigmoid": "glu", "silu": "swiglu", "gelu": "geglu", "relu": "reglu"}


def function_name(function: Callable[..., Any]) -> str:
    """One name for all forms of a function.

    Examples:
        >>> function_name(torch.Tensor.__iadd__), function_name(torch.ops.aten.relu_.default)
        ('add', 'relu')
    """
    name = getattr(function, "__name__", "").partition(".")[0].strip("_")  # of an overload
    name = name.removeprefix("special_").removeprefix("linalg_")
    return _SAME.get(name, name)


def is_constant(name: str) -> bool:
    """Whether the result does not depend on the values of its arguments."""
    return name.endswith("_like") or name.startswith("new_")


def is_first_power(name: str, args: tuple[Any, ...]) -> bool:
    """Whether it raises to the power of one."""
    return name == "pow" and len(args) > 1 and isinstance(args[1], (int, float)) and args[1] == 1


def text(arguments: Any) -> str:
    """Arguments of a slice in words; tensors are not looked into.

    Examples:
        >>> text([(2, torch.ones(1)), {"dim": -1}])
        '[[2, ...], [[dim, -1]]]'
    """
    if isinstance(arguments, dict):
        arguments = list(arguments.items())
    if isinstance(arguments, (tuple, list)):
        return f"[{', '.join(map(text, arguments))}]"
    return "..." if isinstance(arguments, Tensor) else str(arguments)


def is_consumer(name: str) -> bool:
    """Whether it ends a path as a layer does: attention and softmax."""
    return name in _CONSUMERS


def is_loss(name: str) -> bool:
    """Whether it makes a loss from outputs; no attention takes the log of its softmax."""
    return name in _LOSSES or name.endswith("_loss") or "cross_entropy" in name


def is_norm(name: str) -> bool:
    """Whether it is a normalization that could have a layer of its own."""
    return name.endswith(_NORMS)


def activation_kind(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The nonlinearity with its parameters, or None if the function is none.

    Examples:
        >>> activation_kind("leaky_relu", (torch.ones(1), 0.2), {}), activation_kind("flip", (), {})
        ('leaky_relu(0.2)', None)
        >>> activation_kind("clamp", (torch.ones(1),), {"min": 0})
        'relu'
    """

    def given(position: int, key: str, default: Any) -> Any:
        return args[position] if len(args) > position else kwargs.get(key, default)

    if name in _PLAIN:
        return name
    if name == "erf":
        return "unknown: erf"
    if name == "hardtanh":
        return _clamp_kind(given(1, "min_val", -1), given(2, "max_val", 1))
    if name in ("clamp", "clamp_min", "clamp_max"):
        low = None if name == "clamp_max" else given(1, "min", None)
        return _clamp_kind(low, given(1 if name == "clamp_max" else 2, "max", None))
    if name == "leaky_relu":
        return f"leaky_relu({given(1, 'negative_slope', 0.01):g})"
    if name == "rrelu":  # its mean slope, which it has in evaluation
        return f"leaky_relu({(given(1, 'lower', 1 / 8) + given(2, 'upper', 1 / 3)) / 2:g})"
    if name == "prelu":
        weight = given(1, "weight", None)
        return "unknown: prelu" if weight.is_meta else f"prelu({float(weight.mean()):g})"
    if name in ("elu", "celu"):
        alpha = given(1, "alpha", 1)
        return name if alpha == 1 else f"{name}({alpha:g})"
    if name in ("softshrink", "hardshrink"):
        return f"{name}({given(1, 'lambd', 0.5):g})"
    if name == "softplus":
        return name if given(1, "beta", 1) == 1 else "unknown: softplus"
    if name == "threshold":
        is_relu = given(1, "threshold", None) == given(2, "value", None) == 0
        return "relu" if is_relu else "unknown: threshold"
    return None


def _clamp_kind(low: Any, high: Any) -> str:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return "unknown: clamp"
    known_limits = {(0, None): "relu", (0, 6): "relu6", (-1, 1): "hardtanh"}
    if (low, high) in known_limits:
        return known_limits[low, high]
    return "unknown: clamp" if low is None or high is None else f"hardtanh({low:g}, {high:g})"


def gated_kind(kind: str) -> str:
    """The gated linear unit (Shazeer 2020, arXiv:2002.05202) by the nonlinearity of its gate.

    Examples:
        >>> gated_kind("silu"), gated_kind("tanh")
        ('swiglu', 'gated tanh')
    """
    if kind.startswith("unknown: "):
        return f"unknown: gated {kind.removeprefix('unknown: ')}"
    return _GATED.get(kind, f"gated {kind}")


def composed_kind(outer: str, inner: str) -> str:
    """One nonlinearity on top of another.

    Examples:
        >>> composed_kind("tanh", "softplus")
        'unknown: tanh(softplus)'
    """
    return f"unknown: {outer}({inner.removeprefix('unknown: ')})".replace(": unknown: ", ": ")


def _gelu_gate(inputs: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.tanh(math.sqrt(2 / math.pi) * (inputs + 0.044715 * inputs**3))


def _sigmoid_gelu_gate(inputs: Tensor) -> Tensor:
    return torch.sigmoid(1.702 * inputs)  # Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2


def _mish_gate(inputs: Tensor) -> Tensor:
    return torch.tanh(functional.softplus(inputs))


# Nonlinearity of the gate -> what the product may be, with the function that the gate then is.
_SELF_GATES: dict[str, tuple[tuple[str, Callable[[Tensor], Tensor]], ...]] = {
    "sigmoid": (("silu", torch.sigmoid), ("gelu", _sigmoid_gelu_gate), ("gelu", _gelu_gate)),
    "tanh": (("gelu", _gelu_gate),),
    "unknown: erf": (("gelu", torch.special.ndtr),),
    "unknown: tanh(softplus)": (("mish", _mish_gate),),
    "relu6": (("hardswish", functional.hardsigmoid),),
    "hardsigmoid": (("hardswish", functional.hardsigmoid),),
    "hardtanh(0, 1)": (("hardswish", functional.hardsigmoid),),
}
_SCALED = {"gelu": (1, 2), "hardswish": (1, 6)}  # as in `0.5 * x * (1 + ...)`, `x / 6 * relu6(x)`


def self_gated_kind(kind: str, inputs: Tensor, gate: Tensor) -> str:
    """The nonlinearity that is a product of inputs and a gate computed from them.

    Spellings differ by constants, so that values decide whether it is the function that the gate
    suggests; constant inputs and the meta device cannot tell, and get the first that it may be.

    Args:
        kind: The nonlinearity of the gate.
        inputs: For GELU also times 1/2, for hardswish also times 1/6.
        gate: Times any constant.

    Examples:
        >>> x = torch.linspace(-3, 3, 7)
        >>> self_gated_kind("sigmoid", x, x.sigmoid())
        'silu'
        >>> self_gated_kind("sigmoid", x, (2 * x).sigmoid())
        'unknown: x * sigmoid'
    """
    if inputs.shape == gate.shape:
        for product, function in _SELF_GATES.get(kind, ()):
            if inputs.is_meta or not inputs.numel():
                return product
            values = inputs.detach().float()
            scales = _SCALED.get(product, (1,))
            if any(_is_multiple(gate, function(values * scale)) for scale in scales):
                return product
    return f"unknown: x * {kind.removeprefix('unknown: ')}"


def _is_multiple(gate: Tensor, expected: Tensor) -> bool:
    values, expected = gate.detach().float().flatten(), expected.flatten()
    factor = torch.dot(values, expected) / torch.dot(expected, expected)
    error = (values - factor * expected).abs().max()
    spread = (factor * (expected.max() - expected.min())).abs()
    return bool(error <= 0.01 * spread + 2 * torch.finfo(gate.dtype).eps * values.abs().max())
