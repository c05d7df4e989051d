"""Small modules and data for the tests of the callbacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NUM_SAMPLES, BATCH_SIZE = 48, 8  # 6 batches an epoch
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def data(seed: int = 0) -> TensorDataset:
    """48 samples of 6 features in 3 classes that a small network can learn."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(NUM_SAMPLES, 6, generator=generator)
    labels = (inputs @ torch.randn(6, 3, generator=generator)).argmax(1)
    return TensorDataset(inputs, labels)


def loader(**kwargs: object) -> DataLoader:
    """Unshuffled batches of 8, unless told otherwise."""
    return DataLoader(data(), batch_size=BATCH_SIZE, **kwargs)  # type: ignore[arg-type]


def network(seed: int = 0) -> nn.Sequential:
    """A perceptron with batch normalization: 6*16 + 16*3 = 144 prunable weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``Classifier`` unless told otherwise."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Classifier(LightningModule):
    """Logs `val_loss`; remembers learning rates and whether pruned weights were zero."""

    def __init__(
        self,
        optimizer: OptimizerFactory | None = None,
        scheduler: Callable[[LightningModule, torch.optim.Optimizer], object] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net = network(seed)
        self.make_optimizer = optimizer or momentum
        self.make_scheduler = scheduler

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> object:
        optimizer = self.make_optimizer(list(self.parameters()))
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(self, optimizer)}


def trainer(*callbacks: object, **kwargs: object) -> Trainer:
    """A silent Trainer on the CPU without files."""
    settings: dict[str, object] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **(settings | kwargs))  # type: ignore[arg-type]


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the whole state of a module."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bitwise, with a message that names the tensor."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name}: {(value - second[name]).abs().max()}"
