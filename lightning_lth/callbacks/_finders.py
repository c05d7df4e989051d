"""What a CyclicalLR asks of the finders beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lth.callbacks.hyperparameter_finder import HyperparameterFinder
from lightning_lth.callbacks.lr_finder import LRFinder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import Callback


def check_order(callbacks: Sequence[Callback], cycles: Callback, finder: LRFinder | None) -> None:
    """The finder must have run when the first rate is set.

    Raises:
        ValueError: If there is none, or it does not stand before.
    """
    if finder is None:
        raise ValueError(
            "`base_lr` and `max_lr` must be given, or found by "
            "`CyclicalLR.from_finder(finder, ...)`."
        )
    if [one for one in callbacks if one is cycles or one is finder] != [finder, cycles]:
        raise ValueError(
            "The LRFinder of CyclicalLR must stand before it in the same Trainer: "
            "`callbacks=[finder, cycles]`."
        )


def refuse_second_setter(
    callbacks: Sequence[Callback], finder: LRFinder | None, *, cycles_momentum: bool
) -> None:
    """Refuse finders that would set what is cycled, since the last to set it would win.

    Args:
        callbacks: Of the Trainer.
        finder: Whose rates are cycled, if any.
        cycles_momentum: Whether momentum is cycled, too.

    Raises:
        ValueError: With what to do instead.
    """
    for one in callbacks:
        if isinstance(one, LRFinder) and one.apply and one is not finder:
            raise ValueError(
                "LRFinder and CyclicalLR would both set the learning rate. Cycle between what it "
                "finds, `CyclicalLR.from_finder(finder, ...)`, or only look: "
                "`LRFinder(apply=False)`."
            )
        is_momentum = isinstance(one, HyperparameterFinder) and one.parameter == "momentum"
        if cycles_momentum and is_momentum and one.apply:  # type: ignore[attr-defined]
            raise ValueError(
                "HyperparameterFinder and CyclicalLR would both set the momentum. Leave "
                "`base_momentum` and `max_momentum` out, or only look: "
                "`HyperparameterFinder(apply=False)`."
            )
