"""What an initialization did to each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, final

from lightning_lth.initialization.tables import aligned, text


@final
@dataclass(frozen=True)
class InitializedParameter:
    """One parameter, or an attribute that is computed from parameters.

    Attributes:
        name: As in ``named_parameters`` without parametrizations, e.g. ``"0.weight"``.
        type: Class of its layer.
        rule: What drew it; None if it was skipped.
        fan: The fan that its scale was derived from.
        gain: The gain that its scale was derived from.
        activation: The nonlinearities that follow; None where it does not matter or is not known.
        std_before: Standard deviation of what the layer computed with before; of a million values
            of it, where there are more.
        std_after: The same afterwards.
        note: Why it was skipped, or what else there is to know.

    Examples:
        >>> InitializedParameter("0.bias", "Linear", "zeros", std_before=0.1, std_after=0.0).fan
    """

    name: str
    type: str
    rule: str | None
    fan: float | None = None
    gain: float | None = None
    activation: str | None = None
    std_before: float | None = None
    std_after: float | None = None
    note: str = ""


@final
@dataclass(frozen=True)
class InitializationReport:
    """One row for each parameter, in the order of the module; prints as a table.

    Attributes:
        rows: The rows.
        seed: The seed that all values depend on.

    Examples:
        >>> row = InitializedParameter("0.weight", "Linear", "he", 64.0, 1.41, "relu", 0.072, 0.177)
        >>> print(InitializationReport((row,), seed=0))
        name      type    rule  fan  gain  activation  std before  std after  note
        0.weight  Linear  he    64   1.41  relu        0.072       0.177
        1 parameter initialized, 0 skipped; seed 0
    """

    rows: tuple[InitializedParameter, ...]
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[InitializedParameter]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> InitializedParameter:
        """The row of a parameter.

        Raises:
            KeyError: If there is no such parameter.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def skipped(self) -> tuple[InitializedParameter, ...]:
        """The parameters that were left as they were."""
        return tuple(row for row in self.rows if row.rule is None)

    def __str__(self) -> str:
        table = [_HEADER, *(_cells(row) for row in self.rows)]
        return "\n".join([*aligned(table), self.summary()])

    def to_markdown(self) -> str:
        """The table in Markdown, as TensorBoard's text tab shows it."""
        rows = [_HEADER, tuple("---" for _ in _HEADER), *(_cells(row) for row in self.rows)]
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        return "\n".join([*lines, "", self.summary()])

    def to_dicts(self) -> list[dict[str, Any]]:
        """Each row as a dictionary of plain values, e.g. for a pandas data frame."""
        return [asdict(row) for row in self.rows]

    def summary(self) -> str:
        """How many parameters were initialized and skipped, in a line."""
        skipped = len(self.skipped)
        done = len(self.rows) - skipped
        noun = "parameter" if done == 1 else "parameters"
        return f"{done} {noun} initialized, {skipped} skipped; seed {self.seed}"


_HEADER = tuple(field.name.replace("_", " ") for field in fields(InitializedParameter))


def _cells(row: InitializedParameter) -> tuple[str, ...]:
    return tuple(text(value) for value in asdict(row).values())
