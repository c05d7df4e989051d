"""Training with a range test before it, against training without."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from lightning_lth import IterativeMagnitudePruning, LRFinder
from tests.callbacks.distributed_fits import batches
from tests.callbacks.modules import (
    Classifier,
    assert_equal,
    data,
    loader,
    network,
    trainer,
    weights,
)


class Busy(Classifier):
    """Has all that could give a range test away."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = nn.Sequential(*network(), nn.Dropout(0.3))
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.counter = 0
        self.losses: list[float] = []
        self.lr = 0.1
        self.generator = torch.Generator().manual_seed(3)
        self.hooks: list[str] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.calls += 1
        self.counter += 1
        self.late = True  # an attribute that the constructor did not set
        noise = torch.randn(batch[0].shape, generator=self.generator)
        noise += random.random() + np.random.rand()
        loss = super().training_step([batch[0] + noise, batch[1]], batch_idx)
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.hooks.append(f"batch {hasattr(self, 'late')}")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.hooks.append("step")


class Counting(pl.Callback):
    """Counts the calls of hooks in the middle of optimization."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def on_before_zero_grad(self, *args: Any) -> None:
        self.counts["zero_grad"] = self.counts.get("zero_grad", 0) + 1

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.counts["step"] = self.counts.get("step", 0) + 1


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def shuffled() -> DataLoader[Any]:
    return loader(shuffle=True, generator=torch.Generator().manual_seed(2))


def everything(
    *callbacks: pl.Callback,
    make: Callable[[], Busy] = Busy,
    loaders: Callable[[], DataLoader[Any]] = loader,
    folder: Path | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """What is different after a fit, if anything is."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    module, counting, train = make(), Counting(), loaders()
    logger = CSVLogger(folder) if folder else False
    fitter = trainer(*callbacks, counting, **({"max_epochs": 2, "logger": logger} | kwargs))
    fitter.fit(module, train, loader())
    return {
        **weights(module),
        "calls": module.calls.clone(),
        "optimizer": copy.deepcopy(fitter.optimizers[0].state_dict()),
        "random": (torch.get_rng_state(), random.random(), np.random.rand()),
        "generators": (
            module.generator.get_state(),
            train.generator.get_state() if train.generator else None,
        ),
        "python": (module.counter, module.losses, module.hooks, module.lr, counting.counts),
        "progress": (fitter.global_step, fitter.fit_loop.state_dict()),
        "metrics": {name: float(value) for name, value in fitter.callback_metrics.items()},
    }


