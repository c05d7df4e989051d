"""The example of a cyclical learning rate compares what it says that it compares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.loading import load_example

pytestmark = pytest.mark.examples


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example("cyclical_lr")


def test_the_quick_example_on_fashion_mnist(
    example: ModuleType,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not (data_root / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"{data_root} has no FashionMNIST/raw")
    picture = tmp_path / "accuracy.png"
    options = ["--quick", "--data-dir", str(data_root), "--output", str(picture)]
    monkeypatch.setattr(sys, "argv", ["cyclical_lr.py", *options])
    example.main()
    found, _, *rows, _, usual, best = capsys.readouterr().out.strip().splitlines()
    # A third of 375 steps, of which the range test takes 100.
    assert found.startswith("Seed 4: one cycle from 0.0")
    assert found.endswith(", 25 steps after the range test")
    values = {row[:21].strip(): float(row[21:].split()[0]) for row in rows}
    cycle = values.pop("125 steps in a cycle")
    names = ["125 steps at 0.01", "125 steps at 0.03", "125 steps at 0.1", "375 steps at 0.01"]
    assert list(values) == names
    assert all(70 < value < 90 for value in values.values())  # chance is 10
    assert 50 < cycle < 90
    assert usual == claim(cycle, "375 steps at 0.01", values)
    assert best in [claim(cycle, name, values) for name in names[:3]]
    assert picture.read_bytes().startswith(b"\x89PNG")


def claim(cycle: float, name: str, values: dict[str, float]) -> str:
    gain = cycle - values[name]
    held = int(gain >= 0)
    return f"125 steps in a cycle reach {name} in {held} of 1 seeds, {gain:+.2f} in the mean."


def test_the_claim_counts_seeds_and_ties(example: ModuleType) -> None:
    rows = {"a": [80.0, 82.0, 81.0], "b": [80.0, 80.0, 84.0]}  # tied, won by 2, lost by 3
    assert example.claim(rows, "a", "b") == "a reach b in 2 of 3 seeds, -0.33 in the mean."
    assert example.claim(rows, "b", "a") == "b reach a in 2 of 3 seeds, +0.33 in the mean."


class Seen(Callback):
    """Weights before the first step, and rates and images of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.images: list[Tensor] = []
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: list[Tensor], batch_idx: int
    ) -> None:
        if not self.rates:
            self.weights = {name: one.clone() for name, one in pl_module.state_dict().items()}
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.images.append(batch[0].clone())


@pytest.fixture
def tiny_data() -> list[TensorDataset]:
    """Images with a bright stripe for each label."""
    parts = []
    for size in (640, 50, 50):
        labels = torch.arange(size) % 10
        images = torch.randn(size, 10, 78) + 2 * torch.eye(10)[labels].unsqueeze(2)
        parts.append(TensorDataset(torch.nn.functional.pad(images.flatten(1), (0, 4)), labels))
    return parts


def run(train: Callable[..., object], *arguments: object) -> Seen:
    seen = Seen()
    train(*arguments, seen)
    return seen


def test_runs_of_a_seed_have_weights_and_batches_in_common(
    example: ModuleType, tiny_data: list[TensorDataset]
) -> None:
    fixed = run(example.train, tiny_data, 1, 0.03, 20)
    cycle = run(example.train_in_cycle, tiny_data, 1, 120)  # the range test takes 100
    other = run(example.train, tiny_data, 2, 0.03, 20)
    assert len(fixed.images) == len(cycle.images) == len(other.images) == 20
    torch.testing.assert_close(cycle.weights, fixed.weights, rtol=0, atol=0)
    torch.testing.assert_close(cycle.images, fixed.images, rtol=0, atol=0)
    assert not torch.equal(other.weights["layers.0.weight"], fixed.weights["layers.0.weight"])
    assert not torch.equal(other.images[0], fixed.images[0])


def test_only_the_cycle_moves_the_rate(example: ModuleType, tiny_data: list[TensorDataset]) -> None:
    assert set(run(example.train, tiny_data, 1, 0.03, 20).rates) == {0.03}
    rates = run(example.train_in_cycle, tiny_data, 1, 120).rates
    # 45 % of 20 steps up, as many down, and then far below where it began.
    assert rates.index(max(rates)) == 9
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[18] == pytest.approx(rates[0])
    assert rates[19] == pytest.approx(rates[0] / 1000)
