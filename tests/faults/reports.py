"""What the tests with kills have in common: their marks, and how kills are told."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from tests.faults.lives import Moment

MARKS = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that it forks"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
SEED = int(os.environ.get("LIGHTNING_LTH_FAULTS_SEED", "0"))


def told(kills: Sequence[Moment]) -> str:
    """The kills of one project in order, and the seed that they were drawn with."""
    return f"LIGHTNING_LTH_FAULTS_SEED={SEED}; {len(kills)} kills: " + "; ".join(map(str, kills))
