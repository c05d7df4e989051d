"""Makes the pictures of the guides by running the library; two are drawn by hand.

Run:
    python docs/pictures.py                       # all, 2 minutes on a core
    python docs/pictures.py lr_finder momentum    # some

Each SVG has a hash of the source that made it in its metadata: of the function, and of whatever in
this file it uses. A test compares that, so a picture cannot be older than the code here.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: TID251  # as in examples
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_lth import (
    CyclicalLR,
    EarlyStopping,
    FixedMasks,
    HyperparameterFinder,
    Initializer,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    LRFinder,
    SignalReport,
    Ticket,
    Validations,
    initialize_,
    signal_propagation,
)
from lightning_lth.initialization import figures as signal_figures
from lightning_lth.layer_stats.figures import heat_map
from lightning_lth.learning_rate import figures as rate_figures
from lightning_lth.pruning import figures as pruning_figures
from lightning_lth.stopping import GeneralizationLoss, Patience, SuccessiveRises

IMAGES = Path(__file__).parent / "pages" / "images"
SOURCE = Path(__file__).read_text(encoding="utf-8")  # now: what runs, whoever edits it meanwhile
MARK = "made by docs/pictures.py from "
BLUE, ORANGE, GRAY = "tab:blue", "tab:orange", "0.45"


class Classifier(LightningModule):
    """Any network for the digits; logs loss and accuracy on validation data and on test data."""

    def __init__(self, network: nn.Module, *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.lr, self.weight_decay = lr, weight_decay

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Validation data come first, test data second."""
        outputs, name = self.network(batch[0]), ("val", "test")[dataloader_idx]
        loss = nn.functional.cross_entropy(outputs, batch[1])
        accuracy = (outputs.argmax(1) == batch[1]).float().mean()
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": accuracy}, add_dataloader_idx=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay
        )


@cache
def digits() -> list[TensorDataset]:
    """1,000 images of 8 x 8 pixels to train on, 300 for validation, 497 for the test."""
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order.split([1000, 300, 497])
    return [TensorDataset(images[part].float() / 16, labels[part]) for part in parts]


def train(
    module: LightningModule, *callbacks: Callback, num_images: int = 1000, **settings: Any
) -> None:
    """One fit, in batches of 50 of the first images."""
    training, *others = digits()
    data = TensorDataset(*training[:num_images])
    order = RandomSampler(data, generator=torch.Generator().manual_seed(0))
    batches = BatchSampler(order, batch_size=50, drop_last=True)
    trainer = Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **settings,
    )
    whole = [DataLoader([part[:]], batch_size=None) for part in others]  # one batch each
    trainer.fit(module, DataLoader(data, batch_size=None, sampler=batches), whole)


