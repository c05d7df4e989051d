"""A cycle by its name: what the policies do not have is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_lth.learning_rate.policies import Policy, Settings


@pytest.mark.parametrize("policy", ["one_cycle", "cosine"])
def test_a_gamma_without_effect_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match=rf"policy='{policy}' has no `gamma`: leave it out\."):
        Settings(policy, gamma=0.9).cycle(0.1, 0.4, 2, 10)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((0.4, 0.1), "`base_lr` must be below `max_lr`, got 0.4 and 0.1"),
        ((0.0, 0.1), "`base_lr` must be above 0 for policy='one_cycle', got 0.0"),
    ],
)
def test_rates_of_one_cycle(rates: tuple[float, float], message: str) -> None:
    settings: Any = Settings("one_cycle")
    with pytest.raises(ValueError, match=message):
        settings.cycle(*rates, 2, 10)
