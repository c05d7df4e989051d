"""LightningCLI configures every callback from YAML, and explains it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

import lightning_lth
from lightning_lth import Masks, Thresholds, Ticket
from lightning_lth.initialization import zeros
from lightning_lth.pruning.scoring import magnitude
from lightning_lth.stopping import GeneralizationLoss, Patience
from tests.loading import EXAMPLES, load_example

CALLBACKS = [
    name
    for name in lightning_lth.__all__
    if isinstance(kind := getattr(lightning_lth, name), type) and issubclass(kind, Callback)
]


def parser() -> ArgumentParser:
    """What Lightning makes of `trainer.callbacks`."""
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--callbacks", type=list[Callback])
    return made


def from_yaml(name: str, text: str) -> Any:
    """The callback that a YAML file describes."""
    spec = {"class_path": f"lightning_lth.{name}", "init_args": yaml.safe_load(text)}
    config = parser().parse_object({"callbacks": [spec]})
    again = parser().parse_string(parser().dump(config))  # what LightningCLI saves of the run
    assert again == config
    (callback,) = parser().instantiate(config).callbacks
    return callback


SETTINGS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "CyclicalLR",
        "{base_lr: 0.001, max_lr: 1e-2, step_size: 2, step_unit: epoch, policy: cosine}",
        {"max_lr": 0.01, "step_size": 2, "step_unit": "epoch", "policy": "cosine"},
    ),
    ("CyclicalLR", "{base_lr: 0.1, max_lr: 1, step_size: 20}", {"step_size": 20, "max_lr": 1.0}),
    (
        "EarlyStopping",
        "{monitor: val_loss, patience: 5, mode: max, restore_best: true, best_weights_path: best}",
        {"patience": 5, "mode": "max", "restore_best": True, "best_weights_path": "best"},
    ),
    (
        "EarlyStopping",
        "{monitor: v, criterion: {class_path: lightning_lth.stopping.GeneralizationLoss,"
        " init_args: {alpha: 5}}}",
        {"criterion": GeneralizationLoss(5.0)},
    ),
    (
        "EarlyStopping",
        "{monitor: v, criterion: {class_path: lightning_lth.stopping.Patience,"
        " init_args: {patience: 4, min_delta: 0.1}}}",
        {"criterion": Patience(4, min_delta=0.1)},
    ),
    (
        "FixedMasks",
        "{masks: {class_path: lightning_lth.Masks, init_args: {masks: {}}}}",
        {"masks": Masks({})},
    ),
    (
        "HyperparameterFinder",
        "{parameter: momentum, values: [0.8, 0.9], rounds: [0, 1]}",
        {"parameter": "momentum", "values": [0.8, 0.9], "rounds": [0, 1]},
    ),
    ("Initializer", "{scheme: orthogonal, seed: 1}", {"scheme": "orthogonal", "seed": 1}),
    (
        "Initializer",
        "{overrides: {head: {class_path: lightning_lth.initialization.zeros}}, seed: null}",
        {"overrides": {"head": zeros()}, "scheme": "auto"},
    ),
    ("IterativeMagnitudePruning", "{rounds: 3}", {"rounds": 3, "criterion": magnitude}),
    (
        "IterativeMagnitudePruning",
        "{rounds: 3, scope: layer, fractions: {head.weight: 0.1, stem.*: 0}, parameters: ['*.w'],"
        " rewind_epoch: 1, rewind: none, ticket_dir: tickets}",
        {"fractions": {"head.weight": 0.1, "stem.*": 0.0}, "parameters": ["*.w"], "rewind": "none"},
    ),
    (
        "IterativeMagnitudePruning",
        "{rounds: 3, criterion: lightning_lth.pruning.scoring.magnitude}",
        {"criterion": magnitude},
    ),
    (
        "LRFinder",
        "{min_lr: 1e-3, mode: linear, suggestion: steep, rounds: [0, 2], plot_dir: plots}",
        {"min_lr": 0.001, "mode": "linear", "suggestion": "steep", "plot_dir": "plots"},
    ),
    ("LayerStatsMonitor", "{}", {"every_n_steps": None, "thresholds": Thresholds()}),
    (
        "LayerStatsMonitor",
        "{every_n_steps: 10, thresholds: {dead_channels: 0.5}}",
        {"every_n_steps": 10, "thresholds": Thresholds(dead_channels=0.5)},
    ),
]


def test_there_is_one_for_each_callback() -> None:
    assert {name for name, _, _ in SETTINGS} == set(CALLBACKS)


@pytest.mark.parametrize(("name", "text", "expected"), SETTINGS)
def test_yaml_says_what_python_says(name: str, text: str, expected: dict[str, Any]) -> None:
    callback = from_yaml(name, text)
    assert {key: getattr(callback, key) for key in expected} == expected


def test_a_criterion_of_a_function_that_makes_it() -> None:
    spec = "{class_path: lightning_lth.pruning.scoring.random, init_args: {seed: 1}}"
    pruning = from_yaml("IterativeMagnitudePruning", f"{{rounds: 1, criterion: {spec}}}")
    scores = pruning.criterion({"w": torch.ones(4)}, {}).materialize()
    assert len(set(scores["w"].tolist())) == 4


@pytest.mark.parametrize("name", CALLBACKS)
def test_help_explains_every_argument(name: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        parser().parse_args(["--callbacks.help", f"lightning_lth.{name}"])
    text = " ".join(printed.getvalue().split())
    described = getattr(lightning_lth, name).__doc__.partition("Args:")[2].split("\n\n")[0]
    for line in described.splitlines():
        argument, _, meaning = line.strip().partition(": ")
        if line.startswith(" " * 8) and not line.startswith(" " * 9):
            # A class or dataclass has its own arguments in its place.
            assert re.search(rf"--callbacks\.{argument}[ .]", text), argument
            assert meaning.split(".")[0].split(",")[0][:20] in text, argument
    assert "type: " in text
    assert " object at 0x" not in text  # defaults can be read


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example("lightning_cli")


@pytest.mark.examples
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 with jsonargparse 4.53
def test_the_example(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that it is put back
    config, short = EXAMPLES / "lightning_cli.yaml", ["--trainer.max_epochs=2"]
    short += ["--trainer.callbacks.rounds=2", "--trainer.limit_train_batches=3"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        example.main(["fit", "--config", str(config), *short])
    results = tmp_path / "results" / "lightning_cli"
    # 64*100 weights at 0.6, the 100*10 of the output at 0.8 a round.
    ticket = Ticket.load(results / "tickets" / "round_02.safetensors")
    assert ticket.masks.num_remaining == 6400 * 0.6**2 + 1000 * 0.8**2
    assert not ticket.weights["layers.2.weight"].any()  # by `overrides`
    assert f"{ticket.density:.4f}" in printed.getvalue()
    saved = yaml.safe_load((results / "version_0" / "config.yaml").read_text())
    assert len(saved["trainer"]["callbacks"]) == 5
