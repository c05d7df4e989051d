"""The learning-rate range test on plain torch objects: sweep, read the curve, leave no trace."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

import torch
from torch import Tensor

from lightning_lth.learning_rate.batches import (
    check_rewindable,
    endless,
    fresh,
    generators_in,
    stateful_in,
)
from lightning_lth.learning_rate.curves import Curve
from lightning_lth.learning_rate.suggestions import (
    Rule,
    SmithRange,
    Suggestion,
    check_rule,
    smith_range,
    suggest,
    suggest_all,
)
from lightning_lth.learning_rate.sweep import Mode, check_ladder, ladder, sweep
from lightning_lth.snapshot import undone

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

Batch = TypeVar("Batch")


@final
@dataclass(frozen=True)
class RangeTest:
    """What a range test measured, and what follows from it.

    Attributes:
        curve: The loss at each value; of rates, those of the first parameter group that has one.
        suggestions: Rule to suggestion.
        chosen: The one that was asked for.
        range: Base and maximum for a cyclical schedule.
        ratios: Rate of each parameter group over that of this one; the test kept them.

    Examples:
        >>> print(RangeTest.of(Curve("lr", (0.1, 0.2), (2.0, 1.0)), "valley"))
        range test of lr: 2 points from 0.1 to 0.2
        valley   none: the curve has 2 finite points, fewer than 10 (chosen)
        slide    none: the curve has 2 finite points, fewer than 10
        steep    none: the curve has 2 finite points, fewer than 10
        minimum  none: the curve has 2 finite points, fewer than 10
        range    none: the curve has 2 finite points, fewer than 10
    """

    curve: Curve
    suggestions: Mapping[Rule, Suggestion]
    chosen: Suggestion
    range: SmithRange
    ratios: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, curve: Curve, rule: Rule, *, ratios: Sequence[float] = (1.0,)) -> RangeTest:
        """What follows from a curve by all rules; ``rule`` chooses one."""
        chosen = suggest(curve, rule)
        suggestions = {**suggest_all(curve), rule: chosen}
        return cls(curve, suggestions, chosen, smith_range(curve), tuple(ratios))

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers, for a checkpoint or JSON."""
        return {
            "curve": self.curve.to_dict(),
            "suggestions": {k: dataclasses.asdict(v) for k, v in self.suggestions.items()},
            "chosen": dataclasses.asdict(self.chosen),
            "range": dataclasses.asdict(self.range),
            "ratios": list(self.ratios),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RangeTest:
        """The result that ``to_dict`` described."""
        return cls(
            Curve.from_dict(fields["curve"]),
            {rule: Suggestion(**one) for rule, one in fields["suggestions"].items()},
            Suggestion(**fields["chosen"]),
            SmithRange(**fields["range"]),
            tuple(fields["ratios"]),
        )

    def __str__(self) -> str:
        ends = f"{self.curve.values[0]:.3g} to {self.curve.values[-1]:.3g}"
        lines = [f"range test of {self.curve.parameter}: {len(self.curve)} points from {ends}"]
        for rule, one in self.suggestions.items():
            lines.append(f"{rule:<9}{one}" + (" (chosen)" if rule == self.chosen.rule else ""))
        return "\n".join([*lines, f"{'range':<9}{self.range}"])


def range_test(
    module: Module,
    loader: Iterable[Batch],
    loss: Callable[[Module, Batch], Tensor],
    optimizer: Optimizer,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    num_steps: int = 100,
    mode: Mode = "exponential",
    accumulate: int = 1,
    suggestion: Rule = "valley",
) -> RangeTest:
    """Train a few steps with rising learning rate, undo them, and suggest a rate.

    The module trains as it is: on its device, in its train/eval modes, with the optimizer's
    momentum. Afterwards module, optimizer, gradients, random generators (global ones, and those of
    the loader) are bit for bit what they were, after an error or Ctrl-C too.

    Args:
        module: What to train.
        loader: Gives the batches; iterated again when it is exhausted.
        loss: The mean loss of a batch, a tensor with one element to go backward from.
        optimizer: Its learning rates are scaled together: their ratios stay, and its first
            parameter group has the rates below.
        min_lr: First rate.
        max_lr: Last rate, unless the loss diverges before.
        num_steps: Optimizer steps, at least 2.
        mode: Whether rates rise by equal ratios (``"exponential"``) or differences (``"linear"``).
        accumulate: Batches for each step, at least 1.
        suggestion: Which rule chooses, see ``suggestions.suggest``.

    Returns:
        Curve, suggestions and range. A sweep that diverged at once has no suggestion, but reasons.

    Raises:
        TypeError: If ``loader`` cannot be iterated, or ``loss`` does not return a tensor.
        ValueError: If a number is out of range, ``loader`` is empty or can be read only once, the
            optimizer has no parameter groups, or its first one no rate to scale.

    Examples:
        >>> module = torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.zeros_(module.weight), torch.nn.init.zeros_(module.bias)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> batches = [torch.ones(4, 1)]
        >>> result = range_test(module, batches, lambda m, x: (m(x) - 1).square().mean(), optimizer)
        >>> print(result.suggestions["steep"], optimizer.param_groups[0]["lr"])
        0.0658 0.1

    Source:
        Smith 2017, arXiv:1506.01186: section 3.3; exponential and smoothed as in Gugger 2018.
    """
    check_rule(suggestion)
    check_ladder(min_lr, max_lr, num_steps, mode, names=("min_lr", "max_lr"))
    if min_lr < 0:
        raise ValueError(f"`min_lr` must not be negative, got {min_lr!r}.")
    if accumulate < 1:
        raise ValueError(f"`accumulate` must be at least 1, got {accumulate!r}.")
    check_rewindable(loader)
    ratios = lr_ratios(optimizer)
    with contextlib.ExitStack() as stack:
        generators, stateful = generators_in(loader), stateful_in(loader)
        stack.enter_context(undone(module, [optimizer], generators=generators, extra=stateful))
        batches = stack.enter_context(contextlib.closing(endless(fresh(loader))))

        def step(lr: float) -> float:
            set_lr_(optimizer, lr, ratios)
            return _train(module, [next(batches) for _ in range(accumulate)], loss, optimizer)

        curve = sweep(ladder(min_lr, max_lr, num_steps, mode), step)
    return RangeTest.of(curve, suggestion, ratios=ratios)


def lr_ratios(optimizer: Optimizer) -> tuple[float, ...]:
    """Learning rate of each parameter group over that of the first.

    Rates are ``initial_lr`` if the first group's is 0, as a warm-up schedule leaves it.

    Raises:
        ValueError: If there are no groups, or the first has no positive rate.

    Examples:
        >>> groups = [{"params": torch.nn.Parameter(torch.ones(1)), "lr": lr} for lr in (0.1, 0.2)]
        >>> lr_ratios(torch.optim.SGD(groups))
        (1.0, 2.0)
    """
    groups = optimizer.param_groups
    if not groups:
        raise ValueError("`optimizer` must have parameter groups, got none to train.")
    key = "lr" if float(groups[0]["lr"]) != 0 else "initial_lr"
    rates = [float(group.get(key, group["lr"])) for group in groups]
    if not rates[0] > 0:
        raise ValueError(
            "The first parameter group of `optimizer` must have a positive learning rate, "
            f"got {rates[0]!r}. Any will do: the rates of the other groups are relative to it."
        )
    return tuple(rate / rates[0] for rate in rates)


def set_lr_(optimizer: Optimizer, lr: float, ratios: Sequence[float]) -> None:
    """Give the first parameter group ``lr``, and each group its ratio of that."""
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        if isinstance(group["lr"], Tensor):  # capturable optimizers refer to it
            group["lr"].fill_(lr * ratio)
        else:
            group["lr"] = lr * ratio


def _train(
    module: Module,
    batches: Sequence[Batch],
    loss: Callable[[Module, Batch], Tensor],
    optimizer: Optimizer,
) -> float:
    """One optimizer step; the mean loss before it, however often the optimizer evaluates it."""
    means: list[float] = []

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            value = loss(module, batch)
            _check_loss(value)
            torch.autograd.backward(value / len(batches))
            total += float(value.detach())
        means.append(total / len(batches))
        return means[-1]

    optimizer.step(closure)
    return means[0]


def _check_loss(value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`loss` must return a tensor, got {type(value).__name__}.")
    if value.numel() != 1:
        raise ValueError(
            f"`loss` must return one number, got shape {tuple(value.shape)}. Return its mean."
        )