def perceptron(*widths: int, seed: int = 0, batch_norm: bool = False, dropout: float = 0.0) -> Any:
    """64-...-10 with ReLU; BatchNorm behind each but the last layer, Dropout before it."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in zip((64, *widths), widths, strict=False):
        layers += [nn.Dropout(dropout)] if dropout and layers else []
        layers += [nn.Linear(inputs, outputs)]
        layers += [nn.BatchNorm1d(outputs)] if batch_norm else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


# Pruning


@cache
def ticket_search() -> tuple[IterativeMagnitudePruning, list[Ticket]]:
    """LeNet-300-100 in eight rounds that prune 40 % of each layer, and 20 % of the last."""
    with tempfile.TemporaryDirectory() as folder:
        pruning = IterativeMagnitudePruning(
            8,
            fraction=0.4,
            scope="layer",
            fractions={"network.4.weight": 0.2},
            ticket_dir=folder,
        )
        train(Classifier(perceptron(300, 100), lr=0.1), pruning, max_epochs=15)
        return pruning, [Ticket.load(path) for path in sorted(Path(folder).iterdir())]


def ticket() -> Figure:
    """Accuracy of tickets, and of the same masks with other weights."""
    pruning, found = ticket_search()
    curves: dict[str, list[tuple[float, float]]] = {
        "ticket": [(r.density, 100 * r.best_metrics["test_acc"]) for r in pruning.history],
        "same mask, fresh random weights": [],
    }
    for one in found:
        record = EarlyStopping("val_loss", stop=False)
        module = Classifier(perceptron(300, 100, seed=1 + one.round), lr=0.1)
        train(module, FixedMasks(one.masks), record, max_epochs=15)
        assert record.best is not None
        accuracy = 100 * record.best.metrics["test_acc"]
        curves["same mask, fresh random weights"].append((one.density, accuracy))
    figure = pruning_figures.against_density(curves, ylabel="test accuracy at early stop (%)")
    figure.axes[0].legend(loc="lower left")
    return figure


def ticket_layers() -> Figure:
    """What is left of each layer when all weights are ranked together."""
    pruning = IterativeMagnitudePruning(6, fraction=0.4)
    train(Classifier(perceptron(300, 100), lr=0.1), pruning, max_epochs=15)
    return pruning_figures.layer_densities(pruning.history)


# Learning rate


def lr_finder() -> Figure:
    """The curve of a range test, and all suggestions."""
    finder = LRFinder(min_lr=1e-4, num_steps=200)
    train(Classifier(perceptron(300, 100), lr=0.1), finder, max_epochs=1)
    return rate_figures.range_test(finder.result)


def momentum() -> Figure:
    """The loss after 100 steps with each momentum."""
    values = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]
    finder = HyperparameterFinder("momentum", values)
    train(Classifier(perceptron(300, 100), lr=0.02), finder, max_epochs=1)
    return rate_figures.range_test(finder.result)


def policies() -> Figure:
    """The rate over eight epochs of 100 steps, by policy."""
    figure = Figure(figsize=(7.3, 3.8), layout="constrained")
    settings: dict[str, dict[str, Any]] = {
        "triangular": {"step_size": 100},
        "triangular2": {"step_size": 100},
        "exp_range": {"step_size": 100, "gamma": 0.997},
        "one_cycle": {"step_size": 350},
        "cosine": {"step_size": 200},
        "cosine, cycle_multiplier=2": {"step_size": 100, "cycle_multiplier": 2},
    }
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (title, arguments) in zip(panels.flat, settings.items(), strict=True):
        cycles = CyclicalLR(0.001, 0.006, policy=title.split(",")[0], **arguments)
        (line,) = cycles.plot_schedule(800).axes[0].lines
        axes.plot(line.get_xdata(), line.get_ydata())
        axes.set_title(title, fontsize="medium")
        axes.grid(visible=True, alpha=0.3)
    figure.supxlabel("optimizer step", fontsize="medium")
    figure.supylabel("learning rate", fontsize="medium")
    return figure


class Watcher(Callback):
    """Notes rate and momentum of each step."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Before the step."""
        group = trainer.optimizers[0].param_groups[0]
        self.rows.append((group["lr"], group["momentum"]))


def cyclical_lr() -> Figure:
    """Three cycles between the rates of a range test: rate, momentum, validation loss."""
    finder = LRFinder(min_lr=1e-4, num_steps=200, apply=False)
    cycles = CyclicalLR.from_finder(
        finder, step_size=4, step_unit="epoch", base_momentum=0.85, max_momentum=0.95
    )
    watcher, record = Watcher(), EarlyStopping("val_loss", stop=False)
    module = Classifier(perceptron(300, 100), lr=0.1)
    train(module, finder, cycles, watcher, record, max_epochs=24, val_check_interval=10)
    rates, momenta = zip(*watcher.rows, strict=True)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    panels = figure.subplots(3, sharex=True)
    steps = [one.step for one in record.validations]
    for axes, x, y, label in zip(
        panels,
        (range(len(rates)), range(len(momenta)), steps),
        (rates, momenta, record.validations.values()),
        ("learning rate", "momentum", "validation loss"),
        strict=True,
    ):
        axes.plot(x, y, color=BLUE if label != "validation loss" else ORANGE)
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
    panels[2].set(yscale="log", xlabel="optimizer step")
    panels[2].set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    panels[2].minorticks_off()
    return figure


