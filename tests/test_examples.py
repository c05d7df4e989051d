"""The examples run, and leave behind what they say."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_lth import Ticket
from tests.loading import EXAMPLES, load_example

pytestmark = pytest.mark.examples


def run_example(folder: Path, *arguments: str, name: str = "digits_ticket.py") -> str:
    """What it prints when it is run as a script, in this process: an import less."""
    logger = logging.getLogger("lightning.pytorch")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(logger, "level", logger.level)
        for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(variable, "0")  # so that it is put back, whatever the example does
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return out.getvalue()


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


# Section 4.2 of the design notes: width 4096, batch 16, standard deviation by layer. These numbers
# are draws themselves, so no seed can be close to all of them but by chance.
LECTURE = {
    "tanh 0.01": [0.491, 0.289, 0.179, 0.113, 0.072, 0.046, 0.029],
    "tanh 0.05": [0.872, 0.854, 0.850, 0.850, 0.849, 0.849, 0.849],
    "tanh 1/sqrt(n)": [0.627, 0.485, 0.407, 0.356, 0.320, 0.293, 0.271],
    "tanh sqrt(2/n)": [0.721, 0.635, 0.595, 0.576, 0.566, 0.561, 0.559],
    "tanh (5/3)/sqrt(n)": [0.759, 0.690, 0.668, 0.659, 0.654, 0.652, 0.652],
    "relu 0.01": [0.372, 0.169, 0.077, 0.035, 0.016, 0.0071, 0.0032],
    "relu 0.05": [1.86, 4.16, 9.61, 22.2, 50.1, 112, 255],
    "relu 1/sqrt(n)": [0.581, 0.412, 0.291, 0.206, 0.147, 0.103, 0.071],
    "relu sqrt(2/n)": [0.816, 0.813, 0.818, 0.806, 0.810, 0.809, 0.818],
    "relu (5/3)/sqrt(n)": [0.974, 1.13, 1.34, 1.59, 1.89, 2.18, 2.63],
}


@pytest.fixture(scope="module")
def signal_example() -> ModuleType:
    return load_example("signal_propagation")


def is_like_the_lecture(stds: list[float], label: str) -> bool:
    """Within 3 % of every number, and what rounding to its last digit may have taken."""
    for std, expected in zip(stds, LECTURE[label], strict=True):
        digits = len(repr(expected).partition(".")[2])
        if abs(std - expected) > 0.03 * expected + 0.5 * 10**-digits:
            return False
    return True


def test_the_signals_of_the_lecture(signal_example: ModuleType) -> None:
    reports = signal_example.measure(4096)
    printed = signal_example.table(reports).splitlines()[2:]
    assert len(printed) == len(LECTURE)
    for line in printed:
        label, values = line[:20].strip(), line[20:].split()
        assert is_like_the_lecture([float(value) for value in values], label), (label, values)
    # A third of the outputs of tanh is beyond 0.99, and ReLU keeps the root mean square.
    assert [row.saturated for row in reports["tanh 0.05"]] == pytest.approx([0.33] * 7, abs=0.08)
    for row in reports["relu sqrt(2/n)"]:
        assert row.activation_rms == pytest.approx(0.985, rel=0.03)


def test_the_lecture_tells_a_wrong_standard_deviation(
    signal_example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal_example, "STDS", {"0.01": lambda width: 0.0106})
    for label, report in signal_example.measure(4096).items():
        assert not is_like_the_lecture([row.activation_std for row in report], label)


def test_the_signal_example_writes_a_picture(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "--quick", "--output", "pictures", name="signal_propagation.py")
    assert "relu sqrt(2/n)" in printed
    picture = tmp_path / "pictures" / "signal_propagation.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
