"""A network of timm with an optimizer of timm."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule

from tests.zoo.project import NUM_CLASSES, Classifier, Project, images, labels, loaders


def lamb(parameters: Any) -> torch.optim.Optimizer:
    from timm.optim import Lamb

    return Lamb(parameters, lr=1e-3, weight_decay=0.01)


def efficientnet() -> tuple[LightningModule, dict[str, Any]]:
    import timm

    # Its own test size of an EfficientNet; BatchNorm and activation are one layer in timm.
    net = timm.create_model("test_efficientnet", num_classes=NUM_CLASSES, drop_path_rate=0.1)
    return Classifier(net, lamb), loaders(images(), labels(8))


PROJECTS = [Project("timm", efficientnet)]
