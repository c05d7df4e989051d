"""By how much weights must grow to make up for the nonlinearity after them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# 1 / sqrt(E[f(z)^2]) for standard normal z; tests/initialization/test_gains.py integrates each.
_GAINS = {
    "linear": 1.0,
    "relu": 1.4142136,
    "relu6": 1.4142136,
    "elu": 1.2451983,
    "celu": 1.2451983,
    "selu": 1.0,
    "gelu": 1.5335304,
    "silu": 1.6765325,
    "mish": 1.4868476,
    "hardswish": 1.7366572,
    "softplus": 1.0418668,
    "logsigmoid": 1.0418668,
    "tanh": 1.5925374,
    "hardtanh": 1.3920361,
    "sigmoid": 1.8462285,
    "hardsigmoid": 1.8978404,
    "softsign": 2.3375334,
    "tanhshrink": 2.3383675,
}
_PARAMETRIC: dict[str, Callable[..., Tensor]] = {
    "leaky_relu": functional.leaky_relu,
    "prelu": functional.leaky_relu,  # the same function; its slope is learned
    "elu": functional.elu,
    "celu": functional.celu,
    "hardtanh": functional.hardtanh,
    "softshrink": functional.softshrink,
    "hardshrink": functional.hardshrink,
}
_GATES = {
    "glu": "sigmoid",
    "swiglu": "silu",
    "geglu": "gelu",
    "reglu": "relu",
    "bilinear": "linear",
}


def gain(activation: str) -> float:
    """The gain that keeps a standard normal pre-activation at mean square 1 behind a nonlinearity.

    That is ``1 / sqrt(E[f(z)^2])``. For ReLU it is the square root of 2 (He et al. 2015); a layer
    before a gate has gain 1, and the layer behind the product makes up for it (``gate_gain``).

    Args:
        activation: As ``lightning_lth.initialization.activations`` names it, with parameters
            in parentheses: ``"relu"``, ``"leaky_relu(0.2)"``, ``"hardtanh(-2, 2)"``.

    Raises:
        ValueError: If there is no such nonlinearity.
        TypeError: If it is no name.

    Examples:
        >>> gain("gelu")
        1.5335304
        >>> round(gain("leaky_relu(1)"), 6)  # the identity
        1.0

    Note:
        Torch's ``calculate_gain`` has 5/3 for tanh, 3/4 for SELU and 1 for sigmoid, and refuses
        GELU, SiLU, Mish and kin. For those, and for hardswish, no gain is stable in depth: each
        layer magnifies what error there is. Use it in shallow or normalized networks, LSUV in
        others.
    """
    if not isinstance(activation, str):
        raise TypeError(f"`activation` must be a name, such as 'relu', got {activation!r}.")
    if activation in _GAINS:
        return _GAINS[activation]
    if is_gate(activation):
        gate_gain(activation)  # refuses what has none
        return 1.0
    name, _, rest = activation.partition("(")
    if name in _PARAMETRIC and rest.endswith(")"):
        with contextlib.suppress(TypeError, ValueError):  # not numbers, or too many
            arguments = [float(number) for number in rest[:-1].split(",")]
            return measured_gain(lambda inputs: _PARAMETRIC[name](inputs, *arguments))
    raise ValueError(
        f"No gain is known for {activation!r}. Known: {', '.join(_GAINS)}; with parameters: "
        f"{', '.join(_PARAMETRIC)}. For a function of your own, see `measured_gain`."
    )


def gate_gain(kind: str) -> float:
    """The gain of a layer whose input is the product of a gated linear unit.

    Args:
        kind: ``"glu"``, ``"swiglu"``, ``"geglu"``, ``"reglu"``, ``"bilinear"``, or ``"gated "`` and
            the name of another nonlinearity.

    Examples:
        >>> gate_gain("swiglu") == gain("silu")  # the other half has mean square 1
        True
    """
    return gain(_GATES[kind] if kind in _GATES else kind.removeprefix("gated "))


def is_gate(activation: str) -> bool:
    """Whether this is what ``gate_gain`` takes.

    Examples:
        >>> is_gate("glu"), is_gate("gated tanh"), is_gate("tanh")
        (True, True, False)
    """
    return activation in _GATES or activation.startswith("gated ")


def measured_gain(function: Callable[[Tensor], Tensor]) -> float:
    """The gain of any elementwise function, by numerical integration.

    Args:
        function: From ``float64`` numbers to as many.

    Raises:
        ValueError: If the function is 0 everywhere or not finite.

    Examples:
        >>> round(measured_gain(torch.sin), 4)
        1.5209
    """
    inputs = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    density = torch.exp(-inputs.square() / 2) / math.sqrt(2 * math.pi)
    mean_square = float(torch.trapezoid(density * function(inputs).square(), inputs))
    if not (math.isfinite(mean_square) and mean_square > 0):
        raise ValueError(
            f"`function` must be finite and somewhere not 0, but its mean square is {mean_square}."
        )
    return 1 / math.sqrt(mean_square)
