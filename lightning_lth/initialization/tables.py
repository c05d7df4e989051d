"""Rows of values as aligned text."""

from __future__ import annotations

from collections.abc import Sequence


def text(value: object) -> str:
    """A cell: numbers with four digits, nothing for None.

    Examples:
        >>> text(0.176777), text(None), text("relu")
        ('0.1768', '', 'relu')
    """
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which every column has one width.

    Examples:
        >>> aligned([("name", "std"), ("0.weight", "1")])
        ['name      std', '0.weight  1']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows if cells]
