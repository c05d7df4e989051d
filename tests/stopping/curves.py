"""Curves for the tests of the stopping criteria."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_lth.stopping import Criterion, Stop, Validation, Validations
from lightning_lth.stopping.validations import Mode


def record(
    values: Sequence[float],
    *,
    mode: Mode = "min",
    train: Sequence[float | None] | None = None,
    steps: Sequence[int] | None = None,
    epochs: Sequence[int] | None = None,
    **metrics: Sequence[float],
) -> Validations:
    """Validations of `loss`; by default every 10 steps, one an epoch, without training loss."""
    validations = Validations("loss", mode)
    for i, value in enumerate(values):
        validations.append(
            Validation(
                step=10 * i if steps is None else steps[i],
                epoch=i if epochs is None else epochs[i],
                value=value,
                train_loss=None if train is None else train[i],
                metrics={name: series[i] for name, series in metrics.items()},
            )
        )
    return validations


def first_stop(criterion: Criterion, validations: Validations) -> tuple[int, Stop] | None:
    """Index of the first validation at which training would have been stopped, and why."""
    for end in range(1, len(validations) + 1):
        prefix = Validations(validations.monitor, validations.mode, validations[:end])
        stop = criterion(prefix)
        if stop is not None:
            return end - 1, stop
    return None


def stop_index(criterion: Criterion, validations: Validations) -> int | None:
    """The index alone."""
    first = first_stop(criterion, validations)
    return None if first is None else first[0]
