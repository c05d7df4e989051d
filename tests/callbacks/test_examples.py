"""What a step that is tried out on an example batch leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_lth import Initializer
from tests.callbacks.modules import Classifier, loader, trainer


def test_a_step_that_asks_for_the_end_is_not_heard() -> None:
    class Guarded(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            calls.append(batch_idx)
            self.trainer.should_stop |= len(calls) == 1
            return super().training_step(batch, batch_idx)

    calls: list[int] = []
    fitter = trainer(Initializer(seed=0), max_epochs=1)
    fitter.fit(Guarded(), loader(), loader())
    assert fitter.global_step == 6


class Listening(DummyLogger):
    def __init__(self, logged: list[int | None]) -> None:
        super().__init__()
        self.logged = logged

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "mine" in metrics:
            self.logged.append(step)


def test_the_logger_hears_nothing() -> None:
    class Direct(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.logger.log_metrics({"mine": float(loss.detach())}, step=self.global_step)  # type: ignore[union-attr]
            return loss

    logged: list[int | None] = []
    trainer(Initializer(seed=0), max_epochs=1, logger=Listening(logged)).fit(
        Direct(), loader(), loader()
    )
    assert logged == [*range(6)]


class Noisy(Dataset[Any]):
    """Draws from a generator of its own, and tells what; its attributes would go back, too."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.generator = np.random.default_rng(0)
        self.tell = tell

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.tell(value := float(self.generator.random()))
        return torch.full((6,), value), 0


def test_generators_of_the_data_set_go_back() -> None:
    drawn: list[float] = []
    train = DataLoader(Noisy(drawn.append), batch_size=8)
    trainer(Initializer(seed=0), max_epochs=1).fit(Classifier(), train, loader())
    assert len(drawn) == 24
    assert drawn[:8] == drawn[8:16]  # the example, and the first batch
