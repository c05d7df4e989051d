"""Which results belong to which settings, and what runs before what."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_lth.study import load_study
from lightning_lth.study.jobs import fingerprint, waves
from tests.study import tiny

ARMS = {"winning_ticket": tiny.iterative(), "reinit": tiny.control(weights="reinitialized")}
OTHER_NET = {"class_path": "tests.study.tiny.Net", "init_args": {"hidden": 8}}


def fingerprints(**changes: Any) -> dict[str, str]:
    study = load_study(tiny.config(**{"arms": ARMS, **changes}))
    return {name: fingerprint(study, name) for name in ("winning_ticket", "reinit")}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": OTHER_NET},
        {"data": {"class_path": "tests.study.tiny.Data", "init_args": {"noise": 0.1}}},
        {"trainer": {"accelerator": "cpu", "max_steps": 13, "val_check_interval": 3}},
        {"pruning": {"rounds": 2, "fraction": 0.4, "scope": "layer"}},
        {"measures": {"mode": "max"}},
        {"threads": 2},
        # What the source does matters to the arms that start from it.
        {"arms": {**ARMS, "winning_ticket": tiny.iterative(rewind_step=1)}},
        {"arms": {**ARMS, "winning_ticket": tiny.iterative(changes={"model": OTHER_NET})}},
    ],
)
def test_results_depend_on_these_settings(changes: dict[str, Any]) -> None:
    before, after = fingerprints(), fingerprints(**changes)
    assert before["winning_ticket"] != after["winning_ticket"]
    assert before["reinit"] != after["reinit"]


def test_results_of_an_arm_depend_on_its_own_settings() -> None:
    before = fingerprints()
    after = fingerprints(arms={**ARMS, "reinit": tiny.control(weights="same_signs")})
    assert before["winning_ticket"] == after["winning_ticket"]
    assert before["reinit"] != after["reinit"]


def test_results_do_not_depend_on_names_seeds_claims_and_other_arms() -> None:
    arms = {**ARMS, "another": tiny.control(masks="shuffled")}
    assert fingerprints() == fingerprints(name="x", seeds=[7], claims=[tiny.CLAIM], arms=arms)


def test_sources_come_before_what_starts_from_them() -> None:
    arms = {
        "third": {"class_path": "Control", "init_args": {"of": "second", "rounds": [1]}},
        "second": tiny.control(rounds=[1]),
        "winning_ticket": tiny.iterative(),
        "snip": {"class_path": "AtInitialization", "init_args": {"method": "snip"}},
    }
    study = load_study(tiny.config(arms=arms, seeds=[0]))
    assert [[job.arm for job in wave] for wave in waves(study)] == [
        ["winning_ticket", "snip", "snip"],
        ["second"],
        ["third"],
    ]
