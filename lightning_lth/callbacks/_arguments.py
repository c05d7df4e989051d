"""Checks of constructor arguments: the rule, the value received, the next move."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Refuse anything but an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value!r}.")


def check_function(name: str, value: object, example: str) -> None:
    """Refuse anything that cannot be called."""
    if not callable(value):
        raise TypeError(f"`{name}` must be a function, such as {example}, got {value!r}.")


def check_rounds(rounds: object) -> None:
    """Refuse anything but a list of pruning rounds."""
    if not isinstance(rounds, Collection) or isinstance(rounds, str):
        raise TypeError(f"`rounds` lists pruning rounds, such as `(0, 3)`, got {rounds!r}.")
    for round_ in rounds:
        check_at_least("rounds", round_, 0)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse anything but one of ``choices``."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def check_mode(mode: str, monitor: str | None) -> None:
    """Refuse anything but ``"min"`` and ``"max"``, and a mode that would have no effect."""
    check_choice("mode", mode, ("min", "max"))
    if mode != "min" and monitor is None:
        raise ValueError(
            f"`mode` is for `monitor`, which is not given, got {mode!r}. Name the metric, too; one "
            "of EarlyStopping or ModelCheckpoint has its mode from there."
        )


def check_fraction(name: str, value: float, *, is_zero_allowed: bool) -> None:
    """Refuse anything but a number in (0, 1), or [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not (0 <= value < 1 if is_zero_allowed else 0 < value < 1):
        interval = "[0, 1)" if is_zero_allowed else "(0, 1)"
        hint = f" Percentages are written as fractions: {value / 100}." if 1 < value < 100 else ""
        raise ValueError(f"`{name}` must be in {interval}, got {value}.{hint}")


def check_fractions(fraction: float, fractions: Mapping[str, float] | None) -> None:
    """Refuse fractions that are not in (0, 1); those by pattern may be 0."""
    check_fraction("fraction", fraction, is_zero_allowed=False)
    for pattern, share in (fractions or {}).items():
        check_fraction(f"fractions[{pattern!r}]", share, is_zero_allowed=True)


def check_rewind_point(step: int, epoch: int | None) -> None:
    """Refuse anything but a step, or an epoch in its place."""
    check_at_least("rewind_step", step, 0)
    if epoch is None:
        return
    check_at_least("rewind_epoch", epoch, 0)
    if step != 0:
        raise ValueError(f"Give `rewind_step` or `rewind_epoch`, not both, got {step} and {epoch}.")
