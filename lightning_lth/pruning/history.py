"""What each round of pruning did: one record per round, exportable as a table."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final, overload

from lightning_lth._files import write_whole

RoundEnd = Literal["max_epochs", "max_steps", "early_stopping", "should_stop"]


@final
@dataclass(frozen=True)
class RoundRecord:
    """One round: how sparse, how long, and how good.

    Attributes:
        round: 0 is the dense network.
        density: Share of the prunable weights that survive, in [0, 1].
        layer_densities: The same by parameter name.
        steps: Optimizer steps from initialization to the end of the round; a late-rewound round
            counts the steps before the rewind point as well.
        epochs: Epochs, counted likewise; one that was cut short counts as one.
        stop_reason: What ended the round.
        monitor: Name of the monitored metric; ``None`` if nothing was.
        best_value: Its best value over the validations of the round, the first of equals.
        best_step: Optimizer step of that validation: the early-stopping iteration of the papers.
        best_metrics: All metrics at that validation.
        metrics: All metrics at the end of the round.

    Examples:
        >>> record = RoundRecord(1, 0.8, {"w": 0.8}, 100, 4, "max_epochs", metrics={"acc": 0.9})
        >>> record.row()["density/w"], record.row()["end/acc"]
        (0.8, 0.9)
    """

    round: int
    density: float
    layer_densities: Mapping[str, float]
    steps: int
    epochs: int
    stop_reason: RoundEnd
    monitor: str | None = None
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The record as one flat row: ``density/NAME``, ``best/METRIC``, ``end/METRIC`` columns."""
        row = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("layer_densities", "best_metrics", "metrics")
        }
        row |= {f"density/{name}": value for name, value in self.layer_densities.items()}
        row |= {f"best/{name}": value for name, value in self.best_metrics.items()}
        return row | {f"end/{name}": value for name, value in self.metrics.items()}


@final
@dataclass(frozen=True)
class BestValue:
    """The best validation of a round: which metric, its value, when, and all metrics then."""

    monitor: str
    value: float
    step: int
    metrics: Mapping[str, float]

    @staticmethod
    def is_better(value: float, best: BestValue | None, mode: str) -> bool:
        """Whether ``value`` beats ``best``; the first of equals stays, and NaN beats nothing."""
        if best is None:
            return not math.isnan(value)
        return value < best.value if mode == "min" else value > best.value

    def state_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


@final
class History(Sequence[RoundRecord]):
    """The records of all finished rounds, oldest first.

    Examples:
        >>> history = History()
        >>> history.append(RoundRecord(0, 1.0, {"w": 1.0}, 100, 4, "max_epochs"))
        >>> history[0].density
        1.0
        >>> print(history)
        round  density  steps  epochs  stop_reason  monitor  best_value  best_step
            0   1.0000    100       4   max_epochs        -           -          -
    """

    def __init__(self, records: Sequence[RoundRecord] = ()) -> None:
        self._records = list(records)

    @overload
    def __getitem__(self, index: int) -> RoundRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[RoundRecord]: ...
    def __getitem__(self, index: int | slice) -> RoundRecord | list[RoundRecord]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RoundRecord]:
        return iter(self._records)

    def append(self, record: RoundRecord) -> None:
        """Add the record of the next round."""
        self._records.append(record)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per round, e.g. for ``pandas.DataFrame(history.rows())``."""
        return [record.row() for record in self]

    def state_dict(self) -> list[dict[str, Any]]:
        """The records as dictionaries of numbers and strings, for a checkpoint."""
        return [dataclasses.asdict(record) for record in self]

    @classmethod
    def from_state_dict(cls, state_dict: Sequence[Mapping[str, Any]]) -> History:
        """The history that ``state_dict`` described."""
        return cls([RoundRecord(**record) for record in state_dict])

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV, whole or not at all; a value that a round lacks is empty."""
        path = Path(path)
        columns = list(dict.fromkeys(column for row in self.rows() for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        write_whole(path, text.getvalue().encode())
        return path

    def __str__(self) -> str:
        rows = [[_cell(value) for value in list(record.row().values())[:8]] for record in self]
        header = ["round", "density", "steps", "epochs", "stop_reason", "monitor"]
        table = [[*header, "best_value", "best_step"], *rows]
        widths = [max(len(row[i]) for row in table) for i in range(8)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in table
        )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
