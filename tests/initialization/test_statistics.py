"""Against torch in double precision."""

from __future__ import annotations

import pytest
import torch

from lightning_lth.initialization.statistics import standard_deviation


@pytest.mark.parametrize("size", [1, 7, 1 << 18, 600_001, 3_000_001])
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0, 1e-8), (5, 0.1), (1000, 1e-2), (-3, 0)])
def test_standard_deviation(size: int, mean: float, std: float) -> None:
    values = torch.randn(size) * std + mean
    expected = float(values.double().std(correction=0))
    assert standard_deviation(values) == pytest.approx(expected, rel=4e-3, abs=1e-30)


def test_other_dtypes_and_strides() -> None:
    values = torch.arange(24.0).view(4, 6)
    expected = float(values.std(correction=0))
    assert standard_deviation(values.T) == pytest.approx(expected)
    assert standard_deviation(values.bfloat16()) == pytest.approx(expected)
    assert standard_deviation(torch.tensor([float("nan"), 1.0])) != 0


def test_up_to_a_million_values_it_is_exact() -> None:
    values = torch.linspace(-1, 1, 1 << 20)  # every block has another mean
    assert standard_deviation(values) == pytest.approx(3**-0.5, rel=1e-5)


def test_of_more_values_the_blocks_are_spread() -> None:
    values = torch.linspace(-1, 1, 1 << 23)
    assert standard_deviation(values) == pytest.approx(3**-0.5, rel=0.1)
    values[: 1 << 22] = 0  # a sample of the first or last values only would see none or all of it
    expected = float(values.double().std(correction=0))
    assert standard_deviation(values) == pytest.approx(expected, rel=0.1)
