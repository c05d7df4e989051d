"""What each callback sends to the loggers."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_lth._files import write_whole
from lightning_lth.callbacks._tensorboard import (
    Lines,
    add_charts,
    add_figure,
    add_text,
    log_scalars,
    tag,
    tag_pattern,
)
from lightning_lth.callbacks._trainer import is_logging_step
from lightning_lth.initialization import figures as initialization_figures
from lightning_lth.learning_rate import figures as range_test_figures
from lightning_lth.pruning import figures as pruning_figures

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import Trainer

    from lightning_lth.initialization.report import InitializationReport
    from lightning_lth.initialization.signal import SignalReport
    from lightning_lth.learning_rate.range_test import RangeTest
    from lightning_lth.pruning.history import History, RoundRecord
    from lightning_lth.pruning.masks import Masks
    from lightning_lth.stopping import Validation

# Of LearningRateMonitor: `lr-SGD` and `lr-SGD/pg1`; `lr-SGD-momentum`.
_MONITORED_RATES = "lr-(?!.*-(?:momentum|weight_decay)$).*"
_MONITORED_MOMENTA = "lr-.*-momentum"


def log_densities(trainer: Trainer, round_: int, masks: Masks) -> None:
    """Log the round, the density and the densities of all layers."""
    metrics = {"pruning/round": float(round_), "pruning/density": masks.density}
    metrics |= {f"pruning/{name}/density": value for name, value in masks.densities().items()}
    log_scalars(trainer, metrics)
    charts = [
        Lines("Density of the network", (tag("pruning/density"),)),
        Lines("Density by layer", (tag_pattern("pruning", "density"),)),
    ]
    add_charts(trainer, "Lottery ticket", charts)


def log_round(trainer: Trainer, history: History) -> None:
    """Log the last round under its number, and draw all rounds so far."""
    record = history[-1]
    metrics = {f"rounds/{name}": record.best_metrics[name] for name in _own_metrics(record)}
    metrics["rounds/density"] = record.density
    charts = [Lines("Density by round", (tag("rounds/density"),))]
    if record.best_step is not None:
        metrics["rounds/best_step"] = float(record.best_step)
        charts += _best_charts(record)
    log_scalars(trainer, metrics, step=record.round)
    add_charts(trainer, "Lottery ticket", charts)
    add_figure(trainer, "pruning/densities", partial(pruning_figures.layer_densities, history))
    if any(record.best_value is not None for record in history):
        add_figure(trainer, "pruning/best", partial(pruning_figures.best_value, history))


def log_best(trainer: Trainer, monitor: str, best: Validation) -> None:
    """Log the best validation so far, at each validation."""
    name = f"best/{monitor}"  # in both tags: there may be two callbacks
    log_scalars(trainer, {name: best.value, f"{name}/step": float(best.step)})
    charts = [
        Lines(f"Best {monitor}", (tag(name),)),
        Lines("Step of the best validation", (tag(f"{name}/step"),)),
    ]
    add_charts(trainer, "Early stopping", charts)


def _best_charts(record: RoundRecord) -> list[Lines]:
    others = [name for name in _own_metrics(record) if name != record.monitor]
    charts = [
        Lines(f"Best {record.monitor} by round", (tag(f"rounds/{record.monitor}"),)),
        Lines("Best step by round", (tag("rounds/best_step"),)),
    ]
    if others:
        patterns = tuple(tag(f"rounds/{name}") for name in others)
        charts.insert(1, Lines("Other metrics at the best step, by round", patterns))
    return charts


def _own_metrics(record: RoundRecord) -> list[str]:
    """Those of the module, without what LearningRateMonitor adds to them."""
    return [name for name in record.best_metrics if not name.startswith("lr-")]


def log_initialization(
    trainer: Trainer, report: InitializationReport, signal: SignalReport | None
) -> None:
    """Write the report of an initialization to TensorBoard, and how signals propagate."""
    add_text(trainer, "initialization/report", report.to_markdown())
    if signal is not None:
        add_text(trainer, "initialization/signal", f"```\n{signal}\n```")
        draw = partial(initialization_figures.signal_propagation, {"initialization": signal})
        add_figure(trainer, "initialization/signal", draw)


def log_cycle(trainer: Trainer, rate: float, momentum: float | None) -> None:
    """Log the rate of a step, and its momentum if that cycles, where Lightning logs metrics."""
    if not is_logging_step(trainer):
        return
    metrics = {"cyclical_lr/lr": rate}
    charts = [Lines("Learning rate", (tag("cyclical_lr/lr"), _MONITORED_RATES))]
    if momentum is not None:
        metrics["cyclical_lr/momentum"] = momentum
        charts.append(Lines("Momentum", (tag("cyclical_lr/momentum"), _MONITORED_MOMENTA)))
    log_scalars(trainer, metrics)
    add_charts(trainer, "Learning rate", charts)


def log_range_test(
    trainer: Trainer, test: RangeTest, group: str, round_: int, path: Path | None
) -> None:
    """Log the curve step by step; its figure to TensorBoard and to a file."""
    name, parameter = f"{group}/round_{round_}", test.curve.parameter
    for step, (value, loss) in enumerate(zip(test.curve.values, test.curve.losses, strict=True)):
        log_scalars(trainer, {f"{name}/{parameter}": value, f"{name}/loss": loss}, step)
    chart = Lines(f"Loss by step of {group}", (tag_pattern(group, "loss"),))
    add_charts(trainer, "Learning rate", [chart])
    add_figure(trainer, name, partial(range_test_figures.range_test, test))
    if path is not None:
        _save_range_test(test, path)


@rank_zero_only
def _save_range_test(test: RangeTest, path: Path) -> None:
    picture = BytesIO()
    range_test_figures.range_test(test).savefig(picture, format="png")
    write_whole(path, picture.getvalue())
