"""Parameters whose rows are spread over ranks, as FSDP2 (``fully_shard``) leaves them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.nn import Module


@final
@dataclass(frozen=True)
class Ranks:
    """The processes that hold the parts of distributed parameters; or this process alone.

    Examples:
        >>> Ranks.of([torch.zeros(2)]).gather([3, 4])
        [[3], [4]]
    """

    mesh: DeviceMesh | None = None

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Ranks:
        """The ranks over which these tensors are spread.

        Raises:
            ValueError: If the tensors are spread over several device meshes.
        """
        meshes = [_of(tensor).device_mesh for tensor in tensors if is_distributed(tensor)]
        if any(mesh != meshes[0] for mesh in meshes):
            raise ValueError(
                "Parameters that are ranked together must lie on one device mesh, "
                f"got {meshes}. Prune them with different `fractions`, or with `scope='layer'`."
            )
        return cls(meshes[0] if meshes else None)

    @property
    def index(self) -> int:
        """Which of the ranks this is, from 0."""
        return self.mesh.get_local_rank() if self.mesh else 0

    def total(self, count: int) -> int:
        """The sum of every rank's count."""
        if self.mesh is None:
            return count
        total = torch.tensor(count, device=self.mesh.device_type)
        torch.distributed.all_reduce(total, group=self.mesh.get_group())
        return int(total)

    def gather(self, counts: Sequence[int]) -> list[list[int]]:
        """Every rank's counts: one row for each of ``counts``, one column for each rank."""
        if self.mesh is None:
            return [[count] for count in counts]
        mine = torch.tensor(counts, dtype=torch.int64, device=self.mesh.device_type)
        columns = [torch.empty_like(mine) for _ in range(self.mesh.size())]
        torch.distributed.all_gather(columns, mine, group=self.mesh.get_group())
        rows: list[list[int]] = torch.stack(columns, dim=1).tolist()
        return rows


def is_distributed(tensor: Tensor) -> bool:
    """Whether the tensor is a ``DTensor``."""
    return hasattr(tensor, "device_mesh")  # no import of `DTensor`, which is slow


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds other rows of the tensor."""
    return is_distributed(tensor) and any(placed.is_shard() for placed in _of(tensor).placements)


def local_part(tensor: Tensor) -> Tensor:
    """The shard of a distributed tensor that lives on this rank; any other tensor as it is."""
    return _of(tensor.detach()).to_local() if is_distributed(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A distributed tensor gathered from its shards, by all ranks; any other tensor as it is."""
    return _of(tensor).full_tensor() if is_distributed(tensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, on the device of another, and distributed like it."""
    tensor = tensor.to(like.device)
    if not is_distributed(like) or is_distributed(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, _of(like).device_mesh, _of(like).placements)


def reshard_(module: Module) -> None:
    """Let FSDP2 put the sharded parameters back into the module.

    After an evaluation it leaves gathered copies there, until the next backward pass.
    """
    for submodule in module.modules():
        reshard = getattr(submodule, "reshard", None)
        if callable(reshard) and type(submodule).__name__.startswith("FSDP"):
            reshard()


def check_placement(name: str, mask: Tensor, inputs: Iterable[Tensor]) -> None:
    """Refuse what cannot be ranked shard by shard.

    Raises:
        ValueError: If a mask and its scores are placed differently, or other than whole or by rows
            over a one-dimensional mesh.
    """
    if any(_placement(tensor) != _placement(mask) for tensor in inputs):
        raise ValueError(
            f"The mask of {name!r} must be distributed like its weights. "
            "`Masks.dense(weights)` makes such masks."
        )
    if not is_distributed(mask):
        return
    placements = _of(mask).placements
    if len(placements) != 1 or not (placements[0].is_shard(0) or placements[0].is_replicate()):
        raise ValueError(
            f"{name!r} must be replicated or sharded by rows (`Shard(0)`) over a one-dimensional "
            f"mesh to be pruned, got {placements}. Gather it first: `tensor.full_tensor()`."
        )


def as_shard(local: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor, as a tensor that is distributed and shaped like another."""
    if not is_distributed(like):
        return local.view(like.shape)
    from torch.distributed.tensor import DTensor

    pattern = _of(like)
    return DTensor.from_local(
        local.view(pattern.to_local().shape),
        pattern.device_mesh,
        pattern.placements,
        run_check=False,
        shape=pattern.shape,
        stride=pattern.stride(),
    )


def _placement(tensor: Tensor) -> tuple[object, ...] | None:
    if not is_distributed(tensor):
        return None
    return (_of(tensor).device_mesh, tuple(_of(tensor).placements))


def _of(tensor: Tensor) -> DTensor:
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return tensor
