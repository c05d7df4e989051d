"""What is known of each layer's signal, as rows and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from lightning_lth.initialization.tables import aligned, text


@final
@dataclass(frozen=True)
class LayerSignal:
    """One call of a layer, over all examples and units of its (first) output.

    Attributes:
        name: Of the module; of an activation function ``block1.relu``, after the module that calls
            it. The second call of the same is ``block1.relu (2)``.
        type: Class of the module, or name of the function.
        activation_mean: Mean of the output.
        activation_std: Its standard deviation.
        activation_rms: Its root mean square.
        gradient_mean: Mean of the gradient with respect to the output; ``None`` if none arrives.
        gradient_std: Its standard deviation.
        dead: Share of units (channels) that are 0 for the whole batch; ``None`` unless the layer is
            a ReLU, ReLU6 or hardswish.
        saturated: Share of outputs at a limit, for tanh beyond +-0.99, for sigmoid beyond 0.01 and
            0.99; ``None`` if there is no limit.
        smallest_singular_value: Of d output / d input at the first example, if asked for.
        largest_singular_value: Likewise.
        note: Why singular values are missing.

    Examples:
        >>> import torch
        >>> from lightning_lth.initialization.signal import signal_propagation
        >>> signal_propagation(torch.nn.ReLU(), torch.tensor([[3.0, -3.0]]))["ReLU"].dead
        0.5
    """

    name: str
    type: str
    activation_mean: float
    activation_std: float
    activation_rms: float
    gradient_mean: float | None = None
    gradient_std: float | None = None
    dead: float | None = None
    saturated: float | None = None
    smallest_singular_value: float | None = None
    largest_singular_value: float | None = None
    note: str | None = None


@final
@dataclass(frozen=True)
class SignalReport:
    """The layers in order of execution; prints as a table.

    Attributes:
        rows: One for each call of a layer.
        singular_values: Smallest and largest of d output / d input of the whole network at the
            first example, if asked for.
        note: Why these are missing.

    Examples:
        >>> import torch
        >>> from lightning_lth.initialization.signal import signal_propagation
        >>> print(signal_propagation(torch.nn.ReLU(), torch.tensor([[3.0, -3.0]])))
        name  type  activation mean  activation std  activation rms  dead
        ReLU  ReLU  1.5              1.5             2.121           0.5
    """

    rows: tuple[LayerSignal, ...]
    singular_values: tuple[float, float] | None = None
    note: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerSignal]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> LayerSignal:
        """The row of a layer.

        Raises:
            KeyError: If there is no such layer.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        rows = self.to_dicts()
        names = [field.name for field in dataclasses.fields(LayerSignal)]
        shown = [name for name in names if any(row[name] is not None for row in rows)]
        header = [name.replace("_", " ") for name in shown]
        lines = aligned([header, *([text(row[name]) for name in shown] for row in rows)])
        if self.singular_values is not None:
            smallest, largest = map(text, self.singular_values)
            lines.append(f"Singular values of the network: {smallest} to {largest}")
        elif self.note is not None:
            lines.append(f"No singular values of the network: {self.note}")
        return "\n".join(lines)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Each row as a dictionary of plain values, e.g. for a pandas data frame."""
        return [dataclasses.asdict(row) for row in self.rows]
