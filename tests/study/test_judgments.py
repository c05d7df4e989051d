"""Verdicts on claims: when a claim holds, when it does not, and when nothing can be said."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_lth.study.claims import Claim
from lightning_lth.study.judgments import Judgment, Verdict, judge, to_frame

HOLDS, FAILS, FEW = Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.NOT_ENOUGH_TRIALS


def study(round: int = 3, **arms: Sequence[float]) -> pd.DataFrame:
    """Trainings of one round; the seeds of each arm are 0, 1, 2..."""
    rows = [
        {"arm": arm, "seed": seed, "draw": 0, "round": round, "density": 0.5, "loss": loss}
        for arm, losses in arms.items()
        for seed, loss in enumerate(losses)
    ]
    return pd.DataFrame(rows)


def claim(expect: Any, by: float = 0.0, **changes: Any) -> Claim:
    return Claim(
        "",
        **{"arm": "a", "round": 3, "measure": "loss", "than": "b", **changes},
        expect=expect,
        by=by,
    )


def judge_one(claim: Claim, rounds: pd.DataFrame, **options: Any) -> Judgment:
    (judgment,) = judge([claim], rounds, **options)
    return judgment


# Differences 1, 2, 3, 2, 2: mean 2, variance 0.5, standard error sqrt(0.1), t = 6.3, p = 0.0016.
APART = study(a=[11, 12, 13, 12, 12], b=[10, 10, 10, 10, 10])
# Ratios 2, 4, 2, 4: geometric mean 2 * sqrt(2) = 2.83. Logarithms to base 2: 1, 2, 1, 2; mean 1.5,
# standard error sqrt(1 / 12), t = 5.2, p = 0.007.
TIMES = study(a=[2, 8, 6, 4], b=[1, 2, 3, 1])
# Differences -1, 1, 3: mean 1, standard error 2 / sqrt(3), t = 0.87.
UNSURE = study(a=[9, 11, 13], b=[10, 10, 10])


@pytest.mark.parametrize(
    ("rounds", "made", "verdict"),
    [
        (APART, claim("higher"), HOLDS),
        (APART, claim("higher", 2.0), HOLDS),
        (APART, claim("higher", 2.001), FAILS),
        (APART, claim("lower"), FAILS),
        (APART, claim("lower", arm="b", than="a"), HOLDS),
        (APART, claim("lower", 2.0, arm="b", than="a"), HOLDS),
        (APART, claim("lower", 2.001, arm="b", than="a"), FAILS),
        # t = (3 - 2) / sqrt(0.1) = 3.16, p = 0.017; (2.5 - 2) / sqrt(0.1) = 1.58, p = 0.095.
        (APART, claim("same", 3.0), HOLDS),
        (APART, claim("same", 2.5), FAILS),
        (APART, claim("same", 3.0, arm="b", than="a"), HOLDS),
        (APART, claim("same", 2.5, arm="b", than="a"), FAILS),
        (APART, claim("within", between=(2, 3)), HOLDS),
        (APART, claim("within", between=(2.001, 3)), FAILS),
        (APART, claim("within", between=(1, 1.999)), FAILS),
        (APART, claim("within", between=(-2, -1), arm="b", than="a"), HOLDS),
        (APART, claim("within", between=(12, 13), than=None), HOLDS),
        (APART, claim("within", between=(2, 3), than=None), FAILS),
        (TIMES, claim("higher", 2.8, ratio=True), HOLDS),
        (TIMES, claim("higher", 2.9, ratio=True), FAILS),
        (TIMES, claim("lower", 2.8, ratio=True, arm="b", than="a"), HOLDS),
        (TIMES, claim("lower", 2.9, ratio=True, arm="b", than="a"), FAILS),
        (TIMES, claim("lower", 1, ratio=True), FAILS),
        # Logarithm of 8: 3; t = (3 - 1.5) / sqrt(1 / 12) = 5.2. Of 4: 2, t = 1.7, p = 0.09.
        (TIMES, claim("same", 8, ratio=True), HOLDS),
        (TIMES, claim("same", 4, ratio=True), FAILS),
        (TIMES, claim("within", between=(2.8, 2.9), ratio=True), HOLDS),
        (TIMES, claim("within", between=(2.7, 2.8), ratio=True), FAILS),
        (UNSURE, claim("higher"), FAILS),
        (UNSURE, claim("same", 1.5), FAILS),
        # Equal samples are the same, but 1 / 8 and 1 / 32 are the p-values of a sign test.
        (study(a=[1, 2, 3], b=[1, 2, 3]), claim("same", 0.1), FAILS),
        (study(a=[1, 2, 3, 4, 5], b=[1, 2, 3, 4, 5]), claim("same", 0.1), HOLDS),
        (study(a=[1, 2, 3, 4, 5], b=[1, 2, 3, 4, 5]), claim("higher"), FAILS),
        (study(a=[1, 1, 1], b=[2, 2, 2]), claim("lower"), FAILS),
    ],
)
def test_verdicts(rounds: pd.DataFrame, made: Claim, verdict: Verdict) -> None:
    assert judge_one(made, rounds).verdict is verdict


def test_a_minimum_is_reached_up_to_rounding_errors() -> None:
    # 0.3 - 0.2 < 0.1 in floating point, and so is the mean of these differences.
    rounds = study(a=[0.3, 0.31, 0.29, 0.3, 0.3], b=[0.2, 0.2, 0.2, 0.2, 0.2])
    judgment = judge_one(claim("higher", 0.1), rounds)
    assert judgment.verdict is HOLDS


def test_numbers() -> None:
    judgment = judge_one(claim("lower"), APART)
    assert judgment.num_trials == 5
    assert judgment.estimate == pytest.approx(2)  # arm - other, whatever is claimed
    half = 2.77645 * math.sqrt(0.1)  # Student's quantile for 4 degrees of freedom
    assert (judgment.ci_low, judgment.ci_high) == pytest.approx((2 - half, 2 + half), abs=1e-4)
    assert judgment.p == judgment.corrected_p == pytest.approx(stats.t.cdf(2 / math.sqrt(0.1), 4))
    assert judgment.comparison is not None
    assert judgment.comparison.effect == judgment.estimate


def test_numbers_of_a_mean() -> None:
    judgment = judge_one(claim("within", than=None, between=(0, 1)), APART)
    assert (judgment.num_trials, judgment.estimate, judgment.comparison) == (5, 12, None)
    half = 2.77645 * math.sqrt(0.1)
    assert (judgment.ci_low, judgment.ci_high) == pytest.approx((12 - half, 12 + half), abs=1e-4)
    assert (judgment.p, judgment.corrected_p) == (None, None)


def test_draws_of_a_seed_are_one_trial() -> None:
    draws = study(a=[0, 1, 2, 1, 1]).assign(draw=1)
    rounds = pd.concat([APART, draws])
    judgment = judge_one(claim("higher"), rounds)
    # Means of the draws: 5.5, 6.5, 7.5, 6.5, 6.5.
    assert (judgment.num_trials, judgment.estimate) == (5, pytest.approx(-3.5))


def test_two_rounds_of_an_arm() -> None:
    rounds = pd.concat([study(0, a=[10, 10, 10, 10, 10]), study(3, a=[11, 12, 13, 12, 12])])
    judgment = judge_one(claim("higher", than=None, than_round=0), rounds)
    assert (judgment.verdict, judgment.estimate) == (HOLDS, pytest.approx(2))


def test_correction_counts_the_tests_and_those_not_yet_run() -> None:
    made = [
        claim("higher"),
        claim("within", between=(0, 1)),
        claim("lower"),
        claim("higher", round=4),
        claim("same", 3.0),
    ]
    judgments = judge(made, APART)
    higher, same = stats.t.sf(2 / math.sqrt(0.1), 4), stats.t.sf(1 / math.sqrt(0.1), 4)
    corrected = [judgment.corrected_p for judgment in judgments]
    assert corrected == [pytest.approx(4 * higher), None, 1, None, pytest.approx(3 * same)]
    assert judgments[3].p is None
    assert [judgment.verdict for judgment in judgments] == [HOLDS, FAILS, FAILS, FEW, FAILS]


def test_alpha() -> None:
    assert judge_one(claim("higher"), APART, alpha=0.001).verdict is FAILS
    assert judge_one(claim("same", 2.5), APART, alpha=0.1).verdict is HOLDS


@pytest.mark.parametrize("alpha", [0, 1, math.nan])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"`alpha` must be in \(0, 1\), got {alpha}\."):
        judge([], APART, alpha=alpha)


def test_unknown_measure() -> None:
    with pytest.raises(ValueError, match=r"called 'lost'\. Did you mean 'loss'\?"):
        judge_one(claim("higher", measure="lost"), APART)


@pytest.mark.parametrize(
    ("rounds", "changes", "sentence", "num_trials"),
    [
        (
            study(a=[1, 2, 3], b=[4, 5]),
            {},
            "Not enough trials: 2 of at least 3 seeds in common; a in round 3 was run with seeds "
            "0, 1, 2, b in round 3 was run with seeds 0, 1.",
            2,
        ),
        (
            study(a=[1], b=[4, 5, 6]),
            {"round": 2, "than_round": 3},
            "Not enough trials: 0 of at least 3 seeds in common; a in round 2 was run with no "
            "seed, b in round 3 was run with seeds 0, 1, 2.",
            0,
        ),
        (
            study(a=[1]),
            {"than": None, "expect": "within", "between": (0, 1)},
            "Not enough trials: 1 of at least 3 seeds; a in round 3 was run with seed 0.",
            1,
        ),
        (
            study(a=[1, math.nan, 3, 4, 5, math.inf], b=[1, 2, 3, 4, 5, 6]),
            {},
            "Not enough trials: loss must be finite in all trials, but is not for seeds 1, 5; no "
            "trial is left out, since it may be one that failed.",
            4,
        ),
        (
            study(a=[1, 2, 3, 4], b=[1, 2, 0, 4]),
            {"ratio": True, "by": 1},
            "Not enough trials: loss must be finite and above 0 in all trials, but is not for seed "
            "2; no trial is left out, since it may be one that failed.",
            3,
        ),
    ],
)
def test_not_enough_trials(
    rounds: pd.DataFrame, changes: dict[str, Any], sentence: str, num_trials: int
) -> None:
    judgment = judge_one(claim(**{"expect": "higher", **changes}), rounds)
    assert judgment.verdict is FEW
    assert judgment.sentence == sentence
    assert judgment.num_trials == num_trials
    assert math.isnan(judgment.estimate)
    assert (judgment.p, judgment.corrected_p, judgment.comparison) == (None, None, None)


def test_seeds_that_only_one_has_may_lack_a_value() -> None:
    rounds = study(a=[11, 12, 13, 12, 12, math.nan], b=[10, 10, 10, 10, 10])
    assert judge_one(claim("higher"), rounds).verdict is HOLDS


@pytest.mark.parametrize("rounds", [pd.DataFrame(), APART.iloc[:0]])
def test_nothing_run_yet(rounds: pd.DataFrame) -> None:
    sentence = judge_one(claim("higher"), rounds).sentence
    assert sentence == (
        "Not enough trials: 0 of at least 3 seeds in common; a in round 3 was run with no seed, "
        "b in round 3 was run with no seed."
    )


# Of the sentences below: APART has the interval 2 -+ 0.878, d_z = 2 / sqrt(0.5) = 2.83. TIMES has
# 2 ** (1.5 -+ 3.182 / sqrt(12)) = 1.5 to 5.35, d_z = 1.5 / sqrt(1 / 3) = 2.6.
UP = "loss of a in round 3 is higher than that of b by 2 (95 % CI 1.12 to 2.88; 5 of 5 trials; "
DOWN = "loss of b in round 3 is lower than that of a by 2 (95 % CI 1.12 to 2.88; 5 of 5 trials; "
BY = "loss of a in round 3 differs from that of b by 2 (95 % CI 1.12 to 2.88; 5 trials"
ONE = "one-sided paired t-test p = 0.0016, corrected 0.0016; d_z = 2.83)"
MEAN = "the mean loss of a in round 3 is 12 (95 % CI 11.122 to 12.878; 5 trials)"
TWO = "two one-sided paired t-tests p"
FACTOR = "a factor of 2.83 (95 % CI 1.5 to 5.35; 4 of 4 trials; one-sided paired t-test p = 0.0069"


@pytest.mark.parametrize(
    ("rounds", "made", "sentence"),
    [
        (APART, claim("higher"), f"Holds: {UP}{ONE}."),
        (APART, claim("higher", 1.0), f"Holds: {UP}{ONE}."),
        (
            APART,
            claim("higher", 1.5),
            f"Holds: {UP}{ONE}; claimed is higher by at least 1.5, and the interval reaches "
            "beyond.",
        ),
        (APART, claim("lower", arm="b", than="a"), f"Holds: {DOWN}{ONE}."),
        (
            APART,
            claim("lower", 1.5, arm="b", than="a"),
            f"Holds: {DOWN}{ONE}; claimed is lower by at least 1.5, and the interval reaches "
            "beyond.",
        ),
        (
            APART,
            claim("higher", 2.5),
            f"Does not hold: {UP}{ONE}; claimed is higher by at least 2.5, but the interval "
            "reaches into it.",
        ),
        (
            APART,
            claim("higher", 3.0),
            f"Does not hold: {UP}{ONE}; claimed is higher by at least 3, and the interval is all "
            "outside.",
        ),
        (
            APART,
            claim("lower", 0.5),
            f"Does not hold: {UP}one-sided paired t-test p = 1, corrected 1; d_z = 2.83); claimed "
            "is the opposite, lower by at least 0.5.",
        ),
        (
            APART,
            claim("higher", arm="b", than="a"),
            f"Does not hold: {DOWN}one-sided paired t-test p = 1, corrected 1; d_z = 2.83); "
            "claimed is the opposite, higher.",
        ),
        (
            APART,
            claim("same", 3.0),
            f"Holds: {BY}; {TWO} = 0.017, corrected 0.017); claimed is at most 3 either way, where "
            "the whole interval lies.",
        ),
        (
            APART,
            claim("same", 2.5),
            f"Does not hold: {BY}; {TWO} = 0.095, corrected 0.095); claimed is at most 2.5 either "
            "way, which is not significant after correction.",
        ),
        (
            APART,
            claim("same", 1.5),
            f"Does not hold: {BY}; {TWO} = 0.91, corrected 0.91); claimed is at most 1.5 either "
            "way, but the interval reaches into it.",
        ),
        (
            APART,
            claim("same", 1.0),
            f"Does not hold: {BY}; {TWO} = 0.98, corrected 0.98); claimed is at most 1 either way, "
            "and the interval is all outside.",
        ),
        (
            APART,
            claim("within", between=(1, 3)),
            f"Holds: {BY}); claimed is 1 to 3, where the whole interval lies.",
        ),
        (
            APART,
            claim("within", between=(1, 2.5), than=None, than_round=0),
            "Holds: loss of a in round 3 differs from that in round 0 by 2 (95 % CI 1.12 to 2.88; "
            "5 trials); claimed is 1 to 2.5, and the interval reaches beyond.",
        ),
        (
            APART,
            claim("within", between=(11, 13), than=None),
            f"Holds: {MEAN}; claimed is 11 to 13, where the whole interval lies.",
        ),
        (
            APART,
            claim("within", between=(10, 11.5), than=None),
            f"Does not hold: {MEAN}; claimed is 10 to 11.5, but the interval reaches into it.",
        ),
        (
            APART,
            claim("within", between=(13, 14), than=None),
            f"Does not hold: {MEAN}; claimed is 13 to 14, and the interval is all outside.",
        ),
        (
            UNSURE,
            claim("higher", than_round=0),
            "Does not hold: loss of a in round 3 is higher than that of b in round 0 by 1 (95 % CI "
            "-3.97 to 5.97; 2 of 3 trials; one-sided paired t-test p = 0.24, corrected 0.24; d_z = "
            "0.5); claimed is higher, which is not significant after correction.",
        ),
        (
            TIMES,
            claim("higher", 1, ratio=True),
            f"Holds: loss of a in round 3 is higher than that of b by {FACTOR}, corrected 0.0069; "
            "d_z = 2.6).",
        ),
        (
            TIMES,
            claim("lower", 2.5, ratio=True, arm="b", than="a"),
            f"Holds: loss of b in round 3 is lower than that of a by {FACTOR}, corrected 0.0069; "
            "d_z = 2.6); claimed is lower by a factor of at least 2.5, and the interval reaches "
            "beyond.",
        ),
        (
            TIMES,
            claim("same", 8, ratio=True),
            "Holds: loss of a in round 3 differs from that of b by a factor of 2.83 (95 % CI 1.5 "
            f"to 5.35; 4 trials; {TWO} = 0.0069, corrected 0.0069); claimed is a factor of at most "
            "8 either way, where the whole interval lies.",
        ),
        (
            TIMES,
            claim("lower", 1, ratio=True),
            "Does not hold: loss of a in round 3 is higher than that of b by a factor of 2.83 "
            "(95 % CI 1.5 to 5.35; 4 of 4 trials; one-sided paired t-test p = 0.99, corrected "
            "0.99; d_z = 2.6); claimed is the opposite, lower.",
        ),
        (
            TIMES,
            claim("lower", 3, ratio=True, arm="b", than="a"),
            f"Does not hold: loss of b in round 3 is lower than that of a by {FACTOR}, corrected "
            "0.0069; d_z = 2.6); claimed is lower by a factor of at least 3, but the interval "
            "reaches into it.",
        ),
        (
            TIMES,
            claim("higher", 3, ratio=True, arm="b", than="a"),
            "Does not hold: loss of b in round 3 is lower than that of a by a factor of 2.83 "
            "(95 % CI 1.5 to 5.35; 4 of 4 trials; one-sided paired t-test p = 0.99, corrected "
            "0.99; d_z = 2.6); claimed is the opposite, higher by a factor of at least 3.",
        ),
        (
            study(a=[7501, 7502, 7503], b=[1, 2, 3]),
            claim("higher", 1500),
            "Does not hold: loss of a in round 3 is higher than that of b by 7500 (95 % CI 7500 to "
            "7500; 3 of 3 trials; all differences are equal: sign test p = 0.12, corrected 0.12); "
            "claimed is higher by at least 1500, which is not significant after correction.",
        ),
        (
            study(a=[1, 2, 3], b=[1, 2, 3]),
            claim("lower", 0.25),
            "Does not hold: loss of a in round 3 differs from that of b by 0 (95 % CI 0 to 0; 3 "
            "trials; all differences are equal: sign test p = 1, corrected 1); claimed is lower by "
            "at least 0.25, and the interval is all outside.",
        ),
        (
            study(a=[1001, 1002, 1003], b=[1, 2, 3.5]),
            claim("higher"),
            "Holds: loss of a in round 3 is higher than that of b by 1000 (95 % CI 999 to 1001; 3 "
            "of 3 trials; one-sided paired t-test p < 0.0001, corrected < 0.0001; d_z = 3464).",
        ),
    ],
)
def test_sentences(rounds: pd.DataFrame, made: Claim, sentence: str) -> None:
    if made.than_round == 0:
        other = rounds[rounds["arm"] == "b"].assign(round=0, arm=made.places[1][0])
        rounds = pd.concat([rounds, other])
    assert judge_one(made, rounds).sentence == sentence


VALUES = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda pair: (pair[0] / 8, pair[1] / 8)),
    min_size=3,
    max_size=6,
)


@given(VALUES, st.sampled_from(["higher", "lower", "same"]), st.booleans(), st.randoms())
@settings(max_examples=25, deadline=None)
def test_exchanged_arms(
    pairs: list[tuple[float, float]], expect: Any, ratio: bool, random: Any
) -> None:
    a, b = zip(*pairs, strict=True)
    rounds = study(a=a, b=b)
    mirrored = {"higher": "lower", "lower": "higher", "same": "same"}[expect]
    order = random.sample(range(len(rounds)), len(rounds))
    made = claim(expect, 1.5, ratio=ratio)
    exchanged = claim(mirrored, 1.5, ratio=ratio, arm="b", than="a")
    first, second = judge_one(made, rounds), judge_one(exchanged, rounds.iloc[order])
    assert first.verdict is second.verdict
    assert first.p == pytest.approx(second.p)


@given(VALUES, st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_common_shift(pairs: list[tuple[float, float]], shift: float) -> None:
    a, b = zip(*pairs, strict=True)
    rounds = study(a=a, b=b)
    first = judge_one(claim("higher", 1.0), rounds)
    assume(first.corrected_p is not None and abs(first.corrected_p - 0.05) > 1e-6)
    second = judge_one(claim("higher", 1.0), rounds.assign(loss=rounds["loss"] + shift))
    assert first.verdict is second.verdict
    assert first.estimate == pytest.approx(second.estimate, abs=1e-9)


def test_claims_that_are_not_true_hold_with_probability_alpha() -> None:
    # Six independent arms are no better than their others, and two differ by just what "same"
    # excludes. Uncorrected, one of the eight would hold in 1 - 0.95 ** 8 = 34 % of studies.
    generator = np.random.default_rng(0)
    expected = ["higher", "lower"] * 3 + ["same"] * 2
    made = [
        claim(expect, 1.0 * (expect == "same"), arm=f"a{i}", than=f"b{i}")
        for i, expect in enumerate(expected)
    ]
    shifts = [0, 0, 0, 0, 0, 0, 1, -1]
    num_studies, num_false = 40, 0
    for _ in range(num_studies):
        first = {f"a{i}": shift + generator.normal(size=5) for i, shift in enumerate(shifts)}
        second = {f"b{i}": generator.normal(size=5) for i in range(len(shifts))}
        judgments = judge(made, study(**first, **second))
        num_false += any(judgment.verdict is HOLDS for judgment in judgments)
    assert num_false <= stats.binom.ppf(0.99, num_studies, 0.05)


def test_frame() -> None:
    made = [
        claim("lower", 1.25, ratio=True),
        claim("within", than=None, between=(12, 13)),
        claim("higher", round=4, than=None, than_round=3),
    ]
    judgments = judge(made, APART)
    frame = to_frame(judgments)
    assert list(frame) == [
        *("text", "arm", "round", "measure", "expect", "than", "than_round", "by", "ratio"),
        *("between_low", "between_high", "verdict", "num_trials", "estimate", "ci_low", "ci_high"),
        *("p", "corrected_p", "wilcoxon_p", "effect_size", "num_agreeing", "sentence"),
    ]
    assert str(frame["than_round"].dtype) == str(frame["num_agreeing"].dtype) == "Int64"
    frame = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert frame["verdict"].tolist() == ["does not hold", "holds", "not enough trials"]
    assert frame["sentence"].tolist() == [judgment.sentence for judgment in judgments]
    compared, mean, missing = (row.dropna().to_dict() for _, row in frame.iterrows())
    assert judgments[0].comparison is not None
    assert compared == {
        "arm": "a",
        "round": 3,
        "measure": "loss",
        "expect": "lower",
        "than": "b",
        "than_round": 3,
        "by": 1.25,
        "ratio": True,
        "verdict": "does not hold",
        "num_trials": 5,
        "estimate": pytest.approx(judgments[0].estimate),
        "ci_low": pytest.approx(judgments[0].ci_low),
        "num_agreeing": 5,
        "ci_high": pytest.approx(judgments[0].ci_high),
        "p": pytest.approx(judgments[0].p),
        "corrected_p": pytest.approx(1),
        "wilcoxon_p": 0.0625,
        "effect_size": pytest.approx(judgments[0].comparison.effect_size),
        "sentence": judgments[0].sentence,
    }
    assert (mean["between_low"], mean["between_high"], mean["estimate"]) == (12, 13, 12)
    assert not {"than", "than_round", "p", "corrected_p", "effect_size"} & set(mean)
    assert (missing["than"], missing["than_round"], missing["num_trials"]) == ("a", 3, 0)
    assert not {"estimate", "ci_low", "p", "corrected_p", "num_agreeing"} & set(missing)


def test_frame_of_nothing() -> None:
    assert to_frame([]).empty
    assert "verdict" in to_frame([])
