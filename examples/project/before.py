"""A Lightning project before and after lottery tickets: two lines are the difference.

    diff examples/project/before.py examples/project/after.py
    python examples/project/after.py    # 10 s on 2 cores; needs `pip install -e ".[examples]"`

The model, data, optimizer, schedule, checkpoints and early stopping stay as they are. The second
file runs the same training five times, each but the first with fewer weights; the test accuracy at
the end is that of the last network, 41 % of the weights. TensorBoard events and checkpoints are in
`results/project`, and so are the tickets: `tensorboard --logdir results`.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

RESULTS = "results/project"
MAX_EPOCHS = 10


class DigitsData(LightningDataModule):
    """1,797 handwritten digits of 8 x 8 pixels."""

    def setup(self, stage):
        """Split them."""
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
        generator = torch.Generator().manual_seed(0)
        self.train, self.val, self.test = random_split(data, [1000, 300, 497], generator)

    def train_dataloader(self):
        """Shuffled."""
        return DataLoader(self.train, batch_size=50, shuffle=True)

    def val_dataloader(self):
        """As they are."""
        return DataLoader(self.val, batch_size=300)

    def test_dataloader(self):
        """As they are."""
        return DataLoader(self.test, batch_size=497)


class Digits(LightningModule):
    """Two hidden layers, AdamW and a cosine."""

    def __init__(self):
        super().__init__()
        hidden = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        """Cross entropy."""
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        """Loss for early stopping and checkpoints."""
        self.log("val_loss", nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        """Accuracy."""
        is_correct = self.layers(batch[0]).argmax(1) == batch[1]
        self.log("test_accuracy", is_correct.float().mean())

    def configure_optimizers(self):
        """The rate falls to 0 over the training."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main():
    """Train, and test the best checkpoint."""
    seed_everything(1)
    trainer = Trainer(
        max_epochs=MAX_EPOCHS,
        accelerator="cpu",
        logger=TensorBoardLogger(RESULTS),
        log_every_n_steps=10,
        callbacks=[
            ModelCheckpoint(monitor="val_loss"),
            EarlyStopping("val_loss", patience=5),
            LearningRateMonitor(),
        ],
    )
    data = DigitsData()
    trainer.fit(Digits(), data)
    trainer.test(ckpt_path="best", datamodule=data)


if __name__ == "__main__":
    main()
