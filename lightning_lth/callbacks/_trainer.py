"""Every private attribute of the Trainer that we cannot avoid, with the reason; Lightning 2.6.

Those that serve several trainings in one fit are in `_rounds.py`.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightning_lth.callbacks._lightning import lightning_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities import CombinedLoader
    from torch import Tensor
    from torch.nn import Module


def train_dataloader_source(trainer: Trainer) -> Any:
    """What the user gives to train on: a loader, or loaders in a structure; a hook is called."""
    return trainer.fit_loop._data_source.dataloader()


def train_dataloaders(trainer: Trainer) -> list[Any]:
    """The training data loaders, as a flat list."""
    combined_loader = trainer.fit_loop._combined_loader
    return list(combined_loader.flattened) if combined_loader is not None else []


def combined_loader(trainer: Trainer) -> CombinedLoader:
    """The training data loaders in their structure."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return loader


def batches_per_step(trainer: Trainer) -> int:
    """Over how many batches gradients are accumulated; an epoch's last step may take fewer."""
    return int(min(trainer.accumulate_grad_batches, trainer.num_training_batches))


def run_training_batch(trainer: Trainer, batch: Any, index: int) -> Tensor | None:
    """Train on a batch as the training loop does: precision, clipping, accumulation and all.

    Args:
        trainer: In ``on_train_start`` or later.
        batch: As the loader gave it.
        index: Of the batch in its epoch, from 0.

    Returns:
        The loss of the batch; None if the step gave none.
    """
    epoch_loop, module = trainer.fit_loop.epoch_loop, trainer.lightning_module
    epoch_loop.batch_progress.current.ready = index + 1
    epoch_loop.batch_progress.is_last_batch = index + 1 == trainer.num_training_batches
    arguments = epoch_loop._build_kwargs(OrderedDict(), on_device(trainer, batch), index)
    if module.automatic_optimization:
        optimization = epoch_loop.automatic_optimization
        loss = optimization.run(trainer.optimizers[0], index, arguments).get("loss")
        return None if loss is None else loss * trainer.accumulate_grad_batches  # it was divided
    return epoch_loop.manual_optimization.run(arguments).get("loss")


def on_device(trainer: Trainer, batch: Any) -> Any:
    """A batch of the loader, as ``training_step`` gets it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch)
    return trainer.strategy.batch_to_device(batch)


def training_loss(trainer: Trainer, batch: Any) -> Tensor:
    """The loss that ``training_step`` gives for a batch on the device; no step is taken."""
    arguments = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, 0)
    with trainer.precision_plugin.train_step_context():
        outputs = trainer.lightning_module.training_step(*arguments.values())
    return outputs["loss"] if isinstance(outputs, Mapping) else outputs  # type: ignore[return-value]


def is_stepping_batch(trainer: Trainer) -> bool:
    """In ``on_train_batch_start``: whether the optimizers step after this batch."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


@contextlib.contextmanager
def counters_kept(trainer: Trainer) -> Iterator[None]:
    """Afterwards steps and batches are counted as before, and what was logged is forgotten."""
    epoch_loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    results, logging_hook = epoch_loop._results, connector._current_fx
    epoch_loop._results = type(results)(training=True)
    counters = (
        epoch_loop.batch_progress,
        epoch_loop.automatic_optimization.optim_progress,
        epoch_loop.manual_optimization.optim_step_progress,
    )
    states = [copy.deepcopy(counter.state_dict()) for counter in counters]
    try:
        yield
    finally:
        epoch_loop._results, connector._current_fx = results, logging_hook
        for counter, state in zip(counters, states, strict=True):
            counter.load_state_dict(state)


def has_communication_hook(trainer: Trainer) -> bool:
    """Whether DDP compresses gradients on their way: PowerSGD gives pruned weights some again."""
    return getattr(trainer.strategy, "_ddp_comm_hook", None) is not None


def averages(trainer: Trainer) -> list[Module]:
    """The copies in which Lightning's WeightAveraging callbacks average the module."""
    kind = lightning_of(trainer).callbacks.WeightAveraging
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [one._average_model.module for one in callbacks if isinstance(one, kind)]


@contextlib.contextmanager
def accumulation_of_epoch(trainer: Trainer) -> Iterator[None]:
    """Inside, gradients are accumulated as in the epoch that begins; a callback sets it later."""
    before = trainer.accumulate_grad_batches
    for scheduler in _accumulation_schedulers(trainer):
        factor = scheduler.get_accumulate_grad_batches(trainer.current_epoch)
        trainer.accumulate_grad_batches = factor
    try:
        yield
    finally:
        trainer.accumulate_grad_batches = before


def accumulation_changes(trainer: Trainer) -> bool:
    """Whether epochs differ in how many batches gradients are accumulated over."""
    schedulers = _accumulation_schedulers(trainer)
    return any(len(set(scheduler.scheduling.values())) > 1 for scheduler in schedulers)


def _accumulation_schedulers(trainer: Trainer) -> list[Any]:
    kind = lightning_of(trainer).callbacks.GradientAccumulationScheduler
    return [one for one in trainer.callbacks if isinstance(one, kind)]  # type: ignore[attr-defined]


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Whether this is a trial run of a batch or a few; set by Lightning where mypy can't see it."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def is_fresh_start(trainer: Trainer) -> bool:
    """In ``setup``: whether this Trainer has not trained before; it may still load a checkpoint."""
    return trainer.global_step == 0 and trainer.current_epoch == 0


def is_resuming(trainer: Trainer) -> bool:
    """Whether, before training starts, a checkpoint has been loaded to go on from.

    ``trainer.ckpt_path`` would not do: Lightning's learning-rate finder leaves its own path there.
    """
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def logging_step(trainer: Trainer) -> int:
    """The step under which Lightning sends metrics to the loggers; goes on over the rounds."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def is_logging_step(trainer: Trainer) -> bool:
    """Whether Lightning sends the metrics of the present training batch to the loggers.

    ``log_every_n_steps`` alone would not do: its count is that of ``logging_step``, and a step
    that requests the end is logged, too.
    """
    return trainer._logger_connector.should_update_logs


def training_metrics(trainer: Trainer) -> set[str]:
    """Names of the metrics that were logged while training, rather than in a validation."""
    results = trainer.fit_loop.epoch_loop._results
    return {metric.meta.name for metric in results.values()}


def means_of_training(trainer: Trainer) -> set[str]:
    """Names of the metrics that are means over an epoch of training, known when that ends."""
    metas = [metric.meta for metric in trainer.fit_loop.epoch_loop._results.values()]
    names = [meta.name for meta in metas if meta.on_epoch]
    return {*names, *(f"{name}_epoch" for name in names)}


def can_stop(trainer: Trainer) -> bool:
    """Whether ``min_epochs`` and ``min_steps`` let training stop after the present batch."""
    fit_loop = trainer.fit_loop
    epochs = fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    if trainer.validating and fit_loop.epoch_loop._num_ready_batches_reached():
        epochs += 1  # the epoch ends with this validation
    is_met = epochs >= (fit_loop.min_epochs or 0)
    return is_met and trainer.global_step >= (trainer.min_steps or 0)
