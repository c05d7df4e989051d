"""What is recorded, when training stops, and what is said about it; in real trainers."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_lth import EarlyStopping, IterativeMagnitudePruning
from lightning_lth.callbacks._stopping_state import TrainLoss
from lightning_lth.stopping import (
    AllOf,
    AnyOf,
    GeneralizationLoss,
    NoProgress,
    Patience,
    ProgressQuotient,
    StopReason,
    SuccessiveRises,
    Target,
)
from tests.callbacks.boards import Board
from tests.callbacks.modules import Classifier, assert_equal, loader, trainer, weights
from tests.callbacks.scripted import Scripted, fit, values

LOSSES = [3.0, 2.0, 2.5, 2.0, 1.0]  # best so far at 1; by the third validation after it, at 4


class Losses(pl.Callback):
    """The unscaled losses of all training steps, taken by the module; their step and epoch."""

    def __init__(self) -> None:
        self.since: list[float] = []
        self.means: list[float | None] = []
        self.positions: list[tuple[int, int]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.means.append(sum(self.since) / len(self.since) if self.since else None)
            self.positions.append((trainer.global_step, trainer.current_epoch))
            self.since = []


class Observed(Scripted):
    """Tells `Losses` every loss before Lightning has touched it."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        for callback in self.trainer.callbacks:
            if isinstance(callback, Losses):
                callback.since.append(float(loss.detach()))
        return loss


# --- The record


def test_every_validation_is_recorded_with_step_epoch_and_value() -> None:
    record = EarlyStopping("val_loss", stop=False)
    assert record.best is None
    assert math.isinf(record.best_score)
    fit(record, LOSSES, max_epochs=5)
    assert values(record.validations) == LOSSES
    assert [one.step for one in record.validations] == [6, 12, 18, 24, 30]
    assert [one.epoch for one in record.validations] == [0, 1, 2, 3, 4]
    assert (record.best, float(record.best_score)) == (record.validations[4], 1.0)
    assert record.rounds == [record.validations]
    assert record.validations.rows()[1]["val_loss"] == 2.0


def test_the_best_is_the_first_of_equals_in_both_modes() -> None:
    record = EarlyStopping("val_loss", stop=False)
    fit(record, [3.0, 1.0, 1.0, 2.0], max_epochs=4)
    assert record.best is record.validations[1]
    largest = EarlyStopping("val_loss", mode="max", stop=False)
    fit(largest, [1.0, 3.0, 3.0, 2.0], max_epochs=4)
    assert largest.best is largest.validations[1]
    assert float(EarlyStopping("x", mode="max").best_score) == -math.inf


def test_the_trainer_finds_it() -> None:
    stopping = EarlyStopping("val_loss")
    fitter = trainer(stopping)
    assert fitter.early_stopping_callback is stopping
    assert isinstance(stopping, callbacks.EarlyStopping)
    assert stopping.state_key == callbacks.EarlyStopping("val_loss").state_key


def test_validations_within_epochs_and_before_the_first_step() -> None:
    # 6 batches, accumulated by 4: steps after batch 4 and at the end, 6. Validations after batches
    # 3 and 6: before any step, after two; in the second epoch after two, after four.
    record, watcher = EarlyStopping("val_loss", stop=False), Losses()
    fit(record, LOSSES, watcher, val_check_interval=3, accumulate_grad_batches=4, max_epochs=2)
    positions = [(one.step, one.epoch) for one in record.validations]
    assert positions == watcher.positions == [(0, 0), (2, 0), (2, 1), (4, 1)]
    assert values(record.validations) == LOSSES[:4]
    assert record.best is not None
    assert record.best.step == 2


