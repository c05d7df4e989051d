"""Prechelt's criteria against numbers by hand and a second, naive implementation."""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from lightning_lth.stopping import (
    Criterion,
    GeneralizationLoss,
    NoProgress,
    ProgressQuotient,
    StopReason,
    SuccessiveRises,
)
from lightning_lth.stopping.prechelt import generalization_loss, training_progress
from tests.stopping.curves import first_stop, record, stop_index

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([2.0, 1.0, 1.5], 50.0),  # 1.5 / 1 - 1
        ([4.0, 5.0, 4.0], 0.0),  # the last equals the minimum
        ([5.0, 4.0], 0.0),
        ([4.0, NAN, 5.0], 25.0),  # NaN is no minimum
        ([NAN, 4.0], 0.0),
        ([4.0, NAN], NAN),
        ([NAN], NAN),
        ([4.0, INF], INF),
        ([0.0, 1.0], NAN),  # E_opt = 0
        ([-1.0, 1.0], NAN),  # E_opt < 0
        ([INF], NAN),
    ],
)
def test_generalization_loss(errors: list[float], expected: float) -> None:
    assert generalization_loss(errors) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 1.0], 1000.0),  # 1000 (6 / (3 * 1) - 1)
        ([1.0, 1.0, 2.0, 4.0], 1000.0),  # wherever the minimum is: 1000 (8 / (4 * 1) - 1)
        ([2.0, 2.0], 0.0),
        ([1.0, 0.0], NAN),  # undefined where the minimum is not above 0
        ([1.0, -1.0], NAN),
        ([1.0, NAN], NAN),
    ],
)
def test_training_progress(losses: list[float], expected: float) -> None:
    assert training_progress(losses) == pytest.approx(expected, nan_ok=True)


# GL at each index: 0, 0, 25, 50, 0 (a new minimum), 100 %.
ERRORS = [5.0, 4.0, 5.0, 6.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("criterion", "index"),
    [
        (GeneralizationLoss(20), 2),
        (GeneralizationLoss(25), 3),  # 25 is not above 25
        (GeneralizationLoss(50), 5),
        (GeneralizationLoss(100), None),
        (GeneralizationLoss(0), 2),
    ],
)
def test_gl(criterion: Criterion, index: int | None) -> None:
    assert stop_index(criterion, record(ERRORS)) == index


# Strips of two; P at indices 1, 3, 5: 1000 (6 / (2 * 2) - 1) = 500; 1000 (2.5 / 2 - 1) = 250; 0.
# GL there: 0, 50, 100; so PQ is 0, 0.2, and undefined as P = 0.
TRAIN = [4.0, 2.0, 1.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("criterion", "index"),
    [
        (ProgressQuotient(0.19, strip=2), 3),
        (ProgressQuotient(0.21, strip=2), None),  # P = 0 at the end: goes on
        # A strip of three: at index 2 GL = 25, P = 1000 (7.5 / 4.5 - 1) = 667, PQ = 0.0375; at
        # index 5 GL = 100, P = 0.
        (ProgressQuotient(0.0374, strip=3), 2),
        (ProgressQuotient(0.0376, strip=3), None),
        (NoProgress(0.1, strip=2), 5),
        (NoProgress(251, strip=2), 3),
        (NoProgress(501, strip=2), 1),
        (NoProgress(250, strip=2), 5),  # 250 is not below 250
        (NoProgress(0.1, strip=3), 5),
        (NoProgress(0.1), None),  # of five: 1000 (9.5 / 5 - 1) = 900
    ],
)
def test_pq_and_no_progress(criterion: Criterion, index: int | None) -> None:
    assert stop_index(criterion, record(ERRORS, train=TRAIN)) == index


