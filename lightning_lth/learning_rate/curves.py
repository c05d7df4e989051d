"""What a sweep measured: one loss for each value of a hyperparameter."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_lth._files import write_whole

DEFAULT_SMOOTHING = 0.98  # Gugger 2018, as in fastai


@final
class DebiasedMean:
    """Exponential moving average without a pull towards its start at 0.

    After ``n`` values it is ``avg / (1 - beta**n)``, so the first average is the first value.

    Args:
        beta: Weight of the past, in [0, 1). 0 gives the last value.

    Raises:
        ValueError: If ``beta`` is outside [0, 1).

    Examples:
        >>> mean = DebiasedMean(0.5)
        >>> mean.update(3.0), mean.update(6.0)  # (0.25 * 3 + 0.5 * 6) / (1 - 0.25)
        (3.0, 5.0)

    Source:
        Gugger 2018, https://sgugger.github.io/how-do-you-find-a-good-learning-rate.html.
    """

    def __init__(self, beta: float = DEFAULT_SMOOTHING) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"`beta` must be in [0, 1), got {beta!r}. 0 does not smooth at all.")
        self.beta = beta
        self.num_values = 0
        self._average = 0.0

    def update(self, value: float) -> float:
        """The average including ``value``; one that is NaN or infinite is skipped."""
        if math.isfinite(value):
            self.num_values += 1
            self._average = self.beta * self._average + (1 - self.beta) * value
        if self.num_values == 0:
            return math.nan
        return self._average / (1 - self.beta**self.num_values)


@final
@dataclass(frozen=True)
class Curve:
    """The loss at each value that a sweep tried.

    Attributes:
        parameter: What was varied: ``"lr"``, ``"momentum"``, ``"weight_decay"``.
        values: Its values, finite and increasing.
        losses: The loss measured with each value, not smoothed; may be NaN or infinite.

    Raises:
        ValueError: If there are no values, not as many losses, or the values do not increase.

    Examples:
        >>> curve = Curve("lr", (0.1, 0.2, 0.4), (3.0, 6.0, float("nan")))
        >>> curve.smoothed(beta=0.5)
        (3.0, 5.0, 5.0)
    """

    parameter: str
    values: tuple[float, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("values", "losses"):  # plain numbers, whatever array they came in
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not self.values:
            raise ValueError("A curve has at least one point, got no `values`.")
        if len(self.values) != len(self.losses):
            raise ValueError(
                "A curve has one loss for each value, "
                f"got {len(self.values)} `values` and {len(self.losses)} `losses`."
            )
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"`values` must be finite, got {self.values}.")
        for left, right in zip(self.values, self.values[1:], strict=False):
            if left >= right:
                raise ValueError(
                    f"`values` must increase, got {left!r} before {right!r}. "
                    "Sort the points by value, and keep one of equals."
                )

    def __len__(self) -> int:
        return len(self.values)

    def smoothed(self, beta: float = DEFAULT_SMOOTHING) -> tuple[float, ...]:
        """Debiased exponential moving average of the losses.

        A loss that is NaN or infinite is skipped: its point repeats the average before it.

        Args:
            beta: Weight of the past, in [0, 1).

        Returns:
            One average for each value; NaN before the first finite loss.
        """
        mean = DebiasedMean(beta)
        return tuple(mean.update(loss) for loss in self.losses)

    def to_dict(self) -> dict[str, Any]:
        """The fields as strings, lists and numbers; NaN and infinities as strings, for JSON."""
        losses = [loss if math.isfinite(loss) else str(loss) for loss in self.losses]
        return {"parameter": self.parameter, "values": list(self.values), "losses": losses}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Curve:
        """The curve that ``to_dict`` described."""
        return cls(fields["parameter"], tuple(fields["values"]), tuple(fields["losses"]))

    def to_csv(self, path: str | Path) -> Path:
        """Write value, loss and smoothed loss as CSV, whole or not at all."""
        path = Path(path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([self.parameter, "loss", "smoothed_loss"])
        writer.writerows(zip(self.values, self.losses, self.smoothed(), strict=True))
        write_whole(path, text.getvalue().encode())
        return path
