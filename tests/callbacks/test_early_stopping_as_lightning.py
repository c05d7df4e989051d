"""What Lightning's own tests ask of its EarlyStopping, asked of ours.

After tests/tests_pytorch/callbacks/test_early_stopping.py of Lightning 2.6, with scripted losses in
place of its mocks of private methods. On purpose these differ, and have tests of their own:

* `min_epochs` and `min_steps`: Lightning remembers a stop and carries it out when they are met, in
  the middle of an epoch if need be; ours decides afresh at each validation.
* A stopped run that is resumed does not train another epoch, and settings given now win over those
  of the checkpoint: Lightning's state has `patience` in it, ours has no settings.
* A state of Lightning's callback is not taken over, but warned of; ours holds the validations.
* The record is empty at the start of a fit and of a pruning round; Lightning's goes on.
* `check_on_train_epoch_end=None` looks at metrics of the validation when that ends, at any epoch.
* At the end of an epoch without a new validation an old value does not count again.
* Arguments that are out of range raise ValueError; negative `min_delta` or `patience` are such.
* Messages have another wording. They are logged even without `verbose`, which adds improvements.
* Where ranks log different values their mean decides; Lightning stops when one of the ranks would.
"""

from __future__ import annotations

import logging
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from lightning_lth import EarlyStopping
from tests.callbacks.modules import loader, trainer
from tests.callbacks.scripted import Scripted, fit

PATIENCE = pytest.mark.parametrize(
    ("losses", "patience", "last_epoch"),
    [
        ([6, 5, 5, 5, 5, 5], 3, 4),
        ([6, 5, 4, 4, 3, 3], 1, 3),
        ([6, 5, 6, 5, 5, 5], 3, 4),
    ],
)


class TrainLogging(Scripted):
    """Logs the script when training epochs end; a validation there is, and says nothing."""

    def on_validation_epoch_end(self) -> None:
        pass

    def on_train_epoch_end(self) -> None:
        for name, values in self.scripts.items():
            self.log(name, float(values[self.current_epoch]))


def test_state_key() -> None:
    key = EarlyStopping(monitor="val_loss").state_key
    assert key == "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"


def test_the_state_in_a_checkpoint_is_that_of_the_epoch_and_comes_back(tmp_path: Path) -> None:
    class Keep(pl.Callback):
        """The states at the ends of epochs, each with a checkpoint."""

        def __init__(self) -> None:
            self.states: list[Any] = []

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.states.append(trainer.early_stopping_callback.state_dict())
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    class Expect(pl.Callback):
        def __init__(self, state: Any) -> None:
            self.state = state

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert trainer.early_stopping_callback.state_dict() == self.state

    keep = Keep()
    fit(EarlyStopping("val_loss"), [4, 3, 2, 1], keep, max_epochs=4)
    assert len(keep.states) == 4
    for epoch in range(3):
        checkpoint = torch.load(tmp_path / f"{epoch}.ckpt", weights_only=True)
        stopping = EarlyStopping("val_loss")
        assert checkpoint["callbacks"][stopping.state_key] == keep.states[epoch]
        expect = Expect(keep.states[epoch])
        fit(stopping, [4, 3, 2, 1], expect, ckpt_path=tmp_path / f"{epoch}.ckpt", max_epochs=4)
        assert stopping.state_dict() == keep.states[3]


def test_one_look_an_epoch() -> None:
    stopping = EarlyStopping(monitor="val_loss", patience=9)
    _, fitter = fit(stopping, limit_train_batches=4, limit_val_batches=4, max_epochs=4)
    assert fitter.early_stopping_callback is stopping
    assert fitter.early_stopping_callbacks == [stopping]
    assert len(stopping.validations) == 4


@PATIENCE
def test_patience(losses: list[float], patience: int, last_epoch: int) -> None:
    stopping = EarlyStopping(monitor="val_loss", patience=patience, verbose=True)
    _, fitter = fit(stopping, losses, max_epochs=10)
    assert fitter.current_epoch - 1 == last_epoch


