"""Processes that are killed: at a random time, or in the middle of writing a file."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TERMINATED, FAILED = 3, 4  # exit statuses of a life
_SECONDS_TO_END = 60.0  # for a life that was asked to end, or that nobody kills


@dataclass(frozen=True)
class Moment:
    """When a life ends: after so many seconds, or where it comes to a place so many times.

    Attributes:
        signal: SIGKILL or SIGTERM.
        seconds: Since the life began, if there is no place.
        place: Such as ``"tensors: half written"``; see ``watch_writes``.
        count: At the first time (1) or a later one.
    """

    signal: signal.Signals
    seconds: float | None = None
    place: str = ""
    count: int = 1

    def __str__(self) -> str:
        where = f"{self.place!r}, time {self.count}"
        return f"{self.signal.name} at {where if self.place else f'{self.seconds:.3f} s'}"


@dataclass(frozen=True)
class Habitat:
    """What all lives of a project share.

    Attributes:
        work: What they do; it goes on where the last life ended.
        folder: For what they print, and for files of Python's `tempfile`.
        two_disks: Whether files cannot be renamed from the temporary folder into others.
    """

    work: Callable[[], None]
    folder: Path
    two_disks: bool = False

    @property
    def output(self) -> Path:
        """What the latest life has printed."""
        return self.folder / "output.txt"

    def places(self) -> list[str]:
        """Live without a kill, and tell which places of writing were come to, in order."""
        found = self.folder / "places.txt"
        found.write_text("")

        def note(place: str) -> None:
            with REAL_OPEN(found, "a") as file:
                file.write(place + "\n")

        assert self._live(note, None) == 0, self.output.read_text()
        return found.read_text().splitlines()

    def live(self, moment: Moment | None) -> bool:
        """Live until the moment; whether it was killed, rather than done before."""
        remaining = moment.count if moment is not None else 0

        def die_there(place: str) -> None:
            nonlocal remaining
            if moment is not None and place == moment.place:
                remaining -= 1
                if remaining == 0:
                    os.kill(os.getpid(), moment.signal)

        status = self._live(die_there, moment)
        assert status in (0, -signal.SIGKILL, -signal.SIGTERM, TERMINATED), self.output.read_text()
        return status != 0

    def fail(
        self, place: str = "", count: int = 1, break_it: Callable[[], None] = lambda: None
    ) -> str:
        """Live until an error; what was printed.

        Args:
            place: Where something breaks, if it is not broken from the beginning.
            count: At the first time (1) or a later one.
            break_it: What happens there.
        """
        remaining = count

        def break_there(reached: str) -> None:
            nonlocal remaining
            remaining -= reached == place
            if remaining == 0 and reached == place:
                break_it()

        status = self._live(break_there, None)
        output = self.output.read_text()
        assert status == FAILED, output
        return output

    def _live(self, reach: Callable[[str], None], moment: Moment | None) -> int:
        child = os.fork()
        if child == 0:
            self._be_born(reach)
        end, deadline = time.monotonic() + _SECONDS_TO_END, None
        if moment is not None and moment.seconds is not None:
            deadline = time.monotonic() + moment.seconds
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if deadline is not None and time.monotonic() > deadline:
                assert moment is not None
                os.kill(child, moment.signal)
                deadline = None
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise AssertionError(f"Did not end: {self.output.read_text()}")
            time.sleep(0.001)

    def _be_born(self, reach: Callable[[str], None]) -> None:
        """In the new process; never returns."""
        status = FAILED
        try:
            print_to(self.output)
            tempfile.tempdir = str(self.folder)
            watch_writes(reach, two_disks=self.two_disks)
            self.work()
            status = 0
        except SystemExit:  # Lightning's SIGTERMException is one
            status = TERMINATED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def print_to(path: Path) -> None:
    """Warnings, standard output and errors of this process, from now on."""
    warnings.resetwarnings()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(file, standard)
    sys.stdout, sys.stderr = (REAL_OPEN(standard, "w", closefd=False) for standard in (1, 2))


class Moments:
    """Draws when lives end: half by SIGTERM, and half where a file is written.

    SIGKILL comes to each place before it comes to one again, first where half is written.

    Args:
        places: Those that an undisturbed life comes to.
        seconds: How long that takes.
        seed: Of the drawing.
    """

    def __init__(self, places: list[str], seconds: float, seed: int) -> None:
        self._random = random.Random(seed)
        self._counts = {place: places.count(place) for place in sorted(set(places))}
        shuffled = self._random.sample(list(self._counts), len(self._counts))
        by_importance = sorted(shuffled, key=lambda place: "half written" not in place)
        self._places = itertools.cycle(by_importance)
        self._seconds = seconds
        self._drawn = 0

    def draw(self) -> Moment:
        """The next one: SIGKILL and SIGTERM, places and times by turns."""
        turn, self._drawn = self._drawn % 6, self._drawn + 1
        kind = signal.SIGTERM if turn % 2 else signal.SIGKILL
        if turn > 2:
            return Moment(kind, seconds=self._random.uniform(0, 0.6) * self._seconds)
        is_deadly = kind == signal.SIGKILL
        place = next(self._places) if is_deadly else self._random.choice(list(self._counts))
        most = max(1, self._counts[place] // 3)
        return Moment(kind, place=place, count=self._random.randint(1, most))


REAL_OPEN = io.open


def watch_writes(reach: Callable[[str], None], *, two_disks: bool = False) -> None:
    """Call ``reach`` with each place that this process comes to when it writes files; for good.

    Args:
        reach: Gets places such as ``"checkpoint: half written"``, when half is on the disk.
        two_disks: Refuse to rename files into other folders, as between two file systems.
    """
    kind = ""

    def see(content: bytes) -> str:
        nonlocal kind
        kind = kind_of(content)
        return kind

    def watched_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = REAL_OPEN(file, mode, *args, **kwargs)
        is_events = "tfevents" in str(file)  # a stream, of which TensorBoard reads what there is
        is_written = "b" in mode and bool(set(mode) & set("wx"))
        return _Watched(opened, see, reach) if is_written and not is_events else opened

    def around(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if name == "rename" and two_disks and _folder(args[0]) != _folder(args[1]):
                raise OSError(errno.EXDEV, "two disks", str(args[0]))
            reach(f"{kind}: before {name}")
            result = call(*args, **kwargs)
            reach(f"{kind}: after {name}")
            return result

        return called

    builtins.open = io.open = watched_open  # type: ignore[assignment]
    os.fsync = around("fsync", os.fsync)
    os.rename, os.replace = around("rename", os.rename), around("rename", os.replace)
    os.unlink = around("removal", os.unlink)
    shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]  # copies by `write`


class _Watched:
    """A file whose contents come to the disk in two halves."""

    def __init__(
        self, file: IO[bytes], see: Callable[[bytes], str], reach: Callable[[str], None]
    ) -> None:
        self._file, self._see, self._reach = file, see, reach

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        kind, half = self._see(bytes(view[:16])), len(view) // 2
        self._file.write(view[:half])
        self._file.flush()
        self._reach(f"{kind}: half written")
        self._file.write(view[half:])
        self._file.flush()
        self._reach(f"{kind}: written")
        return len(view)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def kind_of(content: bytes) -> str:
    """What a file is, by how it begins."""
    for kind, start in {"checkpoint": b"PK", "table": b"PAR1", "picture": b"\x89PNG"}.items():
        if content.startswith(start):
            return kind
    return "tensors" if content[8:9] == b"{" else "text"  # safetensors: a length of 8 bytes, JSON


def _folder(path: Any) -> str:
    return os.path.dirname(os.path.abspath(path))
