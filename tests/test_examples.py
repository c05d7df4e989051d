"""The examples run, and leave behind what they say."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_lth import Ticket

ROOT = Path(__file__).parents[1]


def run_example(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits_ticket.py"), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check_results(folder: Path, densities: list[str]) -> None:
    """Everything the issue of a first ticket asks for: table, plot, events, tickets."""
    results = folder / "results" / "digits_ticket"
    assert (results / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (results / "events").iterdir()
    tags = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"val_loss", "test_acc", "pruning/density", "pruning/round"} <= set(tags)
    with (results / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [f"{100 * float(row['density']):.1f}" for row in rows] == densities
    for row in rows:
        ticket = Ticket.load(results / "tickets" / f"round_{int(row['round']):02d}.safetensors")
        assert ticket.density == float(row["density"])


def test_the_digits_example(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "--max-steps", "20")
    # 40 % a round, 20 % of the output layer; 64*300 + 300*100 + 100*10 = 50200 weights.
    kept = [(49200 * 0.6**r + 1000 * 0.8**r) / 502 for r in range(6)]
    assert kept[5] == pytest.approx(8.27, abs=0.01)
    densities = [f"{value:.1f}" for value in kept]
    check_results(tmp_path, densities)
    assert all(f"{value} %" in printed for value in densities)
    assert "round=5/5" in printed or "round: 5/5" in printed


def test_the_example_on_mnist(tmp_path: Path, data_root: Path) -> None:
    run_example(tmp_path, "--data-dir", str(data_root), "--max-steps", "10")
    # LeNet-300-100 of the papers: 235200 + 30000 weights at 0.6, 1000 at 0.8 a round.
    kept = [100 * (265200 * 0.6**r + 1000 * 0.8**r) / 266200 for r in range(6)]
    check_results(tmp_path, [f"{value:.1f}" for value in kept])
