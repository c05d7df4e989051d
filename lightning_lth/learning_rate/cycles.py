"""Cyclical learning rates and momenta, as functions of the optimizer step."""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Protocol, final, runtime_checkable

TriangularPolicy = Literal["triangular", "triangular2", "exp_range"]


@runtime_checkable
class Cycle(Protocol):
    """The learning rate and the momentum of every optimizer step.

    Examples:
        >>> class Constant:
        ...     def rate(self, step): return 0.1
        ...     def momentum(self, step): return None
        >>> isinstance(Constant(), Cycle)
        True
    """

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step``, from 0."""

    def momentum(self, step: int) -> float | None:
        """Momentum of that step; None leaves the optimizer's own alone."""


@final
@dataclass(frozen=True)
class Triangular:
    """The rate climbs from ``base_lr`` to ``max_lr`` in a straight line, falls back, and repeats.

    Attributes:
        base_lr: Rate where each cycle begins and ends, at least 0.
        max_lr: Rate at the peak of the first cycle.
        step_size: Optimizer steps of the climb in the first cycle: half a cycle, in the paper.
        step_size_down: Steps of the fall; None is as many as of the climb.
        policy: ``"triangular"`` keeps the height of the peaks above ``base_lr``, ``"triangular2"``
            halves it with each cycle, ``"exp_range"`` scales the height by ``gamma**step``.
        gamma: Of ``"exp_range"``, in (0, 1].
        base_momentum: Momentum at a peak of full height; None leaves momentum alone.
        max_momentum: Momentum where the rate is ``base_lr``.
        cycle_multiplier: Each cycle is longer than the one before by this factor, in [1, 100].

    Raises:
        TypeError: If a number is something else.
        ValueError: If a setting is outside of its range, or only one momentum is given.

    Warns:
        UserWarning: If ``gamma`` cannot take effect.

    Examples:
        >>> cycle = Triangular(0.001, 0.006, 2000)
        >>> [round(cycle.rate(step), 6) for step in (0, 1000, 2000, 3000, 4000)]
        [0.001, 0.0035, 0.006, 0.0035, 0.001]

    Note:
        Cycles last whole steps, so each begins at ``base_lr`` exactly: one whose length or
        beginning is a fraction begins at the next whole step. With equal halves, a cycle
        multiplier of 1 and no momentum, these are the formulas of the paper.

    Source:
        Smith 2015, arXiv:1506.01186: section 3.1. Momentum against the rate: Smith 2018,
        arXiv:1803.09820. Halves of unequal length: ``torch.optim.lr_scheduler.CyclicLR``.
    """

    base_lr: float
    max_lr: float
    step_size: int
    _: KW_ONLY
    step_size_down: int | None = None
    policy: TriangularPolicy = "triangular"
    gamma: float = 1.0
    base_momentum: float | None = None
    max_momentum: float | None = None
    cycle_multiplier: float = 1.0

    def __post_init__(self) -> None:
        advice = "It counts optimizer steps between the lowest rate and the highest."
        check_rates(self.base_lr, self.max_lr)
        check_count("step_size", self.step_size, advice)
        if self.step_size_down is not None:
            check_count("step_size_down", self.step_size_down, advice)
        check_choice("policy", self.policy, ("triangular", "triangular2", "exp_range"))
        check_interval("gamma", self.gamma, "(0, 1]", "Smith 2015 uses 0.99994.")
        check_momenta(self.base_momentum, self.max_momentum)
        check_multiplier(self.cycle_multiplier)
        _warn_of_idle_gamma(self.policy, self.gamma)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step``, from 0."""
        return blend(self.base_lr, self.max_lr, self._height(step))

    def momentum(self, step: int) -> float | None:
        """Momentum of that step, as far below its maximum as the rate is above its minimum."""
        return momentum_at(self._height(step), self.base_momentum, self.max_momentum)

    def _height(self, step: int) -> float:
        """Height of the rate over its minimum: 1 at the peak of the first cycle."""
        up, down = self.step_size, self.step_size_down or self.step_size
        cycle, position, length = locate(step, up + down, self.cycle_multiplier)
        # Quotients of integers are rounded once, so borders and peaks are exact.
        rise = position * (up + down) / (length * up)
        fall = (length - position) * (up + down) / (length * down)
        return min(rise, fall) * self._amplitude(cycle, step)

    def _amplitude(self, cycle: int, step: int) -> float:
        if self.policy == "exp_range":
            return float(self.gamma**step)
        return 0.5**cycle if self.policy == "triangular2" else 1.0


@final
@dataclass(frozen=True)
class CosineRestarts:
    """The rate falls from ``max_lr`` to ``base_lr`` along half a cosine, jumps back, and repeats.

    Attributes:
        base_lr: Lowest rate, which the end of a cycle comes close to; at least 0.
        max_lr: Rate where the first cycle begins.
        cycle_steps: Optimizer steps of the first cycle.
        cycle_multiplier: Each cycle is longer than the one before by this factor, in [1, 100].
        cycle_decay: Factor on the height of the restarts above ``base_lr``, with each cycle; in
            (0, 1].
        base_momentum: Momentum where the rate is ``max_lr``; None leaves momentum alone.
        max_momentum: Momentum where the rate is ``base_lr``.

    Raises:
        TypeError: If a number is something else.
        ValueError: If a setting is outside of its range, or only one momentum is given.

    Examples:
        >>> cycle = CosineRestarts(0.0, 0.1, 2, cycle_multiplier=2)
        >>> [round(cycle.rate(step), 4) for step in range(7)]
        [0.1, 0.05, 0.1, 0.0854, 0.05, 0.0146, 0.1]

    Note:
        Cycles last whole steps, so each begins at its highest rate exactly: one whose length or
        beginning is a fraction begins at the next whole step.

    Source:
        Loshchilov & Hutter 2017, arXiv:1608.03983: equation 5, with ``T_mult`` and the lower maxima
        that section 3 suggests. Momentum against the rate is our addition.
    """

    base_lr: float
    max_lr: float
    cycle_steps: int
    _: KW_ONLY
    cycle_multiplier: float = 1.0
    cycle_decay: float = 1.0
    base_momentum: float | None = None
    max_momentum: float | None = None

    def __post_init__(self) -> None:
        check_rates(self.base_lr, self.max_lr)
        check_count("cycle_steps", self.cycle_steps, "It counts optimizer steps to a restart.")
        check_multiplier(self.cycle_multiplier)
        check_interval("cycle_decay", self.cycle_decay, "(0, 1]", "1 keeps the height of restarts.")
        check_momenta(self.base_momentum, self.max_momentum)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step``, from 0."""
        return blend(self.base_lr, self.max_lr, self._height(step))

    def momentum(self, step: int) -> float | None:
        """Momentum of that step, as far below its maximum as the rate is above its minimum."""
        return momentum_at(self._height(step), self.base_momentum, self.max_momentum)

    def _height(self, step: int) -> float:
        """Height of the rate over its minimum: 1 where the first cycle begins."""
        cycle, position, length = locate(step, self.cycle_steps, self.cycle_multiplier)
        height = (1 + math.cos(math.pi * position / length)) / 2
        return height * float(self.cycle_decay**cycle)


