"""What is refused before any training, and that nothing is written then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_lth.study import load_study, run_study
from lightning_lth.study.checks import rehearse
from tests.study import tiny


def _stability(**arguments: int) -> dict[str, Any]:
    path = "lightning_lth.study.Stability"
    return {"class_path": path, "init_args": {"of": "winning_ticket", **arguments}}


def _early(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "AtInitialization", "init_args": arguments}


def _units(**arguments: str) -> dict[str, Any]:
    init_args = {"of": "winning_ticket", "units": True, **arguments}
    return {"class_path": "OneShot", "init_args": init_args}


NET, DATA = "tests.study.tiny.Net", "tests.study.tiny.Data"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, "'sedes' is not accepted"),
        ({"pruning": {"rounds": 2, "fractoin": 0.5}}, "does not accept option 'fractoin'"),
        ({"pruning": {"rounds": 0}}, "`rounds` must be at least 1, got 0"),
        ({"pruning": {"rounds": 1, "fraction": 20}}, r"`fraction` must be in \[0, 1\), got 20"),
        ({"pruning": {"rounds": 1, "fraction": 0.0}}, "`fraction` must be above 0, got 0"),
        ({"pruning": {"rounds": 1, "rewind_step": -1}}, "`rewind_step` must be at least 0, got -1"),
        ({"arms": {"a": _early(method="snip", num_batches=0)}}, "must be at least 1, got 0"),
        ({"arms": {"a": _early(method="random", num_batches=2)}}, "got 2 for 'random'"),
        (
            {"arms": {"a": _units(criterion="lightning_lth.pruning.criteria.movement")}},
            "`units=True` ranks units by their L1 norm, got a `criterion` as well",
        ),
        ({"trainer": {"max_stpes": 3}}, "does not accept option 'max_stpes'"),
        ({"trainer": {"barebones": True}}, "does not accept option 'barebones'"),
        ({"model": {"class_path": "no_such_module.Net"}}, "No module named 'no_such_module'"),
        ({"model": {"class_path": NET, "init_args": {"hiden": 3}}}, "'hiden' is not accepted"),
        ({"arms": {"a": {"class_path": "IterativPruning"}}}, "IterativPruning"),
        ({"arms": {"a": tiny.iterative(rewind="weigths")}}, "weigths"),
        ({"arms": {"a": {"class_path": "Control"}}}, "required: of"),
        ({"arms": {"a": tiny.control(draws=0)}}, r"`draws` must be in \[1, 1000\], got 0"),
        ({"arms": {"a": tiny.control(draws=2)}}, "1 if nothing is drawn anew, got 2"),
        ({"arms": {"a": tiny.control(draws=3, weights="signed_constant")}}, "is drawn anew, got 3"),
        (
            {"arms": {"a": tiny.iterative(), "A": tiny.iterative()}},
            r"must differ in more than capitals.*\['a', 'A'\]",
        ),
        ({"arms": {"a": _stability(orders=1)}}, r"`orders` must be in \[2, 1000\] .* got 1 and 30"),
        ({"arms": {"a": _stability(points=2)}}, r"`points` in \[3, 1000\], got 2 and 2"),
        (
            {"arms": {"a": _early(method="synflow", scope="layer")}},
            "`method='synflow'` ranks all layers together, got `scope='layer'`",
        ),
    ],
)
def test_a_config_that_is_wrong_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)The config is not valid.*{message}"):
        load_study(tiny.config(**changes))


@pytest.mark.parametrize("key", ["model", "arms", "seeds", "pruning"])
def test_a_config_without_something_needed_is_refused(key: str) -> None:
    config = tiny.config()
    del config[key]
    with pytest.raises(ValueError, match=f"The config is not valid.* are required: {key}"):
        load_study(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, r"`seeds` must be different numbers, at least one, got \[1, 1\]"),
        ({"seeds": []}, "at least one"),
        ({"arms": {}}, "`arms` must have at least one arm, got none"),
        (
            {"arms": {"winning_ticket": tiny.iterative(), "b": tiny.control(of="winnig_ticket")}},
            "'b' takes tickets `of` 'winnig_ticket', which is no arm. Did you mean 'winning_tick",
        ),
        (
            {"arms": {"a": tiny.control(of="b"), "b": tiny.control(of="a")}},
            "take tickets of each other",
        ),
        (
            {"arms": {"winning_ticket": tiny.iterative(), "b": tiny.control(rounds=[2, 3])}},
            r"'b' has the rounds \[3\], which do not exist. Rounds to choose from: \[0, 1, 2\]",
        ),
        (
            {"arms": {"winning_ticket": tiny.iterative(), "b": tiny.control(rounds=[1, 1])}},
            r"`rounds` of the arm 'b' must be different numbers, at least one, got \[1, 1\]",
        ),
        (
            {"arms": {"winning_ticket": tiny.iterative(), "b": tiny.control(rounds=[])}},
            r"at least one, got \[\]",
        ),
        (
            {"arms": {"a": tiny.iterative(), "late": tiny.iterative(rewind_step=12)}},
            "'late' cannot run: `rewind_step` must be less than `max_steps=12`.* got 12",
        ),
        (
            {
                "pruning": {"rounds": 2, "fraction": 0.5, "scope": "global"},
                "arms": {"winning_ticket": tiny.iterative(), "units": _units()},
            },
            "`units=True` prunes each layer by itself, but `pruning.scope` is 'global'",
        ),
        ({"pruning": {"rounds": 1, "fractions": {"hiden.*": 0.1}}}, "'hiden.*'"),
        ({"pruning": {"rounds": 1, "parameters": ["nothing.*"]}}, "nothing"),
        ({"measures": {"monitor": "val_los"}}, "`monitor='val_los'` was not logged .*val_loss"),
        (
            {"measures": {"validation_accuracy": "acc"}},
            "'acc' was not logged by `validation_step`. Logged: val_accuracy, val_loss",
        ),
        (
            {"measures": {"test_accuracy": "acc"}},
            "'acc' was not logged by `test_step`. Logged: test_accuracy",
        ),
        (
            {"trainer": {"accelerator": "cpu", "devices": 2, "max_steps": 3}},
            "the trainer has 2 devices.* .*`torchrun --nproc-per-node 2 -m",
        ),
        (
            {
                "arms": {
                    "early": _early(method="random"),
                    "b": {"class_path": "OneShot", "init_args": {"of": "early"}},
                }
            },
            "'b' needs the dense training of 'early', which has none",
        ),
        (
            {
                "data": {"class_path": "tests.study.tiny.Threes"},
                "arms": {"w": tiny.iterative(), "a": _early(method="synflow")},
            },
            "'a' cannot run: Pruning by gradients needs batches that are pairs",
        ),
        ({"claims": [{**tiny.CLAIM, "arm": "winnig_ticket"}]}, "winnig_ticket"),
        ({"claims": [{**tiny.CLAIM, "round": 9}]}, "9"),
        (
            {"claims": [{**tiny.CLAIM, "measure": "early_stop_stp"}]},
            "called 'early_stop_stp'. Did you mean 'early_stop_step'",
        ),
        (
            {"arms": {"wide": tiny.iterative(changes={"modle": {}})}},
            r"`changes` may have the keys model, data, trainer, got \['modle'\]",
        ),
        (
            {"arms": {"wide": tiny.iterative(changes={"model": {"init_args": {"hiden": 3}}})}},
            "'wide' cannot run.*'hiden' is not accepted",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    study = load_study(tiny.config(**changes))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run_study(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_rehearsal_validates_has_a_logger_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = {
        "accelerator": "cpu",
        "max_epochs": 9,
        "check_val_every_n_epoch": 5,
        "callbacks": {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
    }
    model = {"class_path": "tests.study.tiny.TalksToItsLogger"}
    rehearse(load_study(tiny.config(model=model, trainer=trainer)))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
