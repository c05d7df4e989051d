"""On which examples the accuracies are measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_lth.stopping.best_weights import BestWeights
from lightning_lth.study import Measures
from lightning_lth.study.accuracy import accuracies

EXAMPLES = TensorDataset(torch.arange(6.0))


class MeanOfInputs(LightningModule):
    """Its accuracy says which examples it saw."""

    def __init__(self, **loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> DataLoader:
        return DataLoader(EXAMPLES, **self.loader)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(EXAMPLES)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_accuracy", batch[0].mean(), batch_size=batch[0].numel())


@pytest.mark.parametrize(
    ("loader", "mean"),
    [
        ({"shuffle": True, "batch_size": 4, "drop_last": True}, 2.5),  # of 0 to 5
        ({"sampler": RandomSampler(EXAMPLES, num_samples=1)}, 2.5),
        ({"sampler": SubsetRandomSampler([0, 1])}, 0.5),
        ({"sampler": WeightedRandomSampler([0, 0, 0, 0, 0, 1], num_samples=3)}, 5),
        ({"batch_sampler": [[3, 4], [4, 5]]}, 4),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_training_accuracy_is_that_of_the_examples_that_are_trained_on(
    loader: dict[str, Any], mean: float
) -> None:
    model = MeanOfInputs(**loader)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    weights = BestWeights.of(model, step=0, value=0.0)
    model.trainer = trainer
    found = accuracies(trainer, model, weights, Measures())
    assert found == {"validation_accuracy": 2.5, "train_accuracy": pytest.approx(mean)}
