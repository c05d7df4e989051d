"""Run in several processes for test_pruning_distributed.py; writes down what it sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lth import IterativeMagnitudePruning
from lightning_lth.pruning.scoring import magnitude, random
from lightning_lth.pruning.sharding import local_part
from tests.callbacks.modules import Classifier, data, trainer


class Distributed(Classifier):
    """Remembers after every batch whether the pruned weights of this rank are zero."""

    def __init__(self, *, is_sharded: bool) -> None:
        super().__init__()
        self.is_sharded = is_sharded
        self.net[1] = nn.Identity()  # statistics of half batches would differ from one process
        self.nonzero: list[int] = []

    def configure_model(self) -> None:
        if self.is_sharded:
            fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net[3], mesh=self.device_mesh["data_parallel"])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("rank", float(self.global_rank))

    def on_train_batch_end(self, *args: object) -> None:
        parameters = [self.net[0].weight, self.net[3].weight]
        self.nonzero.append(sum(int(local_part(p).count_nonzero()) for p in parameters))


def batches(num_ranks: int, rank: int) -> DataLoader[list[Tensor]]:
    """Unshuffled; the batches of all ranks together are those of one process."""
    sampler: DistributedSampler[list[Tensor]] = DistributedSampler(
        data(), num_ranks, rank, shuffle=False
    )
    return DataLoader(data(), batch_size=8 // num_ranks, sampler=sampler)


def main(strategy_name: str, num_processes: int, folder: Path) -> None:
    """Fit 3 rounds, and write masks and weights of this rank to a file."""
    seed_everything(0, verbose=False)
    is_sharded = strategy_name == "fsdp2"
    strategy = ModelParallelStrategy(num_processes, 1) if is_sharded else DDPStrategy()
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    criterion = random(rank) if strategy_name == "ddp_differing" else magnitude
    pruning = IterativeMagnitudePruning(2, ticket_dir=folder / "tickets", criterion=criterion)
    fitter = trainer(
        pruning,
        strategy=strategy,
        devices=num_processes,
        max_epochs=2,
        use_distributed_sampler=False,
        gradient_clip_val=None if is_sharded else 0.1,
    )
    module = Distributed(is_sharded=is_sharded)
    fitter.fit(module, *(batches(num_processes, rank) for _ in range(2)))
    state = {
        k: v.full_tensor() if hasattr(v, "full_tensor") else v
        for k, v in module.state_dict().items()
    }
    torch.save(state, folder / f"weights_{rank}.pt")
    result = {
        "masks": pruning.masks.fingerprint(),
        "nonzero": module.nonzero,
        "history": pruning.history.rows(),
    }
    (folder / f"result_{rank}.json").write_text(json.dumps(result))


def differing(folder: Path) -> None:
    """Ranks that score differently are stopped; write what each is told."""
    try:
        main("ddp_differing", 2, folder)
    except RuntimeError as error:
        (folder / f"error_{os.environ['LOCAL_RANK']}.txt").write_text(str(error))
