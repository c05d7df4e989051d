"""Fixtures for all tests."""

from __future__ import annotations

import functools
import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import registry


def pytest_collection_finish() -> None:
    """Whatever was imported stays, so that the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and lose much when other programs run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_look_at_the_installed_packages() -> Iterator[None]:
    """Each ``Trainer`` searches the metadata of all packages for callbacks: a third of a fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random numbers."""
    random.seed(0)
    np.random.seed(0)  # the generator that Lightning and other libraries draw from
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data in torchvision's layout, e.g. ``MNIST/raw``."""
    root = os.environ.get("LIGHTNING_LTH_DATA")
    if not root:
        pytest.skip("set LIGHTNING_LTH_DATA to a folder with torchvision's MNIST/raw to run this")
    if not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.fail(f"LIGHTNING_LTH_DATA is {root!r}, which has no MNIST/raw")
    return Path(root)
