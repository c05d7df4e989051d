"""The rate and the momentum that every optimizer step is taken with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lightning_lth import (
    CyclicalLR,
    HyperparameterFinder,
    IterativeMagnitudePruning,
    LRFinder,
)
from tests.callbacks.modules import Classifier, assert_equal, loader, trainer, weights


class Settings(pl.Callback):
    """Rate and momentum of the first group in every optimizer step, and rates of all groups."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.momenta: list[float] = []
        self.groups: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        group = optimizer.param_groups[0]
        self.rates.append(group["lr"])
        self.momenta.append(group["betas"][0] if "betas" in group else group["momentum"])
        self.groups.append([one["lr"] for one in optimizer.param_groups])


def fit(*callbacks: pl.Callback, module: Any = None, **kwargs: Any) -> Settings:
    watcher = Settings()
    module = module or Classifier()
    trainer(*callbacks, watcher, **({"max_epochs": 2} | kwargs)).fit(module, loader(), loader())
    return watcher


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.95, 0.999))


def plain_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def test_triangular() -> None:
    watcher = fit(CyclicalLR(0.1, 0.4, step_size=3))
    # Up in 3 steps of 0.1, down in 3, twice; 12 steps.
    assert watcher.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2)
    assert watcher.momenta == [0.9] * 12


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("triangular2", [0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1, 0.15, 0.2, 0.25, 0.2, 0.15]),
        # Half a cosine over 3 steps: 0.1 + 0.3 * (1 + cos(pi * t / 3)) / 2.
        ("cosine", [0.4, 0.325, 0.175] * 4),
    ],
)
def test_policies(policy: Any, expected: list[float]) -> None:
    assert fit(CyclicalLR(0.1, 0.4, step_size=3, policy=policy)).rates == pytest.approx(expected)


def test_one_cycle_ends_in_a_fall_to_a_thousandth_of_the_lowest_rate() -> None:
    watcher = fit(CyclicalLR(0.1, 0.4, step_size=3, policy="one_cycle"))
    assert watcher.rates == pytest.approx(_one_cycle_of_torch(total=12, size=3))
    assert watcher.rates[:7] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1])
    assert watcher.rates[-1] == pytest.approx(0.0001)


