"""What an arm is: which trainings it consists of, and how each of them starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lightning_lth.study.design import Ladder
    from lightning_lth.study.trial import Trial


class Part(NamedTuple):
    """What one job of an arm does: a round and a draw, or everything of a seed."""

    round: int | None = None
    draw: int = 0


@dataclass(frozen=True, kw_only=True)
class Arm(ABC):
    """One way to come by sparse networks.

    Args:
        changes: Parts of the config that differ in this arm: values for ``model``, ``data`` and
            ``trainer``, e.g. ``{model: {init_args: {dropout: 0.5}}}``.
    """

    changes: dict[str, dict] = field(default_factory=dict)  # type: ignore[type-arg]  # not Any:
    # jsonargparse would make objects of what is to stay a description

    @property
    def source(self) -> str | None:
        """The arm whose tickets this one starts from."""
        return None

    @property
    def needs_dense_source(self) -> bool:
        """Whether it is the dense training of the source that this one starts from."""
        return False

    def check(self, ladder: Ladder) -> None:
        """Refuse what this arm cannot do, before any training.

        Raises:
            ValueError: With the reason.
        """
        return

    @abstractmethod
    def rounds_run(self, ladder: Ladder) -> list[int]:
        """The rounds that this arm has results of.

        They are rounds of its source, unless it needs its dense training alone.
        """

    def parts(self, ladder: Ladder) -> list[Part]:
        """The jobs of one seed."""
        return [Part(round) for round in self.rounds_run(ladder)]

    @abstractmethod
    def run(self, trial: Trial, part: Part) -> None:
        """Do the trainings of one job."""


def chosen_rounds(rounds: list[int] | None, ladder: Ladder) -> list[int]:
    """The given rounds, or all but the dense one."""
    return list(range(1, ladder.rounds + 1)) if rounds is None else rounds
