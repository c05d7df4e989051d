"""Iterative magnitude pruning with rewinding: several trainings in one fit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

from typing_extensions import override

from lightning_lth.callbacks import _arguments, _compatibility, _loggers, _recording, _rounds
from lightning_lth.callbacks._lightning import Callback
from lightning_lth.callbacks._pruning_state import PruningState
from lightning_lth.callbacks._rewinding import Rewinding
from lightning_lth.callbacks._trainer import is_fresh_start
from lightning_lth.callbacks.fixed_masks import FixedMasks
from lightning_lth.pruning import selection
from lightning_lth.pruning.masking import MaskKeeper, masked_parameters
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import prunable_parameters
from lightning_lth.pruning.scoring import Criterion, magnitude
from lightning_lth.pruning.sharding import reshard_

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

    from lightning_lth.pruning.history import History
    from lightning_lth.pruning.tickets import Ticket


@final
class IterativeMagnitudePruning(Callback):
    """Find a lottery ticket: train, prune the smallest weights, rewind the others, repeat.

    ``Trainer(max_epochs=...)`` or ``Trainer(max_steps=...)`` is the budget of *one* training. The
    callback runs ``rounds + 1`` trainings inside one ``fit``: round 0 is dense, and each later one
    prunes and rewinds first. Each has its own ``on_train_start`` and ``on_train_end``, starts with
    optimizers, schedulers, gradient scaler, buffers and counters of the rewind point, and ends with
    its budget or by EarlyStopping. Only the steps of the loggers go on. After ``fit`` the module
    has the weights of the last round. Pruned weights are exactly zero; no ``state_dict`` changes.

    Args:
        rounds: How often to prune; at least 1. One-shot pruning is ``rounds=1``.
        fraction: Share of the *surviving* weights to prune each time, in (0, 1).
        scope: ``"global"`` ranks all weights together, ``"layer"`` each parameter by itself.
        rewind_step: Optimizer step to rewind to; 0 is initialization. Must be less than the budget.
        rewind_epoch: Epoch to rewind to, instead of a step.
        rewind: ``"weights"`` goes back to everything of the rewind point; ``"learning_rate"`` to
            its learning rates alone; ``"none"`` (fine-tuning) goes on with the final learning rate.
            All for as many steps as the first round had after the rewind point.
        fractions: Glob patterns on parameter names to a fraction of their own; 0 never prunes. The
            first that matches counts. Parameters under one pattern are ranked among themselves.
        parameters: Glob patterns on parameter names that select what is pruned. Default: weights of
            linear, convolution, embedding, attention and recurrent layers, frozen ones excepted,
            and what layers of other libraries call ``weight``, if it has two dimensions or more.
        criterion: What is small; see ``lightning_lth.pruning.scoring``.
        repeat_data_order: Give every round the batches of the first in the same order. Needs an
            unshuffled loader or a sampler with ``set_epoch``. By default the order goes on.
        monitor: Metric whose best value and step are recorded. Default: that of EarlyStopping, of
            ModelCheckpoint, or ``"val_loss"``.
        mode: Whether the ``"min"`` or ``"max"`` of ``monitor`` is best; only if that is given.
        ticket_dir: Folder for a ticket of each round, ``round_00.safetensors`` and so on.
        empty_layers: ``"warn"`` of a round that leaves a layer without weights, or ``"refuse"`` it.

    Raises:
        TypeError, ValueError: If an argument is of another type, or out of its range.

    Examples:
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
        _arguments.check_at_least("rounds", rounds, 1)
        _arguments.check_rewind_point(rewind_step, rewind_epoch)
        _arguments.check_fractions(fraction, fractions)
        _arguments.check_function("criterion", criterion, "`pruning.scoring.magnitude`")
        _arguments.check_choice("scope", scope, ("global", "layer"))
        _arguments.check_choice("rewind", rewind, ("weights", "learning_rate", "none"))
        _arguments.check_mode(mode, monitor)
        _arguments.check_choice("empty_layers", empty_layers, ("warn", "refuse"))
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
        self._rewinding = self._new_rewinding()
        self._state = PruningState()
        self._keeper: MaskKeeper | None = None
        self._has_epoch_ended = False

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
        """Which weights survive in the present round; ``RuntimeError`` before the first."""
        if self._state.masks is None:
            raise RuntimeError("There are no masks before `trainer.fit` has started training.")
        return self._state.masks

    @property
    def ticket(self) -> Ticket:
        """The present masks with the weights of the rewind point; ``RuntimeError`` before that."""
        return self._state.ticket()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and take over how often the fit loop runs."""
        if stage != "fit":
            return
        _compatibility.refuse_incompatible(trainer, self, (type(self), FixedMasks), has_rounds=True)
        if is_fresh_start(trainer):
            self._state = PruningState()
        self._has_epoch_ended = False
        self._rewinding = self._new_rewinding()
        self._rewinding.start(trainer)
        _rounds.replace_fit_loop_run(trainer, partial(self._run_rounds, trainer))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the round in the progress display, and log it with the densities."""
        _rounds.show(trainer, self.round, self.rounds)
        _loggers.log_densities(trainer, self.round, self.masks)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let samplers that shuffle by epoch go on where the last round ended."""
        self._observe_epoch(trainer, is_last_time=True)
        self._rewinding.continue_data_order(trainer, self._state)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copy the rewind point when training comes to it."""
        if self._state.point is None and self._rewinding.is_due(trainer):
            self._rewinding.capture(trainer, self._state, for_file=self.ticket_dir is not None)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics, and whether the monitored one is the best of the round."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._observe(trainer, is_epoch_end=False)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse pruned weights that were written to; metrics wait, as the module may yet log."""
        assert self._keeper is not None
        self._keeper.check()
        self._has_epoch_ended = True

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics of the last epoch; the monitored one if it is one of training."""
        self._observe_epoch(trainer, is_last_time=True)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what is known by now, and whether the round has been ended, by early stopping say."""
        self._observe_epoch(trainer, is_last_time=False)
        checkpoint["callbacks"][self.state_key] |= self._state.observations()
        checkpoint["callbacks"][self.state_key]["is_round_over"] = _rounds.is_stopping(trainer)

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

    def _new_rewinding(self) -> Rewinding:
        return Rewinding(self.rewind, self.rewind_step, self.rewind_epoch, self.repeat_data_order)

    def _run_rounds(self, trainer: Trainer, train_once: Callable[[], None]) -> None:
        is_nested = self not in trainer.callbacks  # type: ignore[attr-defined]  # Lightning's tuner
        if is_nested or trainer.limit_train_batches == 0:
            train_once()
            return
        self._keeper = self._begin(trainer)
        while True:
            if not self._state.is_round_over:
                train_once()
            self._finish_round(trainer)
            if self.round >= self.rounds:
                return
            self._prune(trainer)
            self._rewinding.restore(trainer, self._state, self._keeper)

    def _begin(self, trainer: Trainer) -> MaskKeeper:
        module = trainer.lightning_module
        reshard_(module)
        _rounds.prepare_data(trainer)
        self._rewinding.check(trainer, self._state)
        if self._state.masks is None:
            _recording.warn_of_other_tickets(trainer, self.ticket_dir)
            self._state.masks = Masks.dense(prunable_parameters(module, self.parameters))
        parameters = masked_parameters(module, self.masks)
        selection.check_fractions(self.fractions, parameters)
        _compatibility.refuse_sharded_resume(self.masks, parameters)
        project = _compatibility.touches_gradients(trainer, module)
        keeper = MaskKeeper(parameters, trainer.optimizers, project=project)
        if self.round > 0:
            keeper.hold_(self.masks)
            self._rewinding.resume(trainer, self._state)
        return keeper

    def _observe(self, trainer: Trainer, *, is_epoch_end: bool) -> None:
        _recording.observe(trainer, self._state, self.monitor, self.mode, is_epoch_end=is_epoch_end)

    def _observe_epoch(self, trainer: Trainer, *, is_last_time: bool) -> None:
        if self._has_epoch_ended:
            self._observe(trainer, is_epoch_end=True)
            self._has_epoch_ended = not is_last_time

    def _finish_round(self, trainer: Trainer) -> None:
        if len((state := self._state).history) > state.round:
            return  # resumed from a checkpoint that was saved after the round
        self._rewinding.end_training(trainer, state)
        _recording.finish_round(trainer, state, self.monitor, self.ticket_dir)

    def _prune(self, trainer: Trainer) -> None:
        state, module = self._state, trainer.lightning_module
        assert state.point is not None
        reshard_(module)
        parameters = masked_parameters(module, self.masks)
        masks = selection.prune(
            self.criterion(parameters, state.point.weights_like(parameters)),
            self.masks,
            fraction=self.fraction,
            scope=self.scope,
            fractions=self.fractions,
        )
        _compatibility.check_emptied(self.masks, masks, self.round + 1, self.empty_layers)
        _compatibility.check_same_on_all_ranks(trainer, masks)
        state.start_next_round(masks, _rounds.num_epochs(trainer))

    def _release(self, trainer: Trainer) -> None:
        _rounds.restore_fit_loop_run(trainer)
        self._rewinding.release(trainer)
        if self._keeper is not None:
            self._keeper.release()
            self._keeper = None
