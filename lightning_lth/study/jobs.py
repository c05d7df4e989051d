"""Jobs: the pieces of a study that run independently of each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lightning_lth.study.arm import Part
from lightning_lth.study.design import Settings, Study
from lightning_lth.study.settings import with_changes


@final
@dataclass(frozen=True)
class Job:
    """One part of one arm of one trial.

    Attributes:
        arm: Name of the arm.
        seed: Seed of the trial.
        part: Which of the arm's parts.
    """

    arm: str
    seed: int
    part: Part

    @property
    def path(self) -> Path:
        """Where its results are, within the folder of the study.

        Examples:
            >>> Job("random_reinit", 0, Part(round=7, draw=2)).path.as_posix()
            'trials/random_reinit/seed_0/round_07_draw_2'
        """
        path = Path("trials", self.arm, f"seed_{self.seed}")
        if self.part.round is None:
            return path
        return path / f"round_{self.part.round:02d}_draw_{self.part.draw}"

    def __str__(self) -> str:
        where = "" if self.part.round is None else f", round {self.part.round}"
        draw = f", draw {self.part.draw}" if self.part.draw else ""
        return f"{self.arm}, seed {self.seed}{where}{draw}"


def all_jobs(study: Study) -> list[Job]:
    """Every job of a study, arm by arm."""
    return [
        Job(name, seed, part)
        for name, arm in study.arms.items()
        for seed in study.seeds
        for part in arm.parts(study.pruning)
    ]


def waves(study: Study) -> Iterator[list[Job]]:
    """Lists of jobs whose sources are all in earlier lists."""
    depths = {name: _depth(study, name) for name in study.arms}
    for depth in range(max(depths.values(), default=0) + 1):
        yield [job for job in all_jobs(study) if depths[job.arm] == depth]


def source_of(study: Study, job: Job, round: int) -> Job:
    """The job that wrote the ticket of a round which ``job`` starts from."""
    name = study.arms[job.arm].source
    assert name is not None
    parts = study.arms[name].parts(study.pruning)
    part = next(part for part in parts if part.round in (None, round))
    return Job(name, job.seed, part)


def settings_of(study: Study, arm: str) -> Settings:
    """The settings of model, data and trainer that an arm runs with."""
    base = {key: study.settings.get(key) for key in ("model", "data", "trainer")}
    return with_changes(base, study.arms[arm].changes)


def fingerprint(study: Study, arm: str) -> str:
    """A hash of all settings that the results of an arm depend on, its source's included.

    Names, claims and other arms have no part in it, so they may change without a training being
    repeated.
    """
    source = study.arms[arm].source
    content = {
        "arm": study.settings["arms"][arm],
        "pruning": study.settings["pruning"],
        "measures": study.settings["measures"],
        "threads": study.threads,
        "settings": settings_of(study, arm),
        "source": fingerprint(study, source) if source is not None else None,
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _depth(study: Study, arm: str) -> int:
    source = study.arms[arm].source
    return 0 if source is None else 1 + _depth(study, source)
