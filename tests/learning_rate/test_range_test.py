"""The range test on plain torch objects."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lth.learning_rate.curves import Curve
from lightning_lth.learning_rate.range_test import RangeTest, lr_ratios, range_test, set_lr_
from lightning_lth.learning_rate.suggestions import smith_range, suggest_all

Batch = list[Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)
    )


def loader_of(num_items: int = 64, generator: torch.Generator | None = None) -> DataLoader[Any]:
    inputs = torch.randn(num_items, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    return DataLoader(data, batch_size=min(num_items // 8, 32), shuffle=True, generator=generator)


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def train(module: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        for batch in loader:
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(module, batch))
            optimizer.step()


def contents(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[bytes]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    tensors = [*module.parameters(), *module.buffers()]
    states = [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode()]
    states.append(repr(np.random.get_state()).encode())
    return [file.getvalue(), *(t.detach().numpy().tobytes() for t in tensors), *states]


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.Adam(p, lr=0.001),
    lambda p: torch.optim.Adam(p, lr=torch.tensor(0.001), foreach=False),
]


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_training_afterwards_is_as_without_it(
    make_optimizer: Callable[[Any], torch.optim.Optimizer], explicit: bool, steps_before: int
) -> None:
    ends = []
    for tested in (False, True):
        torch.manual_seed(0)
        module = network()
        optimizer = make_optimizer(module.parameters())
        loader = loader_of(generator=torch.Generator().manual_seed(5) if explicit else None)
        for _ in range(steps_before):
            train(module, loader, optimizer)
        if tested:
            range_test(module, loader, cross_entropy, optimizer, num_steps=30)
        train(module, loader, optimizer)
        ends.append(contents(module, optimizer))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_no_trace(error: type[BaseException]) -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters())
    generator = torch.Generator()
    loader = loader_of(generator=generator)
    before = contents(module, optimizer), generator.get_state()
    calls = 0

    def failing(module: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise error
        return cross_entropy(module, batch)

    with pytest.raises(error):
        range_test(module, loader, failing, optimizer)
    assert contents(module, optimizer) == before[0]
    assert torch.equal(generator.get_state(), before[1])
    assert all(parameter.grad is None for parameter in module.parameters())


def weight_and_loss() -> tuple[nn.Linear, Callable[[nn.Module, Tensor], Tensor]]:
    """A loss of weight * batch, so that its gradient is the batch."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 100.0)
    return module, lambda m, batch: m(batch).mean()


def test_the_losses_by_hand() -> None:
    module, loss = weight_and_loss()
    optimizer = torch.optim.SGD(module.parameters(), lr=5.0)
    batches = [torch.tensor([[1.0]]), torch.tensor([[2.0]])]
    result = range_test(
        module, batches, loss, optimizer, min_lr=1, max_lr=4, num_steps=4, mode="linear"
    )
    # Weights before the steps: 100, 100 - 1 * 1, 99 - 2 * 2, 95 - 3 * 1; batches 1, 2, 1, 2.
    assert result.curve == Curve("lr", (1, 2, 3, 4), (100, 198, 95, 184))
    assert (module.weight.item(), optimizer.param_groups[0]["lr"]) == (100, 5)


def test_accumulated_batches_make_one_step() -> None:
    module, loss = weight_and_loss()
    optimizer = torch.optim.SGD(module.parameters(), lr=5.0)
    batches = [torch.tensor([[1.0]]), torch.tensor([[3.0]])]
    result = range_test(
        module, batches, loss, optimizer, min_lr=1, max_lr=3, num_steps=3, mode="linear",
        accumulate=2,
    )  # fmt: skip
    # Each step has both batches: mean 2, so weights 100, 98, 94, and losses twice that.
    assert result.curve == Curve("lr", (1, 2, 3), (200, 196, 188))


