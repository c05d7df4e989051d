"""After training in between, everything is bit for bit what it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_lth.snapshot import Snapshot, undone


class Counting(nn.Module):
    """Holds tensors in every way that a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.register_buffer("replaced", torch.zeros(1))
        self.register_buffer("unset", None)
        self.plain = torch.zeros(2)
        self.cached: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.replaced = self.replaced + 1
        self.unset = x.detach()
        self.plain += 1
        self.cached = self.linear(x)
        self.late = x
        return self.cached


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(8, 4), Counting()),
        nn.Linear(4, 1),
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam with a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
}


def train(module: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int = 3) -> list[float]:
    losses: list[float] = []
    for _ in range(num_steps):
        x = torch.randn(8, 4) * (1 + random.random()) + float(np.random.rand())

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = module(x).square().mean()
            torch.autograd.backward(loss)
            return loss.detach()

        losses.append(float(optimizer.step(closure)))
    return losses


def frozen(value: Any) -> Any:
    """Everything in it, comparable by ``==``: tensors as bytes, with dtype and shape."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(key, frozen(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    return value


def whole_state(module: nn.Module, *optimizers: torch.optim.Optimizer) -> Any:
    tensors = [*module.parameters(), *module.buffers()]
    return {
        "tensors": frozen(tensors),
        "identities": [id(tensor) for tensor in tensors],
        "names": [name for name, _ in [*module.named_parameters(), *module.named_buffers()]],
        "gradients": [(id(p.grad), frozen(p.grad)) for p in module.parameters()],
        "trainable": [p.requires_grad for p in module.parameters()],
        "modes": [layer.training for layer in module.modules()],
        "attributes": [
            [(name, id(value), frozen(value)) for name, value in vars(layer).items()]
            for layer in module.modules()
            if isinstance(layer, Counting)
        ],
        "optimizers": [frozen(optimizer.state_dict()) for optimizer in optimizers],
        "in groups": [[id(p) for g in o.param_groups for p in g["params"]] for o in optimizers],
        "random": [
            frozen(one) for one in (torch.get_rng_state(), random.getstate(), np.random.get_state())
        ],
    }


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request: pytest.FixtureRequest) -> Callable[[Any], torch.optim.Optimizer]:
    return OPTIMIZERS[request.param]


@pytest.mark.parametrize("steps_before", [0, 2])
def test_all_is_as_before_and_goes_on_as_before(
    make_optimizer: Callable[[Any], torch.optim.Optimizer], steps_before: int
) -> None:
    module = network()
    optimizer = make_optimizer(module.parameters())
    train(module, optimizer, steps_before)
    before = whole_state(module, optimizer)
    with undone(module, [optimizer]):
        optimizer.param_groups[0]["lr"] *= 0.5
        first = train(module, optimizer)
        assert whole_state(module, optimizer) != before
    assert whole_state(module, optimizer) == before
    optimizer.param_groups[0]["lr"] *= 0.5
    assert train(module, optimizer) == first


def test_restoring_twice(make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    # pytorch-lr-finder 0.2.2 trains in its own copy after the first time.
    module = network()
    optimizer = make_optimizer(module.parameters())
    train(module, optimizer)
    snapshot = Snapshot.take(module, [optimizer])
    before = whole_state(module, optimizer)
    for _ in range(3):
        train(module, optimizer)
        snapshot.restore()
        assert whole_state(module, optimizer) == before


def test_a_second_use_with_the_state_of_training() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters())
    for _ in range(2):
        before = whole_state(module, optimizer)
        with undone(module, [optimizer]):
            train(module, optimizer)
        assert whole_state(module, optimizer) == before
        train(module, optimizer)


def test_taking_changes_nothing() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters())
    train(module, optimizer)
    before = whole_state(module, optimizer)
    Snapshot.take(module, [optimizer])
    assert whole_state(module, optimizer) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_exception(error: type[BaseException]) -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters())
    before = whole_state(module, optimizer)

    def interrupted() -> None:
        with undone(module, [optimizer]):
            train(module, optimizer)
            raise error

    with pytest.raises(error):
        interrupted()
    assert whole_state(module, optimizer) == before


def test_flags_and_gradients() -> None:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    train(module, optimizer)  # leaves gradients
    module[1].eval()
    before = whole_state(module, optimizer)
    with undone(module, [optimizer]):
        module.eval()
        module[1].train()
        module[0].weight.requires_grad_(False)
        optimizer.zero_grad()
        module[5].weight.grad = torch.ones(1, 4)
    assert whole_state(module, optimizer) == before


def test_gradients_changed_in_place() -> None:
    module = nn.Linear(2, 2)
    module.weight.grad = torch.ones(2, 2)
    gradient = module.weight.grad
    with undone(module):
        gradient.mul_(3)
        module.bias.grad = torch.ones(2)
    assert module.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(2, 2))
    assert module.bias.grad is None


def test_hyperparameters_and_groups() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(module[0].parameters(), lr=0.1)
    group = optimizer.param_groups[0]
    before = copy.deepcopy({key: value for key, value in group.items() if key != "params"})
    with undone(module, [optimizer]):
        group |= {"lr": 3.0, "betas": (0.1, 0.2), "weight_decay": 1.0, "new": 1}
        optimizer.add_param_group({"params": list(module[1].parameters())})
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] is group
    assert {key: value for key, value in group.items() if key != "params"} == before
    assert [id(p) for p in group["params"]] == [id(p) for p in module[0].parameters()]


@pytest.mark.parametrize(
    ("custom", "change"),
    [
        ([1, 2], lambda value: value.append(3)),
        (([1], 2), lambda value: value[0].append(3)),
        ({"a": [1]}, lambda value: value["a"].append(3)),
        ({1, 2}, lambda value: value.add(3)),  # copied as a whole
    ],
)
def test_containers_in_a_group_are_copied(custom: Any, change: Callable[[Any], None]) -> None:
    module, before = nn.Linear(1, 1), copy.deepcopy(custom)
    optimizer = torch.optim.SGD([{"params": module.parameters(), "custom": custom}], lr=0.1)
    snapshot = Snapshot.take(module, [optimizer])
    for _ in range(2):
        change(optimizer.param_groups[0]["custom"])
        snapshot.restore()
        assert optimizer.param_groups[0]["custom"] == before


def test_the_dtype_of_optimizer_state_is_kept() -> None:
    # Optimizer.load_state_dict would cast the momentum to the parameter's bfloat16.
    module = nn.Linear(2, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    momentum = torch.tensor([[1.0 + 2.0**-20] * 2] * 2)
    optimizer.state[module.weight]["momentum_buffer"] = momentum
    with undone(module, [optimizer]):
        momentum.zero_()
    assert optimizer.state[module.weight]["momentum_buffer"] is momentum
    assert momentum.dtype == torch.float32
    assert momentum[0, 0] == 1.0 + 2.0**-20


def test_parameters_that_only_the_optimizer_knows() -> None:
    module, weight = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([*module.parameters(), weight], lr=0.1)
    with undone(module, [optimizer]):
        weight.grad = torch.ones(1)
        optimizer.step()
        assert weight.item() != 1
    assert weight.item() == 1
    assert weight.grad is None


def test_several_optimizers() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizers = [torch.optim.Adam(layer.parameters(), lr=0.1) for layer in module]
    before = whole_state(module, *optimizers)
    with undone(module, optimizers):
        torch.autograd.backward(module(torch.ones(1, 2)).sum())
        for optimizer in optimizers:
            optimizer.step()
    assert whole_state(module, *optimizers) == before


def test_tied_and_replaced_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    tied = module[0].weight
    content = tied.detach().clone()
    with undone(module):
        module[1].weight = nn.Parameter(torch.zeros(2, 2))
        tied.data.zero_()
    assert module[1].weight is module[0].weight is tied
    assert torch.equal(tied, content)


def test_buffers_that_cannot_be_written_to() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("expanded", torch.ones(1).expand(5))
    with torch.inference_mode():
        module.cached = torch.ones(3)
    with undone(module):
        pass
    assert torch.equal(module.expanded, torch.ones(5))
    assert torch.equal(module.cached, torch.ones(3))


def test_sparse_gradients() -> None:
    module = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(list(module.parameters()), lr=0.1)
    torch.autograd.backward(module(torch.tensor([1, 2])).sum())
    gradient = module.weight.grad
    assert gradient is not None
    before = gradient.to_dense().clone(), module.weight.detach().clone()
    with undone(module, [optimizer]):
        optimizer.step()
        torch.autograd.backward(module(torch.tensor([3])).sum())
    assert module.weight.grad is gradient
    assert torch.equal(gradient.to_dense(), before[0])
    assert torch.equal(module.weight, before[1])
    assert not optimizer.state


def test_layers_that_compute_their_weights() -> None:
    module = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.utils.spectral_norm(nn.Linear(4, 4)),
        nn.LSTM(4, 4),
    )
    before = whole_state(module), frozen(module[1].weight)
    with undone(module):
        module[2](module[1](module[0](torch.ones(2, 4))))
    assert (whole_state(module), frozen(module[1].weight)) == before


def test_generators() -> None:
    generator = torch.Generator().manual_seed(3)
    with undone(nn.Linear(1, 1), generators=[generator]):
        inside = torch.rand(2, generator=generator)
    assert torch.equal(torch.rand(2, generator=generator), inside)


def test_anything_with_a_state_dict() -> None:
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    snapshot = Snapshot.take(module, [optimizer], extra=[scheduler, scaler])
    for _ in range(2):
        optimizer.step()
        scheduler.step()
        scaler.update(2.0)
        assert scaler.get_scale() == 2.0
        snapshot.restore()
        assert scaler.get_scale() == 8.0
        assert (scheduler.last_epoch, optimizer.param_groups[0]["lr"]) == (0, 0.1)


class Live:
    """Gives its state away, and takes over the one that it gets."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"list": [1]}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


