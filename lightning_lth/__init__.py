"""Callbacks for PyTorch Lightning to find lottery tickets, and to see and steer training."""

from lightning_lth.callbacks import FixedMasks, IterativeMagnitudePruning
from lightning_lth.pruning.history import History, RoundRecord
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.tickets import Ticket, TicketReport

__all__ = [
    "FixedMasks",
    "History",
    "IterativeMagnitudePruning",
    "Masks",
    "RoundRecord",
    "Ticket",
    "TicketReport",
]
