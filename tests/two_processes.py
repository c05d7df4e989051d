"""Launched once by the fixture `two_processes`: everything that is tested in two real processes.

Run as ``python two_processes.py FOLDER``. Starting two processes takes far longer than a check.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from tests.callbacks import (
    distributed_early_stopping,
    distributed_fits,
    distributed_initializer,
    distributed_layer_monitor,
    distributed_lr_finder,
)
from tests.pruning.test_sharding import check_all


def sharding(folder: Path) -> None:
    """In the processes that Lightning has connected."""
    check_all(init_device_mesh("cpu", (2,)))
    (folder / f"passed_{os.environ['LOCAL_RANK']}").touch()


CHECKS: dict[str, Callable[[Path], None]] = {
    "early_stopping": distributed_early_stopping.main,
    "lr_finder": distributed_lr_finder.main,
    "initializer_auto": partial(distributed_initializer.main, "auto"),
    "initializer_lsuv": partial(distributed_initializer.main, "lsuv"),
    "layer_monitor": distributed_layer_monitor.main,
    "pruning_ddp": partial(distributed_fits.main, "ddp"),
    "pruning_fsdp2": partial(distributed_fits.main, "fsdp2"),
    "sharding": sharding,
    "pruning_differing": distributed_fits.differing,  # the last, as it breaks off
}
if torch.__version__.startswith("2.6."):
    del CHECKS["pruning_fsdp2"]  # needs a GPU there


def main(folder: Path) -> None:
    """Each check writes to a folder of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name, check in CHECKS.items():
        (folder / name).mkdir(exist_ok=True)
        check(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