def test_left_over_gradients_do_not_count_and_stay() -> None:
    module, loss = weight_and_loss()
    optimizer = torch.optim.SGD(module.parameters(), lr=5.0)
    module.weight.grad = torch.full((1, 1), 7.0)
    batches = [torch.ones(1, 1)]
    result = range_test(
        module, batches, loss, optimizer, min_lr=1, max_lr=2, num_steps=2, mode="linear"
    )
    assert result.curve.losses == (100, 99)
    assert module.weight.grad.item() == 7


def test_groups_keep_their_ratios() -> None:
    one, two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    groups = [{"params": one.parameters(), "lr": 0.1}, {"params": two.parameters(), "lr": 0.02}]
    optimizer = torch.optim.SGD(groups)
    seen: list[tuple[float, float]] = []

    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        first, second = (group["lr"] for group in optimizer.param_groups)
        seen.append((first, second))
        return module(batch).mean().square()

    module = nn.Sequential(one, two)
    result = range_test(module, [torch.ones(1, 1)], loss, optimizer, max_lr=1e-3, num_steps=20)
    assert [first for first, _ in seen] == pytest.approx(result.curve.values)
    assert [second / first for first, second in seen] == pytest.approx([0.2] * 20)
    assert result.ratios == pytest.approx((1.0, 0.2))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]


def test_rates_of_a_warm_up_are_those_that_it_leads_to() -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [weight], "lr": lr} for weight, lr in zip(weights, (0.1, 0.3), strict=True)]
    )
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    assert lr_ratios(optimizer) == pytest.approx((1, 3))


def test_a_rate_in_a_tensor_stays_in_it() -> None:
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=rate, foreach=False)
    set_lr_(optimizer, 0.5, (1.0,))
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


def test_optimizers_that_evaluate_more_than_once() -> None:
    module = network()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=1.0, max_iter=3)
    before = contents(module, optimizer)
    result = range_test(module, loader_of(), cross_entropy, optimizer, max_lr=1.0, num_steps=12)
    assert len(result.curve) == 12
    assert contents(module, optimizer) == before


def test_the_first_evaluation_counts() -> None:
    module, loss = weight_and_loss()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=1.0, max_iter=3)
    batches = [torch.ones(1, 1)]
    result = range_test(module, batches, loss, optimizer, min_lr=0.5, max_lr=1, num_steps=2)
    assert result.curve.losses[0] == 100


def test_layers_train_in_the_mode_that_they_are_in() -> None:
    module = network()
    module[1].eval()
    modes = set()

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        modes.add((module.training, module[1].training))  # type: ignore[index]
        return cross_entropy(module, batch)

    range_test(module, loader_of(), loss, torch.optim.SGD(module.parameters(), 0.1), num_steps=10)
    assert modes == {(True, False)}


def test_runs_without_gradients_around_it() -> None:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    with torch.no_grad():
        result = range_test(module, loader_of(), cross_entropy, optimizer)
    assert result.chosen.value is not None


def test_the_result() -> None:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    result = range_test(module, loader_of(512), cross_entropy, optimizer, suggestion="steep")
    assert result.suggestions == suggest_all(result.curve)
    assert result.chosen == result.suggestions["steep"]
    assert result.range == smith_range(result.curve)
    assert result.chosen.value is not None
    assert 1e-3 < result.chosen.value < 10