@pytest.mark.parametrize("validates", [True, False])
@PATIENCE
def test_patience_on_metrics_of_training(
    losses: list[float], patience: int, last_epoch: int, validates: bool
) -> None:
    module = TrainLogging(losses)
    stopping = EarlyStopping("val_loss", patience=patience, check_on_train_epoch_end=True)
    fitter = trainer(stopping, max_epochs=10)
    if not validates:
        module.validation_step = None  # type: ignore[assignment, method-assign]
    fitter.fit(module, loader(), loader() if validates else None)
    assert fitter.current_epoch - 1 == last_epoch


def test_pickling() -> None:
    stopping = EarlyStopping("foo")
    twin = pickle.loads(pickle.dumps(stopping))
    assert vars(twin).keys() == vars(stopping).keys()
    assert twin.state_dict() == stopping.state_dict()
    assert (twin.monitor, twin.patience) == ("foo", 3)


def test_without_validation_training_metrics_serve() -> None:
    module = TrainLogging([1.0, 0.95, 0.9])
    stopping = EarlyStopping("val_loss", 0.1, 0, check_on_train_epoch_end=True)
    module.validation_step = None  # type: ignore[assignment, method-assign]
    fitter = trainer(stopping, max_epochs=10)
    fitter.fit(module, loader())
    assert fitter.state.finished
    assert fitter.current_epoch == 2


@pytest.mark.parametrize(
    ("stopping_threshold", "divergence_threshold", "losses", "last_epoch"),
    [
        (None, None, [8, 4, 2, 3, 4, 5, 8, 10], 5),
        (2.9, None, [9, 8, 7, 6, 5, 6, 4, 3, 2, 1], 8),
        (None, 15.9, [9, 4, 2, 16, 32, 64], 3),
    ],
)
def test_thresholds(
    stopping_threshold: Any, divergence_threshold: Any, losses: list[float], last_epoch: int
) -> None:
    stopping = EarlyStopping(
        monitor="val_loss",
        stopping_threshold=stopping_threshold,
        divergence_threshold=divergence_threshold,
    )
    _, fitter = fit(stopping, losses)
    assert fitter.current_epoch - 1 == last_epoch


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_values_that_are_not_finite(value: float) -> None:
    stopping = EarlyStopping(monitor="val_loss", check_finite=True)
    _, fitter = fit(stopping, [4, 3, value, 2, 1], max_epochs=10)
    assert fitter.current_epoch - 1 == stopping.stopped_epoch == 2


@pytest.mark.parametrize(
    ("num_batches", "min_epochs", "min_steps", "epochs"),
    # The numbers of Lightning's test, where 3 * 4 = 12 and not 10 is its end, too, if epochs are
    # not cut off. Patience is over when the second epoch ends.
    [(3, 0, 10, 4), (5, 0, 10, 2), (3, 2, 0, 2), (3, 1, 10, 4), (3, 3, 10, 4), (5, 3, 10, 3)],
)
def test_min_epochs_and_min_steps(
    num_batches: int, min_epochs: int, min_steps: int, epochs: int
) -> None:
    stopping = EarlyStopping("val_loss", patience=1)
    _, fitter = fit(
        stopping, min_epochs=min_epochs, min_steps=min_steps, limit_train_batches=num_batches
    )
    assert fitter.should_stop
    assert (fitter.current_epoch, fitter.global_step) == (epochs, epochs * num_batches)


