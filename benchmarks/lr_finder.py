"""Learning-rate finders side by side: what they leave behind, what they cost, what they suggest.

    python benchmarks/lr_finder.py --data-dir DIRECTORY   # default: LIGHTNING_LTH_DATA; 10 minutes
    python benchmarks/lr_finder.py --check                # ... and exit 1 if a target is missed
    python benchmarks/lr_finder.py --quick                # fewer tools, one seed; under a minute

Peers are optional: `pip install torch-lr-finder pytorch-ignite fastai`. Suggestions of all are by
their defaults (rates from 1e-7 where these begin with the optimizer's) and not applied. Columns:

* same: what is the same at the start of the training that follows, with the finder and without:
  Parameters, all Buffers, Optimizer, Random states, Generator of the loader.
* losses: how many losses of that training are the same.
* bytes: of files in working, default and temporary folder, looked up after every step.
* x width: time of 100 steps to a harmless rate, set-up and a training step included, over a bare
  loop of 101; by turns, one thread, the fastest.
* mean, worst: validation loss (test images) after 1000 steps, an epoch, of a bare loop at the
  suggestion; over SGD with momentum 0.9, Adam, and seeds.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import partial
from importlib import import_module, util
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import callbacks, tuner
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

from lightning_lth import LRFinder
from lightning_lth.learning_rate.range_test import range_test

WIDTHS, QUICK_WIDTHS = ((300, 9), (3000, 7)), ((300, 2),)  # with repetitions
BATCH, STEPS, FOLLOWING, EPOCH_STEPS = 60, 100, 100, 1000
WIDE, MILD = (1e-7, 10.0), (1e-7, 1e-2)  # no tool ends a sweep over the mild rates early
TARGETS = {"differences": 0, "bytes": 0, "x 3000": 1.10, "mean": 0.135, "worst": 0.150}
TARGETS |= {"x 300 / Lightning": 1.05, "x 3000 / Lightning": 1.05}  # 0.05 is for noise
KINDS: dict[str, Any] = {"SGD": partial(torch.optim.SGD, momentum=0.9), "Adam": torch.optim.Adam}
CASES = [(kind, seed) for kind in KINDS for seed in range(3)]
Data = tuple[Tensor, Tensor]


class Problem:
    """A network to train, what is seen of it, and tools that sweep and suggest a rate."""

    def __init__(self, data: Data, following: int, width: int = 300, case: Any = CASES[0]) -> None:
        self.following, self.is_watched, self.kind = following, False, case[0]
        self.steps, self.state = 0, tuple[Any, ...]()
        self.losses, self.files = list[float](), dict[Path, int]()
        pl.seed_everything(case[1], verbose=False)
        first = (nn.Linear(784, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))
        second = (nn.Linear(width, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Dropout(0.1))
        self.network = nn.Sequential(*first, *second, nn.Linear(100, 10))
        self.network.register_buffer("calls", torch.zeros(()), persistent=False)
        self.network.register_forward_hook(lambda net, *_: net.get_buffer("calls").add_(1) and None)
        self.order = torch.Generator().manual_seed(case[1])
        self.loader = DataLoader(TensorDataset(*data), BATCH, True, generator=self.order)
        self._make(self.network.parameters())

    def _make(self, parameters: Any, lr: float = 0.01) -> torch.optim.Optimizer:
        self.optimizer: torch.optim.Optimizer = KINDS[self.kind](parameters, lr=lr)
        self.optimizer.register_step_post_hook(self._after_step)
        return self.optimizer

    def _after_step(self, *_: Any) -> None:
        self.steps += 1
        files = Path.cwd().rglob("*") if self.is_watched else ()
        self.files |= {path: path.stat().st_size for path in files if path.is_file()}

    def _look(self) -> None:
        if not self.state:  # the first step of the training
            held = (list(self.network.parameters()), list(self.network.buffers()))
            rng = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1:])
            self.state = deepcopy((*held, self.optimizer.state_dict(), rng, self.order.get_state()))

    def train(self) -> None:
        """A bare loop, of at most one epoch."""
        self.network.train()
        for _, batch in zip(range(self.following), self.loader, strict=False):
            self._look()
            self.optimizer.zero_grad()
            loss = _loss(self.network, batch)
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def _trainer(self, *others: pl.Callback) -> pl.Trainer:
        watch = callbacks.LambdaCallback(
            on_train_batch_start=lambda *_: self._look(),
            on_train_batch_end=lambda _, __, out, *___: self.losses.append(float(out["loss"])),
        )
        names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        options: dict[str, Any] = {**dict.fromkeys(names, False), "callbacks": [*others, watch]}
        return pl.Trainer(accelerator="cpu", max_steps=self.following, **options)

    def _fit(self, low: float, high: float, *others: pl.Callback) -> None:
        self._trainer(*others).fit(_Module(self), self.loader)

    def _lightning(self, low: float, high: float) -> float | None:
        finder = callbacks.LearningRateFinder(low, high, STEPS, update_attr=False)
        self._fit(low, high, finder)
        return finder.optimal_lr.suggestion() if finder.optimal_lr else None

    def _tuner(self, low: float, high: float) -> float | None:
        trainer, module = self._trainer(), _Module(self)
        rates: Any = {"min_lr": low, "max_lr": high, "num_training": STEPS, "update_attr": False}
        finder = tuner.Tuner(trainer).lr_find(module, self.loader, **rates)
        trainer.fit(module, self.loader)
        return finder.suggestion() if finder else None

    def _torch_lr_finder(self, low: float, high: float) -> float:
        make, figure = import_module("torch_lr_finder").LRFinder, import_module("matplotlib.figure")
        finder = make(self.network, self.optimizer, cross_entropy)
        finder.range_test(self.loader, start_lr=low, end_lr=high, num_iter=STEPS)
        finder.reset()
        return float(finder.plot(ax=figure.Figure().subplots())[1])

    def _ignite(self, low: float, high: float) -> float:
        make = import_module("ignite.engine").create_supervised_trainer
        engine = make(self.network, self.optimizer, cross_entropy)
        finder = import_module("ignite.handlers").FastaiLRFinder()
        held = {"model": self.network, "optimizer": self.optimizer}
        with finder.attach(engine, held, num_iter=STEPS, start_lr=low, end_lr=high) as attached:
            attached.run(self.loader)
        return float(finder.lr_suggestion())

    def _fastai(self, low: float, high: float) -> float:
        import_module("fastai.callback.schedule")  # adds lr_find
        api = import_module("fastai.learner")
        make = partial(api.OptimWrapper, opt=self._make)
        loaders = api.DataLoaders(self.loader, self.loader)
        learner = api.Learner(loaders, self.network, cross_entropy, make, lr=0.01)
        suggestion = learner.lr_find(low, high, STEPS, show_plot=False)[0]
        learner.opt.set_hypers(lr=0.01)  # as Learner.fit does first of all
        return float(suggestion)

    def _ours(self, low: float, high: float, rule: Any = "valley") -> float | None:
        finder = LRFinder(low, high, STEPS, suggestion=rule, apply=False)
        self._fit(low, high, finder)
        return finder.result.chosen.value

    def _range_test(self, low: float, high: float) -> float | None:
        rates: dict[str, Any] = {"min_lr": low, "max_lr": high, "num_steps": STEPS}
        return range_test(self.network, self.loader, _loss, self.optimizer, **rates).chosen.value


def _loss(network: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(network(batch[0]), batch[1])


class _Module(pl.LightningModule):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.network, self._make = problem.network, problem._make

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return _loss(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._make(self.network.parameters())


LOOP, FIT, OURS = "bare loop", "Trainer.fit", ("ours: LRFinder", "ours: range_test")
QUICK = (LOOP, FIT, "Lightning callback", "Lightning Tuner", *OURS)
TOOLS: dict[str, tuple[Any, tuple[float, float], str]] = {
    LOOP: (lambda *_: None, WIDE, "torch"),
    FIT: (Problem._fit, WIDE, "lightning"),
    "Lightning callback": (Problem._lightning, (1e-8, 1.0), "lightning"),
    " from 1e-7 to 10": (Problem._lightning, WIDE, "lightning"),
    "Lightning Tuner": (Problem._tuner, (1e-8, 1.0), "lightning"),
    "torch-lr-finder": (Problem._torch_lr_finder, WIDE, "torch_lr_finder"),
    "pytorch-ignite": (Problem._ignite, WIDE, "ignite"),
    "fastai": (Problem._fastai, WIDE, "fastai"),
    OURS[0]: (Problem._ours, WIDE, "lightning"),
    " with slide": (partial(Problem._ours, rule="slide"), WIDE, "lightning"),
    OURS[1]: (Problem._range_test, WIDE, "torch"),
}


def run(name: str, problem: Problem, rates: tuple[float, float] | None = None) -> float | None:
    """Use a tool, then train where it did not; returns the suggestion."""
    suggestion = TOOLS[name][0](problem, *(rates or TOOLS[name][1]))
    if not problem.losses:
        problem.train()
    return suggestion


def traces(data: Data, name: str) -> dict[str, Any]:
    """What a tool leaves behind."""
    plain = Problem(data, FOLLOWING)
    run(FIT if TOOLS[name][2] == "lightning" else LOOP, plain)
    found = Problem(data, FOLLOWING)
    found.is_watched = True
    run(name, found)
    same = ""
    for part, *states in zip("PBORG", plain.state, found.state, strict=True):
        try:
            torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)
            same += part
        except AssertionError:
            same += "-"
    equal = sum(one == other for one, other in zip(plain.losses, found.losses, strict=False))
    seen = {"bytes": sum(found.files.values()), "differences": same.count("-") + FOLLOWING - equal}
    return {"same": same, "losses": f"{equal}/{FOLLOWING}", **seen}


def times(data: Data, names: list[str], width: int, repetitions: int) -> dict[str, float]:
    """Time of each tool over that of the bare loop."""
    fastest = dict.fromkeys(names, np.inf)
    for repetition in range(repetitions + 1):
        for name in random.Random(repetition).sample(names, len(names)):
            problem = Problem(data, STEPS + 1 if name in (LOOP, FIT) else 1, width)
            start = time.perf_counter()
            run(name, problem, MILD)
            seconds = time.perf_counter() - start
            assert problem.steps - STEPS in (1, 2), f"{name}: {problem.steps}"  # ignite: 102
            fastest[name] = min(fastest[name], seconds) if repetition else np.inf  # warmed up
    return {name: round(seconds / fastest[LOOP], 3) for name, seconds in fastest.items()}


def outcomes(data: Data, held_out: Data, name: str, cases: list[Any]) -> dict[str, Any]:
    """How well training goes with what a tool suggests."""
    shown, losses = [], []
    for case in cases:
        lr = run(name, Problem(data, 1, case=case)) or 0.0  # without a suggestion, no training
        problem = Problem(data, EPOCH_STEPS, case=case)
        problem.optimizer.param_groups[0]["lr"] = lr
        problem.train()
        losses.append(round(_loss(problem.network.eval(), held_out).item(), 4))
        shown.append(f"{case[0]} {lr:.2g}: {losses[-1]:.3f}")
    return {"mean": np.mean(losses).round(4), "worst": np.max(losses), "rates": ", ".join(shown)}


def measure(data: Data, held_out: Data, *, quick: bool) -> dict[str, dict[str, Any]]:
    """For all tools that are installed, the columns and targets."""
    names = [name for name in (QUICK if quick else TOOLS) if util.find_spec(TOOLS[name][2])]
    figures = {name: traces(data, name) for name in names}
    for width, repetitions in QUICK_WIDTHS if quick else WIDTHS:
        ratios = times(data, [name for name in names if name[0] != " "], width, repetitions)
        theirs = min(ratios["Lightning callback"], ratios["Lightning Tuner"])
        for name, ratio in ratios.items():
            figures[name] |= {f"x {width}": ratio, f"x {width} / Lightning": ratio / theirs}
    for name in OURS if quick else names[2:]:  # the first two suggest nothing
        figures[name] |= outcomes(data, held_out, name, CASES[:1] if quick else CASES)
    return figures


def report(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Print the table; return which targets are missed."""
    columns = ("same", "losses", "bytes", "x 300", "x 3000", "mean", "worst")
    print(f"{'':<19}", *(f"{name:>9}" for name in columns), " rates: losses")
    for name in TOOLS:
        row = figures.get(name, {"rates": "not installed, or --quick"})
        cells = (f"{row.get(column, '')!s:>9}" for column in columns)
        print(f"{name:<19}", *cells, "", row.get("rates", ""))
    missed = []
    for name, column in [(name, one) for name in OURS for one in TARGETS if one in figures[name]]:
        value, most = figures[name][column], TARGETS[column]
        verdict = "ok" if value <= most else "MISSED"  # so is what is not a number
        missed += [f"{name}, {column}"] if verdict == "MISSED" else []
        print(f"{name:<19}{column:<20}{value:>8.3f} <= {most:.3f}  {verdict}")
    return missed


def main() -> None:
    """Exits with 1 if a target is missed and --check was given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("LIGHTNING_LTH_DATA", "."))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    arguments = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    sets = [MNIST(arguments.data_dir, train=train) for train in (True, False)]
    data, held_out = [(((one.data / 255 - 0.13) / 0.31).flatten(1), one.targets) for one in sets]
    with tempfile.TemporaryDirectory() as tempfile.tempdir, redirect_stdout(io.StringIO()) as out:
        os.chdir(tempfile.tempdir)
        with redirect_stderr(out):
            figures = measure(data, held_out, quick=arguments.quick)
    if (missed := report(figures)) and arguments.check:
        parser.exit(1, f"Missed: {'; '.join(missed)}.\n")


if __name__ == "__main__":
    main()