def assert_same(first: Any, second: Any, path: str = "") -> None:
    if isinstance(first, Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{path}.{index}")
    else:
        assert first == second, path


class Tally:
    """Passed around between layers, as auxiliary losses are."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.count = 0

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss)
        self.count += 1


class Auxiliary(nn.Linear):
    tally: Tally

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.tally.add(outputs.square().mean())
        return outputs


class Secretive(Busy):
    """Keeps state where neither its state dict nor its own attributes show it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        vars(self)["teacher"] = network(1)
        self.averages = [copy.deepcopy(self.net)]  # in a list, to hide it from the optimizer
        self.auxiliary = Auxiliary(6, 6)
        self.auxiliary.tally = self.tally = Tally()
        self.add, self.send = self.tally.add, self.log

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.tally.losses.clear()
        self.auxiliary(batch[0])
        loss = super().training_step(batch, batch_idx) + torch.stack(self.tally.losses).sum()
        self.add(loss.detach())
        pairs = zip(self.averages[0].parameters(), self.net.parameters(), strict=True)
        with torch.no_grad():
            for average, present in pairs:
                average.lerp_(present, 0.1)
        self.send("sent", loss, on_step=False, on_epoch=True)
        return loss + (self.teacher(batch[0]) - self.averages[0](batch[0])).square().mean()

    def on_train_epoch_end(self) -> None:
        self.hooks += [str(self.tally.count), str(self.teacher[1].running_mean.tolist())]


class Augmentation(pl.LightningDataModule):
    """Augments whole batches, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return loader()

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        return [batch[0] + torch.rand((), generator=self.generator), batch[1]]


def test_what_a_module_hides_is_as_before() -> None:
    finder = LRFinder(num_steps=20, max_lr=0.3, apply=False)
    assert_same(everything(make=Secretive), everything(finder, make=Secretive))


def test_hooks_of_the_data_notice_nothing() -> None:
    ends = []
    for finders in ([], [LRFinder(num_steps=20, max_lr=0.3, apply=False)]):
        module = Classifier()
        trainer(*finders, max_epochs=1).fit(module, datamodule=Augmentation())
        ends.append(weights(module))
    assert_equal(*ends)


def drawn() -> DataLoader[Any]:
    """In an order from the global generator."""
    return loader(shuffle=True)


@pytest.mark.parametrize(
    ("kwargs", "loaders", "optimizer"),
    [
        *(({}, loaders, one) for loaders in (loader, shuffled, drawn) for one in (None, adam)),
        *(
            (kwargs, *others)
            for kwargs in (
                {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5},
                {"max_epochs": 1},
                {"precision": "bf16-mixed"},
                {"val_check_interval": 2, "num_sanity_val_steps": 1},
                {"limit_train_batches": 3},
            )
            for others in ((shuffled, None), (drawn, adam))
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_nothing_is_different_afterwards(
    kwargs: dict[str, Any], loaders: Callable[[], DataLoader[Any]], optimizer: Any
) -> None:
    settings = {"make": lambda: Busy(optimizer=optimizer), "loaders": loaders, **kwargs}
    finder = LRFinder(num_steps=40, max_lr=0.3, apply=False)
    found = everything(finder, **settings)
    assert_same(everything(**settings), found)
    assert len(finder.result.curve) == 40  # far more than there are batches in an epoch


def test_other_loggers_notice_nothing(tmp_path: Path) -> None:
    finder = LRFinder(num_steps=20, max_lr=0.3, apply=False)
    settings = {"max_epochs": 2, "log_every_n_steps": 1}
    everything(finder, LearningRateMonitor(), folder=tmp_path / "with", **settings)
    everything(LearningRateMonitor(), folder=tmp_path / "without", **settings)

    def lines(name: str) -> list[str]:
        text = next((tmp_path / name).rglob("metrics.csv")).read_text().splitlines()
        rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
        kept = ("epoch", "step", "train_loss_step", "train_loss_epoch", "val_loss", "lr-SGD")
        own = [row for row in rows if not row.get("lr_finder/round_0/loss")]
        return [str([row.get(key) for key in kept]) for row in own]

    assert lines("with") == lines("without")


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_exception_in_the_sweep_leaves_all_as_it_was(error: type[BaseException]) -> None:
    class Failing(Busy):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if self.calls == 15:
                raise error("sweep")
            return loss

    module = Failing()
    before = weights(module)
    stopping = EarlyStopping("val_loss")
    fitter = trainer(LRFinder(max_lr=0.3), stopping, max_epochs=2)
    with pytest.raises((KeyError, SystemExit)):
        fitter.fit(module, loader(), loader())
    assert_equal(weights(module), before)
    assert (module.counter, module.losses, module.hooks, float(module.calls)) == (0, [], [], 0)
    assert stopping in fitter.callbacks
    assert fitter.global_step == 0
    assert not fitter.optimizers[0].state
    assert fitter.optimizers[0].param_groups[0]["lr"] == 0.1
    assert not vars(module).keys() & {"log", "log_dict"}


# What is measured --------------------------------------------------------------------------------


def test_the_losses_are_those_of_training_with_these_rates() -> None:
    """Against a loop in plain torch; accumulated over 2 batches."""
    finder = LRFinder(1e-3, 0.1, 10, apply=False)
    trainer(finder, max_epochs=1, accumulate_grad_batches=2).fit(Classifier(), loader(), loader())
    net, expected = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    batches = iter([*loader(), *loader(), *loader(), *loader()])
    for step in range(10):
        optimizer.param_groups[0]["lr"] = 1e-3 * 100 ** (step / 9)
        optimizer.zero_grad()
        losses = []
        for _ in range(2):
            inputs, labels = next(batches)
            losses.append(nn.functional.cross_entropy(net(inputs), labels))
            (losses[-1] / 2).backward()
        optimizer.step()
        expected.append(float(sum(losses).detach()) / 2)  # type: ignore[union-attr]
    assert finder.result.curve.losses == pytest.approx(expected, rel=1e-5)
    assert finder.result.curve.values == pytest.approx([1e-3 * 100 ** (i / 9) for i in range(10)])


def test_the_batches_are_those_of_the_training() -> None:
    finder = LRFinder(1e-12, 1e-11, 10, apply=False)
    trainer(finder, max_epochs=1, limit_train_batches=2).fit(Classifier(), loader(), loader())
    losses = finder.result.curve.losses
    assert losses == pytest.approx([*losses[:2] * 5], rel=1e-4)  # no more than two batches
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)


def test_an_epoch_shorter_than_the_accumulation_is_one_step() -> None:
    finder = LRFinder(1e-3, 0.1, 10, apply=False)
    short = {"accumulate_grad_batches": 8, "limit_train_batches": 3}
    trainer(finder, max_epochs=1, **short).fit(Classifier(), loader(), loader())
    net, expected = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(10):
        optimizer.param_groups[0]["lr"] = 1e-3 * 100 ** (step / 9)
        optimizer.zero_grad()
        losses = []
        for inputs, labels in list(loader())[:3]:
            losses.append(nn.functional.cross_entropy(net(inputs), labels) / 8)
            losses[-1].backward()
        optimizer.step()
        expected.append(8 / 3 * float(sum(losses).detach()))  # type: ignore[union-attr]
    assert finder.result.curve.losses == pytest.approx(expected, rel=1e-5)


def test_a_schedule_of_the_accumulation_is_followed() -> None:
    curves = []
    schedule = GradientAccumulationScheduler({0: 3, 1: 1})
    for others, kwargs in (([], {"accumulate_grad_batches": 3}), ([schedule], {})):
        finder = LRFinder(1e-3, 0.1, 10, apply=False)
        trainer(finder, *others, max_epochs=1, **kwargs).fit(Classifier(), loader(), loader())
        curves.append(finder.result.curve)
    assert curves[0] == curves[1]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_batches_without_a_loss_are_passed_over() -> None:
    class Guarded(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss.view(1) if batch_idx != 1 and torch.isfinite(loss) else None

    curves = []
    for make, limit in ((Guarded, 3), (Classifier, 2)):
        torch.manual_seed(0)
        used = [batch for index, batch in enumerate(loader()) if index != 1]
        batches = loader() if make is Guarded else DataLoader(used, batch_size=None)
        finder = LRFinder(1e-4, 1e-2, 10, apply=False)
        fitter = trainer(finder, max_epochs=1, limit_train_batches=limit)
        fitter.fit(make(lambda p: torch.optim.SGD(p, lr=0.1)), batches, loader())
        curves.append(finder.result.curve)
    assert curves[0] == curves[1]
    finder = LRFinder(1e-3, 1e30, 100, apply=False)
    trainer(finder, max_epochs=1).fit(Guarded(), loader(), loader())
    assert 10 < len(finder.result.curve) < 100  # it ends where there is no loss any more


def test_a_diverging_loss_ends_the_sweep() -> None:
    finder = LRFinder(1e-3, 1e6, 100, apply=False)
    trainer(finder, max_epochs=1).fit(Classifier(), loader(), loader())
    assert 10 < len(finder.result.curve) < 100


def test_a_loss_that_is_nan_from_the_start_gives_a_reason_and_no_rate() -> None:
    class Broken(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * float("nan")

    module, finder = Broken(), LRFinder()
    fitter = trainer(finder, max_epochs=1, limit_train_batches=0.0)
    fitter = trainer(finder, max_steps=1)
    fitter.fit(module, loader(), loader())
    assert len(finder.result.curve) == 1
    assert finder.result.chosen.value is None
    assert "fewer than 10" in finder.result.chosen.reason
    assert fitter.optimizers[0].param_groups[0]["lr"] == 0.1


def test_pruned_weights_stay_zero_in_the_sweep_of_a_later_round() -> None:
    seen: list[int] = []

    class Watching(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            seen.append(
                int(self.net[0].weight.count_nonzero() + self.net[3].weight.count_nonzero())
            )
            return super().training_step(batch, batch_idx)

    pruning = IterativeMagnitudePruning(1, fraction=0.5)
    finder = LRFinder(1e-4, 0.1, 10, rounds=(1,), apply=False)
    trainer(finder, pruning, max_epochs=1).fit(Watching(), loader(), loader())
    assert list(finder.results) == [1]
    assert seen == [144] * 6 + [72] * 16


# What is applied ---------------------------------------------------------------------------------


def constant(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def warm_up(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    return {"scheduler": scheduler, "interval": "step"}


def one_cycle(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=12)
    return {"scheduler": scheduler, "interval": "step"}


def cosine(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    return {"scheduler": lr_scheduler.CosineAnnealingLR(optimizer, 12), "interval": "step"}


def floored(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=0.05)
    return {"scheduler": scheduler, "interval": "step"}


def cyclic(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.1, 0.4, step_size_up=3)
    return {"scheduler": scheduler, "interval": "step"}


def sequential(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    second = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    scheduler = lr_scheduler.SequentialLR(optimizer, [first, second], [4])
    return {"scheduler": scheduler, "interval": "step"}


class Rates(pl.Callback):
    """The rate of every group in every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    first, *others = parameters
    return torch.optim.SGD([{"params": others, "lr": 0.1}, {"params": [first], "lr": 0.01}])


@pytest.mark.parametrize(
    ("scheduler", "nominal"),
    [
        (None, 0.1),
        (constant, 0.1),
        (warm_up, 0.1),
        (one_cycle, 0.4),
        (cosine, 0.1),
        (floored, 0.1),
        (cyclic, 0.4),
        (sequential, 0.1),
    ],
)
@pytest.mark.filterwarnings("ignore:To get the last learning rate computed by the scheduler")
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch < 2.7
def test_the_whole_schedule_is_scaled(scheduler: Any, nominal: float) -> None:
    def rates(*callbacks: pl.Callback) -> Tensor:
        watcher = Rates()
        module = Classifier(groups if scheduler is not one_cycle else None, scheduler)
        trainer(*callbacks, watcher, max_epochs=2).fit(module, loader(), loader())
        return torch.tensor(watcher.rates, dtype=torch.float64)

    finder = LRFinder(1e-3, 10, 100)
    found, plain = rates(finder), rates()
    suggestion = finder.result.chosen.value
    assert suggestion is not None
    torch.testing.assert_close(found, plain * (suggestion / nominal))


def test_attributes_are_set_where_they_exist() -> None:
    class Named(Classifier):
        def __init__(self, learning_rate: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.lr = 0.1

    module, finder = Named(), LRFinder(1e-3, 10, 100)
    trainer(finder, max_epochs=1).fit(module, loader(), loader())
    value = finder.result.chosen.value
    assert value is not None
    assert module.lr == value
    assert module.hparams["learning_rate"] == value
    assert not hasattr(module, "learning_rate")


def test_monitors_see_the_new_rate_from_the_first_step() -> None:
    class Last(pl.Callback):
        rate = 0.0

        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            self.rate = self.rate or trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0]

    last, finder = Last(), LRFinder(1e-3, 10, 100)
    module = Classifier(scheduler=constant)
    trainer(finder, last, max_epochs=1).fit(module, loader(), loader())
    assert last.rate == pytest.approx(finder.result.chosen.value)


def test_a_rate_that_is_a_tensor_stays_the_same_tensor() -> None:
    rate = torch.tensor(1e-3)
    finder = LRFinder(1e-3, 10, 100)
    module = Classifier(lambda parameters: torch.optim.Adam(parameters, lr=rate, foreach=False))
    trainer(finder, max_epochs=1).fit(module, loader(), loader())
    assert module.trainer.optimizers[0].param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(finder.result.chosen.value)


@pytest.mark.parametrize("is_shared", [True, False])
def test_groups_that_share_a_rate_or_have_none(is_shared: bool) -> None:
    rate = torch.tensor(0.1)

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        rates = [rate, rate] if is_shared else [0.0, 0.1]
        pairs = zip(rates, (parameters[:1], parameters[1:]), strict=True)
        groups = [{"params": some, "lr": rate} for rate, some in pairs]
        return torch.optim.Adam(groups, foreach=False)

    module, finder = Classifier(make), LRFinder(1e-3, 10, 100)
    trainer(finder, max_epochs=1).fit(module, loader(), loader())
    chosen = finder.result.chosen.value
    found = [float(group["lr"]) for group in module.trainer.optimizers[0].param_groups]
    assert found == pytest.approx([chosen if is_shared else 0.0, chosen])


@pytest.mark.parametrize("hook", ["optimizer_step", "training_step"])
def test_a_module_that_sets_the_rate_itself_is_refused(hook: str) -> None:
    class Own(Classifier):
        def set_rate(self) -> None:
            self.trainer.optimizers[0].param_groups[0]["lr"] = 0.01

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if hook == "training_step":
                self.set_rate()
            return super().training_step(batch, batch_idx)

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
            if hook == "optimizer_step":
                self.set_rate()
            optimizer.step(closure=closure)

    with pytest.raises(
        RuntimeError, match=r"LRFinder set the learning rates \[1e-07\], which became \[0"
    ):
        trainer(LRFinder(), max_epochs=1).fit(Own(), loader(), loader())


def test_a_trial_run_has_no_range_test() -> None:
    finder = LRFinder()
    trainer(finder, fast_dev_run=True).fit(Classifier(), loader(), loader())
    assert not finder.results


def test_all_pruning_rounds_train_with_the_suggestion() -> None:
    watcher, finder = Rates(), LRFinder(1e-3, 10, 100)
    trainer(finder, IterativeMagnitudePruning(1), watcher, max_epochs=1).fit(
        Classifier(scheduler=constant), loader(), loader()
    )
    assert watcher.rates == [[pytest.approx(finder.result.chosen.value)]] * 12


def test_fine_tuning_takes_the_rate_that_was_found() -> None:
    """Its schedulers rest: a tenth in every second step has left 0.1 at 1e-4."""

    def step_lr(module: Any, optimizer: torch.optim.Optimizer) -> Any:
        return {"scheduler": lr_scheduler.StepLR(optimizer, 2, 0.1), "interval": "step"}

    watcher, finder = Rates(), LRFinder(1e-3, 10, 100, suggestion="minimum", rounds=(1,))
    pruning = IterativeMagnitudePruning(1, rewind="none")
    module = Classifier(scheduler=step_lr)
    trainer(finder, pruning, watcher, max_epochs=1).fit(module, loader(), loader())
    assert finder.result.chosen.value is not None
    assert watcher.rates[6:] == [[pytest.approx(finder.result.chosen.value)]] * 6


def test_a_module_without_an_optimizer_is_refused() -> None:
    class Fixed(Classifier):
        def configure_optimizers(self) -> None:
            return

    with (
        pytest.warns(UserWarning, match="returned `None`"),
        pytest.raises(ValueError, match="has no learning rate to set"),
    ):
        trainer(LRFinder(), max_epochs=1).fit(Fixed(), loader(), loader())


# Kinds of projects -------------------------------------------------------------------------------


class Manual(Busy):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return loss


class TwoOptimizers(Manual):
    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.net[0].parameters(), lr=0.1),
            torch.optim.Adam(self.net[3].parameters(), lr=1e-3),
        )


