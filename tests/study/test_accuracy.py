"""On which examples the accuracies are measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
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
    trainer.validate(model, verbose=False)
    found = accuracies(trainer, model, weights, Measures())
    assert found == {"validation_accuracy": 2.5, "train_accuracy": pytest.approx(mean)}


class OwnData(MeanOfInputs):
    """Has its data from ``setup`` on."""

    def setup(self, stage: str) -> None:
        self.examples = TensorDataset(torch.arange(6.0) + (10 if stage == "test" else 0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.examples)

    val_dataloader = test_dataloader = train_dataloader

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_accuracy", batch[0].mean())


def test_a_module_may_make_its_own_data_in_setup() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.validate(trained := OwnData(), verbose=False)
    weights = BestWeights.of(trained, step=0, value=0.0)
    found = accuracies(trainer, OwnData(), weights, Measures())
    assert found == {"validation_accuracy": 2.5, "train_accuracy": 2.5, "test_accuracy": 12.5}


class Doubles(LightningDataModule):
    """Doubles what is not trained on, and splits its examples anew whenever it is set up."""

    def prepare_data(self) -> None:
        raise AssertionError("the data are there already")

    def setup(self, stage: str) -> None:
        self.examples = TensorDataset(torch.arange(6.0) + (10 if stage == "test" else 0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.examples)

    val_dataloader = test_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        assert self.trainer is not None
        return [(0 if self.trainer.training else 2) * batch[0]]

    def teardown(self, stage: str) -> None:
        self.examples.tensors = ()


class AsksAround(LightningModule):
    """Talks to its logger, and looks at the data module, as many do."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        assert self.trainer.datamodule.examples.tensors  # type: ignore[attr-defined]
        self.logger.experiment.add_scalar("any", 1.0, batch_idx)  # type: ignore[union-attr]
        self.log("val_accuracy", batch[0].mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_accuracy", batch[0].mean())


def test_batches_are_as_the_data_module_makes_them_which_is_left_alone() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data, module = Doubles(), AsksAround()
    data.setup("fit")
    kept = data.examples
    trainer.datamodule, data.trainer = data, trainer  # type: ignore[attr-defined]
    trainer.training = True
    found = accuracies(trainer, module, BestWeights.of(module, step=0, value=0.0), Measures())
    assert found == {"validation_accuracy": 5.0, "train_accuracy": 5.0, "test_accuracy": 25.0}
    assert data.examples is kept
    assert data.trainer is trainer
    assert kept.tensors
