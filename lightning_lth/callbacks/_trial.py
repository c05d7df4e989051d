"""Training steps that are Lightning's own and leave no trace."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import types
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, final

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_lth.callbacks import _trainer
from lightning_lth.callbacks._lightning import lightning_of
from lightning_lth.learning_rate.batches import (
    check_rewindable,
    endless,
    fresh,
    generators_in,
    stateful_in,
)
from lightning_lth.snapshot import Snapshot, undone

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch.nn import Module

_INTERNAL = frozenset(vars(torch.nn.Module())) | {"_trainer", "_fabric"}
_FUNCTIONS = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    functools.partial,
)
_SHARED = (torch.nn.Module, Dataset, DataLoader, torch.optim.Optimizer, *_FUNCTIONS)


@contextlib.contextmanager
def trial(trainer: Trainer, loader: Any = None) -> Iterator[Trial]:
    """Inside, training steps can be taken; afterwards everything is as before.

    That is: parameters, buffers, optimizers, schedulers, gradient scaler, random states and
    generators, the order of the data, attributes of the modules, counters of the loops. Meanwhile
    other callbacks and the loggers notice nothing. After an exception or Ctrl-C, too.

    Args:
        trainer: In ``on_train_start``.
        loader: Of the batches to train on; by default the training data.

    Raises:
        ValueError: If the batches could not be read again by the training that follows.
    """
    module = trainer.lightning_module
    batches = _Batches(trainer, loader)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    with contextlib.ExitStack() as stack:
        snapshot = stack.enter_context(
            undone(
                module,
                trainer.optimizers,
                generators=[g for part in batches.loaders for g in generators_in(part)],
                extra=[
                    *(state for part in batches.loaders for state in stateful_in(part)),
                    *(config.scheduler for config in trainer.lr_scheduler_configs),
                    *([scaler] if scaler is not None else []),
                ],
            )
        )
        stack.enter_context(own_attributes(module))
        stack.enter_context(_trainer.counters_kept(trainer))
        stack.enter_context(silence(trainer, module))
        yield Trial(trainer, snapshot, batches)


@final
class Trial:
    """Takes training steps; made by :func:`trial`."""

    def __init__(self, trainer: Trainer, snapshot: Snapshot, batches: _Batches) -> None:
        self._trainer = trainer
        self._snapshot = snapshot
        self._batches = batches
        self._iterator = endless(batches)

    def step(self) -> float:
        """Take one optimizer step, on as many batches as gradients are accumulated over.

        Returns:
            The mean loss of those batches, and over all ranks.

        Raises:
            RuntimeError: If the training step gives no loss.
        """
        total = torch.zeros((), device=self._trainer.strategy.root_device)
        num_batches = _trainer.batches_per_step(self._trainer)
        for index in range(num_batches):
            loss = _trainer.run_training_batch(self._trainer, next(self._iterator), index)
            if loss is None:
                raise RuntimeError(
                    "`training_step` returned no loss, so there is nothing to measure. Return the "
                    "loss, or a dictionary with the key 'loss'; in manual optimization, too."
                )
            total += loss.detach()
        return float(self._trainer.strategy.reduce(total / num_batches, reduce_op="mean"))

    def restart(self) -> None:
        """Go back to the state before the trial, and to the first batch."""
        self._iterator.close()
        self._snapshot.restore()
        self._iterator = endless(self._batches)


@final
class _Batches:
    """Passes over the training data that the iterator of the training does not notice."""

    def __init__(self, trainer: Trainer, loader: Any) -> None:
        combined = _trainer.combined_loader(trainer)
        if loader is not None:
            combined = type(combined)(loader, "max_size_cycle")
        self.loaders = list(combined.flattened)
        for part in self.loaders:
            check_rewindable(part)
        self._combine, self._mode = type(combined), combined._mode
        self._structure = combined.iterables
        limit = trainer.num_training_batches if loader is None else math.inf
        self._limit = None if math.isinf(limit) else int(limit)

    def __iter__(self) -> Iterator[Any]:
        copies = self._combine(self._structure, self._mode)
        copies.flattened = [_unnoticed(part) for part in self.loaders]
        return islice((batch for batch, _, _ in iter(copies)), self._limit)


def _unnoticed(loader: Any) -> Any:
    """A loader whose iteration changes neither it nor its data set."""
    if not (isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)):
        return fresh(loader)
    other = copy.copy(loader)
    try:
        vars(other)["dataset"] = copy.deepcopy(loader.dataset)  # where it has been read to
    except TypeError as error:
        raise ValueError(
            f"{type(loader.dataset).__name__} can be read only once: what the test reads would be "
            f"missing from training. Pass `dataloader=` with other batches."
        ) from error
    vars(other)["_iterator"] = None
    return other


@contextlib.contextmanager
def own_attributes(module: Module) -> Iterator[None]:
    """Inside, modules have copies of their attributes, such as counters, lists and metrics."""
    shared: dict[int, Any] = {
        id(value): value
        for value in (
            *module.modules(),
            *module.parameters(),
            *module.buffers(),
            getattr(module, "_trainer", None),
        )
    }
    originals = [(layer, _attributes(layer)) for layer in module.modules()]
    for layer, attributes in originals:
        for name, value in attributes.items():
            vars(layer)[name] = _copied(value, shared)
    try:
        yield
    finally:
        for layer, attributes in originals:
            for name in set(_attributes(layer)) - set(attributes):
                del vars(layer)[name]
            vars(layer).update(attributes)


def _attributes(layer: Module) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name not in _INTERNAL}


def _copied(value: Any, shared: dict[int, Any]) -> Any:
    if isinstance(value, _SHARED):
        return value
    try:
        return copy.deepcopy(value, dict(shared))
    except Exception:  # e.g. an open file; it cannot be kept from changing
        return value


@contextlib.contextmanager
def silence(trainer: Trainer, module: Module) -> Iterator[None]:
    """Inside, ``module`` logs nothing, no callback is called, and no request to stop is heard."""
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    lightning = lightning_of(trainer)
    modules = [one for one in module.modules() if isinstance(one, lightning.LightningModule)]
    should_stop = trainer.should_stop
    trainer.callbacks = []  # type: ignore[attr-defined]
    trainer.loggers = [lightning.loggers.logger.DummyLogger()] if loggers else []
    for one in modules:
        vars(one).update(log=_ignore, log_dict=_ignore)
    try:
        yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        trainer.loggers = loggers
        trainer.should_stop = should_stop
        for one in modules:
            for name in ("log", "log_dict"):
                vars(one).pop(name, None)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``log`` and ``log_dict``."""
