"""A user's own module and data, as small as can be, for studies of a second."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_lth.study.surroundings import NoProfiler


class Net(LightningModule):
    """6*16 + 16*3 = 144 prunable weights."""

    def __init__(self, hidden: int = 16, classes: int = 3, metric: str = "val_loss") -> None:
        super().__init__()
        self.hidden = nn.Linear(6, hidden)
        self.output = nn.Linear(hidden, classes)
        self.metric = metric

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(torch.relu(self.hidden(inputs)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        outputs = self(batch[0])
        self.log(self.metric, cross_entropy(outputs, batch[1]))
        self.log("val_accuracy", (outputs.argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class LogsSurroundings(Net):
    """Logs how many threads torch uses, and whether GPUs are hidden and steps are timed."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("num_threads", float(torch.get_num_threads()))
        self.log("hides_gpus", float(os.environ.get("CUDA_VISIBLE_DEVICES") == ""))
        self.log("is_timed", float(isinstance(self.trainer.profiler, SimpleProfiler)))
        self.log("has_profiler", float(not isinstance(self.trainer.profiler, NoProfiler)))


class TalksToItsLogger(Net):
    """Writes more than metrics."""

    def on_validation_epoch_end(self) -> None:
        self.logger.experiment.add_text("epoch", str(self.current_epoch))  # type: ignore[union-attr]


class LogsOurColumns(Net):
    """Logs metrics that are called as columns of the records are."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        for name in ("arm", "seed", "draw", "round", "density", "step", "layer", "stop_reason"):
            self.log(name, 0.5 + batch_idx)


class Data(LightningDataModule):
    """48 shuffled training samples in batches of 8, 24 for validation, 24 for the test."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise

    def setup(self, stage: str) -> None:
        assert stage in ("fit", "validate", "test")
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(96, 6, generator=generator)
        labels = (inputs @ torch.randn(6, 3, generator=generator)).argmax(1)
        inputs = inputs + self.noise * torch.randn(96, 6, generator=generator)
        parts = zip(inputs.split([48, 24, 24]), labels.split([48, 24, 24]), strict=True)
        self.parts = [TensorDataset(*part) for part in parts]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=24)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=24)


class Threes(Data):
    """Batches that are no pairs, which the module does not mind."""

    def train_dataloader(self) -> DataLoader:
        inputs, labels = self.parts[0].tensors
        return DataLoader(TensorDataset(inputs, labels, labels), batch_size=8)


class InStep(Data):
    """The same global batches, unshuffled, in one process or in two; then 4 examples for each."""

    def train_dataloader(self) -> DataLoader:
        if not distributed.is_initialized():
            return DataLoader(self.parts[0], batch_size=8)
        sampler = DistributedSampler(self.parts[0], shuffle=False)
        return DataLoader(self.parts[0], batch_size=4, sampler=sampler)


class InStepNet(Net):
    """Logs means over all processes, and fails unless they end with the same weights."""

    def log(self, *args: object, **options: object) -> None:
        super().log(*args, **options, sync_dist=True)  # type: ignore[arg-type]

    def on_train_end(self) -> None:
        for parameter in self.parameters():
            everywhere = self.all_gather(parameter.detach()).reshape(-1, *parameter.shape)
            if any(not torch.equal(parameter, other) for other in everywhere):
                raise RuntimeError("the processes have different weights")


class DiesOnce(Data):
    """Kills the training that goes on for so many epochs as a file says, the first time only."""

    def __init__(self, flag: str) -> None:
        super().__init__()
        self.flag = Path(flag)
        self._calls = 0

    def on_before_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        if self.trainer is not None and self.trainer.training:
            self._calls += 1
            if self.flag.exists() and self._calls > 6 * int(self.flag.read_text()):
                self.flag.unlink()
                raise KeyboardInterrupt
        return batch


CLAIM = {
    "text": "",
    "arm": "winning_ticket",
    "round": 1,
    "than_round": 0,
    "measure": "early_stop_step",
    "expect": "lower",
}


def config(**changes: object) -> dict[str, object]:
    """Two seeds, two rounds that prune half, 12 steps for each training."""
    return {
        "name": "tiny",
        "seeds": [0, 1],
        "model": {"class_path": "tests.study.tiny.Net"},
        "data": {"class_path": "tests.study.tiny.Data"},
        "trainer": {"accelerator": "cpu", "max_steps": 12, "val_check_interval": 3},
        "pruning": {"rounds": 2, "fraction": 0.5, "scope": "layer"},
        "arms": {"winning_ticket": iterative()},
        **changes,
    }


def iterative(**arguments: object) -> dict[str, object]:
    """The arm of winning tickets."""
    return {"class_path": "IterativePruning", "init_args": arguments}


def control(**arguments: object) -> dict[str, object]:
    """An arm of controls."""
    return {"class_path": "Control", "init_args": {"of": "winning_ticket", **arguments}}
