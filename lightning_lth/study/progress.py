"""One live line for the whole study: trainings done, what runs now, and when it will be over."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lightning_lth.study.design import MOST_ROUNDS, Study
from lightning_lth.study.jobs import Job
from lightning_lth.study.reading import read_json
from lightning_lth.study.records import JobFolder

_SECONDS_BETWEEN_LOOKS = 1.0


@final
class StudyProgress:
    """A live display while a ``with`` block runs; silent where the output is no terminal.

    It looks at the notes that jobs leave in their folders, so it works for jobs on other machines
    with the same file system, too.

    Args:
        study: Which is run.
        jobs: All of its jobs.
        folder: Of the study.
        console: Where to draw; by default the standard error.
    """

    def __init__(
        self, study: Study, jobs: Sequence[Job], folder: Path, console: Console | None = None
    ) -> None:
        self._sizes = {job: num_trainings(study, job) for job in jobs}
        self._folder = folder
        self._console = console or Console(stderr=True)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._display = Progress(
            TextColumn("{task.description}", markup=False),  # a name may have brackets
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("trainings"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=self._console,
        )
        self._task = self._display.add_task(
            study.name, total=sum(self._sizes.values()), now="", completed=int(self.done()[0])
        )

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._display.start()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._update()
            self._display.stop()

    def done(self) -> tuple[float, str]:
        """How many trainings are done, and what is running."""
        total, running = 0.0, []
        for job, size in self._sizes.items():
            folder = JobFolder(self._folder / job.path)
            if folder.fingerprint() is not None:
                total += size
            elif (note := _read_note(folder.progress)) is not None:
                total += min(size, (note[0] if job.part.round is None else 0) + note[1])
                running.append(f"{job.arm}/{job.seed} round {note[0]}")
        return total, ", ".join(running)

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_LOOKS):
            self._update()

    def _update(self) -> None:
        completed, running = self.done()
        self._display.update(self._task, completed=int(completed), now=running)


def num_trainings(study: Study, job: Job) -> int:
    """How many trainings a job consists of, as far as the progress display needs to know."""
    if job.part.round is not None:
        return 1
    return len(study.arms[job.arm].rounds_run(study.pruning))


def _read_note(path: Path) -> tuple[int, float] | None:
    """Round and share of it; ``None`` if there is no note, or a damaged one."""
    try:
        note = read_json(path)
        round, fraction = int(note["round"]), float(note["fraction"])
    except (ArithmeticError, FileNotFoundError, LookupError, TypeError, ValueError):
        return None
    return (round, fraction) if 0 <= round <= MOST_ROUNDS and 0 <= fraction < inf else None
