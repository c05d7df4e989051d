"""A module is afterwards as it was before."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_lth.initialization.passes import call, random_states_kept, tensors_in, unchanged

Pair = namedtuple("Pair", ["first", "second"])


class Scaled(nn.Module):
    """Keeps the scale of what it is set to in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value * self.scale

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        self.scale = value.max() if value.max() > 5 else torch.ones(())
        return value / self.scale


def model() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    net[0].register_buffer("hidden", torch.zeros(2), persistent=False)
    net[1].eval()
    return net


def test_everything_is_restored() -> None:
    net = model()
    net[0].weight.grad = torch.ones(3, 2)
    gradient, buffer = net[0].weight.grad, net[1].running_mean
    state = torch.get_rng_state()
    with unchanged(net):
        assert net[0].weight.grad is None
        net.train()
        net(torch.randn(8, 2)).sum().backward()
        net[0].hidden += 1
        net[1].running_mean = torch.ones(3)  # replaced, not overwritten
    assert torch.equal(torch.get_rng_state(), state)
    assert [layer.training for layer in net.modules()] == [True, True, False, True]
    assert net[0].weight.grad is gradient
    assert net[1].running_mean is buffer
    assert net[1].running_mean.tolist() == [0, 0, 0]
    assert net[1].num_batches_tracked == 0
    assert net[0].hidden.tolist() == [0, 0]


@pytest.mark.parametrize("parameters", [True, False])
def test_parameters_come_back_after_an_exception_if_asked(parameters: bool) -> None:
    net = model()
    before = net[0].weight.detach().clone()
    with pytest.raises(KeyError), unchanged(net, parameters=parameters):  # noqa: PT012
        nn.init.zeros_(net[0].weight)
        net[1].running_mean += 1
        raise KeyError
    assert torch.equal(net[0].weight, before) == parameters
    assert net[1].running_mean.tolist() == [0, 0, 0]


def test_parameters_stay_changed_without_an_exception() -> None:
    net = model()
    with unchanged(net, parameters=True):
        nn.init.zeros_(net[0].weight)
    assert not net[0].weight.any()


def test_calling_conventions() -> None:
    bilinear = nn.Bilinear(2, 2, 1)
    pair = (torch.ones(1, 2), torch.ones(1, 2))
    expected = bilinear(*pair)
    assert torch.equal(call(bilinear, pair), expected)
    assert torch.equal(call(bilinear, {"input1": pair[0], "input2": pair[1]}), expected)
    linear = nn.Linear(2, 1)
    assert torch.equal(call(linear, pair[0]), linear(pair[0]))


def test_tensors_are_found_in_nested_containers() -> None:
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    found = list(tensors_in([Pair(one, {"a": two}), "text", (three, None)]))
    assert [len(tensor) for tensor in found] == [1, 2, 3]


def test_buffers_that_are_set_or_come_anew_are_gone_again() -> None:
    net = nn.Module()
    net.register_buffer("cache", None)
    lazy = nn.Sequential(net, nn.LazyBatchNorm1d())
    with unchanged(lazy):
        net.cache = torch.ones(2)
        net.register_buffer("more", torch.ones(2))
    assert net.cache is None
    assert net.more is None
    assert list(lazy.state_dict()) == [f"1.{name}" for name in nn.LazyBatchNorm1d().state_dict()]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_scripted_modules() -> None:
    net = torch.jit.script(nn.BatchNorm1d(2))
    with unchanged(net):
        net(torch.randn(8, 2))
    assert net.running_mean.tolist() == [0, 0]


def test_buffers_behind_weights_stay_changed_with_the_parameters() -> None:
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Scaled())
    with unchanged(layer):
        layer.weight = torch.full((2, 2), 6.0)
    assert layer.parametrizations.weight[0].scale.item() == 1
    with unchanged(layer, parameters=True):
        layer.weight = torch.full((2, 2), 6.0)
    assert bool((layer.weight == 6).all())
    with pytest.raises(KeyError), unchanged(layer, parameters=True):  # noqa: PT012
        layer.weight = torch.full((2, 2), 9.0)
        raise KeyError
    assert bool((layer.weight == 6).all())


def test_gpus_that_are_not_in_use_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU that cannot be used: whoever starts it fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    state = torch.get_rng_state()
    with random_states_kept():
        torch.rand(1)
    assert torch.equal(torch.get_rng_state(), state)
