"""Initial weights by layer type and following nonlinearity, and how signals fare; plain torch."""

from lightning_lth.initialization.choice import auto
from lightning_lth.initialization.drawing import Rule, Weight
from lightning_lth.initialization.gains import gain, measured_gain
from lightning_lth.initialization.initialize import initialize_
from lightning_lth.initialization.report import InitializationReport, InitializedParameter
from lightning_lth.initialization.rules import (
    constant,
    constant_std,
    he,
    lecun,
    orthogonal,
    random_walk,
    torch_default,
    xavier,
    zeros,
)
from lightning_lth.initialization.schemes import data_dependent, fixup, lsuv
from lightning_lth.initialization.signal import LayerSignal, SignalReport, signal_propagation
from lightning_lth.initialization.writing import pruning_masks

__all__ = [
    "InitializationReport",
    "InitializedParameter",
    "LayerSignal",
    "Rule",
    "SignalReport",
    "Weight",
    "auto",
    "constant",
    "constant_std",
    "data_dependent",
    "fixup",
    "gain",
    "he",
    "initialize_",
    "lecun",
    "lsuv",
    "measured_gain",
    "orthogonal",
    "pruning_masks",
    "random_walk",
    "signal_propagation",
    "torch_default",
    "xavier",
    "zeros",
]
