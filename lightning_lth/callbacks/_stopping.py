"""What EarlyStopping reads from the trainer and does to it: when to look, at what, going back."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from lightning_lth.callbacks import _ranks, _strategies, _trainer
from lightning_lth.callbacks._lightning import imported_lightning, lightning_of
from lightning_lth.stopping import (
    AnyOf,
    Criterion,
    Divergence,
    NotFinite,
    Stop,
    StopReason,
    Target,
    Validation,
)
from lightning_lth.stopping.best_weights import BestWeights

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

    from lightning_lth.callbacks._stopping_state import Validated
    from lightning_lth.callbacks.early_stopping import EarlyStopping

_REASONS = {
    StopReason.TARGET: "STOPPING_THRESHOLD",
    StopReason.DIVERGENCE: "DIVERGENCE_THRESHOLD",
    StopReason.NOT_FINITE: "NON_FINITE_METRIC",
}


def with_thresholds(
    criterion: Criterion,
    *,
    check_finite: bool,
    stopping_threshold: float | None,
    divergence_threshold: float | None,
) -> Criterion:
    """A criterion after those of Lightning's callback, in its order."""
    rules: list[Criterion] = [NotFinite()] if check_finite else []
    if stopping_threshold is not None:
        rules.append(Target(stopping_threshold))
    if divergence_threshold is not None:
        rules.append(Divergence(divergence_threshold))
    return AnyOf(*rules, criterion)


def lightning_reason(decision: Stop | None) -> EarlyStoppingReason:
    """Lightning's name for why training was stopped, or that it was not."""
    reasons: type[EarlyStoppingReason]
    reasons = imported_lightning().callbacks.early_stopping.EarlyStoppingReason
    if decision is None:
        return reasons.NOT_STOPPED
    return reasons[_REASONS.get(decision.reason, "PATIENCE_EXHAUSTED")]


def is_fitting(trainer: Trainer) -> bool:
    """Whether this validation is part of training."""
    is_check = trainer.sanity_checking or _trainer.is_fast_dev_run(trainer)
    return trainer.state.fn == "fit" and not is_check


def looks_at_epoch_end(trainer: Trainer, monitor: str, is_wanted: bool | None) -> bool:
    """Whether to look at the metric when epochs end, rather than when validations end."""
    if is_wanted is not None:
        return is_wanted
    if not trainer.enable_validation or monitor in _trainer.means_of_training(trainer):
        return True
    interval = getattr(trainer, "val_check_interval", None)  # Lightning sets none if it is a time
    is_every_epoch = interval == 1.0 and trainer.check_val_every_n_epoch == 1
    is_of_validation = monitor in trainer.callback_metrics and not is_of_training(trainer, monitor)
    return is_every_epoch and not is_of_validation


def is_of_training(trainer: Trainer, monitor: str) -> bool:
    """Whether the metric is logged while training."""
    names = _trainer.training_metrics(trainer)
    return any(monitor in (name, f"{name}_step", f"{name}_epoch") for name in names)


def validated(trainer: Trainer, monitor: str) -> Validated:
    """Step and value of the validation that has just ended."""
    value = trainer.callback_metrics.get(monitor)
    return trainer.global_step, None if value is None else float(value)


def is_new(trainer: Trainer, monitor: str, last: Validated | None) -> bool:
    """When an epoch ends: whether the metric has been logged since it was last looked at."""
    return last is not None or not trainer.enable_validation or is_of_training(trainer, monitor)


def is_logged(trainer: Trainer, monitor: str, last: Validated | None, *, strict: bool) -> bool:
    """Whether every rank has the metric; where a fit resumes, of the validation before.

    Raises:
        RuntimeError: If it has not, and ``strict`` is set.
    """
    own = monitor in trainer.callback_metrics or (last is not None and last[1] is not None)
    has: bool = trainer.strategy.reduce_boolean_decision(own, all=True)
    if strict and not has:
        raise RuntimeError(
            f"`monitor={monitor!r}` is not available at epoch {trainer.current_epoch}. "
            f"Logged: {sorted(trainer.callback_metrics)}. Call `self.log({monitor!r}, ...)` in "
            f"`validation_step`, or choose one of those."
        )
    return has


def observed(
    trainer: Trainer, monitor: str, last: Validated | None, train_loss: float | None
) -> Validation:
    """The last validation, the same on every rank.

    Where ranks disagree on the monitored value, because it was logged without ``sync_dist``, their
    mean counts; the other metrics are those of rank 0.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics.pop("round", None)
    step = trainer.global_step
    if last is not None and not is_of_training(trainer, monitor):
        step, kept = last
        metrics |= {} if kept is None else {monitor: kept}
    loss = math.nan if train_loss is None else train_loss
    value, loss = _ranks.means(trainer, metrics[monitor], loss)
    train_loss = None if train_loss is None else loss
    metrics = {**_ranks.of_first(trainer, metrics), monitor: value}
    return Validation(step, trainer.current_epoch, value, train_loss, metrics)


def check_weights(trainer: Trainer, monitor: str, validation: Validation) -> None:
    """Refuse to keep weights of a later step than that of the validation.

    Raises:
        RuntimeError: If the epoch went on after it.
    """
    if validation.step != trainer.global_step:
        raise RuntimeError(
            f"`restore_best=True` needs the weights of the validation, but {monitor!r} of step "
            f"{validation.step} is looked at in step {trainer.global_step}, when the epoch ends. "
            f"Leave out `check_on_train_epoch_end`, or choose a `val_check_interval` that ends "
            f"with epochs."
        )


def refuse_restoring(trainer: Trainer, callback: EarlyStopping) -> None:
    """Refuse strategies under which no rank has whole weights, and who else chooses the last ones.

    Raises:
        ValueError: With the reason.
    """
    if _strategies.shards(trainer):
        raise ValueError(
            f"`restore_best=True` cannot copy the shards of {type(trainer.strategy).__name__}. "
            f"Use DDP, or ModelCheckpoint(monitor=..., save_top_k=1) and load its file."
        )
    of = lightning_of(trainer).callbacks
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, (of.StochasticWeightAveraging, of.WeightAveraging)):
            raise ValueError(
                f"`restore_best=True` cannot work beside {type(other).__name__}: training ends "
                f"with averaged weights, not with those of a validation. Use one of the two."
            )
        if other is not callback and isinstance(other, type(callback)) and other.restore_best:
            raise ValueError(
                f"`restore_best=True` cannot work beside another EarlyStopping of "
                f"{other.monitor!r}: each would go back to other weights. Set it on one of the two."
            )


def read_best_weights(trainer: Trainer, path: Path) -> BestWeights | None:
    """What rank 0 reads, on every rank; None, with a warning, where it cannot."""
    weights = None
    if trainer.is_global_zero:
        try:
            weights = BestWeights.load(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"The best weights cannot be read: {error}", stacklevel=2)
    return trainer.strategy.broadcast(weights)


def restore_best_(trainer: Trainer, weights: BestWeights | None, best: Validation) -> None:
    """Go back to the best weights; if these are those of another validation, only warn."""
    if weights is None or (weights.step, weights.value) != (best.step, best.value):
        held = "are not there"
        if weights is not None:
            held = f"are those of step {weights.step} ({weights.value:.6g})"
        warnings.warn(
            f"The best validation was at step {best.step} ({best.value:.6g}), but the kept weights "
            f"{held}. The weights stay as training left them.",
            stacklevel=2,
        )
        return
    weights.restore_(trainer.lightning_module)
