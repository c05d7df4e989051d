"""Fans and parts of every type of layer, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import Module

from lightning_lth.initialization.drawing import Weight
from lightning_lth.initialization.layers import Fill, Keep, Maps, generic, parts


def weight_of(layer: Module, name: str = "weight") -> Weight:
    described = parts(layer)
    assert described is not None
    part = described[name]
    assert isinstance(part, Maps)
    return part.weight


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (nn.Linear(3, 5), 3, 5),
        (nn.Conv1d(4, 6, 5), 20, 30),
        (nn.Conv2d(64, 128, 3, groups=4), 144, 288),  # 64/4*9 and 128/4*9
        (nn.Conv2d(64, 64, 3, groups=64), 9, 9),
        (nn.Conv2d(64, 128, 3, groups=64), 9, 18),
        (nn.Conv2d(64, 128, 3, stride=2), 576, 288),  # 128*9 / 4 positions of the stride
        (nn.Conv3d(2, 4, (1, 3, 5), stride=(1, 1, 2)), 30, 30),
        (nn.Conv2d(8, 16, 3, dilation=2), 72, 144),
        (nn.ConvTranspose2d(256, 64, 4, stride=2), 1024, 1024),  # 256*16/4 and 64*16
        (nn.ConvTranspose2d(64, 256, 4, stride=2), 256, 4096),
        (nn.ConvTranspose2d(256, 64, 3), 2304, 576),
        (nn.ConvTranspose2d(64, 64, 2, stride=2), 64, 256),
        (nn.ConvTranspose2d(64, 128, 4, stride=2, groups=4), 64, 512),
        (nn.ConvTranspose1d(6, 4, 3, stride=3), 6, 12),
        (nn.Bilinear(3, 4, 5), 12, 20),
        (nn.Embedding(10, 4), 1, 4),
        (nn.EmbeddingBag(10, 4), 1, 4),
    ],
    ids=str,
)
def test_true_fans(layer: Module, fan_in: float, fan_out: float) -> None:
    weight = weight_of(layer)
    assert (weight.fan_in, weight.fan_out) == (fan_in, fan_out)
    assert weight.count * weight.rows * weight.columns == layer.weight.numel()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3, groups=2),
        nn.ConvTranspose2d(6, 4, 3, groups=2),
        nn.ConvTranspose1d(2, 4, 3),
        nn.Linear(3, 5),
        nn.Bilinear(3, 4, 5),
    ],
    ids=str,
)
def test_a_row_of_the_maps_is_what_makes_an_output(layer: Module) -> None:
    """With only row r of map g at 1, only output channel g * rows + r of the layer answers."""
    described = parts(layer)
    assert described is not None
    maps = described["weight"]
    assert isinstance(maps, Maps)
    for group in range(maps.weight.count):
        for row in range(maps.weight.rows):
            values = torch.zeros(maps.weight.shape)
            values[group, row] = 1
            with torch.no_grad():
                layer.weight.copy_(maps.arrange(values))  # type: ignore[operator,union-attr]
                layer.bias.zero_()  # type: ignore[operator,union-attr]
            answers = (outputs_of(layer) != 0).nonzero().flatten().tolist()
            assert answers == [group * maps.weight.rows + row]


def outputs_of(layer: Module) -> torch.Tensor:
    """The output at one inner position, by channel, for an input of ones."""
    if isinstance(layer, nn.Bilinear):
        return layer(torch.ones(1, 3), torch.ones(1, 4))[0]
    if isinstance(layer, nn.Linear):
        return layer(torch.ones(1, 3))[0]
    channels = layer.in_channels
    dimensions = len(layer.kernel_size)  # type: ignore[arg-type]
    output = layer(torch.ones(1, channels, *[5] * dimensions))
    return output[0].flatten(1)[:, output[0, 0].numel() // 2]


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers_by_gate(kind: type[nn.RNNBase], gates: int) -> None:
    described = parts(kind(5, 7, num_layers=2, bidirectional=True))
    assert described is not None
    assert len(described) == 16  # 2 layers, 2 directions, 2 weights and 2 biases
    first = weight_of(kind(5, 7), "weight_ih_l0")
    assert (first.shape, first.role) == ((gates, 7, 5), "gate")
    second = described["weight_ih_l1_reverse"]
    assert isinstance(second, Maps)
    assert second.weight.shape == (gates, 7, 14)
    recurrent = described["weight_hh_l1_reverse"]
    assert isinstance(recurrent, Maps)
    assert (recurrent.weight.shape, recurrent.weight.role) == ((gates, 7, 7), "recurrent")


def test_the_forget_gate_is_open_in_one_of_the_two_biases() -> None:
    for layer in (nn.LSTM(5, 7, num_layers=2, bidirectional=True), nn.LSTMCell(5, 7)):
        described = parts(layer) or {}
        for name, part in described.items():
            if isinstance(part, Fill):
                assert part.ones == (slice(7, 14) if "bias_ih" in name else None), name
    for layer in (nn.GRU(5, 7), nn.RNN(5, 7), nn.GRUCell(5, 7), nn.RNNCell(5, 7)):
        assert all(part.ones is None for part in parts(layer).values() if isinstance(part, Fill))  # type: ignore[union-attr]


def test_an_lstm_with_a_projection() -> None:
    layer = nn.LSTM(5, 7, proj_size=3)
    assert weight_of(layer, "weight_hh_l0").shape == (4, 7, 3)
    assert weight_of(layer, "weight_hr_l0").shape == (1, 3, 7)


def test_attention_by_projection() -> None:
    packed = weight_of(nn.MultiheadAttention(8, 2), "in_proj_weight")
    assert (packed.shape, packed.role) == ((3, 8, 8), "projection")
    apart = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True)
    assert weight_of(apart, "k_proj_weight").shape == (1, 8, 4)
    assert weight_of(apart, "v_proj_weight").shape == (1, 8, 6)
    assert weight_of(apart, "bias_k").role == "embedding"
    assert weight_of(apart.out_proj).role == "projection"


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3),
        nn.SyncBatchNorm(3),
        nn.GroupNorm(1, 3),
        nn.LayerNorm(3),
        nn.InstanceNorm2d(3, affine=True),
        nn.RMSNorm(3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_normalization_is_one_and_zero(layer: Module) -> None:
    assert parts(layer) == {"weight": Fill(1.0), "bias": Fill(0.0)}


def test_other_types() -> None:
    assert parts(nn.PReLU()) == {"weight": Keep("slopes are kept")}
    assert parts(Module()) is None
    assert parts(nn.ParameterList([torch.zeros(2)])) is None


def test_padding_rows_are_zero() -> None:
    described = parts(nn.Embedding(5, 3, padding_idx=2))
    assert described is not None
    maps = described["weight"]
    assert isinstance(maps, Maps)
    values = maps.arrange(torch.ones(1, 5, 3))
    assert values.sum(1).tolist() == [3, 3, 0, 3, 3]


def test_any_tensor_as_a_map() -> None:
    weight = generic(torch.zeros(5, 3, 2)).weight
    assert (weight.shape, weight.fan_in, weight.fan_out) == ((1, 5, 6), 6, 10)
    assert generic(torch.zeros(4)).weight.shape == (1, 4, 1)
    assert generic(torch.zeros(5, 3, 2)).arrange(torch.zeros(1, 5, 6)).shape == (5, 3, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(300, 200),
        lambda: nn.Conv2d(16, 32, 5, groups=2),
        lambda: nn.ConvTranspose2d(16, 32, 5, groups=2, stride=2),
        lambda: nn.Bilinear(20, 30, 40),
        lambda: nn.LSTM(50, 60, num_layers=2, proj_size=20),
        lambda: nn.GRUCell(50, 60),
        lambda: nn.MultiheadAttention(64, 4, add_bias_kv=True),
        lambda: nn.MultiheadAttention(64, 4, kdim=32, vdim=48).out_proj,
        lambda: nn.MultiheadAttention(64, 4, kdim=32, vdim=48),
        lambda: nn.Embedding(100, 50),
        lambda: nn.LayerNorm(10),
    ],
)
def test_torch_draws_as_we_say_it_does(make: object) -> None:
    """Against torch itself: what it drew lies within our bound and has our standard deviation."""
    layer = make()  # type: ignore[operator]
    described = parts(layer)
    assert described is not None
    for name, parameter in layer.named_parameters(recurse=False):
        part = described[name]
        drawn = parameter.detach()
        if isinstance(part, Maps):
            std, is_uniform = part.weight.torch_std, part.weight.torch_distribution == "uniform"
            if "bias" not in name:  # a token of 64 values is too few
                assert float(drawn.std()) == pytest.approx(std, rel=0.05), name
            assert not is_uniform or float(drawn.abs().max()) <= std * math.sqrt(3) * (1 + 1e-6)
            assert not is_uniform or float(drawn.abs().max()) > 0.95 * std * math.sqrt(3), name
        elif isinstance(part, Fill) and part.torch_bound:
            assert 0.7 * part.torch_bound < float(drawn.abs().max()) <= part.torch_bound, name
        elif isinstance(part, Fill) and "out_proj" not in name:
            assert (drawn == part.value).all() or not drawn.any(), name


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_convolution_without_inputs() -> None:
    assert parts(nn.Conv2d(0, 2, 3))["weight"].weight.columns == 0
