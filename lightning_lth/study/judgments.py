"""Claims + trainings -> verdicts, with the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import isclose, isfinite, nan
from typing import Any, NamedTuple, final

import pandas as pd  # type: ignore[import-untyped]

from lightning_lth.study import statistics
from lightning_lth.study.claims import Claim
from lightning_lth.study.statistics import Array, PairedComparison

MIN_TRIALS = 3
"""Seeds that a verdict needs: fewer say next to nothing about how much results vary."""


class Verdict(Enum):
    """What the trainings say about a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_ENOUGH_TRIALS = "not enough trials"


@final
@dataclass(frozen=True)
class Judgment:
    """A claim, its verdict and the numbers behind it.

    Args:
        claim: What was claimed.
        verdict: Whether it holds.
        num_trials: Seeds with the values that it takes.
        estimate: The mean; in a comparison that of arm - other, or the geometric mean of
            arm / other. NaN without enough trials, and so are the ends of the interval.
        ci_low: Lower end of the 95 % confidence interval of the estimate.
        ci_high: Upper end.
        p: Of the one-sided test of the claim; None for ``"within"``, which is no test.
        corrected_p: ``p`` corrected for the number of claims.
        comparison: Of the arm with the other, in this order; None for a mean.
        missing: What keeps the claim from being judged.
    """

    claim: Claim
    verdict: Verdict
    num_trials: int
    estimate: float = nan
    ci_low: float = nan
    ci_high: float = nan
    p: float | None = None
    corrected_p: float | None = None
    comparison: PairedComparison | None = None
    missing: str = ""

    @property
    def sentence(self) -> str:
        """The verdict and its numbers."""
        lead = self.verdict.value.capitalize()
        if self.verdict is Verdict.NOT_ENOUGH_TRIALS:
            return f"{lead}: {self.missing}."
        return f"{lead}: {_observation(self)}{_conclusion(self)}."


