"""Callbacks for the Lightning Trainer: the only part that imports Lightning."""

from lightning_lth.callbacks.cyclical_lr import CyclicalLR
from lightning_lth.callbacks.early_stopping import EarlyStopping
from lightning_lth.callbacks.fixed_masks import FixedMasks
from lightning_lth.callbacks.hyperparameter_finder import HyperparameterFinder
from lightning_lth.callbacks.initializer import Initializer
from lightning_lth.callbacks.layer_monitor import LayerStatsMonitor
from lightning_lth.callbacks.lr_finder import LRFinder
from lightning_lth.callbacks.pruning import IterativeMagnitudePruning

__all__ = [
    "CyclicalLR",
    "EarlyStopping",
    "FixedMasks",
    "HyperparameterFinder",
    "Initializer",
    "IterativeMagnitudePruning",
    "LRFinder",
    "LayerStatsMonitor",
]
