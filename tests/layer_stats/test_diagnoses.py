"""What is said about layers, from where on, and in which words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lightning_lth.layer_stats.batch_norm import BatchNormState
from lightning_lth.layer_stats.diagnoses import (
    BatchNormFacts,
    diagnose_batch_norm,
    diagnose_dropout,
    diagnose_uses,
)
from lightning_lth.layer_stats.facts import Facts, FunctionalDropout
from lightning_lth.layer_stats.findings import Diagnosis, Finding, Thresholds

TRACKING = BatchNormFacts(BatchNormState.TRACKING)
BEHIND = BatchNormFacts(BatchNormState.TRACKING, dropouts_before=("drop.0", "drop.1"))
COLD = {"batches_tracked": 7, "initial_share": 0.478, "is_warmed_up": False}  # 0.9 ** 7


def found(
    statistics: dict[str, float], facts: BatchNormFacts = TRACKING, **thresholds: Any
) -> list[Finding]:
    diagnoses = diagnose_batch_norm("net.bn", statistics, facts, Thresholds(**thresholds))
    assert all(one.layer == "net.bn" for one in diagnoses)
    assert all(one.message.startswith("BatchNorm 'net.bn' ") for one in diagnoses)
    return [one.finding for one in diagnoses]


def message(statistics: dict[str, float], facts: BatchNormFacts = TRACKING) -> str:
    (one,) = diagnose_batch_norm("net.bn", statistics, facts, Thresholds())
    return one.message


@pytest.mark.parametrize(
    ("statistic", "silent", "loud", "facts", "finding"),
    [
        ("train_eval_ratio", 1 / 1.05 + 1e-9, 0.952, BEHIND, Finding.DROPOUT_BEFORE_BATCH_NORM),
        ("train_eval_shift", 1.5, 1.501, TRACKING, Finding.TRAIN_EVAL_GAP),
        ("values_per_channel", 16, 15, TRACKING, Finding.FEW_VALUES),
        ("dead", 0.1, 0.101, TRACKING, Finding.DEAD_CHANNELS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_finding_begins_beyond_its_threshold(
    statistic: str, silent: float, loud: float, facts: BatchNormFacts, finding: Finding
) -> None:
    assert found({statistic: silent}, facts) == []
    assert found({statistic: loud}, facts) == [finding]


@pytest.mark.parametrize(
    ("statistics", "facts", "thresholds", "finding"),
    [
        ({"train_eval_shift": 1.2}, TRACKING, {"train_eval_shift": 1.19}, "TRAIN_EVAL_GAP"),
        ({"values_per_channel": 99}, TRACKING, {"values_per_channel": 100}, "FEW_VALUES"),
        ({"dead": 0.05}, TRACKING, {"dead_channels": 0.04}, "DEAD_CHANNELS"),
    ],
)
def test_thresholds_can_be_chosen(
    statistics: dict[str, float],
    facts: BatchNormFacts,
    thresholds: dict[str, float],
    finding: str,
) -> None:
    (name,) = thresholds
    assert found(statistics, facts, **thresholds) == [Finding[finding]]
    (value,) = statistics.values()
    assert found(statistics, facts, **{name: value}) == []  # the bound itself is not beyond it


def test_the_bound_on_the_ratio_can_be_chosen() -> None:
    expected = [Finding.DROPOUT_BEFORE_BATCH_NORM]
    assert found({"train_eval_ratio": 0.955}, BEHIND, variance_shift=1.04) == expected
    assert found({"train_eval_ratio": 0.5}, BEHIND, variance_shift=2.0) == []


def test_a_great_shift_behind_dropout_is_one_finding() -> None:
    both = {"train_eval_shift": 9.0, "train_eval_ratio": 0.1}
    assert found(both, BEHIND) == [Finding.DROPOUT_BEFORE_BATCH_NORM]
    # Dropout makes the variance smaller in evaluation, never greater.
    both["train_eval_ratio"] = 9.0
    assert found(both, BEHIND) == [Finding.TRAIN_EVAL_GAP]


def test_without_statistics_nothing_is_found() -> None:
    assert found({}, BEHIND) == found({}, TRACKING) == []
    cold = BatchNormFacts(BatchNormState.TRACKING, **COLD)
    assert found({"dead": 0.0}, cold) == []  # a training batch


@pytest.mark.parametrize("before", [(), ("drop",)])
def test_a_shift_before_warm_up_is_not_judged(before: tuple[str, ...]) -> None:
    cold = BatchNormFacts(BatchNormState.TRACKING, dropouts_before=before, **COLD)
    assert found({"train_eval_shift": 9.0}, cold) == [Finding.NOT_WARMED_UP]
    warm = dataclasses.replace(cold, is_warmed_up=True)
    assert Finding.NOT_WARMED_UP not in found({"train_eval_shift": 9.0}, warm)


@pytest.mark.parametrize("state", list(BatchNormState))
def test_only_what_moves_can_warm_up(state: BatchNormState) -> None:
    facts = BatchNormFacts(state, **COLD)
    moves = state in (
        BatchNormState.TRACKING,
        BatchNormState.CUMULATIVE,
        BatchNormState.AFFINE_FROZEN,
    )
    assert (Finding.NOT_WARMED_UP in found({"train_eval_shift": 1.0}, facts)) is moves


@pytest.mark.parametrize("state", list(BatchNormState))
def test_few_values_matter_where_they_normalize(state: BatchNormState) -> None:
    matters = state not in (BatchNormState.EVALUATION, BatchNormState.FIXED)
    found_here = found({"values_per_channel": 1}, BatchNormFacts(state))
    assert (Finding.FEW_VALUES in found_here) is matters


@pytest.mark.parametrize("state", list(BatchNormState))
def test_frozen_yet_normalizing_with_the_batch(state: BatchNormState) -> None:
    expected = state is BatchNormState.UNFOLLOWED
    assert (found({}, BatchNormFacts(state)) == [Finding.FROZEN_WITH_BATCH_STATISTICS]) is expected


@pytest.mark.parametrize(
    ("statistics", "facts", "parts"),
    [
        (
            {"train_eval_ratio": 0.8123},
            BEHIND,
            [
                "'drop.0', 'drop.1'",
                "only 0.812 of",
                "Put Dropout behind the last BatchNorm",
                "Li et al.",
            ],
        ),
        ({"train_eval_shift": 2.5}, TRACKING, ["of 2.5.", "augmentation", "raise `momentum`"]),
        ({"values_per_channel": 4.0}, TRACKING, ["4 values per channel", "`drop_last=True`"]),
        (
            {},
            BatchNormFacts(BatchNormState.UNFOLLOWED),
            ["`track_running_stats=False`", "Call `.eval()`", "`train_bn=True`"],
        ),
        (
            {"train_eval_shift": 1.0},
            BatchNormFacts(BatchNormState.TRACKING, **COLD),
            ["after 7 batches", "48%", "Validate later, or raise `momentum`"],
        ),
        ({"dead": 0.25}, TRACKING, ["25% dead channels", "Lower the learning rate"]),
    ],
    ids=["dropout", "gap", "values", "frozen", "cold", "dead"],
)
def test_messages_give_numbers_and_a_remedy(
    statistics: dict[str, float], facts: BatchNormFacts, parts: list[str]
) -> None:
    text = message(statistics, facts)
    for part in parts:
        assert part in text
    assert text.endswith(".")
    assert "  " not in text


@pytest.mark.parametrize("sign", [1, -1])
def test_the_keep_rate_of_dropout(sign: int) -> None:
    def diagnose(deviation: float, **thresholds: Any) -> list[Diagnosis]:
        statistics = {"keep": 0.61, "keep_z": sign * deviation}
        return list(diagnose_dropout("drop", statistics, Thresholds(**thresholds)))

    assert diagnose(6.0) == []
    (one,) = diagnose(6.01)
    assert (one.finding, one.layer) == (Finding.KEEP_RATE, "drop")
    assert "Dropout 'drop' keeps 0.61 of its values, 6.01 standard deviations" in one.message
    assert "Look for a subclass, or a hook" in one.message
    assert diagnose(6.01, keep_z=7.0) == []
    assert list(diagnose_dropout("drop", {}, Thresholds())) == []


def use(**kwargs: Any) -> FunctionalDropout:
    settings: dict[str, Any] = {"owner": "head", "function": "dropout", "p": 0.25}
    return FunctionalDropout(**(settings | {"is_training": True} | kwargs))


def test_dropout_without_a_module_is_noted() -> None:
    facts = Facts(functional_dropout=[use(), use(owner="", function="lstm"), use(p=0.5)])
    notes = diagnose_uses(facts, None)
    assert [one.finding for one in notes] == [Finding.UNWATCHED_DROPOUT] * 3
    assert [one.layer for one in notes] == ["head", "", "head"]
    assert notes[0].message.startswith("'head' drops values by `dropout` (p=0.25).")
    assert notes[1].message.startswith("The module drops values by `lstm`")
    assert not any(one.is_problem for one in notes)


def test_what_drops_nothing_in_training_is_not_noted() -> None:
    assert diagnose_uses(Facts(functional_dropout=[use(is_training=False)]), None) == []


def test_dropout_that_is_left_on_in_evaluation_is_a_problem() -> None:
    training = Facts(functional_dropout=[use(is_left_on=True)])  # told by the evaluation
    evaluation = Facts(functional_dropout=[use(is_left_on=True), use(owner="fine")])
    (one,) = diagnose_uses(None, evaluation)
    assert (one.finding, one.layer, one.is_problem) == (Finding.DROPOUT_IN_EVALUATION, "head", True)
    assert "'head' drops values in evaluation, too: `dropout` (p=0.25)" in one.message
    assert "Pass `training=self.training`, or `dropout_p=0.0`" in one.message
    assert [d.finding for d in diagnose_uses(training, None)] == [Finding.UNWATCHED_DROPOUT]
    assert diagnose_uses(None, None) == []


def test_problems_and_notes() -> None:
    notes = {finding for finding in Finding if not Diagnosis(finding, "bn", "").is_problem}
    assert notes == {Finding.UNWATCHED_DROPOUT}
