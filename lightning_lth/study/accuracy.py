"""Accuracies of given weights on training, validation and test data, beside a running fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from lightning_lth.study.experiments.loader import TensorLoader

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from lightning_lth.stopping.best_weights import BestWeights
    from lightning_lth.study.design import Measures

_EVALUATION_BATCH_SIZE = 1000


def accuracies(
    trainer: Trainer,
    model: LightningModule,
    weights: BestWeights,
    measures: Measures,
    *,
    training_data: bool = True,
    limit_batches: int | float = 1.0,
) -> dict[str, float]:
    """Measure the accuracies of some weights of the model that is being trained.

    Args:
        trainer: Fits a model of the same kind; its data are used.
        model: A fresh model, which gets the weights.
        weights: To measure.
        measures: Names of the metrics.
        training_data: Whether to measure on them, too, which takes longest.
        limit_batches: As in ``Trainer(limit_val_batches=...)``.

    Returns:
        ``train_accuracy`` unless it is not wanted, ``validation_accuracy``, and ``test_accuracy``
        if there are test data.
    """
    weights.restore_(model)
    source: Any = getattr(trainer, "datamodule", None) or trainer.lightning_module
    judge = _judge(trainer, limit_batches)
    name = measures.validation_accuracy
    found = {"validation_accuracy": _validated(judge, model, source, source.val_dataloader(), name)}
    if training_data:
        loader = _in_order(source.train_dataloader())
        found["train_accuracy"] = _validated(judge, model, source, loader, name)
    if has_test(source):
        data = _borrowed(source) if isinstance(source, LightningDataModule) else None
        metrics = judge.test(model, datamodule=data, verbose=False)
        found["test_accuracy"] = _one(metrics, measures.test_accuracy, "test_step")
    return found


def has_test(source: Any) -> bool:
    """Whether a data module, or a module with loaders of its own, has test data."""
    return is_overridden("test_dataloader", source)


def _in_order(loader: Any) -> Any:
    """The same examples for an evaluation: unshuffled, none left out, as far as we can tell how."""
    if isinstance(loader, TensorLoader):
        size = _EVALUATION_BATCH_SIZE
        return TensorLoader(loader.inputs, loader.labels, batch_size=size, shuffle=False)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    if type(loader.batch_sampler) is not BatchSampler:
        return loader
    dataset, sampler = loader.dataset, loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, sampler.indices)
    elif not isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler)):
        return loader
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def _validated(
    judge: Trainer, model: LightningModule, source: Any, loader: Any, name: str
) -> float:
    if isinstance(source, LightningDataModule):
        data = _borrowed(source, setup=_do_nothing, val_dataloader=lambda: loader)
        metrics = judge.validate(model, datamodule=data, verbose=False)
    else:
        metrics = judge.validate(model, loader, verbose=False)
    return _one(metrics, name, "validation_step")


def _borrowed(data: LightningDataModule, **methods: Callable[..., Any]) -> LightningDataModule:
    """A copy for one evaluation, with what ``data`` does to batches; the fit keeps its own."""
    borrowed = copy.copy(data)
    methods = {"prepare_data": _do_nothing, "teardown": _do_nothing, **methods}
    for name, method in methods.items():
        setattr(borrowed, name, method)
    return borrowed


def _do_nothing(stage: str | None = None) -> None:
    """It is done already."""


def _one(metrics: Any, name: str, step: str) -> float:
    logged = {key: value for part in metrics for key, value in part.items()}
    if name not in logged:
        present = ", ".join(sorted(logged)) or "nothing"
        raise ValueError(
            f"{name!r} was not logged by `{step}`. Logged: {present}. "
            "Name one of them in `measures`, or log it."
        )
    return float(logged[name])


def _judge(trainer: Trainer, limit_batches: int | float) -> Trainer:
    """A Trainer on the same device, or the first of several, with the same precision.

    Its logger takes whatever it is told, as modules talk to theirs.
    """
    return Trainer(
        accelerator=trainer.accelerator,
        devices=1 if (index := trainer.strategy.root_device.index) is None else [index],
        precision=trainer.precision,
        limit_val_batches=limit_batches,
        limit_test_batches=limit_batches,
        logger=DummyLogger(),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
