"""What each rule draws: its variance by hand, whatever the distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lightning_lth.initialization import choice, rules, schemes
from lightning_lth.initialization.drawing import Distribution, Rule, Weight, draw, generator_for

# A layer of 300 inputs and 500 outputs before ReLU, as the tests of variances want many values.
WEIGHT = Weight(1, 500, 300, 300.0, 500.0, activation="relu", gain=math.sqrt(2), torch_std=0.5)
DISTRIBUTIONS: list[Distribution] = ["normal", "uniform", "truncated"]


def values(rule: Rule, weight: Weight = WEIGHT) -> torch.Tensor:
    return rule(weight, generator_for(0, "weight"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("make", "arguments", "variance"),
    [
        (rules.he, {}, 2 / 300),
        (rules.he, {"fan": "fan_out"}, 2 / 500),
        (rules.he, {"fan": "average"}, 2 / 400),
        (rules.he, {"gain": 3.0}, 9 / 300),
        (rules.xavier, {}, 2 / (300 + 500)),
        (rules.xavier, {"fan": "fan_in"}, 1 / 300),
        (rules.xavier, {"gain": None}, 2 * 2 / (300 + 500)),
        (rules.lecun, {}, 1 / 300),
        (rules.lecun, {"fan": "fan_out"}, 1 / 500),
    ],
)
def test_variance_scaling(
    make: object, arguments: dict[str, object], variance: float, distribution: Distribution
) -> None:
    drawn = values(make(distribution, **arguments))  # type: ignore[operator]
    # 150,000 values: the relative error of the variance is about 0.4 % at one sigma.
    assert float(drawn.var()) == pytest.approx(variance, rel=0.02)
    assert abs(float(drawn.mean())) < 0.02 * math.sqrt(variance)


def test_the_edges_of_the_distributions() -> None:
    uniform = values(rules.he("uniform"))
    bound = math.sqrt(6 / 300)
    assert 0.999 * bound < float(uniform.abs().max()) <= bound
    truncated = values(rules.he("truncated"))
    bound = 2 * math.sqrt(2 / 300) / 0.8796256610342398
    assert 0.995 * bound < float(truncated.abs().max()) <= bound * (1 + 1e-6)
    normal = values(rules.he("normal"))
    assert float(normal.abs().max()) > 4 * math.sqrt(2 / 300)


def test_truncated_keeps_the_shape_of_a_normal_distribution() -> None:
    drawn = draw(Weight(1, 200, 1000, 1.0, 1.0), 1.0, "truncated", generator_for(0, "a"))
    # Of a normal cut at +-2 of its own sigma, 1 in units of 0.8796 lies within: erf(.8796/sqrt 2).
    within = math.erf(0.8796256610342398 / math.sqrt(2)) / math.erf(2 / math.sqrt(2))
    assert float((drawn.abs() < 1).float().mean()) == pytest.approx(within, abs=0.005)


@pytest.mark.parametrize("shape", [(1, 6, 9), (1, 9, 6), (4, 6, 6)])
def test_orthogonal_matrices_have_equal_singular_values(shape: tuple[int, int, int]) -> None:
    weight = Weight(*shape, float(shape[2]), float(shape[1]), activation="relu", gain=math.sqrt(2))
    for matrix in values(rules.orthogonal(), weight):
        torch.testing.assert_close(
            torch.linalg.svdvals(matrix), torch.full((min(shape[1:]),), math.sqrt(2))
        )


def test_orthogonal_makes_up_for_terms_that_a_stride_leaves_out() -> None:
    strided = Weight(1, 4, 16, fan_in=4.0, fan_out=16.0)
    assert torch.linalg.svdvals(values(rules.orthogonal(), strided)[0])[0] == pytest.approx(2.0)


def test_the_rows_of_a_depthwise_convolution_are_he() -> None:
    depthwise = Weight(64, 1, 9, 9.0, 9.0, gain=math.sqrt(2))
    assert choice.chosen(rules.orthogonal(), depthwise) == rules.he()
    assert choice.chosen(rules.orthogonal(gain=3.0), depthwise) == rules.he(gain=3.0)
    head = Weight(1, 1, 9, 9.0, 1.0)  # one output, not depthwise: a row of length 1
    assert choice.chosen(rules.orthogonal(), head) == rules.orthogonal()


@pytest.mark.parametrize(
    ("activation", "gain", "expected"),
    [
        ("relu", math.sqrt(2), math.sqrt(2) * math.exp(1.2 / (300 - 2.4))),
        ("linear", 1.0, math.exp(1 / 600)),
        ("tanh", 1.5925374, 1.15),
        ("gelu", 1.5335304, 1.5335304 * math.exp(1 / 600)),
        ("relu", 3 * 1.4142136, 3 * math.sqrt(2) * math.exp(1.2 / (300 - 2.4))),  # behind a gate
        ("tanh", 3 * 1.5925374, 3 * 1.15),
    ],
)
def test_random_walk(activation: str, gain: float, expected: float) -> None:
    weight = Weight(1, 500, 300, 300.0, 500.0, activation=activation, gain=gain)
    assert rules.random_walk().gain_of(weight) == pytest.approx(expected)
    assert float(values(rules.random_walk(), weight).std()) == pytest.approx(
        expected / math.sqrt(300), rel=0.01
    )


def test_random_walk_keeps_the_log_of_the_norm() -> None:
    """Sussillo & Abbott: over 100 layers of 100 units, log norm drifts by far less than with He."""
    weight = Weight(1, 100, 100, 100.0, 100.0, activation="relu", gain=math.sqrt(2))
    drifts = {}
    for name, rule in (("walk", rules.random_walk()), ("he", rules.he())):
        logs = []
        for trial in range(40):
            signal = torch.randn(100, generator=generator_for(trial, "input"))
            start = signal.norm()
            for layer in range(100):
                matrix = rule(weight, generator_for(trial, f"{name}{layer}"))[0]
                signal = torch.relu(matrix @ signal) if layer else matrix @ signal
            logs.append(float((signal.norm() / start).log()))
        drifts[name] = sum(logs) / len(logs)
    assert abs(drifts["walk"]) < 0.6
    assert drifts["he"] < drifts["walk"] - 0.5  # 100 layers times -1.2 / 97.6


def test_constants() -> None:
    assert (values(rules.zeros()) == 0).all()
    assert (values(rules.constant(0.25)) == 0.25).all()
    assert float(values(rules.constant_std(0.01)).std()) == pytest.approx(0.01, rel=0.01)
    assert (values(rules.constant_std(0)) == 0).all()
    assert float(values(rules.torch_default()).std()) == pytest.approx(0.5, rel=0.01)
    assert float(values(rules.torch_default()).abs().max()) <= 0.5 * math.sqrt(3)


@pytest.mark.parametrize(
    ("activation", "rule"),
    [
        ("relu", rules.he()),
        ("leaky_relu(0.2)", rules.he()),
        ("gelu", rules.he()),
        ("silu", rules.he()),
        ("swiglu", rules.he()),
        ("softplus", rules.he()),
        ("tanh", rules.xavier(gain=None)),
        ("sigmoid", rules.xavier(gain=None)),
        ("hardtanh(-2, 2)", rules.xavier(gain=None)),
        ("linear", rules.xavier(gain=None)),
        ("selu", rules.lecun()),
    ],
)
def test_auto_chooses_by_nonlinearity(activation: str, rule: Rule) -> None:
    assert choice.auto().choose(Weight(1, 2, 3, 3.0, 2.0, activation=activation)) == rule


@pytest.mark.parametrize(
    ("role", "rule"),
    [
        ("gate", rules.xavier()),
        ("projection", rules.xavier()),
        ("recurrent", rules.orthogonal()),
        ("embedding", rules.TABLE),
    ],
)
def test_auto_chooses_by_role(role: object, rule: Rule) -> None:
    weight = Weight(1, 2, 3, 3.0, 2.0, role=role)  # type: ignore[arg-type]
    assert choice.auto().choose(weight) == rule


def test_auto_passes_its_distribution_on() -> None:
    assert choice.auto("uniform").choose(WEIGHT) == rules.he("uniform")


def test_generators_depend_on_seed_and_name_alone() -> None:
    def first(seed: int, name: str) -> float:
        return float(torch.rand(1, generator=generator_for(seed, name)))

    torch.manual_seed(1)
    one = first(0, "a")
    torch.manual_seed(2)
    assert first(0, "a") == one
    assert len({one, first(1, "a"), first(0, "b"), first(-1, "a")}) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.he("gaussian"), r"`distribution` must be one of 'normal', 'uniform', 't"),
        (lambda: rules.he(fan="in"), r"`fan` must be one of 'fan_in', 'fan_out', 'average', got"),
        (lambda: rules.he(gain=-1), r"`gain` must be a finite number of at least 0, got -1"),
        (lambda: rules.orthogonal(gain=math.nan), r"`gain` must be a finite number"),
        (lambda: rules.constant_std(-0.1), r"`std` must be a finite number of at least 0"),
        (
            lambda: rules.he(gain="relu"),
            r"`gain` must be a finite number of at least 0, got 'relu'",
        ),  # type: ignore[arg-type]
        (lambda: rules.constant(math.nan), r"`value` must be a finite number, got nan"),
        (lambda: choice.auto("cauchy"), r"`distribution` must be one of"),
        (lambda: choice.auto(activation="swoosh"), r"No gain is known for 'swoosh'"),
        (lambda: schemes.data_dependent(iterations=-1), r"`iterations` must be an integer of"),
        (
            lambda: schemes.data_dependent(tolerance=0),
            r"`tolerance` must be a number above 0, got 0",
        ),
        (lambda: schemes.scheme_of("xaver"), r"No scheme is called 'xaver'. Did you mean 'xavier'"),
        (lambda: schemes.scheme_of("constant_std"), r"constant_std\(std\)"),
    ],
)
def test_bad_arguments_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_a_scheme_must_be_a_name_or_a_rule() -> None:
    for wrong in (3, rules.VarianceScaling, rules.he, None):
        with pytest.raises(TypeError, match="`scheme` must be the name of a scheme or a rule"):
            schemes.scheme_of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [schemes.fixup, schemes.lsuv, schemes.data_dependent])
def test_what_a_scheme_goes_over_must_be_a_rule(make: Callable[[object], object]) -> None:
    for wrong in ("he", rules.he, schemes.lsuv()):
        with pytest.raises(TypeError, match=r"`base` must be a rule, got .* such as `he\(\)`"):
            make(wrong)


def test_every_scheme_has_its_name() -> None:
    for name in ("auto", "xavier", "he", "lecun", "orthogonal", "random_walk", "torch_default"):
        assert str(schemes.scheme_of(name)) == name
    assert str(schemes.scheme_of("zeros")) == "zeros"
    assert str(rules.he("uniform")) == "he uniform"
    assert str(rules.constant_std(0.05)) == "constant_std(0.05)"
    assert str(rules.constant(1e-5)) == "constant(1e-05)"
