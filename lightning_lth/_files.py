"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open anywhere
    fcntl = None  # type: ignore[assignment]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, then rename it.

    What killed processes have left of earlier attempts to write the same file is removed.

    Args:
        path: The file; it is replaced if it exists, and its folders are made.
        content: All of it.

    Raises:
        OSError: If it cannot be written; says which file. What was there before is untouched.
    """
    partial = path.with_name(f"{_start(path)}{uuid.uuid4().hex}.partial")
    try:
        with errors_name(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                with contextlib.suppress(OSError):  # where files cannot be locked
                    _lock(file)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a folder that may be written to but not read
        _remove_abandoned(path)


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let errors tell the file that is being written; those of a full disk name none.

    Raises:
        OSError: Of the same kind, and from the same cause.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        message = f"{error.strerror}. Nothing of this file was written"
        raise OSError(error.errno, message, str(path)) from error


def rename_whole(partial: Path, path: Path) -> None:
    """Flush a file to the disk that others have written under a temporary name; then rename it."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _start(path: Path) -> str:
    return f".{path.name[:50]}."  # short: a name may have 255 bytes


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of ``path`` that no process holds.

    Empty ones stay: a process may have made them just now, and be about to lock them.
    """
    for one in path.parent.iterdir():
        is_ours = one.name.startswith(_start(path)) and one.name.endswith(".partial")
        if is_ours and one.stat().st_size > 0:
            with contextlib.suppress(OSError):
                with one.open("rb") as file:
                    _lock(file)
                one.unlink()


def _lock(file: IO[bytes]) -> None:
    """Hold a file until it is closed, or the process ends.

    Raises:
        OSError: If another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
