from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_lth.pruning import scoring, selection
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import prunable_parameters
from lightning_lth.study.experiments import networks
from lightning_lth.study.experiments.networks import NetworkName, ResidualBlock, build

SMALL: list[NetworkName] = ["lenet_300_100", "conv2", "conv4", "conv6"]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lenet_300_100", 784 * 300 + 300 * 100 + 100 * 10),  # 266,200
        ("conv2", 4_300_992),  # protocols, 1.2
        ("conv4", 2_425_024),
        ("conv6", 2_261_184),
        ("resnet20", 267_696 + 2_560 + 640),  # 3x3 convolutions, shortcuts, output
        ("vgg19", 20_018_880 + 5_120),
    ],
)
def test_weights_are_as_many_as_in_the_paper(name: NetworkName, count: int) -> None:
    weights = prunable_parameters(build(name))
    assert sum(weight.numel() for weight in weights.values()) == count


def count(network: nn.Module, part: str) -> int:
    return sum(p.numel() for name, p in network.named_parameters() if part in name)


def test_parts_are_as_large_as_in_the_paper() -> None:
    """Figure 2: weights of convolutions, 38K, 260K; of ResNet all and in shortcuts; of outputs."""
    assert count(networks.conv2(), "conv") == 38_592 + 2 * 64  # with biases
    assert count(networks.conv4(), "conv") == 259_776 + 2 * 64 + 2 * 128
    resnet = networks.resnet20()
    assert sum(p.numel() for p in resnet.parameters()) == 272_282
    assert count(resnet, "shortcut") == 2_560
    assert count(resnet, "output.weight") == 640
    assert count(networks.vgg19(), "output.weight") == 5_120


# Protocols, 1.2: percent of the weights left after each round.
LENET = "100 80.04 64.06 51.28 41.05 32.87 26.32 21.07 16.88 13.52 10.83 8.68 6.95 5.57 4.47 3.58"
LENET += " 2.87 2.31 1.85 1.49 1.19"
LADDERS = {
    "lenet_300_100": (0.2, dict(enumerate(map(float, LENET.split())))),
    "conv2": (0.1, {11: 8.81, 14: 4.57}),
    "conv4": (0.1, {11: 11.06, 12: 9.18}),
    "conv6": (0.15, {7: 26.61, 10: 15.29}),
}


@pytest.mark.parametrize("name", SMALL)
def test_densities_are_those_of_the_paper(name: NetworkName) -> None:
    conv_fraction, expected = LADDERS[name]
    fractions = {"output.weight": 0.1}
    if name.startswith("conv"):
        fractions["conv*.weight"] = conv_fraction
    weights = prunable_parameters(build(name))
    scores = scoring.Scores.of({key: torch.rand(weight.shape) for key, weight in weights.items()})
    masks = Masks.dense(weights)
    for index in range(max(expected) + 1):
        if index:
            masks = selection.prune(scores, masks, fraction=0.2, scope="layer", fractions=fractions)
        if index in expected:
            assert 100 * masks.density == pytest.approx(expected[index], abs=0.0051)


KINDS = ("weight", "bias")


def names_of(layers: list[str]) -> list[str]:
    return [f"{layer}.{kind}" for layer in layers for kind in KINDS]


def randomize_(network: nn.Module) -> dict[str, Tensor]:
    """No bias is 0, no running statistic is as at first."""
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() == 1:
                tensor.uniform_(0.1, 1.0)
        for tensor in network.buffers():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1.0)
    return dict(network.state_dict())


def linear_layers(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    for layer in ("hidden1", "hidden2"):
        x = (x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]).relu()
    return x @ p["output.weight"].T + p["output.bias"]


def test_lenet_computes_what_the_paper_draws() -> None:
    network, images = build("lenet_300_100"), torch.rand(2, 1, 28, 28)
    p = randomize_(network)
    assert list(p) == names_of(["hidden1", "hidden2", "output"])
    torch.testing.assert_close(network(images), linear_layers(images.flatten(1), p))


@pytest.mark.parametrize(("name", "pairs"), [("conv2", 1), ("conv4", 2), ("conv6", 3)])
def test_conv_computes_what_the_paper_draws(name: NetworkName, pairs: int) -> None:
    network, images = build(name), torch.rand(2, 3, 32, 32)
    p = randomize_(network)
    layers = [f"conv{index}" for index in range(1, 2 * pairs + 1)]
    assert list(p) == names_of([*layers, "hidden1", "hidden2", "output"])
    assert [len(p[f"{layer}.weight"]) for layer in layers] == [64, 64, 128, 128, 256, 256][
        : 2 * pairs
    ]
    x = images
    for index, layer in enumerate(layers, 1):
        x = functional.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=1).relu()
        x = functional.max_pool2d(x, 2) if index % 2 == 0 else x
    torch.testing.assert_close(network(images), linear_layers(x.flatten(1), p))