def test_validations_of_some_epochs_only() -> None:
    record = EarlyStopping("val_loss", stop=False)
    fit(record, LOSSES, check_val_every_n_epoch=2, max_epochs=5)
    assert [(one.step, one.epoch) for one in record.validations] == [(12, 1), (24, 3)]
    # At the ends of epochs without a validation there is nothing new to look at.
    at_epoch_end = EarlyStopping(
        "val_loss", stop=False, check_on_train_epoch_end=True, strict=False
    )
    fit(at_epoch_end, LOSSES, check_val_every_n_epoch=2, max_epochs=5)
    assert list(at_epoch_end.validations) == list(record.validations)


def test_several_validations_in_an_epoch_and_one_look_at_its_end() -> None:
    stopping = EarlyStopping("val_loss", stop=False, check_on_train_epoch_end=True)
    fit(stopping, LOSSES, val_check_interval=3, max_epochs=2)
    assert values(stopping.validations) == [2.0, 2.0]  # the second and the fourth of LOSSES
    assert [one.step for one in stopping.validations] == [6, 12]
    # Where epochs go on after their last validation, it is that one which counts.
    fit(stopping, LOSSES, val_check_interval=4, max_epochs=3)
    assert values(stopping.validations) == LOSSES[:3]
    assert [(one.step, one.epoch) for one in stopping.validations] == [(4, 0), (10, 1), (16, 2)]


def test_sanity_checks_and_validations_outside_of_fit_do_not_count() -> None:
    record = EarlyStopping("val_loss", stop=False)
    module, fitter = fit(record, LOSSES, num_sanity_val_steps=2, max_epochs=2)
    assert values(record.validations) == [3.0, 2.0]
    before = record.state_dict()
    fitter.validate(module, loader(), verbose=False)
    trainer(record).validate(module, loader(), verbose=False)
    assert record.state_dict() == before


def test_fast_dev_run_neither_records_nor_stops() -> None:
    stopping = EarlyStopping("val_loss", patience=0, restore_best=True)
    _, fitter = fit(stopping, fast_dev_run=3)
    assert (len(stopping.validations), fitter.global_step) == (0, 3)


