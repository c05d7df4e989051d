"""One cycle of learning rate and momentum for a whole run, which ends with a tiny rate."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple, final

from lightning_lth.learning_rate.cycles import (
    blend,
    check_choice,
    check_count,
    check_interval,
    check_momenta,
    momentum_at,
)

Shape = Literal["cosine", "linear"]


@final
@dataclass(frozen=True)
class OneCycle:
    """The rate climbs to ``max_lr`` and falls far below where it began; the momentum mirrors it.

    It begins at ``max_lr / div_factor`` and ends, with step ``num_steps - 1``, at
    ``max_lr / div_factor / final_div_factor``; there it stays if the run is longer.

    Attributes:
        max_lr: Highest rate.
        num_steps: Optimizer steps of the run.
        warm_up_fraction: Share of the steps in which the rate climbs, in (0, 1); with
            ``three_phases`` at most 0.5, because the fall takes as long.
        div_factor: The first rate is ``max_lr`` over this, which is above 1.
        final_div_factor: The last rate is the first over this, which is at least 1.
        shape: Of the climb and the falls.
        three_phases: Whether the rate falls to the first one as fast as it climbed, and only then
            to the last, instead of to the last at once.
        base_momentum: Momentum where the rate is highest; None leaves momentum alone.
        max_momentum: Momentum at both ends, and throughout the third phase.

    Raises:
        TypeError: If a number is something else.
        ValueError: If a setting is outside of its range, or only one momentum is given.

    Examples:
        >>> cycle = OneCycle(1.0, 10, warm_up_fraction=0.4, shape="linear", three_phases=True)
        >>> [round(cycle.rate(step), 4) for step in range(10)]
        [0.04, 0.36, 0.68, 1.0, 0.68, 0.36, 0.04, 0.0267, 0.0133, 0.0]

    Note:
        The defaults are torch's and fastai's. Smith's own policy is one cycle of two straight
        lines, slightly shorter than the run, and then a rate that falls several orders of
        magnitude: ``shape="linear", three_phases=True, warm_up_fraction=0.45, div_factor=10,
        final_div_factor=1000`` climbs for 45% of the run, falls for 45%, and ends a thousand
        times below where it began.

    Source:
        Smith 2018, arXiv:1803.09820; values of ``torch.optim.lr_scheduler.OneCycleLR``, except
        that torch refuses steps past the end, and a climb of just one step.
    """

    max_lr: float
    num_steps: int
    _: KW_ONLY
    warm_up_fraction: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    shape: Shape = "cosine"
    three_phases: bool = False
    base_momentum: float | None = 0.85
    max_momentum: float | None = 0.95

    def __post_init__(self) -> None:
        check_interval("max_lr", self.max_lr, "(0, inf)", "It is the highest rate of the cycle.")
        check_count("num_steps", self.num_steps, "It counts the optimizer steps of the run.")
        interval = "(0, 0.5]" if self.three_phases else "(0, 1)"
        advice = "With `three_phases`, the rate falls as long as it climbs. "
        advice = (advice if self.three_phases else "") + "Percentages are written as fractions."
        check_interval("warm_up_fraction", self.warm_up_fraction, interval, advice)
        check_interval("div_factor", self.div_factor, "(1, inf)", "The cycle begins that far down.")
        advice = "The last rate is that far below the first."
        check_interval("final_div_factor", self.final_div_factor, "[1, inf)", advice)
        check_choice("shape", self.shape, ("cosine", "linear"))
        check_momenta(self.base_momentum, self.max_momentum)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step``, from 0."""
        phase, remaining = self._phase_at(step)
        return blend(phase.last_rate, phase.first_rate, remaining)

    def momentum(self, step: int) -> float | None:
        """Momentum of that step: the lowest where the rate is highest."""
        phase, remaining = self._phase_at(step)
        height = blend(phase.last_height, phase.first_height, remaining)
        return momentum_at(height, self.base_momentum, self.max_momentum)

    def _phase_at(self, step: int) -> tuple[_Phase, float]:
        """The phase of a step, and how much of it remains: from 1 at its first step to 0."""
        begin = 0.0
        *phases, phase = self._phases()
        for earlier in phases:
            if step <= earlier.end:
                phase = earlier
                break
            begin = earlier.end
        return phase, self._remaining(step - begin, phase.end - begin)

    def _phases(self) -> tuple[_Phase, ...]:
        first = self.max_lr / self.div_factor
        last = first / self.final_div_factor
        warm_up_steps = self.warm_up_fraction * self.num_steps
        climb = _Phase(warm_up_steps - 1, first, self.max_lr, 0, 1)
        if not self.three_phases:
            return climb, _Phase(self.num_steps - 1, self.max_lr, last, 1, 0)
        fall = _Phase(2 * warm_up_steps - 2, self.max_lr, first, 1, 0)
        return climb, fall, _Phase(self.num_steps - 1, first, last, 0, 0)

    def _remaining(self, steps: float, length: float) -> float:
        share = min(steps / length, 1.0) if length else 1.0  # no length: a climb of one step
        return 1 - share if self.shape == "linear" else (1 + math.cos(math.pi * share)) / 2


class _Phase(NamedTuple):
    """A stretch of the cycle; heights are 1 where the momentum is lowest."""

    end: float
    first_rate: float
    last_rate: float
    first_height: float
    last_height: float
