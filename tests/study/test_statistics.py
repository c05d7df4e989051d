"""Means over trials, paired comparisons, and correction for several comparisons."""

from __future__ import annotations

import itertools
import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_lth.study.statistics import (
    compare,
    holm,
    interval,
    p_above,
    p_equivalent,
    summarize,
    trials,
)

# Multiples of 1 / 64 are added and subtracted exactly.
EXACT = st.integers(-640, 640).map(lambda number: number / 64)
POSITIVE = st.floats(0.01, 100)
PAIRS = st.lists(st.tuples(EXACT, EXACT), min_size=2, max_size=7)
POSITIVE_PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=7)


def table(*rows: tuple[str, int, int, int, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["arm", "round", "seed", "draw", "loss"])
    return frame.assign(density=0.8 ** frame["round"], steps=100)


REINIT = table(
    ("reinit", 2, 0, 0, 1.0),
    ("reinit", 2, 0, 1, 3.0),
    ("reinit", 2, 1, 0, 4.0),
    ("reinit", 2, 1, 1, 6.0),
    ("reinit", 2, 2, 0, 8.0),
    ("dense", 0, 5, 0, 7.0),
)


def test_summary_averages_draws_before_seeds() -> None:
    summary = summarize(REINIT, "loss")
    columns = ["arm", "round", "density", "num_trials", "mean", "min", "max", "ci_low", "ci_high"]
    assert list(summary) == columns
    assert summary["arm"].tolist() == ["dense", "reinit"]
    row = summary.iloc[1]
    # The seeds have 2, 5 and 8: mean 5, standard deviation 3. All five trainings are from 1 to 8,
    # and their mean would be 4.4. Student's quantile for 2 degrees of freedom is 4.30265.
    assert row[["round", "num_trials", "mean", "min", "max"]].tolist() == [2, 3, 5, 1, 8]
    assert row["density"] == pytest.approx(0.64)
    assert row["ci_low"] == pytest.approx(5 - 4.30265 * 3 / math.sqrt(3), abs=1e-4)
    assert row["ci_high"] == pytest.approx(5 + 4.30265 * 3 / math.sqrt(3), abs=1e-4)


def test_summary_of_one_trial_has_no_interval() -> None:
    row = summarize(REINIT, "loss").iloc[0]
    assert row[["arm", "num_trials", "mean", "min", "max"]].tolist() == ["dense", 1, 7, 7, 7]
    assert math.isnan(row["ci_low"])
    assert math.isnan(row["ci_high"])


def test_summary_of_constant_values() -> None:
    # The mean of three times 0.1 is not 0.1 in floating point; that is no spread.
    row = summarize(table(*(("a", 0, seed, 0, 0.1) for seed in range(3))), "loss").iloc[0]
    assert row["mean"] == row["ci_low"] == row["ci_high"] == pytest.approx(0.1)


def test_summary_leaves_out_seeds_that_are_not_measured_in_full() -> None:
    rounds = table(("a", 0, 0, 0, 1.0), ("a", 0, 0, 1, math.nan), ("a", 0, 1, 0, 4.0))
    row = summarize(rounds, "loss").iloc[0]
    assert row[["num_trials", "mean", "min", "max"]].tolist() == [1, 4, 1, 4]


def test_summary_of_what_was_never_measured() -> None:
    row = summarize(table(("a", 0, 0, 0, math.nan)), "loss").iloc[0]
    assert row["num_trials"] == 0
    assert row[["mean", "min", "max", "ci_low", "ci_high"]].isna().all()


def test_summary_of_nothing() -> None:
    assert summarize(REINIT.iloc[:0], "loss").empty


@given(st.permutations(range(len(REINIT))))
@settings(max_examples=10, deadline=None)
def test_summary_does_not_depend_on_the_order(order: list[int]) -> None:
    shuffled = summarize(REINIT.iloc[order], "loss")
    pd.testing.assert_frame_equal(shuffled, summarize(REINIT, "loss"))


@pytest.mark.parametrize("measure", ["lose", "seed", "round", "draw", "arm"])
def test_unknown_measure(measure: str) -> None:
    hint = " Did you mean 'loss'?" if measure == "lose" else ""
    message = rf"^Nothing measured is called '{measure}'\.{hint.replace('?', '[?]')} "
    message += r"Measures: 'loss', 'density', 'steps'\.$"
    with pytest.raises(ValueError, match=message):
        summarize(REINIT, measure)


@given(st.lists(EXACT, min_size=2, max_size=8))
@settings(deadline=None)
def test_interval_is_that_of_a_t_test(values: list[float]) -> None:
    if len(set(values)) > 1:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert interval(values) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf, -math.inf]])
def test_no_interval(values: list[float]) -> None:
    assert all(map(math.isnan, interval(values)))