@pytest.mark.parametrize(
    ("values", "rises", "strip", "index"),
    [
        ([1, 2], 1, 1, 1),
        ([1, 2, 3], 2, 1, 2),
        ([1, 1, 2], 1, 1, 2),  # equal is no rise
        ([1, 2, 2, 3, 4], 2, 1, 4),
        ([9, 3, 2, 4, 1, 5], 2, 2, 5),  # ends 3, 4, 5
        ([9, 3, 2, 4, 1, 4], 2, 2, None),
        ([9, 3, 4, 4, 5, 5, 6, 6], 3, 2, 7),
        ([1, 2, NAN, 3], 2, 1, None),  # NaN neither rises nor falls
        ([3, 1, 1, 2], 1, 3, None),  # 2 is not the end of a strip
        ([3, 1, 1, 0, 0, 2], 1, 3, 5),  # ends 1, 2
        ([1], 1, 1, None),
        ([], 1, 1, None),
    ],
)
def test_up(values: list[float], rises: int, strip: int, index: int | None) -> None:
    criterion = SuccessiveRises(rises, strip=strip)
    assert stop_index(criterion, record(values)) == index
    negated = record([-value for value in values], mode="max")
    assert stop_index(criterion, negated) == index  # where large values are good, falls count


def test_the_reasons() -> None:
    train = record(ERRORS, train=TRAIN)
    for criterion, reason, message in [
        (
            GeneralizationLoss(25),
            StopReason.GENERALIZATION_LOSS,
            "loss = 6 is 50 % above its minimum, 4: GL > 25",
        ),
        (
            ProgressQuotient(0.1, strip=2),
            StopReason.PROGRESS_QUOTIENT,
            "GL / P = 50 / 250 = 0.2 > 0.1",
        ),
        (
            SuccessiveRises(2, strip=1),
            StopReason.SUCCESSIVE_RISES,
            "loss got worse in 2 successive strips of 1: 4, 5, 6",
        ),
        (
            NoProgress(strip=2),
            StopReason.NO_PROGRESS,
            "the training loss makes no progress: P = 0 < 0.1",
        ),
    ]:
        first = first_stop(criterion, train)
        assert first is not None
        assert (first[1].reason, first[1].message) == (reason, message)


@pytest.mark.parametrize(
    ("errors", "train"),
    [
        ([0.0, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]),  # E_opt = 0: GL is undefined
        ([-1.0, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]),
        ([1.0, NAN, 1.0, NAN], [4.0, 3.0, 2.0, 1.0]),
        ([1.0, 2.0, 1.0, 9.0], [1.0, 1.0, 1.0, 1.0]),  # P = 0
        ([1.0, 2.0, 1.0, 9.0], [1.0, 0.0, 1.0, -1.0]),  # P is undefined
    ],
)
def test_pq_goes_on_where_it_is_undefined(errors: list[float], train: list[float]) -> None:
    assert stop_index(ProgressQuotient(0.0, strip=2), record(errors, train=train)) is None


def test_no_progress_goes_on_where_it_is_undefined() -> None:
    validations = record([1.0] * 4, train=[1.0, 0.0, NAN, 1.0])
    assert stop_index(NoProgress(strip=2), validations) is None


@pytest.mark.parametrize("criterion", [GeneralizationLoss(5), ProgressQuotient(1)])
def test_large_values_that_are_good_are_refused_at_once(criterion: Criterion) -> None:
    message = (
        r"GL is defined for errors, but large values of 'loss' are good\. Give a loss as "
        r"`monitor` of the criterion, or use `SuccessiveRises` or `Patience`\."
    )
    with pytest.raises(ValueError, match=message):
        criterion(record([], mode="max"))


def test_metrics_of_their_own() -> None:
    validations = record(
        [0.1, 0.2, 0.3], mode="max", error=[1.0, 1.0, 1.5], train=[2.0, 1.0, 1.0], own=[4.0, 2.0, 2]
    )
    assert stop_index(GeneralizationLoss(5, "error"), validations) == 2
    shorter = record([1.0, 2.0], mode="min", own=[4.0, 2.0])  # P = 500, GL = 100
    assert stop_index(ProgressQuotient(0.19, strip=2, train_metric="own"), shorter) == 1
    assert stop_index(NoProgress(501, strip=2, train_metric="own"), shorter) == 1
    # The second strip alone: 1000 (3.5 / 3 - 1) = 167; all four would be 583.
    longer = record([1.0] * 4, own=[4.0, 2.0, 2.0, 1.5])
    assert stop_index(NoProgress(200, strip=2, train_metric="own"), longer) == 3
    falling = record([3, 2, 1], f1=[3, 2, 1])
    assert stop_index(SuccessiveRises(1, 1, "f1", "max"), falling) == 1
    assert stop_index(SuccessiveRises(1, 1, "f1"), falling) is None


