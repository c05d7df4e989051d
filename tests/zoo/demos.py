"""Lightning's own demo modules, and the adversarial network of its documentation."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import (
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    RandomDataset,
)
from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.zoo.project import Project, Refusal

OWN_SCHEDULER = Refusal(ValueError, "the module's own StepLR would both set the learning rate")
NOTHING_LOGGED = Refusal(RuntimeError, r"'val_loss'` is not available at epoch 0", is_early=False)
VOCABULARY = 20


def forward(module: Any, batch: Any) -> Tensor:
    return module(batch)


def boring(kind: type[LightningModule]) -> tuple[LightningModule, dict[str, Any]]:
    data = RandomDataset(32, 16)
    return kind(), {
        "train_dataloaders": DataLoader(data, batch_size=4),
        "val_dataloaders": DataLoader(data, batch_size=4),
    }


def demo() -> tuple[LightningModule, dict[str, Any]]:
    return DemoModel(), {"train_dataloaders": DataLoader(RandomDataset(32, 16), batch_size=4)}


class Tokens(Dataset[tuple[Tensor, Tensor]]):
    """Shaped as the demos' WikiText2, which would be downloaded."""

    def __init__(self) -> None:
        self.data = torch.randint(VOCABULARY, (8, 9))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[index, :-1], self.data[index, 1:]


class OfflineTransformer(LightningTransformer):
    """The demo, 16 instead of 200 wide."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY)
        self.model = Transformer(VOCABULARY, ninp=16, nhid=16, nlayers=1)

    def prepare_data(self) -> None:
        """Download nothing."""


def transformer() -> tuple[LightningModule, dict[str, Any]]:
    return OfflineTransformer(), {"train_dataloaders": DataLoader(Tokens(), batch_size=4)}


class OfflineLSTM(LightningLSTM):
    """The demo, which carries the hidden state from batch to batch; 16 instead of 512 wide."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY)
        self.model = SimpleLSTM(VOCABULARY, ninp=16, nhid=16, nlayers=2)

    def prepare_data(self) -> None:
        """Download nothing."""


def lstm() -> tuple[LightningModule, dict[str, Any]]:
    tokens = Tokens()
    loader = DataLoader(tokens, batch_sampler=SequenceSampler(tokens, batch_size=4))
    return OfflineLSTM(), {"train_dataloaders": loader}


def say(module: OfflineLSTM, batch: Any) -> Tensor:
    return module.model(batch[0], module.model.init_hidden(len(batch[0])))[0]


class GAN(LightningModule):
    """Two networks and two optimizers, as in Lightning's documentation of manual optimization."""

    def __init__(self, *, returns_loss: bool) -> None:
        super().__init__()
        self.returns_loss = returns_loss
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 8), nn.Tanh()
        )
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def loss(self, samples: Tensor, *, is_real: bool) -> Tensor:
        verdict = self.discriminator(samples)
        wanted = torch.full_like(verdict, float(is_real))
        return nn.functional.binary_cross_entropy_with_logits(verdict, wanted)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        of_generator, of_discriminator = self.optimizers()  # type: ignore[misc]
        real = batch[0]
        noise = torch.randn(len(real), 4).type_as(real)

        self.toggle_optimizer(of_generator)
        g_loss = self.loss(self(noise), is_real=True)
        self.manual_backward(g_loss)
        of_generator.step()
        of_generator.zero_grad()
        self.untoggle_optimizer(of_generator)

        self.toggle_optimizer(of_discriminator)
        real_loss = self.loss(real, is_real=True)
        d_loss = (real_loss + self.loss(self(noise).detach(), is_real=False)) / 2
        self.manual_backward(d_loss)
        of_discriminator.step()
        of_discriminator.zero_grad()
        self.untoggle_optimizer(of_discriminator)

        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)
        return g_loss + d_loss if self.returns_loss else None

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        second = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        return [first, second], []


def gan(*, returns_loss: bool) -> tuple[LightningModule, dict[str, Any]]:
    data = TensorDataset(torch.randn(8, 8))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    return GAN(returns_loss=returns_loss), {"train_dataloaders": loader}


def imagine(module: GAN, batch: Any) -> Tensor:
    return module(batch[0][:, :4])


# The example goes through `forward`, that is the generator alone.
UNSEEN = "Which nonlinearity follows 'discriminator.0', 'discriminator.2' is not known"
NO_LOSS = Refusal(RuntimeError, "`training_step` returned no loss")
PROJECTS = [
    Project(
        "boring",
        lambda: boring(BoringModel),
        output=forward,
        refused={"cycles": OWN_SCHEDULER, "stopping": NOTHING_LOGGED},
    ),
    Project(
        "boring-manual",
        lambda: boring(ManualOptimBoringModel),
        example=lambda: torch.randn(4, 32),
        output=forward,
        refused={"cycles": OWN_SCHEDULER, "stopping": NOTHING_LOGGED},
    ),
    Project("demo", demo, output=forward, refused={"stopping": NOTHING_LOGGED}),
    Project(
        "transformer",
        transformer,
        output=lambda module, batch: module(*batch),
        refused={"stopping": NOTHING_LOGGED},
    ),
    Project("lstm", lstm, monitor="train_loss", output=say),
    Project(
        "gan",
        lambda: gan(returns_loss=True),
        monitor="g_loss",
        example=lambda: torch.randn(4, 4),
        output=imagine,
        warnings=(UNSEEN,),
    ),
    Project(
        "gan-without-loss",
        lambda: gan(returns_loss=False),
        monitor="g_loss",
        example=lambda: torch.randn(4, 4),
        output=imagine,
        warnings=(UNSEEN,),
        refused={"finder": NO_LOSS, "momentum": NO_LOSS},
    ),
]
