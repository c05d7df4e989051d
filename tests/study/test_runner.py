from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import joblib
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

from lightning_lth import Ticket
from lightning_lth.study import Study, load_study, run_study
from lightning_lth.study.jobs import all_jobs
from lightning_lth.study.progress import StudyProgress
from lightning_lth.study.recorder import MEASURES
from lightning_lth.study.statistics import KEYS
from tests.contents import contents
from tests.study import tiny

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def _files(folder: Path) -> dict[str, object]:
    return contents(folder, ".csv", ".parquet", ".safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pd.DataFrame]]:
    """A whole study, to be read only, and its tables."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_study(load_study(tiny.config()), folder)


@pytest.fixture
def copy(finished: tuple[Path, object], tmp_path: Path) -> Path:
    """The whole study, to go on with."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_a_study_keeps_every_training_with_its_ladder(
    finished: tuple[Path, dict[str, pd.DataFrame]],
) -> None:
    study, tables = finished
    rounds = tables["rounds"]
    # 6*16 = 96 weights: 48, 24; 16*3 = 48 weights: 24, 12.
    assert rounds["num_remaining"].tolist() == [144, 72, 36] * 2
    assert rounds["density"].tolist() == [1.0, 0.5, 0.25] * 2
    assert rounds["seed"].tolist() == [0] * 3 + [1] * 3
    assert rounds["round"].tolist() == [0, 1, 2] * 2
    assert rounds["steps"].tolist() == [12] * 6
    assert (tables["curves"].groupby(["seed", "round"])["step"].agg(list)).tolist() == [
        [3, 6, 9, 12]
    ] * 6
    layers = tables["layers"]
    assert (
        layers[layers["round"] == 2][["layer", "density", "num_weights"]].to_numpy().tolist()
        == [
            ["hidden.weight", 0.25, 96],
            ["output.weight", 0.25, 48],
        ]
        * 2
    )
    for seed in (0, 1):
        folder = study / "trials" / "winning_ticket" / f"seed_{seed}"
        assert Ticket.load(folder / "tickets" / "round_02.safetensors").density == 0.25
        assert any(path.name.startswith("events.out") for path in folder.rglob("*"))
        assert not (folder / "resume.ckpt").exists()
    rounds = pd.read_parquet(study / "rounds.parquet")
    # Before pandas 3 a number that is read from text may be off by its last bit.
    pd.testing.assert_frame_equal(pd.read_csv(study / "rounds.csv"), rounds, rtol=1e-15)
    assert load_study(study / "study.yaml").settings == load_study(tiny.config()).settings


def test_the_early_stop_iteration_is_that_of_the_least_validation_loss(
    finished: tuple[Path, dict[str, pd.DataFrame]],
) -> None:
    _, tables = finished
    trainings = tables["curves"].groupby(["seed", "round"])
    for _, row in tables["rounds"].iterrows():
        curve = trainings.get_group((row["seed"], row["round"]))
        best = curve.loc[curve["val_loss"].idxmin()]
        assert row["early_stop_step"] == best["step"]
        assert row["early_stop_value"] == best["val_loss"]
        assert row["early_stop_validation_accuracy"] == pytest.approx(best["val_accuracy"])
        assert row["end_validation_accuracy"] == pytest.approx(curve["val_accuracy"].iloc[-1])


def test_accuracies_are_those_of_the_weights(
    finished: tuple[Path, dict[str, pd.DataFrame]],
) -> None:
    """The dense end weights, run by hand."""
    study, tables = finished
    from lightning_lth.stopping.best_weights import BestWeights

    folder = study / "trials" / "winning_ticket" / "seed_0"
    net, data = tiny.Net(), tiny.Data()
    BestWeights.load(folder / "trained" / "round_00.safetensors").restore_(net)
    data.setup("fit")
    for part, name in zip(data.parts, ("train", "validation", "test"), strict=True):
        inputs, labels = part.tensors
        expected = (net(inputs).argmax(1) == labels).float().mean().item()
        assert tables["rounds"].loc[0, f"end_{name}_accuracy"] == pytest.approx(expected)


def test_the_same_config_gives_the_same_bytes(tmp_path: Path) -> None:
    config = tiny.config(
        seeds=[0],
        pruning={"rounds": 1, "fraction": 0.5, "scope": "layer"},
        arms={
            "winning_ticket": tiny.iterative(),
            "reinit": tiny.control(weights="reinitialized", rounds=[1], draws=2),
        },
    )
    run_study(load_study(config), tmp_path / "a")
    torch.rand(7)  # the random state of the caller does not matter
    run_study(load_study(config), tmp_path / "b")
    first, second = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert len(first) == 20
    assert first == second


