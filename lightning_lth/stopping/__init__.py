"""When to stop, and when a network was best. Imports torch, never Lightning.

A criterion is a function of all validations so far: nothing is counted on the side, so that a
resumed training decides as an uninterrupted one, and changed settings count at once.
"""

from lightning_lth.stopping.combined import AllOf, AnyOf
from lightning_lth.stopping.decision import Criterion, Stop, StopReason
from lightning_lth.stopping.patience import Patience
from lightning_lth.stopping.prechelt import (
    GeneralizationLoss,
    NoProgress,
    ProgressQuotient,
    SuccessiveRises,
)
from lightning_lth.stopping.thresholds import Divergence, NotFinite, Target
from lightning_lth.stopping.validations import Validation, Validations

__all__ = [
    "AllOf",
    "AnyOf",
    "Criterion",
    "Divergence",
    "GeneralizationLoss",
    "NoProgress",
    "NotFinite",
    "Patience",
    "ProgressQuotient",
    "Stop",
    "StopReason",
    "SuccessiveRises",
    "Target",
    "Validation",
    "Validations",
]
