"""The networks of Frankle & Carbin 2019, initialized as they were.

Parameters have names that glob patterns can choose by: ``conv1.weight``, ``hidden1.weight``, the
output layer is always ``output``, and what shortcuts compute always ``shortcut``.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

NetworkName = Literal["lenet_300_100", "conv2", "conv4", "conv6", "resnet20", "vgg19"]
NUM_CLASSES = 10


def build(name: NetworkName, *, dropout: float = 0.0, width: float = 1.0) -> nn.Module:
    """A network by its name.

    Args:
        name: ``"lenet_300_100"`` for images of 1 x 28 x 28; the others take 3 x 32 x 32.
        dropout: Probability of Dropout behind each hidden linear layer, in [0, 1); not for
            ``"resnet20"`` and ``"vgg19"``.
        width: Factor on the channels and units of ``"conv2"``, ``"conv4"`` and ``"conv6"``.

    Raises:
        ValueError: If there is no such network, or it has no such argument.

    Examples:
        >>> build("conv2", width=0.25).output
        Linear(in_features=64, out_features=10, bias=True)
    """
    convolutional = {"conv2": conv2, "conv4": conv4, "conv6": conv6}
    normalized = {"resnet20": resnet20, "vgg19": vgg19}
    if name in convolutional:
        return convolutional[name](dropout=dropout, width=width)
    if width != 1.0:
        raise ValueError(f"`width` is for {list(convolutional)}; {name!r} has one width.")
    if name == "lenet_300_100":
        return lenet_300_100(dropout=dropout)
    if name not in normalized:
        choices = ["lenet_300_100", *convolutional, *normalized]
        raise ValueError(f"The network must be one of {choices}, got {name!r}.")
    if dropout:
        raise ValueError(f"`dropout` must be 0 for {name!r}, which has BatchNorm, got {dropout}.")
    return normalized[name]()


def lenet_300_100(*, dropout: float = 0.0) -> nn.Module:
    """784-300-100-10 with 266,200 weights, for MNIST and its like.

    Args:
        dropout: Probability of Dropout behind each hidden layer, in [0, 1).
    """
    layers = _linear_layers([784, 300, 100], dropout)
    return initialize_gaussian_glorot_(nn.Sequential(OrderedDict(layers)))


def conv2(*, dropout: float = 0.0, width: float = 1.0) -> nn.Module:
    """Two convolutions and three linear layers, 4,300,992 weights, for CIFAR-10.

    Args:
        dropout: Probability of Dropout behind each hidden linear layer, in [0, 1).
        width: Factor on the channels of the convolutions and the units of the hidden layers.
    """
    return _conv([64], dropout, width)


def conv4(*, dropout: float = 0.0, width: float = 1.0) -> nn.Module:
    """Four convolutions and three linear layers, 2,425,024 weights, for CIFAR-10.

    Args:
        dropout: Probability of Dropout behind each hidden linear layer, in [0, 1).
        width: Factor on the channels of the convolutions and the units of the hidden layers.
    """
    return _conv([64, 128], dropout, width)


def conv6(*, dropout: float = 0.0, width: float = 1.0) -> nn.Module:
    """Six convolutions and three linear layers, 2,261,184 weights, for CIFAR-10.

    Args:
        dropout: Probability of Dropout behind each hidden linear layer, in [0, 1).
        width: Factor on the channels of the convolutions and the units of the hidden layers.

    Note:
        The paper's table says 1.7M, but draws this network, and its densities fit this one.
    """
    return _conv([64, 128, 256], dropout, width)


def resnet20() -> nn.Module:
    """The residual network of 20 layers for CIFAR-10, in the paper "Resnet-18"; 270,896 weights.

    Shortcuts that change the shape are convolutions of 1 x 1, with 2,560 weights.
    """
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 16, 3, padding=1, bias=False)),
        ("norm1", nn.BatchNorm2d(16)),
        ("relu1", nn.ReLU()),
    ]
    channels = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    layers += [
        (f"block{index}", ResidualBlock(*pair)) for index, pair in enumerate(pairwise(channels), 1)
    ]
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    layers.append(("output", nn.Linear(64, NUM_CLASSES)))
    return initialize_gaussian_glorot_(nn.Sequential(OrderedDict(layers)))


def vgg19() -> nn.Module:
    """VGG-19 with BatchNorm and one linear layer, 20,024,000 weights, for CIFAR-10."""
    groups = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
    layers: list[tuple[str, nn.Module]] = []
    channels, index = 3, 0
    for group, (width, depth) in enumerate(groups, 1):
        for _ in range(depth):
            index += 1
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [(f"conv{index}", convolution), (f"norm{index}", nn.BatchNorm2d(width))]
            layers.append((f"relu{index}", nn.ReLU()))
            channels = width
        is_last = group == len(groups)
        layers.append((f"pool{group}", nn.AdaptiveAvgPool2d(1) if is_last else nn.MaxPool2d(2)))
    layers += [("flatten", nn.Flatten()), ("output", nn.Linear(channels, NUM_CLASSES))]
    return initialize_gaussian_glorot_(nn.Sequential(OrderedDict(layers)))


def initialize_gaussian_glorot_(network: nn.Module) -> nn.Module:
    """Draw the weights of linear and convolution layers anew; their biases become 0.

    Args:
        network: Changed in place.

    Returns:
        The network.

    Source:
        Glorot & Bengio 2010, with a normal distribution: the standard deviation is
        ``sqrt(2 / (fan_in + fan_out))``, as in Frankle & Carbin 2019, arXiv:1803.03635, figure 2.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm, and what comes in added before the last ReLU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output; if they are more, height and width are halved.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        stride = 1 if channels_in == channels_out else 2
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images to feature maps."""
        outputs = self.norm1(self.conv1(inputs)).relu()
        result: Tensor = (self.norm2(self.conv2(outputs)) + self.shortcut(inputs)).relu()
        return result


def _conv(widths: list[int], dropout: float, width: float) -> nn.Module:
    """Pairs of convolutions, each with a pooling behind it, then 256-256-10."""
    if not width > 0:
        raise ValueError(f"`width` must be above 0, got {width}.")
    layers: list[tuple[str, nn.Module]] = []
    channels = 3
    for pair, full in enumerate(widths, 1):
        for index in (2 * pair - 1, 2 * pair):
            outputs = max(1, round(width * full))
            layers.append((f"conv{index}", nn.Conv2d(channels, outputs, 3, padding=1)))
            layers.append((f"relu{index}", nn.ReLU()))
            channels = outputs
        layers.append((f"pool{pair}", nn.MaxPool2d(2)))
    side = 32 // 2 ** len(widths)
    units = max(1, round(width * 256))
    layers += _linear_layers([channels * side * side, units, units], dropout)
    return initialize_gaussian_glorot_(nn.Sequential(OrderedDict(layers)))


def _linear_layers(sizes: list[int], dropout: float) -> list[tuple[str, nn.Module]]:
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {dropout}.")
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for index, (inputs, outputs) in enumerate(pairwise(sizes), 1):
        layers.append((f"hidden{index}", nn.Linear(inputs, outputs)))
        layers.append((f"hidden{index}_relu", nn.ReLU()))
        if dropout:
            layers.append((f"hidden{index}_dropout", nn.Dropout(dropout)))
    return [*layers, ("output", nn.Linear(sizes[-1], NUM_CLASSES))]