def test_a_loss_that_is_nan_from_the_start() -> None:
    module, _ = weight_and_loss()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    result = range_test(module, [torch.ones(1, 1)], lambda m, x: m(x).sum() * math.nan, optimizer)
    assert len(result.curve) == 1
    assert result.chosen.reason == "the curve has 0 finite points, fewer than 10"
    assert result.range.reason == result.chosen.reason
    assert module.weight.item() == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 1.0, "max_lr": 1.0}, "`min_lr` must be below `max_lr`, got 1.0 and 1.0"),
        ({"min_lr": math.nan}, "`min_lr` must be a finite number, got nan"),
        ({"max_lr": math.inf}, "`max_lr` must be a finite number, got inf"),
        ({"min_lr": 0.0}, "`min_lr` must be positive for mode='exponential', got 0.0"),
        ({"min_lr": -1.0, "mode": "linear"}, "`min_lr` must not be negative, got -1.0"),
        ({"num_steps": 0}, "`num_steps` must be at least 2, got 0"),
        ({"accumulate": 0}, "`accumulate` must be at least 1, got 0"),
        ({"mode": "cubic"}, "`mode` must be 'exponential' or 'linear', got 'cubic'"),
        ({"suggestion": "best"}, "must be one of .*'valley'.*, got 'best'"),
        ({"loader": []}, "`loader` gave no batch"),
        ({"loader": iter([torch.ones(1, 1)])}, "`loader` is an iterator"),
        ({"loss": lambda m, x: m(torch.ones(3, 1))}, r"return one number, got shape \(3, 1\)"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    module, _ = weight_and_loss()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def never(module: nn.Module, batch: Tensor) -> Tensor:
        pytest.fail("a batch was evaluated")

    given: dict[str, Any] = {"loader": [torch.ones(1, 1)], "loss": never} | arguments
    with pytest.raises(ValueError, match=message):
        range_test(module, optimizer=optimizer, **given)
    assert (module.weight.item(), optimizer.param_groups[0]["lr"]) == (100, 0.1)


def test_bad_types() -> None:
    module, loss = weight_and_loss()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="`loader` must be an iterable of batches"):
        range_test(module, None, loss, optimizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`loss` must return a tensor, got float"):
        range_test(module, [torch.ones(1, 1)], lambda m, x: 0.5, optimizer)  # type: ignore[arg-type, return-value]


def test_optimizers_without_a_rate_to_scale() -> None:
    module, loss = weight_and_loss()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    with pytest.raises(ValueError, match=r"must have a positive learning rate, got 0.0\. Any will"):
        range_test(module, [torch.ones(1, 1)], loss, optimizer)
    optimizer.param_groups.clear()
    with pytest.raises(ValueError, match="`optimizer` must have parameter groups"):
        range_test(module, [torch.ones(1, 1)], loss, optimizer)


def falling() -> Curve:
    values = [10.0 ** (i / 10 - 6) for i in range(60)]
    return Curve("lr", tuple(values), tuple(3 - 2 / (1 + 0.001 / value) for value in values))


def test_dictionary_there_and_back() -> None:
    for curve in (falling(), Curve("lr", (0.1, 0.2), (1.0, math.nan))):
        result = RangeTest.of(curve, "slide", ratios=(1.0, 0.5))
        back = RangeTest.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
        assert repr(back) == repr(result)
        file = io.BytesIO()
        torch.save(result.to_dict(), file)
        file.seek(0)
        assert repr(RangeTest.from_dict(torch.load(file, weights_only=True))) == repr(result)


def test_what_is_printed() -> None:
    lines = str(RangeTest.of(falling(), "steep")).splitlines()
    assert lines[0] == "range test of lr: 60 points from 1e-06 to 0.794"
    assert [line.split()[0] for line in lines[1:]] == [
        "valley",
        "slide",
        "steep",
        "minimum",
        "range",
    ]
    assert [line.endswith(" (chosen)") for line in lines[1:]] == [False, False, True, False, False]
    nothing = str(RangeTest.of(Curve("lr", (0.1, 0.2), (2.0, 1.0)), "valley")).splitlines()
    assert nothing[1] == "valley   none: the curve has 2 finite points, fewer than 10 (chosen)"
    assert nothing[-1] == "range    none: the curve has 2 finite points, fewer than 10"


def test_the_rule_asked_for_is_among_the_suggestions() -> None:
    result = RangeTest.of(falling(), "lowest")
    assert list(result.suggestions) == ["valley", "slide", "steep", "minimum", "lowest"]
    assert result.suggestions["lowest"] == result.chosen


def test_other_parameters_have_only_the_lowest() -> None:
    result = RangeTest.of(Curve("momentum", (0.5, 0.9), (1.0, 0.5)), "lowest")
    assert list(result.suggestions) == ["lowest"]
    assert result.chosen.value == 0.9
    assert result.range.base is None
