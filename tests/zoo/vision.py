"""Networks of torchvision, small or in small sizes; and one of its segmentation networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.zoo.project import NUM_CLASSES, Classifier, Project, images, labels, loaders


def resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=NUM_CLASSES)


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(weights=None, num_classes=NUM_CLASSES, width_mult=0.25)


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        dropout=0.1,
        attention_dropout=0.1,
        num_classes=NUM_CLASSES,
    )


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
    return ConvNeXt(blocks, stochastic_depth_prob=0.1, num_classes=NUM_CLASSES)


def swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        stochastic_depth_prob=0.1,
        num_classes=NUM_CLASSES,
    )


def classification(make: Any, optimizer: Any = None) -> tuple[LightningModule, dict[str, Any]]:
    module = Classifier(make(), optimizer)
    return module, loaders(images(), labels(8))


class Segmenter(Classifier):
    """Classifies each pixel."""

    def forward(self, inputs: Any) -> Tensor:
        return self.net(inputs)["out"]


def segmentation() -> tuple[LightningModule, dict[str, Any]]:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)
    return Segmenter(net), loaders(images(), labels(8, 32, 32))


ONE_EPOCH = {"max_epochs": 1}  # of the two with millions of weights
adamw = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
PROJECTS = [
    Project("resnet18", lambda: classification(resnet), settings=ONE_EPOCH),
    Project("mobilenet-v3", lambda: classification(mobilenet)),
    Project(
        "vit",
        lambda: classification(vit, adamw),
        dense=("*.class_token", "*.pos_embedding"),
    ),
    Project("convnext", lambda: classification(convnext, adamw), dense=("*.layer_scale",)),
    Project(
        "swin",
        lambda: classification(swin, adamw),
        dense=("*.relative_position_bias_table",),
    ),
    Project("segmentation", segmentation, settings=ONE_EPOCH),
]