@pytest.mark.distributed
def test_a_dask_cluster_gives_what_one_process_gives(
    finished: tuple[Path, object], tmp_path: Path
) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        run_study(load_study(tiny.config()), tmp_path)
    assert _files(tmp_path) == _files(finished[0])


@pytest.mark.distributed
def test_two_processes_give_what_one_gives_and_end_with_the_study_that_was_killed(
    finished: tuple[Path, object], tmp_path: Path
) -> None:
    """One study that ends, and one that does not, in the same processes."""
    endless = tiny.config(trainer={"accelerator": "cpu", "max_steps": 10**6})
    studies = {str(tmp_path / "whole"): tiny.config(), str(tmp_path / "endless"): endless}
    script = tmp_path / "script.py"
    script.write_text(
        "from lightning_lth.study import load_study, run_study\n"
        "if __name__ == '__main__':\n"
        f"    for folder, config in {studies!r}.items():\n"
        "        run_study(load_study(config), folder, num_jobs=2)\n"
    )
    main = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    trials = tmp_path / "endless" / "trials" / "winning_ticket"
    notes = [trials / f"seed_{seed}" / "progress.json" for seed in (0, 1)]
    _wait_for(lambda: all(note.exists() for note in notes) or main.poll() is not None)
    assert main.poll() is None
    main.kill()
    main.wait()
    assert _files(tmp_path / "whole") == _files(finished[0])
    _wait_for(lambda: _age(notes) > 5)  # notes are written every two seconds


def _age(paths: list[Path]) -> float:
    return time.time() - max(path.stat().st_mtime for path in paths)


def _wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_the_callers_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), dict(os.environ)
    run_study(load_study(tiny.config(seeds=[0], threads=2)), tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_num_threads(), dict(os.environ))


def test_trials_train_with_as_many_threads_as_the_study_says(tmp_path: Path) -> None:
    model = {"class_path": "tests.study.tiny.LogsSurroundings"}
    arms = {"winning_ticket": tiny.iterative(rounds=1)}
    tables = run_study(
        load_study(tiny.config(seeds=[0], threads=3, model=model, arms=arms)), tmp_path
    )
    assert tables["curves"]["num_threads"].unique().tolist() == [3]


@pytest.mark.parametrize(("profiler", "is_timed"), [(None, 0), ("simple", 1)])
def test_steps_are_timed_only_if_the_config_says_so(
    tmp_path: Path, profiler: str | None, is_timed: int
) -> None:
    """Lightning's profiler for none costs a fifth of its loop."""
    config = tiny.config(
        seeds=[0],
        model={"class_path": "tests.study.tiny.LogsSurroundings"},
        trainer={"accelerator": "cpu", "max_steps": 6, "profiler": profiler},
        arms={"winning_ticket": tiny.iterative(rounds=1)},
    )
    curves = run_study(load_study(config), tmp_path)["curves"]
    assert curves["is_timed"].tolist() == curves["has_profiler"].tolist() == [is_timed] * 2


def test_gpus_are_hidden_from_an_arm_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = tiny.config(
        seeds=[0],
        model={"class_path": "tests.study.tiny.LogsSurroundings"},
        trainer={"accelerator": "auto", "max_steps": 6},
        arms={"a": tiny.iterative(rounds=1, changes={"trainer": {"accelerator": "cpu"}})},
    )
    tables = run_study(load_study(config), tmp_path)
    assert tables["curves"]["hides_gpus"].unique().tolist() == [1]


def test_metrics_with_the_names_of_our_columns_damage_nothing(tmp_path: Path) -> None:
    config = tiny.config(
        seeds=[1],
        model={"class_path": "tests.study.tiny.LogsOurColumns"},
        arms={"winning_ticket": tiny.iterative(rounds=1)},
    )
    curves = run_study(load_study(config), tmp_path)["curves"]
    own = ["arm", "seed", "draw", "round", "density", "step"]
    assert list(curves) == [*own, "val_loss", "val_accuracy"]
    assert curves.loc[0, own].tolist() == ["winning_ticket", 1, 0, 0, 1.0, 3]


def test_claims_may_be_about_the_numbers_of_a_training(
    finished: tuple[Path, dict[str, pd.DataFrame]],
) -> None:
    """All that can be judged is accepted before there are trainings, and nothing else."""
    numbers = set(finished[1]["rounds"].select_dtypes("number")) - set(KEYS)
    assert set(MEASURES) == numbers


def test_tables_of_arms_that_are_gone_are_removed(copy: Path) -> None:
    whole = _files(copy)
    for name in ("stability.csv", "stability.parquet"):
        shutil.copy(copy / "rounds.parquet", copy / name)
    run_study(load_study(tiny.config()), copy)
    assert _files(copy) == whole


def test_finished_trials_are_not_run_again_and_arms_may_be_added(copy: Path) -> None:
    marks = {path: path.stat().st_mtime_ns for path in copy.rglob("tickets/*")}
    assert len(marks) == 6
    arms = {"winning_ticket": tiny.iterative(), "reinit": tiny.control(weights="reinitialized")}
    tables = run_study(load_study(tiny.config(arms=arms)), copy)
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    assert tables["rounds"].groupby(["arm", "seed"]).size().to_dict() == {
        ("reinit", 0): 2,
        ("reinit", 1): 2,
        ("winning_ticket", 0): 3,
        ("winning_ticket", 1): 3,
    }
    assert len(json.loads((copy / "sessions.json").read_text())) == 2


def test_a_finished_study_is_put_together_without_its_data(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _files(copy)
    (copy / "rounds.csv").unlink()

    def lost(self: tiny.Data, stage: str) -> None:
        raise FileNotFoundError("the data are gone")

    monkeypatch.setattr(tiny.Data, "setup", lost)
    run_study(load_study(tiny.config()), copy)
    assert _files(copy) == whole
    with pytest.raises(ValueError, match="'winning_ticket' cannot run: the data are gone"):
        run_study(load_study(tiny.config(seeds=[0, 1, 2])), copy)


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, dict[str, object]]:
    """A study, its files when nothing kills it, and where the epoch is written that does."""
    flag = tmp_path_factory.mktemp("mortal") / "flag"
    config = tiny.config(
        seeds=[0],
        data={"class_path": "tests.study.tiny.DiesOnce", "init_args": {"flag": str(flag)}},
        arms={"winning_ticket": tiny.iterative(), "again": tiny.control(rounds=[1])},
    )
    study = load_study(config)
    run_study(study, flag.with_name("whole"))
    return flag, study, _files(flag.with_name("whole"))


@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_a_killed_study_goes_on_to_the_same_bytes(
    mortal: tuple[Path, Study, dict[str, object]], tmp_path: Path, epoch: int
) -> None:
    """Each training has 2 epochs of 6 batches; it dies in the dense one, at a border, or later."""
    flag, study, whole = mortal
    flag.write_text(str(epoch))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_study(study, tmp_path)
    assert not flag.exists()
    done, running = StudyProgress(study, all_jobs(study), tmp_path).done()
    assert 0 < done < 3  # as the trial has noted, every two seconds
    assert running.startswith("winning_ticket/0 round ")
    run_study(study, tmp_path)
    assert _files(tmp_path) == whole


def test_a_half_written_trial_is_redone(copy: Path) -> None:
    study = load_study(tiny.config())
    whole = _files(copy)
    folder = copy / all_jobs(study)[0].path
    (folder / "done.json").write_text('{"finger')
    (folder / "rounds.parquet").write_bytes(b"half")
    run_study(study, copy)
    assert _files(copy) == whole


def test_a_folder_with_results_of_other_settings_is_refused(copy: Path) -> None:
    kept = _files(copy)
    other = tiny.config(trainer={"accelerator": "cpu", "max_steps": 24})
    with pytest.raises(ValueError, match=r"'winning_ticket' with other settings. Run the changed"):
        run_study(load_study(other), copy)
    assert _files(copy) == kept


def test_a_failing_trial_is_named_and_others_are_kept(copy: Path) -> None:
    ticket = copy / "trials" / "winning_ticket" / "seed_0" / "tickets" / "round_01.safetensors"
    content = ticket.read_bytes()
    kept = _files(copy)
    arms = {"winning_ticket": tiny.iterative(), "again": tiny.control(rounds=[1])}
    ticket.write_bytes(ticket.read_bytes()[:-9])
    (copy / "rounds.csv").unlink()
    with pytest.raises(RuntimeError, match=r"trial 'again, seed 0, round 1' failed: .*round_01"):
        run_study(load_study(tiny.config(arms=arms)), copy)
    ticket.write_bytes(content)
    assert {name: _files(copy)[name] for name in kept} == kept


def test_a_full_disk_loses_nothing_and_seeds_may_be_added(copy: Path) -> None:
    """A folder in the place of a file is as good as a full disk: the write fails."""
    kept = _files(copy)
    study = load_study(tiny.config(seeds=[0, 1, 2]))
    blocked = copy / "trials" / "winning_ticket" / "seed_2" / "rounds.parquet"
    blocked.mkdir(parents=True)
    with pytest.raises((OSError, RuntimeError)):
        run_study(study, copy)
    assert {name: _files(copy)[name] for name in kept} == kept
    shutil.rmtree(blocked)
    assert len(run_study(study, copy)["rounds"]) == 9
