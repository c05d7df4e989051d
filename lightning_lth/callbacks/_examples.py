"""An example batch that no data loader notices, and a module that can be tried out on it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch.nn import Module
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_lth.callbacks import _trainer
from lightning_lth.callbacks._lightning import lightning_of
from lightning_lth.callbacks._trial import silence
from lightning_lth.learning_rate.batches import generators_in, stateful_in
from lightning_lth.snapshot import undone

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_ADVICE = "Pass `example_input`, or set `example_input_array` on the module."


def example_batch(trainer: Trainer) -> Any:
    """A batch of the training data, as ``training_step`` gets it.

    Its examples are spread evenly over the data set and are taken from it directly: samplers,
    generators, workers and random states do not notice.

    Raises:
        LookupError: If the data cannot be read without using it up.
    """
    utilities = lightning_of(trainer).utilities
    with utilities.seed.isolate_rng():
        loaders = _trainer.train_dataloader_source(trainer)
        is_combined = isinstance(loaders, utilities.CombinedLoader)
        batch = _batches(loaders.iterables if is_combined else loaders)
        return _trainer.on_device(trainer, batch)


def rehearsal(module: LightningModule) -> LightningModule:
    """A copy without a Trainer, on which steps can be tried out.

    Methods that ``torch.compile`` has put on the instance would run the original; they are dropped.
    """
    replica = copy.deepcopy(module)
    for name in ("forward", "training_step"):
        vars(replica).pop(name, None)
    return replica


def training_step(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Run one training step of a ``rehearsal``; what it logs goes nowhere.

    Raises:
        LookupError: If the step takes an iterator instead of a batch, or steps its optimizers.
    """
    if not module.automatic_optimization:  # it would step the real optimizers
        raise LookupError(f"`training_step` optimizes by itself and cannot be tried. {_ADVICE}")
    takes = lightning_of(trainer).utilities.signature_utils.is_param_in_hook_signature
    if takes(module.training_step, "dataloader_iter", explicit=True):
        raise LookupError(f"`training_step` takes a `dataloader_iter`. {_ADVICE}")
    arguments = [batch]
    if takes(module.training_step, "batch_idx", min_args=2):
        arguments.append(0)
    vars(module)["_trainer"] = trainer
    with silence(trainer, module), trainer.precision_plugin.train_step_context():
        return module.training_step(*arguments)


def _batches(loaders: Any) -> Any:
    """Batches in the structure that the loaders come in."""
    if isinstance(loaders, dict):
        return {name: _batches(loader) for name, loader in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return type(loaders)(_batches(loader) for loader in loaders)
    return _batch(loaders)


def _batch(loader: Any) -> Any:
    if not isinstance(loader, DataLoader):
        raise LookupError(
            f"a {type(loader).__name__} cannot be read without using it up. {_ADVICE}"
        )
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise LookupError(
            f"{type(dataset).__name__} has no examples that can be read without using it up. "
            f"{_ADVICE}"
        )
    if len(dataset) == 0:
        raise LookupError(f"{type(dataset).__name__} is empty. {_ADVICE}")
    with undone(Module(), generators=generators_in(loader), extra=stateful_in(loader)):
        return _collated(loader, dataset)


def _collated(loader: DataLoader[Any], dataset: Any) -> Any:
    takes_lists = loader.batch_size is None and isinstance(loader.sampler, BatchSampler)
    batches = loader.sampler if takes_lists else loader.batch_sampler
    size = loader.batch_size or getattr(batches, "batch_size", None)
    total = len(dataset)
    if size is None:  # automatic batching is switched off
        return loader.collate_fn(dataset[0])
    size = min(size, total)
    indices = [position * total // size for position in range(size)]
    if takes_lists:
        return loader.collate_fn(dataset[indices])
    many = getattr(dataset, "__getitems__", None)
    return loader.collate_fn(many(indices) if many else [dataset[index] for index in indices])
