"""All that a study measured, and what is needed to repeat it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pandas import DataFrame  # type: ignore[import-untyped]


@final
@dataclass(frozen=True)
class Results:
    """The records of a study and where they come from.

    Args:
        name: Of the study.
        rounds: One row per training: ``arm``, ``seed``, ``draw``, ``round``, ``density``, and its
            measures, e.g. ``early_stop_step`` and ``end_test_accuracy``; NaN is "not measured".
        curves: One row per validation: ``arm``, ``seed``, ``draw``, ``round``, ``density``,
            ``step``, then one column per logged metric.
        layers: One row per training and prunable parameter: ``arm``, ``seed``, ``draw``,
            ``round``, ``layer``, ``density``, ``num_weights``.
        stability: One row per pair of trainings that saw other data: ``arm``, ``seed``, ``round``,
            ``density``, ``pair``, ``barrier``, ``l2_distance``, and more. May be empty.
        config: The resolved configuration, as YAML text.
        environments: One per session that ran: label to text, e.g. time, versions, git commit.
        command: What to type to repeat the study.
    """

    name: str
    rounds: DataFrame
    curves: DataFrame
    layers: DataFrame
    stability: DataFrame
    config: str
    environments: Sequence[Mapping[str, str]]
    command: str
