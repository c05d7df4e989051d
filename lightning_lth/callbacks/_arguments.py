"""Checks of constructor arguments: the rule, the value received, the next move."""

from __future__ import annotations


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Refuse anything but an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value!r}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse anything but one of ``choices``."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def check_fraction(name: str, value: float, *, is_zero_allowed: bool) -> None:
    """Refuse anything but a number in (0, 1), or [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not (0 <= value < 1 if is_zero_allowed else 0 < value < 1):
        interval = "[0, 1)" if is_zero_allowed else "(0, 1)"
        hint = f" Percentages are written as fractions: {value / 100}." if 1 < value < 100 else ""
        raise ValueError(f"`{name}` must be in {interval}, got {value}.{hint}")
