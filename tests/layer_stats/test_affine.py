from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from lightning_lth.layer_stats.affine import affine_statistics


def filled(layer: nn.Module, **values: list[float]) -> nn.Module:
    """The layer with these contents of its parameters and buffers."""
    for name, content in values.items():
        tensor = getattr(layer, name)
        with torch.no_grad():
            tensor.copy_(torch.tensor(content).view(tensor.shape))
    return layer


def test_scales_and_offsets() -> None:
    layer = filled(nn.LayerNorm(4), weight=[1.0, -3.0, 0.009, 0.011], bias=[-1.0, -0.5, 0.0, 2.0])
    assert affine_statistics({"norm": layer}).to_numbers() == pytest.approx(
        {
            ("norm", "gamma_abs"): 1.005,  # (1 + 3 + 0.009 + 0.011) / 4
            ("norm", "gamma_zero"): 0.25,  # 0.009
            ("norm", "neg_beta"): 0.5,  # -1 and -0.5
        }
    )


def test_the_bound_of_a_scale_of_zero() -> None:
    layer = filled(nn.RMSNorm(4), weight=[0.5, -0.1, 0.1, 1.0])
    numbers = affine_statistics({"norm": layer}, small_gamma=0.2).to_numbers()
    assert numbers["norm", "gamma_zero"] == 0.5  # -0.1 and 0.1


def test_layers_of_several_widths_at_once() -> None:
    layers = {
        "a": filled(nn.BatchNorm1d(2), weight=[2.0, 4.0], running_var=[1.0, 1e-7]),
        "b": filled(nn.LayerNorm((2, 2)), weight=[1.0, 2.0, 3.0, 6.0], bias=[-1.0, 1.0, 1.0, 1.0]),
        "c": filled(nn.GroupNorm(1, 1), weight=[0.0], bias=[-1.0]),
        "d": nn.RMSNorm(3),  # without bias
    }
    assert affine_statistics(layers).to_numbers() == {
        ("a", "gamma_abs"): 3.0,
        ("b", "gamma_abs"): 3.0,
        ("c", "gamma_abs"): 0.0,
        ("d", "gamma_abs"): 1.0,
        ("a", "gamma_zero"): 0.0,
        ("b", "gamma_zero"): 0.0,
        ("c", "gamma_zero"): 1.0,
        ("d", "gamma_zero"): 0.0,
        ("a", "neg_beta"): 0.0,
        ("b", "neg_beta"): 0.25,
        ("c", "neg_beta"): 1.0,
        ("a", "dead"): 0.5,
    }


def test_each_layer_alone_gives_the_same() -> None:
    layers = {f"bn{width}": nn.BatchNorm2d(width) for width in (1, 5, 3)}
    for layer in layers.values():
        for tensor in (layer.weight, layer.bias, layer.running_var):
            nn.init.normal_(tensor)
    together = affine_statistics(layers, before_relu=layers).to_numbers()
    alone = [affine_statistics({n: one}, before_relu=layers) for n, one in layers.items()]
    apart = {name: value for one in alone for name, value in one.to_numbers().items()}
    assert len(together) == 12
    assert together == pytest.approx(apart)


@pytest.mark.parametrize(
    ("layer", "before_relu", "expected"),
    [
        (nn.LayerNorm(2), (), {"gamma_abs", "gamma_zero", "neg_beta"}),
        (nn.RMSNorm(2), (), {"gamma_abs", "gamma_zero"}),
        (nn.LayerNorm(2, elementwise_affine=False), (), set()),
        (nn.LayerNorm(2), ("norm",), {"gamma_abs", "gamma_zero", "neg_beta"}),  # batch norm only
        (nn.InstanceNorm1d(2, track_running_stats=True), (), set()),
        (nn.BatchNorm1d(2), (), {"gamma_abs", "gamma_zero", "neg_beta", "dead"}),
        (nn.BatchNorm1d(2, affine=False), ("norm",), {"dead"}),
        (
            nn.BatchNorm1d(2, track_running_stats=False),
            (),
            {"gamma_abs", "gamma_zero", "neg_beta"},
        ),
        (
            nn.BatchNorm1d(2, track_running_stats=False),
            ("norm",),
            {"gamma_abs", "gamma_zero", "neg_beta", "dead"},
        ),
        (nn.BatchNorm1d(2, affine=False, track_running_stats=False), ("norm",), set()),
        (FrozenBatchNorm2d(2), (), {"gamma_abs", "gamma_zero", "neg_beta", "dead"}),
    ],
)
def test_what_there_is_of_a_layer(
    layer: nn.Module, before_relu: tuple[str, ...], expected: set[str]
) -> None:
    numbers = affine_statistics({"norm": layer}, before_relu=before_relu).to_numbers()
    assert numbers.keys() == {("norm", statistic) for statistic in expected}


