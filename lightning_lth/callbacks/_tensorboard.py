"""Numbers to every logger; charts, histograms, figures and texts to TensorBoard.

Any number of loggers will do, none too; and neither tensorboard nor matplotlib has to be installed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, final, get_args
from weakref import WeakKeyDictionary, WeakSet

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from lightning_lth.callbacks._lightning import lightning_of
from lightning_lth.callbacks._trainer import logging_step

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger
    from matplotlib.figure import Figure
    from torch import Tensor

# In this order on the page, which shows categories as the layout lists them.
Category = Literal[
    "Summary", "BatchNorm", "Dropout", "Lottery ticket", "Learning rate", "Early stopping"
]
MAX_BINS = 30  # by default a histogram around 0 has hundreds of empty bins, 9 kB instead of 0.3


@final
@dataclass(frozen=True)
class Lines:
    """A chart with a line for each tag that one of the patterns matches as a whole.

    Attributes:
        title: Unique in its category.
        patterns: Regular expressions, from ``tag`` or ``tag_pattern``.
    """

    title: str
    patterns: tuple[str, ...]

    def content(self, prefix: str) -> list[Any]:
        """As ``add_custom_scalars`` takes it; the page itself would match beginnings of tags."""
        return ["Multiline", [f"^{re.escape(prefix)}(?:{one})$" for one in self.patterns]]


@final
@dataclass(frozen=True)
class Band:
    """A chart of ``tag/median`` with a band from ``tag/p05`` to ``tag/p95``."""

    title: str
    tag: str

    def content(self, prefix: str) -> list[Any]:
        """As ``add_custom_scalars`` takes it."""
        return ["Margin", [f"{prefix}{self.tag}/{one}" for one in ("median", "p05", "p95")]]


Chart = Lines | Band
Layout = dict[Category, dict[str, Chart]]  # by category and title

# TensorBoard shows only the last layout of a run, so that all callbacks must write the same one.
_layouts: WeakKeyDictionary[Any, Layout] = WeakKeyDictionary()
_announced: WeakSet[Any] = WeakSet()


def tag(name: str) -> str:
    """A pattern for this tag alone."""
    return re.escape(name)


def tag_pattern(group: str, statistic: str) -> str:
    """A pattern for ``group/LAYER/statistic`` of any layer."""
    return f"{re.escape(group)}/.+/{re.escape(statistic)}"


@rank_zero_only
def log_scalars(trainer: Trainer, scalars: Mapping[str, float], step: int | None = None) -> None:
    """Send numbers to every logger; to TensorBoard as one event, which saves space and time.

    Args:
        trainer: Its loggers, if it has any.
        scalars: Tag, such as ``group/layer/statistic``, to value; NaN and infinity are written.
        step: By default the one under which Lightning would log now.
    """
    step = logging_step(trainer) if step is None else step
    for logger in trainer.loggers if scalars else []:
        if _takes_events(trainer, logger):
            _add_event(logger, scalars, step)
        else:
            logger.log_metrics(dict(scalars), step)


@rank_zero_only
def add_charts(trainer: Trainer, category: Category, charts: Sequence[Chart]) -> None:
    """Add charts to the Custom Scalars page, and say where that is.

    Args:
        trainer: Its TensorBoard loggers, if it has any.
        category: Heading on the page.
        charts: Lines of the same title become one chart. Adding a chart again writes nothing.
    """
    for logger in _tensorboard_loggers(trainer) if charts else []:
        writer = logger.experiment
        layout = _layouts.get(writer, {})
        extended = _extended(layout, category, charts)
        if extended != layout:
            _layouts[writer] = extended
            writer.add_custom_scalars(_contents(extended, _prefix(logger)))
    announce(trainer)


@rank_zero_only
def announce(trainer: Trainer) -> None:
    """Say once how to open the Custom Scalars page, which TensorBoard does not open by itself."""
    for logger in _tensorboard_loggers(trainer):
        if logger.experiment not in _announced:
            _announced.add(logger.experiment)
            rank_zero_info(
                f"Charts: `tensorboard --logdir {shlex.quote(logger.log_dir)}`, then open "
                f"http://localhost:6006/#custom_scalars"
            )


@rank_zero_only
def add_histograms(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """Write the finite values of each tensor as a histogram, if there are any."""
    for logger in _tensorboard_loggers(trainer):
        for name, tensor in tensors.items():
            values = tensor.detach().float()
            values = values[values.isfinite()]
            if len(values) > 0:  # otherwise `add_histogram` raises
                step = logging_step(trainer)
                logger.experiment.add_histogram(name, values, step, max_bins=MAX_BINS)


@rank_zero_only
def add_figure(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> None:
    """Draw and write a figure; nothing where matplotlib is not installed."""
    for logger in _tensorboard_loggers(trainer):
        if find_spec("matplotlib") is not None:
            logger.experiment.add_figure(name, draw(), logging_step(trainer))


@rank_zero_only
def add_text(trainer: Trainer, name: str, text: str) -> None:
    """Write a text in Markdown."""
    for logger in _tensorboard_loggers(trainer):
        logger.experiment.add_text(name, text, logging_step(trainer))


def _tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    kind = lightning_of(trainer).loggers.TensorBoardLogger
    return [logger for logger in trainer.loggers if isinstance(logger, kind)]


def _takes_events(trainer: Trainer, logger: Any) -> bool:
    """Whether its writer is torch's, not tensorboardX's, and its way of logging Lightning's."""
    kind = lightning_of(trainer).loggers.TensorBoardLogger
    if not isinstance(logger, kind) or find_spec("tensorboard") is None:
        return False
    from torch.utils.tensorboard import SummaryWriter

    is_lightnings = type(logger).log_metrics is kind.log_metrics
    return is_lightnings and isinstance(logger.experiment, SummaryWriter)


def _add_event(logger: Any, scalars: Mapping[str, float], step: int) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    prefix = _prefix(logger)
    values = [Summary.Value(tag=prefix + name, simple_value=scalars[name]) for name in scalars]
    # As Lightning itself does; no public method takes more than one value.
    logger.experiment._get_file_writer().add_summary(Summary(value=values), step)


def _prefix(logger: Any) -> str:
    """What ``TensorBoardLogger(prefix=...)`` puts before each tag."""
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""


def _extended(layout: Layout, category: Category, charts: Sequence[Chart]) -> Layout:
    present = dict(layout.get(category, {}))
    for chart in charts:
        other = present.get(chart.title)
        if isinstance(chart, Lines) and isinstance(other, Lines):
            chart = Lines(chart.title, tuple(dict.fromkeys(other.patterns + chart.patterns)))
        present[chart.title] = chart
    everything = {**layout, category: present}
    return {one: everything[one] for one in get_args(Category) if one in everything}


def _contents(layout: Layout, prefix: str) -> dict[str, dict[str, list[Any]]]:
    return {
        category: {title: chart.content(prefix) for title, chart in charts.items()}
        for category, charts in layout.items()
    }
