"""Pruning in two real processes on the CPU, against one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.tensor

from lightning_lth import IterativeMagnitudePruning, Masks, Ticket
from lightning_lth.callbacks._compatibility import refuse_sharded_resume
from tests.callbacks.distributed_fits import Distributed, batches
from tests.callbacks.modules import assert_equal, trainer


@pytest.mark.distributed
@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        pytest.param(
            "fsdp2",
            marks=pytest.mark.skipif(
                torch.__version__.startswith("2.6."), reason="its FSDP2 needs a GPU"
            ),
        ),
    ],
)
def test_two_processes_agree_with_one(strategy: str, two_processes: Path) -> None:
    folder = two_processes / f"pruning_{strategy}"
    first, second = (json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(2))
    alone, pruning = Distributed(is_sharded=False), IterativeMagnitudePruning(2)
    settings = {} if strategy == "fsdp2" else {"gradient_clip_val": 0.1}
    trainer(pruning, max_epochs=2, **settings).fit(alone, batches(1, 0), batches(1, 0))

    assert first["masks"] == second["masks"] == pruning.masks.fingerprint()
    assert first["densities"] == [record.density for record in pruning.history]
    survivors = [144] * 12 + [115] * 12 + [92] * 12
    if strategy == "ddp":
        assert first["nonzero"] == second["nonzero"] == survivors
    else:
        assert [
            a + b for a, b in zip(first["nonzero"], second["nonzero"], strict=True)
        ] == survivors
    weights = [torch.load(folder / f"weights_{rank}.pt", weights_only=True) for rank in range(2)]
    assert_equal(*weights)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(weights[0][name], value)
    ticket = Ticket.load(folder / "tickets" / "round_02.safetensors")
    assert ticket.masks == pruning.masks


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