def test_mode_options() -> None:
    with pytest.raises(ValueError, match=r"`mode` must be .* got 'unknown_option'"):
        EarlyStopping("foo", mode="unknown_option")  # type: ignore[arg-type]


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("at_epoch_end", [None, True, False])
def test_one_of_several_callbacks_stops(at_epoch_end: bool | None, is_swapped: bool) -> None:
    # `val_loss` alone would stop after epoch 5, three after its best; `cba` never improves.
    scripts = {"losses": [8, 4, 2, 3, 4, 5, 8, 10], "cba": [0] * 8}
    module = TrainLogging(**scripts) if at_epoch_end else Scripted(**scripts)
    stoppers = [
        EarlyStopping("val_loss", check_on_train_epoch_end=at_epoch_end),
        EarlyStopping("cba", patience=3, check_on_train_epoch_end=at_epoch_end),
    ]
    fitter = trainer(*(reversed(stoppers) if is_swapped else stoppers), max_epochs=8)
    fitter.fit(module, loader(), loader())
    assert fitter.current_epoch - 1 == 3


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"val_check_interval": 0.5}, 6),  # two validations in an epoch of six
        ({"check_val_every_n_epoch": 2, "max_epochs": 5}, 24),  # two in four epochs
    ],
)
def test_validations_are_looked_at_where_they_are(settings: Any, steps: int) -> None:
    _, fitter = fit(EarlyStopping("val_loss", patience=1), **settings)
    assert fitter.global_step == steps


def test_values_with_superfluous_dimensions() -> None:
    class Module(Scripted):
        def on_validation_epoch_end(self) -> None:
            self.log("val_loss", torch.tensor([[[0.5]]]))

    stopping = EarlyStopping("val_loss")
    trainer(stopping, max_epochs=1).fit(Module(), loader(), loader())
    assert [one.value for one in stopping.validations] == [0.5]


@pytest.mark.parametrize(
    ("log_rank_zero_only", "world_size", "rank", "expected"),
    [
        (False, 1, 0, ["bar"]),
        (False, 2, 0, ["[rank: 0] bar"]),
        (False, 2, 1, ["[rank: 1] bar"]),
        (True, 1, 0, ["bar"]),
        (True, 2, 0, ["[rank: 0] bar"]),
        (True, 2, 1, []),
    ],
)
def test_what_ranks_log(
    log_rank_zero_only: bool,
    world_size: int,
    rank: int,
    expected: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    some_trainer: Any = SimpleNamespace(global_rank=rank, world_size=world_size)
    with caplog.at_level(logging.INFO):
        EarlyStopping._log_info(some_trainer, "bar", log_rank_zero_only)
    assert [one.getMessage() for one in caplog.records] == expected


@pytest.mark.parametrize(
    ("losses", "arguments", "reason", "words"),
    [
        ([10.0], {"patience": 2}, EarlyStoppingReason.PATIENCE_EXHAUSTED, "not improved"),
        (
            [5.0, 3.0, 1.0, 0.5],
            {"stopping_threshold": 0.6},
            EarlyStoppingReason.STOPPING_THRESHOLD,
            "target",
        ),
        (
            [1.0, 2.0, 5.0, 10.0],
            {"divergence_threshold": 8.0},
            EarlyStoppingReason.DIVERGENCE_THRESHOLD,
            "diverges",
        ),
        ([1.0, 0.5, math.nan], {}, EarlyStoppingReason.NON_FINITE_METRIC, "is not finite"),
        ([5.0, 4.0, 3.0], {"patience": 3}, EarlyStoppingReason.NOT_STOPPED, None),
    ],
)
def test_reasons_and_their_way_through_a_state(
    losses: list[float], arguments: Any, reason: EarlyStoppingReason, words: str | None
) -> None:
    max_epochs = 3 if words is None else 10
    stopping = EarlyStopping("val_loss", verbose=True, **arguments)
    fit(stopping, losses, max_epochs=max_epochs)
    twin = EarlyStopping("val_loss")
    twin.load_state_dict(stopping.state_dict())
    for one in (stopping, twin):
        assert one.stopping_reason is reason
        assert (one.stopping_reason_message is None) == (words is None)
        assert words is None or words in str(one.stopping_reason_message)
        assert (one.stopped_epoch > 0) == (words is not None)


def test_a_state_of_lightnings_callback() -> None:
    stopping = EarlyStopping("val_loss")
    state = {"wait_count": 2, "stopped_epoch": 5, "best_score": Tensor([0.5]), "patience": 3}
    with pytest.warns(UserWarning, match="Lightning's EarlyStopping"):
        stopping.load_state_dict(state)
    assert (stopping.stopping_reason, stopping.wait_count) == (EarlyStoppingReason.NOT_STOPPED, 0)
