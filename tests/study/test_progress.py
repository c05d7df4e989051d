from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from lightning_lth._files import write_whole
from lightning_lth.study import load_study
from lightning_lth.study.jobs import all_jobs
from lightning_lth.study.progress import StudyProgress
from lightning_lth.study.records import JobFolder
from tests.study import tiny

ARMS = {"winning_ticket": tiny.iterative(), "reinit": tiny.control(rounds=[1, 2])}


def test_trainings_are_counted_by_what_jobs_note(tmp_path: Path) -> None:
    """Two seeds: 2 * 3 + 2 * 2 trainings; one job of three is done, another is in round 1."""
    study = load_study(tiny.config(arms=ARMS))
    jobs = all_jobs(study)
    display = StudyProgress(study, jobs, tmp_path)
    assert display.done() == (0.0, "")
    JobFolder(tmp_path / jobs[0].path).finish({}, "mark")
    assert display.done() == (3.0, "")
    write_whole(JobFolder(tmp_path / jobs[1].path).progress, b'{"round": 1, "fraction": 0.5}')
    assert display.done() == (4.5, "winning_ticket/1 round 1")
    control = JobFolder(tmp_path / jobs[2].path)
    assert jobs[2].part.round == 1
    write_whole(control.progress, b'{"round": 1, "fraction": 0.25}')
    assert display.done() == (4.75, "winning_ticket/1 round 1, reinit/0 round 1")
    control.progress.write_bytes(b'{"rou')
    assert display.done() == (4.5, "winning_ticket/1 round 1")


def test_the_display_is_live_on_a_terminal_and_silent_elsewhere(tmp_path: Path) -> None:
    study = load_study(tiny.config(arms=ARMS))
    shown = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
        with StudyProgress(study, all_jobs(study), tmp_path, console):
            pass
        shown[is_terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0/10" in shown[True]
    assert "tiny" in shown[True]
    assert shown[False] == ""
