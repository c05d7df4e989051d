"""Iterative magnitude pruning with rewinding: several trainings in one fit."""

from __future__ import annotations

import copy
import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from typing_extensions import override

from lightning_lth.callbacks import _compatibility, _loggers, _trainer
from lightning_lth.callbacks._arguments import check_at_least, check_choice, check_fraction
from lightning_lth.callbacks._pruning_state import PruningState
from lightning_lth.callbacks.fixed_masks import FixedMasks
from lightning_lth.pruning.history import BestValue, History, RoundRecord, StopReason
from lightning_lth.pruning.masking import MaskKeeper
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import prunable_parameters
from lightning_lth.pruning.rewind import RewindPoint
from lightning_lth.pruning.scoring import Criterion, magnitude
from lightning_lth.pruning.selection import check_fractions, emptied, prune
from lightning_lth.pruning.sharding import reshard_
from lightning_lth.pruning.tickets import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning.pytorch import LightningModule, Trainer

_NEVER = 2**62  # as the frequency of a scheduler


@final
class IterativeMagnitudePruning(Callback):
    """Find a lottery ticket: train, prune the smallest weights, rewind the others, repeat.

    ``Trainer(max_epochs=...)`` or ``Trainer(max_steps=...)`` is the budget of *one* training. The
    callback runs ``rounds + 1`` trainings inside one ``fit``: round 0 trains the dense network, and
    each later round prunes and rewinds first. Each is a training of its own: it has its own
    ``on_train_start`` and ``on_train_end``, starts with the optimizers, learning-rate schedulers,
    gradient scaler and buffers of the rewind point, counts ``trainer.current_epoch`` and
    ``trainer.global_step`` from there, and ends when its budget is used up or a callback such as
    EarlyStopping ends it. Only the steps of the loggers go on over all rounds. After ``fit`` the
    module holds the trained weights of the last round.

    Pruned weights are exactly zero from the moment they are pruned. The module, its ``state_dict``
    and its optimizers stay as the user made them.

    Args:
        rounds: How often to prune; at least 1. One-shot pruning is ``rounds=1``.
        fraction: Share of the *surviving* weights to prune each time, in (0, 1).
        scope: ``"global"`` ranks all weights together, ``"layer"`` each parameter by itself.
        rewind_step: Optimizer step to rewind to; 0 is initialization. Must be less than the budget.
        rewind_epoch: Epoch to rewind to, instead of a step.
        rewind: ``"weights"`` goes back to everything of the rewind point. ``"learning_rate"`` keeps
            the trained weights and their optimizer state, and goes back to its learning rates.
            ``"none"`` (fine-tuning) goes on with the final learning rate, schedulers at rest, for
            as many steps as there were after the rewind point.
        fractions: Glob patterns on parameter names to a fraction of their own; 0 never prunes. The
            first that matches counts. Parameters under one pattern are ranked among themselves.
        parameters: Glob patterns on parameter names that select what is pruned. Default: weights of
            linear, convolution, embedding, attention and recurrent layers, frozen ones excepted.
        criterion: What is small; see :mod:`lightning_lth.pruning.scoring`.
        repeat_data_order: Give every round the batches of the first in the same order. Needs an
            unshuffled loader or a sampler with ``set_epoch``. By default the order goes on.
        monitor: Metric whose best value and step are recorded. Default: what EarlyStopping or else
            ModelCheckpoint monitors, with its mode; else ``"val_loss"`` where it is logged.
        mode: Whether the best value of ``monitor`` is its smallest (``"min"``) or largest (``"max"``).
        ticket_dir: Folder for one ticket file per finished round, ``round_00.safetensors`` and so
            on. By default none is written.
        empty_layers: What to do with a round that would leave a layer without weights: ``"warn"``
            or ``"refuse"``.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> pruning = IterativeMagnitudePruning(rounds=5, fraction=0.2, rewind_step=100)
        >>> trainer = Trainer(max_epochs=10, callbacks=[pruning], logger=False)

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635: section 1 (the rounds); Frankle et al. 2019,
        arXiv:1903.01611 (late rewinding); Renda et al. 2020, arXiv:2003.02389 (``rewind``).
    """

    def __init__(
        self,
        rounds: int,
        *,
        fraction: float = 0.2,
        scope: Literal["global", "layer"] = "global",
        rewind_step: int = 0,
        rewind_epoch: int | None = None,
        rewind: Literal["weights", "learning_rate", "none"] = "weights",
        fractions: Mapping[str, float] | None = None,
        parameters: Sequence[str] | None = None,
        criterion: Criterion = magnitude,
        repeat_data_order: bool = False,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        ticket_dir: str | Path | None = None,
        empty_layers: Literal["warn", "refuse"] = "warn",
    ) -> None:
        check_at_least("rounds", rounds, 1)
        check_at_least("rewind_step", rewind_step, 0)
        if rewind_epoch is not None:
            check_at_least("rewind_epoch", rewind_epoch, 0)
            if rewind_step != 0:
                raise ValueError(
                    "Give `rewind_step` or `rewind_epoch`, not both, "
                    f"got {rewind_step} and {rewind_epoch}."
                )
        check_fraction("fraction", fraction, is_zero_allowed=False)
        for pattern, share in (fractions or {}).items():
            check_fraction(f"fractions[{pattern!r}]", share, is_zero_allowed=True)
        check_choice("scope", scope, ("global", "layer"))
        check_choice("rewind", rewind, ("weights", "learning_rate", "none"))
        check_choice("mode", mode, ("min", "max"))
        check_choice("empty_layers", empty_layers, ("warn", "refuse"))
        self.rounds = rounds
        self.fraction = fraction
        self.scope: Literal["global", "layer"] = scope
        self.rewind_step = rewind_step
        self.rewind_epoch = rewind_epoch
        self.rewind = rewind
        self.fractions = fractions
        self.parameters = parameters
        self.criterion = criterion
        self.repeat_data_order = repeat_data_order
        self.monitor = monitor
        self.mode = mode
        self.ticket_dir = ticket_dir
        self.empty_layers = empty_layers
        self._state = PruningState()
        self._keeper: MaskKeeper | None = None
        self._frequencies: list[int] = []
        self._accumulate_grad_batches = 1

    @property
    def round(self) -> int:
        """The present round; 0 is dense."""
        return self._state.round

    @property
    def history(self) -> History:
        """One record for each finished round, oldest first."""
        return self._state.history

    @property
    def masks(self) -> Masks:
        """Which weights survive in the present round."""
        if self._state.masks is None:
            raise RuntimeError("There are no masks before `trainer.fit` has started training.")
        return self._state.masks

    @property
    def ticket(self) -> Ticket:
        """The present masks with the weights of the rewind point.

        Raises:
            RuntimeError: Before training has come to the rewind point.
        """
        state = self._state
        if state.point is None:
            raise RuntimeError("There is no ticket before training has come to the rewind point.")
        seed = os.environ.get("PL_GLOBAL_SEED")
        point = state.point.state_dict()
        return Ticket(
            masks=self.masks,
            weights={**point["weights"], **point["buffers"]},
            round=state.round,
            step=state.position.step,
            seed=int(seed) if seed is not None else None,
            metrics=state.best.metrics if state.best is not None else state.metrics,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and take over how often the fit loop runs."""
        if stage != "fit":
            return
        _compatibility.refuse_incompatible(trainer, self, (IterativeMagnitudePruning, FixedMasks))
        self._accumulate_grad_batches = trainer.accumulate_grad_batches
        if trainer.global_step == 0 and trainer.current_epoch == 0:
            self._state = PruningState()
        _trainer.replace_fit_loop_run(trainer, partial(self._run_rounds, trainer))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the round in the progress display, and log it with the densities."""
        trainer.callback_metrics["round"] = torch.tensor(float(self.round))
        trainer.progress_bar_metrics["round"] = f"{self.round}/{self.rounds}"  # type: ignore[assignment]
        _loggers.log_densities(trainer, self.round, self.masks)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let samplers that shuffle by epoch go on where the last round ended."""
        if self.round > 0 and not self.repeat_data_order:
            _trainer.set_sampler_epoch(trainer, self._sampler_epoch(trainer))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copy the rewind point when training comes to it."""
        if self._state.point is None and self._is_at_rewind_point(trainer):
            self._capture(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics, and whether the monitored one is the best of the round."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._observe(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics of the epoch; the monitored one where no validation runs."""
        if trainer.enable_validation:
            self._state.metrics = _numbers(trainer.callback_metrics)
        else:
            self._observe(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note in the checkpoint whether the round has been ended, by early stopping say."""
        checkpoint["callbacks"][self.state_key]["is_round_over"] = _trainer.is_stopping(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Round, masks, rewind point and history, as tensors, numbers and strings."""
        return self._state.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the round of the checkpoint."""
        self._state = PruningState.from_state_dict(state_dict)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take every hook away; Lightning does not call ``teardown`` then."""
        self._release(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take every hook away."""
        self._release(trainer)

    def _run_rounds(self, trainer: Trainer, train_once: Callable[[], None]) -> None:
        is_nested = self not in trainer.callbacks  # type: ignore[attr-defined]  # Lightning's tuner
        if is_nested or trainer.limit_train_batches == 0:
            train_once()
            return
        self._begin(trainer)
        while True:
            if not self._state.is_round_over:
                train_once()
            self._finish_round(trainer)
            if self.round >= self.rounds:
                return
            self._prune(trainer)
            self._rewind(trainer)

    def _begin(self, trainer: Trainer) -> None:
        module = trainer.lightning_module
        reshard_(module)
        _trainer.prepare_data(trainer)
        self._check_budget(trainer)
        if self.repeat_data_order:
            _compatibility.check_order_repeats(_trainer.train_dataloaders(trainer))
        parameters = prunable_parameters(module, self.parameters)
        check_fractions(self.fractions, parameters)
        if self._state.masks is None:
            self._state.masks = Masks.dense(parameters)
        self._state.masks.check_matches(parameters)
        self._keeper = MaskKeeper(
            parameters,
            trainer.optimizers,
            project=_compatibility.touches_gradients(trainer, module),
        )
        if self.round > 0:
            self._keeper.hold_(self._state.masks)
            self._rest_schedulers(trainer)

    def _check_budget(self, trainer: Trainer) -> None:
        budget_steps, budget_epochs = trainer.max_steps, trainer.max_epochs
        if not trainer.fast_dev_run:
            if 0 <= budget_steps <= self.rewind_step:
                raise ValueError(
                    f"`rewind_step` must be less than `Trainer(max_steps={budget_steps})`, "
                    f"the budget of one training, got {self.rewind_step}."
                )
            if self.rewind_epoch is not None and 0 <= (budget_epochs or -1) <= self.rewind_epoch:
                raise ValueError(
                    f"`rewind_epoch` must be less than `Trainer(max_epochs={budget_epochs})`, "
                    f"the budget of one training, got {self.rewind_epoch}."
                )
        is_past = trainer.global_step > self.rewind_step and self.rewind_epoch is None
        if self._state.point is None and is_past:
            raise RuntimeError(
                f"Training starts at step {trainer.global_step}, behind `rewind_step="
                f"{self.rewind_step}`, and the checkpoint holds no rewind point. Give a "
                "`rewind_step` that is still to come, or start from a checkpoint of this callback."
            )

    def _is_at_rewind_point(self, trainer: Trainer) -> bool:
        if trainer.fast_dev_run:
            return True
        if self.rewind_epoch is not None:
            return trainer.current_epoch == self.rewind_epoch
        return trainer.global_step >= self.rewind_step

    def _capture(self, trainer: Trainer) -> None:
        state = self._state
        reshard_(trainer.lightning_module)
        state.point = RewindPoint.capture(
            trainer.lightning_module,
            trainer.optimizers,
            _schedulers(trainer),
            trainer.precision_plugin,
        )
        state.position = _trainer.position_at_batch_start(trainer)
        state.early_stopping = {
            callback.state_key: copy.deepcopy(callback.state_dict())
            for callback in trainer.early_stopping_callbacks
        }

    def _observe(self, trainer: Trainer) -> None:
        state = self._state
        state.metrics = _numbers(trainer.callback_metrics)
        monitor, mode = self._monitored(trainer)
        value = state.metrics.get(monitor)
        if value is not None and BestValue.is_better(value, state.best, mode):
            state.best = BestValue(monitor, value, trainer.global_step, dict(state.metrics))

    def _monitored(self, trainer: Trainer) -> tuple[str, str]:
        if self.monitor is not None:
            return self.monitor, self.mode
        callbacks = [*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks]
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            if monitor is not None:
                return monitor, getattr(callback, "mode", "min")
        return "val_loss", "min"

    def _finish_round(self, trainer: Trainer) -> None:
        state = self._state
        if len(state.history) > state.round:
            return  # resumed from a checkpoint that was saved after the round
        if state.point is None:
            raise RuntimeError(
                f"Round 0 ended at step {trainer.global_step}, epoch {trainer.current_epoch}, "
                f"before the rewind point (`rewind_step={self.rewind_step}`, "
                f"`rewind_epoch={self.rewind_epoch}`). Rewind to an earlier one."
            )
        best = state.best
        if self.monitor is not None and best is None and not trainer.fast_dev_run:
            warnings.warn(
                f"`monitor={self.monitor!r}` was not logged in round {self.round}. "
                f"Logged: {sorted(state.metrics)}.",
                stacklevel=2,
            )
        state.history.append(
            RoundRecord(
                round=state.round,
                density=self.masks.density,
                layer_densities=self.masks.densities(),
                steps=trainer.global_step,
                epochs=_trainer.num_epochs(trainer),
                stop_reason=self._stop_reason(trainer),
                monitor=best.monitor if best is not None else None,
                best_value=best.value if best is not None else None,
                best_step=best.step if best is not None else None,
                best_metrics=best.metrics if best is not None else {},
                metrics=state.metrics,
            )
        )
        self._save_ticket(trainer)
        _loggers.add_figures(trainer, state.history)

    def _stop_reason(self, trainer: Trainer) -> StopReason:
        if self._state.is_round_over or _trainer.is_stopping(trainer):
            has_stopped = any(c.stopped_epoch > 0 or c.stopping_reason.value > 0 for c in trainer.early_stopping_callbacks)
            return "early_stopping" if has_stopped else "should_stop"
        is_at_max_steps = 0 <= trainer.max_steps <= trainer.global_step
        return "max_steps" if is_at_max_steps else "max_epochs"

    def _save_ticket(self, trainer: Trainer) -> None:
        if self.ticket_dir is None or trainer.fast_dev_run:
            return
        ticket = self.ticket  # gathers shards: on every rank
        if trainer.is_global_zero:
            ticket.save(Path(self.ticket_dir) / f"round_{self.round:02d}.safetensors")

    def _prune(self, trainer: Trainer) -> None:
        state, module = self._state, trainer.lightning_module
        assert state.point is not None
        reshard_(module)
        parameters = prunable_parameters(module, self.parameters)
        scores = self.criterion(parameters, state.point.weights_like(parameters))
        masks = prune(
            scores, self.masks, fraction=self.fraction, scope=self.scope, fractions=self.fractions
        )
        self._check_empty(masks)
        _check_same_on_all_ranks(trainer, masks)
        state.masks = masks
        state.round += 1
        state.num_epochs_before += _trainer.num_epochs(trainer)
        state.is_round_over, state.best, state.metrics = False, None, {}

    def _check_empty(self, masks: Masks) -> None:
        newly_empty = [name for name in emptied(masks) if name not in emptied(self.masks)]
        if not newly_empty:
            return
        message = (
            f"Round {self.round + 1} prunes every weight of {newly_empty}. Use `scope='layer'`, or "
            "give the layer a smaller fraction of its own in `fractions`."
        )
        if self.empty_layers == "refuse":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)

    def _rewind(self, trainer: Trainer) -> None:
        state = self._state
        assert state.point is not None
        assert self._keeper is not None
        for optimizer in trainer.optimizers:
            optimizer.zero_grad()
        if self.rewind == "weights":
            state.point.restore_(
                trainer.lightning_module,
                trainer.optimizers,
                _schedulers(trainer),
                trainer.precision_plugin,
            )
        elif self.rewind == "learning_rate":
            state.point.restore_schedule_(trainer.optimizers, _schedulers(trainer))
        self._rest_schedulers(trainer)
        self._keeper.hold_(self.masks)
        self._restart_callbacks(trainer)
        trainer.accumulate_grad_batches = self._accumulate_grad_batches
        _trainer.forget_results(trainer)
        _trainer.set_position(trainer, state.position)
        _trainer.restart_data(
            trainer,
            state.position,
            skip=self.repeat_data_order,
            sampler_epoch=self._sampler_epoch(trainer),
        )

    def _restart_callbacks(self, trainer: Trainer) -> None:
        for callback in trainer.early_stopping_callbacks:
            callback.load_state_dict(copy.deepcopy(self._state.early_stopping[callback.state_key]))
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint):
                _trainer.restart_model_checkpoint(checkpoint)

    def _sampler_epoch(self, trainer: Trainer) -> int:
        epochs_before = 0 if self.repeat_data_order else self._state.num_epochs_before
        return epochs_before + trainer.current_epoch

    def _rest_schedulers(self, trainer: Trainer) -> None:
        if self.rewind != "none" or self._frequencies:
            return
        self._frequencies = [config.frequency for config in trainer.lr_scheduler_configs]
        for config in trainer.lr_scheduler_configs:
            config.frequency = _NEVER

    def _release(self, trainer: Trainer) -> None:
        _trainer.restore_fit_loop_run(trainer)
        if self._keeper is not None:
            self._keeper.release()
            self._keeper = None
        if self._frequencies:
            for config, frequency in zip(
                trainer.lr_scheduler_configs, self._frequencies, strict=True
            ):
                config.frequency = frequency
            self._frequencies = []


def _schedulers(trainer: Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name != "round"}


def _check_same_on_all_ranks(trainer: Trainer, masks: Masks) -> None:
    if trainer.world_size == 1:
        return
    fingerprint = torch.tensor(int(masks.fingerprint()[:12], 16), device=trainer.strategy.root_device)
    if bool((trainer.strategy.all_gather(fingerprint) != fingerprint).any()):
        raise RuntimeError(
            "The ranks would prune different weights, so their weights differ. "
            "Initialize all ranks alike (`seed_everything`), and use no rank-dependent criterion."
        )
