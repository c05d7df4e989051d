"""Run in two processes for test_lr_finder.py: fits with and without a range test."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import nn

from lightning_lth import LRFinder
from tests.callbacks.distributed_fits import batches
from tests.callbacks.modules import Classifier, trainer, weights


def main(folder: Path) -> None:
    """Three fits on two ranks, which see other batches."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    finders = {"without": None, "passive": LRFinder(1e-3, 10, 100, apply=False)}
    finders["active"] = LRFinder(1e-3, 10, 100)
    results = {}
    for name, finder in finders.items():
        module = Classifier()
        module.net[1] = nn.Identity()
        fitter = trainer(
            *([finder] if finder else []),
            strategy="ddp",
            devices=2,
            max_epochs=2,
            use_distributed_sampler=False,
        )
        fitter.fit(module, batches(2, rank), batches(2, rank))
        torch.save(weights(module), folder / f"{name}_{rank}.pt")
        if finder:
            results[name] = finder.result.to_dict()
    (folder / f"{rank}.json").write_text(json.dumps(results))