def test_trials_are_those_of_one_arm_and_round() -> None:
    rounds = pd.concat([REINIT, table(("reinit", 3, 9, 0, 0.0), ("dense", 2, 9, 0, 0.0))])
    assert trials(rounds, ("reinit", 2), "loss").to_dict() == {0: 2.0, 1: 5.0, 2: 8.0}


def test_difference_by_hand() -> None:
    # Differences 1, 2, 3, -2: mean 1, squared deviations 0 + 1 + 4 + 9 = 14, variance 14 / 3.
    comparison = compare([2, 4, 6, 1], [1, 2, 3, 3], ratio=False)
    assert (comparison.num_trials, comparison.num_agreeing, comparison.ratio) == (4, 3, False)
    assert comparison.effect == 1
    assert comparison.effect_size == pytest.approx(1 / math.sqrt(14 / 3))
    half = 3.18245 * math.sqrt(14 / 3 / 4)  # Student's quantile for 3 degrees of freedom
    assert (comparison.ci_low, comparison.ci_high) == pytest.approx((1 - half, 1 + half), abs=1e-4)
    # The ranks of 1, 2, 3, -2 are 1, 2.5, 4, 2.5; of 16 choices of signs, those with a negative
    # sum of at most 2.5 are {}, {1}, {2}, {2'}: 4, so the two tails have 8.
    assert comparison.wilcoxon_p == 8 / 16
    assert not comparison.is_constant


def test_ratio_by_hand() -> None:
    # Ratios 2, 8 and 1 / 4: logarithms to base 2 are 1, 3 and -2, with mean 2 / 3.
    comparison = compare([2, 8, 1], [1, 1, 4], ratio=True)
    assert comparison.effect == pytest.approx(2 ** (2 / 3))
    assert (comparison.num_agreeing, comparison.ratio) == (2, True)
    # Deviations 1 / 3, 7 / 3, -8 / 3: variance (1 + 49 + 64) / 9 / 2 = 19 / 3.
    assert comparison.effect_size == pytest.approx(2 / 3 / math.sqrt(19 / 3))
    half = 4.30265 * math.sqrt(19 / 3 / 3)
    ends = 2 ** (2 / 3 - half), 2 ** (2 / 3 + half)
    assert (comparison.ci_low, comparison.ci_high) == pytest.approx(ends, rel=1e-4)


@given(POSITIVE_PAIRS, st.booleans())
@settings(max_examples=50, deadline=None)
def test_p_is_that_of_scipy(pairs: list[tuple[float, float]], ratio: bool) -> None:
    a, b = np.array(pairs).T
    if np.ptp(a / b if ratio else a - b) < 1e-3:
        return
    first, second = (np.log(a), np.log(b)) if ratio else (a, b)
    assert compare(a, b, ratio=ratio).p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    above = stats.ttest_rel(first, second, alternative="greater").pvalue
    assert p_above(a, b, ratio=ratio) == pytest.approx(above)
    margin = np.log(1.5) if ratio else 1.5
    sides = (
        stats.ttest_1samp(first - second, -margin, alternative="greater").pvalue,
        stats.ttest_1samp(first - second, margin, alternative="less").pvalue,
    )
    assert p_equivalent(a, b, 1.5, ratio=ratio) == pytest.approx(max(sides))


@given(PAIRS, st.data())
@settings(max_examples=30, deadline=None)
def test_order_of_pairs_and_common_shift_do_not_matter(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    shift = data.draw(EXACT)
    a, b = np.array(pairs).T
    shuffled = np.array(data.draw(st.permutations(pairs))).T
    expected = compare(a, b, ratio=False)
    assert_alike(compare(*shuffled, ratio=False), expected)
    assert_alike(compare(a + shift, b + shift, ratio=False), expected)


@given(POSITIVE_PAIRS, POSITIVE)
@settings(max_examples=30, deadline=None)
def test_common_factor_does_not_matter_for_a_ratio(
    pairs: list[tuple[float, float]], factor: float
) -> None:
    a, b = np.array(pairs).T
    comparison, scaled = compare(a, b, ratio=True), compare(factor * a, factor * b, ratio=True)
    assert scaled.effect == pytest.approx(comparison.effect)
    assert scaled.effect == pytest.approx(stats.gmean(a) / stats.gmean(b))


@given(POSITIVE_PAIRS, st.booleans())
@settings(max_examples=30, deadline=None)
def test_exchanged_samples(pairs: list[tuple[float, float]], ratio: bool) -> None:
    a, b = np.array(pairs).T
    comparison, exchanged = compare(a, b, ratio=ratio), compare(b, a, ratio=ratio)
    assert_alike(comparison.swapped(), exchanged)
    inverse = 1 / comparison.effect if ratio else -comparison.effect
    assert exchanged.effect == pytest.approx(inverse, abs=1e-9)


def assert_alike(comparison: Any, expected: Any) -> None:
    assert vars(comparison) == pytest.approx(vars(expected), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "ratio", "effect", "size"),
    [
        # In floating point these differences are not quite equal, nor are the ratios' logarithms.
        ([0.3, 0.2, 0.9], [0.2, 0.1, 0.8], False, 0.1, math.inf),
        ([0.2, 0.1, 0.8], [0.3, 0.2, 0.9], False, -0.1, -math.inf),
        ([0.3, 3e-9, 7.2e9], [0.1, 1e-9, 2.4e9], True, 3.0, math.inf),
    ],
)
def test_equal_differences_have_the_p_value_of_a_sign_test(
    a: list[float], b: list[float], ratio: bool, effect: float, size: float
) -> None:
    comparison = compare(a, b, ratio=ratio)
    assert (comparison.effect, comparison.effect_size) == pytest.approx((effect, size))
    assert comparison.is_constant
    assert comparison.ci_low == pytest.approx(effect)
    assert (comparison.num_trials, comparison.num_agreeing) == (3, 3)
    # Of the 8 choices of three signs, two have all equal.
    assert (comparison.p, comparison.wilcoxon_p) == (0.25, 0.25)
    assert p_above(a, b, ratio=ratio) == (1 / 8 if size > 0 else 1)
    assert p_equivalent(a, b, 3.1, ratio=ratio) == 1 / 8
    assert p_equivalent(a, b, 2.9 if ratio else 0.09, ratio=ratio) == 1


