"""What is remembered of a round: its metrics, its best validation, and how it ended."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_lth.callbacks import _loggers, _ranks, _rounds, _stopping, _trainer
from lightning_lth.pruning.history import BestValue, RoundEnd, RoundRecord

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_lth.callbacks._pruning_state import PruningState


def _monitored(trainer: Trainer, monitor: str | None, mode: str) -> tuple[str, str]:
    """The metric whose best value counts and its mode: given, or that of another callback."""
    if monitor is not None:
        return monitor, mode
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        name = getattr(callback, "monitor", None)
        if name is not None:
            return name, getattr(callback, "mode", "min")
    return "val_loss", "min"


def _keep_metrics(trainer: Trainer, state: PruningState, monitor: str) -> None:
    """Remember the latest metrics.

    Where ranks disagree on the monitored one, because it was logged without ``sync_dist``, their
    mean counts.
    """
    state.metrics = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name != "round"
    }
    if _ranks.all_have(trainer, monitor):
        (state.metrics[monitor],) = _ranks.means(trainer, state.metrics[monitor])


def observe(
    trainer: Trainer, state: PruningState, monitor: str | None, mode: str, *, is_epoch_end: bool
) -> None:
    """Remember the latest metrics, and whether the monitored one is the best of the round.

    As EarlyStopping does, one of the validation is looked at when that ends, one of training when
    the epoch ends: before, its value is that of the last epoch.
    """
    monitor, mode = _monitored(trainer, monitor, mode)
    _keep_metrics(trainer, state, monitor)
    value = state.metrics.get(monitor)
    if value is None or is_epoch_end != _stopping.looks_at_epoch_end(trainer, monitor, None):
        return
    if BestValue.is_better(value, state.best, mode):
        state.best = BestValue(monitor, value, trainer.global_step, dict(state.metrics))


def finish_round(
    trainer: Trainer, state: PruningState, monitor: str | None, folder: str | Path | None
) -> None:
    """Write the ticket of a round that has just ended; then add its record, and log it.

    In this order, a checkpoint that is saved because the write failed does not say that the round
    is over.
    """
    record = _record(trainer, state)
    if not _trainer.is_fast_dev_run(trainer):
        _warn_if_not_logged(state, monitor)
        _save_ticket(trainer, state, folder)
    state.history.append(record)
    _loggers.log_round(trainer, state.history)


def _record(trainer: Trainer, state: PruningState) -> RoundRecord:
    """The record of a round that has just ended, the same on every rank."""
    assert state.masks is not None
    best, metrics = _ranks.of_first(trainer, (state.best, state.metrics))
    return RoundRecord(
        round=state.round,
        density=state.masks.density,
        layer_densities=state.masks.densities(),
        steps=trainer.global_step,
        epochs=_rounds.num_epochs(trainer),
        stop_reason=_stop_reason(trainer, state),
        monitor=best.monitor if best is not None else None,
        best_value=best.value if best is not None else None,
        best_step=best.step if best is not None else None,
        best_metrics=best.metrics if best is not None else {},
        metrics=metrics,
    )


def _warn_if_not_logged(state: PruningState, monitor: str | None) -> None:
    """Warn where the user asked for a metric that was not there in the whole round."""
    if monitor is not None and state.best is None:
        warnings.warn(
            f"`monitor={monitor!r}` was not logged in round {state.round}. "
            f"Logged: {sorted(state.metrics)}.",
            stacklevel=2,
        )


def _save_ticket(trainer: Trainer, state: PruningState, folder: str | Path | None) -> None:
    """Write the ticket of the round, if there is a folder for it."""
    if folder is None:
        return
    ticket = state.ticket()  # gathers shards: on every rank
    if trainer.is_global_zero:
        ticket.save(Path(folder) / f"round_{state.round:02d}.safetensors")


def warn_of_other_tickets(trainer: Trainer, folder: str | Path | None) -> None:
    """Warn of tickets of another search, which would stand beside those of this one."""
    if folder is None or not trainer.is_global_zero or _trainer.is_fast_dev_run(trainer):
        return
    found = sorted(path.name for path in Path(folder).glob("round_*.safetensors"))
    if found:
        warnings.warn(
            f"`ticket_dir` '{folder}' holds tickets of another search: {', '.join(found)}. Those "
            "of the same rounds are overwritten, others stay. Take an empty folder for each.",
            stacklevel=2,
        )


def _stop_reason(trainer: Trainer, state: PruningState) -> RoundEnd:
    if state.is_round_over or _rounds.is_stopping(trainer):
        stoppers = trainer.early_stopping_callbacks
        is_early = any(stopper.stopping_reason.value > 0 for stopper in stoppers)
        return "early_stopping" if is_early else "should_stop"
    is_at_max_steps = 0 <= trainer.max_steps <= trainer.global_step
    return "max_steps" if is_at_max_steps else "max_epochs"
