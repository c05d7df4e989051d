"""Callbacks for PyTorch Lightning to find lottery tickets, and to see and steer training."""

from lightning_lth.callbacks import (
    CyclicalLR,
    FixedMasks,
    HyperparameterFinder,
    Initializer,
    IterativeMagnitudePruning,
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
from lightning_lth.pruning.history import History, RoundRecord
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.tickets import Ticket, TicketReport

__all__ = [
    "CyclicalLR",
    "FixedMasks",
    "History",
    "HyperparameterFinder",
    "InitializationReport",
    "InitializedParameter",
    "Initializer",
    "IterativeMagnitudePruning",
    "LRFinder",
    "LayerSignal",
    "Masks",
    "RoundRecord",
    "SignalReport",
    "Ticket",
    "TicketReport",
    "initialize_",
    "signal_propagation",
]