# Early stopping


def early_stopping() -> Figure:
    """A whole training on few images, its best validation, and where criteria would stop it."""
    record = EarlyStopping("val_loss", stop=False)
    module = Classifier(perceptron(300, 100), lr=0.05)
    train(module, record, num_images=100, max_epochs=100, check_val_every_n_epoch=2)
    validations, best = record.validations, record.best
    assert best is not None
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    steps = [one.step for one in validations]
    axes.plot(steps, validations.values(), color=BLUE, label="validation loss")
    axes.plot(steps, [one.train_loss for one in validations], color=GRAY, label="training loss")
    axes.plot(best.step, best.value, "o", color=ORANGE, label=f"best: step {best.step}")
    rules = {
        "Patience(5)": Patience(5),
        "GeneralizationLoss(5)": GeneralizationLoss(5),
        "SuccessiveRises(3, strip=5)": SuccessiveRises(3, strip=5),
    }
    for style, (name, rule) in zip((":", "--", "-."), rules.items(), strict=True):
        step = first_stop(validations, rule)
        axes.axvline(
            step, color="black", linewidth=1, linestyle=style, label=f"{name}: step {step}"
        )
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    axes.grid(visible=True, alpha=0.3)
    return figure


def first_stop(validations: Validations, rule: Callable[[Validations], object]) -> int:
    """The step at which a criterion would have stopped; it looks at the record alone."""
    for count in range(1, len(validations) + 1):
        so_far = Validations(validations.monitor, validations.mode, validations[:count])
        if rule(so_far) is not None:
            return so_far[-1].step
    raise RuntimeError("the criterion would not have stopped")


# Layer monitor


@cache
def watched(dropout: float) -> LayerStatsMonitor:
    """A perceptron with five BatchNorms, Dropout before all but the first, for 8 epochs."""
    monitor = LayerStatsMonitor(5)
    network = perceptron(100, 100, 100, 100, 100, batch_norm=True, dropout=dropout)
    train(Classifier(network, lr=0.05), Initializer(seed=0), monitor, max_epochs=8)
    return monitor


def batch_norms(monitor: LayerStatsMonitor) -> list[str]:
    """Their names."""
    return [row["layer"] for row in monitor.layers if row["kind"] == "batch_norm"]


def drift() -> Figure:
    """How far the batches are from the running means, by layer and step."""
    monitor = watched(0.0)
    return heat_map(monitor.table, batch_norms(monitor), "drift_mean")


