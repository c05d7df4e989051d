"""The landscape of the loss along the gradient, from a training batch that leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_lth.callbacks import _trainer, _trial
from lightning_lth.callbacks.fixed_masks import FixedMasks
from lightning_lth.callbacks.pruning import IterativeMagnitudePruning
from lightning_lth.layer_stats.landscape import Landscape, probe
from lightning_lth.pruning.parameters import named_parameters

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def landscape(trainer: Trainer, batch: Any) -> Landscape | None:
    """Probe the landscape with one batch, at the present learning rate.

    Args:
        trainer: At the end of an epoch.
        batch: As ``training_step`` gets it.

    Returns:
        What was measured; None where the learning rate is 0, or there is none.
    """
    module = trainer.lightning_module
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if not groups or not (lr := float(groups[0]["lr"])) > 0:
        return None

    def loss() -> Tensor:
        return _trainer.training_loss(trainer, batch)

    with _masked(trainer), _trial.own_attributes(module), _trial.silence(trainer, module):
        return probe(loss, module, lr=lr, internal_covariate_shift=True)


@contextlib.contextmanager
def _masked(trainer: Trainer) -> Iterator[None]:
    """Inside, pruned weights have no gradient, so that no step along it moves them."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    kinds = (FixedMasks, IterativeMagnitudePruning)
    masks = [pair for one in callbacks if isinstance(one, kinds) for pair in one.masks.items()]
    parameters = named_parameters(trainer.lightning_module)
    with contextlib.ExitStack() as stack:
        for name, mask in masks:
            if (parameter := parameters[name]).requires_grad:
                hook = parameter.register_hook(mask.to(parameter).mul)  # type: ignore[no-untyped-call]
                stack.callback(hook.remove)
        yield


def scalars(measured: Landscape) -> dict[str, float]:
    """The measurements by tag."""
    shifts = {
        f"internal_covariate_shift/{shift.layer}/{name}": value
        for shift in measured.shifts
        for name, value in (("difference", shift.difference), ("cosine", shift.cosine))
    }
    return {
        "landscape/loss/min": measured.loss_min,
        "landscape/loss/max": measured.loss_max,
        "landscape/gradient/min": measured.predictiveness_min,
        "landscape/gradient/max": measured.predictiveness_max,
        "landscape/beta": measured.beta,
        **shifts,
    }
