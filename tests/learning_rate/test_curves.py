"""Curves: the debiased average, what is refused, dictionaries and files."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_lth.learning_rate.curves import Curve, DebiasedMean


def test_the_average_by_hand() -> None:
    # beta = 0.5: averages 1, 0.5*1 + 0.5*5 = 3, 0.5*3 + 0.5*7 = 5; over 1/2, 3/4, 7/8
    curve = Curve("lr", (1, 2, 3), (2.0, 5.0, 7.0))
    assert curve.smoothed(0.5) == pytest.approx((1 / 0.5, 3 / 0.75, 5 / 0.875))


def test_the_first_average_is_the_first_loss() -> None:
    # Lightning 2.6 divides by 1 - beta**(n + 1), and starts at 0.505 of the first loss.
    smoothed = Curve("lr", (1, 2), (2.335, 2.335)).smoothed(0.98)
    assert smoothed == pytest.approx((2.335, 2.335), rel=1e-12)


def test_losses_that_are_not_finite_are_skipped() -> None:
    losses = (math.nan, 4.0, math.inf, 10.0, math.nan)
    smoothed = Curve("lr", range(1, 6), losses).smoothed(0.5)  # type: ignore[arg-type]
    # 4; then (0.25 * 4 + 0.5 * 10) / 0.75 = 8
    assert math.isnan(smoothed[0])
    assert smoothed[1:] == pytest.approx((4, 4, 8, 8))


def test_beta_0_does_not_smooth() -> None:
    assert Curve("lr", (1, 2, 3), (3.0, 1.0, 2.0)).smoothed(0) == (3.0, 1.0, 2.0)


@pytest.mark.parametrize("beta", [-0.1, 1.0, 98, math.nan])
def test_beta_is_a_weight(beta: float) -> None:
    with pytest.raises(ValueError, match=r"`beta` must be in \[0, 1\), got"):
        DebiasedMean(beta)


@pytest.mark.parametrize(
    ("values", "losses", "message"),
    [
        ((), (), "at least one point"),
        ((1.0, 2.0), (1.0,), "got 2 `values` and 1 `losses`"),
        ((1.0, math.nan), (1.0, 2.0), "`values` must be finite"),
        ((1.0, 1.0), (1.0, 2.0), r"must increase, got 1.0 before 1.0\. Sort"),
        ((2.0, 1.0), (1.0, 2.0), r"must increase, got 2.0 before 1.0\. Sort"),
    ],
)
def test_what_is_no_curve(
    values: tuple[float, ...], losses: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Curve("lr", values, losses)


def test_arrays_become_plain_numbers() -> None:
    curve = Curve("lr", np.array([1.0, 2.0]), torch.tensor([3.0, 4.0]))  # type: ignore[arg-type]
    assert curve == Curve("lr", (1.0, 2.0), (3.0, 4.0))
    assert {type(value) for value in curve.values + curve.losses} == {float}
    assert len(curve) == 2


def test_dictionary_there_and_back() -> None:
    curve = Curve("momentum", (0.1, 0.3, 0.5, 0.7), (1 / 3, math.inf, -math.inf, math.nan))
    text = json.dumps(curve.to_dict(), allow_nan=False)
    back = Curve.from_dict(json.loads(text))
    assert repr(back) == repr(curve)  # NaN is not equal to itself


def test_checkpoints_load_it_without_pickled_code() -> None:
    curve = Curve("lr", (0.1, 0.2), (1.0, math.nan))
    file = io.BytesIO()
    torch.save(curve.to_dict(), file)
    file.seek(0)
    assert repr(Curve.from_dict(torch.load(file, weights_only=True))) == repr(curve)


def test_csv(tmp_path: Path) -> None:
    path = Curve("lr", (0.1, 0.2), (3.0, math.nan)).to_csv(tmp_path / "new" / "curve.csv")
    assert path.read_text() == "lr,loss,smoothed_loss\n0.1,3.0,3.0\n0.2,nan,3.0\n"
    assert [file.name for file in path.parent.iterdir()] == ["curve.csv"]


def test_csv_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{'c' * 251}.csv"  # as long as a name may be
    path.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            Curve("lr", (0.1,), (3.0,)).to_csv(path)
    assert path.read_text() == "old"
    Curve("lr", (0.1,), (3.0,)).to_csv(path)
    assert path.read_text() == "lr,loss,smoothed_loss\n0.1,3.0,3.0\n"
    assert list(tmp_path.iterdir()) == [path]
