"""Everything that the layers of a module compute with, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import parametrize

from lightning_lth.initialization.layers import Maps, Part, parts
from lightning_lth.initialization.statistics import standard_deviation
from lightning_lth.initialization.writing import effective, name_of, own_parameters


@final
@dataclass(frozen=True, eq=False)
class Target:
    """One attribute that a layer computes with.

    Attributes:
        name: Of the parameter, as if no parametrization were there.
        layer_name: Of its layer.
        layer: That layer.
        attribute: Of the layer.
        behind: The parameters that the attribute is computed from.
        part: What its type of layer says of it; None if nothing is known.
        tied_to: Another parameter that shares the memory and is initialized in its place.
    """

    name: str
    layer_name: str
    layer: Module
    attribute: str
    behind: list[Parameter]
    part: Part | None
    tied_to: str | None = None

    @property
    def type(self) -> str:
        """The class of the layer."""
        return parametrize.type_before_parametrizations(self.layer).__name__

    @property
    def is_weight(self) -> bool:
        """Whether rules mean it: not a bias, not part of a normalization."""
        if self.part is None:
            return self.behind[0].dim() > 1
        return isinstance(self.part, Maps)

    @property
    def is_matrix(self) -> bool:
        """Whether it has two dimensions or more, of more than one each."""
        return sum(size > 1 for size in self.behind[0].shape) > 1

    def std(self) -> float | None:
        """The standard deviation of what the layer computes with; None where there is none."""
        values = effective(self.layer, self.attribute)
        if values.numel() == 0 or not values.is_floating_point():
            return None
        return standard_deviation(values)

    def memory_for(self, maps: Maps) -> Tensor | None:
        """The parameter in the shape of its maps, to draw in place; None if that cannot be."""
        parameter = self.behind[0]
        is_plain = getattr(self.layer, self.attribute) is parameter
        if not is_plain or parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            return None
        if not parameter.is_contiguous():
            return None
        memory = parameter.detach().view(maps.weight.shape)
        arranged = maps.arrange(memory)
        is_in_order = arranged.data_ptr() == parameter.data_ptr() and arranged.is_contiguous()
        return memory if is_in_order else None


def targets(module: Module) -> list[Target]:
    """Everything that layers compute with, in the order of the module; each tied parameter once.

    Embeddings come first among those that share memory.

    Examples:
        >>> [target.name for target in targets(torch.nn.Sequential(torch.nn.Linear(2, 1)))]
        ['0.weight', '0.bias']
    """
    found = list(_targets(module))
    owners: dict[tuple[object, ...], str] = {}
    for target in sorted(found, key=_is_no_table):
        owners.setdefault(_memory(target), target.name)
    return [
        target if owners[_memory(target)] == target.name
        else replace(target, tied_to=owners[_memory(target)])
        for target in found
    ]  # fmt: skip


def _targets(module: Module) -> Iterator[Target]:
    for layer_name, layer in module.named_modules():
        if "parametrizations" in layer_name.split("."):
            continue  # belongs to the layer above
        own = own_parameters(layer)
        described = parts(layer) if own else None
        for attribute, behind in own.items():
            name = name_of(layer_name, attribute)
            part = described.get(attribute) if described is not None else None
            yield Target(name, name_of(layer_name), layer, attribute, behind, part)


def _is_no_table(target: Target) -> bool:
    return not (isinstance(target.part, Maps) and target.part.weight.role == "embedding")


def _memory(target: Target) -> tuple[object, ...]:
    first = target.behind[0]
    if first.is_meta or first.numel() == 0:
        return (id(first),)
    return first.device, first.untyped_storage().data_ptr(), first.storage_offset()