def locate(step: int, length: int, multiplier: float) -> tuple[int, int, int]:
    """The cycle that a step belongs to, where each is longer than the last by a factor.

    Args:
        step: From 0.
        length: Steps of the first cycle.
        multiplier: The factor, at least 1. Cycle ``k`` begins at the first whole step at or after
            ``length * (multiplier**k - 1) / (multiplier - 1)``.

    Returns:
        Number of the cycle from 0, steps since it began, and how many steps it has. The cost does
        not depend on ``step``.

    Examples:
        >>> [locate(step, 4, 1.5) for step in (3, 4, 9, 10, 18, 19)]  # begin: 0, 4, 10, 19
        [(0, 3, 4), (1, 0, 6), (1, 5, 6), (2, 0, 9), (2, 8, 9), (3, 0, 14)]
    """
    if multiplier == 1:
        cycle, position = divmod(step, length)
        return cycle, position, length
    growth = multiplier - 1
    cycle = round(math.log1p(step * growth / length) / math.log1p(growth))
    if _begin(cycle, length, growth) > step:  # rounded up
        cycle -= 1
    begin = _begin(cycle, length, growth)
    return cycle, step - begin, _begin(cycle + 1, length, growth) - begin


def _begin(cycle: int, length: int, growth: float) -> int:
    begin = length * math.expm1(cycle * math.log1p(growth)) / growth
    # What misses a whole step by a rounding error is meant to be there: 10 * 1.1 is 11.
    return math.ceil(begin * (1 - 1e-12))


