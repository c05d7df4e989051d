"""When and how a pruning callback copies its rewind point, and goes back to it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

from lightning_lth.callbacks import _compatibility, _rates, _rounds, _trainer
from lightning_lth.callbacks._lightning import lightning_of
from lightning_lth.callbacks.early_stopping import EarlyStopping
from lightning_lth.pruning.rewind import RewindPoint
from lightning_lth.pruning.sharding import reshard_

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_lth.callbacks._pruning_state import PruningState
    from lightning_lth.pruning.masking import MaskKeeper


@final
@dataclass
class Rewinding:
    """The rewinding of one callback in one fit.

    Attributes:
        mode: What goes back; see ``IterativeMagnitudePruning(rewind=...)``.
        step: Optimizer step of the rewind point, if ``epoch`` is ``None``.
        epoch: Epoch of the rewind point.
        repeats_data_order: Whether every round has the order of the first.
    """

    mode: Literal["weights", "learning_rate", "none"]
    step: int
    epoch: int | None
    repeats_data_order: bool
    _accumulate_grad_batches: int = 1
    _early_stopping: dict[str, Any] = field(default_factory=dict)
    _frequencies: list[int] = field(default_factory=list)

    def start(self, trainer: Trainer) -> None:
        """Remember what callbacks change in the course of a round."""
        self._accumulate_grad_batches = trainer.accumulate_grad_batches
        self._early_stopping = _states_of_stoppers(trainer)

    def check(self, trainer: Trainer, state: PruningState) -> None:
        """Refuse a rewind point that training cannot come to, and data that cannot repeat."""
        if self.repeats_data_order:
            _compatibility.check_order_repeats(_trainer.train_dataloaders(trainer))
        if _trainer.is_fast_dev_run(trainer):
            return
        self._check_budget(trainer)
        if state.point is None and self._is_behind(trainer):
            raise RuntimeError(
                f"Training starts at step {trainer.global_step}, epoch {trainer.current_epoch}, "
                f"behind the rewind point ({self}), which the checkpoint does not hold. Rewind to "
                "a step that is still to come, or start from a checkpoint of this callback."
            )

    def _check_budget(self, trainer: Trainer) -> None:
        """Refuse a rewind point behind the end of a training."""
        if 0 <= trainer.max_steps <= self.step:
            raise ValueError(
                f"`rewind_step` must be less than `Trainer(max_steps={trainer.max_steps})`, "
                f"the budget of one training, got {self.step}."
            )
        max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        if 0 <= (steps := _num_steps(trainer, max_epochs)) <= self.step and self.epoch is None:
            raise ValueError(
                f"`rewind_step` must be less than the budget of one training, {steps} steps in "
                f"`Trainer(max_epochs={max_epochs})`, got {self.step}."
            )
        if self.epoch is not None and 0 <= max_epochs <= self.epoch:
            raise ValueError(
                f"`rewind_epoch` must be less than `Trainer(max_epochs={max_epochs})`, "
                f"the budget of one training, got {self.epoch}."
            )

    def is_due(self, trainer: Trainer) -> bool:
        """Whether training is at the rewind point; asked at the start of each batch."""
        if _trainer.is_fast_dev_run(trainer):
            return True
        if self.epoch is not None:
            return trainer.current_epoch == self.epoch
        return trainer.global_step >= self.step

    def capture(self, trainer: Trainer, state: PruningState, *, for_file: bool) -> None:
        """Copy the rewind point; refuse one that a ticket file cannot hold, if there will be one.

        Raises:
            ValueError: At once, rather than when a whole training has passed.
        """
        reshard_(trainer.lightning_module)
        state.point = RewindPoint.capture(*_parts(trainer))
        state.position = _rounds.position_at_batch_start(trainer)
        state.early_stopping = _states_of_stoppers(trainer)
        if for_file:
            state.ticket()

    def _check_captured(self, trainer: Trainer, state: PruningState) -> None:
        """Refuse to end a round before the rewind point."""
        if state.point is None:
            raise RuntimeError(
                f"Round 0 ended at step {trainer.global_step}, epoch {trainer.current_epoch}, "
                f"before the rewind point ({self}). Rewind to an earlier one."
            )

    def end_training(self, trainer: Trainer, state: PruningState) -> None:
        """Have what ends a training done also where a resumed round had nothing left to train."""
        self._check_captured(trainer, state)
        for stopper in trainer.early_stopping_callbacks:
            if isinstance(stopper, EarlyStopping):
                stopper.end_training(trainer)

    def restore(self, trainer: Trainer, state: PruningState, keeper: MaskKeeper) -> None:
        """Go back, with the present masks, to where the next training starts."""
        assert state.point is not None
        assert state.masks is not None
        for optimizer in trainer.optimizers:
            optimizer.zero_grad()
        if self.mode == "weights":
            state.point.restore_(*_parts(trainer))
        elif self.mode == "learning_rate":
            state.point.restore_schedule_(trainer.optimizers, _schedulers(trainer))
        self.rest_schedulers(trainer)
        keeper.hold_(state.masks)
        _restart_callbacks(trainer, self._early_stopping | state.early_stopping)
        trainer.accumulate_grad_batches = self._accumulate_grad_batches
        _rounds.forget_results(trainer)
        _rounds.set_position(trainer, state.position)
        _rounds.restart_data(
            trainer,
            state.position,
            skip=self.repeats_data_order,
            sampler_epoch=self._sampler_epoch(trainer, state),
        )

    def resume(self, trainer: Trainer, state: PruningState) -> None:
        """Go on in a round after the first, from a checkpoint."""
        self.rest_schedulers(trainer)
        _rounds.call_at_next_epoch(trainer, partial(self.continue_data_order, trainer, state))

    def continue_data_order(self, trainer: Trainer, state: PruningState) -> None:
        """Let samplers that shuffle by epoch go on where the last round ended."""
        if state.round > 0 and not self.repeats_data_order:
            _rounds.set_sampler_epoch(trainer, self._sampler_epoch(trainer, state))

    def rest_schedulers(self, trainer: Trainer) -> None:
        """Stop the schedulers where they are, if fine-tuning is the mode."""
        if self.mode == "none" and not self._frequencies:
            self._frequencies = [config.frequency for config in trainer.lr_scheduler_configs]
            for config in trainer.lr_scheduler_configs:
                config.frequency = _rates.NEVER

    def release(self, trainer: Trainer) -> None:
        """Let stopped schedulers go again."""
        for config, frequency in zip(trainer.lr_scheduler_configs, self._frequencies, strict=False):
            config.frequency = frequency
        self._frequencies = []

    def __str__(self) -> str:
        epoch, step = self.epoch, self.step
        return f"`rewind_step={step}`" if epoch is None else f"`rewind_epoch={epoch}`"

    def _is_behind(self, trainer: Trainer) -> bool:
        if self.epoch is not None:
            return trainer.current_epoch > self.epoch
        return trainer.global_step > self.step

    def _sampler_epoch(self, trainer: Trainer, state: PruningState) -> int:
        epochs_before = 0 if self.repeats_data_order else state.num_epochs_before
        return epochs_before + trainer.current_epoch


def _num_steps(trainer: Trainer, num_epochs: int) -> int:
    """How many optimizer steps the epochs can have at most; -1 if that is not known before."""
    num_batches = trainer.num_training_batches
    if not trainer.lightning_module.automatic_optimization or math.isinf(num_batches):
        return -1
    if num_epochs < 0 or trainer.reload_dataloaders_every_n_epochs > 0:  # type: ignore[attr-defined]
        return -1
    return num_epochs * math.ceil(num_batches / trainer.accumulate_grad_batches)


def _parts(trainer: Trainer) -> tuple[Any, Any, Any, Any]:
    return (
        trainer.lightning_module,
        trainer.optimizers,
        _schedulers(trainer),
        trainer.precision_plugin,
    )


def _schedulers(trainer: Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _states_of_stoppers(trainer: Trainer) -> dict[str, Any]:
    """The states of Lightning's EarlyStopping callbacks by key; ours restart themselves."""
    return {
        callback.state_key: copy.deepcopy(callback.state_dict())
        for callback in trainer.early_stopping_callbacks
        if not isinstance(callback, EarlyStopping)
    }


def _restart_callbacks(trainer: Trainer, early_stopping: dict[str, Any]) -> None:
    for stopper in trainer.early_stopping_callbacks:
        if isinstance(stopper, EarlyStopping):
            stopper.start_round()
            continue
        stopper.load_state_dict(copy.deepcopy(early_stopping[stopper.state_key]))
    kinds = lightning_of(trainer).callbacks
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, kinds.ModelCheckpoint):
            _rounds.restart_model_checkpoint(callback)
        if isinstance(callback, kinds.Timer):
            _rounds.restart_timer(trainer, callback)
