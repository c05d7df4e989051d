"""Fixtures for all tests."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and lose much when other programs run."""
    torch.set_num_threads(1)


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