def dropout_shift() -> Figure:
    """Variance in evaluation over the running variance, for three rates of Dropout."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for rate in (0.0, 0.2, 0.5):
        rows = [row for row in watched(rate).layers if row["kind"] == "batch_norm"]
        ratios = [row["train_eval_ratio"] for row in rows]
        axes.plot(range(1, len(rows) + 1), ratios, marker="o", label=f"Dropout {rate:g}")
    axes.axhline(1 / 1.05, color="black", linewidth=1, linestyle="--", label="warned of below this")
    axes.set(xlabel="BatchNorm", ylabel="train_eval_ratio", xticks=range(1, 6))
    axes.legend(fontsize="small")
    axes.grid(visible=True, alpha=0.3)
    return figure


# Initialization


def signal() -> Figure:
    """Activations and gradients in 20 layers of ReLU, by scheme."""
    inputs = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    layers = [layer for _ in range(20) for layer in (nn.Linear(256, 256), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Linear(256, 10))
    reports = {}
    for scheme in ("auto", "orthogonal", "xavier", "torch_default"):
        initialize_(network, scheme, seed=0, example_input=inputs)
        reports[scheme] = SignalReport(signal_propagation(network, inputs).rows[::2])  # Linear
    figure = signal_figures.signal_propagation(reports)
    figure.axes[1].set_xlabel("Linear layer, a ReLU behind each but the last")
    return figure


# Drawn by hand


ROUNDS, BUDGET, REWIND_STEP, KEPT = 3, 10, 2, 0.8  # of the picture of rounds


def rounds() -> Figure:
    """Three rounds in one fit, rewound to a late step: what starts again, and what goes on."""
    figure = Figure(figsize=(7.3, 6.2), layout="constrained")
    panels = figure.subplots(5, sharex=True, height_ratios=[1.5, 1, 1, 1, 1])
    starts = [0, *(BUDGET + i * (BUDGET - REWIND_STEP) for i in range(ROUNDS - 1))]
    total = BUDGET + (ROUNDS - 1) * (BUDGET - REWIND_STEP)
    for number, start in enumerate(starts):
        first = REWIND_STEP if number else 0
        end, steps = start + BUDGET - first, torch.linspace(first, BUDGET, 200)
        draw_round(panels[0], number, start, end)
        at = start + steps - first
        panels[1].plot(at, steps, color=BLUE)
        panels[2].plot(at, [warm_up_and_decay(float(step)) for step in steps], color=BLUE)
        panels[3].plot([start, end], [100 * KEPT**number] * 2, color=BLUE)
        for axes in panels[1:]:
            axes.axvline(end, color=GRAY, linewidth=0.8, linestyle=":")
    panels[4].plot([0, total], [0, total], color=BLUE)
    draw_marks(panels[0], starts)
    names = ("global_step", "learning rate", "weights left (%)", "step of loggers")
    for axes, name in zip(panels[1:], names, strict=True):
        axes.set_ylabel(name, fontsize="small")
        axes.tick_params(labelsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set(yticks=[0, REWIND_STEP, BUDGET], yticklabels=["0", "rewind", "max_steps"])
    panels[2].set(yticks=[])
    panels[3].set(yticks=[100, 80, 64], ylim=(55, 108))
    panels[4].set(yticks=[0], xticks=[], xlim=(-0.3, total + 0.3))
    panels[4].set_xlabel("one call of trainer.fit")
    figure.align_ylabels(panels)
    return figure


def warm_up_and_decay(step: float) -> float:
    """A schedule of a round."""
    return min(step / 3, 1 - (step - 3) / (BUDGET - 3))


def draw_round(axes: Axes, number: int, start: float, end: float) -> None:
    """A box from the start of a round to its end."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.15", "facecolor": "#dbe9f6"}
    box = FancyBboxPatch((start + 0.08, 0.8), end - start - 0.16, 1, edgecolor=BLUE, **style)
    axes.add_patch(box)
    middle = (start + end) / 2
    title = f"round {number}" + (", dense" if number == 0 else "")
    axes.text(middle, 1.42, title, ha="center", va="center", weight="bold")
    axes.text(start + 0.25, 1.0, "on_train_start", ha="left", size=7.5, color=GRAY)
    axes.text(end - 0.25, 1.0, "on_train_end", ha="right", size=7.5, color=GRAY)


def draw_marks(axes: Axes, starts: list[int]) -> None:
    """The rewind point, the ways back to it, and a checkpoint."""
    arrow = {"arrowstyle": "->", "color": ORANGE, "linewidth": 1.4}
    axes.plot(REWIND_STEP, 1.8, marker="v", color=ORANGE, markersize=6)
    axes.text(REWIND_STEP, 2.08, "rewind point", ha="center", va="bottom", size=8, color=ORANGE)
    for start in starts[1:]:
        axes.annotate("", (start, 0.72), (start, 0.3), arrowprops=arrow)
        axes.text(start, 0.22, "prune, rewind", ha="center", va="top", size=8, color=ORANGE)
    saved = starts[1] + 5
    axes.plot(saved, 1.8, marker="v", color="black", markersize=6)
    text = "checkpoint: a resumed fit goes on here"
    axes.text(saved, 2.08, text, ha="center", va="bottom", size=8)
    axes.set(ylim=(-0.1, 2.5))
    axes.axis("off")


LAYERS = {
    "cli": "the command lightning-lth",
    "study": "seeds, arms, controls, records, report",
    "callbacks": "one thin callback for each task",
}
ROOMS = ("pruning", "initialization", "learning_rate", "stopping", "layer_stats")