def judge(claims: Sequence[Claim], rounds: pd.DataFrame, *, alpha: float = 0.05) -> list[Judgment]:
    """Say of each claim whether the trainings bear it out.

    There is no verdict with fewer than ``MIN_TRIALS`` seeds. Otherwise a claim

    * of ``"higher"`` or ``"lower"`` holds if the estimate is so by at least ``by``, and a one-sided
      paired t-test against no effect, corrected by Holm's procedure, is below ``alpha``;
    * of ``"same"`` holds if two one-sided paired t-tests against ``by``, corrected, are below it;
    * of ``"within"`` holds if the estimate lies in the range. This is no test.

    Args:
        claims: All the claims of a study.
        rounds: One row for each training; what has not been run yet may be missing.
        alpha: Largest probability, in (0, 1), that any tested claim holds by chance alone.

    Returns:
        A judgment of each claim, in order.

    Raises:
        ValueError: If a measure is no numeric column of ``rounds``, or ``alpha`` out of range.

    Note:
        What is tested is that there is an effect; ``by`` is asked of the estimate alone, which
        reaches it in half of all studies if the true effect is ``by`` exactly. The sentence says
        so if the interval also holds effects that are not claimed.

        The correction counts the claims that cannot be judged yet, so that their progress makes no
        other verdict worse. A claim added after the results were seen is no longer corrected for.

        Trials without a finite value, or for a ratio without one above 0, are not left out, as that
        may favour an arm that fails: the claim is not judged.

        That a claim does not hold does not show its opposite; to show that there is no effect,
        claim ``"same"``. If all differences are equal the test is a sign test, as for
        ``lightning_lth.study.statistics.compare``.

    Source:
        A significant effect with a relevant estimate: Roychoudhury, Scheuer & Neuenschwander 2018,
        Clin. Trials 15: 452-461. Correction: Holm 1979. Equivalence: Schuirmann 1987.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be in (0, 1), got {alpha!r}.")
    if rounds.empty:  # not even its columns may be there
        columns = {*statistics.KEYS, *(claim.measure for claim in claims)}
        rounds = pd.DataFrame({column: pd.Series(dtype=float) for column in columns})
    found = [_find(claim, rounds) for claim in claims]
    p_values = [_p_value(claim, trials) for claim, trials in zip(claims, found, strict=True)]
    corrected = iter(statistics.holm([p for p in p_values if p is not None]))
    return [
        _judgment(claim, trials, p, None if p is None else next(corrected), alpha)
        for claim, trials, p in zip(claims, found, p_values, strict=True)
    ]


def to_frame(judgments: Sequence[Judgment]) -> pd.DataFrame:
    """One row for each judgment, in plain columns, e.g. for a CSV file.

    ``than`` and ``than_round`` are what was compared with, and empty for a mean; the rest is as in
    ``lightning_lth.study.claims.Claim``, ``Judgment`` and
    ``lightning_lth.study.statistics.PairedComparison``.
    """
    frame = pd.DataFrame([_row(judgment) for judgment in judgments], columns=_COLUMNS.split())
    return frame.astype({"than_round": "Int64", "num_agreeing": "Int64"})


_COLUMNS = (
    "text arm round measure expect than than_round by ratio between_low between_high "
    "verdict num_trials estimate ci_low ci_high p corrected_p "
    "wilcoxon_p effect_size num_agreeing sentence"
)


class _Trials(NamedTuple):
    """The values of each place of a claim, by seed, and what keeps them from being judged."""

    values: list[Array]
    num_trials: int
    missing: str


def _find(claim: Claim, rounds: pd.DataFrame) -> _Trials:
    statistics.check_measure(claim.measure, rounds)
    tables = [statistics.trials(rounds, place, claim.measure) for place in claim.places]
    seeds = sorted(set.intersection(*(set(table.index) for table in tables)))
    values = [table.loc[seeds].to_numpy(float) for table in tables]
    lowest = 0.0 if claim.ratio else -float("inf")
    unusable = [
        seed
        for seed, *each in zip(seeds, *values, strict=True)
        if not all(isfinite(value) and value > lowest for value in each)
    ]
    missing = ""
    if unusable:
        rule = "finite and above 0" if claim.ratio else "finite"
        missing = (
            f"{claim.measure} must be {rule} in all trials, but is not for {_seeds(unusable)}; "
            "no trial is left out, since it may be one that failed"
        )
    elif len(seeds) < MIN_TRIALS:
        had = [
            f"{arm} in round {round} was run with {_seeds(sorted(table.index))}"
            for (arm, round), table in zip(claim.places, tables, strict=True)
        ]
        common = " in common" if len(tables) > 1 else ""
        missing = f"{len(seeds)} of at least {MIN_TRIALS} seeds{common}; {', '.join(had)}"
    return _Trials(values, len(seeds) - len(unusable), missing)


def _seeds(seeds: Sequence[int]) -> str:
    listed = ", ".join(str(int(seed)) for seed in seeds)
    return f"seed{'s' * (len(seeds) > 1)} {listed}" if seeds else "no seed"


def _p_value(claim: Claim, trials: _Trials) -> float | None:
    if claim.expect == "within":
        return None
    if trials.missing:
        return 1.0
    a, b = trials.values
    if claim.expect == "same":
        return statistics.p_equivalent(a, b, claim.by, ratio=claim.ratio)
    first, second = (a, b) if claim.expect == "higher" else (b, a)
    return statistics.p_above(first, second, ratio=claim.ratio)


def _judgment(
    claim: Claim, trials: _Trials, p: float | None, corrected: float | None, alpha: float
) -> Judgment:
    values, num_trials, missing = trials
    if missing:
        return Judgment(claim, Verdict.NOT_ENOUGH_TRIALS, num_trials, missing=missing)
    comparison = None
    if len(values) == 1:
        estimate, ends = float(values[0].mean()), statistics.interval(values[0])
    else:
        comparison = statistics.compare(*values, ratio=claim.ratio)
        estimate, ends = comparison.effect, (comparison.ci_low, comparison.ci_high)
    holds = _is_claimed(claim, estimate) and (corrected is None or corrected < alpha)
    verdict = Verdict.HOLDS if holds else Verdict.DOES_NOT_HOLD
    return Judgment(claim, verdict, num_trials, estimate, *ends, p, corrected, comparison)


def _is_claimed(claim: Claim, *effects: float) -> bool:
    """Whether all are in the range that is claimed, up to rounding errors."""
    low, high = claim.limits
    ends = [end for end in (low, high) if isfinite(end)]
    return all(
        low <= effect <= high or any(isclose(effect, end, rel_tol=1e-9) for end in ends)
        for effect in effects
    )


def _observation(judgment: Judgment) -> str:
    claim, seen = judgment.claim, judgment.comparison
    subject = f"{claim.measure} of {claim.arm} in round {claim.round}"
    trials = f"{judgment.num_trials} trials"
    if seen is None:
        ends = f"{judgment.ci_low:.5g} to {judgment.ci_high:.5g}"
        return f"the mean {subject} is {judgment.estimate:.5g} (95 % CI {ends}; {trials})"
    (arm, round), (than, than_round) = claim.places
    relation, size = "differs from that", ""
    if claim.expect in ("higher", "lower") and seen.effect_size:
        relation = f"is {'higher' if seen.effect_size > 0 else 'lower'} than that"
        trials = f"{seen.num_agreeing} of {trials}"
        size = "" if seen.is_constant else f"; d_z = {_number(abs(seen.effect_size))}"
        seen = seen if seen.effect_size > 0 else seen.swapped()
    relation += f" of {than}" * (than != arm) + f" in round {than_round}" * (than_round != round)
    effect = "a factor of " * claim.ratio + _number(seen.effect)
    numbers = f"95 % CI {_number(seen.ci_low)} to {_number(seen.ci_high)}; {trials}"
    return f"{subject} {relation} by {effect} ({numbers}{_test(judgment)}{size})"


def _test(judgment: Judgment) -> str:
    if judgment.p is None or judgment.corrected_p is None or judgment.comparison is None:
        return ""
    name = (
        "two one-sided paired t-tests"
        if judgment.claim.expect == "same"
        else "one-sided paired t-test"
    )
    if judgment.comparison.is_constant:
        name = "all differences are equal: sign test"
    p, corrected = (
        "< 0.0001" if value < 0.0001 else f"= {value:.2g}"
        for value in (judgment.p, judgment.corrected_p)
    )
    return f"; {name} p {p}, corrected {corrected.removeprefix('= ')}"


def _conclusion(judgment: Judgment) -> str:
    """What the numbers lack, or how far they reach beyond the claim."""
    claim, estimate, claimed = judgment.claim, judgment.estimate, _claimed(judgment.claim)
    none = 1.0 if claim.ratio else 0.0
    is_directed = claim.expect in ("higher", "lower")
    if judgment.verdict is Verdict.HOLDS:
        if not _is_claimed(claim, judgment.ci_low, judgment.ci_high):
            return f"; claimed is {claimed}, and the interval reaches beyond"
        return "" if is_directed else f"; claimed is {claimed}, where the whole interval lies"
    if _is_claimed(claim, estimate):
        return f"; claimed is {claimed}, which is not significant after correction"
    if is_directed and (estimate < none if claim.expect == "higher" else estimate > none):
        return f"; claimed is the opposite, {claimed}"
    low, high = claim.limits
    overlaps = judgment.ci_low <= high and judgment.ci_high >= low
    tail = "but the interval reaches into it" if overlaps else "and the interval is all outside"
    return f"; claimed is {claimed}, {tail}"


def _claimed(claim: Claim) -> str:
    if claim.between is not None:
        return " to ".join(map(_number, claim.between))
    factor = "a factor of " * claim.ratio
    if claim.expect == "same":
        return f"{factor}at most {_number(claim.by)} either way"
    is_any = claim.by == (1 if claim.ratio else 0)
    return claim.expect + ("" if is_any else f" by {factor}at least {_number(claim.by)}")


def _number(value: float) -> str:
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def _row(judgment: Judgment) -> dict[str, Any]:
    claim, seen = judgment.claim, judgment.comparison
    than, than_round = claim.places[1] if len(claim.places) > 1 else (None, None)
    low, high = claim.between or (nan, nan)
    row = {**vars(claim), **vars(judgment), "than": than, "than_round": than_round}
    row |= {"between_low": low, "between_high": high, "verdict": judgment.verdict.value}
    names = ("wilcoxon_p", "effect_size", "num_agreeing")
    row |= {name: None if seen is None else getattr(seen, name) for name in names}
    return row | {"sentence": judgment.sentence}