def normalized(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    scale = (p[f"{name}.weight"] / (variance + 1e-5).sqrt())[:, None, None]
    return (x - mean[:, None, None]) * scale + p[f"{name}.bias"][:, None, None]


def test_resnet_computes_what_the_paper_draws() -> None:
    network, images = build("resnet20").eval(), torch.rand(2, 3, 32, 32)
    p = randomize_(network)
    conv = functional.conv2d
    x = normalized(conv(images, p["conv1.weight"], padding=1), p, "norm1").relu()
    for block in range(1, 10):
        halves = block in (4, 7)
        part = f"block{block}"
        y = conv(x, p[f"{part}.conv1.weight"], stride=1 + halves, padding=1)
        y = conv(normalized(y, p, f"{part}.norm1").relu(), p[f"{part}.conv2.weight"], padding=1)
        x = conv(x, p[f"{part}.shortcut.weight"], stride=2) if halves else x
        x = (normalized(y, p, f"{part}.norm2") + x).relu()
        assert x.shape[1:] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)][(block - 1) // 3]
    expected = x.mean((2, 3)) @ p["output.weight"].T + p["output.bias"]
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_vgg_computes_what_the_paper_draws() -> None:
    network, images = build("vgg19").eval(), torch.rand(1, 3, 32, 32)
    p, x, index = randomize_(network), images, 0
    for channels, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(depth):
            index += 1
            x = functional.conv2d(x, p[f"conv{index}.weight"], padding=1)
            x = normalized(x, p, f"norm{index}").relu()
            assert x.shape[1] == channels
        x = functional.max_pool2d(x, 2) if index < 16 else x.mean((2, 3))
    expected = x @ p["output.weight"].T + p["output.bias"]
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*SMALL, "resnet20"])
def test_weights_are_gaussian_with_the_variance_of_glorot(name: NetworkName) -> None:
    for key, parameter in build(name).named_parameters():
        values = parameter.detach()
        if values.dim() == 1:
            is_scale = "norm" in key and key.endswith("weight")
            assert torch.equal(values, torch.full_like(values, float(is_scale)))
            continue
        receptive = values[0, 0].numel()
        std = (2 / (receptive * (values.shape[0] + values.shape[1]))) ** 0.5
        # Five standard errors of a standard deviation, a mean, and a share.
        assert values.std() == pytest.approx(std, rel=5 / (2 * values.numel()) ** 0.5)
        assert abs(values.mean()) < 5 * std / values.numel() ** 0.5
        beyond = (values.abs() > 2 * std).float().mean()  # 0.0455; of a uniform none
        assert beyond == pytest.approx(0.0455, abs=5 * (0.0455 / values.numel()) ** 0.5)


def test_a_block_that_adds_nothing_is_relu() -> None:
    block = ResidualBlock(4, 4)
    nn.init.zeros_(block.norm2.weight)
    images = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(images), images.relu())


@pytest.mark.parametrize("name", SMALL)
def test_dropout_follows_each_hidden_linear_layer(name: NetworkName) -> None:
    names = [key for key, _ in build(name, dropout=0.5).named_children()]
    tail = ["flatten"]
    for hidden in ("hidden1", "hidden2"):
        tail += [hidden, f"{hidden}_relu", f"{hidden}_dropout"]
    assert names[-8:] == [*tail, "output"]
    rates = [m.p for m in build(name, dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3, 0.3]
    assert not any(isinstance(module, nn.Dropout) for module in build(name).modules())


def test_width_scales_channels_and_units_alike() -> None:
    sizes = [len(p) for key, p in build("conv4", width=0.25).named_parameters() if p.dim() > 1]
    assert sizes == [16, 16, 32, 32, 64, 64, 10]
    assert build("conv6", width=0.25)(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vgg16", {}, "must be one of .*'vgg19'.*, got 'vgg16'"),
        ("lenet_300_100", {"width": 0.5}, "`width` is for .*; 'lenet_300_100' has one width"),
        ("vgg19", {"width": 2.0}, "`width` is for"),
        ("resnet20", {"dropout": 0.5}, "`dropout` must be 0 for 'resnet20'"),
        ("conv2", {"width": 0.0}, "`width` must be above 0, got 0.0"),
        ("conv2", {"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ("lenet_300_100", {"dropout": -0.1}, r"`dropout` must be in \[0, 1\), got -0.1"),
    ],
)
def test_what_a_network_does_not_have_is_refused(
    name: NetworkName, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **settings)
