"""The examples run, and leave behind what they say. Those with more to check have a file each."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import re
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_lth import Ticket
from tests.forked import run_ranks
from tests.loading import EXAMPLES, load_example

pytestmark = pytest.mark.examples


def run_example(folder: Path, name: str, **settings: Any) -> str:
    """What it prints when it runs in a folder, with other constants than those at its top."""
    example = load_example(name)
    for constant, value in settings.items():
        assert hasattr(example, constant)
        setattr(example, constant, value)
    logger = logging.getLogger("lightning.pytorch")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setattr(logger, "level", logger.level)
        for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(variable, "0")  # so that it is put back, whatever the example does
        example.main()
    return out.getvalue()


def scalars(folder: Path) -> set[str]:
    """What TensorBoard shows of a run."""
    return set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])


def percentages(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"(\d+\.\d+)\s?%", printed)]


@pytest.fixture
def data_folder(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (data_root / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"{data_root} has no FashionMNIST/raw")
    monkeypatch.setenv("LIGHTNING_LTH_DATA", str(data_root))
    return data_root


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    name = "project/after.py" if path.parent.name == "project" else path.name
    assert re.search(rf"(python|torchrun).* examples/{name}.*on 2 cores", text)
    assert "tensorboard --logdir results" in text or "TensorBoard" in text


@pytest.mark.parametrize(
    "name",
    [
        "batch_norm_landscape",
        "conv2_cifar10",
        "cyclical_lr",
        "dropout_before_batch_norm",
        "mnist_ticket",
        "ticket_transfer",
    ],
)
def test_without_data_an_example_says_what_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_LTH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"no .* in .*nowhere'.*set LIGHTNING_LTH_DATA"):
        run_example(tmp_path, name)
    assert list(tmp_path.iterdir()) == []  # nothing downloaded


def test_a_project_differs_in_two_lines() -> None:
    before, after = (
        (EXAMPLES / "project" / f"{name}.py").read_text(encoding="utf-8").splitlines()
        for name in ("before", "after")
    )
    added = [line.strip() for line in after if line not in before]
    assert [line for line in before if line not in after] == []
    assert len(after) == len(before) + 3  # and an empty one around the import
    assert added[0] == "from lightning_lth import IterativeMagnitudePruning"
    assert added[1].startswith("IterativeMagnitudePruning(rounds=4, fraction=0.2")


def test_a_project_before_and_after(tmp_path: Path) -> None:
    assert "test_accuracy" in run_example(tmp_path, "project/before", MAX_EPOCHS=1)
    assert not (tmp_path / "results" / "project" / "tickets").exists()
    assert "test_accuracy" in run_example(tmp_path, "project/after", MAX_EPOCHS=1)
    ticket = Ticket.load(tmp_path / "results" / "project" / "tickets" / "round_04.safetensors")
    # 64*128 + 128*64 + 64*10 = 17024; less 20 % four times, rounded: 3405, 2724, 2179, 1743.
    assert ticket.masks.num_remaining == 17024 - 3405 - 2724 - 2179 - 1743


def test_the_digits_example(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "digits_ticket", MAX_STEPS=20)
    # 40 % a round, 20 % of the output layer; 64*300 + 300*100 + 100*10 = 50200 weights.
    kept = [(49200 * 0.6**r + 1000 * 0.8**r) / 502 for r in range(6)]
    assert kept[5] == pytest.approx(8.27, abs=0.01)
    densities = [f"{value:.1f}" for value in kept]
    assert all(f"{value}%" in printed for value in densities)
    results = tmp_path / "results" / "digits_ticket"
    assert (results / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (results / "events").iterdir()
    assert {"val_loss", "test_acc", "pruning/density", "pruning/round"} <= scalars(events)
    with (results / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [f"{100 * float(row['density']):.1f}" for row in rows] == densities
    for row in rows:
        ticket = Ticket.load(results / "tickets" / f"round_{int(row['round']):02d}.safetensors")
        assert ticket.density == float(row["density"])


def test_mnist_with_late_rewinding(tmp_path: Path, data_folder: Path) -> None:
    settings = {"MAX_STEPS": 10, "VALIDATE_EVERY": 10, "REWIND_STEPS": (0, 4), "ROUNDS": 2}
    printed = run_example(tmp_path, "mnist_ticket", **settings)
    # 235200 + 30000 weights at 0.5, the 1000 of the output at 0.75 a round.
    kept = [100 * (265200 * 0.5**r + 1000 * 0.75**r) / 266200 for r in range(3)]
    assert percentages(printed)[::3] == pytest.approx(kept, abs=0.051)
    tickets = [
        Ticket.load(
            tmp_path / f"results/mnist_ticket/rewind_to_{step}/tickets/round_02.safetensors"
        )
        for step in (0, 4)
    ]
    assert [ticket.step for ticket in tickets] == [0, 4]


def test_conv2_on_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "cifar10_jpg.zip", "w") as archive:
        for part, label, number in np.ndindex(2, 10, 10):
            image = io.BytesIO()
            Image.fromarray(pixels.integers(0, 255, (32, 32, 3), np.uint8)).save(image, "JPEG")
            name = f"{('train', 'test')[part]}/{label}/{number}.jpg"
            archive.writestr(name, image.getvalue())
    monkeypatch.setenv("LIGHTNING_LTH_DATA", str(tmp_path))
    settings = {"MAX_STEPS": 2, "VALIDATE_EVERY": 1, "ROUNDS": 1}
    printed = run_example(tmp_path, "conv2_cifar10", BATCH_SIZE=40, NUM_VALIDATION=20, **settings)
    # A quarter of the units: convolutions 3*16*9 + 16*16*9 and output 640 at 0.8, the rest at 0.6.
    slow, fast = 3 * 16 * 9 + 16 * 16 * 9 + 640, 16 * 256 * 64 + 64 * 64
    kept = 100 * (0.8 * slow + 0.6 * fast) / (slow + fast)
    assert percentages(printed)[2] == pytest.approx(kept, abs=0.051)
    assert "Test accuracy" in printed
    assert (tmp_path / "results" / "conv2_cifar10" / "tickets" / "round_01.safetensors").is_file()


def test_a_ticket_is_transferred(tmp_path: Path, data_folder: Path) -> None:
    printed = run_example(tmp_path, "ticket_transfer", MAX_STEPS=4, TRANSFER_STEPS=4, ROUNDS=2)
    assert "density=0.25" in printed
    assert "Transferred: Missing in the ticket: 'network.output.weight', 'network.output.bias'" in (
        printed
    )
    results = tmp_path / "results" / "ticket_transfer"
    found = Ticket.load(results / "fashion_mnist.safetensors")
    assert found.masks.num_remaining == (235200 + 30000 + 1000) // 4
    assert "test_accuracy" in scalars(results / "ticket" / "version_0")
    assert len(percentages(printed)) == 4  # the search, and three trainings on MNIST


def test_batch_norm_makes_the_loss_smoother(tmp_path: Path, data_folder: Path) -> None:
    printed = run_example(tmp_path, "batch_norm_landscape", MAX_EPOCHS=3, NUM_IMAGES=2240)
    plain, with_norm = (float(one) for one in re.findall(r": (\d+\.\d) \(median\)", printed))
    assert with_norm < 0.8 * plain
    events = tmp_path / "results" / "batch_norm_landscape" / "plain" / "version_0"
    assert any("landscape" in tag for tag in scalars(events))


def test_the_generator_of_a_gan_is_pruned(tmp_path: Path) -> None:
    settings = {"MAX_EPOCHS": 1, "BATCHES_PER_EPOCH": 2, "BATCH_SIZE": 16, "ROUNDS": 2}
    printed = run_example(tmp_path, "gan", **settings)
    # 2*64 + 64*64 + 64*2 = 4352; 40 % of them are 1741, and of the other 2611 1044.
    assert f"Exactly zero in the generator: {1741 + 1044} of 4352 weights" in printed
    ticket = Ticket.load(tmp_path / "results" / "gan" / "generator.safetensors")
    assert ticket.masks.num_remaining == 4352 - 1741 - 1044
    assert all(name.startswith("generator.") for name in ticket.masks)


@pytest.mark.filterwarnings("ignore:.*is deprecated")  # in the backends of torch.distributed
def test_two_processes_find_one_ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # as torchrun does
    monkeypatch.chdir(tmp_path)
    example = load_example("ddp")
    example.MAX_EPOCHS, example.ROUNDS = 1, 2
    statuses = run_ranks(partial(_main, example), 2, tmp_path)
    outputs = [(tmp_path / f"output_{rank}.txt").read_text() for rank in range(2)]
    assert statuses == [0, 0], outputs[0][-3000:]
    said = [re.search(rf"rank {n}: (masks .*)", output) for n, output in enumerate(outputs)]
    assert all(said)
    assert said[0][1] == said[1][1]  # type: ignore[index]
    assert "0.3600" in outputs[0]
    ticket = Ticket.load(tmp_path / "results" / "ddp" / "tickets" / "round_02.safetensors")
    # 19200 + 30000 + 1000 weights, less 40 % of them and 40 % of the rest.
    assert ticket.masks.num_remaining == 50200 - 20080 - 12048


def _main(example: ModuleType) -> None:
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.__stdout__):  # otherwise pytest keeps it
        example.main()
        sys.stdout.flush()


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
    printed = run_example(tmp_path, "signal_propagation", WIDTH=512)
    assert "relu sqrt(2/n)" in printed
    picture = tmp_path / "results" / "signal_propagation" / "signal_propagation.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
