"""Whether two trainings of one ticket with two data orders come to the same place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, final

from torch import Tensor

from lightning_lth.pruning.connectivity import (
    angle_degrees,
    error_barrier,
    interpolate,
    l2_distance,
)
from lightning_lth.pruning.masks import Masks
from lightning_lth.study.arm import Arm, Part, chosen_rounds

if TYPE_CHECKING:
    from lightning_lth.study.design import Ladder
    from lightning_lth.study.trial import Trial


_MOST = 1000


@final
@dataclass(frozen=True, kw_only=True)
class Stability(Arm):
    """Train each ticket of another arm with several data orders, and compare where they end.

    Each pair of trainings gives the error barrier on the line between them (linear mode
    connectivity: below 0.02 counts as stable) and the distance and the angle between their
    weights. Errors are those on the test data, or on the validation data where there are none. The
    first training has the order that the dense network of the trial had, so its distance to that
    network's end, under the same mask, is the stability to pruning.

    Args:
        of: The arm whose tickets are taken. Round 0 is the dense network.
        rounds: Rounds whose tickets are taken. Default: all but the dense one.
        orders: How many data orders.
        points: Evenly spaced points on each line, both ends included.

    Source:
        Frankle et al. 2019, arXiv:1903.01611: section 3 (distances); Frankle et al. 2020,
        arXiv:1912.05671: section 2 (instability; 30 points).
    """

    of: str
    rounds: list[int] | None = None
    orders: int = 2
    points: int = 30

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to compare."""
        if not 2 <= self.orders <= _MOST or not 3 <= self.points <= _MOST:
            raise ValueError(
                f"`orders` must be in [2, {_MOST}] and `points` in [3, {_MOST}], "
                f"got {self.orders} and {self.points}."
            )

    @property
    def source(self) -> str:
        """The arm whose tickets are taken."""
        return self.of

    def rounds_run(self, ladder: Ladder) -> list[int]:
        """The given rounds, or all but the dense one."""
        return chosen_rounds(self.rounds, ladder)

    def run(self, trial: Trial, part: Part) -> None:
        """Train with each order, and compare all pairs."""
        assert part.round is not None
        ticket = trial.fit_ticket(trial.source_ticket(part.round))
        ends = [trial.train(ticket, draw=order, order=order) for order in range(self.orders)]
        key = {
            "arm": trial.job.arm,
            "seed": trial.seed,
            "round": ticket.round,
            "density": ticket.density,
        }
        to_dense = _to_dense(trial.dense_trained(), ends[0], ticket.masks)
        trial.tables["stability"] = [
            {**key, "pair": pair, **self._compared(trial, ticket.masks, *two), **to_dense}
            for pair, two in enumerate(combinations(ends, 2))
        ]

    def _compared(
        self, trial: Trial, masks: Masks, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
    ) -> dict[str, float]:
        distance = l2_distance(first, second, masks)
        if distance == 0:
            raise ValueError(
                "Two data orders led to equal weights, so the seed does not decide the order. "
                "Shuffle the training data, without a generator that has a seed of its own."
            )
        steps = [point / (self.points - 1) for point in range(self.points)]
        errors = [trial.error(interpolate(first, second, alpha)) for alpha in steps]
        return {
            "error_a": errors[-1],
            "error_b": errors[0],
            "max_error": max(errors),
            "barrier": error_barrier(errors),
            "l2_distance": distance,
            "angle_degrees": angle_degrees(first, second, masks),
        }


def _to_dense(
    dense: Mapping[str, Tensor] | None, end: Mapping[str, Tensor], masks: Masks
) -> dict[str, float]:
    """Distance and angle between the end of a ticket and that of the dense network, masked."""
    if dense is None or any(name not in dense for name in masks):
        return {}
    if any(dense[name].shape != mask.shape for name, mask in masks.items()):
        return {}
    return {
        "pruning_l2_distance": l2_distance(end, dense, masks),
        "pruning_angle_degrees": angle_degrees(end, dense, masks),
    }
