"""What can be found about a layer, and from where on it counts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import final


@dataclass(frozen=True)  # not final: jsonargparse refuses a default of a final class
class Thresholds:
    """From where on a statistic is worth a word.

    Attributes:
        variance_shift: ``1 / train_eval_ratio`` behind a Dropout, whose absence in evaluation makes
            the variance smaller. In a 4-layer CNN on Fashion-MNIST it is below 1.02 without a
            Dropout, 1.1 and more with 0.2 of it; a network that overfits has more, too.
        train_eval_shift: Where no Dropout explains it.
        values_per_channel: Fewer than this; with 16 the batch's variance is off by
            ``sqrt(2 / 16)``, 35 %, as a rule.
        dead_channels: Share of channels that give nothing.
        keep_z: Deviation of the observed keep rate, in standard deviations; 6 never comes by
            chance.

    Examples:
        >>> Thresholds(dead_channels=0.5).dead_channels
        0.5
    """

    variance_shift: float = 1.05
    train_eval_shift: float = 1.5
    values_per_channel: int = 16
    dead_channels: float = 0.1
    keep_z: float = 6.0


@final
class Finding(Enum):
    """What can be found."""

    DROPOUT_BEFORE_BATCH_NORM = "dropout before batch norm"
    TRAIN_EVAL_GAP = "gap between training and evaluation"
    FEW_VALUES = "few values per channel"
    FROZEN_WITH_BATCH_STATISTICS = "frozen, yet normalizes with batch statistics"
    NOT_WARMED_UP = "running statistics not warmed up"
    DEAD_CHANNELS = "dead channels"
    KEEP_RATE = "keep rate"
    DROPOUT_IN_EVALUATION = "dropout in evaluation"
    UNWATCHED_DROPOUT = "dropout without a module"


_NOTES = (Finding.UNWATCHED_DROPOUT,)


@final
@dataclass(frozen=True)
class Diagnosis:
    """A finding about one layer.

    Attributes:
        finding: What.
        layer: Name of the layer; empty for the module itself.
        message: The same in words, with the numbers and a remedy.

    Examples:
        >>> Diagnosis(Finding.UNWATCHED_DROPOUT, "head", "...").is_problem
        False
    """

    finding: Finding
    layer: str
    message: str

    @property
    def is_problem(self) -> bool:
        """Whether it should be mended; otherwise it is only worth knowing."""
        return self.finding not in _NOTES
