"""Learning rates of optimizers with groups and schedulers: read, set for a trial, and rescaled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from lightning_lth.callbacks import _trainer

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch.optim import Optimizer

NEVER = 2**62  # as the frequency of a scheduler that rests
_IN_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")  # the last two are those of OneCycleLR
_IN_SCHEDULERS = ("base_lrs", "max_lrs", "_last_lr", "min_lrs", "eta_min")


def nominal_rates(trainer: Trainer, optimizer: Optimizer) -> list[float]:
    """The rate of each parameter group that its schedule is about.

    That is the highest of the present rate, the one that schedulers multiply, and the peak of a
    cycle; warm-ups start far below. While schedulers rest, it is the present rate.

    Raises:
        ValueError: If there is no learning rate.
    """
    groups = optimizer.param_groups
    if not groups or any(group.get("lr") is None for group in groups):
        raise ValueError(
            f"{optimizer!r} has no learning rate to set. Return an optimizer that has one from "
            f"`configure_optimizers`."
        )
    if any(config.frequency >= NEVER for config in trainer.lr_scheduler_configs):
        return [float(group["lr"]) for group in groups]
    rates = [
        max(float(group[name]) for name in ("lr", "initial_lr", "max_lr") if name in group)
        for group in groups
    ]
    for scheduler in _schedulers(trainer, optimizer):
        peaks = getattr(scheduler, "max_lrs", rates)
        rates = [max(rate, float(peak)) for rate, peak in zip(rates, peaks, strict=True)]
    return rates


def reference_rate(rates: Sequence[float]) -> float:
    """That of the first group whose rate is not 0; 0 if there is none."""
    return next((rate for rate in rates if rate), 0.0)


def group_ratios(trainer: Trainer, optimizer: Optimizer) -> list[float]:
    """The nominal rate of each group as a multiple of the reference; 1 where all are 0."""
    rates = nominal_rates(trainer, optimizer)
    reference = reference_rate(rates)
    return [rate / reference if reference else 1.0 for rate in rates]


def set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    """Set the present rate of each group, and nothing else.

    Raises:
        ValueError: If groups have been added.
    """
    groups = optimizer.param_groups
    if len(groups) != len(rates):
        raise ValueError(
            f"{type(optimizer).__name__} had {len(rates)} parameter groups when training started, "
            f"and has {len(groups)} now, whose ratio to the others is not known. Give it all "
            f"groups in `configure_optimizers`."
        )
    for group, rate in zip(groups, rates, strict=True):
        _set(group, "lr", rate)


def scale_rates(trainer: Trainer, optimizer: Optimizer, factor: float) -> None:
    """Multiply all rates, those from which schedulers compute the next ones included."""
    groups = optimizer.param_groups
    places = [(group, name) for group in groups for name in _IN_GROUPS if name in group]
    scaled = [float(group[name]) * factor for group, name in places]
    for (group, name), rate in zip(places, scaled, strict=True):  # groups may share a tensor
        _set(group, name, rate)
    for scheduler in _schedulers(trainer, optimizer):
        for name in _IN_SCHEDULERS:
            value = getattr(scheduler, name, None)
            if isinstance(value, (list, tuple)):
                setattr(scheduler, name, [float(rate) * factor for rate in value])
            elif value is not None:
                setattr(scheduler, name, float(value) * factor)


@final
class Setter:
    """Sets the rates of an optimizer, and sees to it that the next step is taken with them.

    Args:
        trainer: Takes the steps. Those on trial, in which other callbacks take no part, are not
            minded by a setter whose rates are from before.
        callback: Whose rates they are.
        optimizer: Gets them.
        ratios: Rate of each group over the one that is set.
    """

    def __init__(
        self,
        trainer: Trainer,
        callback: Callback,
        optimizer: Optimizer,
        ratios: Sequence[float],
    ) -> None:
        self.optimizer = optimizer
        self._trainer = trainer
        self._name = type(callback).__name__
        self._ratios = ratios
        self._expected: list[Any] = []
        self._callbacks: Any = None
        self._hook: Any = None
        if hasattr(optimizer, "_optimizer_step_post_hooks"):  # not all wrappers have them
            self._hook = optimizer.register_step_post_hook(self._check)

    def set(self, rate: float) -> None:
        """Set the rate of each group.

        Raises:
            ValueError: If groups have been added.
        """
        set_rates(self.optimizer, [rate * ratio for ratio in self._ratios])
        self._expected = _plain_rates(self.optimizer)
        self._callbacks = self._trainer.callbacks  # type: ignore[attr-defined]

    def close(self) -> None:
        """Take the hook away."""
        if self._hook is not None:
            self._hook.remove()

    def _check(self, *args: Any) -> None:
        if not self._expected or self._trainer.callbacks is not self._callbacks:  # type: ignore[attr-defined]
            return
        present = _plain_rates(self.optimizer)
        if present[: len(self._expected)] != self._expected:
            raise RuntimeError(
                f"{self._name} set the learning rates {self._expected}, which became {present} "
                f"before the step was taken. Does the module set them too, in `optimizer_step` or "
                f"with a scheduler of its own? Take that away, or leave out {self._name}."
            )
        self._expected = []  # further steps on the same batch are the module's own affair


def _plain_rates(optimizer: Optimizer) -> list[Any]:
    """Present rates; of tensors None, because reading one may wait for a GPU."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return [None if isinstance(rate, Tensor) else rate for rate in rates]


