"""Every gain is derived here again: by adaptive quadrature, from formulas in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.integrate import quad

from lightning_lth.initialization.gains import _GAINS, gain, gate_gain, is_gate, measured_gain


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def elu(z: float, alpha: float = 1.0) -> float:
    return z if z > 0 else alpha * math.expm1(z)


def selu(z: float) -> float:  # constants of Klambauer et al. 2017, equation 14
    return 1.0507009873554805 * elu(z, 1.6732632423543772)


def gelu(z: float) -> float:  # Hendrycks & Gimpel 2016: z times the normal distribution function
    return z * (1 + math.erf(z / math.sqrt(2))) / 2


def relu6_of_shifted(z: float) -> float:
    return min(max(z + 3, 0), 6) / 6


FORMULAS: dict[str, Callable[[float], float]] = {
    "linear": lambda z: z,
    "relu": lambda z: max(z, 0),
    "relu6": lambda z: min(max(z, 0), 6),
    "elu": elu,
    "celu": elu,  # the same for alpha = 1
    "selu": selu,
    "gelu": gelu,
    "silu": lambda z: z * sigmoid(z),
    "mish": lambda z: z * math.tanh(softplus(z)),
    "hardswish": lambda z: z * relu6_of_shifted(z),
    "softplus": softplus,
    "logsigmoid": lambda z: math.log(sigmoid(z)),
    "tanh": math.tanh,
    "hardtanh": lambda z: min(max(z, -1), 1),
    "sigmoid": sigmoid,
    "hardsigmoid": relu6_of_shifted,
    "softsign": lambda z: z / (1 + abs(z)),
    "tanhshrink": lambda z: z - math.tanh(z),
}


def integrated_gain(function: Callable[[float], float]) -> float:
    def integrand(z: float) -> float:
        return function(z) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    kinks = [-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 6]
    mean_square, _ = quad(integrand, -30, 30, points=kinks, epsabs=1e-13, limit=500)
    return float(mean_square**-0.5)


def test_every_gain_has_a_formula() -> None:
    assert sorted(FORMULAS) == sorted(_GAINS)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_gain_is_the_inverse_root_mean_square(name: str) -> None:
    assert gain(name) == pytest.approx(integrated_gain(FORMULAS[name]), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("elu(0.5)", lambda z: elu(z, 0.5)),
        ("celu(2)", lambda z: z if z > 0 else 2 * math.expm1(z / 2)),
        ("hardtanh(-2, 3)", lambda z: min(max(z, -2), 3)),
        ("softshrink(0.5)", lambda z: math.copysign(max(abs(z) - 0.5, 0), z)),
        ("hardshrink(0.5)", lambda z: z if abs(z) > 0.5 else 0),
    ],
)
def test_gains_with_parameters(name: str, formula: Callable[[float], float]) -> None:
    assert gain(name) == pytest.approx(integrated_gain(formula), rel=1e-3)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 1.0])
@pytest.mark.parametrize("name", ["leaky_relu", "prelu"])
def test_leaky_gains_follow_the_formula_of_he(name: str, slope: float) -> None:
    # He et al. 2015, equation 15: half of the variance, and slope^2 of the other half.
    assert gain(f"{name}({slope:g})") == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("glu", torch.sigmoid),
        ("swiglu", torch.nn.functional.silu),
        ("geglu", torch.nn.functional.gelu),
        ("reglu", torch.relu),
        ("bilinear", lambda z: z),
        ("gated tanh", torch.tanh),
    ],
)
def test_the_layer_behind_a_gate_makes_up_for_the_product(
    kind: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    values, gates = torch.randn(2, 1_000_000)
    product = values * function(gates)
    assert gate_gain(kind) == pytest.approx(1 / float(product.square().mean().sqrt()), rel=0.01)
    assert is_gate(kind)
    assert gain(kind) == 1


def test_a_function_that_has_no_gain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mean square is 0\.0"):
        measured_gain(torch.zeros_like)
    with pytest.raises(ValueError, match="mean square is nan"):
        measured_gain(torch.sqrt)


@pytest.mark.parametrize(
    "name",
    ["swish", "unknown: sin", "leaky_relu", "elu(", "elu(a)", "elu(1,2,3)", "relu(1)", "gated x"],
)
def test_an_unknown_nonlinearity_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="No gain is known for"):
        gain(name)


def test_a_nonlinearity_has_a_name() -> None:
    with pytest.raises(TypeError, match=r"`activation` must be a name, such as 'relu', got ReLU"):
        gain(torch.nn.ReLU())  # type: ignore[arg-type]
