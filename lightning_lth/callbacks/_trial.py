"""Training steps that are Lightning's own and leave no trace."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_lth._hidden import modules_in
from lightning_lth.callbacks import _trainer
from lightning_lth.callbacks._lightning import lightning_of
from lightning_lth.learning_rate.batches import (
    check_rewindable,
    endless,
    fresh,
    generators_in,
    stateful_in,
)
from lightning_lth.snapshot import undone

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

MAX_PASSED_OVER = 10  # batches in a row without a loss
_INTERNAL = frozenset(vars(torch.nn.Module())) | {"_trainer", "_fabric"}
_SHARED = (Module, Dataset, DataLoader, Optimizer)


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
    batches = _Batches(trainer, loader)
    with (
        _trainer.accumulation_of_epoch(trainer),
        silence(trainer, trainer.lightning_module),
        contextlib.closing(Trial(trainer, batches)) as steps,
    ):
        yield steps


@final
class Trial:
    """Takes training steps; made by ``trial``."""

    def __init__(self, trainer: Trainer, batches: _Batches) -> None:
        self._trainer = trainer
        self._batches = batches
        self._has_loss = False
        self._begin()

    def step(self) -> float:
        """Take one optimizer step, on as many batches as gradients are accumulated over.

        Returns:
            The mean loss of those batches, and over all ranks. Batches for which the training step
            returns None are passed over; NaN if those are many in a row, as where the module
            guards itself against a loss that is NaN.

        Raises:
            RuntimeError: If the training step has never given a loss.
        """
        for _ in range(MAX_PASSED_OVER):
            losses = [float(loss) for loss in self._losses() if loss is not None]
            self._num_steps += 1
            if losses:
                self._has_loss = True
                break
        if not self._has_loss:
            raise RuntimeError(
                "`training_step` returned no loss, so there is nothing to measure. Return the "
                "loss, or a dictionary with the key 'loss'; in manual optimization, too."
            )
        mean = math.fsum(losses) / len(losses) if losses else math.nan
        own = torch.tensor(mean, device=self._trainer.strategy.root_device)
        return float(self._trainer.strategy.reduce(own, reduce_op="mean"))

    def restart(self) -> None:
        """Go back to the state before the trial, and to the first batch."""
        self.close()
        self._begin()

    def close(self) -> None:
        """Go back to the state before the trial."""
        self._stack.close()

    def _begin(self) -> None:
        trainer, module, loaders = self._trainer, self._trainer.lightning_module, self._batches.held
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        extra = [
            *(state for part in loaders for state in stateful_in(part)),
            *(config.scheduler for config in trainer.lr_scheduler_configs),
            *([scaler] if scaler is not None else []),
        ]
        generators = [one for part in loaders for one in generators_in(part)]
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                undone(module, trainer.optimizers, generators=generators, extra=extra)
            )
            stack.enter_context(own_attributes(module, trainer.optimizers))
            stack.enter_context(_trainer.counters_kept(trainer))
            self._iterator = stack.enter_context(contextlib.closing(endless(self._batches)))
            self._stack = stack.pop_all()
        self._num_steps = 0

    def _losses(self) -> Iterator[Tensor | None]:
        """The loss of each batch of one optimizer step, under the numbers that training uses."""
        num_batches = _trainer.batches_per_step(self._trainer)
        first = self._num_steps * num_batches
        if not math.isinf(total := self._trainer.num_training_batches):
            first %= int(total) // num_batches * num_batches
        for index in range(first, first + num_batches):
            yield _trainer.run_training_batch(self._trainer, next(self._iterator), index)


@final
class _Batches:
    """Passes over the training data that the iterator of the training does not notice."""

    def __init__(self, trainer: Trainer, loader: Any) -> None:
        combined = _trainer.combined_loader(trainer)
        if loader is not None:
            combined = type(combined)(loader, "max_size_cycle")
        self.loaders = list(combined.flattened)
        self.held = [*self.loaders, trainer.datamodule]  # type: ignore[attr-defined]  # has hooks
        for part in self.loaders:
            _check_loader(part)
        self._combine, self._mode = type(combined), combined._mode
        self._structure = combined.iterables
        limit = trainer.num_training_batches if loader is None else math.inf
        self._limit = None if math.isinf(limit) else int(limit)

    def __iter__(self) -> Iterator[Any]:
        copies = self._combine(self._structure, self._mode)
        copies.flattened = [_unnoticed(part) for part in self.loaders]
        return islice((batch for batch, _, _ in iter(copies)), self._limit)


def _check_loader(loader: Any) -> None:
    if isinstance(loader, Tensor):
        raise ValueError(
            "`dataloader` must be a DataLoader, or several in a list, tuple or dictionary, got "
            "one with tensors in it. Wrap batches in an object with `__iter__`."
        )
    check_rewindable(loader)


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
def own_attributes(module: Module, optimizers: Sequence[Optimizer] = ()) -> Iterator[None]:
    """Inside, modules have copies of their attributes, such as counters, lists and metrics.

    What several attributes share, they share inside, too; and the parameters that are trained.
    """
    layers = modules_in(module)
    kept: list[Any] = [*layers, getattr(module, "_trainer", None)]
    for layer in layers:
        kept += [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    for optimizer in optimizers:
        kept += [one for group in optimizer.param_groups for one in group["params"]]
    copies = {id(value): value for value in kept}
    originals = [(layer, _attributes(layer)) for layer in layers]
    for layer, attributes in originals:
        for name, value in attributes.items():
            vars(layer)[name] = _copied(value, copies)
    try:
        yield
    finally:
        for layer, attributes in originals:
            for name in set(_attributes(layer)) - set(attributes):
                del vars(layer)[name]
            vars(layer).update(attributes)


def _attributes(layer: Module) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name not in _INTERNAL}


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """A copy, and of what has been copied before the same one."""
    if isinstance(value, _SHARED):
        return value
    known = set(copies)
    try:
        return copy.deepcopy(value, copies)
    except Exception:  # e.g. an open file; it cannot be kept from changing
        for half_made in copies.keys() - known:
            del copies[half_made]
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