def groups_with_momentum(optimizer: Optimizer) -> list[int]:
    """The groups in which momentum, or beta1 of Adam and kin, is in use."""
    groups = enumerate(optimizer.param_groups)
    return [index for index, group in groups if group.get("momentum") or _beta1(group)]


def set_momentum(optimizer: Optimizer, momentum: float, groups: list[int]) -> None:
    """Set momentum, or beta1 of Adam and kin, of some groups."""
    for index in groups:
        group = optimizer.param_groups[index]
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


def check_has(optimizers: Sequence[Optimizer], parameter: str) -> None:
    """Refuse optimizers that do not have a momentum or weight decay to set.

    Raises:
        ValueError: If one has none.
    """
    for optimizer in optimizers:
        group = optimizer.param_groups[0] if optimizer.param_groups else {}
        if parameter not in group and not (parameter == "momentum" and "betas" in group):
            raise ValueError(
                f"{type(optimizer).__name__} has no {parameter} to find. Use another optimizer, or "
                f"leave out the finder."
            )


def groups_to_set(optimizer: Optimizer, parameter: str) -> list[int]:
    """All groups for a momentum; for weight decay those that have any, or all if none has."""
    groups = list(enumerate(optimizer.param_groups))
    decayed = [index for index, group in groups if group.get("weight_decay")]
    return decayed if decayed and parameter == "weight_decay" else [index for index, _ in groups]


def set_parameter(optimizer: Optimizer, parameter: str, value: float, groups: list[int]) -> None:
    """Set momentum or weight decay of some groups."""
    if parameter == "momentum":
        set_momentum(optimizer, value, groups)
        return
    for index in groups:
        optimizer.param_groups[index]["weight_decay"] = value


def _beta1(group: dict[str, Any]) -> float:
    return float(group["betas"][0]) if "betas" in group else 0.0


def set_attributes(module: LightningModule, rate: float) -> None:
    """Set ``lr`` or ``learning_rate`` of the module and its hyperparameters, where they exist."""
    for name in ("lr", "learning_rate"):
        if isinstance(vars(module).get(name), (int, float)):
            setattr(module, name, rate)
        if name in module.hparams and isinstance(module.hparams[name], (int, float)):
            module.hparams[name] = rate


def _schedulers(trainer: Trainer, optimizer: Optimizer) -> Iterator[Any]:
    waiting = [config.scheduler for config in trainer.lr_scheduler_configs]
    while waiting:
        scheduler = waiting.pop()
        waiting += getattr(scheduler, "_schedulers", [])  # SequentialLR, ChainedScheduler
        if getattr(scheduler, "optimizer", None) is optimizer:
            yield scheduler


def _set(group: dict[str, Any], name: str, value: float) -> None:
    if isinstance(group[name], Tensor):  # of a capturable optimizer
        group[name].fill_(value)
    else:
        group[name] = value


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps of an epoch.

    Raises:
        ValueError: If the length of an epoch is not known, or they differ.
    """
    if math.isinf(trainer.num_training_batches):
        raise ValueError(
            "`step_size` counts epochs, but the length of an epoch is not known. "
            "Use `step_unit='step'`, or set `limit_train_batches`."
        )
    if _trainer.accumulation_changes(trainer):
        raise ValueError(
            "`step_size` counts epochs, but with the GradientAccumulationScheduler they differ in "
            "their number of steps. Use `step_unit='step'`."
        )
    with _trainer.accumulation_of_epoch(trainer):
        return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def total_steps(trainer: Trainer, least: int) -> int:
    """Optimizer steps of the training; those of several optimizers in one batch count once.

    A trial run is taken for a training of the least number of steps.

    Raises:
        ValueError: If its length is not known.
    """
    if _trainer.is_fast_dev_run(trainer):
        return least
    if len(trainer.optimizers) > 1 and trainer.max_steps != -1:
        raise ValueError(
            f"policy='one_cycle' needs a training of known length, but `max_steps="
            f"{trainer.max_steps}` counts the steps of every optimizer. Set `max_epochs` instead, "
            f"and for a stream `limit_train_batches`."
        )
    if _trainer.accumulation_changes(trainer) and trainer.max_epochs != -1:
        raise ValueError(
            "policy='one_cycle' needs a training of known length, but with the "
            "GradientAccumulationScheduler epochs differ in their number of steps. Set "
            "`max_steps`, and `max_epochs=-1`."
        )
    with _trainer.accumulation_of_epoch(trainer):
        total = trainer.estimated_stepping_batches
    if math.isinf(total) or total < 0:  # -1 for a stream
        raise ValueError("policy='one_cycle' needs a training of known length: set `max_steps`.")
    return int(total)


def warn_of_idle_momentum(optimizers: Sequence[Optimizer], in_use: list[list[int]]) -> None:
    """Say that momentum cannot be cycled where no group has any in use."""
    pairs = zip(optimizers, in_use, strict=True)
    idle = [type(optimizer).__name__ for optimizer, groups in pairs if not groups]
    if idle:
        warnings.warn(
            f"{', '.join(idle)} has no momentum in use, so that it cannot be cycled. Set one in "
            f"the optimizer, or leave out `base_momentum` and `max_momentum`.",
            stacklevel=2,
        )
