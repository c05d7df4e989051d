from __future__ import annotations

import pytest
import yaml

from lightning_lth.study import IterativePruning, Ladder, load_study
from lightning_lth.study.jobs import all_jobs, fingerprint, settings_of, waves
from lightning_lth.study.progress import num_trainings
from lightning_lth.study.settings import (
    find_config,
    shipped_configs,
    trainer_arguments,
    with_changes,
)
from tests.study import tiny

# Trainings by hand: seeds * sum over arms of rounds * draws; iterative arms have one more round.
TRAININGS = {
    "conv2_cifar10": 5 * (15 + 3 + 1 + 15),
    "conv4": 5 * (13 + 3 + 1 + 13),
    "conv6": 5 * (13 + 3 + 1 + 13),
    "digits": 5 * (5 + 2),
    "lenet_mnist": 5 * (16 + 4 + 2 + 3 + 2),
    "lenet_mnist_short": 3 * (6 + 2 + 2),
    "lenet_snip": 3 * (2 + 1),
    "lenet_transfer": 5 * (2 * 11 + 6),
    "resnet20_cifar10": 3 * (4 * 11 + 2),
    "vgg19_cifar10": 3 * (3 * 18 + 2),
}


def test_every_shipped_config_is_known_here() -> None:
    assert shipped_configs() == sorted(TRAININGS)


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_shipped_configs_are_valid(name: str) -> None:
    study = load_study(name)
    assert sum(num_trainings(study, job) for job in all_jobs(study)) == TRAININGS[name]


def test_a_resolved_config_is_the_same_study() -> None:
    study = load_study("lenet_transfer")
    assert study.settings["trainer"]["check_val_every_n_epoch"] is None  # the default is 1
    again = load_study(yaml.safe_load(yaml.safe_dump(study.settings)))
    assert again == study
    assert {arm: fingerprint(study, arm) for arm in study.arms} == {
        arm: fingerprint(again, arm) for arm in again.arms
    }


def test_keys_can_be_replaced() -> None:
    assert load_study("digits", seeds=[7], name="mine").seeds == [7]


def test_an_unknown_config_names_the_shipped_ones() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"Did you mean 'lenet_mnist'.*Shipped: conv2_cifar"
    ):
        find_config("lenet_mnst")
    with pytest.raises(FileNotFoundError, match=r"No config file 'qqqq'. Shipped: conv2_cifar10"):
        find_config("qqqq")


def test_a_config_says_the_least() -> None:
    """What it leaves out is as the API reference says."""
    study = load_study(tiny.config(pruning={"rounds": 1}))
    assert (study.threads, study.claims) == (1, [])
    assert (study.measures.monitor, study.measures.mode) == ("val_loss", "min")
    assert study.pruning == Ladder(rounds=1, fraction=0.2, scope="global", rewind_step=0)
    assert study.settings["trainer"]["num_sanity_val_steps"] == 0


def test_changes_reach_model_data_and_trainer_of_one_arm() -> None:
    changes = {"model": {"init_args": {"hidden": 32}}, "trainer": {"max_steps": 24}}
    arms = {"winning_ticket": tiny.iterative(), "wide": tiny.iterative(changes=changes)}
    study = load_study(tiny.config(arms=arms))
    wide, plain = settings_of(study, "wide"), settings_of(study, "winning_ticket")
    assert wide["model"]["init_args"]["hidden"] == 32
    assert plain["model"]["init_args"]["hidden"] == 16
    assert (wide["trainer"]["max_steps"], plain["trainer"]["max_steps"]) == (24, 12)
    assert wide["trainer"]["val_check_interval"] == 3


def test_another_class_takes_no_arguments_over() -> None:
    base = {"data": {"class_path": "a.B", "init_args": {"x": 1}}}
    changed = with_changes(base, {"data": {"class_path": "a.C"}})
    assert changed == {"data": {"class_path": "a.C"}}
    assert base == {"data": {"class_path": "a.B", "init_args": {"x": 1}}}


def test_the_same_class_keeps_the_arguments_that_are_not_changed() -> None:
    base = {"data": {"class_path": "a.B", "init_args": {"x": 1, "y": 2}}}
    changed = with_changes(base, {"data": {"class_path": "a.B", "init_args": {"y": 3}}})
    assert changed == {"data": {"class_path": "a.B", "init_args": {"x": 1, "y": 3}}}
    assert with_changes(base, {"data": None}) == {"data": None}


def test_fingerprints_depend_on_what_results_depend_on() -> None:
    arms = {"winning_ticket": tiny.iterative(), "reinit": tiny.control(weights="reinitialized")}
    study = load_study(tiny.config(arms=arms))
    marks = [fingerprint(study, arm) for arm in study.arms]

    def changed(**changes: object) -> list[bool]:
        other = load_study(tiny.config(**{"arms": arms, **changes}))
        return [fingerprint(other, arm) != mark for arm, mark in zip(arms, marks, strict=True)]

    assert changed(seeds=[5], name="other", claims=[]) == [False, False]
    assert changed(threads=2) == [True, True]
    assert changed(pruning={"rounds": 3, "fraction": 0.5, "scope": "layer"}) == [True, True]
    assert changed(measures={"mode": "max"}) == [True, True]
    # The source of an arm is part of it.
    rewound = {**arms, "winning_ticket": tiny.iterative(rewind_step=1)}
    assert changed(arms=rewound) == [True, True]
    shuffled = {**arms, "reinit": tiny.control(weights="reinitialized", masks="shuffled")}
    assert changed(arms=shuffled) == [False, True]


def test_sources_come_in_earlier_waves() -> None:
    arms = {
        "control_of_control": tiny.control(of="one_shot", rounds=[1]),
        "one_shot": {"class_path": "OneShot", "init_args": {"of": "winning_ticket"}},
        "winning_ticket": tiny.iterative(),
        "snip": {"class_path": "AtInitialization", "init_args": {"method": "snip"}},
    }
    study = load_study(tiny.config(arms=arms))
    assert [{job.arm for job in wave} for wave in waves(study)] == [
        {"winning_ticket", "snip"},
        {"one_shot"},
        {"control_of_control"},
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("logger", "default_root_dir", "enable_checkpointing", "enable_model_summary"),
        *("enable_progress_bar", "fast_dev_run"),
    ],
)
def test_what_a_study_decides_of_the_trainer_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"does not accept option '{name}'"):
        load_study(tiny.config(trainer={name: True}))


def test_callbacks_may_be_one_or_several() -> None:
    one = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    for given, count in ((None, 0), (one, 1), ([one, one], 2)):
        study = load_study(tiny.config(trainer={"callbacks": given}, claims=None))
        made = trainer_arguments(study.settings["trainer"])
        assert [type(callback).__name__ for callback in made["callbacks"]] == [
            "LearningRateMonitor"
        ] * count
        assert made["num_sanity_val_steps"] == 0


def test_an_arm_of_iterative_pruning_may_have_a_ladder_of_its_own() -> None:
    ladder = Ladder(2, fraction=0.5, fractions={"output.*": 0.1}, rewind_step=1)
    assert IterativePruning().own_ladder(ladder) == ladder
    own = IterativePruning(rounds=3, fraction=0.2, scope="layer", rewind_step=0).own_ladder(ladder)
    assert own == Ladder(3, fraction=0.2, scope="layer", fractions={"output.*": 0.1})
