"""A training that is killed again and again ends as one that is not, bit for bit."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_lth import Ticket
from tests.contents import contents, partial_files, plain
from tests.faults.lives import Habitat, Moment, Moments
from tests.faults.reports import MARKS, SEED, told
from tests.faults.training import train

pytestmark = MARKS
_KILLS_IN_A_ROW = 8  # of one project, so that it comes to its end


class Uninterrupted:
    """A project that nobody kills: how it ends, and how it gets there."""

    def __init__(self, folder: Path) -> None:
        start = time.monotonic()
        self.places = habitat(folder).places()
        self.seconds = time.monotonic() - start
        self.end = end_of(folder)


def habitat(folder: Path, *, two_disks: bool = False) -> Habitat:
    (folder / "life").mkdir(parents=True)
    return Habitat(lambda: train(folder), folder / "life", two_disks)


def end_of(folder: Path) -> tuple[Any, dict[str, object]]:
    return plain(torch.load(folder / "end.pt")), contents(folder, ".safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return Uninterrupted(tmp_path_factory.mktemp("uninterrupted"))


def test_the_places_of_writing_are_those_of_tickets_and_checkpoints(
    uninterrupted: Uninterrupted,
) -> None:
    places = uninterrupted.places
    assert places.count("tensors: half written") == 3  # the tickets of three rounds
    assert places.count("tensors: after rename") == 3
    assert places.count("checkpoint: after rename") > 10


@pytest.mark.parametrize("two_disks", [False, True])
def test_a_killed_training_ends_as_one_that_was_not(
    uninterrupted: Uninterrupted, tmp_path: Path, two_disks: bool
) -> None:
    """With two disks Lightning copies checkpoints, so the last one may be cut off."""
    moments = Moments(uninterrupted.places, uninterrupted.seconds, SEED + two_disks)
    kills: list[Moment] = []
    projects = itertools.count()  # a life may end before its moment comes
    while len(kills) < 15:
        folder = tmp_path / str(next(projects))
        of_project = _kill_until_done(folder, moments, 15 - len(kills), two_disks=two_disks)
        kills += of_project
        assert end_of(folder) == uninterrupted.end, told(of_project)
        assert partial_files(folder) == [], told(of_project)
    print(told(kills))
    assert sum(bool(kill.place) for kill in kills) >= 5


def _kill_until_done(
    folder: Path, moments: Moments, num_kills: int, *, two_disks: bool
) -> list[Moment]:
    """Live until the project is done; the kills."""
    project, kills = habitat(folder, two_disks=two_disks), []
    while len(kills) < min(num_kills, _KILLS_IN_A_ROW):
        moment = moments.draw()
        if not project.live(moment):
            return kills
        kills.append(moment)
        _check_files(folder, kills, last_is_whole=not two_disks)
    project.live(None)
    return kills


def _check_files(folder: Path, kills: list[Moment], *, last_is_whole: bool) -> None:
    try:
        for path in folder.glob("tickets/*.safetensors"):
            Ticket.load(path)
        last = folder / "checkpoints" / "last.ckpt"
        if last_is_whole and last.exists():
            torch.load(last, weights_only=True)
    except Exception as error:
        raise AssertionError(told(kills)) from error
