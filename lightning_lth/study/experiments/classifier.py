"""Trains a network of the papers to classify images, as they did."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import override

from lightning_lth.study.experiments import networks
from lightning_lth.study.experiments.networks import NetworkName

Batch = tuple[Tensor, Tensor]


@final
class Classifier(LightningModule):
    """Cross entropy, Adam or SGD, and a learning rate that depends on the optimizer step.

    Logs ``val_loss`` and ``val_accuracy``, or ``test_loss`` and ``test_accuracy``: the mean over
    all images, however they come in batches. Nothing is logged in training, which would take time.

    Args:
        network: One of ``"lenet_300_100"``, ``"conv2"``, ``"conv4"``, ``"conv6"``, ``"resnet20"``
            and ``"vgg19"``.
        dropout: Probability of Dropout behind each hidden linear layer of LeNet-300-100 and Conv-2,
            -4, -6.
        width: Factor on the channels and units of Conv-2, -4, -6.
        optimizer: ``"adam"`` or ``"sgd"``.
        lr: Learning rate; after the warm-up, if there is one.
        momentum: Of SGD, in [0, 1).
        weight_decay: Factor of the L2 penalty that is added to the gradient.
        warmup_steps: The learning rate grows from 0 to ``lr`` over so many steps, linearly.
        lr_drop_steps: Optimizer steps from which on the learning rate is a tenth.

    Raises:
        ValueError: If an argument is out of its range, or without effect on the network or
            optimizer.

    Examples:
        >>> module = Classifier("lenet_300_100", lr=1.2e-3)
        >>> [name for name, _ in module.named_parameters()][:2]
        ['network.hidden1.weight', 'network.hidden1.bias']

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635, figure 2 and section 4.
    """

    def __init__(
        self,
        network: NetworkName,
        *,
        dropout: float = 0.0,
        width: float = 1.0,
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float = 1.2e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        lr_drop_steps: Sequence[int] = (),
    ) -> None:
        super().__init__()
        _check(optimizer, lr, momentum, weight_decay)
        _check_steps(warmup_steps, lr_drop_steps)
        self.save_hyperparameters()
        self.network = networks.build(network, dropout=dropout, width=width)
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.lr_drop_steps = tuple(lr_drop_steps)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning writes this 44 times in a step, and torch would look each time whether it is a
        # parameter, module or buffer: 0.1 ms of 3.
        if name == "_current_fx_name":
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.network(images)
        return logits

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy of a batch."""
        return cross_entropy(self.network(batch[0]), batch[1])

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate("val", batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate("test", batch)

    @override
    def configure_optimizers(self) -> Any:
        """The optimizer; with a schedule by steps if the learning rate changes."""
        # Fused: 0.34 ms for a step of LeNet-300-100 on a CPU, instead of 1.2 ms.
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        options["fused"] = self.device.type in ("cpu", "cuda")
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam(self.parameters(), **options)
        else:
            optimizer = torch.optim.SGD(self.parameters(), momentum=self.momentum, **options)
        if not self.warmup_steps and not self.lr_drop_steps:
            return optimizer
        factor = partial(lr_factor, warmup_steps=self.warmup_steps, drop_steps=self.lr_drop_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    @override
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Drop the gradients, as torch does by default, without the 0.1 ms that it adds."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _evaluate(self, part: str, batch: Batch) -> None:
        images, labels = batch
        logits = self.network(images)
        metrics = {
            f"{part}_loss": cross_entropy(logits, labels),
            f"{part}_accuracy": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_dict(metrics, batch_size=len(labels), sync_dist=True)


def lr_factor(step: int, *, warmup_steps: int, drop_steps: Sequence[int]) -> float:
    """The learning rate of an optimizer step, as a share of the full one.

    Args:
        step: From 0.
        warmup_steps: Steps over which it grows linearly; it is 0 in the first of them.
        drop_steps: Steps from which on it is a tenth.

    Examples:
        >>> [lr_factor(step, warmup_steps=4, drop_steps=[6]) for step in (0, 1, 4, 5, 6)]
        [0.0, 0.25, 1.0, 1.0, 0.1]
    """
    grown = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return grown * 0.1 ** sum(step >= drop for drop in drop_steps)


def _check(optimizer: str, lr: float, momentum: float, weight_decay: float) -> None:
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f"`optimizer` must be 'adam' or 'sgd', got {optimizer!r}.")
    if not lr > 0:
        raise ValueError(f"`lr` must be above 0, got {lr}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be in [0, 1), got {momentum}.")
    if momentum and optimizer == "adam":
        raise ValueError(f"`momentum` is for `optimizer='sgd'`; Adam has none, got {momentum}.")
    if not weight_decay >= 0:
        raise ValueError(f"`weight_decay` must be at least 0, got {weight_decay}.")


def _check_steps(warmup_steps: int, lr_drop_steps: Sequence[int]) -> None:
    if warmup_steps < 0:
        raise ValueError(f"`warmup_steps` must be at least 0, got {warmup_steps}.")
    if any(step < 1 for step in lr_drop_steps):
        raise ValueError(f"`lr_drop_steps` must be at least 1, got {list(lr_drop_steps)}.")
