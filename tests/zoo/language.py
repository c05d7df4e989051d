"""Transformers of Hugging Face, built from configurations; their embeddings are tied."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.zoo.project import Project, Refusal

VOCABULARY, PAD = 24, 0


class LanguageModel(LightningModule):
    """Around any model that computes its own loss, as its users write it."""

    def __init__(self, model: nn.Module, *, warms_up: bool) -> None:
        super().__init__()
        self.model = model
        self.warms_up = warms_up

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        outputs = self.model(**batch)
        self.log("val_loss", outputs.loss)
        self.log("val_perplexity", outputs.loss.exp())

    def configure_optimizers(self) -> Any:
        plain = [p for p in self.parameters() if p.dim() < 2]
        decayed = [p for p in self.parameters() if p.dim() >= 2]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        if not self.warms_up:
            return optimizer
        from transformers import get_linear_schedule_with_warmup

        schedule = get_linear_schedule_with_warmup(optimizer, 1, 4)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def sentences() -> dict[str, Any]:
    tokens = torch.randint(1, VOCABULARY, (8, 10))
    tokens[:4, 7:] = PAD
    labels = tokens.masked_fill(tokens == PAD, -100)
    columns = {"input_ids": tokens, "attention_mask": (tokens != PAD).long(), "labels": labels}
    rows = [{name: column[row] for name, column in columns.items()} for row in range(8)]
    return {
        "train_dataloaders": DataLoader(rows, batch_size=4, shuffle=True),  # type: ignore[arg-type]
        "val_dataloaders": DataLoader(rows, batch_size=4),  # type: ignore[arg-type]
    }


def bert() -> tuple[LightningModule, dict[str, Any]]:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        pad_token_id=PAD,
    )
    return LanguageModel(BertForMaskedLM(config), warms_up=False), sentences()


def gpt2() -> tuple[LightningModule, dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=PAD,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LanguageModel(GPT2LMHeadModel(config), warms_up=True), sentences()


def logits(module: LanguageModel, batch: dict[str, Tensor]) -> Tensor:
    return module(**batch)


PROJECTS = [
    Project("bert", bert, output=logits),
    Project(
        "gpt2",
        gpt2,
        output=logits,
        refused={
            "cycles": Refusal(ValueError, "the module's own LambdaLR would both set the learning")
        },
    ),
]
