"""Numbers by step, layer and statistic, in bounded memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any, final


@final
class Table:
    """Keeps at most ``capacity`` steps: when full, every other one goes, and so from then on.

    Args:
        capacity: At least 2. TensorBoard shows 1000 points of a curve.

    Raises:
        ValueError: If ``capacity`` is less than 2.

    Examples:
        >>> table = Table(capacity=4)
        >>> for step in range(9):
        ...     table.add(step, {("bn", "dead"): step / 10})
        >>> [row["step"] for row in table.rows()]
        [0, 4, 8]
        >>> table.latest
        {'bn': {'dead': 0.8}}
    """

    def __init__(self, capacity: int = 1000) -> None:
        if capacity < 2:
            raise ValueError(f"`capacity` must be at least 2, got {capacity}.")
        self.capacity = capacity
        self.latest: dict[str, dict[str, float]] = {}
        self._steps = array("q")
        self._columns: dict[tuple[str, str], array[float]] = {}
        self._last_step: int | None = None
        self._num_steps = 0
        self._stride = 1
        self._is_kept = False

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> list[int]:
        """The steps that are kept."""
        return list(self._steps)

    def add(self, step: int, numbers: Mapping[tuple[str, str], float]) -> None:
        """Add the numbers of a step, by ``(layer, statistic)``; more of the last step join them."""
        for (layer, statistic), value in numbers.items():
            self.latest.setdefault(layer, {})[statistic] = value
        if step != self._last_step:
            self._last_step = step
            self._start(step)
        if self._is_kept:
            self._fill(numbers)

    def series(self, layer: str, statistic: str) -> list[float]:
        """One statistic of one layer at all ``steps``; NaN where it was not there."""
        missing = array("f", [math.nan]) * len(self._steps)
        return list(self._columns.get((layer, statistic), missing))

    def rows(self) -> list[dict[str, Any]]:
        """One row for each step and layer, e.g. for ``pandas.DataFrame``."""
        layers: dict[str, dict[str, array[float]]] = {}
        for (layer, statistic), column in self._columns.items():
            layers.setdefault(layer, {})[statistic] = column
        rows = []
        for index, step in enumerate(self._steps):
            for layer, columns in layers.items():
                values = {name: column[index] for name, column in columns.items()}
                present = {name: one for name, one in values.items() if not math.isnan(one)}
                if present:
                    rows.append({"step": step, "layer": layer, **present})
        return rows

    def _start(self, step: int) -> None:
        if self._num_steps % self._stride == 0 and len(self._steps) == self.capacity:
            self._thin_out()
        self._is_kept = self._num_steps % self._stride == 0
        self._num_steps += 1
        if self._is_kept:
            self._steps.append(step)
            for column in self._columns.values():
                column.append(math.nan)

    def _fill(self, numbers: Mapping[tuple[str, str], float]) -> None:
        for name, value in numbers.items():
            if name not in self._columns:
                self._columns[name] = array("f", [math.nan]) * len(self._steps)
            self._columns[name][-1] = value

    def _thin_out(self) -> None:
        self._stride *= 2
        self._steps = self._steps[::2]
        self._columns = {name: column[::2] for name, column in self._columns.items()}
