"""The folder of a study: what is written, in which form, and how it is read again.

.. code-block:: text

    STUDY/
      study.yaml              the resolved config of the last run
      sessions.json           when, with which versions, on which machine, in which git state
      rounds.csv, .parquet    one row for each training
      curves.csv, .parquet    one row for each validation
      layers.csv, .parquet    one row for each training and layer
      stability.csv, .parquet one row for each pair of trainings with two data orders
      trials/ARM/seed_S/...   the same tables for one job, tickets, TensorBoard events, done.json
      report/                 report.html and its figures

Tables of a job are whole when its ``done.json`` is there, which is written last. The tables of
the study are put together from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, final

import pandas as pd  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]

from lightning_lth import _files
from lightning_lth.study import processes
from lightning_lth.study.design import Settings
from lightning_lth.study.reading import read_config, read_json, read_table

TABLES = ("rounds", "curves", "layers", "stability")


@final
class JobFolder:
    """Where one job writes.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def tickets(self) -> Path:
        """Folder with ``round_RR.safetensors`` for each round."""
        return self.path / "tickets"

    @property
    def checkpoint(self) -> Path:
        """From which a job of several rounds goes on; removed when it is done."""
        return self.path / "resume.ckpt"

    @property
    def progress(self) -> Path:
        """How far the job is."""
        return self.path / "progress.json"

    def trained(self, round: int) -> Path:
        """File with the weights at the end of a round."""
        return self.path / "trained" / f"round_{round:02d}.safetensors"

    def fingerprint(self) -> str | None:
        """Of the settings that the finished job ran with; ``None`` if it is not finished."""
        try:
            done = read_json(self.path / "done.json")
        except (FileNotFoundError, ValueError):
            return None
        mark = done.get("fingerprint") if isinstance(done, dict) else None
        return mark if isinstance(mark, str) and mark else None

    def started_with(self) -> str | None:
        """Of the settings that the job was begun with; ``None`` if it was not."""
        try:
            return (self.path / "started").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def start(self, fingerprint: str) -> None:
        """Note with which settings the job begins."""
        write_whole(self.path / "started", fingerprint.encode())

    @contextmanager
    def next_checkpoint(self) -> Iterator[Path]:
        """Where to write the next checkpoint; it takes the place of the last when it is whole.

        Lightning writes to the temporary folder and moves the file from there. Between two file
        systems that is a copy, which may be cut off.
        """
        with _files.errors_name(self.checkpoint):
            yield self._partial_checkpoint
            if processes.is_writer():
                _files.rename_whole(self._partial_checkpoint, self.checkpoint)

    def finish(self, tables: Mapping[str, Sequence[Mapping[str, Any]]], fingerprint: str) -> None:
        """Write the tables, then the mark that all is there."""
        for name, rows in tables.items():
            if rows:
                write_table(self.path / name, pd.DataFrame(list(rows)), csv=False)
        write_whole(self.path / "done.json", json.dumps({"fingerprint": fingerprint}).encode())
        if processes.is_writer():
            for path in (self.checkpoint, self._partial_checkpoint):
                path.unlink(missing_ok=True)
            self.progress.unlink(missing_ok=True)

    def table(self, name: str) -> pd.DataFrame | None:
        """One of the tables; ``None`` if the job has none of that name.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.path / f"{name}.parquet"
        return read_table(path) if path.is_file() else None

    @property
    def _partial_checkpoint(self) -> Path:
        return self.path / ".resume.ckpt.partial"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; of processes that train together, only the first does."""
    if processes.is_writer():
        _files.write_whole(path, content)


def write_table(stem: Path, frame: pd.DataFrame, *, csv: bool = True) -> None:
    """Write a table as Parquet, and as CSV beside it; each whole or not at all."""
    content = BytesIO()
    frame.to_parquet(content, index=False)
    write_whole(stem.with_suffix(".parquet"), content.getvalue())
    if csv:
        text = frame.to_csv(index=False, lineterminator="\n")
        write_whole(stem.with_suffix(".csv"), text.encode())


def merge(folder: Path, jobs: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Put the tables of finished jobs together, and write them as those of the study.

    Args:
        folder: Of the study.
        jobs: Paths of the jobs within it, in the order of the rows.

    Returns:
        The tables by name; empty ones where there are no rows.
    """
    done = [JobFolder(folder / job) for job in jobs if JobFolder(folder / job).fingerprint()]
    merged = {}
    for name in TABLES:
        found = [table for job in done if (table := job.table(name)) is not None]
        merged[name] = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
        if found:
            write_table(folder / name, merged[name])
        elif done and processes.is_writer():  # of an arm that the study had
            for ending in (".csv", ".parquet"):
                (folder / f"{name}{ending}").unlink(missing_ok=True)
    return merged


def read_sessions(folder: Path) -> list[dict[str, str]]:
    """What is known of each session that worked on a study, oldest first.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / "sessions.json"
    sessions = read_json(path) if path.is_file() else []
    if not isinstance(sessions, list) or not all(map(_is_session, sessions)):
        raise ValueError(
            f"'{path}' must hold a list of sessions with texts by name. Restore it, or delete it."
        )
    return sessions


def _is_session(session: object) -> bool:
    return isinstance(session, dict) and all(isinstance(text, str) for text in session.values())


def add_session(folder: Path, session: Mapping[str, str]) -> None:
    """Note a session."""
    sessions = [*read_sessions(folder), dict(session)]
    write_whole(folder / "sessions.json", json.dumps(sessions, indent=1).encode())


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the resolved config."""
    write_whole(folder / "study.yaml", yaml.safe_dump(settings, sort_keys=False).encode())


def read_settings(folder: Path) -> Settings:
    """The resolved config of a study's folder.

    Raises:
        FileNotFoundError: If the folder is not that of a study.
        ValueError: If its config is damaged.
    """
    path = folder / "study.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' is not the folder of a study: it has no study.yaml. "
            "Give the folder that `lightning-lth study run` wrote to."
        )
    return read_config(path)
