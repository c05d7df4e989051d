"""Momentum and weight decay, compared from the same start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lth import HyperparameterFinder, IterativeMagnitudePruning, LRFinder
from tests.callbacks.modules import Classifier, loader, network, trainer
from tests.callbacks.test_lr_finder import Busy, adam, assert_same, everything, shuffled


def mean_late_loss(momentum: float, num_steps: int) -> float:
    """A loop in plain torch from the initial weights: the mean of the last fifth."""
    net, losses = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    batches = [batch for _ in range(10) for batch in loader()]
    for inputs, labels in batches[:num_steps]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    late = losses[-(num_steps // 5) :]
    return sum(late) / len(late)


def test_every_value_starts_from_the_same_state() -> None:
    values = (0.0, 0.5, 0.9, 0.99)
    finder = HyperparameterFinder("momentum", values, steps_per_value=20)
    fitter = trainer(finder, max_epochs=1)
    fitter.fit(Classifier(), loader(), loader())
    expected = [mean_late_loss(value, 20) for value in values]
    assert finder.result.curve.losses == pytest.approx(expected, rel=1e-5)
    best = values[expected.index(min(expected))]
    assert finder.result.chosen.value == best
    assert fitter.optimizers[0].param_groups[0]["momentum"] == best


@pytest.mark.parametrize("parameter", ["momentum", "weight_decay"])
@pytest.mark.parametrize("optimizer", [None, adam])
def test_nothing_is_different_afterwards(parameter: Any, optimizer: Any) -> None:
    settings: dict[str, Any] = {"make": lambda: Busy(optimizer=optimizer), "loaders": shuffled}
    finder = HyperparameterFinder(parameter, (0.1, 0.5), steps_per_value=10, apply=False)
    assert_same(everything(**settings), everything(finder, **settings))
    assert len(finder.result.curve) == 2


def test_counters_start_anew_with_every_value() -> None:
    seen: list[tuple[int, int, int]] = []

    class Annealed(Classifier):
        count = 0

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.count += 1
            seen.append((self.count, self.global_step, batch_idx))
            return super().training_step(batch, batch_idx)

    finder = HyperparameterFinder("momentum", [0.5, 0.9], steps_per_value=3)
    trainer(finder, max_epochs=1, limit_train_batches=3).fit(Annealed(), loader(), loader())
    assert seen == [(1, 0, 0), (2, 1, 1), (3, 2, 2)] * 3  # two values, and the training


def test_a_warm_up_is_tried_at_its_highest_rate() -> None:
    def warm_up(module: Any, optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(epoch, 1))

    curves = []
    for scheduler in (None, warm_up):
        finder = HyperparameterFinder("momentum", [0.2, 0.9], steps_per_value=5, apply=False)
        trainer(finder, max_epochs=1).fit(Classifier(None, scheduler), loader(), loader())
        curves.append(finder.result.curve)
    assert curves[0] == curves[1]


def test_values_that_make_no_difference_are_not_chosen() -> None:
    finder = HyperparameterFinder("momentum", [0.2, 0.5], steps_per_value=1)  # loss before the step
    module = Classifier()
    trainer(finder, max_epochs=1).fit(module, loader(), loader())
    assert finder.result.chosen.reason == "all values have the same loss"
    assert module.trainer.optimizers[0].param_groups[0]["momentum"] == 0.9


def test_groups_without_weight_decay_stay_so() -> None:
    def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        first, *others = parameters
        decayed, plain = {"params": [first], "weight_decay": 0.1}, {"params": others}
        return torch.optim.SGD([decayed, plain], lr=0.1)

    finder = HyperparameterFinder("weight_decay", (0.0, 1e-3, 0.3), steps_per_value=5)
    fitter = trainer(finder, max_epochs=1)
    fitter.fit(Classifier(groups), loader(), loader())
    first, second = fitter.optimizers[0].param_groups
    assert first["weight_decay"] == finder.result.chosen.value
    assert second["weight_decay"] == 0


def test_groups_without_weight_decay_stay_so_after_a_decay_of_zero() -> None:
    class Watching(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            biases.append(self.trainer.optimizers[0].param_groups[1]["weight_decay"])
            return super().training_step(batch, batch_idx)

    def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        first, *others = parameters
        decayed, plain = {"params": [first], "weight_decay": 0.1}, {"params": others}
        return torch.optim.SGD([decayed, plain], lr=0.1)

    biases: list[float] = []
    finder = HyperparameterFinder("weight_decay", (0.0, 50.0), steps_per_value=5, rounds=(0, 1))
    fitter = trainer(finder, IterativeMagnitudePruning(1), max_epochs=1)
    fitter.fit(Watching(groups), loader(), loader())
    assert [finder.results[round_][0].chosen.value for round_ in (0, 1)] == [0, 0]
    assert set(biases) == {0}


def test_beta1_is_the_momentum_of_adam() -> None:
    finder = HyperparameterFinder("momentum", (0.5, 0.8), steps_per_value=5)
    fitter = trainer(finder, max_epochs=1)
    fitter.fit(Classifier(adam), loader(), loader())
    assert fitter.optimizers[0].param_groups[0]["betas"] == (finder.result.chosen.value, 0.999)


def test_finders_stand_side_by_side() -> None:
    finders = [
        LRFinder(1e-3, 10, 100),
        HyperparameterFinder("momentum", (0.5, 0.9), steps_per_value=5),
        HyperparameterFinder("weight_decay", (0.0, 1e-3), steps_per_value=5),
    ]
    fitter = trainer(*finders, max_epochs=1)
    fitter.fit(Classifier(), loader(), loader())
    group = fitter.optimizers[0].param_groups[0]
    for finder, name in zip(finders, ("lr", "momentum", "weight_decay"), strict=True):
        assert group[name] == pytest.approx(finder.result.chosen.value)


def test_an_optimizer_without_the_parameter_is_refused() -> None:
    module = Classifier(lambda parameters: torch.optim.Adagrad(parameters))
    fitter = trainer(HyperparameterFinder("momentum", (0.5, 0.9)), max_epochs=1)
    with pytest.raises(ValueError, match="Adagrad has no momentum to find"):
        fitter.fit(module, loader(), loader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lr", (0.1, 0.2)), "`parameter` must be one of"),
        (("momentum", (0.5,)), r"`values` must be at least 2 numbers in \[0, 1\)"),
        (("momentum", (0.5, 1.0)), r"`values` must be at least 2 numbers in \[0, 1\)"),
        (("weight_decay", (-0.1, 1.0)), r"`values` must be at least 2 numbers in \[0, inf\)"),
        (("momentum", (0.9, 0.5)), "`values` must increase"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperparameterFinder(*arguments)
    with pytest.raises(ValueError, match="`steps_per_value` must be"):
        HyperparameterFinder("momentum", (0.5, 0.9), steps_per_value=0)
