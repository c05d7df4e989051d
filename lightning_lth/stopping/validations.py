"""What the validations of one training gave, and which was the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final, overload

Mode = Literal["min", "max"]


@final
@dataclass(frozen=True)
class Validation:
    """One validation.

    Attributes:
        step: Optimizer steps taken before it; 0 is before the first.
        epoch: Epoch in which it ran, from 0.
        value: Of the monitored metric.
        train_loss: Mean training loss since the validation before; None if no step gave one.
        metrics: All that was logged by then.

    Examples:
        >>> Validation(step=100, epoch=1, value=0.5).value
        0.5
    """

    step: int
    epoch: int
    value: float
    train_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@final
class Validations(Sequence[Validation]):
    """The validations of one training, oldest first.

    Args:
        monitor: Name of the metric that counts.
        mode: Whether its smallest (``"min"``) or its largest value (``"max"``) is the best.
        validations: Those so far.

    Examples:
        >>> validations = Validations("val_loss", "min")
        >>> for step, value in [(0, 2.3), (100, 0.5), (200, 0.4), (300, 0.4)]:
        ...     validations.append(Validation(step, epoch=step // 100, value=value))
        >>> validations.best.step  # the first of equals
        200
    """

    def __init__(self, monitor: str, mode: Mode, validations: Sequence[Validation] = ()) -> None:
        self.monitor = monitor
        self.mode: Mode = mode
        self._validations: list[Validation] = []
        self._best: Validation | None = None
        for validation in validations:
            self.append(validation)

    @overload
    def __getitem__(self, index: int) -> Validation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Validation]: ...
    def __getitem__(self, index: int | slice) -> Validation | list[Validation]:
        return self._validations[index]

    def __len__(self) -> int:
        return len(self._validations)

    def __iter__(self) -> Iterator[Validation]:
        return iter(self._validations)

    @property
    def best(self) -> Validation | None:
        """The first of the best; None as long as every value is NaN."""
        return self._best

    def append(self, validation: Validation) -> None:
        """Add the next validation."""
        self._validations.append(validation)
        is_nan = math.isnan(validation.value)
        best = self._best
        if not is_nan and (best is None or is_better(validation.value, best.value, self.mode)):
            self._best = validation

    def values(self, monitor: str | None = None) -> list[float]:
        """The values of the monitored metric, or of another one, oldest first.

        Raises:
            RuntimeError: If a validation lacks the metric.
        """
        if monitor is None or monitor == self.monitor:
            return [validation.value for validation in self]
        for validation in self:
            if monitor not in validation.metrics:
                raise RuntimeError(
                    f"`monitor={monitor!r}` was not logged at the validation of step "
                    f"{validation.step}. Logged: {sorted(validation.metrics)}."
                )
        return [validation.metrics[monitor] for validation in self]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each validation, e.g. for ``pandas.DataFrame``.

        A metric with the name of another column, such as ``step``, is called ``metric/step``.

        Examples:
            >>> Validations("loss", "min", [Validation(0, 0, 2.3, None, {"acc": 0.1})]).rows()
            [{'step': 0, 'epoch': 0, 'value': 2.3, 'train_loss': None, 'acc': 0.1}]
        """
        return [_row(validation) for validation in self]

    def state_dict(self) -> list[dict[str, Any]]:
        """The validations as dictionaries of numbers and strings."""
        return [dataclasses.asdict(validation) for validation in self]

    @classmethod
    def from_state_dict(
        cls, monitor: str, mode: Mode, state_dict: Sequence[Mapping[str, Any]]
    ) -> Validations:
        """The validations that ``state_dict`` described."""
        return cls(monitor, mode, [Validation(**validation) for validation in state_dict])


def _row(validation: Validation) -> dict[str, Any]:
    row = dataclasses.asdict(validation)
    metrics = row.pop("metrics").items()
    return row | {f"metric/{name}" if name in row else name: value for name, value in metrics}


def is_better(value: float, other: float, mode: Mode, *, margin: float = 0.0) -> bool:
    """Whether ``value`` beats ``other`` by more than ``margin``; NaN beats nothing.

    Examples:
        >>> is_better(0.5, 0.6, "min"), is_better(0.5, 0.6, "min", margin=0.2)
        (True, False)
    """
    return value + margin < other if mode == "min" else value - margin > other