@pytest.mark.parametrize("criterion", [ProgressQuotient(1, strip=2), NoProgress(strip=2)])
def test_without_training_loss(criterion: Criterion) -> None:
    assert criterion(record([1.0], train=[None])) is None  # not asked for yet
    with pytest.raises(RuntimeError, match=r"Return it from `training_step`, or log it and name"):
        criterion(record([1.0, 1.0], train=[1.0, None]))
    later = record([1.0] * 4, train=[None, None, 1.0, 1.0])
    criterion(later)  # only the last strip needs it


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneralizationLoss(-1), r"`alpha` must be at least 0, got -1\."),
        (lambda: GeneralizationLoss(NAN), r"`alpha` must be at least 0, got nan\."),
        (lambda: ProgressQuotient(INF), r"`alpha` must be at least 0, got inf\."),
        (lambda: ProgressQuotient(1, 1), r"`strip` must be an integer of at least 2, got 1\."),
        (lambda: SuccessiveRises(0), r"`rises` must be an integer of at least 1, got 0\."),
        (lambda: SuccessiveRises(True), r"`rises` must be an integer of at least 1, got True\."),
        (lambda: SuccessiveRises(2, 0), r"`strip` must be an integer of at least 1, got 0\."),
        (lambda: SuccessiveRises(2, 2.0), r"`strip` must be an integer .* got 2\.0\."),
        (
            lambda: SuccessiveRises(2, mode="up"),
            r"`mode` must be one of \['min', 'max'\], got 'up'",
        ),
        (lambda: NoProgress(-0.1), r"`threshold` must be above 0, got -0\.1\."),
        (lambda: NoProgress(0), r"`threshold` must be above 0, got 0\."),
        (lambda: NoProgress(strip=1), r"`strip` must be an integer of at least 2, got 1\."),
    ],
)
def test_arguments_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def naive(
    errors: list[float], train: list[float], alpha: float, rises: int, k: int
) -> dict[str, int | None]:
    """The formulas of Prechelt 1998, section 2.2, with time from 1 and loops alone."""

    def error(t: int) -> float:
        return errors[t - 1]

    def lowest(t: int) -> float:
        least = error(1)
        for earlier in range(1, t + 1):
            if error(earlier) < least:
                least = error(earlier)
        return least

    def gl(t: int) -> float:
        return 100.0 * (error(t) / lowest(t) - 1.0)

    def progress(t: int) -> float:
        total, least = 0.0, train[t - k]
        for at in range(t - k + 1, t + 1):
            total += train[at - 1]
            least = min(least, train[at - 1])
        return 1000.0 * (total / (k * least) - 1.0)

    def up(t: int, s: int) -> bool:
        if t - k < 1:
            return False
        if s == 1:
            return error(t) > error(t - k)
        return up(t - k, s - 1) and error(t) > error(t - k)

    found: dict[str, int | None] = dict.fromkeys(("GL", "PQ", "UP", "P"))
    for t in range(1, len(errors) + 1):
        says = {"GL": gl(t) > alpha}
        if t % k == 0:
            says["PQ"] = progress(t) > 0 and gl(t) / progress(t) > alpha / 10
            says["UP"] = up(t, rises)
            says["P"] = progress(t) < alpha
        for name, is_said in says.items():
            if is_said and found[name] is None:
                found[name] = t - 1
    return found


# Few distinct values, so that equals are frequent; powers of two, so that sums are exact.
levels = st.integers(1, 24).map(lambda level: level / 8)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    curve=st.lists(st.tuples(levels, levels), max_size=14),
    alpha=st.sampled_from([0.0, 2.0, 30.0, 150.0]),
    rises=st.integers(1, 3),
    strip=st.integers(2, 4),
)
def test_against_a_naive_implementation(
    curve: list[tuple[float, float]], alpha: float, rises: int, strip: int
) -> None:
    errors, train = [error for error, _ in curve], [loss for _, loss in curve]
    validations = record(errors, train=train)
    assert naive(errors, train, alpha, rises, strip) == {
        "GL": stop_index(GeneralizationLoss(alpha), validations),
        "PQ": stop_index(ProgressQuotient(alpha / 10, strip=strip), validations),
        "UP": stop_index(SuccessiveRises(rises, strip=strip), validations),
        "P": stop_index(NoProgress(alpha, strip=strip), validations) if alpha else None,
    }