def _one_cycle_of_torch(total: int, size: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = lr_scheduler.OneCycleLR(
        optimizer, 0.4, total, pct_start=(size + 1) / total, anneal_strategy="linear",
        cycle_momentum=False, div_factor=4, final_div_factor=1000, three_phase=True,
    )  # fmt: skip
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_exp_range_shrinks_with_each_step() -> None:
    watcher = fit(CyclicalLR(0.1, 0.4, step_size=2, policy="exp_range", gamma=0.9))
    heights = [0, 0.5, 1, 0.5] * 3
    expected = [0.1 + 0.3 * height * 0.9**step for step, height in enumerate(heights)]
    assert watcher.rates == pytest.approx(expected)


def test_momentum_moves_against_the_rate() -> None:
    cycles = CyclicalLR(0.1, 0.4, step_size=3, base_momentum=0.85, max_momentum=0.94)
    assert fit(cycles).momenta == pytest.approx([0.94, 0.91, 0.88, 0.85, 0.88, 0.91] * 2)
    module = Classifier(adam)
    assert fit(cycles, module=module).momenta[:4] == pytest.approx([0.94, 0.91, 0.88, 0.85])
    assert module.trainer.optimizers[0].param_groups[0]["betas"][1] == 0.999


def test_momentum_that_is_not_in_use_stays_so() -> None:
    cycles = CyclicalLR(0.1, 0.4, step_size=3, base_momentum=0.85, max_momentum=0.95)
    with pytest.warns(UserWarning, match="SGD has no momentum in use"):
        assert fit(cycles, module=Classifier(plain_sgd)).momenta == [0] * 12


def test_momentum_may_fall_to_zero_and_come_back() -> None:
    cycles = CyclicalLR(0.1, 0.4, step_size=3, base_momentum=0.0, max_momentum=0.9)
    assert fit(cycles).momenta[:6] == pytest.approx([0.9, 0.6, 0.3, 0.0, 0.3, 0.6])


def test_groups_keep_their_ratio() -> None:
    def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        first, *others = parameters
        return torch.optim.SGD(
            [{"params": others, "lr": 0.2}, {"params": [first], "lr": 0.02}], momentum=0.9
        )

    watcher = fit(CyclicalLR(0.1, 0.4, step_size=3), module=Classifier(groups))
    for first, second in watcher.groups:
        assert second == pytest.approx(first / 10)


@pytest.mark.parametrize("policy", ["triangular", "cosine"])
def test_what_the_optimizer_was_is_read_before_the_first_cycle(policy: Any, tmp_path: Path) -> None:
    """Rates and momenta of 0, which cycles write, say nothing about it."""

    def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        first, *others = parameters
        return torch.optim.SGD(
            [{"params": others, "lr": 0.2}, {"params": [first], "lr": 0.02}], momentum=0.9
        )

    def cycles() -> CyclicalLR:
        momenta = {"base_momentum": 0.0, "max_momentum": 0.9}
        return CyclicalLR(0.0, 0.3, step_size=3, policy=policy, **momenta)

    watcher, module = Settings(), Classifier(groups)
    fitter = trainer(cycles(), watcher, IterativeMagnitudePruning(1), max_epochs=1)
    fitter.fit(module, loader(), loader())
    assert watcher.groups[6:] == watcher.groups[:6]
    assert watcher.groups[4] == pytest.approx([watcher.rates[4], watcher.rates[4] / 10])
    assert watcher.momenta[6:] == watcher.momenta[:6]
    fitter = trainer(cycles(), max_epochs=1)
    fitter.fit(Classifier(groups), loader(), loader())
    fitter.save_checkpoint(tmp_path / "bottom.ckpt")
    resumed = Settings()
    trainer(cycles(), resumed, max_epochs=2).fit(
        Classifier(groups), loader(), loader(), ckpt_path=tmp_path / "bottom.ckpt"
    )
    assert resumed.groups == watcher.groups[:6]
    assert resumed.momenta == watcher.momenta[:6]


def test_optimizer_steps_are_counted() -> None:
    watcher = fit(CyclicalLR(0.1, 0.4, step_size=3), accumulate_grad_batches=4, max_epochs=3)
    assert watcher.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2])  # 2 steps in an epoch


def test_the_unit_may_be_epochs() -> None:
    cycles = CyclicalLR(0.1, 0.4, step_size=0.5, step_unit="epoch")  # 6 batches: 3 steps
    assert fit(cycles).rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2)
    cycles = CyclicalLR(0.1, 0.4, step_size=1.5, step_unit="epoch")  # 2 steps each: 3 steps
    assert fit(cycles, accumulate_grad_batches=4, max_epochs=3).rates == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.3, 0.2]
    )


def test_a_schedule_of_the_accumulation() -> None:
    cycles = CyclicalLR(0.1, 0.4, step_size=1.5, step_unit="epoch")  # 2 steps each: 3 steps
    watcher = fit(cycles, GradientAccumulationScheduler({0: 4}), max_epochs=3)
    assert watcher.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2])
    cycles = CyclicalLR(0.1, 0.4, step_size=2, policy="one_cycle")
    assert fit(cycles, GradientAccumulationScheduler({0: 4}), max_epochs=3).rates[-1] < 0.001
    for cycles, message in (
        (CyclicalLR(0.1, 0.4, step_size=1, step_unit="epoch"), "Use `step_unit='step'`"),
        (CyclicalLR(0.1, 0.4, step_size=2, policy="one_cycle"), "Set `max_steps`, and `max_ep"),
    ):
        with pytest.raises(ValueError, match=rf"GradientAccumulationScheduler.*{message}"):
            fit(cycles, GradientAccumulationScheduler({0: 1, 1: 2}), max_epochs=3)


