"""Reading what may have come from anywhere: JSON, YAML and Parquet that are right, or refused."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]
from pandas.api.types import is_integer_dtype, is_numeric_dtype  # type: ignore[import-untyped]
from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

from lightning_lth.study.design import Settings

_MOST_CHARACTERS = 1_000_000  # of a config whose aliases are written out
_MOST_CELLS = 1_000_000  # of a table, and 20 more for each byte of its file
_NEEDED = ("arm", "seed", "round", "density")
TEXTS = ("arm", "layer", "stop_reason")
"""Columns of tables that hold no numbers."""
_INTEGERS = ("seed", "draw", "round", "step")


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON.
    """
    try:
        return json.loads(path.read_bytes().decode())
    except (RecursionError, ValueError) as error:
        raise ValueError(
            f"'{path}' must hold JSON, and is damaged: {error}. Restore it, or delete it."
        ) from error


def read_config(path: Path) -> Settings:
    """A YAML file with keys and values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML, holds something else, or its aliases make it huge.
    """
    content = path.read_bytes()
    try:
        text = content.decode()
        _check_written_out(yaml.compose(text, yaml.SafeLoader))
        settings = yaml.safe_load(text)
    except Exception as error:  # PyYAML lets through whatever a value leads to
        raise ValueError(f"'{path}' must hold YAML, and does not: {error!r}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"'{path}' must hold keys and values, got {type(settings).__name__}.")
    return settings


def _check_written_out(node: yaml.Node | None) -> None:
    if node is not None and _num_characters(node, {}) > _MOST_CHARACTERS:
        raise ValueError(
            f"With its aliases written out it must have at most {_MOST_CHARACTERS:,} characters. "
            "Remove aliases (`*name`)."
        )


def _num_characters(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """About the length with aliases written out; infinite if a node holds itself."""
    if node not in known:
        known[node] = inf
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        is_text = isinstance(node, yaml.ScalarNode)
        length = len(parts) if is_text else sum(_num_characters(part, known) for part in parts)
        known[node] = 1 + length
    return known[node]


def read_table(path: Path) -> pd.DataFrame:
    """A table of a job.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    size = path.stat().st_size
    try:
        _check_num_cells(path, _MOST_CELLS + 20 * size)
        frame = pd.read_parquet(path)
        _check_columns(frame)
    except Exception as error:  # Arrow lets through whatever damage leads to
        raise ValueError(
            f"The table '{path}' is damaged: {error} "
            "Remove the folder that it is in, and run the study again."
        ) from error
    return frame


def _check_num_cells(path: Path, most: int) -> None:
    """Refuse a few bytes that unfold to more than the memory holds."""
    with ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        num_rows = max(file.metadata.num_rows, sum(group.num_rows for group in groups))
        num_cells = num_rows * file.metadata.num_columns
    if num_cells > most:
        raise ValueError(f"A file of its size holds at most {most:,} cells, got {num_cells:,}.")


def _check_columns(frame: pd.DataFrame) -> None:
    names = list(frame.columns)
    if len(set(names)) < len(names) or not set(_NEEDED) <= set(names):
        raise ValueError(f"It must have the columns {_NEEDED} and none twice, got {names}.")
    wrong = [name for name in names if not _is_right(name, frame[name])]
    if wrong:
        raise ValueError(f"The columns {wrong} hold other values than a training gives.")


def _is_right(name: str, column: pd.Series) -> bool:
    if name in TEXTS:
        return all(isinstance(value, str) for value in column)
    if name == "density":
        return is_numeric_dtype(column) and bool(column.between(0, 1).all())
    if name in _INTEGERS:
        return bool(is_integer_dtype(column))
    return bool(is_numeric_dtype(column) or column.isna().all())