@pytest.mark.parametrize("make", [Manual, TwoOptimizers])
def test_manual_optimization(make: Callable[[], Busy]) -> None:
    finder = LRFinder(num_steps=30, max_lr=0.3, apply=False)
    assert_same(everything(make=make), everything(finder, make=make))
    assert len(finder.results[0]) == (2 if make is TwoOptimizers else 1)
    assert all(len(test.curve) == 30 for test in finder.results[0])


def test_manual_accumulation_sees_the_numbers_of_training() -> None:
    """Against a loop in plain torch that steps with every third batch."""

    class Accumulating(Classifier):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            if (batch_idx + 1) % 3 == 0 or self.trainer.is_last_batch:
                self.optimizers().step()  # type: ignore[union-attr]
                self.optimizers().zero_grad()  # type: ignore[union-attr]
            return loss

    finder = LRFinder(1e-3, 0.1, 15, apply=False)
    fitter = trainer(finder, max_epochs=1, limit_train_batches=5)
    fitter.fit(Accumulating(), loader(), loader())
    net, expected = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step, (inputs, labels) in enumerate(list(loader())[:5] * 3):
        optimizer.param_groups[0]["lr"] = 1e-3 * 100 ** (step / 14)
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        expected.append(float(loss.detach()))
        if step % 5 in (2, 4):
            optimizer.step()
            optimizer.zero_grad()
    assert finder.result.curve.losses == pytest.approx(expected, rel=1e-5)


