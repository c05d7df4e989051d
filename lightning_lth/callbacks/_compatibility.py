"""What can run beside pruning, and what is refused, with the reason."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import SequentialSampler

from lightning_lth.callbacks import _strategies, _trainer
from lightning_lth.callbacks._lightning import callback_bases, lightning_of
from lightning_lth.pruning.selection import emptied
from lightning_lth.pruning.sharding import is_distributed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch import Tensor

    from lightning_lth.pruning.masks import Masks

_AVERAGING = (
    "its averages mix the weights of several rounds and carry pruned weights back. "
    "Remove it, or average in a training of its own: FixedMasks with the finished ticket"
)
_FLATTENED = (
    "it trains flattened copies of the parameters, in which a parameter and its mask cannot be "
    "found again. Use DDP, or ModelParallelStrategy (FSDP2)"
)
_TWO_MASKS = "two callbacks would hold two masks on the same weights. Use one of the two"
_TWO_RULES = "it prunes the same weights by other rules. Use one of the two"
_GRADIENT_HOOKS = (
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
)


def refuse_incompatible(
    trainer: Trainer,
    callback: Callback,
    own_types: tuple[type[Callback], ...],
    *,
    has_rounds: bool,
) -> None:
    """Raise where a strategy or another callback would break the masks.

    Args:
        trainer: Has the strategy and the callbacks.
        callback: Holds the masks.
        own_types: Callbacks of ours that hold masks, too.
        has_rounds: Whether it trains several times, so that averages would mix the weights.

    Raises:
        ValueError: With the reason and what to do instead.
    """
    name, lightning = type(callback).__name__, lightning_of(trainer)
    if _strategies.flattens(trainer):
        raise ValueError(
            f"{name} cannot work with {type(trainer.strategy).__name__}: {_FLATTENED}."
        )
    refused: dict[type, str] = dict.fromkeys(own_types, _TWO_MASKS)
    refused[lightning.callbacks.ModelPruning] = _TWO_RULES
    if has_rounds:
        refused[lightning.callbacks.StochasticWeightAveraging] = _AVERAGING
        refused[lightning.callbacks.WeightAveraging] = _AVERAGING
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        for refused_type, reason in refused.items():
            if other is not callback and isinstance(other, refused_type):
                raise ValueError(f"{name} cannot work beside {type(other).__name__}: {reason}.")


def touches_gradients(trainer: Trainer, module: LightningModule) -> bool:
    """Whether code of the user may change gradients between the backward pass and the step."""
    if not module.automatic_optimization or _trainer.has_communication_hook(trainer):
        return True
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return _overrides(module, [lightning_of(trainer).LightningModule]) or any(
        _overrides(callback, callback_bases()) for callback in callbacks
    )


def _overrides(user: object, bases: Sequence[type]) -> bool:
    return any(
        getattr(getattr(user, hook, None), "__func__", None)
        not in [getattr(base, hook) for base in bases]
        for hook in _GRADIENT_HOOKS
        if hasattr(bases[0], hook)
    )


def refuse_sharded_resume(masks: Masks, parameters: Mapping[str, Tensor]) -> None:
    """Refuse masks of a checkpoint for parameters that are sharded.

    Raises:
        RuntimeError: If the parameters are sharded and the masks are not.
    """
    if any(
        is_distributed(parameters[name]) and not is_distributed(mask)
        for name, mask in masks.items()
    ):
        raise RuntimeError(
            "A fit with sharded parameters (FSDP2) cannot be resumed in the middle of pruning. "
            "Start from the last ticket: `Ticket.load(...).apply_(module)` and FixedMasks, or DDP."
        )


def check_order_repeats(loaders: Iterable[Any]) -> None:
    """Refuse data whose order cannot be repeated.

    Raises:
        ValueError: If a loader shuffles by a sampler without ``set_epoch``, or has no sampler.
    """
    for loader in loaders:
        sampler = getattr(loader, "sampler", None)
        batch_sampler = getattr(loader, "batch_sampler", None)
        candidates = (sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        if any(hasattr(candidate, "set_epoch") for candidate in candidates):
            continue
        if type(getattr(batch_sampler, "sampler", sampler)) is SequentialSampler:
            continue
        raise ValueError(
            "`repeat_data_order=True` needs a sampler with `set_epoch`, or an unshuffled loader, "
            f"got {type(loader).__name__} with {type(sampler).__name__}. For one process: "
            "DataLoader(..., sampler=torch.utils.data.DistributedSampler"
            "(dataset, num_replicas=1, rank=0, seed=0))."
        )


def check_same_on_all_ranks(trainer: Trainer, masks: Masks) -> None:
    """Compare the masks of all ranks.

    Raises:
        RuntimeError: If they differ.
    """
    if trainer.world_size == 1:
        return
    fingerprint = int(masks.fingerprint()[:12], 16)
    own = torch.tensor(fingerprint, device=trainer.strategy.root_device)
    if bool((trainer.strategy.all_gather(own) != own).any()):
        raise RuntimeError(
            "The ranks would prune different weights, so their weights differ. "
            "Initialize all ranks alike (`seed_everything`), and use no rank-dependent criterion."
        )


def check_emptied(before: Masks, after: Masks, round_: int, action: str) -> None:
    """Warn, or refuse, where a round would prune the last weight of a layer.

    Raises:
        RuntimeError: If ``action`` is ``"refuse"``.
    """
    newly_empty = [name for name in emptied(after) if name not in emptied(before)]
    if not newly_empty:
        return
    message = (
        f"Round {round_} prunes every weight of {newly_empty}. Use `scope='layer'`, or "
        "give the layer a smaller fraction of its own in `fractions`."
    )
    if action == "refuse":
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
