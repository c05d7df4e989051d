"""A study whose trainings run in two processes that ``torchrun`` started.

The module fails if they end with different weights, as they would if each pruned by SNIP's scores
of its own batch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lightning_lth.study import load_study, run_study
from lightning_lth.study.records import read_sessions
from tests.study import tiny

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
ARMS = {
    "winning_ticket": tiny.iterative(rewind_step=2),
    "reinit": tiny.control(weights="reinitialized", rounds=[2]),
    "snip": {"class_path": "AtInitialization", "init_args": {"method": "snip", "rounds": [2]}},
    "stable": {
        "class_path": "lightning_lth.study.Stability",
        "init_args": {
            "of": "winning_ticket",
            "rounds": [0],
            "points": 3,
            "changes": {  # shuffled
                "data": {"class_path": "tests.study.tiny.Data"},
                "trainer": {"use_distributed_sampler": True},
            },
        },
    },
}


def _config(**trainer: object) -> dict[str, object]:
    return tiny.config(
        model={"class_path": "tests.study.tiny.InStepNet"},
        data={"class_path": "tests.study.tiny.InStep"},
        trainer={
            "accelerator": "cpu",
            "max_steps": 12,
            "val_check_interval": 3,
            "use_distributed_sampler": False,  # it would shuffle
            **trainer,
        },
        arms=ARMS,
        seeds=[0],
    )


def _torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launch, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that two processes ran."""
    folder = tmp_path_factory.mktemp("together")
    config = yaml.safe_dump(_config(devices=2, strategy="ddp"), sort_keys=False)
    (folder / "config.yaml").write_text(config)
    command = ["lightning_lth", "study", "run", str(folder / "config.yaml")]
    done = _torchrun(*command, "--dir", str(folder / "study"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Report: ") == 1
    return folder / "study"


def test_two_processes_train_as_one_with_the_same_batches(together: Path, tmp_path: Path) -> None:
    alone = run_study(load_study(_config()), tmp_path / "alone")
    for name in ("rounds", "layers"):
        table, expected = pd.read_parquet(together / f"{name}.parquet"), alone[name]
        # "snip" scores the first batch, which is that of the first process.
        pd.testing.assert_frame_equal(
            table[table["arm"].isin(["winning_ticket", "reinit"])],
            expected[expected["arm"].isin(["winning_ticket", "reinit"])],
            rtol=1e-4,
        )


def test_one_process_writes(together: Path) -> None:
    assert (together / "report" / "report.html").is_file()
    assert len(read_sessions(together)) == 1
    for job in (together / "trials").rglob("done.json"):
        assert len(list(job.parent.rglob("events.out*"))) == (2 if "stable" in job.parts else 1)


def test_stability_sees_two_data_orders_in_several_processes(together: Path) -> None:
    stability = pd.read_parquet(together / "stability.parquet")
    assert stability["l2_distance"].item() > 0.01


def test_what_several_processes_cannot_do_is_refused(tmp_path: Path) -> None:
    done = _torchrun("tests.study.refused_in_two_processes", str(tmp_path / "study"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("`torchrun` started 2 processes, and the trainer has 1 devices") == 2
    assert done.stdout.count("`trainer.strategy` is ModelParallelStrategy. Use 'ddp'") == 2
    assert done.stdout.count("run one job after the other, got `num_jobs=2`") == 2
    assert not (tmp_path / "study").exists()
