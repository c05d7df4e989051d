"""A learning-rate range test at the start of training that changes nothing but the rate."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from typing_extensions import override

from lightning_lth.callbacks import _arguments, _range_tests, _rates, _trainer
from lightning_lth.callbacks._lightning import Callback
from lightning_lth.callbacks._trial import trial
from lightning_lth.learning_rate.range_test import RangeTest
from lightning_lth.learning_rate.suggestions import RAMP_RULES, Rule
from lightning_lth.learning_rate.sweep import Mode, check_ladder, ladder, sweep

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer


@final
class LRFinder(Callback):
    """Find a learning rate: raise it over a few steps, watch the loss, undo the steps.

    Runs when training starts, with Lightning's own optimization steps (precision, clipping,
    accumulation, pruning masks), in memory. Afterwards weights, buffers, optimizers, random states,
    the order of the data, counters and module attributes are exactly as before; with
    ``apply=False`` the training that follows is bit-identical to one without the callback. A fit
    that resumes is left alone.

    The rates of parameter groups keep their ratios; rates below are those of the first group whose
    rate is not 0. Of a schedule that warms up or cycles, the suggestion becomes the highest rate;
    of a LambdaLR, that of the factor 1. A rate that is found in a later round holds for that round.

    Args:
        min_lr: First rate to try; positive for ``"exponential"``.
        max_lr: Last rate, if the loss has not diverged before.
        num_steps: Optimizer steps, at most; at least 10.
        mode: ``"exponential"`` for equal ratios, ``"linear"`` for equal differences.
        suggestion: How to read the curve: ``"valley"``, ``"slide"``, ``"steep"`` or ``"minimum"``;
            see ``lightning_lth.learning_rate.suggestions.suggest``.
        apply: Train with the suggestion, in optimizers and schedulers; otherwise only report it.
            ``lr`` and ``learning_rate`` of the module and of its ``hparams`` are overwritten, too,
            where they are numbers, with that of the first optimizer.
        rounds: Pruning rounds to run in; 0 is the start of the first training.
        dataloader: Batches to test on; by default the training data. Needed where those can be read
            only once.
        plot_dir: Folder for a picture of each curve, ``lr_finder_round_00.png`` and so on.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> finder = LRFinder(suggestion="slide")
        >>> trainer = Trainer(max_epochs=10, callbacks=[finder], logger=False)

    Source:
        Smith 2017, arXiv:1506.01186: section 3.3. The rules are those of fastai.
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        num_steps: int = 100,
        *,
        mode: Mode = "exponential",
        suggestion: Rule = "valley",
        apply: bool = True,
        rounds: Sequence[int] = (0,),
        dataloader: Any = None,
        plot_dir: str | Path | None = None,
    ) -> None:
        _arguments.check_at_least("num_steps", num_steps, 10)
        check_ladder(min_lr, max_lr, num_steps, mode, names=("min_lr", "max_lr"))
        _arguments.check_choice("suggestion", suggestion, tuple(RAMP_RULES))
        _arguments.check_rounds(rounds)
        _range_tests.check_plot_dir(plot_dir)
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.num_steps = num_steps
        self.mode: Mode = mode
        self.suggestion: Rule = suggestion
        self.apply = apply
        self.rounds = rounds
        self.dataloader = dataloader
        self.plot_dir = plot_dir
        self._results: dict[int, list[RangeTest]] = {}

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

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work; forget the last fit."""
        if stage != "fit":
            return
        _range_tests.refuse_incompatible(trainer, self)
        if _trainer.is_fresh_start(trainer):
            self._results = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test, report, and apply the suggestion."""
        if not _range_tests.is_due(trainer, self, self.rounds, self._results):
            return
        tests = [self._test(trainer, optimizer) for optimizer in trainer.optimizers]
        self._results[_range_tests.round_of(trainer)] = tests
        _range_tests.report(trainer, "lr_finder", tests, self.plot_dir)
        if self.apply:
            for optimizer, test in zip(trainer.optimizers, tests, strict=True):
                _apply(trainer, optimizer, test)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The curves and what was read off them."""
        return _range_tests.state_of(self._results)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the curves of the fit that is resumed."""
        self._results = _range_tests.results_from(state_dict)

    def _test(self, trainer: Trainer, optimizer: Optimizer) -> RangeTest:
        ratios = _rates.group_ratios(trainer, optimizer)
        values = ladder(self.min_lr, self.max_lr, self.num_steps, self.mode)
        setter = _rates.Setter(trainer, self, optimizer, ratios)
        with trial(trainer, self.dataloader) as steps, contextlib.closing(setter):

            def step(rate: float) -> float:
                setter.set(rate)
                return steps.step()

            curve = sweep(values, step)
        return RangeTest.of(curve, self.suggestion, ratios=ratios)


def _apply(trainer: Trainer, optimizer: Optimizer, test: RangeTest) -> None:
    if test.chosen.value is None:
        return
    before = _rates.reference_rate(_rates.nominal_rates(trainer, optimizer))
    if before > 0:
        _rates.scale_rates(trainer, optimizer, test.chosen.value / before)
    else:
        _rates.set_rates(optimizer, [test.chosen.value * ratio for ratio in test.ratios])
    if optimizer is trainer.optimizers[0]:
        _rates.set_attributes(trainer.lightning_module, test.chosen.value)
