"""Processes that train one network together, one for each device, as ``torchrun`` starts them.

Each of them runs the whole study, step by step with the others; the first one writes.
"""

from __future__ import annotations

import os

from torch import distributed


def launched() -> int | None:
    """How many ``torchrun`` started; ``None`` if it did not."""
    if distributed.is_available() and distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return None


def count() -> int:
    """How many there are; 1 before the first training has connected them."""
    return distributed.get_world_size() if _are_connected() else 1


def is_writer() -> bool:
    """Whether this is the process that writes files and talks."""
    return launched() is None or os.environ["RANK"] == "0"


def wait_for_all() -> None:
    """Come back when every process has called this, so what the writer wrote before is there."""
    if _are_connected():
        distributed.barrier()


def _are_connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()
