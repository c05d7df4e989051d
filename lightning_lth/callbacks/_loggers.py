"""What the callbacks send to the loggers, whichever they are; figures to TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_lth.callbacks._trainer import logging_step

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import Trainer

    from lightning_lth.initialization.report import InitializationReport
    from lightning_lth.initialization.signal import SignalReport
    from lightning_lth.learning_rate.range_test import RangeTest
    from lightning_lth.pruning.history import History
    from lightning_lth.pruning.masks import Masks


def log_densities(trainer: Trainer, round_: int, masks: Masks) -> None:
    """Send the round, the density and the densities of all layers to every logger."""
    densities = masks.densities()
    metrics = {"pruning/round": float(round_), "pruning/density": masks.density}
    metrics |= {f"pruning/density/{name}": density for name, density in densities.items()}
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=logging_step(trainer))


@rank_zero_only
def add_figures(trainer: Trainer, history: History) -> None:
    """Draw the rounds so far into TensorBoard; nothing where matplotlib is not installed."""
    writers = _tensorboard_writers(trainer)
    if not writers or find_spec("matplotlib") is None:
        return
    from lightning_lth.pruning import figures

    for writer in writers:
        writer.add_figure(
            "pruning/densities", figures.layer_densities(history), logging_step(trainer)
        )
        if any(record.best_value is not None for record in history):
            writer.add_figure("pruning/best", figures.best_value(history), logging_step(trainer))


@rank_zero_only
def log_initialization(
    trainer: Trainer, report: InitializationReport, signal: SignalReport | None
) -> None:
    """Write the report of an initialization to TensorBoard, and how signals propagate."""
    for writer in _tensorboard_writers(trainer):
        writer.add_text("initialization/report", report.to_markdown(), logging_step(trainer))
        if signal is None:
            continue
        table = f"```\n{signal}\n```"
        writer.add_text("initialization/signal", table, logging_step(trainer))
        if find_spec("matplotlib") is not None:
            from lightning_lth.initialization import figures

            figure = figures.signal_propagation({"initialization": signal})
            writer.add_figure("initialization/signal", figure, logging_step(trainer))


def log_range_test(trainer: Trainer, test: RangeTest, tag: str, path: Path | None) -> None:
    """Send the curve to every logger, step by step; its figure to TensorBoard and to a file."""
    for step, (value, loss) in enumerate(zip(test.curve.values, test.curve.losses, strict=True)):
        for logger in trainer.loggers:
            logger.log_metrics({f"{tag}/{test.curve.parameter}": value, f"{tag}/loss": loss}, step)
    _add_range_test_figure(trainer, test, tag, path)


@rank_zero_only
def _add_range_test_figure(trainer: Trainer, test: RangeTest, tag: str, path: Path | None) -> None:
    writers = _tensorboard_writers(trainer)
    if find_spec("matplotlib") is None or not (writers or path):
        return
    from lightning_lth.learning_rate import figures

    for writer in writers:
        writer.add_figure(tag, figures.range_test(test), logging_step(trainer))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.range_test(test).savefig(path)


def _tensorboard_writers(trainer: Trainer) -> list[Any]:
    return [
        logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)
    ]