def test_groups_that_join_later_are_refused() -> None:
    class Unfreezing(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net[3].parameters(), lr=0.1, momentum=0.9)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                group = {"params": self.net[0].parameters()}
                self.trainer.optimizers[0].add_param_group(group)

    with pytest.raises(ValueError, match=r"SGD had 1 parameter groups.*has 2 now"):
        fit(CyclicalLR(0.1, 0.4, step_size=3), module=Unfreezing())


class TwoOptimizers(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rates: list[tuple[float, float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        first, second = self.optimizers()  # type: ignore[misc]
        self.manual_backward(loss)
        self.rates.append((first.param_groups[0]["lr"], second.param_groups[0]["lr"]))
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.net[0].parameters(), lr=0.1),
            torch.optim.Adam(self.net[3].parameters(), lr=1e-3),
        )


def test_several_optimizers_and_manual_optimization() -> None:
    module = TwoOptimizers()
    fit(CyclicalLR(0.1, 0.4, step_size=3), module=module)
    expected = [0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2
    assert [first for first, _ in module.rates] == pytest.approx(expected)
    assert [second for _, second in module.rates] == pytest.approx(expected)


def test_rewinding_finds_the_step_of_optimizers_that_do_not_always_step() -> None:
    class Alternating(TwoOptimizers):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = Classifier.training_step(self, batch, batch_idx)
            self.manual_backward(loss)
            first, second = self.optimizers()  # type: ignore[misc]
            self.rates.append((first.param_groups[0]["lr"], second.param_groups[0]["lr"]))
            first.step()
            if batch_idx == 5:
                second.step()
            return loss

    module = Alternating()
    fit(
        IterativeMagnitudePruning(1, rewind_step=4),
        CyclicalLR(0.1, 0.4, step_size=3),
        module=module,
        max_epochs=1,
    )
    cycle = [0.1, 0.2, 0.3, 0.4, 0.3, 0.2]
    assert [rate for rate, _ in module.rates] == pytest.approx(cycle + cycle[4:])


def test_one_cycle_does_not_end_where_several_optimizers_have_taken_max_steps() -> None:
    cycles = CyclicalLR(0.1, 0.4, step_size=2, policy="one_cycle")
    with pytest.raises(ValueError, match=r"`max_steps=20` counts the steps of every optimizer"):
        fit(cycles, module=TwoOptimizers(), max_steps=20, max_epochs=-1)
    module = TwoOptimizers()
    fit(cycles, module=module)
    assert module.rates[-1] == pytest.approx((0.0001, 0.0001))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("make", [Classifier, TwoOptimizers])
def test_a_resumed_fit_goes_on_in_the_cycle(make: Any, epochs: int, tmp_path: Path) -> None:
    whole, first, resumed = make(), make(), make()
    fit(CyclicalLR(0.1, 0.4, step_size=4), module=whole, max_epochs=4)
    fitter = trainer(CyclicalLR(0.1, 0.4, step_size=4), max_epochs=epochs)
    fitter.fit(first, loader(), loader())
    fitter.save_checkpoint(tmp_path / "first.ckpt")
    trainer(CyclicalLR(0.1, 0.4, step_size=4), max_epochs=4).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=True
    )
    assert_equal(weights(resumed), weights(whole))


def test_new_settings_win_over_those_of_the_checkpoint(tmp_path: Path) -> None:
    fitter = trainer(CyclicalLR(0.1, 0.4, step_size=4), max_epochs=1)
    fitter.fit(Classifier(), loader(), loader())
    fitter.save_checkpoint(tmp_path / "first.ckpt")
    watcher = Settings()
    trainer(CyclicalLR(1.0, 3.0, step_size=2), watcher, max_epochs=2).fit(
        Classifier(), loader(), loader(), ckpt_path=tmp_path / "first.ckpt"
    )
    assert watcher.rates == pytest.approx([3.0, 2.0, 1.0, 2.0, 3.0, 2.0])  # from step 6 on


@pytest.mark.parametrize("rewind_step", [0, 4])
def test_every_pruning_round_goes_through_the_same_cycle(rewind_step: int) -> None:
    pruning = IterativeMagnitudePruning(2, rewind_step=rewind_step)
    watcher = fit(CyclicalLR(0.1, 0.4, step_size=3), pruning)
    cycle = [0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2
    assert watcher.rates == pytest.approx(cycle + 2 * cycle[rewind_step:])


@pytest.mark.parametrize("first", [True, False])
def test_the_monitor_shows_the_rate_that_was_used(first: bool, tmp_path: Path) -> None:
    cycles, monitor = CyclicalLR(0.1, 0.4, step_size=3), LearningRateMonitor("step")
    callbacks = [monitor, cycles] if first else [cycles, monitor]
    logger = CSVLogger(tmp_path, name="", version="")
    fit(*callbacks, logger=logger, log_every_n_steps=1)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("lr-SGD")
    rates = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2)


def step_lr(module: Any, optimizer: torch.optim.Optimizer) -> Any:
    return {"scheduler": lr_scheduler.StepLR(optimizer, 2), "interval": "step"}


def test_there_is_one_owner_of_the_rate() -> None:
    module = Classifier(scheduler=step_lr)
    before = weights(module)
    with pytest.raises(ValueError, match="the module's own StepLR would both set"):
        fit(CyclicalLR(0.1, 0.4, step_size=3), module=module)
    assert_equal(weights(module), before)
    watcher = fit(CyclicalLR(0.1, 0.4, step_size=3, replace_schedulers=True), module=module)
    assert watcher.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2)
    assert [type(one.scheduler) for one in module.trainer.lr_scheduler_configs] == [
        lr_scheduler.StepLR
    ]


