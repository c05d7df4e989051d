"""Any of several criteria, all of them, and over several metrics."""

from __future__ import annotations

import pytest

from lightning_lth.stopping import AllOf, AnyOf, Patience, StopReason, Target
from tests.stopping.curves import first_stop, record, stop_index

# Patience(2) says stop at index 3 (the best is at index 1) and goes on saying so; Target(0.5, "f1",
# "max") says so at indices 2 and 4 alone.
VALIDATIONS = record([3, 1, 2, 2, 2], f1=[0.1, 0.2, 0.6, 0.4, 0.7])
PATIENCE, TARGET = Patience(2), Target(0.5, "f1", "max")


@pytest.mark.parametrize(
    ("criterion", "index", "reason"),
    [
        (AnyOf(PATIENCE, TARGET), 2, StopReason.TARGET),
        (AnyOf(PATIENCE), 3, StopReason.PATIENCE),
        (AllOf(PATIENCE, TARGET), 4, StopReason.PATIENCE),
        (AllOf(TARGET, PATIENCE), 4, StopReason.TARGET),
        (AllOf(TARGET), 2, StopReason.TARGET),
        (AllOf(AnyOf(PATIENCE, TARGET), Target(2.5)), 2, StopReason.TARGET),
        (AnyOf(AllOf(PATIENCE, TARGET), Target(0.5)), 4, StopReason.PATIENCE),
    ],
)
def test_where_they_stop(criterion: AnyOf | AllOf, index: int, reason: StopReason) -> None:
    first = first_stop(criterion, VALIDATIONS)
    assert first is not None
    assert (first[0], first[1].reason) == (index, reason)


def test_the_first_that_says_so_gives_the_reason() -> None:
    for criteria, reason in (
        ((PATIENCE, TARGET), StopReason.PATIENCE),
        ((TARGET, PATIENCE), StopReason.TARGET),
    ):
        stop = AnyOf(*criteria)(VALIDATIONS)
        assert stop is not None
        assert stop.reason is reason


def test_all_reasons_are_told() -> None:
    stop = AllOf(TARGET, PATIENCE)(VALIDATIONS)
    assert stop is not None
    assert stop.message == (
        "f1 = 0.7 has reached its target: > 0.5; and "
        "loss has not improved for 3 validations; the best was 1 at step 10"
    )


def test_nothing_is_said_of_nothing() -> None:
    assert stop_index(AnyOf(PATIENCE, TARGET), record([3, 2], f1=[0.1, 0.2])) is None
    assert AnyOf(PATIENCE, TARGET)(record([])) is None
    assert AllOf(PATIENCE, TARGET)(record([])) is None


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
def test_at_least_one_is_needed(kind: type[AnyOf] | type[AllOf]) -> None:
    message = r"Give at least one criterion, e\.g\. `AnyOf\(Patience\(3\), Target\(0\.1\)\)`\."
    with pytest.raises(ValueError, match=message):
        kind()


def test_they_show_what_they_are_made_of() -> None:
    target = "Target(threshold=0.5, monitor='f1', mode='max')"
    assert repr(AnyOf(AllOf(TARGET), TARGET)) == f"AnyOf(AllOf({target}), {target})"
