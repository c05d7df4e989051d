"""Pruning in real processes on the CPU, against one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.tensor
from torch import Tensor

from lightning_lth import IterativeMagnitudePruning, Masks, Ticket
from lightning_lth.callbacks._compatibility import refuse_sharded_resume
from tests.callbacks.distributed_fits import Distributed, batches
from tests.callbacks.modules import assert_equal, trainer
from tests.contents import assert_rows_close

SURVIVORS = [144] * 12 + [115] * 12 + [92] * 12  # after each step of three rounds


def load(folder: Path, count: int) -> tuple[list[Any], list[dict[str, Tensor]]]:
    """What each of the ranks saw, and the weights that it ended with."""
    results = [json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(count)]
    paths = [folder / f"weights_{rank}.pt" for rank in range(count)]
    return results, [torch.load(path, weights_only=True) for path in paths]


def check_as_one(results: list[Any], weights: list[dict[str, Tensor]], **settings: Any) -> Masks:
    """Compare with one process, and return its masks."""
    alone, pruning = Distributed(is_sharded=False), IterativeMagnitudePruning(2)
    trainer(pruning, max_epochs=2, **settings).fit(alone, batches(1, 0), batches(1, 0))
    for result in results:
        assert result["masks"] == pruning.masks.fingerprint()
        assert result["history"] == results[0]["history"]
    assert_rows_close(results[0]["history"], pruning.history.rows())
    for other in weights[1:]:
        assert_equal(weights[0], other)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(weights[0][name], value)
    return pruning.masks


@pytest.mark.distributed
def test_two_processes_agree_with_one(two_processes: Path) -> None:
    results, weights = load(two_processes / "pruning_ddp", 2)
    masks = check_as_one(results, weights, gradient_clip_val=0.1)
    assert results[0]["nonzero"] == results[1]["nonzero"] == SURVIVORS
    ticket = Ticket.load(two_processes / "pruning_ddp" / "tickets" / "round_02.safetensors")
    assert ticket.masks == masks


@pytest.mark.distributed
@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its FSDP2 needs a GPU")
@pytest.mark.parametrize(("fixture", "count"), [("two_processes", 2), ("four_processes", 4)])
def test_sharded_weights_are_pruned_as_whole_ones(
    fixture: str, count: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture) / "pruning_fsdp2"
    results, weights = load(folder, count)
    masks = check_as_one(results, weights)
    parts = [result["nonzero"] for result in results]
    assert [sum(counts) for counts in zip(*parts, strict=True)] == SURVIVORS
    assert Ticket.load(folder / "tickets" / "round_02.safetensors").masks == masks


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_would_prune_differently_are_stopped(rank: int, two_processes: Path) -> None:
    told = (two_processes / "pruning_differing" / f"error_{rank}.txt").read_text()
    assert told.startswith("The ranks would prune different weights")


@pytest.mark.filterwarnings("ignore:DTensor random operators")  # torch 2.6; none is used
def test_resuming_with_sharded_parameters_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        weight = torch.distributed.tensor.distribute_tensor(
            torch.ones(4, 2), mesh, [torch.distributed.tensor.Shard(0)]
        )
        refuse_sharded_resume(Masks.dense({"w": weight}), {"w": weight})
        with pytest.raises(RuntimeError, match="cannot be resumed"):
            refuse_sharded_resume(Masks({"w": torch.ones(4, 2)}), {"w": weight})
    finally:
        torch.distributed.destroy_process_group()
