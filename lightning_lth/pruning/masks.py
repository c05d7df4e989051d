"""Which weights of a network survive: parameter name -> boolean tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, final

import torch

from lightning_lth.pruning.sharding import is_distributed, local_part, whole

if TYPE_CHECKING:
    from torch import Tensor

_BIT_VALUES = (128, 64, 32, 16, 8, 4, 2, 1)


@final
class Masks(Mapping[str, "Tensor"]):
    """Boolean masks by parameter name; true keeps a weight, false prunes it.

    Masks are values: nothing here changes one in place, and the tensors must not be written to.

    Args:
        masks: Parameter name to mask, shaped like the parameter. Boolean, or any other dtype that
            holds zeros and ones alone.

    Raises:
        TypeError: If a name is not a string or a mask is not a tensor.
        ValueError: If a mask holds values other than 0 and 1.

    Examples:
        >>> masks = Masks({"weight": torch.tensor([1, 0, 0, 1])})
        >>> masks.density
        0.5
        >>> masks["weight"]
        tensor([ True, False, False,  True])
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = {name: _as_mask(name, mask) for name, mask in masks.items()}

    @classmethod
    def dense(cls, weights: Mapping[str, Tensor]) -> Masks:
        """Masks that keep every weight, on the devices of the weights."""
        return cls({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        """Same names, shapes and values; order and devices do not count."""
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(
            mask.shape == other[name].shape and torch.equal(mask.cpu(), other[name].cpu())
            for name, mask in self.items()
        )

    __hash__ = None  # type: ignore[assignment]  # compares by value, and tensors cannot be hashed

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.num_remaining} of {self.num_weights} weights)"

    @property
    def num_weights(self) -> int:
        """How many weights there are, pruned ones included."""
        return sum(mask.numel() for mask in self.values())

    @property
    def num_remaining(self) -> int:
        """How many weights survive."""
        return sum(self.remaining().values())

    @property
    def density(self) -> float:
        """Share of surviving weights over all tensors, in [0, 1]; 1 when there is no weight."""
        return self.num_remaining / self.num_weights if self.num_weights else 1.0

    def remaining(self) -> dict[str, int]:
        """How many weights survive, by parameter name."""
        return {name: _count(mask) for name, mask in self.items()}

    def densities(self) -> dict[str, float]:
        """Share of surviving weights by parameter name; 1 for a parameter without weights."""
        return {
            name: count / self[name].numel() if self[name].numel() else 1.0
            for name, count in self.remaining().items()
        }

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def pack(self) -> dict[str, Tensor]:
        """The masks with 1 bit per weight, on the CPU.

        Returns:
            Parameter name to a ``uint8`` tensor of ``ceil(numel / 8)`` bytes; the first weight is
            the highest bit of the first byte, and the last byte is filled with zeros.
        """
        return {name: _pack(whole(mask)) for name, mask in self.items()}

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Masks:
        """The masks that ``pack`` packed.

        Args:
            packed: Parameter name to packed bits.
            shapes: Parameter name to the shape of the mask; the same names.

        Raises:
            ValueError: If the names differ, or a tensor has too few or too many bytes.
        """
        if packed.keys() != shapes.keys():
            raise ValueError(
                f"`packed` and `shapes` must have the same names, "
                f"got {sorted(packed)} and {sorted(shapes)}."
            )
        return cls({name: _unpack(name, bits, shapes[name]) for name, bits in packed.items()})

    def fingerprint(self) -> str:
        """A hash of names, shapes and values; devices and the order of names do not count."""
        digest = hashlib.sha256()
        for name, bits in sorted(self.pack().items()):
            digest.update(f"{name}{tuple(self[name].shape)}".encode())
            digest.update(bits.numpy().tobytes())
        return digest.hexdigest()

    def check_matches(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse weights that these masks do not fit.

        Raises:
            ValueError: If a masked parameter is missing in ``weights`` or has another shape.
        """
        missing = [name for name in self if name not in weights]
        if missing:
            raise ValueError(
                f"Masks for {missing} match no parameter. Parameters: {sorted(weights)}."
            )
        for name, mask in self.items():
            if mask.shape != weights[name].shape:
                raise ValueError(
                    f"The mask of {name!r} has shape {tuple(mask.shape)}, "
                    f"but the parameter has {tuple(weights[name].shape)}."
                )

    def apply_(self, weights: Mapping[str, Tensor]) -> None:
        """Set the pruned weights to exactly zero, also where they are infinite or NaN.

        Args:
            weights: At least one tensor for every mask, on any device.

        Raises:
            ValueError: If a masked parameter is missing in ``weights`` or has another shape.
        """
        self.check_matches(weights)
        with torch.no_grad():
            for name, mask in self.items():
                local_part(weights[name]).masked_fill_(
                    ~local_part(mask).to(weights[name].device), 0
                )


def _count(mask: Tensor) -> int:
    return int(whole(mask.sum())) if is_distributed(mask) else int(mask.count_nonzero())


def _as_mask(name: str, mask: Tensor) -> Tensor:
    if not isinstance(name, str):
        raise TypeError(f"A mask's name must be a parameter name (str), got {name!r}.")
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"The mask of {name!r} must be a tensor, got {type(mask).__name__}.")
    if mask.dtype == torch.bool:
        return mask.detach()
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"The mask of {name!r} must hold zeros and ones alone; 1 keeps, 0 prunes.")
    return mask.detach() == 1


def _pack(mask: Tensor) -> Tensor:
    bits = mask.detach().flatten().to("cpu", torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    packed = torch.zeros(len(bits), dtype=torch.uint8)
    for column, value in enumerate(_BIT_VALUES):
        packed += bits[:, column] * value
    return packed


def _unpack(name: str, packed: Tensor, shape: torch.Size) -> Tensor:
    numel = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != -(-numel // 8):
        raise ValueError(
            f"The packed mask of {name!r} must be {-(-numel // 8)} bytes for shape "
            f"{tuple(shape)}, got {packed.dtype} of shape {tuple(packed.shape)}."
        )
    values = torch.tensor(_BIT_VALUES, dtype=torch.uint8)
    return (packed.cpu().unsqueeze(1) & values).ne(0).flatten()[:numel].view(shape)
