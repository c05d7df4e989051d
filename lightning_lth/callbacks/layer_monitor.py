"""What normalization and dropout layers do while a network trains."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, final

from lightning_utilities.core.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_lth.callbacks import (
    _arguments,
    _landscape,
    _layer_charts,
    _strategies,
    _tensorboard,
    _trainer,
)
from lightning_lth.callbacks._lightning import Callback
from lightning_lth.layer_stats.findings import Diagnosis, Finding, Thresholds
from lightning_lth.layer_stats.observer import LayerObserver
from lightning_lth.layer_stats.table import Table

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_lth.layer_stats.landscape import Landscape

_MAX_VALIDATION_BATCHES = 16  # spread over the validation; more would only cost time


@final
class LayerStatsMonitor(Callback):
    """Watch BatchNorm, Dropout and the other normalization layers, and say what is wrong with them.

    While training: how far each batch is from a BatchNorm's running statistics, and from the batch
    before; scales, offsets and dead channels; what Dropout keeps, and the shift of variance that
    it makes. In validations: the shift between training and evaluation. Each problem is told once,
    with the layer and a remedy, as a warning; all are in ``diagnoses``.

    Costs next to nothing but on the steps that are logged. Changes nothing, draws no random
    numbers; measures on rank 0, whose buffers are the true ones.

    Args:
        every_n_steps: Optimizer steps between two measurements, at least 1; by default
            ``Trainer(log_every_n_steps=...)``.
        activations: Also mean and standard deviation of the inputs of all normalization layers.
        histograms: Also histograms of scales and offsets, when epochs end, in TensorBoard.
        landscape: Also, when epochs end, how smooth the loss is along the gradient, and the
            gradient-based internal covariate shift of each layer (Santurkar et al. 2018). Costs as
            much as 5 training steps and one for each layer. Not in manual optimization.
        thresholds: When a statistic is worth a word.

    Raises:
        ValueError: If ``every_n_steps`` is out of its range.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> monitor = LayerStatsMonitor()
        >>> trainer = Trainer(max_epochs=10, callbacks=[monitor], logger=False)

    Source:
        Ioffe & Szegedy 2015, arXiv:1502.03167; Li et al. 2019, arXiv:1801.05134 (variance shift);
        Tian et al. 2019, arXiv:1905.13405 (negative offsets); Santurkar et al. 2018,
        arXiv:1805.11604 (landscape).
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        activations: bool = False,
        histograms: bool = False,
        landscape: bool = False,
        thresholds: Thresholds = Thresholds(),  # noqa: B008  # frozen
    ) -> None:
        if every_n_steps is not None:
            _arguments.check_at_least("every_n_steps", every_n_steps, 1)
        self.every_n_steps = every_n_steps
        self.activations = activations
        self.histograms = histograms
        self.landscape = landscape
        self.thresholds = thresholds
        self.table = Table()
        self.landscapes: list[tuple[int, Landscape]] = []
        self._observer: LayerObserver | None = None
        self._diagnoses: list[Diagnosis] = []
        self._layers: list[dict[str, Any]] = []
        self._last_batch: Any = None
        self._num_measured = 0

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """What was found in this fit, problems and notes, oldest first."""
        return list(self._diagnoses)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """One row for each watched layer: its kind, state, settings and latest statistics."""
        latest = self.table.latest
        return [{**row, **latest.get(row["layer"], {})} for row in self._layers]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work; start with empty tables."""
        if stage != "fit":
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(one, LayerStatsMonitor) for one in callbacks) > 1:
            raise ValueError(
                "Only one `LayerStatsMonitor` can be in a Trainer: two would log under the same "
                "names. Take one of them out of `callbacks`."
            )
        if self.landscape and not pl_module.automatic_optimization:
            raise ValueError(
                "`landscape=True` needs automatic optimization: a `training_step` that steps its "
                "optimizers itself cannot be repeated. Leave it out, or call "
                "`lightning_lth.layer_stats.landscape.probe` yourself."
            )
        if self.landscape and _strategies.shards(trainer):
            raise ValueError(
                f"`landscape=True` cannot take steps with the shards of "
                f"{type(trainer.strategy).__name__}. Use DDP, or leave it out."
            )
        if _trainer.is_fresh_start(trainer):
            self.table, self.landscapes, self._diagnoses = Table(), [], []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the hooks before anything runs, so that compiled modules have them."""
        self._observer = LayerObserver(pl_module, activations=self.activations)
        self._num_measured = 0
        _layer_charts.add(trainer, self._observer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare nothing with the batches of another round."""
        self._observing.restart()
        self._layers = self._observing.layers()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at this batch, if it is one that is logged."""
        if self.landscape:
            self._last_batch = batch  # any may be the last: `max_steps`, early stopping
        if self._is_due(trainer):
            self._observing.start_training_batch()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """The forward pass is over."""
        if pl_module.automatic_optimization:
            self._observing.stop_survey()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log what was seen."""
        if self._observing.is_in_batch:
            self._num_measured += 1
            self._record(trainer, self._observing.finish_training_batch())

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Look at some batches of the validation."""
        if self._is_watched_validation(trainer, batch_idx):
            self._observing.start_evaluation_batch()

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Look away."""
        if self._observer is not None and self._observer.is_in_batch:
            self._observer.finish_evaluation_batch()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the shift between training and evaluation."""
        if self._observer is not None and trainer.is_global_zero and not trainer.sanity_checking:
            self._record(trainer, self._observer.finish_evaluation())

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scales, write histograms, and probe the landscape."""
        _tensorboard.log_scalars(trainer, _layer_charts.scales(self._observing, self.table))
        if self.histograms:
            _tensorboard.add_histograms(trainer, self._observing.affine_parameters())
        if not self.landscape or self._last_batch is None:
            return
        measured = _landscape.landscape(trainer, self._last_batch)
        self._last_batch = None
        if measured is not None:
            self.landscapes.append((_trainer.logging_step(trainer), measured))
            _tensorboard.log_scalars(trainer, _landscape.scalars(measured))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the drift of all layers over the round."""
        _layer_charts.add_figures(trainer, self.table, self._observing)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if training was shorter than the interval."""
        n = self._interval(trainer)
        is_missing = self._num_measured == 0 and self._layers and n > 0
        if is_missing and not _trainer.is_fast_dev_run(trainer):
            rank_zero_info(
                f"`LayerStatsMonitor` has measured no training batch: it looks at every {n}th, and "
                "training was shorter. Give it a smaller `every_n_steps`."
            )

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

    @property
    def _observing(self) -> LayerObserver:
        assert self._observer is not None  # from `on_fit_start` on
        return self._observer

    def _interval(self, trainer: Trainer) -> int:
        if self.every_n_steps is not None:
            return self.every_n_steps
        return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]

    def _is_due(self, trainer: Trainer) -> bool:
        n = self._interval(trainer)
        is_turn = n > 0 and (_trainer.logging_step(trainer) + 1) % n == 0
        return is_turn and trainer.is_global_zero and _trainer.is_stepping_batch(trainer)

    def _is_watched_validation(self, trainer: Trainer, batch_idx: int) -> bool:
        if self._observer is None or not trainer.is_global_zero:
            return False
        if trainer.sanity_checking:
            return batch_idx == 0  # dropout in evaluation is seen there already
        num_batches = max(trainer.num_val_batches, default=0)
        stride = 1 if math.isinf(num_batches) else -(-num_batches // _MAX_VALIDATION_BATCHES)
        return batch_idx % stride == 0

    def _record(self, trainer: Trainer, numbers: dict[tuple[str, str], float]) -> None:
        self.table.add(_trainer.logging_step(trainer), numbers)
        self._layers = self._observing.layers()
        _tensorboard.log_scalars(trainer, _layer_charts.scalars(self._observing, numbers))
        for found in self._observing.diagnose(numbers, self.thresholds):
            if all(_subject(found) != _subject(one) for one in self._diagnoses):
                self._diagnoses.append(found)
                _tell(trainer, found)

    def _release(self) -> None:
        if self._observer is not None:
            self._observer.release()
        self._observer, self._last_batch = None, None


def _subject(found: Diagnosis) -> tuple[object, ...]:
    """What it is about; the numbers in the messages differ from step to step."""
    is_use = found.finding in (Finding.UNWATCHED_DROPOUT, Finding.DROPOUT_IN_EVALUATION)
    return found.finding, found.layer, found.message if is_use else ""


def _tell(trainer: Trainer, found: Diagnosis) -> None:
    if found.is_problem:
        warnings.warn(found.message, stacklevel=2)
    else:
        rank_zero_info(found.message)
    _tensorboard.add_text(
        trainer, f"diagnoses/{found.layer}/{found.finding.name.lower()}", found.message
    )
