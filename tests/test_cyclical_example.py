"""The example of a cyclical learning rate compares what it says that it compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.loading import load_example
from tests.test_examples import percentages, run_example

pytestmark = pytest.mark.examples


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that it is put back
    return load_example("cyclical_lr")


def test_the_example_on_fashion_mnist(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (data_root / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"{data_root} has no FashionMNIST/raw")
    monkeypatch.setenv("LIGHTNING_LTH_DATA", str(data_root))
    found, *rows, _ = run_example(tmp_path, "cyclical_lr", STEPS=375).splitlines()
    assert found.startswith("Seed 4: one cycle from 0.0")
    names = ["125 steps at 0.01", "125 steps at 0.03", "125 steps at 0.1", "375 steps at 0.01"]
    assert [row[:21].strip() for row in rows] == [*names, "125 steps in a cycle"]
    *fixed, cycle = (percentages(row)[0] for row in rows)
    assert all(70 < value < 90 for value in fixed)  # chance is 10
    assert 50 < cycle < 90  # 25 steps, after the 100 of the range test
    picture = tmp_path / "results" / "cyclical_lr" / "seed_4" / "lr_finder_round_00.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


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
    for size in (640, 50):
        labels = torch.arange(size) % 10
        images = torch.randn(size, 10, 78) + 2 * torch.eye(10)[labels].unsqueeze(2)
        parts.append(TensorDataset(torch.nn.functional.pad(images.flatten(1), (0, 4)), labels))
    return parts


def runs(example: ModuleType, data: list[TensorDataset], seed: int) -> dict[str, Seen]:
    """What happens in each of the trainings that are compared; 60 steps, a third are 20."""
    seen: dict[str, Seen] = {}
    example.STEPS, example.RANGE_TEST_STEPS, example.OTHER_RATES = 60, 10, (0.03,)
    train: Callable[..., object] = example.train

    def watched(data: object, name: str, *arguments: object) -> object:
        seen[name] = Seen()
        return train(data, name, *arguments, seen[name])

    example.train = watched
    example.compare(data, seed)
    example.train = train
    return seen


def test_runs_of_a_seed_have_weights_and_batches_in_common(
    example: ModuleType, tiny_data: list[TensorDataset]
) -> None:
    first, other = (runs(example, tiny_data, seed) for seed in (1, 2))
    fixed, cycle = first["fixed_0.03"], first["cycle"]
    assert [len(one.images) for one in first.values()] == [60, 20, 10]
    torch.testing.assert_close(cycle.weights, fixed.weights, rtol=0, atol=0)
    torch.testing.assert_close(cycle.images, fixed.images[:10], rtol=0, atol=0)
    different = other["fixed_0.03"]
    assert not torch.equal(different.weights["layers.0.weight"], fixed.weights["layers.0.weight"])
    assert not torch.equal(different.images[0], fixed.images[0])


def test_only_the_cycle_moves_the_rate(example: ModuleType, tiny_data: list[TensorDataset]) -> None:
    seen = runs(example, tiny_data, 1)
    assert [set(seen[f"fixed_{rate}"].rates) for rate in (0.01, 0.03)] == [{0.01}, {0.03}]
    rates = seen["cycle"].rates
    # 45 % of 10 steps up, which are 4, as many down, and then far below where it began.
    assert rates.index(max(rates)) == 4
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[8] == pytest.approx(rates[0])
    assert rates[9] < rates[0] / 2