def test_no_layers() -> None:
    assert affine_statistics({}).names == ()


def test_channels_that_do_not_vary_are_dead() -> None:
    layer = filled(nn.BatchNorm1d(4), running_var=[0.0, 0.9e-6, 1.1e-6, 1.0])
    assert affine_statistics({"bn": layer}).to_numbers()["bn", "dead"] == 0.5


@pytest.mark.parametrize(
    ("gamma", "beta", "is_dead"),
    [
        (1.0, -3.08, False),  # Phi(3.08) = 0.99896
        (1.0, -3.10, True),  # Phi(3.10) = 0.99903
        (-1.0, -3.10, True),
        (2.0, -3.10, False),
        (0.5, -1.55, True),
        (1.0, 3.10, False),
        (-1.0, 1.0, False),
        (0.0, -1.0, True),
        (0.0, 0.0, True),
        (0.0, 1e-3, False),
    ],
)
def test_channels_that_a_relu_shuts_are_dead(gamma: float, beta: float, is_dead: bool) -> None:
    layer = filled(nn.BatchNorm1d(1), weight=[gamma], bias=[beta])
    layers = {"bn": layer, "other": nn.BatchNorm1d(1)}
    shut = affine_statistics(layers, before_relu={"bn"}).to_numbers()
    free = affine_statistics(layers, before_relu={"other"}).to_numbers()
    if gamma:
        assert (NormalDist().cdf(-beta / abs(gamma)) > 0.999) == is_dead
    assert shut["bn", "dead"] == is_dead
    assert free["bn", "dead"] == shut["other", "dead"] == free["other", "dead"] == 0


def test_a_relu_shuts_channels_without_running_statistics() -> None:
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    filled(layer, weight=[1.0, 1.0, 1.0, 0.0], bias=[-4.0, 4.0, 0.0, 0.0])
    numbers = affine_statistics({"bn": layer}, before_relu={"bn"}).to_numbers()
    assert numbers["bn", "dead"] == 0.5  # the first and the last


def test_a_channel_dead_for_both_reasons_counts_once() -> None:
    layer = filled(nn.BatchNorm1d(3), running_var=[0.0, 0.0, 1.0], bias=[-4.0, 0.0, -4.0])
    numbers = affine_statistics({"bn": layer}, before_relu={"bn"}).to_numbers()
    assert numbers["bn", "dead"] == 1
    layer.bias.data[2] = 0
    numbers = affine_statistics({"bn": layer}, before_relu={"bn"}).to_numbers()
    assert numbers["bn", "dead"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layers = {"a": nn.BatchNorm1d(3000, dtype=dtype), "b": nn.LayerNorm(2)}
    readings = affine_statistics(layers)
    assert readings.values.dtype == torch.float32
    numbers = readings.to_numbers()
    assert numbers["a", "gamma_abs"] == pytest.approx(1)  # a sum of 3000 is inexact in 16 bits
    assert numbers["a", "dead"] == 0


def test_the_layers_are_left_alone() -> None:
    layer = filled(nn.BatchNorm1d(2), weight=[-1.0, 1.0], bias=[-1.0, 1.0])
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    readings = affine_statistics({"bn": layer}, before_relu={"bn"})
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert not readings.values.requires_grad


def test_a_parametrized_scale() -> None:
    layer = nn.LayerNorm(2)

    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    assert affine_statistics({"norm": layer}).to_numbers()["norm", "gamma_abs"] == 2


def test_a_scale_that_is_no_number_is_left_out() -> None:
    layer = filled(nn.RMSNorm(2), weight=[math.nan, 1.0])
    assert ("norm", "gamma_abs") not in affine_statistics({"norm": layer}).to_numbers()


def test_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a normalization layer, got Linear"):
        affine_statistics({"fc": nn.Linear(1, 1)})
