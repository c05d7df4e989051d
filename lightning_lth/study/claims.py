"""What a study is to show, in terms that its trainings can bear out or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf, isfinite
from typing import Literal, final


@final
@dataclass(frozen=True)
class Claim:
    """What a study is to show about the mean of a measure over trials.

    Args:
        text: The claim in plain words.
        arm: Whose measure it is about.
        round: In which round, from 0.
        measure: A numeric column of ``rounds``, e.g. ``early_stop_test_accuracy``.
        than: Arm to compare with. Default: the same arm, in ``than_round``.
        than_round: Round to compare with. Default: the same round, in ``than``.
        expect: ``"higher"`` or ``"lower"`` than the other, the ``"same"``, or ``"within"`` a range.
        by: How much higher or lower at least; for ``"same"`` how much at most.
        ratio: Whether ``by`` and ``between`` are factors, arm / other, instead of differences.
        between: For ``"within"``: ends of the range of the difference or ratio, or of the mean
            itself if there is nothing to compare with.

    Raises:
        ValueError: If the claim contradicts itself or is incomplete.

    Examples:
        >>> claim = Claim("Tickets learn at least 1.5 times faster.", arm="ticket", round=7,
        ...               measure="early_stop_step", than="random_reinit", expect="lower",
        ...               by=1.5, ratio=True)
    """

    text: str
    arm: str
    round: int
    measure: str
    expect: Literal["higher", "lower", "same", "within"]
    than: str | None = None
    than_round: int | None = None
    by: float = 0.0
    ratio: bool = False
    between: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.expect not in ("higher", "lower", "same", "within"):
            choices = "'higher', 'lower', 'same' or 'within'"
            raise ValueError(f"`expect` must be {choices}, got {self.expect!r}.")
        if len(set(self.places)) < len(self.places):
            raise ValueError(f"{self.arm!r} in round {self.round} is compared with itself.")
        if len(self.places) == 1 and (self.expect != "within" or self.ratio):
            what = "A ratio" if self.expect == "within" else f"`expect={self.expect!r}`"
            raise ValueError(f"{what} needs another arm or round; give `than` or `than_round`.")
        if self.expect == "within":
            self._check_between()
        else:
            self._check_by()

    @property
    def places(self) -> list[tuple[str, int]]:
        """Arm and round, and those to compare with if there are."""
        if self.than is None and self.than_round is None:
            return [(self.arm, self.round)]
        than = self.arm if self.than is None else self.than
        than_round = self.round if self.than_round is None else self.than_round
        return [(self.arm, self.round), (than, than_round)]

    @property
    def limits(self) -> tuple[float, float]:
        """From where to where the effect, arm - other or arm / other, is as claimed.

        Examples:
            >>> Claim("", "a", 1, "loss", "lower", than="b", by=0.2).limits
            (-inf, -0.2)
        """
        if self.between is not None:
            return self.between
        mirrored = 1 / self.by if self.ratio else -self.by
        ranges = {"higher": (self.by, inf), "lower": (-inf, mirrored), "same": (mirrored, self.by)}
        return ranges[self.expect]

    def _check_between(self) -> None:
        if self.by:
            raise ValueError(f"`expect='within'` takes `between`, not `by`; got `by={self.by}`.")
        if self.between is None or len(self.between) != 2:
            raise ValueError(f"`between` must be two numbers for 'within', got {self.between!r}.")
        low, high = self.between
        if not (isfinite(low) and isfinite(high) and low < high and (low > 0 or not self.ratio)):
            rule = "two numbers, the smaller first" + ", above 0 for a ratio" * self.ratio
            raise ValueError(f"`between` must be {rule}, got {self.between!r}.")

    def _check_by(self) -> None:
        if self.between is not None:
            raise ValueError(f"`between` is for `expect='within'`, got `expect={self.expect!r}`.")
        none = 1 if self.ratio else 0
        if not (isfinite(self.by) and self.by >= none):
            kind = "as a factor (`ratio=True`)" if self.ratio else "as a difference"
            hint = f"Direction is said by `expect`; {none} claims any effect."
            raise ValueError(f"`by` must be at least {none} {kind}, got {self.by!r}. {hint}")
        if self.expect == "same" and self.by == none:
            hint = "No trials show that two means are exactly equal; say what counts as the same."
            raise ValueError(f"`by` must be above {none} for 'same', got {self.by!r}. {hint}")


def check_claims(claims: Sequence[Claim], arms: Mapping[str, Collection[int]]) -> None:
    """Refuse claims about what the study will not run, before it does.

    Args:
        claims: Claims of the study.
        arms: Name of each arm to its rounds.

    Raises:
        ValueError: If an arm, or a round of an arm, does not exist.

    Examples:
        >>> claim = Claim("", "ticket", 7, "early_stop_step", "lower", than="reinit")
        >>> check_claims([claim], {"ticket": range(8), "reinit": [3, 7]})
    """
    for claim in claims:
        for arm, round in claim.places:
            if arm not in arms:
                close = get_close_matches(arm, arms, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                listed = ", ".join(map(repr, arms))
                raise ValueError(
                    f"The claim {claim.text!r} is about an arm {arm!r}, which the study does not "
                    f"have.{hint} Arms: {listed}."
                )
            if round not in arms[arm]:
                raise ValueError(
                    f"The claim {claim.text!r} is about round {round} of {arm!r}, which does not "
                    f"have it. Rounds: {', '.join(map(str, sorted(arms[arm])))}."
                )
