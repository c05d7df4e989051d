"""A lottery ticket as one file: masks, the weights to start from, and where they came from."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, final

import safetensors
import torch

from lightning_lth._tensor_files import content_digest, read_file, write_file
from lightning_lth._version import __version__
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import strip_compiled
from lightning_lth.pruning.placement import TicketReport, place
from lightning_lth.pruning.sharding import whole

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Module

__all__ = ["Ticket", "TicketReport"]

_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def _current_versions() -> dict[str, str]:
    return {
        "lightning-lth": __version__,
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "torch": str(torch.__version__),
    }


@final
@dataclass(frozen=True, eq=False, repr=False)
class Ticket:
    """A subnetwork and the weights to train it from; a value that fits into one file.

    The weights are copied to the CPU, so a module that trains on does not change its ticket.
    Shards of distributed tensors are gathered: every rank has to make the ticket.

    Args:
        masks: Which weights survive.
        weights: Parameters and buffers at the rewind point by name, pruned weights included, so
            that another mask can be tried on them.
        round: Pruning round that found the masks; 0 is dense.
        step: Optimizer step of the rewind point; 0 is the initialization.
        seed: Seed of the run, if it had one.
        metrics: Figures of the run, such as its test accuracy. Not finite is allowed.

    Attributes:
        versions: The libraries that made the ticket.

    Raises:
        TypeError: If ``round``, ``step`` or ``seed`` is not an integer, a metric no number, or a
            weight no tensor.
        ValueError: If a count is negative, a masked weight is missing, has another shape than its
            mask or is not finite, or a tensor's kind cannot be stored.

    Examples:
        >>> model = torch.nn.Linear(2, 1)
        >>> masks = Masks({"weight": torch.tensor([[1, 0]])})
        >>> ticket = Ticket(masks, model.state_dict(), round=1, step=0)
        >>> ticket
        Ticket(round=1, step=0, density=0.5, 1 of 2 weights in 1 tensors)
        >>> report = ticket.apply_(model)
        >>> print(report, model.weight[0, 1].item())
        Everything fits. 0.0
    """

    masks: Masks
    weights: Mapping[str, Tensor]
    round: int = field(kw_only=True)
    step: int = field(kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    metrics: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    versions: Mapping[str, str] = field(default_factory=_current_versions, init=False)

    def __post_init__(self) -> None:
        """Check the fields and take copies."""
        _check_count("round", self.round)
        _check_count("step", self.step)
        if self.seed is not None and not isinstance(self.seed, int):
            raise TypeError(f"`seed` must be an integer or None, got {self.seed!r}.")
        masks = {strip_compiled(name): whole(mask).cpu() for name, mask in self.masks.items()}
        weights = {strip_compiled(name): _copy(name, w) for name, w in self.weights.items()}
        metrics = {name: _as_float(name, value) for name, value in self.metrics.items()}
        object.__setattr__(self, "masks", Masks(masks))
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "metrics", metrics)
        self.masks.check_matches(weights)
        _check_finite(self.masks, weights)

    @property
    def density(self) -> float:
        """Share of the masked weights that survive, in [0, 1]."""
        return self.masks.density

    @property
    def fingerprint(self) -> str:
        """A hash of the architecture: names, shapes and dtypes of the weights, in any order."""
        text = "\n".join(
            f"{name} {tuple(weight.shape)} {weight.dtype}"
            for name, weight in sorted(self.weights.items())
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Same content bit for bit, versions included; order does not count."""
        if not isinstance(other, Ticket):
            return NotImplemented
        return _content_digest(self) == _content_digest(other)

    __hash__ = None  # type: ignore[assignment]  # compares by value, and tensors cannot be hashed

    def __repr__(self) -> str:
        return (
            f"Ticket(round={self.round}, step={self.step}, density={self.density:.4g}, "
            f"{self.masks.num_remaining} of {self.masks.num_weights} weights "
            f"in {len(self.masks)} tensors)"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Args:
            path: The file; it is replaced if it exists, and its folders are made.

        Returns:
            The path.

        Raises:
            IsADirectoryError: If ``path`` is a folder.
        """
        write_file(Path(path), _tensors(self), _description(self))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read a file that ``save`` wrote. Never unpickles.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: If there is no such file.
            IsADirectoryError: If ``path`` is a folder.
            ValueError: If the file is no ticket, of another format version, damaged, or its
                content is not valid.
        """
        tensors, description = read_file(Path(path))
        try:
            return _parse(tensors, description)
        except (
            ArithmeticError,
            AttributeError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(f"The ticket in '{path}' is not valid: {error!r}.") from error

    def apply_(self, module: Module, *, strict: bool = True) -> TicketReport:
        """Load the weights into a module in place and set the pruned ones to exactly zero.

        Values are cast to the dtypes of the module, as ``load_state_dict`` does. Buffers that are
        not persistent may be absent. Nothing holds the zeros afterwards: hold the report's masks
        during training.

        Args:
            module: Gets the weights; compiled or not, on any device.
            strict: Whether all names and shapes must fit. Otherwise what fits is loaded, as in
                moving a ticket to a task with another output layer.

        Returns:
            What fitted and what did not.

        Raises:
            ValueError: If ``strict`` and anything does not fit, or nothing does, or the module is
                on the meta device, sharded, or has to change where it cannot be written to. The
                module is untouched then.
            RuntimeError: If a parameter of the module is lazy and not initialized yet.
        """
        placement = place(self.masks, self.weights, module)
        if strict and not placement.report.is_exact:
            raise ValueError(
                f"The ticket does not fit {type(module).__name__}. {placement.report} "
                f"To load only what fits, pass `strict=False`."
            )
        placement.write_()
        return placement.report


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < 0:
        raise ValueError(f"`{name}` must be at least 0, got {value}.")


def _as_float(name: str, value: object) -> float:
    if not isinstance(value, Real | torch.Tensor):
        raise TypeError(f"The metric {name!r} must be a number, got {value!r}.")
    return float(value)


def _copy(name: str, weight: Tensor) -> Tensor:
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"The weight {name!r} must be a tensor, got {type(weight).__name__}.")
    if weight.is_meta or weight.layout != torch.strided or weight.dtype not in _DTYPES:
        raise ValueError(
            f"{name!r} cannot be stored in a ticket: device {weight.device}, layout "
            f"{weight.layout}, {weight.dtype}. It must be dense, not on the meta device, and of "
            f"one of {', '.join(map(str, _DTYPES))}. Keep it in another form, such as "
            "`torch.view_as_real` of complex numbers."
        )
    return whole(weight.detach()).to("cpu", copy=True, memory_format=torch.contiguous_format)


def _check_finite(masks: Masks, weights: Mapping[str, Tensor]) -> None:
    """Buffers may hold infinities on purpose; a weight that is pruned and trained may not."""
    for name in masks:
        if not bool(weights[name].isfinite().all()):
            raise ValueError(
                f"{name!r} holds NaN or infinity, so nothing can be trained from it. "
                f"Take the weights at a step before the training diverged."
            )


def _tensors(ticket: Ticket) -> dict[str, Tensor]:
    masks = {f"mask/{name}": bits for name, bits in ticket.masks.pack().items()}
    return masks | {f"weight/{name}": weight for name, weight in ticket.weights.items()}


def _description(ticket: Ticket) -> str:
    description = {
        "round": ticket.round,
        "step": ticket.step,
        "seed": ticket.seed,
        "density": ticket.density,
        "metrics": {name: repr(value) for name, value in ticket.metrics.items()},  # JSON has no NaN
        "mask_shapes": {name: list(mask.shape) for name, mask in ticket.masks.items()},
        "fingerprint": ticket.fingerprint,
        "versions": dict(ticket.versions),
    }
    return json.dumps(description, sort_keys=True, allow_nan=False)


def _content_digest(ticket: Ticket) -> str:
    return content_digest(_tensors(ticket), _description(ticket))


def _parse(tensors: Mapping[str, Tensor], text: str) -> Ticket:
    described = json.loads(text)
    packed = {n.removeprefix("mask/"): t for n, t in tensors.items() if n.startswith("mask/")}
    shapes = {name: torch.Size(shape) for name, shape in described["mask_shapes"].items()}
    ticket = Ticket(
        Masks.unpack(packed, shapes),
        {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")},
        round=described["round"],
        step=described["step"],
        seed=described["seed"],
        metrics={name: float(value) for name, value in described["metrics"].items()},
    )
    if described["fingerprint"] != ticket.fingerprint:
        raise ValueError("The architecture's fingerprint does not match the weights.")
    object.__setattr__(ticket, "versions", _versions(described["versions"]))
    return ticket


def _versions(described: object) -> dict[str, str]:
    if not isinstance(described, dict) or not all(isinstance(v, str) for v in described.values()):
        raise TypeError(f"The versions must be a text for each library, got {described!r}.")
    return described
