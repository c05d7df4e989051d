"""Several criteria as one."""

from __future__ import annotations

from typing import final

from lightning_lth.stopping.decision import Criterion, Stop
from lightning_lth.stopping.validations import Validations


@final
class AnyOf:
    """Stop when one of several criteria says so; the first that does gives the reason.

    Args:
        criteria: At least one.

    Raises:
        ValueError: If there is none.

    Examples:
        >>> from lightning_lth.stopping import Patience, Target, Validation
        >>> validations = Validations("loss", "min", [Validation(100, 1, value=0.01)])
        >>> AnyOf(Patience(3), Target(0.02))(validations).reason
        <StopReason.TARGET: 'target'>
    """

    def __init__(self, *criteria: Criterion) -> None:
        self.criteria = _checked(criteria)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        stops = (criterion(validations) for criterion in self.criteria)
        return next((stop for stop in stops if stop is not None), None)

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.criteria))})"


@final
class AllOf:
    """Stop when all of several criteria say so at once; the reason is that of the first.

    Args:
        criteria: At least one.

    Raises:
        ValueError: If there is none.

    Examples:
        >>> from lightning_lth.stopping import Patience, Target, Validation
        >>> validations = Validations("loss", "min", [Validation(100, 1, value=0.01)])
        >>> AllOf(Patience(3), Target(0.02))(validations)  # Patience goes on
    """

    def __init__(self, *criteria: Criterion) -> None:
        self.criteria = _checked(criteria)

    def __call__(self, validations: Validations, /) -> Stop | None:
        """Why to stop; None to go on."""
        stops = [criterion(validations) for criterion in self.criteria]
        said = [stop for stop in stops if stop is not None]
        if len(said) < len(stops):
            return None
        return Stop(said[0].reason, "; and ".join(stop.message for stop in said))

    def __repr__(self) -> str:
        return f"AllOf({', '.join(map(repr, self.criteria))})"


def _checked(criteria: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
    if not criteria:
        raise ValueError("Give at least one criterion, e.g. `AnyOf(Patience(3), Target(0.1))`.")
    return criteria
