"""A restored rewind point replays training bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from lightning_lth.pruning.rewind import RewindPoint

Factory = Callable[[list[nn.Parameter]], optim.Optimizer]
OPTIMIZERS: dict[str, Factory] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "Adam fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=2),
}


class Network(nn.Module):
    """Dropout, batch normalization, and a buffer that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(inputs) * (1 + 0.01 * self.calls)


class Run:
    """A network in training with everything that has a state."""

    def __init__(self, make_optimizer: Factory) -> None:
        torch.manual_seed(0)
        self.network = Network()
        self.optimizer = make_optimizer(list(self.network.parameters()))
        self.scheduler = optim.lr_scheduler.OneCycleLR(
            self.optimizer, 0.1, total_steps=40, cycle_momentum=False
        )
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)

    def parts(self) -> tuple[Any, ...]:
        return self.network, [self.optimizer], [self.scheduler], self.scaler

    def train(self, steps: int) -> list[torch.Tensor]:
        for _ in range(steps):
            inputs = torch.randn(16, 4)
            scale = self.scaler.get_scale() if self.scaler._scale is not None else 8.0

            def closure(inputs: torch.Tensor = inputs, scale: float = scale) -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = self.network(inputs).square().mean() * scale / 8
                loss.backward()
                return loss

            if isinstance(self.optimizer, optim.LBFGS):
                self.optimizer.step(closure)
            else:
                closure()
                self.scaler.scale(torch.ones(()))
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.scheduler.step()
        everything = [*self.network.parameters(), *self.network.buffers()]
        return [t.detach().clone() for t in everything]


@pytest.mark.parametrize("through_file", [False, True])
@pytest.mark.parametrize("steps_before", [0, 5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restoring_replays_training_bit_for_bit(
    name: str, steps_before: int, through_file: bool, tmp_path: Path
) -> None:
    run = Run(OPTIMIZERS[name])
    run.train(steps_before)
    point, random_state = RewindPoint.capture(*run.parts()), torch.get_rng_state()
    if through_file:
        torch.save(point.state_dict(), tmp_path / "point.pt")
        point = RewindPoint.from_state_dict(torch.load(tmp_path / "point.pt", weights_only=True))
    first = run.train(10)
    first_rate = run.optimizer.param_groups[0]["lr"]
    for _ in range(2):  # twice: the first must not have changed the point
        point.restore_(*run.parts())
        torch.set_rng_state(random_state)
        again = run.train(10)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert run.optimizer.param_groups[0]["lr"] == first_rate


def test_the_tensors_of_the_module_stay_the_same_objects() -> None:
    run = Run(OPTIMIZERS["SGD"])
    weight, buffer = run.network.layers[0].weight, run.network.calls
    point = RewindPoint.capture(*run.parts())
    run.train(2)
    point.restore_(*run.parts())
    assert run.network.layers[0].weight is weight
    assert run.network.calls is buffer
    assert float(buffer) == 0


def test_restoring_the_schedule_alone_keeps_weights_and_momentum() -> None:
    run = Run(OPTIMIZERS["SGD"])
    run.train(3)
    rate = run.optimizer.param_groups[0]["lr"]
    point = RewindPoint.capture(*run.parts())
    trained = run.train(10)
    momentum = run.optimizer.state[run.network.layers[0].weight]["momentum_buffer"].clone()
    assert run.optimizer.param_groups[0]["lr"] != rate
    point.restore_schedule_([run.optimizer], [run.scheduler])
    assert run.optimizer.param_groups[0]["lr"] == rate
    assert run.scheduler.last_epoch == 3
    state = [*run.network.parameters(), *run.network.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(trained, state, strict=True))
    kept = run.optimizer.state[run.network.layers[0].weight]["momentum_buffer"]
    assert torch.equal(kept, momentum)


def test_weights_that_were_frozen_are_frozen_again_and_their_groups_leave_the_optimizer() -> None:
    network = Network()
    head, body = network.layers[3], network.layers[0]
    body.requires_grad_(False)
    optimizer = optim.SGD(head.parameters(), lr=0.1)
    point = RewindPoint.capture(network, [optimizer])
    body.requires_grad_(True)
    optimizer.add_param_group({"params": list(body.parameters())})
    point.restore_(network, [optimizer])
    assert [p.requires_grad for p in body.parameters()] == [False, False]
    assert len(optimizer.param_groups) == 1


def test_a_rate_that_is_a_tensor_stays_the_same_object() -> None:
    layer = nn.Linear(2, 1)
    optimizer = optim.Adam(layer.parameters(), lr=torch.tensor(0.5), capturable=True)
    point, rate = RewindPoint.capture(layer, [optimizer]), optimizer.param_groups[0]["lr"]
    for restore in (
        lambda: point.restore_(layer, [optimizer]),
        lambda: point.restore_schedule_([optimizer], []),
    ):
        rate.fill_(0.25)
        restore()
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.item() == 0.5


def test_expanded_buffers_stay_as_they_are() -> None:
    layer = nn.Linear(2, 1)
    layer.register_buffer("scale", torch.tensor([3.0]).expand(2))
    point, before = RewindPoint.capture(layer), layer.weight.detach().clone()
    layer.weight.data.zero_()
    point.restore_(layer)
    assert torch.equal(layer.weight, before)
    assert layer.scale.tolist() == [3, 3]


def test_other_parameter_groups_are_refused_before_anything_changes() -> None:
    layer = nn.Linear(2, 1)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias]}]
    point = RewindPoint.capture(layer, [optim.SGD(groups, lr=0.1)])
    before = layer.weight.data.zero_().clone()
    for others, got in ((groups[:1], r"\[1\]"), ([{"params": [*layer.parameters()]}], r"\[2\]")):
        with pytest.raises(ValueError, match=rf"SGD with \[1, 1\] parameters .* one with {got}\."):
            point.restore_(layer, [optim.SGD(others, lr=0.1)])
    assert torch.equal(layer.weight, before)


def test_another_module_is_refused_before_anything_changes() -> None:
    point = RewindPoint.capture(nn.Linear(2, 1))
    other = nn.Linear(3, 1)
    before = other.weight.detach().clone()
    with pytest.raises(ValueError, match=r"parameters \['weight'\] were added, removed or resized"):
        point.restore_(other)
    assert torch.equal(other.weight, before)
    with pytest.raises(ValueError, match="0 optimizers, got 1 to restore"):
        point.restore_(nn.Linear(2, 1), [optim.SGD(other.parameters(), lr=0.1)])
