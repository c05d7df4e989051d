"""What is in files and values, so that two runs can be compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open


def contents(folder: Path, *suffixes: str) -> dict[str, object]:
    """Contents by name of the files with these endings; of tensor files, in any order."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes and path.is_file()
    }


def _content(path: Path) -> object:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())}
        return tensors, file.metadata()


def plain(value: Any) -> Any:
    """The same value with the bytes of its tensors and numbers, which `==` compares, NaN included.

    Example:
        >>> nan = {"a": [torch.tensor(float("nan"))]}
        >>> plain(nan) == plain(nan), plain([0.0]) == plain([-0.0])
        (True, False)
    """
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.hex() if isinstance(value, float) else value


def partial_files(folder: Path) -> list[str]:
    """Names of files that a write has begun and not ended."""
    return sorted(str(one.relative_to(folder)) for one in folder.rglob(".*.partial"))


def assert_rows_close(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Tables of one dictionary per row; numbers to within a thousandth."""
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            is_number = isinstance(value, float)
            assert value == (pytest.approx(other[name], rel=1e-3) if is_number else other[name])
