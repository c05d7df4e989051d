"""The example of Dropout before BatchNorm shows what it says, on fewer images."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from torch.utils.data import TensorDataset

from tests.loading import load_example

pytestmark = pytest.mark.examples


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example("dropout_before_batch_norm")


@pytest.fixture(scope="module")
def data(example: ModuleType, data_root: Path) -> list[TensorDataset]:
    if not (data_root / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"{data_root} has no FashionMNIST/raw")
    parts = zip(example.load_data(data_root), (2240, 500), strict=True)  # 35 batches, warmed up
    return [TensorDataset(*(one[:size] for one in part.tensors)) for part, size in parts]


def test_dropout_shifts_the_variance_and_is_warned_of(
    example: ModuleType, data: list[TensorDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    shifts = example.show_shift(data, 1, None)
    assert 1 <= shifts[0.0] < 1.3
    assert 1.1 * shifts[0.0] < shifts[0.2] < shifts[0.5] / 1.1
    lines = capsys.readouterr().out.splitlines()
    # Of four BatchNorms, three are behind a Dropout.
    assert [line.rpartition("; ")[2] for line in lines] == [f"{n} warnings" for n in (0, 3, 3)]
    for line in lines[1:]:
        ratios = [float(one) for one in re.findall(r"ratio ([\d., ]+);", line)[0].split(", ")]
        assert ratios[0] > 0.95  # in front of the first Dropout
        assert max(ratios[1:]) < 0.9


@pytest.mark.filterwarnings("ignore:BatchNorm '.*' is evaluated after")
def test_batch_norm_makes_the_loss_smoother(example: ModuleType, data: list[TensorDataset]) -> None:
    betas = example.show_smoothness(data, 3)
    assert betas[True] < 0.8 * betas[False]