def test_states_are_copied_both_ways() -> None:
    live = Live()
    snapshot = Snapshot.take(nn.Linear(1, 1), extra=[live])
    for _ in range(2):
        live.state["list"].append(2)
        snapshot.restore()
        assert live.state == {"list": [1]}


class Broken(Live):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise RuntimeError("broken")


def test_one_part_that_fails_does_not_keep_the_others() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters())
    before = whole_state(module, optimizer)

    def broken() -> None:
        with undone(module, [optimizer], extra=[Broken()]):
            train(module, optimizer)

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert whole_state(module, optimizer) == before


def test_uninitialized_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be initialized, '1.weight' is not. Run one batch"):
        Snapshot.take(nn.Sequential(nn.ReLU(), nn.LazyLinear(2)))


def test_hidden_modules_and_wrapped_optimizers() -> None:
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, base: torch.optim.Optimizer) -> None:
            super().__init__(base.param_groups, base.defaults)
            self.base, self.param_groups, self.num_steps = base, base.param_groups, 0

        def step(self, closure: Any = None) -> Any:
            self.num_steps += 1
            return self.base.step(closure)

    student, teacher = nn.Linear(2, 2), nn.BatchNorm1d(2)
    student.teachers = {"one": teacher}  # type: ignore[assignment]
    optimizer = Lookahead(torch.optim.Adam(student.parameters()))
    before = whole_state(teacher)
    with undone(student, [optimizer]):
        student(teacher(torch.randn(4, 2))).sum().backward()
        optimizer.step()
    assert whole_state(teacher) == before
    assert not optimizer.base.state
    assert optimizer.num_steps == 0
