import math

import pytest
import torch

from lightning_lth.pruning.connectivity import (
    angle_degrees,
    error_barrier,
    interpolate,
    l2_distance,
)
from lightning_lth.pruning.masks import Masks


def network(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_distance_is_over_all_tensors():
    first = network(a=[[1.0, 2.0]], b=[0.0], steps=7)
    second = network(a=[[3.0, 2.0]], b=[-1.5], steps=1000)
    assert l2_distance(first, second) == 2.5  # sqrt(2^2 + 1.5^2); counters do not count
    assert l2_distance(first, first) == 0


def test_masks_select_what_counts():
    first = network(a=[1.0, 5.0, math.nan], bias=[3.0])
    second = network(a=[4.0, 1.0, math.inf], bias=[9.0])
    assert l2_distance(first, second, Masks(network(a=[1, 1, 0]))) == 5  # sqrt(3^2 + 4^2)
    assert l2_distance(first, second, Masks(network(a=[1, 0, 0]))) == 3
    assert l2_distance(first, second, Masks(network(bias=[1]))) == 6
    assert l2_distance(first, second, Masks(network(a=[0, 0, 0]))) == 0


def test_masks_need_only_their_own_names():
    first, second = network(a=[1.0], only_here=[1.0]), network(a=[2.0])
    assert l2_distance(first, second, Masks(network(a=[1]))) == 1


def test_distance_is_summed_in_float64():
    # in float32 the square of 1e-4 is lost beside that of 1
    first, second = network(a=[1.0] + [1e-4] * 1000), network(a=[0.0] * 1001)
    assert l2_distance(first, second) == pytest.approx(math.sqrt(1 + 1e-5), rel=1e-9)
    # 2049 - 1 has more bits than float16, and 256^2 more than it can hold
    half = {"a": torch.tensor([300.0], dtype=torch.float16)}
    assert l2_distance(half, {"a": torch.tensor([-300.0], dtype=torch.float16)}) == 600


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 0.0], [0.0, 5.0], 90),
        ([1.0, 0.0], [3.0, 3.0], 45),
        ([1.0, 0.0], [-1.0, math.sqrt(3)], 120),
        ([1.0, 2.0], [2.0, 4.0], 0),
        ([1.0, 2.0], [-3.0, -6.0], 180),
        ([1.0, 0.0], [1.0, 1e-6], math.degrees(1e-6)),  # arc cosines cannot see this
    ],
)
def test_angle(first, second, expected):
    first, second = {"a": torch.tensor(first)}, {"a": torch.tensor(second)}
    assert angle_degrees(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_angle_is_of_all_survivors_as_one_vector():
    # (1, 0 | 0) and (0, 1 | 1) without the second entry: (1 | 0) and (0 | 1); or (1), (0)
    first = network(a=[1.0, 1.0], b=[1.0])
    second = network(a=[1.0, -3.0], b=[0.0])
    # 1 * 1 + 1 * 0 over sqrt(2) * 1
    assert angle_degrees(first, second, Masks(network(a=[1, 0], b=[1]))) == pytest.approx(45)
    # 1 - 3 over sqrt(3) * sqrt(10)
    expected = math.degrees(math.acos(-2 / math.sqrt(30)))
    assert angle_degrees(first, second) == pytest.approx(expected)


def test_angle_with_zero_is_unknown():
    first, second = network(a=[1.0]), network(a=[0.0])
    assert math.isnan(angle_degrees(first, second))
    assert math.isnan(angle_degrees(second, first))
    assert math.isnan(angle_degrees(first, first, Masks(network(a=[0]))))


def test_interpolation_is_linear():
    first, second = network(a=[[4.0, 0.0]], steps=3), network(a=[[0.0, 8.0]], steps=100)
    middle = interpolate(first, second, 0.25)
    assert middle["a"].tolist() == [[1.0, 6.0]]
    assert middle["steps"].item() == 3
    assert middle["steps"].dtype == torch.int64


def test_ends_of_the_line_are_the_networks():
    first, second = {"a": torch.randn(50)}, {"a": torch.randn(50)}
    assert torch.equal(interpolate(first, second, 1)["a"], first["a"])
    assert torch.equal(interpolate(first, second, 0.0)["a"], second["a"])


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_infinities_that_both_have_are_no_distance(alpha):
    first, second = network(mask=[0.0, -math.inf], a=[3.0]), network(mask=[0.0, -math.inf], a=[0.0])
    assert l2_distance(first, second) == 3
    middle = interpolate(first, second, alpha)
    assert middle["mask"].tolist() == [0, -math.inf]
    assert middle["a"].item() == 3 * alpha


def test_interpolation_leaves_the_networks_alone():
    first, second = network(a=[1.0], steps=3), network(a=[2.0], steps=4)
    for alpha in (0.0, 0.5, 1.0):
        middle = interpolate(
            {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in first.items()},
            second,
            alpha,
        )
        assert not middle["a"].requires_grad
        for tensor in middle.values():
            tensor.zero_()
    assert first["a"].tolist() == [1.0]
    assert second["a"].tolist() == [2.0]
    assert first["steps"].item() == 3


def test_interpolation_keeps_the_dtype():
    first = {"a": torch.ones(1, dtype=torch.bfloat16)}
    assert interpolate(first, first, 0.3)["a"].dtype == torch.bfloat16


def test_barrier_is_above_the_mean_of_the_ends():
    assert error_barrier([0.25, 0.75, 0.5]) == 0.375  # 0.75 - (0.25 + 0.5) / 2
    assert error_barrier([0.5, 0.25, 0.5]) == 0  # the ends are on the line
    assert error_barrier([0.25, 0.75]) == 0.25
    assert error_barrier([0.5, 0.25, 0.125, 0.25, 0.25]) == 0.125


@pytest.mark.parametrize("position", [0, 1, 2])
def test_barrier_of_unknown_errors_is_unknown(position):
    errors = [0.25, 0.75, 0.5]
    errors[position] = math.nan
    assert math.isnan(error_barrier(errors))


def test_lines_without_two_ends_are_refused():
    for errors in ([], [0.5]):
        with pytest.raises(ValueError, match=r"`errors` must hold both ends of the line, got \["):
            error_barrier(errors)


@pytest.mark.parametrize(
    "function", [l2_distance, angle_degrees, lambda a, b: interpolate(a, b, 1)]
)
def test_networks_that_do_not_match_are_refused(function):
    first = network(a=[1.0], b=[1.0])
    with pytest.raises(ValueError, match=r"must have 'b', `second` has not\."):
        function(first, network(a=[1.0]))
    with pytest.raises(ValueError, match=r"must have 'b', `first` has not\."):
        function(network(a=[1.0]), first)
    with pytest.raises(ValueError, match=r"'b' must have one shape .* got \(1,\) and \(2,\)\."):
        function(first, network(a=[1.0], b=[1.0, 2.0]))


@pytest.mark.parametrize("function", [l2_distance, angle_degrees])
def test_masks_that_do_not_match_are_refused(function):
    weights = network(a=[1.0])
    with pytest.raises(ValueError, match=r"must have 'b', `first` has not\."):
        function(weights, weights, Masks(network(b=[1])))
    with pytest.raises(ValueError, match=r"The mask of 'a' has shape \(2,\), but the parameter"):
        function(weights, weights, Masks(network(a=[1, 1])))
