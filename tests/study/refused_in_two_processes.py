"""Run by ``torchrun`` for test_processes.py: prints why studies are refused."""

from __future__ import annotations

import sys

from lightning_lth.study import load_study, run_study
from tests.study import tiny


def main(folder: str) -> None:
    """One line for each study."""
    trainer = {"accelerator": "cpu", "max_steps": 3}
    sharded = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
    for changes, num_jobs in (
        ({}, None),
        ({"devices": 2, "strategy": sharded}, None),
        ({"devices": 2, "strategy": "ddp"}, 2),
    ):
        try:
            run_study(
                load_study(tiny.config(trainer={**trainer, **changes})), folder, num_jobs=num_jobs
            )
        except ValueError as error:
            print(str(error), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
