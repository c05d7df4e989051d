"""What every callback keeps to, whatever it does."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_lth import (
    CyclicalLR,
    EarlyStopping,
    FixedMasks,
    HyperparameterFinder,
    Initializer,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    LRFinder,
    Thresholds,
    callbacks,
)
from lightning_lth.initialization import he, zeros
from lightning_lth.stopping import Patience
from tests.callbacks.modules import assert_equal, loader, trainer, weights
from tests.conforming import MAKERS, MASKS, WATCHERS, Project
from tests.contents import plain

ARGUMENTS: dict[type[pl.Callback], dict[str, Any]] = {
    IterativeMagnitudePruning: {
        "rounds": 2,
        "fraction": 0.3,
        "scope": "layer",
        "rewind_step": 3,
        "fractions": {"net.3.*": 0.1},
        "parameters": ["net.0.weight", "net.3.weight"],
        "ticket_dir": "tickets",
    },
    FixedMasks: {"masks": MASKS},
    Initializer: {
        "scheme": he("uniform"),
        "seed": 3,
        "example_input": torch.ones(1, 6),
        "overrides": {"net.3": zeros()},
        "show_signal": True,
    },
    LRFinder: {
        "min_lr": 1e-5,
        "num_steps": 20,
        "mode": "linear",
        "suggestion": "slide",
        "apply": False,
        "rounds": (0, 2),
        "plot_dir": "plots",
    },
    HyperparameterFinder: {
        "parameter": "weight_decay",
        "values": (0.0, 0.1),
        "steps_per_value": 3,
        "apply": False,
        "rounds": (1,),
        "plot_dir": "plots",
    },
    CyclicalLR: {
        "base_lr": 0.1,
        "max_lr": 0.4,
        "step_size": 2,
        "step_unit": "epoch",
        "policy": "exp_range",
        "gamma": 0.99,
        "base_momentum": 0.8,
        "max_momentum": 0.9,
    },
    EarlyStopping: {
        "monitor": "val_loss",
        "mode": "max",
        "stopping_threshold": 0.9,
        "check_on_train_epoch_end": False,
        "criterion": Patience(200, "step"),
        "restore_best": True,
        "best_weights_path": "best.safetensors",
    },
    LayerStatsMonitor: {
        "every_n_steps": 7,
        "activations": True,
        "histograms": True,
        "landscape": True,
        "thresholds": Thresholds(dead_channels=0.3),
    },
}
pytestmark = pytest.mark.filterwarnings("ignore:BatchNorm 'net.1' is evaluated after")
every_callback = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def test_every_callback_is_here() -> None:
    assert sorted(MAKERS) == sorted(callbacks.__all__)
    assert sorted(kind.__name__ for kind in ARGUMENTS) == sorted(callbacks.__all__)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_arguments_read_back_as_they_were_given(kind: type[pl.Callback]) -> None:
    callback = kind(**ARGUMENTS[kind])
    for name, parameter in inspect.signature(kind).parameters.items():
        expected = ARGUMENTS[kind].get(name, parameter.default)
        assert getattr(callback, name) is expected, name


@every_callback
def test_copies_and_pickles(make: Callable[[], pl.Callback]) -> None:
    callback = make()
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        module, other = Project(dropout=0), Project(dropout=0)
        trainer(callback, max_epochs=1).fit(module, loader(), loader())
        trainer(twin, max_epochs=1).fit(other, loader(), loader())
        assert_equal(weights(module), weights(other))
        if not isinstance(callback, WATCHERS):
            assert_did_something(module)


@every_callback
def test_fit_then_test_then_fit(make: Callable[[], pl.Callback]) -> None:
    callback = make()
    first, second = Project(dropout=0), Project(dropout=0)
    fitter = trainer(callback, max_epochs=1)
    fitter.fit(first, loader(), loader())
    end = weights(first)
    fitter.test(first, loader(), verbose=False)
    fitter.validate(first, loader(), verbose=False)
    assert_equal(weights(first), end)
    trainer(callback, max_epochs=1).fit(second, loader(), loader())
    assert_equal(weights(second), end)


@every_callback
def test_fast_dev_run(make: Callable[[], pl.Callback]) -> None:
    module = Project(dropout=0)
    trainer(callback := make(), fast_dev_run=True).fit(module, loader(), loader())
    # One batch is no range test.
    if not isinstance(callback, (LRFinder, HyperparameterFinder, *WATCHERS)):
        assert_did_something(module, fast_dev_run=True)


@every_callback
def test_state_survives_being_saved_and_loaded(make: Callable[[], pl.Callback]) -> None:
    callback = make()
    trainer(callback, max_epochs=1).fit(Project(dropout=0), loader(), loader())
    twin = make()
    twin.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert plain(twin.state_dict()) == plain(callback.state_dict())


def assert_did_something(module: Project, **kwargs: Any) -> None:
    """A fit without the callback ends in other weights."""
    other = Project(dropout=0)
    trainer(max_epochs=1, **kwargs).fit(other, loader(), loader())
    assert not torch.equal(other.net[0].weight, module.net[0].weight)
