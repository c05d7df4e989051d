"""Fine-tune a Hugging Face model, and find the ticket in its pretrained weights.

    python examples/hugging_face.py    # 60 s on 2 cores

Needs `pip install -e ".[examples]" transformers`.

A small Vision Transformer, built from a config, so that nothing is downloaded; in your project, put
`from_pretrained("...")` in its place. It first learns whether a digit is odd, which stands for the
pretraining; then it is fine-tuned to tell all ten. What is rewound to in every round is the
pretrained model (Chen et al. 2020); the new classifier is not pruned.

Prints accuracy by round. The fine-tuned model, the ticket and TensorBoard events are in
`results/hugging_face`: `tensorboard --logdir results`.
"""

import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lth import IterativeMagnitudePruning

try:
    from transformers import ViTConfig, ViTForImageClassification
except ImportError as error:
    raise SystemExit("This example needs transformers: pip install transformers") from error

PRETRAINING_EPOCHS, MAX_EPOCHS = 10, 10
ROUNDS, FRACTION = 3, 0.3
BATCH_SIZE = 50
CONFIG = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_labels=2,
)
SEED = 1
RESULTS = Path("results/hugging_face")


class FineTuning(LightningModule):
    """Any model of transformers for images; knows nothing of pruning."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        """The loss that the model computes itself."""
        return self.model(pixel_values=batch[0], labels=batch[1]).loss

    def validation_step(self, batch, batch_idx):
        """Loss and accuracy."""
        output = self.model(pixel_values=batch[0], labels=batch[1])
        is_correct = output.logits.argmax(1) == batch[1]
        self.log_dict({"val_loss": output.loss, "val_acc": is_correct.float().mean()})

    def configure_optimizers(self):
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def train(module, images, labels, max_epochs, name, *callbacks):
    """On the first 1,500 images; the others are for validation."""
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(RESULTS, name=name),
        accelerator="cpu",
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    train, val = TensorDataset(images[:1500], labels[:1500]), (images[1500:], labels[1500:])
    loader = DataLoader(train, BATCH_SIZE, shuffle=True)
    trainer.fit(module, loader, DataLoader([val], batch_size=None))


def main():
    """Pretrain, fine-tune in rounds, and save."""
    seed_everything(SEED, verbose=False)
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16

    model = ViTForImageClassification(CONFIG)
    train(FineTuning(model), images, labels % 2, PRETRAINING_EPOCHS, "pretraining")

    model.classifier = nn.Linear(CONFIG.hidden_size, 10)
    model.config.num_labels = model.num_labels = 10
    pruning = IterativeMagnitudePruning(
        ROUNDS, fraction=FRACTION, fractions={"model.classifier.*": 0.0}
    )
    train(FineTuning(model), images, labels, MAX_EPOCHS, "fine_tuning", pruning)

    for found in pruning.history:
        accuracy = found.best_metrics["val_acc"]
        print(f"round {found.round}: density {found.density:6.1%}, accuracy {accuracy:.2%}")
    model.save_pretrained(RESULTS / "model")
    print("Saved:", RESULTS / "model", "and", pruning.ticket.save(RESULTS / "ticket.safetensors"))


if __name__ == "__main__":
    torch.set_num_threads(1)  # a small model gains nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec).*")
    main()
