"""Callbacks for PyTorch Lightning to find lottery tickets, and to see and steer training."""

from lightning_lth.callbacks import (
    CyclicalLR,
    EarlyStopping,
    FixedMasks,
    HyperparameterFinder,
    Initializer,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    LRFinder,
)
from lightning_lth.initialization import (
    InitializationReport,
    InitializedParameter,
    LayerSignal,
    SignalReport,
    initialize_,
    signal_propagation,
)
from lightning_lth.layer_stats.findings import Diagnosis, Thresholds
from lightning_lth.pruning.history import History, RoundRecord
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.tickets import Ticket, TicketReport
from lightning_lth.stopping import Validation, Validations

__all__ = [
    "CyclicalLR",
    "Diagnosis",
    "EarlyStopping",
    "FixedMasks",
    "History",
    "HyperparameterFinder",
    "InitializationReport",
    "InitializedParameter",
    "Initializer",
    "IterativeMagnitudePruning",
    "LRFinder",
    "LayerSignal",
    "LayerStatsMonitor",
    "Masks",
    "RoundRecord",
    "SignalReport",
    "Thresholds",
    "Ticket",
    "TicketReport",
    "Validation",
    "Validations",
    "initialize_",
    "signal_propagation",
]
