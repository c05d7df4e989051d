"""The example of Dropout before BatchNorm shows what it says, on fewer images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_examples import run_example, scalars

pytestmark = pytest.mark.examples


def test_dropout_shifts_the_variance_and_is_warned_of(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (data_root / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"{data_root} has no FashionMNIST/raw")
    monkeypatch.setenv("LIGHTNING_LTH_DATA", str(data_root))
    settings: dict[str, Any] = {
        "NUM_IMAGES": 2240,
        "NUM_TEST_IMAGES": 500,
        "MAX_EPOCHS": 1,
    }  # 35 steps
    settings |= {"DROPOUT": (0.0, 0.5)}
    with pytest.warns(UserWarning, match="runs behind Dropout"):
        printed = run_example(tmp_path, "dropout_before_batch_norm", **settings)
    rows = re.findall(r"(train_eval_\w+) +(.*)", printed)
    shifts, ratios = (
        [[float(one) for one in row.split()] for name, row in rows if name == f"train_eval_{kind}"]
        for kind in ("shift", "ratio")
    )
    means = [sum(one[1:]) / 3 for one in shifts]  # of the three behind a Dropout
    assert 1 <= means[0] < 1.3
    assert means[1] > 1.2 * means[0]
    assert re.findall(r"(\d) problems", printed) == ["0", "3"]
    assert ratios[1][0] > 0.95  # in front of the first Dropout
    assert max(ratios[1][1:]) < 0.9
    events = tmp_path / "results" / "dropout_before_batch_norm" / "dropout_0.5" / "version_0"
    assert "summary/train_eval_shift/median" in scalars(events)
