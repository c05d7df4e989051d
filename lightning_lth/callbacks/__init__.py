"""Callbacks for the Lightning Trainer: the only part that imports Lightning."""

from lightning_lth.callbacks.fixed_masks import FixedMasks
from lightning_lth.callbacks.initializer import Initializer
from lightning_lth.callbacks.pruning import IterativeMagnitudePruning

__all__ = ["FixedMasks", "Initializer", "IterativeMagnitudePruning"]
