from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lightning_lth.layer_stats.layers import (
    Spans,
    dropout_layers,
    group,
    normalization_layers,
)


class LlamaRMSNorm(nn.Module):
    """As in Hugging Face's transformers: no relative of nn.RMSNorm."""

    def __init__(self, shape: tuple[int, ...] = (4,)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


class RmsNormAct2d(LlamaRMSNorm): ...  # timm


class T5LayerNorm(LlamaRMSNorm): ...


class GroupNorm1(LlamaRMSNorm): ...


class LayerNorm2d(nn.LayerNorm): ...


class BatchNormAct2d(nn.BatchNorm2d): ...


class LayerNormLinear(LlamaRMSNorm): ...


class Scale(LlamaRMSNorm): ...


class BareLayerNorm(nn.Module): ...


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm1d(4), "batch_norm"),
        (nn.BatchNorm2d(4), "batch_norm"),
        (nn.BatchNorm3d(4, affine=False), "batch_norm"),
        (nn.SyncBatchNorm(4), "batch_norm"),
        (BatchNormAct2d(4), "batch_norm"),
        (FrozenBatchNorm2d(4), "batch_norm"),
        (nn.InstanceNorm1d(4), "instance_norm"),
        (nn.InstanceNorm2d(4, affine=True), "instance_norm"),
        (nn.InstanceNorm3d(4, track_running_stats=True), "instance_norm"),
        (nn.GroupNorm(2, 4), "group_norm"),
        (GroupNorm1(), "group_norm"),
        (nn.LayerNorm(4), "layer_norm"),
        (nn.LayerNorm((4, 2, 2), elementwise_affine=False), "layer_norm"),
        (LayerNorm2d(4), "layer_norm"),
        (T5LayerNorm(), "layer_norm"),
        (nn.RMSNorm(4), "rms_norm"),
        (nn.RMSNorm(4, elementwise_affine=False), "rms_norm"),
        (LlamaRMSNorm(), "rms_norm"),
        (RmsNormAct2d(), "rms_norm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_normalization_layers_and_their_groups(layer: nn.Module, expected: str) -> None:
    assert group(layer) == expected
    network = nn.Sequential(nn.Linear(1, 4), nn.ModuleDict({"norm": layer}))
    assert normalization_layers(network) == {"1.norm": layer}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(1, 1),
        nn.LocalResponseNorm(2),
        LayerNormLinear(),  # does more than normalize
        Scale(),  # a vector, but another name
        LlamaRMSNorm((4, 4)),  # a matrix
        BareLayerNorm(),  # nothing to read
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers(layer: nn.Module) -> None:
    assert not normalization_layers(layer)
    with pytest.raises(ValueError, match=rf"normalization layer, got {type(layer).__name__}\. "):
        group(layer)


def test_the_order_is_that_of_definition_and_a_shared_layer_is_there_once() -> None:
    shared = nn.LayerNorm(2)
    network = nn.Sequential(nn.BatchNorm1d(2), shared, nn.GroupNorm(1, 2), shared)
    assert list(normalization_layers(network)) == ["0", "1", "2"]


def test_a_network_that_is_one_layer() -> None:
    layer = nn.LayerNorm(2)
    assert normalization_layers(layer) == {"": layer}


@pytest.mark.parametrize("affine", [True, False])
def test_lazy_layers_are_there_once_they_know_their_size(affine: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:  # says that it is experimental
        patch.setattr("warnings.warn", lambda *_args, **_kwargs: None)
        network = nn.Sequential(nn.LazyBatchNorm1d(affine=affine))
    assert not normalization_layers(network)
    network(torch.ones(2, 3))
    assert normalization_layers(network) == {"0": network[0]}


def test_dropout_layers() -> None:
    kinds = [
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    ]
    layers = [kind(0.3) for kind in kinds]
    network = nn.Sequential(nn.Linear(1, 1), nn.LSTM(1, 1), *layers, nn.ReLU(), layers[0])
    assert dropout_layers(network) == {str(i): layer for i, layer in enumerate(layers, 2)}


@pytest.mark.parametrize(
    ("widths", "values", "expected"),
    [
        ([2, 1, 3], [1.0, 3.0, 5.0, 0.0, 3.0, 6.0], [2.0, 5.0, 3.0]),
        ([1, 0, 1], [1.0, 2.0], [1.0, torch.nan, 2.0]),
        ([], [], []),
    ],
)
def test_means_of_spans(widths: list[int], values: list[float], expected: list[float]) -> None:
    means = Spans(widths, torch.device("cpu")).means(torch.tensor(values))
    torch.testing.assert_close(means, torch.tensor(expected), equal_nan=True)


def test_a_value_for_each_span() -> None:
    values: Tensor = Spans([2, 0, 1], torch.device("cpu")).spread(torch.tensor([1.0, 2.0, 3.0]))
    assert values.tolist() == [1, 1, 3]
