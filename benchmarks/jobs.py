"""Two trials of a study at the same time, against one after the other, on two cores.

Run:
    python benchmarks/jobs.py --data-dir DIRECTORY   # default: LIGHTNING_LTH_DATA; 8 minutes
    python benchmarks/jobs.py --check                # exit 1 if the target is missed
    python benchmarks/jobs.py --quick                # shorter trainings, under a minute

Each trial trains LeNet-300-100 on MNIST with one thread, as ``lenet_mnist`` does. The figure is the
time of ``run_study`` by the clock, with everything that it does before and after the trainings, for
one job at once over that for two at once; median of the turns. The processes that train at the same
time have been started before: a study does so once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lightning_lth.study import load_study, run_study

TARGET = 1.8


def seconds(num_jobs: int, num_steps: int, data: dict[str, Any]) -> float:
    """How long two trials take, ``num_jobs`` at once."""
    study = load_study(
        "lenet_mnist",
        seeds=[0, 1],
        data=data,
        trainer={
            "accelerator": "cpu",
            "max_steps": num_steps,
            "val_check_interval": min(100, num_steps),
            "check_val_every_n_epoch": None,
        },
        pruning={"rounds": 1, "fraction": 0.2, "scope": "layer"},
        arms={"winning_ticket": {"class_path": "IterativePruning"}},
        claims=[],
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_study(study, Path(folder), num_jobs=num_jobs)
        return time.perf_counter() - start


def main() -> int:
    """Print the figures; 1 if ``--check`` found a miss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST/raw; downloaded if it is not there")
    parser.add_argument("--check", action="store_true", help="exit 1 if the target is missed")
    parser.add_argument("--quick", action="store_true", help="shorter trainings")
    arguments = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        print("Needs two cores.")
        return int(arguments.check)
    torch.set_num_threads(1)
    data: dict[str, Any] = {"class_path": "lightning_lth.study.experiments.images.MNIST"}
    data["init_args"] = {"data_dir": arguments.data_dir, "batch_size": 60}
    num_steps, turns = (500, 1) if arguments.quick else (4000, 3)
    seconds(2, 20, data)
    ratios = []
    for turn in range(turns):
        jobs = (1, 2) if turn % 2 == 0 else (2, 1)
        measured = {num_jobs: seconds(num_jobs, num_steps, data) for num_jobs in jobs}
        ratios.append(measured[1] / measured[2])
        print(
            f"one after the other {measured[1]:.1f} s, both at once {measured[2]:.1f} s: "
            f"{ratios[-1]:.2f}"
        )
    ratio = statistics.median(ratios)
    verdict = "ok" if ratio >= TARGET else "MISSED"
    print(f"median {ratio:.2f}, target >= {TARGET}: {verdict}")
    return int(arguments.check and ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
