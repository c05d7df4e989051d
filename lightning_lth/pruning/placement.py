"""Which weights and masks of a ticket fit into a module, and writing those that do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch.nn.parameter import is_lazy

from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import strip_compiled
from lightning_lth.snapshot import is_writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.nn import Module


@final
@dataclass(frozen=True, eq=False)
class TicketReport:
    """How a ticket fitted a module.

    Args:
        masks: The masks of the weights that fitted, by the module's names and on its devices; hold
            them during training.
        missing: Parameters and persistent buffers of the module that the ticket does not have.
        extra: Weights of the ticket that the module has no place for.
        mismatched: Name to the shape in the ticket and the shape in the module.

    Examples:
        >>> report = TicketReport(Masks({}), missing=("head.bias",), extra=(), mismatched={})
        >>> print(report)
        Missing in the ticket: 'head.bias'.
        >>> report.is_exact
        False
    """

    masks: Masks
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    mismatched: Mapping[str, tuple[torch.Size, torch.Size]]

    @property
    def is_exact(self) -> bool:
        """Whether nothing was missing, extra or of another shape."""
        return not (self.missing or self.extra or self.mismatched)

    def __str__(self) -> str:
        """What did not fit, in sentences."""
        shapes = ", ".join(
            f"{name!r} {tuple(ours)} in the ticket, {tuple(theirs)} in the module"
            for name, (ours, theirs) in self.mismatched.items()
        )
        parts = (
            ("Missing in the ticket", ", ".join(map(repr, self.missing))),
            ("Not in the module", ", ".join(map(repr, self.extra))),
            ("Of another shape", shapes),
        )
        return " ".join(f"{title}: {text}." for title, text in parts if text) or "Everything fits."


@dataclass(frozen=True, eq=False)
class Placement:
    """What of a ticket goes where in a module; nothing is written yet."""

    report: TicketReport
    targets: Mapping[str, Tensor]
    sources: Mapping[str, Tensor]

    def write_(self) -> None:
        """Copy the weights into the module and set the pruned ones to exactly zero."""
        with torch.no_grad():
            for name, target in self.targets.items():
                if is_writable(target):
                    target.copy_(self.sources[name])
        self.report.masks.apply_(self.targets)


@dataclass(frozen=True, eq=False)
class _Slot:
    """A place for a weight; all names of a tied tensor have the same slot."""

    name: str
    tensor: Tensor
    is_required: bool


def place(masks: Masks, weights: Mapping[str, Tensor], module: Module) -> Placement:
    """Match a ticket with a module by name and shape.

    Args:
        masks: Masks by names that ``weights`` has.
        weights: Parameters and buffers by name.
        module: Where they go. Not modified.

    Raises:
        RuntimeError: If a parameter of the module is lazy and not initialized yet.
        ValueError: If the module is on the meta device or sharded, something that cannot be
            written to has other values, or nothing fits.
    """
    slots = _slots(module)
    sources: dict[str, Tensor] = {}
    fitting: dict[str, Tensor] = {}
    extra: list[str] = []
    mismatched: dict[str, tuple[torch.Size, torch.Size]] = {}
    for name, weight in weights.items():
        slot, mask = slots.get(name), masks.get(name)
        if slot is None:
            extra.append(name)
        elif weight.shape != slot.tensor.shape:
            mismatched[name] = (weight.shape, slot.tensor.shape)
        elif _differs(sources.get(slot.name), weight) or _differs(fitting.get(slot.name), mask):
            extra.append(name)  # the module ties two tensors that are not equal in the ticket
        else:
            sources[slot.name] = weight
            if mask is not None:
                fitting[slot.name] = mask.to(slot.tensor.device)
    found = {slots[name].name for name in mismatched} | sources.keys()
    required = {slot.name for slot in slots.values() if slot.is_required}
    missing = tuple(name for name in slots if name in required - found)
    report = TicketReport(Masks(fitting), missing, tuple(extra), mismatched)
    if not sources:
        raise ValueError(f"Nothing of the ticket fits {type(module).__name__}. {report}")
    targets = {name: slots[name].tensor for name in sources}
    _refuse_changes_of_unwritable(targets, sources)
    return Placement(report, targets, sources)


def _slots(module: Module) -> dict[str, _Slot]:
    """A slot for every name, those of ``named_parameters`` first."""
    persistent = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    first_names: dict[int, str] = {}
    slots = {}
    for name, tensor in _named_tensors(module):
        _refuse_unwritable(name, tensor)
        slots[name] = _Slot(
            name=first_names.setdefault(id(tensor), name),
            tensor=tensor,
            is_required=id(tensor) in persistent,
        )
    return slots


def _named_tensors(module: Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield strip_compiled(name), parameter
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield strip_compiled(name), buffer


def _refuse_unwritable(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise RuntimeError(
            f"{name!r} is lazy and has no shape yet. Run one forward pass before applying a ticket."
        )
    if tensor.is_meta:
        raise ValueError(
            f"{name!r} is on the meta device and cannot take weights. "
            f"Materialize the module first, as with `to_empty`."
        )
    if hasattr(tensor, "full_tensor"):
        raise ValueError(
            f"{name!r} is distributed over ranks. Apply the ticket before the module is sharded."
        )


def _refuse_changes_of_unwritable(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]
) -> None:
    for name, target in targets.items():
        if not is_writable(target) and _differs(target, sources[name].to(target.dtype)):
            raise ValueError(
                f"{name!r} has other values in the ticket, but is expanded or was made in "
                "inference mode, and cannot be written to. Replace it by its `clone()` first."
            )


def _differs(known: Tensor | None, other: Tensor | None) -> bool:
    if known is None or other is None:
        return False
    return known.dtype != other.dtype or not torch.equal(known.cpu(), other.cpu())