def architecture() -> Figure:
    """What may import what: arrows point down only."""
    figure = Figure(figsize=(7.3, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(0, 64))
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "color": GRAY, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    for row, (name, text) in enumerate(LAYERS.items()):
        top = 63 - 15 * row
        draw_box(axes, 27, top - 9, 46, 9, name, text, color="#dbe9f6")
        axes.annotate("", (50, top - 15), (50, top - 9), arrowprops=arrow)
    draw_box(axes, 0.5, 1, 99, 17, "", "", color="#f2f2f2")
    axes.text(50, 15, "core", ha="center", va="center", weight="bold")
    for place, name in enumerate(ROOMS):
        draw_box(axes, 2.5 + 19.2 * place, 3, 18.2, 8.5, name, "", color="#fdebd8")
    axes.text(75.5, 36, "import Lightning", size=9, color=GRAY, va="center")
    axes.plot([74.5, 74.5], [24, 48], color=GRAY, linewidth=1)
    axes.text(
        97.5, 15, "imports torch, never Lightning", size=9, color=GRAY, ha="right", va="center"
    )
    return figure


def draw_box(
    axes: Axes, x: float, y: float, width: float, height: float, name: str, text: str, *, color: str
) -> None:
    """A rounded box with a name, and a line below it."""
    style = {"boxstyle": "round,pad=0,rounding_size=1", "facecolor": color, "edgecolor": GRAY}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **style))
    middle = x + width / 2
    has_text = bool(text)
    axes.text(middle, y + height * (0.66 if has_text else 0.5), name, ha="center", va="center")
    axes.text(middle, y + height * 0.3, text, ha="center", va="center", size=8.5, color=GRAY)


# Files


PICTURES: tuple[Callable[[], Figure], ...] = (
    ticket,
    ticket_layers,
    lr_finder,
    momentum,
    policies,
    cyclical_lr,
    early_stopping,
    drift,
    dropout_shift,
    signal,
    rounds,
    architecture,
)


def origin(name: str) -> str:
    """A hash of the source of a function of this file and of all here that it uses."""
    lines, definitions = SOURCE.splitlines(), dict[str, ast.stmt]()
    for node in ast.parse(SOURCE).body:
        for defined in _names_defined_by(node):
            definitions[defined] = node
    used, waiting = set[str](), [name]
    while waiting:
        if (one := waiting.pop()) in definitions and one not in used:
            used.add(one)
            tree = ast.walk(definitions[one])
            waiting += [part.id for part in tree if isinstance(part, ast.Name)]
    text = hashlib.sha256()
    for one in sorted(used):
        node = definitions[one]
        text.update("\n".join(lines[node.lineno - 1 : node.end_lineno]).encode())
    return text.hexdigest()[:16]


def _names_defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = {ast.Assign: "targets", ast.AnnAssign: "target"}.get(type(node))
    if targets is None:
        return []
    stored = ast.walk(node)
    return [
        one.id for one in stored if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    ]


def recorded_origin(name: str) -> str | None:
    """The hash in a picture; None if it has none."""
    found = re.search(MARK + r"(\w+)", (IMAGES / f"{name}.svg").read_text(encoding="utf-8"))
    return found[1] if found else None


def write(make: Callable[[], Figure]) -> None:
    """Make a picture; nothing in its file depends on the time or on chance."""
    name = make.__name__
    with matplotlib.rc_context({"svg.hashsalt": name}):
        metadata = {"Date": None, "Description": MARK + origin(name)}
        make().savefig(IMAGES / f"{name}.svg", metadata=metadata)
    print(f"{name}.svg")


def main() -> None:
    """Make all pictures, or those that are named."""
    by_name = {make.__name__: make for make in PICTURES}
    for name in sys.argv[1:] or by_name:
        if name not in by_name:
            sys.exit(f"No picture is called {name!r}. There are: {', '.join(by_name)}.")
        write(by_name[name])


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks gain nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")  # LayerStatsMonitor's are in the pictures
    main()
