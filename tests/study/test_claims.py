"""Claims: what may be claimed, the range that it stands for, and that a study can decide it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from lightning_lth.study.claims import Claim, check_claims

FASTER = Claim(
    "Tickets learn faster.",
    arm="ticket",
    round=7,
    measure="early_stop_step",
    than="reinit",
    expect="lower",
    by=1.5,
    ratio=True,
)
INF = math.inf


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({}, [("ticket", 7), ("reinit", 7)]),
        ({"than_round": 0}, [("ticket", 7), ("reinit", 0)]),
        ({"than": None, "than_round": 0}, [("ticket", 7), ("ticket", 0)]),
        (
            {"than": None, "expect": "within", "between": (1, 2), "by": 0, "ratio": False},
            [("ticket", 7)],
        ),
    ],
)
def test_places(changes: dict[str, Any], places: list[tuple[str, int]]) -> None:
    assert replace(FASTER, **changes).places == places


@pytest.mark.parametrize(
    ("expect", "by", "ratio", "limits"),
    [
        ("higher", 0.0, False, (0, INF)),
        ("higher", 0.2, False, (0.2, INF)),
        ("lower", 0.2, False, (-INF, -0.2)),
        ("same", 0.2, False, (-0.2, 0.2)),
        ("higher", 1, True, (1, INF)),
        ("higher", 1.25, True, (1.25, INF)),
        ("lower", 1.25, True, (-INF, 0.8)),  # at least 1.25 times lower: 1 / 1.25 = 0.8
        ("same", 1.25, True, (0.8, 1.25)),
    ],
)
def test_limits(expect: Any, by: float, ratio: bool, limits: tuple[float, float]) -> None:
    assert replace(FASTER, expect=expect, by=by, ratio=ratio).limits == limits


@pytest.mark.parametrize("ratio", [False, True])
def test_limits_of_a_range(ratio: bool) -> None:
    claim = replace(FASTER, expect="within", by=0, ratio=ratio, between=(0.001, 0.006))
    assert claim.limits == (0.001, 0.006)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"expect": "faster"},
            r"`expect` must be 'higher', 'lower', 'same' or 'within', got 'faster'\.",
        ),
        ({"than": "ticket"}, r"'ticket' in round 7 is compared with itself\."),
        (
            {"than": None, "than_round": 7},
            r"'ticket' in round 7 is compared with itself\.",
        ),
        (
            {"than": None},
            r"`expect='lower'` needs another arm or round; give `than` or `than_round`\.",
        ),
        (
            {"than": None, "expect": "within", "by": 0, "between": (1, 2)},
            r"A ratio needs another arm or round; give `than` or `than_round`\.",
        ),
        (
            {"expect": "within", "between": (1, 2)},
            r"`expect='within'` takes `between`, not `by`; got `by=1\.5`\.",
        ),
        (
            {"expect": "within", "by": 0},
            r"`between` must be two numbers for 'within', got None\.",
        ),
        (
            {"expect": "within", "by": 0, "between": (1, 2, 3)},
            r"`between` must be two numbers for 'within', got \(1, 2, 3\)\.",
        ),
        (
            {"expect": "within", "by": 0, "between": (2, 1), "ratio": False},
            r"`between` must be two numbers, the smaller first, got \(2, 1\)\.",
        ),
        (
            {"expect": "within", "by": 0, "between": (1, 1), "ratio": False},
            r"the smaller first, got \(1, 1\)\.",
        ),
        (
            {"expect": "within", "by": 0, "between": (0, math.inf), "ratio": False},
            r"the smaller first, got \(0, inf\)\.",
        ),
        (
            {"expect": "within", "by": 0, "between": (0, 1)},
            r"two numbers, the smaller first, above 0 for a ratio, got \(0, 1\)\.",
        ),
        (
            {"between": (1, 2)},
            r"`between` is for `expect='within'`, got `expect='lower'`\.",
        ),
        (
            {"by": 0.9},
            r"`by` must be at least 1 as a factor \(`ratio=True`\), got 0\.9\. "
            r"Direction is said by `expect`; 1 claims any effect\.",
        ),
        (
            {"by": -0.1, "ratio": False},
            r"`by` must be at least 0 as a difference, got -0\.1\. "
            r"Direction is said by `expect`; 0 claims any effect\.",
        ),
        ({"by": math.nan}, r"`by` must be at least 1 as a factor \(`ratio=True`\), got nan\."),
        ({"by": math.inf}, r"got inf\."),
        (
            {"expect": "same", "by": 0, "ratio": False},
            r"`by` must be above 0 for 'same', got 0\. No trials show that two means are exactly "
            r"equal; say what counts as the same\.",
        ),
        ({"expect": "same", "by": 1}, r"`by` must be above 1 for 'same', got 1\."),
    ],
)
def test_claims_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FASTER, **changes)


def test_a_negative_range_of_a_difference() -> None:
    claim = replace(FASTER, expect="within", by=0, between=(-0.5, -0.1), ratio=False)
    assert claim.limits == (-0.5, -0.1)


YAML = """
- text: Tickets learn faster.
  arm: ticket
  round: 7
  measure: early_stop_step
  than: reinit
  expect: lower
  by: 1.5
  ratio: true
- text: Dense networks reach 98 %.
  arm: dense
  round: 0
  measure: end_test_accuracy
  expect: within
  between: [0.977, 0.983]
"""


def test_claims_are_read_from_a_config() -> None:
    parser = ArgumentParser()
    parser.add_argument("--claims", type=list[Claim])
    indented = YAML.replace("\n", "\n  ")
    parsed = parser.parse_string(f"claims:{indented}")
    claims = parser.instantiate(parsed).claims
    accuracy = {"measure": "end_test_accuracy", "expect": "within", "between": (0.977, 0.983)}
    assert claims == [FASTER, Claim("Dense networks reach 98 %.", "dense", 0, **accuracy)]


def test_a_config_with_a_typing_error_is_refused() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--claims", type=list[Claim])
    indented = YAML.replace("\n", "\n  ").replace("lower", "smaller")
    with pytest.raises(ArgumentError, match="expect"):
        parser.parse_string(f"claims:{indented}")


ARMS = {"ticket": range(8), "reinit": [7, 3]}


def test_claims_that_the_study_can_decide() -> None:
    check_claims([FASTER, replace(FASTER, than=None, than_round=0)], ARMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arm": "tickets"},
            r"^The claim 'Tickets learn faster\.' is about an arm 'tickets', which the study does "
            r"not have\. Did you mean 'ticket'\? Arms: 'ticket', 'reinit'\.$",
        ),
        (
            {"than": "snip"},
            r"arm 'snip', which the study does not have\. Arms: 'ticket', 'reinit'\.$",
        ),
        (
            {"round": 3, "than_round": 2},
            r"^The claim 'Tickets learn faster\.' is about round 2 of 'reinit', which does not "
            r"have it\. Rounds: 3, 7\.$",
        ),
        ({"round": 8, "than_round": 7}, r"round 8 of 'ticket', which does not have it\."),
    ],
)
def test_claims_that_the_study_cannot_decide(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_claims([FASTER, replace(FASTER, **changes)], ARMS)
