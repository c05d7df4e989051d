"""A forecaster of neuralforecast, which imports ``pytorch_lightning``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.project import Project, Refusal

HORIZON, PAST = 2, 6


def lstm() -> tuple[Any, dict[str, Any]]:
    """What its ``fit`` hands to the Trainer, which it makes itself."""
    import pandas as pd
    from neuralforecast.losses.pytorch import MAE
    from neuralforecast.models import LSTM
    from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

    frame = pd.DataFrame(
        {
            "unique_id": [name for name in "abcd" for _ in range(24)],
            "ds": pd.date_range("2020-01-01", periods=24, freq="D").tolist() * 4,
            "y": torch.randn(4 * 24).tolist(),
        }
    )
    data = TimeSeriesDataset.from_df(frame)[0]
    model = LSTM(
        HORIZON,
        PAST,
        loss=MAE(),  # by default all models share one
        encoder_hidden_size=8,
        decoder_hidden_size=8,
        encoder_dropout=0.1,
        windows_batch_size=8,
        inference_windows_batch_size=8,
    )
    model.val_size, model.test_size = HORIZON, 0
    return model, {"datamodule": TimeSeriesDataModule(data, batch_size=2, valid_batch_size=4)}


def forecast(module: Any, batch: Any) -> Tensor:
    series = batch["temporal"][:, :1, :PAST].transpose(1, 2)
    return module({"insample_y": series, "futr_exog": None, "hist_exog": None, "stat_exog": None})


PROJECTS = [
    Project(
        "neuralforecast",
        lstm,
        # As neuralforecast sets them itself.
        settings={"max_steps": 4, "max_epochs": -1, "val_check_interval": 2}
        | {"check_val_every_n_epoch": None},
        lightning="pytorch_lightning",
        monitor="ptl/val_loss",
        output=forecast,
        is_checkpoint_plain=False,  # its hyperparameters are objects of its own
        refused={
            "cycles": Refusal(ValueError, "the module's own StepLR would both set the learning")
        },
    )
]
