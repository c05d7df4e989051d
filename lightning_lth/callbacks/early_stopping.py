"""Early stopping that records when the network was best, and can go back there."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_lth.callbacks import _arguments, _lightning, _loggers, _stopping, _trainer
from lightning_lth.callbacks._lightning import LightningEarlyStopping
from lightning_lth.callbacks._stopping_state import StoppingState
from lightning_lth.stopping import Criterion, Patience, Stop, Validation, Validations
from lightning_lth.stopping.best_weights import BestWeights

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


@final
class EarlyStopping(LightningEarlyStopping):
    """Record every validation and the best one; stop when a criterion says so.

    Takes the place of Lightning's callback: the same arguments mean the same, and
    ``trainer.early_stopping_callback`` is this one. The iteration of minimum validation loss, the
    papers' measure of how fast a network learns, is ``early_stopping.best.step``.

    Each validation is decided afresh from all before it. While ``min_epochs`` or ``min_steps`` keep
    the Trainer going nothing is decided, so a network that improves later is not stopped. Each
    pruning round and each ``fit`` from step 0 on starts with an empty record.

    Args:
        monitor: Name of the metric.
        min_delta: An improvement is larger than this.
        patience: Validations without improvement after which training stops.
        verbose: Log improvements, too.
        mode: Whether small (``"min"``) or large (``"max"``) values are good.
        strict: Fail if the metric is not logged; otherwise such a validation does not count.
        check_finite: Stop at NaN and infinity.
        stopping_threshold: Stop when the metric is better than this.
        divergence_threshold: Stop when the metric is worse than this.
        check_on_train_epoch_end: Look at the metric when epochs end (True) or when validations end
            (False). By default: metrics of the validation when it ends, others when epochs end.
        log_rank_zero_only: Log improvements on rank 0 only.
        stop: Whether to stop at all; False only records, as the papers do.
        criterion: Instead of ``patience`` and ``min_delta``; see ``lightning_lth.stopping``. The
            thresholds and ``check_finite`` stand beside it.
        restore_best: When training ends, stopped or not, go back to the parameters and buffers of
            the best validation. Not after an exception. With pruning, each round ends so.
        best_weights_path: File for those weights, safetensors; otherwise they are kept in memory,
            and in checkpoints.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_lth.stopping import GeneralizationLoss
        >>> record = EarlyStopping("val_loss", stop=False)
        >>> prechelt = EarlyStopping("val_loss", criterion=GeneralizationLoss(5), restore_best=True)
        >>> trainer = Trainer(callbacks=[record], max_epochs=10, logger=False)
        >>> trainer.early_stopping_callback is record
        True

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635: section 2 (early-stopping iteration); Prechelt
        1998, "Early stopping -- but when?".
    """

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        *,
        stop: bool = True,
        criterion: Criterion | None = None,
        restore_best: bool = False,
        best_weights_path: str | Path | None = None,
    ) -> None:
        # Not Lightning's constructor: it sets state that this callback derives from its record.
        _arguments.check_choice("mode", mode, ("min", "max"))
        if criterion is not None and (patience, min_delta) != (3, 0.0):
            raise ValueError("Give `criterion`, or `patience` and `min_delta`, not both.")
        if best_weights_path is not None and not restore_best:
            raise ValueError("`best_weights_path` has no effect without `restore_best=True`.")
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode: Literal["min", "max"] = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_on_train_epoch_end = check_on_train_epoch_end
        self.log_rank_zero_only = log_rank_zero_only
        self.stop = stop
        self.criterion = criterion
        self.restore_best = restore_best
        self.best_weights_path = best_weights_path
        self._state = self._new_state()
        self._criterion()(self.validations)  # only to check the arguments

    @property
    def validations(self) -> Validations:
        """The validations of the present round."""
        return self._state.rounds[-1]

    @property
    def rounds(self) -> list[Validations]:
        """The validations of each pruning round; without pruning there is one."""
        return list(self._state.rounds)

    @property
    def best(self) -> Validation | None:
        """The best validation of the present round, the first of equals."""
        return self.validations.best

    @property
    def decision(self) -> Stop | None:
        """Why the present round was stopped; None if it was not."""
        return self._state.decision

    # What users of Lightning's callback read; mypy sees attributes there.

    @property
    def best_score(self) -> torch.Tensor:  # type: ignore[override]
        """The best value of the present round; infinite before there is one."""
        worst = math.inf if self.mode == "min" else -math.inf
        return torch.tensor(worst if self.best is None else self.best.value)

    @property
    def wait_count(self) -> int:  # type: ignore[override]
        """Validations since the last improvement by more than ``min_delta``."""
        return self._patience().waited(self.validations)

    @property
    def stopped_epoch(self) -> int:  # type: ignore[override]
        """The epoch in which training was stopped; 0 if it was not."""
        return 0 if self.decision is None else self.validations[-1].epoch

    @property
    def stopping_reason(self) -> EarlyStoppingReason:  # type: ignore[override]
        """Lightning's name for the reason; any criterion on improvement is its patience."""
        return _stopping.lightning_reason(self.decision)

    @property
    def stopping_reason_message(self) -> str | None:  # type: ignore[override]
        """The reason in words."""
        return None if self.decision is None else self.decision.message

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start with an empty record; refuse what cannot be restored."""
        _lightning.follow()  # the Trainer's may have been imported after this was made
        if stage != "fit":
            return
        if self.restore_best:
            _stopping.refuse_restoring(trainer, self)
        if _trainer.is_fresh_start(trainer):
            self._state = self._new_state()

    def start_round(self) -> None:
        """Begin a new record; for callbacks that train more than once in a fit."""
        self._state = StoppingState([*self._state.rounds, Validations(self.monitor, self.mode)])

    def end_training(self, trainer: Trainer) -> None:
        """Go back to the best weights, once; for callbacks that end a training by themselves."""
        is_first, self._state.has_ended = not self._state.has_ended, True
        if is_first and self.restore_best and self.best is not None:
            kept, path = self._state.best_weights, self.best_weights_path
            weights = kept if path is None else _stopping.read_best_weights(trainer, Path(path))
            _stopping.restore_best_(trainer, weights, self.best)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not go on with a training that was stopped, unless the settings have changed."""
        self._state.begin_training()
        if trainer.fit_loop.is_resuming and _stopping.is_fitting(trainer):
            self._stop_if_due(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Add the loss to the mean between validations."""
        self._state.train_loss.add(trainer, outputs)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at a metric of the validation."""
        if not _stopping.is_fitting(trainer):
            return
        self._state.validated = _stopping.validated(trainer, self.monitor)
        if not _stopping.looks_at_epoch_end(trainer, self.monitor, self.check_on_train_epoch_end):
            self._check(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at a metric of the epoch; one of a validation only if there was a new one."""
        if (
            _stopping.is_fitting(trainer)
            and _stopping.looks_at_epoch_end(trainer, self.monitor, self.check_on_train_epoch_end)
            and _stopping.is_new(trainer, self.monitor, self._state.validated)
        ):
            self._check(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the best weights."""
        self.end_training(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to them where nothing was left to train, so that training did not end."""
        self.end_training(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The record of every round, and the best weights if they are in memory; no settings."""
        return self._state.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the record of the checkpoint."""
        if "rounds" in state_dict:
            self._state = StoppingState.from_state_dict(self.monitor, self.mode, state_dict)
        else:
            warnings.warn(
                "The checkpoint has the state of Lightning's EarlyStopping, which keeps no record "
                "of validations. The record starts here.",
                stacklevel=2,
            )

    def _check(self, trainer: Trainer) -> None:
        state, last = self._state, self._state.validated
        if not _stopping.is_logged(trainer, self.monitor, last, strict=self.strict):
            return
        validation = _stopping.observed(trainer, self.monitor, last, state.train_loss.mean())
        if self.restore_best:
            _stopping.check_weights(trainer, self.monitor, validation)
        before = self.best
        state.add(validation)
        best = self.best
        if best is validation:
            self._keep_best(trainer, before, best)
        if best is not None:
            _loggers.log_best(trainer, self.monitor, best)
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: Trainer) -> None:
        decision = self._criterion()(self.validations)
        if decision is None or not self.stop or not _trainer.can_stop(trainer):
            return
        self._state.decision = decision
        trainer.should_stop = True
        rank_zero_info(f"EarlyStopping: {decision.message}. Training stops.")

    def _criterion(self) -> Criterion:
        return _stopping.with_thresholds(
            self.criterion or self._patience(),
            check_finite=self.check_finite,
            stopping_threshold=self.stopping_threshold,
            divergence_threshold=self.divergence_threshold,
        )

    def _patience(self) -> Patience:
        return Patience(self.patience, min_delta=self.min_delta)

    def _keep_best(self, trainer: Trainer, before: Validation | None, best: Validation) -> None:
        if self.verbose:
            was = "" if before is None else f" from {before.value:.6g}"
            message = f"{self.monitor} improved{was} to {best.value:.6g} at step {best.step}."
            self._log_info(trainer, message, self.log_rank_zero_only)
        if not self.restore_best:
            return
        weights = BestWeights.of(trainer.lightning_module, step=best.step, value=best.value)
        if self.best_weights_path is None:
            self._state.best_weights = weights
        elif trainer.is_global_zero:
            weights.save(Path(self.best_weights_path))

    def _new_state(self) -> StoppingState:
        return StoppingState([Validations(self.monitor, self.mode)])
