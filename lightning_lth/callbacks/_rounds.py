"""Private attributes of the Trainer that several trainings in one fit need; Lightning 2.6.

Lightning offers no public way to do that: `_FitLoop.run` is run several times here, and its
counters are set between the runs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, final

import torch

from lightning_lth.callbacks._lightning import lightning_of
from lightning_lth.callbacks._trainer import train_dataloaders

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint, Timer
    from lightning.pytorch.loops.loop import _Loop
    from lightning.pytorch.loops.progress import _Progress
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


@final
@dataclass(frozen=True)
class Position:
    """Where in a training the loops are, at the start of a batch.

    Attributes:
        epoch: Completed epochs.
        batch: Batches of the present epoch before this one.
        step: Optimizer steps, as ``trainer.global_step`` counts them.
        total_batches: Batches of all epochs before this one.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    total_batches: int = 0

    def state_dict(self) -> dict[str, int]:
        """The numbers by name."""
        return asdict(self)


def replace_fit_loop_run(trainer: Trainer, run: Callable[[Callable[[], None]], None]) -> None:
    """Make ``trainer.fit`` call ``run(train_once)``; ``train_once`` is Lightning's own fit loop."""
    train_once = trainer.fit_loop.run
    trainer.fit_loop.run = lambda: run(train_once)  # type: ignore[method-assign]


def restore_fit_loop_run(trainer: Trainer) -> None:
    """Undo ``replace_fit_loop_run``; does nothing where it was not called."""
    for loop, name in ((trainer.fit_loop, "run"), (trainer.fit_loop.epoch_loop, "reset")):
        vars(loop).pop(name, None)  # the instance attribute; the method of the class shows again


def prepare_data(trainer: Trainer) -> None:
    """Build the training data loader, as the fit loop does first of all."""
    trainer.fit_loop.setup_data()


def position_at_batch_start(trainer: Trainer) -> Position:
    """The position in ``on_train_batch_start``, where Lightning has counted the batch already."""
    epoch_loop = trainer.fit_loop.epoch_loop
    return Position(
        epoch=trainer.current_epoch,
        batch=epoch_loop.batch_progress.current.ready - 1,
        step=trainer.global_step,
        total_batches=epoch_loop.batch_progress.total.ready - 1,
    )


def set_position(trainer: Trainer, position: Position) -> None:
    """Set all counters of the fit loop as if training had come to ``position`` just now.

    The step of the loggers goes on counting, so that curves of one round follow the other's.
    """
    fit_loop = trainer.fit_loop
    epoch_loop = fit_loop.epoch_loop
    lightning_of(trainer).loops.utilities._reset_progress(fit_loop)
    for loop in (fit_loop, epoch_loop, epoch_loop.val_loop):
        _forget_restart(loop)
        loop.reset_restart_stage()
    _count(fit_loop.epoch_progress, position.epoch, position.epoch)
    _count(epoch_loop.batch_progress, position.total_batches, position.batch)
    automatic = epoch_loop.automatic_optimization.optim_progress.optimizer.step
    _count(automatic, position.step, 0)
    _count(epoch_loop.manual_optimization.optim_step_progress, position.step, 0)
    if position.batch > 0:  # only a loop that restarts keeps the batches its epoch has behind it
        epoch_loop._restarting = True
        _reset_quietly_once(epoch_loop)


def forget_results(trainer: Trainer) -> None:
    """Clear what the last round left: stop signal, metrics, when data and validation were last."""
    trainer.should_stop = False
    # For a validation every so many seconds.
    trainer._last_val_time = time.monotonic()  # type: ignore[attr-defined]
    trainer._logger_connector.reset_metrics()
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        trainer.fit_loop._last_train_dl_reload_epoch = float("-inf")
        trainer.fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch = float("-inf")