def test_each_of_several_optimizers_gets_its_own_rate() -> None:
    module, finder = TwoOptimizers(), LRFinder(num_steps=60)
    fitter = trainer(finder, max_epochs=1)
    fitter.fit(module, loader(), loader())
    for optimizer, test in zip(fitter.optimizers, finder.results[0], strict=True):
        expected = test.chosen.value or optimizer.defaults["lr"]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_schedulers_are_scaled_with_their_own_optimizer() -> None:
    class Scheduled(TwoOptimizers):
        def configure_optimizers(self) -> Any:
            optimizers = super().configure_optimizers()
            schedulers = [lr_scheduler.StepLR(one, 100) for one in optimizers]
            return list(optimizers), schedulers

    module, finder = Scheduled(), LRFinder(1e-3, 10, 100)
    trainer(finder, max_epochs=1).fit(module, loader(), loader())
    chosen = [test.chosen.value for test in finder.results[0]]
    expected = [new or old for new, old in zip(chosen, (0.1, 1e-3), strict=True)]
    assert any(chosen)
    for config, rate in zip(module.trainer.lr_scheduler_configs, expected, strict=True):
        assert config.scheduler.base_lrs == [pytest.approx(rate)]


def test_manual_optimization_without_a_loss_is_refused() -> None:
    class Mute(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            super().training_step(batch, batch_idx)

    module = Mute()
    before = weights(module)
    with pytest.raises(RuntimeError, match="`training_step` returned no loss"):
        trainer(LRFinder(), max_epochs=1).fit(module, loader(), loader())
    assert_equal(weights(module), before)


class Stream(IterableDataset[Any]):
    """Remembers how far it has been read."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        for sample in data():
            self.position += 1
            yield sample


class Once(IterableDataset[Any]):
    def __init__(self) -> None:
        self.source = (sample for sample in data())

    def __iter__(self) -> Iterator[Any]:
        return self.source


def test_schedulers_that_the_step_steps_go_back() -> None:
    class Stepping(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            epochs.append(self.lr_schedulers().last_epoch)  # type: ignore[union-attr]
            loss = super().training_step(batch, batch_idx)
            self.lr_schedulers().step()  # type: ignore[union-attr, call-arg]
            return loss

    def step_lr(module: Any, optimizer: torch.optim.Optimizer) -> Any:
        return lr_scheduler.StepLR(optimizer, 3)

    epochs: list[int] = []
    finder = LRFinder(1e-3, 0.3, 20, apply=False)
    trainer(finder, max_epochs=1).fit(Stepping(scheduler=step_lr), loader(), loader())
    assert epochs[-6:] == list(range(6))


def test_a_step_that_asks_for_the_end_is_not_heard() -> None:
    class Guarded(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.trainer.should_stop |= bool(loss > 10)
            return loss

    finder = LRFinder(1e-3, 1e6, 100, apply=False)
    fitter = trainer(finder, max_epochs=1)
    fitter.fit(Guarded(), loader(), loader())
    assert max(finder.result.curve.losses) > 10
    assert fitter.global_step == 6


def test_an_attribute_that_can_be_called_goes_back() -> None:
    class Meter:
        count = 0

        def __call__(self) -> None:
            self.count += 1

    class Metered(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.meter = Meter()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.meter()
            return super().training_step(batch, batch_idx)

    module = Metered()
    trainer(LRFinder(1e-3, 0.3, 20), max_epochs=1).fit(module, loader(), loader())
    assert module.meter.count == 6


def test_an_iterable_data_set_does_not_notice() -> None:
    stream = Stream()
    finder = LRFinder(num_steps=20, max_lr=0.3, apply=False)
    found = everything(finder, loaders=lambda: DataLoader(stream, batch_size=8))
    assert stream.position == 96  # two epochs
    assert_same(everything(loaders=lambda: DataLoader(Stream(), batch_size=8)), found)


def test_what_can_be_read_only_once_needs_a_loader() -> None:
    module, once = Busy(), Once()
    with pytest.raises(ValueError, match=r"Once can be read only once.*dataloader="):
        trainer(LRFinder(), max_epochs=1).fit(module, DataLoader(once, batch_size=8), loader())
    assert len(list(once.source)) == 40  # Lightning itself fetches one batch ahead
    finder = LRFinder(num_steps=20, max_lr=0.3, dataloader=shuffled())
    trainer(finder, max_epochs=1).fit(module, DataLoader(Once(), batch_size=8), loader())
    assert len(finder.result.curve) == 20
    assert module.counter == 6


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_what_gives_no_batches_to_a_step_is_refused() -> None:
    class Fetching(Classifier):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(ValueError, match="LRFinder cannot give a `training_step` that takes a `da"):
        trainer(LRFinder(), max_epochs=1).fit(Fetching(), loader(), loader())
    finder = LRFinder(dataloader=list(loader()))
    with pytest.raises(ValueError, match="got one with tensors in it"):
        trainer(finder, max_epochs=1).fit(Classifier(), loader(), loader())


@pytest.mark.parametrize("persistent", [True, False])
def test_workers(persistent: bool) -> None:
    def loaders() -> DataLoader[Any]:
        return loader(shuffle=True, num_workers=1, persistent_workers=persistent)

    finder = LRFinder(num_steps=12, max_lr=0.3, apply=False)
    assert_same(everything(loaders=loaders), everything(finder, loaders=loaders))


def test_a_resumed_fit_is_left_alone(tmp_path: Path) -> None:
    whole, first, resumed = Classifier(), Classifier(), Classifier(seed=5)
    finder = LRFinder(1e-3, 10, 100)
    trainer(finder, max_epochs=2).fit(whole, loader(), loader())
    fitter = trainer(LRFinder(1e-3, 10, 100), max_epochs=1)
    fitter.fit(first, loader(), loader())
    fitter.save_checkpoint(tmp_path / "first.ckpt")
    again = LRFinder(1e-3, 10, 100)
    trainer(again, max_epochs=2).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=True
    )
    assert_equal(weights(resumed), weights(whole))
    assert again.result == finder.result


def test_a_checkpoint_without_the_callback_is_not_disturbed(tmp_path: Path) -> None:
    whole, first, resumed = Classifier(), Classifier(), Classifier()
    trainer(max_epochs=2).fit(whole, loader(), loader())
    fitter = trainer(max_epochs=1)
    fitter.fit(first, loader(), loader())
    fitter.save_checkpoint(tmp_path / "first.ckpt")
    trainer(finder := LRFinder(), max_epochs=2).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "first.ckpt"
    )
    assert_equal(weights(resumed), weights(whole))
    assert not finder.results


def test_figures_curves_and_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    finder = LRFinder(1e-3, 10, 100, plot_dir=tmp_path / "plots")
    with caplog.at_level("INFO"):
        trainer(finder, max_epochs=1, logger=logger).fit(Classifier(), loader(), loader())
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [event.value for event in events.Scalars("lr_finder/round_0/loss")]
    assert losses == pytest.approx(list(finder.result.curve.losses))
    rates = [event.value for event in events.Scalars("lr_finder/round_0/lr")]
    assert rates == pytest.approx(list(finder.result.curve.values))
    assert "lr_finder/round_0" in events.Tags()["images"]
    assert (tmp_path / "plots" / "lr_finder_round_00.png").read_bytes().startswith(b"\x89PNG")
    assert f"lr_finder, round 0: lr {finder.result.chosen} (valley" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 1.0, "max_lr": 0.1}, "`min_lr` must be below `max_lr`"),
        ({"min_lr": -1.0}, "`min_lr` must be positive"),
        ({"max_lr": float("nan")}, "`max_lr` must be a finite number"),
        ({"num_steps": 0}, "`num_steps` must be"),
        ({"mode": "log"}, "`mode` must be"),
        ({"suggestion": "best"}, r"one of \['valley', 'slide', 'steep', 'minimum'\]"),
        ({"rounds": (-1,)}, "`rounds` must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRFinder(**arguments)


@pytest.mark.parametrize("rounds", [0, "0", None])
def test_rounds_are_a_list(rounds: Any) -> None:
    with pytest.raises(TypeError, match=r"`rounds` lists pruning rounds, such as `\(0, 3\)`, got"):
        LRFinder(rounds=rounds)


def test_pictures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # cannot be found any more
    with pytest.raises(ImportError, match=r"`plot_dir` needs matplotlib: `pip install"):
        LRFinder(plot_dir="plots")


@pytest.mark.distributed
def test_all_ranks_find_the_same(two_processes: Path) -> None:
    folder = two_processes / "lr_finder"
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["passive"] == first["active"]

    def end(name: str, rank: int) -> dict[str, Tensor]:
        return torch.load(folder / f"{name}_{rank}.pt", weights_only=True)

    assert_equal(end("without", 0), end("passive", 0))
    assert_equal(end("active", 0), end("active", 1))
    alone = LRFinder(1e-3, 10, 100, apply=False)
    module = Classifier()
    module.net[1] = nn.Identity()
    trainer(alone, max_epochs=1).fit(module, batches(1, 0), batches(1, 0))
    losses = first["passive"]["curve"]["losses"]
    assert losses[:50] == pytest.approx(alone.result.curve.losses[:50], rel=1e-4)
