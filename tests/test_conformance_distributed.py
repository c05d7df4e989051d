"""Several processes find what one finds, and go on where another number of them stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contents import assert_rows_close, plain
from tests.distributed_combination import MIDDLE, fit

pytestmark = pytest.mark.distributed


@pytest.fixture(params=[2, 4])
def processes(request: pytest.FixtureRequest) -> tuple[Path, int]:
    """Where so many processes wrote, and how many there were."""
    name = {2: "two_processes", 4: "four_processes"}[request.param]
    return request.getfixturevalue(name), request.param


def check_close(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Sums of gradients differ in their last digits."""
    assert got.keys() == expected.keys()
    assert plain(got["masks"]) == plain(expected["masks"])
    for name in ("weights", "validations", "rates"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-5)
    assert_rows_close(got["history"], expected["history"])


def test_they_agree_with_each_other_and_with_one(
    processes: tuple[Path, int], tmp_path: Path
) -> None:
    folder, count = processes
    ranks = [torch.load(folder / "together" / f"whole_{rank}.pt") for rank in range(count)]
    for other in ranks[1:]:
        assert plain({**other, "table": None}) == plain({**ranks[0], "table": None})
    alone = fit(tmp_path, 1)
    check_close(ranks[0], alone)
    assert_rows_close(ranks[0]["table"], alone["table"])  # an eighth of 8 and of 2 is one sample
    assert ranks[0]["losses"][:50] == pytest.approx(alone["losses"][:50], rel=1e-4)
    assert [record["density"] for record in alone["history"]] == [1, 192 / 240, 154 / 240]


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its FSDP2 needs a GPU")
def test_they_agree_where_weights_are_sharded(four_processes: Path, tmp_path: Path) -> None:
    folder = four_processes / "together_fsdp2"
    ranks = [torch.load(folder / f"whole_{rank}.pt") for rank in range(4)]
    for other in ranks[1:]:
        assert plain({**other, "table": None}) == plain({**ranks[0], "table": None})
    alone = fit(tmp_path, 1, can_shard=True)
    check_close(ranks[0], alone)
    # The scales and offsets of a layer that is sharded have no statistics.
    sharded = ("gamma_abs", "gamma_zero", "neg_beta")
    rows = [{k: v for k, v in row.items() if k not in sharded} for row in alone["table"]]
    assert_rows_close(ranks[0]["table"], rows)


@pytest.mark.parametrize("direction", ["to several", "to one"])
def test_they_resume_what_another_number_began(
    direction: str, processes: tuple[Path, int], tmp_path: Path
) -> None:
    folder, _ = processes
    if direction == "to several":
        resumed = torch.load(folder / "together" / "resumed_0.pt")
    else:
        resumed = fit(tmp_path / "resumed", 1, folder / "together" / "middle.ckpt")
    alone = fit(tmp_path / "alone", 1)
    alone["rates"] = alone["rates"][-len(resumed["rates"]) :]
    assert len(resumed["rates"]) == 12 - MIDDLE[1] + 10  # rewound to step 2
    check_close(resumed, alone)
