"""What all processes of a training agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

T = TypeVar("T")


def means(trainer: Trainer, *values: float) -> list[float]:
    """Each value's mean over the ranks, where they differ; called by all ranks together."""
    if trainer.world_size == 1:
        return list(values)
    own = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    by_rank = trainer.strategy.all_gather(own).view(-1, len(values))
    is_same = (by_rank == by_rank[0]).all(0)
    agreed: list[float] = torch.where(is_same, by_rank[0], by_rank.mean(0)).tolist()
    return agreed


def of_first(trainer: Trainer, value: T) -> T:
    """What rank 0 has; called by all ranks together."""
    if trainer.world_size == 1:
        return value
    first: T = trainer.strategy.broadcast(value)
    return first


def all_have(trainer: Trainer, metric: str) -> bool:
    """Whether the metric is logged on every rank; called by all ranks together."""
    has = metric in trainer.callback_metrics
    return bool(trainer.strategy.reduce_boolean_decision(has, all=True))