def blend(low: float, high: float, height: float) -> float:
    """The value at a height between two others: exactly ``low`` at 0 and ``high`` at 1.

    Examples:
        >>> blend(1.0, 3.0, 0.25)
        1.5
    """
    return low * (1 - height) + high * height


def momentum_at(height: float, base: float | None, top: float | None) -> float | None:
    """The momentum opposite to a rate of this height: the lowest at 1; None without bounds.

    Examples:
        >>> momentum_at(0.25, 0.8, 1.0), momentum_at(0.25, None, None)
        (0.95, None)
    """
    return None if base is None or top is None else blend(top, base, height)


def check_interval(name: str, value: float, interval: str, advice: str) -> None:
    """Refuse anything but a number in an interval such as ``"(0, 1]"`` or ``"[0, inf)"``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {value!r}. {advice}")
    low, high = map(float, interval[1:-1].split(","))
    is_inside = low < value < high
    is_end = (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
    if not (is_inside or is_end):
        raise ValueError(f"`{name}` must be in {interval}, got {value}. {advice}")


def check_rates(base_lr: float, max_lr: float) -> None:
    """Refuse anything but two finite rates, the lower one first."""
    check_interval("base_lr", base_lr, "[0, inf)", "It is the lowest rate of the cycle.")
    check_interval("max_lr", max_lr, "(0, inf)", "It is the highest rate of the cycle.")
    if base_lr >= max_lr:
        raise ValueError(
            f"`base_lr` must be below `max_lr`, got {base_lr} and {max_lr}. "
            "It is the lowest rate of the cycle."
        )


def check_momenta(base_momentum: float | None, max_momentum: float | None) -> None:
    """Refuse anything but two momenta, the lower one first, or none."""
    if base_momentum is None and max_momentum is None:
        return
    if base_momentum is None or max_momentum is None:
        raise ValueError(
            "`base_momentum` and `max_momentum` must be given both or not at all, "
            f"got {base_momentum} and {max_momentum}. Equal ones hold it constant."
        )
    check_interval("base_momentum", base_momentum, "[0, 1]", "It goes with the highest rate.")
    check_interval("max_momentum", max_momentum, "[0, 1]", "It goes with the lowest rate.")
    if base_momentum > max_momentum:
        raise ValueError(
            "`base_momentum` must not be above `max_momentum`, "
            f"got {base_momentum} and {max_momentum}. It goes with the highest rate."
        )


def check_multiplier(value: float) -> None:
    """Refuse a factor by which cycles would not grow, or would outgrow any run at once."""
    check_interval("cycle_multiplier", value, "[1, 100]", "1 keeps the length of the cycles.")


def check_count(name: str, value: int, advice: str) -> None:
    """Refuse anything but an integer of at least 1."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < 1:
        kind = ValueError if is_integer else TypeError
        raise kind(f"`{name}` must be an integer of at least 1, got {value!r}. {advice}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _warn_of_idle_gamma(policy: str, gamma: float) -> None:
    if (policy == "exp_range") != (gamma < 1):
        warnings.warn(
            f"`gamma={gamma}` has no effect with `policy={policy!r}`: 'exp_range' needs one below "
            "1, and the others have none.",
            stacklevel=4,
        )
