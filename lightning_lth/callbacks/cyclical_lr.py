"""Cyclical learning rates and momenta for any module."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Literal, final

from typing_extensions import override

from lightning_lth.callbacks import _arguments, _finders, _loggers, _range_tests, _rates, _trainer
from lightning_lth.callbacks._lightning import Callback
from lightning_lth.learning_rate.cycles import Cycle
from lightning_lth.learning_rate.policies import POLICIES, Policy, Settings

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from matplotlib.figure import Figure

    from lightning_lth.callbacks.lr_finder import LRFinder


@final
class CyclicalLR(Callback):
    """Let the learning rate rise and fall in cycles, and the momentum against it.

    Counts optimizer steps, whatever the accumulation; several in one batch count once. Rates are
    those of the first parameter group that has one; the others keep their ratio to it. Each pruning
    round goes through the same cycles. A resumed fit goes on in them, with the settings given now.

    Args:
        base_lr: Lowest rate.
        max_lr: Highest rate.
        step_size: Half a cycle: from the lowest rate to the highest. Of ``"cosine"``, a whole one.
        step_unit: Whether ``step_size`` counts optimizer steps or epochs.
        policy: ``"triangular"``; ``"triangular2"`` halves the amplitude with each cycle;
            ``"exp_range"`` shrinks it by ``gamma`` with each step; ``"one_cycle"`` is one cycle,
            and then a fall to a thousandth of ``base_lr`` until the end of training, which must
            come by ``max_epochs`` where there are several optimizers: ``max_steps`` counts the
            steps of each; ``"cosine"`` falls along half a cosine, and restarts.
        gamma: Of ``"exp_range"``, in (0, 1].
        cycle_multiplier: Each cycle is longer than the one before by this factor, at least 1.
        base_momentum: Momentum at the highest rate; None leaves momentum alone. Of Adam and kin,
            beta1. Where an optimizer has no momentum in use, it stays so.
        max_momentum: Momentum at the lowest rate.
        replace_schedulers: Take the place of the module's own schedulers, which are refused
            otherwise; they are not stepped then.

    Raises:
        TypeError: If a rate, a momentum or a factor is not a number.
        ValueError: If an argument is out of its range.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> cycles = CyclicalLR(0.001, 0.006, step_size=2, step_unit="epoch")
        >>> trainer = Trainer(max_epochs=12, callbacks=[cycles], logger=False)

    Source:
        Smith 2015, arXiv:1506.01186; Smith 2018, arXiv:1803.09820 (one cycle, momentum);
        Loshchilov & Hutter 2017, arXiv:1608.03983 (cosine).
    """

    def __init__(
        self,
        base_lr: float | None,
        max_lr: float | None,
        *,
        step_size: int | float,
        step_unit: Literal["step", "epoch"] = "step",
        policy: Policy = "triangular",
        gamma: float = 1.0,
        cycle_multiplier: float = 1.0,
        base_momentum: float | None = None,
        max_momentum: float | None = None,
        replace_schedulers: bool = False,
    ) -> None:
        _arguments.check_choice("step_unit", step_unit, ("step", "epoch"))
        _arguments.check_choice("policy", policy, POLICIES)
        if not (math.isfinite(step_size) and step_size > 0):
            raise ValueError(f"`step_size` must be above 0, got {step_size!r}.")
        if step_unit == "step":
            _arguments.check_at_least("step_size", step_size, 1)  # type: ignore[arg-type]
        self.base_lr = base_lr
        self.max_lr = max_lr
        self.step_size = step_size
        self.step_unit = step_unit
        self.policy: Policy = policy
        self.gamma = gamma
        self.cycle_multiplier = cycle_multiplier
        self.base_momentum = base_momentum
        self.max_momentum = max_momentum
        self.replace_schedulers = replace_schedulers
        self._finder: LRFinder | None = None
        self._step = 0
        self._steps_at: dict[int, int] = {}  # by global step, where the two differ
        self._cycle: Cycle | None = None
        self._ratios: list[list[float]] = []
        self._in_use: list[list[int]] = []
        self._setters: list[_rates.Setter] = []
        self._last_global_step = 0
        self._replaced: list[Any] = []
        if (base_lr is None) != (max_lr is None):
            raise ValueError(
                f"`base_lr` and `max_lr` must be given both, got {base_lr} and {max_lr}. A range "
                f"test finds both: `CyclicalLR.from_finder(finder, ...)`."
            )
        rates = (1.0, 2.0) if base_lr is None or max_lr is None else (base_lr, max_lr)
        self._settings().cycle(*rates, 2, 10)  # only to check the arguments

    @classmethod
    def from_finder(
        cls,
        finder: LRFinder,
        *,
        step_size: int | float,
        step_unit: Literal["step", "epoch"] = "step",
        policy: Policy = "triangular",
        gamma: float = 1.0,
        cycle_multiplier: float = 1.0,
        base_momentum: float | None = None,
        max_momentum: float | None = None,
        replace_schedulers: bool = False,
    ) -> CyclicalLR:
        """Cycle between the rates that a range test of the same fit finds (Smith's pair).

        Args:
            finder: Stands before this callback in the Trainer's list.
            step_size: This and the others as for the class.
            step_unit: See there.
            policy: See there.
            gamma: See there.
            cycle_multiplier: See there.
            base_momentum: See there.
            max_momentum: See there.
            replace_schedulers: See there.
        """
        callback = cls(
            None,
            None,
            step_size=step_size,
            step_unit=step_unit,
            policy=policy,
            gamma=gamma,
            cycle_multiplier=cycle_multiplier,
            base_momentum=base_momentum,
            max_momentum=max_momentum,
            replace_schedulers=replace_schedulers,
        )
        callback._finder = finder
        return callback

    def plot_schedule(self, num_steps: int, *, steps_per_epoch: int | None = None) -> Figure:
        """The rate of each step, and the momentum if it cycles, as a figure.

        Args:
            num_steps: Optimizer steps to show; of ``"one_cycle"``, those of the training.
            steps_per_epoch: Needed if ``step_size`` counts epochs.

        Raises:
            ValueError: If the rates come from a finder, or ``steps_per_epoch`` is missing.
        """
        from lightning_lth.learning_rate.schedule_figures import schedule

        if self.base_lr is None or self.max_lr is None:
            raise ValueError("The rates are not known before the range test has run.")
        if self.step_unit == "epoch" and steps_per_epoch is None:
            raise ValueError("`step_size` counts epochs: pass `steps_per_epoch`.")
        size = self._steps(steps_per_epoch or 1)
        return schedule(
            self._settings().cycle(self.base_lr, self.max_lr, size, num_steps), num_steps
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work."""
        if stage != "fit":
            return
        self._ratios, self._in_use = [], []
        if _trainer.is_fresh_start(trainer):
            self._step, self._steps_at = 0, {}
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        cycles_momentum = self.base_momentum is not None
        _finders.refuse_second_setter(callbacks, self._finder, cycles_momentum=cycles_momentum)
        if self.base_lr is None:
            _finders.check_order(callbacks, self, self._finder)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Be the only one who sets the rate."""
        configs = trainer.lr_scheduler_configs
        if not configs:
            return
        if not self.replace_schedulers:
            names = ", ".join(type(config.scheduler).__name__ for config in configs)
            raise ValueError(
                f"CyclicalLR and the module's own {names} would both set the learning rate. "
                f"Return no scheduler from `configure_optimizers`, or pass "
                f"`replace_schedulers=True`."
            )
        self._replaced = configs
        trainer.strategy.lr_scheduler_configs = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the first rate; in a later round, that of the rewind point."""
        self._step = self._steps_at.get(trainer.global_step, trainer.global_step)
        self._last_global_step = trainer.global_step
        if not self._ratios:  # once a fit: a cycle may write rates and momenta of 0
            self._ratios = [_rates.group_ratios(trainer, one) for one in trainer.optimizers]
            self._in_use = [_rates.groups_with_momentum(one) for one in trainer.optimizers]
        if not self._setters:
            pairs = zip(trainer.optimizers, self._ratios, strict=True)
            self._setters = [_rates.Setter(trainer, self, *pair) for pair in pairs]
        is_blind = self._finder is not None and _trainer.is_fast_dev_run(trainer)  # it did not run
        self._cycle = None if is_blind else self._resolved_cycle(trainer)
        if self.base_momentum is not None:
            _rates.warn_of_idle_momentum(trainer.optimizers, self._in_use)
        self._write()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log the rate of this step, and set that of the next, as schedulers do."""
        if trainer.global_step == self._last_global_step:
            return  # still accumulating
        self._last_global_step = trainer.global_step
        if self._cycle is not None:
            _loggers.log_cycle(trainer, *self._values(self._cycle))
        self._step += 1
        if self._step != trainer.global_step:  # with several optimizers
            self._steps_at[trainer.global_step] = self._step
        self._write()

    @override
    def state_dict(self) -> dict[str, Any]:
        """The positions, and what the optimizers were before the first cycle; no settings."""
        return {
            "steps_at": dict(self._steps_at),
            "ratios": self._ratios,
            "in_use": self._in_use,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was."""
        self._steps_at = dict(state_dict["steps_at"])
        self._ratios = state_dict["ratios"]
        self._in_use = state_dict["in_use"]

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let the rates go; Lightning does not call ``teardown`` then."""
        self._release(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the rates go, and give the schedulers back."""
        self._release(trainer)

    def _release(self, trainer: Trainer) -> None:
        for setter in self._setters:
            setter.close()
        self._setters = []
        if self._replaced:
            trainer.strategy.lr_scheduler_configs = self._replaced
            self._replaced = []

    def _resolved_cycle(self, trainer: Trainer) -> Cycle:
        base_lr, max_lr = self.base_lr, self.max_lr
        if self._finder is not None:
            base_lr, max_lr = _range_tests.found_range(self._finder.results)
        assert base_lr is not None
        assert max_lr is not None
        size = self._steps(_rates.steps_per_epoch(trainer) if self.step_unit == "epoch" else 1)
        total = _rates.total_steps(trainer, 2 * size + 2) if self.policy == "one_cycle" else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the constructor has warned of idle settings
            return self._settings().cycle(base_lr, max_lr, size, total)

    def _settings(self) -> Settings:
        return Settings(
            self.policy, self.gamma, self.cycle_multiplier, self.base_momentum, self.max_momentum
        )

    def _steps(self, steps_per_epoch: int) -> int:
        scale = steps_per_epoch if self.step_unit == "epoch" else 1
        return max(1, round(self.step_size * scale))

    def _values(self, cycle: Cycle) -> tuple[float, float | None]:
        return cycle.rate(self._step), cycle.momentum(self._step) if any(self._in_use) else None

    def _write(self) -> None:
        if self._cycle is None:
            return
        rate, momentum = self._values(self._cycle)
        for setter, groups in zip(self._setters, self._in_use, strict=True):
            setter.set(rate)
            if momentum is not None:
                _rates.set_momentum(setter.optimizer, momentum, groups)
