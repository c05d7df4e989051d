"""What the fixtures `two_processes` and `four_processes` run: all that is tested in so many.

Starting processes takes far longer than a check. As ``python several_processes.py FOLDER`` it runs
in two, of which Lightning starts the second.
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

from tests import distributed_combination
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
    check_all(init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    (folder / f"passed_{os.environ['LOCAL_RANK']}").touch()


Checks = dict[str, Callable[[Path], None]]
CHECKS: dict[int, Checks] = {
    2: {
        "early_stopping": distributed_early_stopping.main,
        "lr_finder": distributed_lr_finder.main,
        "initializer_auto": partial(distributed_initializer.main, "auto"),
        "initializer_lsuv": partial(distributed_initializer.main, "lsuv"),
        "layer_monitor": distributed_layer_monitor.main,
        "pruning_ddp": partial(distributed_fits.main, "ddp", 2),
        "pruning_fsdp2": partial(distributed_fits.main, "fsdp2", 2),
        "together": partial(distributed_combination.main, 2),
        "sharding": sharding,
        "pruning_differing": distributed_fits.differing,  # the last, as it breaks off
    },
    4: {
        "together": partial(distributed_combination.main, 4),
        "pruning_fsdp2": partial(distributed_fits.main, "fsdp2", 4),
        "together_fsdp2": partial(distributed_combination.main_sharded, 4),
        "sharding": sharding,
    },
}


def main(num_processes: int, folder: Path) -> None:
    """Each check writes to a folder of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name, check in CHECKS[num_processes].items():
        if "fsdp2" in name and torch.__version__.startswith("2.6."):
            continue  # needs a GPU there
        (folder / name).mkdir(exist_ok=True)
        check(folder / name)


if __name__ == "__main__":
    main(2, Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # as forked ones do: after a fit that broke off torch may abort at the very end