class Logging(Scripted):
    """Logs of all kinds while training."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("batch", float(batch_idx), on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("late", 10.0 - self.current_epoch)


@pytest.mark.parametrize(
    ("monitor", "at_epoch_end", "settings", "expected"),
    [
        # Of the epoch: (0 + 1 + ... + 5) / 6.
        ("batch_epoch", None, {}, [(6, 2.5), (12, 2.5)]),
        ("batch_epoch", True, {}, [(6, 2.5), (12, 2.5)]),
        ("late", None, {}, [(6, 10.0), (12, 9.0)]),
        ("late", True, {"check_val_every_n_epoch": 2}, [(6, 10.0), (12, 9.0)]),
        ("late", None, {"limit_val_batches": 0}, [(6, 10.0), (12, 9.0)]),
        (
            "late",
            None,
            {"limit_val_batches": 0, "check_val_every_n_epoch": 2},
            [(6, 10.0), (12, 9.0)],
        ),
        # Of a step, looked at when a validation ends: after batches 1, 3 and 5, counted from 0.
        (
            "batch_step",
            False,
            {"val_check_interval": 2},
            [(s, float((s - 1) % 6)) for s in range(2, 13, 2)],
        ),
        ("batch_step", None, {"val_check_interval": 3}, [(3, 2.0), (6, 5.0), (9, 2.0), (12, 5.0)]),
        ("val_loss", None, {}, [(6, 3.0), (12, 2.0)]),
        ("val_loss", False, {}, [(6, 3.0), (12, 2.0)]),
        ("val_loss", True, {}, [(6, 3.0), (12, 2.0)]),
    ],
)
def test_when_a_metric_is_looked_at(
    monitor: str, at_epoch_end: bool | None, settings: Any, expected: list[tuple[int, float]]
) -> None:
    record = EarlyStopping(monitor, stop=False, check_on_train_epoch_end=at_epoch_end)
    trainer(record, max_epochs=2, **settings).fit(Logging(LOSSES), loader(), loader())
    assert [(one.step, one.value) for one in record.validations] == expected


def test_a_missing_metric_is_an_error() -> None:
    message = (
        r"`monitor='loss'` is not available at epoch 0\. Logged: \['val_loss'\]\. Call "
        r"`self\.log\('loss', \.\.\.\)` in `validation_step`, or choose one of those\."
    )
    for at_epoch_end in (None, True, False):
        with pytest.raises(RuntimeError, match=message):
            fit(EarlyStopping("loss", check_on_train_epoch_end=at_epoch_end))


def test_a_missing_metric_does_not_count_where_that_is_wanted() -> None:
    stopping = EarlyStopping("loss", strict=False, patience=0, restore_best=True)
    _, fitter = fit(stopping, max_epochs=2)
    assert (len(stopping.validations), fitter.current_epoch) == (0, 2)


@pytest.mark.parametrize("returns", ["tensor", "mapping"])
@pytest.mark.parametrize(
    ("is_automatic", "accumulated"), [(True, 1), (True, 4), (False, 1)]
)  # Lightning refuses accumulation in manual optimization
def test_the_mean_training_loss_between_validations(
    is_automatic: bool, accumulated: int, returns: str
) -> None:
    class Module(Observed):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if not is_automatic:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss if returns == "tensor" else {"loss": loss}

    module, record, watcher = Module(LOSSES), EarlyStopping("val_loss", stop=False), Losses()
    module.automatic_optimization = is_automatic
    fitter = trainer(
        record,
        watcher,
        max_epochs=3,
        val_check_interval=2,
        accumulate_grad_batches=accumulated,
    )
    fitter.fit(module, loader(), loader())
    assert len(record.validations) == 9
    assert [one.train_loss for one in record.validations] == pytest.approx(watcher.means)


def test_losses_of_samples_count_by_their_mean() -> None:
    class Module(Observed):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx).detach()
            return loss * torch.linspace(0, 2, 3 + batch_idx)  # as many samples, mean 1

    record, watcher = EarlyStopping("val_loss", stop=False), Losses()
    trainer(record, watcher, max_epochs=1).fit(Module(LOSSES), loader(), loader())
    assert [one.train_loss for one in record.validations] == pytest.approx(watcher.means)


def test_the_mean_of_many_training_losses_keeps_its_digits() -> None:
    train_loss, fitter, loss = TrainLoss(), trainer(), torch.tensor(0.1)
    for _ in range(10_000):  # summed in float32 it is 0.01 % off, of which Prechelt's P is full
        train_loss.add(fitter, loss)
    assert train_loss.mean() == pytest.approx(float(loss), rel=1e-9)


def test_steps_without_a_loss_leave_no_mean() -> None:
    class Module(Scripted):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss if batch_idx % 3 == 1 else None

    record = EarlyStopping("val_loss", stop=False)
    module = Module(LOSSES)
    with pytest.warns(UserWarning, match="returned `None`"):
        trainer(record, max_epochs=1, val_check_interval=1).fit(module, loader(), loader())
    present = [one.train_loss is not None for one in record.validations]
    assert present == [False, True, False, False, True, False]


# --- Stopping


@pytest.mark.parametrize(
    ("arguments", "losses", "epochs", "reason", "lightnings", "message"),
    [
        (
            {"patience": 3},
            [*LOSSES[:4], 2.0],
            5,
            StopReason.PATIENCE,
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            "val_loss has not improved for 3 validations; the best was 2 at step 12",
        ),
        (
            {"patience": 2, "min_delta": 0.5},
            [3.0, 2.5, 2.5, 1.0],  # 2.5 is better by no *more* than 0.5
            3,
            StopReason.PATIENCE,
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            "val_loss has not improved for 2 validations; the best was 3 at step 6",
        ),
        (
            {"stopping_threshold": 2.25},
            LOSSES,
            2,
            StopReason.TARGET,
            EarlyStoppingReason.STOPPING_THRESHOLD,
            "val_loss = 2 has reached its target: < 2.25",
        ),
        (
            {"divergence_threshold": 9.0},
            [3.0, 9.0, 10.0],
            3,
            StopReason.DIVERGENCE,
            EarlyStoppingReason.DIVERGENCE_THRESHOLD,
            "val_loss = 10 diverges: > 9",
        ),
        (
            {},
            [3.0, math.nan],
            2,
            StopReason.NOT_FINITE,
            EarlyStoppingReason.NON_FINITE_METRIC,
            "val_loss = nan is not finite",
        ),
        (
            {"criterion": GeneralizationLoss(20)},
            LOSSES,
            3,
            StopReason.GENERALIZATION_LOSS,
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            "val_loss = 2.5 is 25 % above its minimum, 2: GL > 20",
        ),
        (
            {"criterion": SuccessiveRises(1, 2), "check_finite": False},
            [1.0, 1.0, math.nan, 2.0],
            4,
            StopReason.SUCCESSIVE_RISES,
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            "val_loss got worse in 1 successive strips of 2: 1, 2",
        ),
        (
            {"criterion": Patience(12, "step")},
            [3.0, 3.0, 3.0],
            3,
            StopReason.PATIENCE,
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            "val_loss has not improved for 12 steps; the best was 3 at step 6",
        ),
        (
            {"criterion": AllOf(Target(3.5), Patience(2, "epoch"))},
            [3.0, 3.0, 4.0, 3.0],
            4,
            StopReason.TARGET,
            EarlyStoppingReason.STOPPING_THRESHOLD,
            "val_loss = 3 has reached its target: < 3.5; and "
            "val_loss has not improved for 3 epochs; the best was 3 at step 6",
        ),
        (
            {"criterion": Patience(1), "stopping_threshold": 2.25},  # thresholds stand beside it
            [3.0, 2.0, 2.0],
            2,
            StopReason.TARGET,
            EarlyStoppingReason.STOPPING_THRESHOLD,
            "val_loss = 2 has reached its target: < 2.25",
        ),
    ],
)
def test_why_it_stops(
    arguments: Any,
    losses: list[float],
    epochs: int,
    reason: StopReason,
    lightnings: EarlyStoppingReason,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopping = EarlyStopping("val_loss", **arguments)
    assert (stopping.decision, stopping.stopping_reason) == (None, EarlyStoppingReason.NOT_STOPPED)
    assert stopping.stopping_reason_message is None
    with caplog.at_level(logging.INFO):
        _, fitter = fit(stopping, losses)
    assert fitter.current_epoch == epochs
    assert stopping.stopped_epoch == epochs - 1
    assert stopping.decision is not None
    assert (stopping.decision.reason, stopping.stopping_reason) == (reason, lightnings)
    assert stopping.decision.message == stopping.stopping_reason_message == message
    lines = [one.getMessage() for one in caplog.records if "EarlyStopping" in one.getMessage()]
    assert lines == [f"EarlyStopping: {message}. Training stops."]


def test_it_goes_on_to_the_end_where_nothing_says_stop() -> None:
    stopping = EarlyStopping("val_loss", patience=4)
    _, fitter = fit(stopping, LOSSES, max_epochs=5)
    assert fitter.current_epoch == 5
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    assert (stopping.stopped_epoch, stopping.stopping_reason_message) == (0, None)


def test_recording_alone_never_stops() -> None:
    record = EarlyStopping("val_loss", patience=0, stopping_threshold=9.0, stop=False)
    _, fitter = fit(record, [1.0, 2.0, math.nan], max_epochs=4)
    assert (fitter.current_epoch, record.decision, len(record.validations)) == (4, None, 4)


def test_nothing_is_latched_before_min_epochs() -> None:
    # Patience is exhausted at epoch 3 (counted from 0); after that every epoch improves.
    losses = [2.0, 1.0, 1.5, 1.6, 0.9, 0.8, 0.7, 0.6]
    stopping = EarlyStopping("val_loss", patience=2)
    _, fitter = fit(stopping, losses, min_epochs=6, max_epochs=8)
    assert (fitter.current_epoch, stopping.decision) == (8, None)
    # Within the last of these epochs, too: the fourth of six validations does not improve.
    within = EarlyStopping("val_loss", patience=1)
    losses = [4.0, 3.0, 2.0, 2.0, 1.5, 1.0, 0.9, 0.8, 0.7]
    _, fitter = fit(within, losses, min_epochs=2, max_epochs=3, val_check_interval=2)
    assert (fitter.global_step, within.decision) == (18, None)


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        # Losses never improve, so that patience 1 says stop from the second validation on.
        ({}, 12),
        ({"min_epochs": 4}, 24),
        ({"min_epochs": 2}, 12),
        ({"min_steps": 12}, 12),
        ({"min_steps": 13}, 18),  # decided at the next validation
        ({"min_epochs": 2, "min_steps": 20}, 24),
        ({"val_check_interval": 3}, 6),
        ({"val_check_interval": 2}, 4),
        ({"val_check_interval": 2, "min_epochs": 2}, 12),  # not at step 8 or 10 of its epoch
        ({"val_check_interval": 2, "min_steps": 7}, 8),
        ({"val_check_interval": 2, "min_epochs": 1, "min_steps": 7}, 8),
    ],
)
def test_min_epochs_and_min_steps(settings: Any, step: int) -> None:
    stopping = EarlyStopping("val_loss", patience=1)
    _, fitter = fit(stopping, **settings)
    assert fitter.global_step == step
    assert stopping.validations[-1].step == step


def test_min_epochs_with_data_of_unknown_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(torch.ones(6), torch.tensor(1))] * 4)

    stopping = EarlyStopping("val_loss", patience=1)
    fitter = trainer(stopping, max_epochs=9, min_epochs=3)
    fitter.fit(Scripted(), DataLoader(Stream(), batch_size=2), loader())
    assert fitter.current_epoch == 3


def test_criteria_over_several_metrics() -> None:
    # f1 is above 0.5 at the second and fourth validation; val_loss is stale by two at the fourth.
    class Module(Scripted):
        def __init__(self) -> None:
            super().__init__([3.0, 2.0, 2.5, 2.5, 2.5], f1=[0.1, 0.6, 0.4, 0.7])

    target = Target(0.5, "f1", "max")
    for criterion, epochs in [(AllOf(Patience(2), target), 4), (AnyOf(Patience(2), target), 2)]:
        stopping = EarlyStopping("val_loss", criterion=criterion)
        fitter = trainer(stopping, max_epochs=9)
        fitter.fit(Module(), loader(), loader())
        assert fitter.current_epoch == epochs


def test_prechelts_quotient_on_the_training_losses() -> None:
    class Module(Scripted):
        """Training losses 4, 2, 1, 1 by epoch; all that they change is a bias."""

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = torch.tensor([4.0, 2.0, 1.0, 1.0][self.current_epoch])
            return loss + 0 * self.net[3].bias.sum()

    # Strips of two: GL = 50 % and P = 1000 (6 / 4 - 1) = 500 at the second; P = 0 at the fourth.
    cases = [(ProgressQuotient(0.09, 2), 2), (ProgressQuotient(0.11, 2), 9), (NoProgress(1, 2), 4)]
    for criterion, epochs in cases:
        stopping = EarlyStopping("val_loss", criterion=criterion)
        fitter = trainer(stopping, max_epochs=4)
        fitter.fit(Module([2.0, 3.0]), loader(), loader())
        assert fitter.current_epoch == min(epochs, 4)
        assert (stopping.decision is None) == (epochs == 9)


def test_two_instances_with_metrics_of_their_own(tmp_path: Path) -> None:
    class Module(Scripted):
        def __init__(self) -> None:
            super().__init__(LOSSES, f1=[0.3, 0.2, 0.4, 0.2])

    first, second = EarlyStopping("val_loss"), EarlyStopping("f1", mode="max", stop=False)
    logger = loggers.TensorBoardLogger(tmp_path)
    fitter = trainer(first, second, logger=logger, max_epochs=4)
    fitter.fit(Module(), loader(), loader())
    charts = Board(logger.log_dir).charts()["Early stopping"]
    assert charts["Step of the best validation"] == ["best/f1/step", "best/val_loss/step"]
    board = Board(logger.log_dir)
    assert board.values("best/f1/step") == [6, 6, 18, 18]
    assert board.values("best/val_loss/step") == [6, 12, 12, 12]


def test_one_of_two_instances_stops() -> None:
    class Module(Scripted):
        def __init__(self) -> None:
            super().__init__(LOSSES, f1=[0.1, 0.3, 0.2, 0.2])

    first, second = EarlyStopping("val_loss"), EarlyStopping("f1", mode="max", patience=2)
    fitter = trainer(first, second, max_epochs=9)
    fitter.fit(Module(), loader(), loader())
    assert fitter.current_epoch == 4
    assert (first.decision, second.stopped_epoch) == (None, 3)
    assert first.best is first.validations[1]
    assert second.best is second.validations[1]
    assert first.state_key != second.state_key


def test_a_reused_instance_starts_anew() -> None:
    stopping = EarlyStopping("val_loss", patience=1, restore_best=True)
    _, first = fit(stopping, [0.5, 0.6])
    assert first.current_epoch == 2
    _, second = fit(stopping, [3.0, 2.0, 1.0, 1.5], max_epochs=4, val_check_interval=3)
    assert second.current_epoch == 2
    assert values(stopping.validations) == [3.0, 2.0, 1.0, 1.5]
    assert len(stopping.rounds) == 1
    _, third = fit(stopping, [3.0, 2.0], max_epochs=2)
    assert (third.current_epoch, stopping.decision, stopping.stopped_epoch) == (2, None, 0)


def test_fitting_on_with_the_same_trainer_goes_on_with_the_record() -> None:
    stopping = EarlyStopping("val_loss", patience=1)
    module, fitter = fit(stopping, [1.0, 2.0, 0.5, 0.4, 0.3])
    assert (fitter.current_epoch, len(stopping.validations)) == (2, 2)
    fitter.fit_loop.max_epochs = 4
    fitter.fit(module, loader(), loader())
    assert values(stopping.validations) == [1.0, 2.0, 0.5, 0.4]
    assert (stopping.decision, stopping.stopped_epoch) == (None, 0)  # this time it was not stopped


def test_rounds_of_pruning_are_separate() -> None:
    class Module(Scripted):
        """Each round falls, then stays, for longer and longer."""

        def on_validation_epoch_end(self) -> None:
            round_ = int(self.trainer.callback_metrics.get("round", 0))
            self.log("val_loss", max(5.0 + round_ - self.current_epoch, 3.0))

    stopping = EarlyStopping("val_loss", patience=2)
    pruning = IterativeMagnitudePruning(2)
    fitter = trainer(stopping, pruning, max_epochs=20)
    fitter.fit(Module(), loader(), loader())
    assert [values(one) for one in stopping.rounds] == [
        [5.0, 4.0, 3.0, 3.0, 3.0],
        [6.0, 5.0, 4.0, 3.0, 3.0, 3.0],
        [7.0, 6.0, 5.0, 4.0, 3.0, 3.0, 3.0],
    ]
    assert [one.stop_reason for one in pruning.history] == ["early_stopping"] * 3
    assert [one.epochs for one in pruning.history] == [5, 6, 7]
    for record, validations in zip(pruning.history, stopping.rounds, strict=True):
        assert validations.best is not None
        assert (record.best_value, record.best_step) == (
            validations.best.value,
            validations.best.step,
        )
        assert validations[0].step == 6
    assert stopping.validations is stopping.rounds[-1]
    assert stopping.best is stopping.rounds[-1].best


@pytest.mark.parametrize("rewind_step", [6, 9])
def test_late_rewinding_starts_the_record_at_the_rewind_point(rewind_step: int) -> None:
    stopping = EarlyStopping("val_loss", stop=False)
    pruning = IterativeMagnitudePruning(1, rewind_step=rewind_step)
    trainer(stopping, pruning, max_epochs=3).fit(Classifier(), loader(), loader())
    assert [[one.step for one in validations] for validations in stopping.rounds] == [
        [6, 12, 18],
        [12, 18],
    ]
    for record, validations in zip(pruning.history, stopping.rounds, strict=True):
        assert validations.best is not None
        assert record.best_value == validations.best.value
        assert record.best_step == validations.best.step


# --- What it leaves alone, and what it says


def test_recording_alone_changes_nothing() -> None:
    ends = []
    for extra in ([], [EarlyStopping("val_loss", stop=False)]):
        torch.manual_seed(3)
        module = Classifier()
        module.net.insert(2, torch.nn.Dropout(0.2))
        fitter = trainer(*extra, max_epochs=3, val_check_interval=2)
        fitter.fit(module, loader(shuffle=True), loader())
        ends.append((weights(module), torch.get_rng_state()))
    assert_equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def scalars(folder: Any, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def test_the_best_so_far_goes_to_the_loggers(tmp_path: Path) -> None:
    logger = loggers.TensorBoardLogger(tmp_path)
    fit(EarlyStopping("val_loss", stop=False), LOSSES, logger=logger, max_epochs=5)
    steps = [5, 11, 17, 23, 29]  # where Lightning logs the validations after steps 6, 12, ...
    assert [step for step, _ in scalars(logger.log_dir, "val_loss")] == steps
    best = [3.0, 2.0, 2.0, 2.0, 1.0]
    assert scalars(logger.log_dir, "best/val_loss") == list(zip(steps, best, strict=True))
    best_steps = [6.0, 12.0, 12.0, 12.0, 30.0]
    found = scalars(logger.log_dir, "best/val_loss/step")
    assert found == list(zip(steps, best_steps, strict=True))
    assert Board(logger.log_dir).charts()["Early stopping"] == {
        "Best val_loss": ["best/val_loss"],
        "Step of the best validation": ["best/val_loss/step"],
    }


def test_in_pruning_the_steps_of_the_loggers_go_on(tmp_path: Path) -> None:
    logger = loggers.TensorBoardLogger(tmp_path)
    stopping, pruning = EarlyStopping("val_loss", stop=False), IterativeMagnitudePruning(1)
    trainer(stopping, pruning, logger=logger, max_epochs=2).fit(
        Scripted([3.0, 2.0, 5.0, 6.0]), loader(), loader()
    )  # rewinding takes the module's count of validations back, so that 3 and 2 come again
    steps = [(5, 6.0), (11, 12.0), (17, 6.0), (23, 12.0)]
    assert scalars(logger.log_dir, "best/val_loss/step") == steps
    expected = [(5, 3.0), (11, 2.0), (17, 3.0), (23, 2.0)]
    assert scalars(logger.log_dir, "best/val_loss") == expected


def test_nothing_is_logged_as_long_as_nothing_is_best(tmp_path: Path) -> None:
    logger = loggers.TensorBoardLogger(tmp_path)
    stopping = EarlyStopping("val_loss", check_finite=False)
    fit(stopping, [math.nan, math.nan, 1.0], logger=logger, max_epochs=3)
    assert scalars(logger.log_dir, "best/val_loss") == [(17, 1.0)]


def test_improvements_are_told_where_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fit(EarlyStopping("val_loss", stop=False), LOSSES, max_epochs=5)
        assert not [one for one in caplog.records if "improved" in one.getMessage()]
        fit(EarlyStopping("val_loss", stop=False, verbose=True), LOSSES, max_epochs=5)
    assert [one.getMessage() for one in caplog.records if "improved" in one.getMessage()] == [
        "val_loss improved to 3 at step 6.",
        "val_loss improved from 3 to 2 at step 12.",
        "val_loss improved from 2 to 1 at step 30.",
    ]


def test_what_users_of_lightnings_callback_read() -> None:
    stopping = EarlyStopping("val_loss", patience=5, min_delta=0.5)
    fit(stopping, [3.0, 2.0, 1.75, 1.9], max_epochs=4)
    assert stopping.wait_count == 2  # 1.75 is better, but not by more than 0.5
    assert torch.equal(stopping.best_score, torch.tensor(1.75))
    assert stopping.monitor_op is torch.lt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "best"}, r"`mode` must be one of \['min', 'max'\], got 'best'\."),
        ({"patience": -1}, r"`patience` must be at least 0, got -1\."),
        ({"min_delta": -0.1}, r"`min_delta` must be at least 0, got -0\.1\."),
        (
            {"criterion": Patience(3), "patience": 4},
            r"Give `criterion`, or `patience` and `min_delta`, not both\.",
        ),
        ({"criterion": Patience(3), "min_delta": 0.1}, "not both"),
        (
            {"best_weights_path": "best.safetensors"},
            r"`best_weights_path` has no effect without `restore_best=True`\.",
        ),
        ({"criterion": GeneralizationLoss(5), "mode": "max"}, "GL is defined for errors"),
        ({"criterion": AnyOf(Patience(3), ProgressQuotient(5)), "mode": "max"}, "GL is defined"),
    ],
)
def test_arguments_out_of_range(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStopping("val_loss", **arguments)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_strategies_that_shard_weights_are_refused_for_restoring_only(strategy: Any) -> None:
    fitter = trainer()
    fitter.strategy.__class__ = strategy  # neither starts on a machine without GPUs
    message = rf"cannot copy the shards of {strategy.__name__}\. Use DDP, or ModelCheckpoint"
    with pytest.raises(ValueError, match=message):
        EarlyStopping("val_loss", restore_best=True).setup(fitter, Classifier(), "fit")
    EarlyStopping("val_loss").setup(fitter, Classifier(), "fit")
    EarlyStopping("val_loss", restore_best=True).setup(fitter, Classifier(), "validate")


def test_it_pickles_and_copies_before_and_after_a_fit() -> None:
    stopping = EarlyStopping("val_loss", criterion=AnyOf(Patience(3), Target(0.1)))
    pickle.loads(pickle.dumps(stopping))
    fit(stopping, LOSSES, max_epochs=5)
    for twin in (pickle.loads(pickle.dumps(stopping)), copy.deepcopy(stopping)):
        assert list(twin.validations) == list(stopping.validations)
        assert twin.best == stopping.best


# --- Several processes


@pytest.mark.distributed
def test_two_processes_decide_as_one(two_processes: Path) -> None:
    folder = two_processes / "early_stopping"
    results = [json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(2)]
    best = torch.load(folder / "at_step_6.pt", weights_only=True)
    for where in ("memory", "file"):
        check_agreement(results[0][where], results[1][where])
        for rank in range(2):
            assert_equal(torch.load(folder / f"{where}_{rank}.pt", weights_only=True), best)


def check_agreement(first: dict[str, Any], second: dict[str, Any]) -> None:
    # Rank 0 sees 4, 2, 1, 1, 1 and rank 1 sees 2, 2, 5, 5, 5: in the mean 3, 2, 3, 3.
    assert [row["value"] for row in first["rows"]] == [3.0, 2.0, 3.0, 3.0]
    assert [row["step"] for row in first["rows"]] == [3, 6, 9, 12]  # 24 samples a rank
    assert first["rows"] == second["rows"]
    means: Sequence[Any] = [first["own_means"], second["own_means"]]
    assert means[0] != means[1]
    expected = [(a + b) / 2 for a, b in zip(*means, strict=True)]
    assert [row["train_loss"] for row in first["rows"]] == pytest.approx(expected)
    assert first["stopped_at"] == second["stopped_at"] == 12
    assert first["decision"] == second["decision"]
    assert "has not improved for 2 validations; the best was 2 at step 6" in first["decision"]
