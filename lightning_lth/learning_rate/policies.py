"""A cycle by the name of its policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from lightning_lth.learning_rate.cycles import CosineRestarts, Cycle, Triangular, check_rates
from lightning_lth.learning_rate.one_cycle import OneCycle

Policy = Literal["triangular", "triangular2", "exp_range", "one_cycle", "cosine"]
POLICIES: tuple[Policy, ...] = ("triangular", "triangular2", "exp_range", "one_cycle", "cosine")

ANNIHILATION = 1000.0  # Smith 2018, section 4.1: "several orders of magnitude"


@final
@dataclass(frozen=True)
class Settings:
    """What a policy is made of, apart from rates and lengths.

    Attributes:
        policy: One of the names.
        gamma: As for ``lightning_lth.learning_rate.cycles.Triangular``; not for
            ``"one_cycle"`` and ``"cosine"``.
        cycle_multiplier: Likewise; not for ``"one_cycle"``.
        base_momentum: Likewise.
        max_momentum: Likewise.
    """

    policy: Policy
    gamma: float = 1.0
    cycle_multiplier: float = 1.0
    base_momentum: float | None = None
    max_momentum: float | None = None

    def cycle(self, base_lr: float, max_lr: float, step_size: int, num_steps: int) -> Cycle:
        """The cycle between two rates.

        Args:
            base_lr: Lowest rate.
            max_lr: Highest rate.
            step_size: Steps of half a cycle; of a whole one for ``"cosine"``.
            num_steps: Steps of the training; only ``"one_cycle"`` looks at them.

        Raises:
            ValueError: If a setting is out of its range, or one cycle does not fit into training.

        Examples:
            >>> cycle = Settings("one_cycle").cycle(0.1, 1.0, step_size=4, num_steps=10)
            >>> [round(cycle.rate(step), 4) for step in (0, 4, 9)]
            [0.1, 1.0, 0.0001]
        """
        if self.policy in ("one_cycle", "cosine") and self.gamma != 1:
            raise ValueError(f"policy={self.policy!r} has no `gamma`: leave it out.")
        if self.policy == "one_cycle":
            return self._one_cycle(base_lr, max_lr, step_size, num_steps)
        if self.policy == "cosine":
            return CosineRestarts(
                base_lr,
                max_lr,
                step_size,
                cycle_multiplier=self.cycle_multiplier,
                base_momentum=self.base_momentum,
                max_momentum=self.max_momentum,
            )
        return Triangular(
            base_lr,
            max_lr,
            step_size,
            policy=self.policy,
            gamma=self.gamma,
            cycle_multiplier=self.cycle_multiplier,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )

    def _one_cycle(self, base_lr: float, max_lr: float, step_size: int, num_steps: int) -> Cycle:
        check_rates(base_lr, max_lr)
        if base_lr == 0:
            raise ValueError(f"`base_lr` must be above 0 for policy='one_cycle', got {base_lr}.")
        if self.cycle_multiplier != 1:
            raise ValueError("policy='one_cycle' has one cycle: leave out `cycle_multiplier`.")
        if 2 * step_size + 2 > num_steps:
            raise ValueError(
                f"One cycle takes 2 * `step_size` = {2 * step_size} steps, and the fall after it "
                f"2 or more, but training has {num_steps}. Take a smaller `step_size`."
            )
        return OneCycle(
            max_lr,
            num_steps,
            warm_up_fraction=(step_size + 1) / num_steps,  # step 0 counts: the peak is `step_size`
            div_factor=max_lr / base_lr,
            final_div_factor=ANNIHILATION,
            shape="linear",
            three_phases=True,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )
