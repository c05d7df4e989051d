from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_lth import Ticket
from lightning_lth.cli import main
from lightning_lth.study import load_study
from tests.study import tiny


def write_config(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(tiny.config(**changes)))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml")


@pytest.mark.slow
def test_a_study_is_run_reported_and_run_no_second_time_and_its_tickets_looked_at_and_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One study for all of it, as it takes seconds."""
    claim = {
        "text": "Tickets stop earlier than dense networks.",
        "arm": "winning_ticket",
        "round": 2,
        "than_round": 0,
        "measure": "early_stop_step",
        "expect": "lower",
    }
    config = write_config(tmp_path / "tiny.yaml", claims=[claim])
    folder = tmp_path / "out"
    run = ["study", "run", str(config), "--dir", str(folder), "--jobs", "1", "--seeds", "[4]"]
    main(run)
    first = capsys.readouterr().out
    assert "Tickets stop earlier than dense networks.\n  Not enough trials" in first
    page = folder / "report" / "report.html"
    assert f"Report: {page}" in first
    assert yaml.safe_load((folder / "study.yaml").read_text())["seeds"] == [4]
    marks = {path: path.stat().st_mtime_ns for path in folder.rglob("tickets/*")}
    for again in (run, ["study", "report", str(folder)]):
        page.unlink()
        main(again)
        assert capsys.readouterr().out == first
        assert page.exists()
        assert {path: path.stat().st_mtime_ns for path in marks} == marks

    file = folder / "trials" / "winning_ticket" / "seed_4" / "tickets" / "round_02.safetensors"
    main(["ticket", "show", str(file)])
    shown = capsys.readouterr().out
    assert "Ticket(round=2, step=0, density=0.25, 36 of 144 weights in 2 tensors)" in shown
    assert "25.00% left of hidden.weight: 24 of 96" in shown
    assert re.search(r"seed\s+4\n", shown)
    assert re.search(r"\nfingerprint  \w+\n(.*\n)*val_loss     \d\.\d+\n(.*\n)*torch  ", shown)

    model = {"class_path": "tests.study.tiny.Net", "init_args": {"classes": 7}}
    other = write_config(tmp_path / "other.yaml", model=model)
    moved = tmp_path / "moved.safetensors"
    drawn = []
    for seed in (["--seed", "3"], ["--seed", "0"], []):  # the last two are the same
        main(["ticket", "transfer", str(file), str(other), "--out", str(moved), *seed])
        shown = capsys.readouterr().out
        assert "output.weight" in shown
        assert f"\nWritten: {moved}\n" in shown
        ticket = Ticket.load(moved)
        drawn.append(ticket.weights["output.weight"])
    assert [torch.equal(drawn[0], drawn[1]), torch.equal(drawn[1], drawn[2])] == [False, True]
    assert ticket.masks.remaining() == {"hidden.weight": 24}
    assert ticket.weights["output.weight"].shape == (7, 16)


@pytest.mark.slow
def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flag = tmp_path / "flag"
    flag.write_text("1")  # epochs that it goes well
    data = {"class_path": "tests.study.tiny.DiesOnce", "init_args": {"flag": str(flag)}}
    config = write_config(tmp_path / "tiny.yaml", name="My Net", seeds=[0], data=data)
    folder = re.escape(str(Path("results", "my_net")))
    with pytest.raises(SystemExit, match=rf"^Interrupted\. .* is kept in '{folder}'; go on"):
        main(["study", "run", str(config), "--jobs", "1"])


def test_the_demo_is_the_study_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds a folder that it refuses, as training takes two minutes."""
    monkeypatch.chdir(tmp_path)
    for folder, options in (("results/demo", []), ("other", ["--dir", "other"])):
        job = tmp_path / folder / "trials" / "winning_ticket" / "seed_0"
        job.mkdir(parents=True)
        (job / "started").write_text("other settings")
        with pytest.raises(SystemExit, match=f"{folder}/trials/winning_ticket/seed_0' holds resul"):
            main(["demo", *options])


def test_help_names_the_commands_and_the_shipped_configs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, expected in (
        (["--help"], ["study", "ticket", "demo"]),
        (["study", "run", "--help"], ["CONFIG", "lenet_mnist", "--pruning.rounds", "How often to"]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(text in shown for text in expected)


def test_print_config_gives_a_config(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "run", str(config), "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["pruning"]["rounds"] == 2
    assert printed["trainer"]["max_steps"] == 12
    assert load_study(printed) == load_study(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "run", "lenet_mnst"], "Did you mean 'lenet_mnist'"),
        (["study", "report", "no/such/folder"], "is not the folder of a study"),
        (["ticket", "show", "no_such_file"], "no_such_file"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of {study,ticket,demo}, but it was not provided"),
        (["study"], "one of {run,report}, but it was not provided"),
        (["ticket"], "one of {show,transfer}, but it was not provided"),
        (["study", "report"], "required: study.report.dir"),
        (["ticket", "show"], "required: ticket.show.file"),
        (["ticket", "transfer", "a.safetensors", "digits"], "required: ticket.transfer.out"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_typo_in_a_config_is_refused_before_training(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("max_steps", "max_stepz"))
    with pytest.raises(SystemExit) as ended:
        main(["study", "run", str(config), "--dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()


def test_no_trainings_at_once_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "run", str(config), "--jobs", "0"])
    assert ended.value.code == 2
    assert "jobs" in capsys.readouterr().err


def test_without_the_extra_the_command_to_install_it_is_named() -> None:
    code = (
        "import sys; sys.modules['jsonargparse'] = None; "
        "from lightning_lth.cli import main; main([])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "pip install 'lightning-lth[study]'" in ended.stderr


def test_without_the_extra_a_study_names_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("lightning_lth.study")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-lth\[study\]'.*pandas"):
        importlib.import_module("lightning_lth.study")
