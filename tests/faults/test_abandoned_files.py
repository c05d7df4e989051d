"""What killed processes have left of a file goes away; what others are writing stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lightning_lth._files import _lock, write_whole


def test_the_next_write_of_the_same_file_removes_what_was_abandoned(tmp_path: Path) -> None:
    (tmp_path / ".file.bin.0123.partial").write_bytes(b"half")
    (tmp_path / ".other.bin.0123.partial").write_bytes(b"half")
    write_whole(tmp_path / "file.bin", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".other.bin.0123.partial",
        "file.bin",
    ]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    """A lock of another open file is as good as one of another process; an empty file has none."""
    pytest.importorskip("fcntl")
    (tmp_path / ".file.bin.0123.partial").touch()
    with (tmp_path / ".file.bin.4567.partial").open("xb") as file:
        _lock(file)
        file.write(b"half")
        file.flush()
        write_whole(tmp_path / "file.bin", b"content")
        assert len(list(tmp_path.iterdir())) == 3


def test_a_file_is_locked_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "file.bin"

    def another_writes(descriptor: int) -> None:
        monkeypatch.undo()
        write_whole(path, b"another")

    monkeypatch.setattr(os, "fsync", another_writes)
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_locked_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".file.bin.0123.partial").write_bytes(b"half")
    write_whole(tmp_path / "file.bin", b"content")
    assert (tmp_path / "file.bin").read_bytes() == b"content"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_names_the_file_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device.*file\.bin'") as raised:
        write_whole(tmp_path / "file.bin", b"content")
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "file.bin")


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, b"content")
    assert list(tmp_path.iterdir()) == [path]
