"""A study that is killed again and again ends with the bytes of one that is not."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_lth import Ticket
from lightning_lth.stopping.best_weights import BestWeights
from lightning_lth.study import load_study, run_study, trial
from tests.contents import contents, partial_files
from tests.faults.lives import Habitat, Moment, Moments
from tests.faults.reports import MARKS, SEED, told
from tests.study import tiny

pytestmark = MARKS
NUM_KILLS = 20
_KILLS_IN_A_ROW = 10


def habitat(folder: Path) -> Habitat:
    """Two disks, as where the temporary folder is in memory: Lightning copies its checkpoints."""
    (folder / "life").mkdir(parents=True)
    return Habitat(lambda: run(folder / "study"), folder / "life", two_disks=True)


def run(folder: Path) -> None:
    trial._SECONDS_BETWEEN_NOTES = 0.0
    run_study(load_study(config()), folder)


def config() -> dict[str, object]:
    again = tiny.control(weights="reinitialized", rounds=[1])
    return tiny.config(seeds=[0], arms={"winning_ticket": tiny.iterative(), "again": again})


def results(folder: Path) -> dict[str, object]:
    return contents(folder / "study", ".csv", ".parquet", ".safetensors")


def test_a_killed_study_ends_with_the_same_bytes(tmp_path: Path) -> None:
    start = time.monotonic()
    places = habitat(tmp_path / "whole").places()
    moments = Moments(places, time.monotonic() - start, SEED)
    for place in ("checkpoint", "table", "tensors", "text"):
        assert f"{place}: half written" in places
    whole, kills = results(tmp_path / "whole"), list[Moment]()
    assert len(whole) == 17  # 6 of the study; 3 tables for each job, 4 tickets, the dense weights
    projects = itertools.count()  # a life may end before its moment comes
    while len(kills) < NUM_KILLS:
        folder = tmp_path / str(next(projects))
        of_study = _kill_until_done(folder, moments, NUM_KILLS - len(kills))
        kills += of_study
        assert results(folder) == whole, told(of_study)
        assert partial_files(folder) == [], told(of_study)
        assert not list(folder.rglob("resume.ckpt")), told(of_study)
    print(told(kills))
    assert sum(bool(kill.place) for kill in kills) >= 8


def _kill_until_done(folder: Path, moments: Moments, num_kills: int) -> list[Moment]:
    study, kills = habitat(folder), list[Moment]()
    while len(kills) < min(num_kills, _KILLS_IN_A_ROW):
        moment = moments.draw()
        if not study.live(moment):
            return kills
        kills.append(moment)
        check_files(folder, kills)
    study.live(None)
    return kills


def check_files(folder: Path, kills: list[Moment]) -> None:
    try:
        for pattern, read in READERS.items():
            for path in folder.rglob(pattern):
                read(path)
    except Exception as error:
        raise AssertionError(told(kills)) from error


def _read_table(path: Path) -> None:
    content = path.read_bytes()
    assert content[:4] == content[-4:] == b"PAR1", path  # not by pyarrow, which starts threads


READERS: dict[str, Callable[[Path], object]] = {
    "tickets/*.safetensors": Ticket.load,
    "trained/*.safetensors": BestWeights.load,
    "resume.ckpt": lambda path: torch.load(path, weights_only=True),
    "*.json": lambda path: json.loads(path.read_text()),
    "*.parquet": _read_table,
}