def test_finders_that_only_look_may_stand_behind() -> None:
    values = [0.2, 0.5]
    watcher = fit(
        CyclicalLR(0.1, 0.4, step_size=3),
        LRFinder(1e-3, 10, 20, apply=False),
        HyperparameterFinder("momentum", values, steps_per_value=3, apply=False),
    )
    assert watcher.rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2)


def test_a_scheduler_that_the_module_steps_itself_is_refused() -> None:
    class Own(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            self.scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
            return optimizer

        def on_train_batch_end(self, *args: Any) -> None:
            self.scheduler.step()

    module = Own()
    with pytest.raises(RuntimeError, match=r"CyclicalLR set the learning rates \[0.2\], which"):
        fit(CyclicalLR(0.1, 0.4, step_size=3), module=module)
    optimizer = module.trainer.optimizers[0]
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.step()  # nothing watches it any more


def test_schedulers_are_given_back_after_an_exception() -> None:
    class Failing(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            raise KeyError("step")

    module = Failing(scheduler=step_lr)
    fitter = trainer(CyclicalLR(0.1, 0.4, step_size=3, replace_schedulers=True), max_epochs=1)
    with pytest.raises(KeyError):
        fitter.fit(module, loader(), loader())
    assert len(fitter.lr_scheduler_configs) == 1


def test_the_range_may_come_from_a_range_test() -> None:
    finder = LRFinder(1e-3, 10, 100, apply=False)
    watcher = fit(finder, CyclicalLR.from_finder(finder, step_size=3))
    base, top = finder.result.range.base, finder.result.range.max
    assert base is not None
    assert top is not None
    assert watcher.rates[:4] == pytest.approx([base + (top - base) * i / 3 for i in range(4)])


def test_found_rates_go_with_every_other_setting() -> None:
    """Smith 2018: one cycle, with momentum against it."""
    finder = LRFinder(1e-3, 10, 100, apply=False)
    cycles = CyclicalLR.from_finder(
        finder, step_size=4, policy="one_cycle", base_momentum=0.5, max_momentum=0.9
    )
    watcher = fit(finder, cycles)
    assert watcher.rates[4] == pytest.approx(finder.result.range.max)
    momenta = [watcher.momenta[i] for i in (0, 2, 4)]
    assert momenta == pytest.approx([0.9, 0.7, 0.5])
    with pytest.raises(ValueError, match="`gamma`"):
        CyclicalLR.from_finder(finder, step_size=4, policy="exp_range", gamma=2.0)


def test_trial_runs() -> None:
    finder = LRFinder()  # does not run
    cycles = CyclicalLR.from_finder(finder, step_size=3)
    assert fit(finder, cycles, fast_dev_run=True).rates == [0.1]
    cycles = CyclicalLR(0.2, 0.4, step_size=3, policy="one_cycle")  # of 8 steps, at least
    assert fit(cycles, fast_dev_run=2).rates == pytest.approx([0.2, 0.2 + 0.2 / 3])


def test_a_range_test_that_has_not_run() -> None:
    finder = LRFinder(rounds=(1,))
    with pytest.raises(RuntimeError, match="has not run: it tests at the start of its `rounds`"):
        fit(finder, CyclicalLR.from_finder(finder, step_size=3))


def test_the_range_test_must_come_first() -> None:
    finder = LRFinder()
    cycles = CyclicalLR.from_finder(finder, step_size=3)
    for callbacks in ((cycles, finder), (cycles,)):
        with pytest.raises(ValueError, match=r"`callbacks=\[finder, cycles\]`"):
            fit(*callbacks)


@pytest.mark.parametrize("is_first", [True, False])
def test_two_that_set_the_same_are_refused_in_any_order(is_first: bool) -> None:
    cycles = CyclicalLR(0.1, 0.4, step_size=3, base_momentum=0.5, max_momentum=0.9)
    values = (0.2, 0.5)
    for other, message in (
        (LRFinder(1e-3, 10, 20), "LRFinder and CyclicalLR would both set the learning rate"),
        (
            HyperparameterFinder("momentum", values, steps_per_value=3),
            "HyperparameterFinder and CyclicalLR would both set the momentum",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(*((other, cycles) if is_first else (cycles, other)))
    fit(cycles, HyperparameterFinder("weight_decay", values, steps_per_value=3))
    fit(cycles, HyperparameterFinder("momentum", values, steps_per_value=3, apply=False))
    rates_alone = CyclicalLR(0.1, 0.4, step_size=3)
    fit(rates_alone, HyperparameterFinder("momentum", values, steps_per_value=3))


def test_the_schedule_can_be_seen_before_training() -> None:
    figure = CyclicalLR(0.1, 0.4, step_size=3).plot_schedule(12)
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.3, 0.2] * 2
    )
    with pytest.raises(ValueError, match="pass `steps_per_epoch`"):
        CyclicalLR(0.1, 0.4, step_size=3, step_unit="epoch").plot_schedule(12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_lr": 0.5}, "`base_lr`"),
        ({"base_lr": None}, "`base_lr` and `max_lr` must be given both, got None and 0.4"),
        ({"base_lr": float("nan")}, "`base_lr`"),
        ({"step_size": 0}, "`step_size` must be above 0"),
        ({"step_size": 2.5}, "`step_size` must be an integer"),
        ({"policy": "square"}, "`policy` must be one of"),
        ({"step_unit": "batch"}, "`step_unit` must be one of"),
        ({"policy": "exp_range", "gamma": 1.5}, "`gamma`"),
        ({"cycle_multiplier": 0.5}, "`cycle_multiplier`"),
        ({"base_momentum": 0.9}, "`max_momentum`"),
        ({"policy": "one_cycle", "cycle_multiplier": 2}, "leave out `cycle_multiplier`"),
        ({"policy": "one_cycle", "base_lr": 0.0}, "`base_lr` must be above 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"base_lr": 0.1, "max_lr": 0.4, "step_size": 3} | arguments
    with pytest.raises(ValueError, match=message):
        CyclicalLR(**settings)


def test_what_cannot_be_resolved_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="must be given, or found by"):
        fit(CyclicalLR(None, None, step_size=3))
    with pytest.raises(ValueError, match="but training has 12"):
        fit(CyclicalLR(0.1, 0.4, step_size=6, policy="one_cycle"))
