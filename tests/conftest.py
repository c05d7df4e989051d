"""Fixtures for all tests."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from lightning.fabric.utilities import registry

from tests import distributed_combination, several_processes
from tests.forked import run_ranks

# Chosen by `--hypothesis-profile nightly`, or by the environment variable.
hypothesis.settings.register_profile("quick", max_examples=100, deadline=None)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """No contents of files in the names of tests: they may differ from run to run."""
    is_content = isinstance(val, bytes) or (isinstance(val, str) and len(val) > 200)
    return argname if is_content else None


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and lose much when other programs run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_look_at_the_installed_packages() -> Iterator[None]:
    """Each ``Trainer`` searches the metadata of all packages for callbacks, 10 ms long."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(importlib.metadata.entry_points)
        patch.setattr(registry, "entry_points", once, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def lightnings_log_for_caplog() -> None:
    """Lightning keeps its messages from ``caplog`` if it is imported before pytest listens."""
    logging.getLogger("lightning.pytorch").propagate = True


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random numbers."""
    random.seed(0)
    np.random.seed(0)  # the generator that Lightning and other libraries draw from
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the checks of ``several_processes.py`` wrote, by name; Lightning starts the second."""
    folder = tmp_path_factory.mktemp("two_processes")
    distributed_combination.fit(folder / "alone", 1)
    script = Path(several_processes.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=os.environ | {"PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def four_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the checks wrote in four."""
    folder = tmp_path_factory.mktemp("four_processes")
    distributed_combination.fit(folder / "alone", 1)
    statuses = run_ranks(partial(several_processes.main, 4, folder), 4, folder)
    assert statuses == [0] * 4, (folder / "output_0.txt").read_text()[-3000:]
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data in torchvision's layout, e.g. ``MNIST/raw``."""
    root = os.environ.get("LIGHTNING_LTH_DATA")
    if not root:
        pytest.skip("set LIGHTNING_LTH_DATA to a folder with torchvision's MNIST/raw to run this")
    if not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.fail(f"LIGHTNING_LTH_DATA is {root!r}, which has no MNIST/raw")
    return Path(root)