@pytest.mark.parametrize("ratio", [False, True])
def test_equal_samples(ratio: bool) -> None:
    comparison = compare([0.1, 0.3], [0.1, 0.3], ratio=ratio)
    assert (comparison.effect, comparison.effect_size) == (float(ratio), 0)
    assert (comparison.p, comparison.wilcoxon_p, comparison.num_agreeing) == (1, 1, 2)
    assert p_above([0.1, 0.3], [0.1, 0.3], ratio=ratio) == 1


def test_zeros() -> None:
    assert compare([0.0, 0.0], [0.0, 0.0], ratio=False).effect == 0


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=6).filter(any))
@settings(max_examples=15, deadline=None)
def test_wilcoxon_with_ties_is_that_of_all_signs(d: list[int]) -> None:
    present = np.array([number for number in d if number])
    ranks = stats.rankdata(abs(present))
    signs = np.array(list(itertools.product([0, 1], repeat=len(ranks))))
    sums, own = signs @ ranks, ranks[present > 0].sum()
    expected = min(1, 2 * min((sums <= own).mean(), (sums >= own).mean()))  # ranks are halves
    assert compare(d, np.zeros(len(d)), ratio=False).wilcoxon_p == pytest.approx(expected)


@given(st.sets(st.integers(1, 50), min_size=2, max_size=20), st.randoms())
@settings(max_examples=15, deadline=None)
def test_wilcoxon_is_that_of_scipy_without_ties(sizes: set[int], random: Any) -> None:
    d = [size * random.choice([-1, 1]) for size in sizes]
    expected = stats.wilcoxon(d, method="exact").pvalue
    assert compare(d, np.zeros(len(d)), ratio=False).wilcoxon_p == pytest.approx(expected)


def test_wilcoxon_sees_ties_behind_rounding_errors() -> None:
    # All differences are 0.01 or -0.01: five ties, of which one is negative. As without rounding
    # errors, 2 * (1 + 5) of 32 choices of signs are at least as extreme.
    a, b = [0.98, 0.91, 0.33, 0.75, 0.52], [0.97, 0.90, 0.32, 0.74, 0.53]
    assert compare(a, b, ratio=False).wilcoxon_p == 12 / 32


@pytest.mark.parametrize(
    ("a", "b", "ratio", "message"),
    [
        ([], [], False, r"At least 2 pairs of numbers are needed, got 0\."),
        ([1], [2], False, r"At least 2 pairs of numbers are needed, got 1\."),
        ([1, math.nan], [1, 2], False, r"must be finite, got \[\[1\.0, nan\], \[1\.0, 2\.0\]\]\."),
        ([1, 2], [math.inf, 2], False, "must be finite, got"),
        ([1, 2], [0, 2], True, "must be finite and above 0 for a ratio, got"),
    ],
)
def test_samples_that_cannot_be_compared(a: Any, b: Any, ratio: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(a, b, ratio=ratio)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 are 0.02, 0.03, 0.06, 0.04; the last is
        # raised to the one before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    # A hypothesis is rejected if Bonferroni rejects every set of hypotheses that has it.
    everything = range(len(p_values))
    sets = [chosen for size in everything for chosen in combinations(everything, size + 1)]
    bonferroni = {chosen: len(chosen) * min(p_values[i] for i in chosen) for chosen in sets}
    expected = [
        min(1.0, max(p for chosen, p in bonferroni.items() if i in chosen)) for i in everything
    ]
    assert holm(p_values) == pytest.approx(expected)
