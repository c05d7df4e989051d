"""A full disk or a read-only folder: an error that names the file, and nothing is lost."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lth import IterativeMagnitudePruning, Ticket
from tests.callbacks.modules import Classifier, loader, trainer
from tests.contents import partial_files
from tests.faults import test_killed_study, test_killed_training
from tests.faults.lives import Habitat, Moment
from tests.faults.reports import MARKS

resource = pytest.importorskip("resource")
pytestmark = MARKS
_CAP_DAC_OVERRIDE = 1 << 1  # linux/capability.h


def fill_disk() -> None:
    """From now on files cannot grow beyond a byte, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def on_small_disk(work: Callable[[], None]) -> Callable[[], None]:
    """Do the work, and let its error be printed on a larger disk."""

    def working() -> None:
        try:
            work()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    return working


def obey_permissions() -> None:
    """Let read-only folders be so even for root, who may write anywhere by this capability."""
    if os.geteuid() == 0 and sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        data[0] &= ~_CAP_DAC_OVERRIDE
        assert libc.capset(header, data) == 0


def fail(habitat: Habitat, place: str, count: int = 1) -> str:
    """Live on a disk that is full from this place on; what was printed."""
    limited = Habitat(on_small_disk(habitat.work), habitat.folder, habitat.two_disks)
    return limited.fail(place, count, fill_disk)


@pytest.fixture(scope="module")
def whole_training(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("training")
    test_killed_training.habitat(folder).live(None)
    return test_killed_training.end_of(folder)


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("study")
    test_killed_study.habitat(folder).live(None)
    return test_killed_study.results(folder)


@pytest.mark.parametrize("round", [0, 1, 2])
def test_a_disk_that_is_full_for_a_ticket(whole_training: Any, tmp_path: Path, round: int) -> None:
    project = test_killed_training.habitat(tmp_path)
    output = fail(project, "tensors: half written", count=round + 1)
    assert f"File too large. Nothing of this file was written: '{tmp_path}" in output
    assert f"tickets/round_{round:02d}.safetensors'" in output
    assert partial_files(tmp_path) == []
    assert len([Ticket.load(path) for path in tmp_path.glob("tickets/*")]) == round
    torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    project.live(None)
    assert test_killed_training.end_of(tmp_path) == whole_training


def test_a_disk_that_is_full_for_a_checkpoint(whole_training: Any, tmp_path: Path) -> None:
    """Lightning's own write; its temporary file is in the same file system."""
    project = test_killed_training.habitat(tmp_path)
    assert "File too large" in fail(project, "checkpoint: half written", count=4)
    torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    project.live(None)
    assert test_killed_training.end_of(tmp_path) == whole_training


@pytest.mark.parametrize(
    ("place", "count", "name"),
    [
        ("text: half written", 3, "started"),
        ("tensors: half written", 3, "round_01.safetensors"),
        ("checkpoint: half written", 4, "resume.ckpt"),  # 1 and 3 are in the temporary folder
        ("table: half written", 2, "curves.parquet"),
    ],
)
def test_a_study_on_a_full_disk(
    whole_study: dict[str, object], tmp_path: Path, place: str, count: int, name: str
) -> None:
    study = test_killed_study.habitat(tmp_path)
    output = fail(study, place, count)
    assert "File too large. Nothing of this file was written: " in output
    assert f"/{name}'" in output
    test_killed_study.check_files(tmp_path, list[Moment]())
    study.live(None)
    assert test_killed_study.results(tmp_path) == whole_study
    assert partial_files(tmp_path) == []


def test_a_read_only_folder_for_tickets(whole_training: Any, tmp_path: Path) -> None:
    project = test_killed_training.habitat(tmp_path)
    tickets = tmp_path / "tickets"
    tickets.mkdir(mode=0o500)
    output = obedient(project).fail()
    assert f"Permission denied. Nothing of this file was written: '{tickets}/round_00" in output
    tickets.chmod(0o700)
    project.live(None)
    assert test_killed_training.end_of(tmp_path) == whole_training


def test_a_file_in_the_place_of_a_folder_for_tickets(whole_training: Any, tmp_path: Path) -> None:
    project = test_killed_training.habitat(tmp_path)
    (tmp_path / "tickets").write_text("in the way")
    assert f"{tmp_path}/tickets/round_00.safetensors'" in project.fail()
    (tmp_path / "tickets").unlink()
    project.live(None)
    assert test_killed_training.end_of(tmp_path) == whole_training


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_the_error_leaves_does_not_take_the_ticket_as_written(
    tmp_path: Path,
) -> None:
    tickets = tmp_path / "tickets"

    def train(checkpoint: Path | None) -> None:
        pruning = IterativeMagnitudePruning(1, ticket_dir=tickets)
        options: dict[str, Any] = {"every_n_train_steps": 4, "save_on_exception": True}
        saver = ModelCheckpoint(tmp_path, save_last=True, **options)
        fitter = trainer(pruning, saver, max_epochs=1, enable_checkpointing=True)
        fitter.fit(Classifier(), loader(), loader(), ckpt_path=checkpoint, weights_only=True)

    tickets.write_text("in the way")
    with pytest.raises(OSError, match="round_00"):
        train(None)
    tickets.unlink()
    train(tmp_path / "last.ckpt")
    written = sorted(path.name for path in tickets.iterdir())
    assert written == ["round_00.safetensors", "round_01.safetensors"]


def test_a_study_in_a_read_only_folder(whole_study: dict[str, object], tmp_path: Path) -> None:
    study = test_killed_study.habitat(tmp_path)
    trials = tmp_path / "study" / "trials"
    trials.mkdir(parents=True, mode=0o500)
    output = obedient(study).fail()
    assert f"Permission denied. Nothing of this file was written: '{trials}/" in output
    trials.chmod(0o700)
    study.live(None)
    assert test_killed_study.results(tmp_path) == whole_study


def obedient(habitat: Habitat) -> Habitat:
    """The same lives, for whom read-only folders are so."""

    def working() -> None:
        obey_permissions()
        habitat.work()

    return Habitat(working, habitat.folder, habitat.two_disks)
