"""What may happen to a file on its way, or be put into one on purpose."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

OURS = (ValueError, FileNotFoundError, IsADirectoryError, RuntimeError)
"""Exactly these, not what is derived from them, such as ``UnicodeDecodeError``."""

TEXTS = st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "!!python/object/apply:os.abort []",
        "[1,",
        "*a",
        "a\nb",
        "\x1b[2J",
        "nan",
        "1e999",
        "[/b]",
    ]
) | st.text(max_size=5)
NUMBERS = (
    st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400])
    | st.integers()
    | st.floats()
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
"""Whatever JSON can hold."""

_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "insert", "delete", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some of its bytes cut off, flipped, added, left out or said twice."""
    return _EDITS.map(lambda edits: _edited(content, edits))


def _edited(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, extra in edits:
        at = int(where * len(content))
        before, here, after = (
            content[:at],
            content[at : at + len(extra)],
            content[at + len(extra) :],
        )
        flipped = bytes(a ^ (b or 1) for a, b in zip(here, extra, strict=False))
        content = {
            "cut": before,
            "flip": before + flipped + after,
            "insert": before + extra + here + after,
            "delete": before + after,
            "repeat": before + here + here + after,
        }[kind]
    return content


def read_or_refuse(read: Callable[[Path], Any], path: Path) -> Any:
    """What is read, or ``None`` if it is refused as it should be."""
    try:
        return read(path)
    except Exception as error:
        if type(error) not in OURS or str(path) not in str(error):
            raise
        return None


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def attacks(marker: Path) -> list[bytes]:
    """Contents that make a folder where pickles are loaded, or YAML is not loaded safely."""
    pickled = pickle.dumps(_Attack(marker))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:  # as torch.save writes
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("../../x", b"")
    names = ["os.mkdir", "posix.mkdir"]
    texts = [f"!!python/object/apply:{name} ['{marker}']" for name in names]
    texts += [f"name: {text}" for text in texts] + [f"? {text}\n: 1" for text in texts]
    return [pickled, zipped.getvalue(), *(text.encode() for text in texts)]
