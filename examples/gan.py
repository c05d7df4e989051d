"""Prune the generator of a GAN: two optimizers, stepped by hand in `training_step`.

    python examples/gan.py    # 60 s on 2 cores; needs `pip install -e ".[examples]"`

A small GAN learns eight points on a circle. The callback finds the generator's ticket while the
discriminator stays dense; both are rewound together, and so are both Adams. In manual optimization
the pruned weights are set to zero after each step: exactly, too.

Prints how many of the eight points the samples of each round reach, and which share is near one.
The ticket and TensorBoard events are in `results/gan`: `tensorboard --logdir results`.
"""

import logging
import math
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.data import DataLoader, TensorDataset

from lightning_lth import IterativeMagnitudePruning

MAX_EPOCHS, BATCHES_PER_EPOCH, BATCH_SIZE = 40, 50, 128
ROUNDS, FRACTION = 3, 0.4
SPREAD = 0.05  # standard deviation around each point
SEED = 1
RESULTS = Path("results/gan")

ANGLES = torch.arange(8) * math.pi / 4
POINTS = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def perceptron(num_outputs):
    """2-64-64 and one more layer."""
    hidden = nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(64, num_outputs))


class GAN(LightningModule):
    """An ordinary GAN; knows nothing of pruning."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = perceptron(2), perceptron(1)

    def training_step(self, batch, batch_idx):
        """One step of the generator, then one of the discriminator on the same samples."""
        (real,) = batch
        for_generator, for_discriminator = self.optimizers()
        fake = self.generator(torch.randn_like(real))

        verdicts = self.discriminator(fake)
        self.step(for_generator, bce(verdicts, torch.ones_like(verdicts)))

        verdicts = self.discriminator(torch.cat([real, fake.detach()]))
        is_real = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
        self.step(for_discriminator, bce(verdicts, is_real))

    def step(self, optimizer, loss):
        """As everybody writes it in manual optimization."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch, batch_idx):
        """How good samples are: near a point means within three standard deviations of it."""
        distances = torch.cdist(self.generator(batch[0]), POINTS)
        is_near = distances < 3 * SPREAD
        reached = (is_near.float().mean(0) > 0.01).sum()  # by 1 % of the samples or more
        self.log_dict({"points": reached.float(), "near": is_near.any(1).float().mean()})

    def configure_optimizers(self):
        """One for each network."""
        networks = self.generator, self.discriminator
        return [torch.optim.Adam(one.parameters(), 1e-3, betas=(0.5, 0.99)) for one in networks]


def main():
    """Train and prune, and look at the last generator."""
    seed_everything(SEED, verbose=False)
    centers = POINTS.repeat(BATCHES_PER_EPOCH * BATCH_SIZE // 8, 1)
    data = TensorDataset(centers + SPREAD * torch.randn_like(centers))
    pruning = IterativeMagnitudePruning(
        ROUNDS, fraction=FRACTION, parameters=["generator.*.weight"], monitor="near", mode="max"
    )
    trainer = Trainer(
        max_epochs=MAX_EPOCHS,
        callbacks=[pruning],
        logger=TensorBoardLogger(RESULTS, name="events"),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    gan = GAN()
    noise = TensorDataset(torch.randn(2000, 2))
    trainer.fit(gan, DataLoader(data, BATCH_SIZE, shuffle=True), DataLoader(noise, 2000))

    for found in pruning.history:
        points, near = found.metrics["points"], found.metrics["near"]
        print(f"round {found.round}: density {found.density:6.1%}, ", end="")
        print(f"{points:.0f} of 8 points reached, {near:.1%} of the samples near one")
    weights = torch.cat([one.flatten() for one in gan.generator.parameters() if one.ndim == 2])
    print(f"Exactly zero in the generator: {(weights == 0).sum()} of {len(weights)} weights")
    print("Saved:", pruning.ticket.save(RESULTS / "generator.safetensors"))


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks gain nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    main()
