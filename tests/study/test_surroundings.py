from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

ORPHAN = """
import os, sys, time
from multiprocessing import get_context
from pathlib import Path

from lightning_lth.study.surroundings import ended_with

folder = Path(sys.argv[1])

def job(parent):
    if folder.name == "killed":
        while os.getppid() == parent:
            time.sleep(0.01)
    with ended_with(parent):
        (folder / "worked").touch()
    (folder / "over").touch()

worker = get_context("fork").Process(target=job, args=[os.getpid()])
worker.start()
if folder.name == "killed":
    os._exit(0)
worker.join()
"""


@pytest.mark.parametrize("fate", ["killed", "alive"])
def test_a_worker_that_starts_after_its_study_was_killed_does_nothing(
    tmp_path: Path, fate: str
) -> None:
    """Workers import for seconds before they start, and the study may be gone by then."""
    folder = tmp_path / fate
    folder.mkdir()
    # The worker holds the pipe open until it ends, so the output is complete when it has.
    command = [sys.executable, "-c", ORPHAN, str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    time.sleep(0.1)
    found = sorted(path.name for path in folder.iterdir())
    assert found == (["over", "worked"] if fate == "alive" else [])
