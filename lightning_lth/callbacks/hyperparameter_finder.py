"""Compares values of momentum or weight decay, each from the same start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from typing_extensions import override

from lightning_lth.callbacks import _arguments, _range_tests, _rates, _trainer
from lightning_lth.callbacks._lightning import Callback
from lightning_lth.callbacks._trial import trial
from lightning_lth.learning_rate.range_test import RangeTest
from lightning_lth.learning_rate.sweep import restarting_sweep

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer


@final
class HyperparameterFinder(Callback):
    """Find a momentum or a weight decay: train a little with each value, undo it, compare.

    Every value starts from the same weights, optimizer state, random states and batches, and trains
    at the rate that the schedule is about, the highest of a warm-up or a cycle. A ramp, as for the
    learning rate, would measure nothing: momentum acts over ``1 / (1 - momentum)`` steps.
    Runs when training starts, and leaves no trace but the value, like ``LRFinder``; with both,
    put the LRFinder first.

    Args:
        parameter: ``"momentum"`` (beta1 of Adam and kin) or ``"weight_decay"``.
        values: What to try, increasing.
        steps_per_value: Optimizer steps with each; the loss is the mean of the last fifth. More
            than the time over which the value acts.
        apply: Train with the value of the lowest loss; otherwise only report it.
        rounds: Pruning rounds to run in; 0 is the start of the first training.
        dataloader: Batches to test on; by default the training data.
        plot_dir: Folder for a picture of each curve.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> finder = HyperparameterFinder("momentum", [0.8, 0.9, 0.95, 0.98])
        >>> trainer = Trainer(max_epochs=10, callbacks=[finder], logger=False)

    Source:
        Smith 2018, arXiv:1803.09820: sections 4.3 (momentum) and 4.4 (weight decay).
    """

    def __init__(
        self,
        parameter: Literal["momentum", "weight_decay"],
        values: Sequence[float],
        *,
        steps_per_value: int = 100,
        apply: bool = True,
        rounds: Sequence[int] = (0,),
        dataloader: Any = None,
        plot_dir: str | Path | None = None,
    ) -> None:
        _arguments.check_choice("parameter", parameter, ("momentum", "weight_decay"))
        _arguments.check_at_least("steps_per_value", steps_per_value, 1)
        _arguments.check_rounds(rounds)
        _range_tests.check_plot_dir(plot_dir)
        _check_values(parameter, values)
        self.parameter: Literal["momentum", "weight_decay"] = parameter
        self.values = values
        self.steps_per_value = steps_per_value
        self.apply = apply
        self.rounds = rounds
        self.dataloader = dataloader
        self.plot_dir = plot_dir
        self._results: _range_tests.Results = {}
        self._groups: list[list[int]] = []

    @property
    def results(self) -> Mapping[int, Sequence[RangeTest]]:
        """Pruning round to one result for each optimizer; without pruning, round 0."""
        return self._results

    @property
    def result(self) -> RangeTest:
        """The latest result, of the first optimizer.

        Raises:
            RuntimeError: Before a training has started.
        """
        return _range_tests.latest(self._results)

    @property
    @override
    def state_key(self) -> str:
        """One for each parameter, so that two finders can stand side by side."""
        return f"HyperparameterFinder[{self.parameter}]"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work; forget the last fit."""
        if stage != "fit":
            return
        _range_tests.refuse_incompatible(trainer, self)
        self._groups = []
        if _trainer.is_fresh_start(trainer):
            self._results = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the values, report, and apply the best."""
        if not _range_tests.is_due(trainer, self, self.rounds, self._results):
            return
        _rates.check_has(trainer.optimizers, self.parameter)
        if not self._groups:  # once: a weight decay of 0 may be what is set
            self._groups = [_rates.groups_to_set(one, self.parameter) for one in trainer.optimizers]
        pairs = list(zip(trainer.optimizers, self._groups, strict=True))
        tests = [self._test(trainer, optimizer, groups) for optimizer, groups in pairs]
        self._results[_range_tests.round_of(trainer)] = tests
        _range_tests.report(trainer, f"{self.parameter}_finder", tests, self.plot_dir)
        if self.apply:
            for (optimizer, groups), test in zip(pairs, tests, strict=True):
                if test.chosen.value is not None:
                    _rates.set_parameter(optimizer, self.parameter, test.chosen.value, groups)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The curves, what was read off them, and the groups that it is set in."""
        return _range_tests.state_of(self._results) | {"groups": self._groups}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the curves of the fit that is resumed."""
        self._results = _range_tests.results_from(state_dict)
        self._groups = state_dict["groups"]

    def _test(self, trainer: Trainer, optimizer: Optimizer, groups: list[int]) -> RangeTest:
        rates = [_rates.nominal_rates(trainer, one) for one in trainer.optimizers]
        with trial(trainer, self.dataloader) as steps:

            def step(value: float) -> float:
                for one, nominal in zip(trainer.optimizers, rates, strict=True):
                    _rates.set_rates(one, nominal)
                _rates.set_parameter(optimizer, self.parameter, value, groups)
                return steps.step()

            curve = restarting_sweep(
                tuple(self.values),
                self.steps_per_value,
                step,
                steps.restart,
                parameter=self.parameter,
            )
        return RangeTest.of(curve, "lowest")


def _check_values(parameter: str, values: Sequence[float]) -> None:
    limit = 1.0 if parameter == "momentum" else math.inf
    if len(values) < 2 or any(not 0 <= value < limit for value in values):
        interval = "[0, 1)" if parameter == "momentum" else "[0, inf)"
        raise ValueError(
            f"`values` must be at least 2 numbers in {interval} for a {parameter}, got {values!r}."
        )
    if any(first >= second for first, second in pairwise(values)):
        raise ValueError(f"`values` must increase, got {values!r}.")
