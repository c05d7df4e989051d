"""Which strategies leave a process without the whole parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lth.callbacks._lightning import lightning_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def flattens(trainer: Trainer) -> bool:
    """Whether it trains flattened copies of the parameters: DeepSpeed, and the first FSDP."""
    of = lightning_of(trainer).strategies
    return isinstance(trainer.strategy, (of.DeepSpeedStrategy, of.FSDPStrategy))


def shards(trainer: Trainer) -> bool:
    """Whether a process may have parts of the parameters only: those, and FSDP2."""
    is_fsdp2 = isinstance(trainer.strategy, lightning_of(trainer).strategies.ModelParallelStrategy)
    return is_fsdp2 or flattens(trainer)
