"""What is known of how normalization and dropout layers are connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lightning_lth.layer_stats.dropout import drop_probability


@final
@dataclass(frozen=True)
class FunctionalDropout:
    """Dropout that no dropout layer does.

    Attributes:
        owner: Name of the module in whose forward it is.
        function: Such as ``"dropout"``, ``"scaled_dot_product_attention"`` or ``"lstm"``.
        p: The drop probability, above 0.
        is_training: Whether it dropped anything.
        is_left_on: Whether it did so although its owner is in evaluation mode.
    """

    owner: str
    function: str
    p: float
    is_training: bool
    is_left_on: bool = False


@final
@dataclass
class Facts:
    """What a survey found out about a network.

    Attributes:
        order: Normalization and dropout layers by their first call, each once.
        before_relu: Batch normalization whose output goes into a ReLU (or ReLU6) as it is.
        functional_dropout: Dropout outside of dropout layers, each kind once.
        dropout_before: Batch normalization -> the dropout layers before its first call that are
            in training mode with ``p`` above 0.
        is_observed: False if guessed from how modules are registered.
    """

    order: list[str] = field(default_factory=list)
    before_relu: set[str] = field(default_factory=set)
    functional_dropout: list[FunctionalDropout] = field(default_factory=list)
    dropout_before: dict[str, list[str]] = field(default_factory=dict)
    is_observed: bool = True

    def note(self, name: str, layers: Mapping[str, nn.Module]) -> None:
        """A call of one of these normalization and dropout layers."""
        if name in self.order:
            return
        if isinstance(layers[name], _BatchNorm):
            self.dropout_before[name] = [n for n in self.order if _is_dropping(layers[n])]
        self.order.append(name)


def _is_dropping(layer: nn.Module) -> bool:
    is_dropout = isinstance(layer, _DropoutNd)
    return is_dropout and layer.training and drop_probability(layer) > 0
