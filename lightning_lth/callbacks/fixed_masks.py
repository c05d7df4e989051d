"""Trains a sparse network with masks that stay as they are, e.g. a ticket or a control."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from typing_extensions import override

from lightning_lth.callbacks import _compatibility, _trainer
from lightning_lth.callbacks._lightning import Callback
from lightning_lth.pruning.masking import MaskKeeper, masked_parameters
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import named_parameters

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


@final
class FixedMasks(Callback):
    """Hold pruned weights at exactly zero during an ordinary training.

    Lightning's WeightAveraging and StochasticWeightAveraging may average the weights meanwhile.

    Args:
        masks: For parameters of the module, by name; the other parameters train unmasked.

    Raises:
        TypeError: If ``masks`` is not a ``lightning_lth.Masks``.

    Examples:
        Train a ticket of another run::

            ticket = Ticket.load("tickets/round_05.safetensors")
            ticket.apply_(module)
            Trainer(max_epochs=10, callbacks=[FixedMasks(ticket.masks)]).fit(module)
    """

    def __init__(self, masks: Masks) -> None:
        if not isinstance(masks, Masks):
            raise TypeError(f"`masks` must be Masks, got {type(masks).__name__}.")
        self.masks = masks
        self._keeper: MaskKeeper | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work."""
        if stage == "fit":
            _compatibility.refuse_incompatible(trainer, self, (FixedMasks,), has_rounds=False)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, before the sanity check looks at the weights."""
        self._keeper = MaskKeeper(
            masked_parameters(pl_module, self.masks),
            trainer.optimizers,
            project=_compatibility.touches_gradients(trainer, pl_module),
        )
        self._keeper.hold_(self.masks)
        for average in _trainer.averages(trainer):  # copies that were made in `setup`
            self.masks.apply_(named_parameters(average))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune again: the optimizer state of a checkpoint has come since."""
        assert self._keeper is not None
        self._keeper.hold_(self.masks)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse pruned weights that something has written to."""
        assert self._keeper is not None
        self._keeper.check()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take every hook away; Lightning does not call ``teardown`` then."""
        self._release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take every hook away."""
        self._release()

    def _release(self) -> None:
        if self._keeper is not None:
            self._keeper.release()
            self._keeper = None
