"""LightningCLI: the callbacks stand in a YAML file, and the code knows nothing of them.

    python examples/lightning_cli.py fit --config examples/lightning_cli.yaml    # 15 s on 2 cores

Every setting can be changed on the command line: `--trainer.callbacks.rounds 2` is that of the last
callback in the file. What there is to set, with types, defaults and explanations:
    python examples/lightning_cli.py fit --trainer.callbacks.help lightning_lth.CyclicalLR

Needs `pip install -e ".[examples,study]"`. Prints the history; the tickets, the config of the run
and TensorBoard events are in `results/lightning_cli`: `tensorboard --logdir results`.
"""

# Lightning comes before lightning_lth, whose callbacks are those of the Lightning that is there.
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class DigitsData(LightningDataModule):
    """1,797 handwritten digits of 8 x 8 pixels.

    Args:
        batch_size: Training images in a batch.
    """

    def __init__(self, batch_size: int = 50):
        super().__init__()
        self.batch_size = batch_size
        images, labels = map(torch.tensor, load_digits(return_X_y=True))
        self.images, self.labels = images.float() / 16, labels

    def train_dataloader(self):
        """The first 1,500."""
        data = TensorDataset(self.images[:1500], self.labels[:1500])
        return DataLoader(data, self.batch_size, shuffle=True)

    def val_dataloader(self):
        """The others."""
        return DataLoader(TensorDataset(self.images[1500:], self.labels[1500:]), 297)


class Digits(LightningModule):
    """One hidden layer.

    Args:
        width: Of the hidden layer.
        lr: Learning rate of SGD, where no callback sets it.
    """

    def __init__(self, width: int = 100, lr: float = 0.1):
        super().__init__()
        self.lr = lr
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        """Cross entropy."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        """Loss and accuracy."""
        outputs = self.layers(batch[0])
        accuracy = (outputs.argmax(1) == batch[1]).float().mean()
        loss = nn.functional.cross_entropy(outputs, batch[1])
        self.log_dict({"val_loss": loss, "val_acc": accuracy})

    def configure_optimizers(self):
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def main(args=None):
    """What the command line says; the pruning callback is the last of the file."""
    cli = LightningCLI(Digits, DigitsData, args=args, save_config_kwargs={"overwrite": True})
    for callback in cli.trainer.callbacks:
        if hasattr(callback, "history"):
            print(callback.history)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a small network gains nothing from more
    main()
