"""Run by test_lightning.py in a process that has imported no Lightning: trains with each."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lth
from lightning_lth import (
    CyclicalLR,
    EarlyStopping,
    Initializer,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    LRFinder,
)


def fit(name: str, folder: Path) -> dict[str, Any]:
    """What a user sees of three rounds with everything."""
    pl = importlib.import_module(name)
    stopping = EarlyStopping("val_loss", patience=1, restore_best=True)

    class Net(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            hidden = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU()]
            self.net = nn.Sequential(*hidden, nn.Dropout(0.1), nn.Linear(16, 3))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    pl.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(64, 6), torch.randint(3, (64,)))
    pruning = IterativeMagnitudePruning(2, rewind_step=2, ticket_dir=folder / "tickets")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        max_time="00:01:00:00",
        callbacks=[
            Initializer(seed=3),
            LRFinder(1e-3, 1, 16, apply=False),
            CyclicalLR(0.05, 0.2, step_size=4),
            stopping,
            LayerStatsMonitor(2, activations=True),
            pruning,
        ],
        logger=pl.loggers.TensorBoardLogger(folder, version="events"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Net()
    trainer.fit(module, DataLoader(data, 8, shuffle=True), DataLoader(data, 64))
    events = sorted(path.name[:10] for path in folder.rglob("events.out*"))
    weights = b"".join(value.numpy().tobytes() for value in module.state_dict().values())
    return {
        "weights": hashlib.sha256(weights).hexdigest(),
        "densities": [record.density for record in pruning.history],
        "steps": [record.steps for record in pruning.history],
        "validations": [len(one) for one in stopping.rounds],
        "is_found": trainer.early_stopping_callback is stopping,
        "is_callback": isinstance(pruning, pl.Callback),
        "reason": stopping.stopping_reason.name,
        "files": [*events, *sorted(path.name for path in folder.rglob("*.safetensors"))],
    }


def is_found(name: str, stopping: EarlyStopping) -> bool:
    """Whether the Trainer knows what it is, though it was made before the Trainer's package was."""
    pl = importlib.import_module(name)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        callbacks=[stopping],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(importlib.import_module(f"{name}.demos.boring_classes").BoringModel())
    return bool(trainer.early_stopping_callback is stopping)


def main(folder: Path) -> None:
    """``pytorch_lightning`` alone, then ``lightning.pytorch`` beside it, then the first again."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    seen: dict[str, Any] = {"at_import": _imported()}
    seen["alone"] = fit("pytorch_lightning", folder / "alone")
    seen["when_alone"] = _imported()
    seen["is_earlier_found"] = is_found("lightning.pytorch", EarlyStopping("x", strict=False))
    seen["other"] = fit("lightning.pytorch", folder / "other")
    seen["beside"] = fit("pytorch_lightning", folder / "beside")
    print(json.dumps(seen))


def _imported() -> list[str]:
    names = ("lightning", "lightning_fabric", "lightning.pytorch", "pytorch_lightning")
    return [name for name in names if name in sys.modules]


if __name__ == "__main__":
    assert lightning_lth
    main(Path(sys.argv[1]))