def restart_data(trainer: Trainer, position: Position, *, skip: bool, sampler_epoch: int) -> None:
    """Start a new pass over the training data at the start of a round.

    Args:
        trainer: Its data loader was built before.
        position: Where the round starts.
        skip: Draw and drop the batches of the epoch before ``position``. Otherwise the epoch is
            shortened by their number; where its length is unknown it cannot be.
        sampler_epoch: Given to samplers that shuffle by epoch.
    """
    if position.epoch > 0 and position.batch == 0:
        return  # the only case in which Lightning starts the pass by itself
    trainer.fit_loop.setup_data()  # reloads where the user asked for reloads
    set_sampler_epoch(trainer, sampler_epoch)
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    iter(fetcher)
    for _ in range(position.batch):
        if fetcher.length is None:
            next(fetcher)
        elif skip:
            assert fetcher.iterator is not None
            next(fetcher.iterator)


def call_at_next_epoch(trainer: Trainer, function: Callable[[], None]) -> None:
    """Call a function when Lightning has told samplers the next epoch, before the first batch.

    For a training that goes on inside an epoch, where Lightning calls no ``on_train_epoch_start``.
    """
    epoch_loop = trainer.fit_loop.epoch_loop

    def reset() -> None:
        del epoch_loop.reset
        function()
        epoch_loop.reset()

    epoch_loop.reset = reset  # type: ignore[method-assign]


def set_sampler_epoch(trainer: Trainer, epoch: int) -> None:
    """Tell every sampler that shuffles by epoch which epoch this is, as Lightning itself does."""
    for loader in train_dataloaders(trainer):
        lightning_of(trainer).loops.fit_loop._set_sampler_epoch(loader, epoch)


def show(trainer: Trainer, round_: int, last: int) -> None:
    """Let the user see the round: in the progress bar and, for names of files, as a metric."""
    trainer.callback_metrics["round"] = torch.tensor(float(round_))
    trainer.progress_bar_metrics["round"] = f"{round_}/{last}"  # type: ignore[assignment]


def num_epochs(trainer: Trainer) -> int:
    """Epochs of the present training, one that was cut short included.

    After a training that is ``trainer.current_epoch``, except in a fit that resumed from a
    checkpoint of the last epoch and had nothing left to train. Resumed from the last batch of an
    epoch, Lightning does not count the next one as started.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    return int(max(epochs.started, epochs.processed))  # type: ignore[attr-defined]


def is_stopping(trainer: Trainer) -> bool:
    """Whether the present training ends by request before its budget is used up."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def restart_model_checkpoint(callback: ModelCheckpoint) -> None:
    """Let a ModelCheckpoint begin anew, so that it keeps the best files of every round.

    Files on disk and the path of ``last.ckpt`` stay.
    """
    callback.best_k_models = {}
    callback.best_model_path = ""
    callback.best_model_score = None
    callback.current_score = None
    callback.kth_best_model_path = ""
    callback.kth_value = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
    callback._last_global_step_saved = 0  # otherwise it skips a step number it has seen before
    callback._last_checkpoint_saved = ""  # otherwise `on_train_end` writes no `last.ckpt` any more


def restart_timer(trainer: Trainer, callback: Timer) -> None:
    """Give every training the whole ``Trainer(max_time=...)``."""
    callback.load_state_dict({})  # no time is used up
    # Once it has ended, a Timer measures to the end of the first training for good.
    callback._end_time[lightning_of(trainer).trainer.states.RunningStage.TRAINING] = None


def _reset_quietly_once(epoch_loop: _TrainingEpochLoop) -> None:
    # Its warning about loaders that cannot resume is for the user's checkpoints, not for rewinding.
    def reset() -> None:
        del epoch_loop.reset
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint")
            epoch_loop.reset()

    epoch_loop.reset = reset  # type: ignore[method-assign]


def _forget_restart(loop: _Loop) -> None:
    # Not by the `restarting` property: with max_steps the fit loop turns False into True.
    loop._restarting = False
    loop._loaded_from_state_dict = False
    loop._resuming_from_checkpoint = False


def _count(progress: _Progress, total: int, current: int) -> None:
    for tracker, count in ((progress.total, total), (progress.current, current)):
        for name in vars(tracker):
            setattr(tracker, name, count)
