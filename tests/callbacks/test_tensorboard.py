"""What the callbacks write, read back with TensorBoard's own backend."""

from __future__ import annotations

import csv
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_lth import CyclicalLR, HyperparameterFinder, IterativeMagnitudePruning, LRFinder
from lightning_lth.callbacks import _tensorboard
from lightning_lth.callbacks._tensorboard import Band, Lines, tag, tag_pattern
from tests.callbacks.boards import Board
from tests.callbacks.modules import Classifier, loader, trainer

VALUES = {f"bn/layer{index}/drift": 0.5 * index for index in range(12)}  # exact in float32


class Each(Callback):
    """Does something at the end of each training batch."""

    def __init__(self, do: Any) -> None:
        self.do = do

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.do(trainer)


def tensorboard(folder: Path, **kwargs: Any) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False, **kwargs)


def fit(*callbacks: Callback, module: LightningModule | None = None, **kwargs: Any) -> Trainer:
    fitter = trainer(*callbacks, **({"max_epochs": 1, "log_every_n_steps": 1} | kwargs))
    fitter.fit(module or Classifier(), loader(), loader())
    return fitter


def write(folder: Path, do: Any, **kwargs: Any) -> Board:
    """Do something at the end of six batches."""
    fit(Each(do), logger=tensorboard(folder, **kwargs))
    return Board(folder)


def log_values(trainer: Trainer) -> None:
    _tensorboard.log_scalars(trainer, VALUES)


def test_one_event_per_step_with_all_values(tmp_path: Path) -> None:
    board = write(tmp_path, log_values)
    events = [event for event in board.events() if event.summary.value[:1]]
    ours = [event for event in events if event.summary.value[0].tag.startswith("bn/")]
    assert [event.step for event in ours] == list(range(6))
    for event in ours:
        assert {one.tag: one.simple_value for one in event.summary.value} == VALUES
    assert board.steps("bn/layer11/drift") == list(range(6))


def test_values_stand_beside_those_of_self_log(tmp_path: Path) -> None:
    class Logs(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", loss := super().training_step(batch, batch_idx))
            return loss

    fit(
        Each(log_values),
        module=Logs(),
        logger=tensorboard(tmp_path),
        max_epochs=2,
        accumulate_grad_batches=3,
    )
    board = Board(tmp_path)
    # 6 batches are 2 steps; Lightning logs the last of 3 batches, our callback wrote in each.
    assert board.steps("loss") == [0, 1, 2, 3]
    assert board.steps("bn/layer0/drift") == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_values_that_are_not_finite_are_written(tmp_path: Path) -> None:
    values = {"a": math.nan, "b": math.inf, "c": -math.inf}
    board = write(tmp_path, lambda trainer: _tensorboard.log_scalars(trainer, values, 3))
    assert board.steps("b") == [3] * 6
    assert math.isnan(board.values("a")[0])
    assert (board.values("b")[0], board.values("c")[0]) == (math.inf, -math.inf)


def test_the_prefix_of_the_logger(tmp_path: Path) -> None:
    def do(trainer: Trainer) -> None:
        log_values(trainer)
        _tensorboard.log_scalars(trainer, {f"s/{one}": 1.0 for one in ("median", "p05", "p95")})
        charts = [Lines("drift", (tag_pattern("bn", "drift"),)), Band("band", "s")]
        _tensorboard.add_charts(trainer, "BatchNorm", charts)

    board = write(tmp_path, do, prefix="run (1)")
    assert {"run (1)-val_loss", "run (1)-bn/layer0/drift"} <= board.scalars()  # alike
    charts = board.charts()["BatchNorm"]
    assert charts["drift"] == sorted(f"run (1)-{name}" for name in VALUES)
    assert charts["band"] == [f"run (1)-s/{one}" for one in ("median", "p05", "p95")]


def test_charts_show_their_series_and_no_foreign_ones(tmp_path: Path) -> None:
    scalars = {
        "bn/model.layer1/drift": 1.0,
        "bn/model.layer10/drift": 1.0,
        "bn/model.layer1/drift_mean": 1.0,
        "old.bn/model.layer1/drift": 1.0,
        "bn/drift": 1.0,
        "bn/a (b)/drift": 1.0,
        "summary/drift/median": 1.0,
        "summary/drift/p05": 1.0,
        "summary/drift/p95": 1.0,
        "summary/drift/p955": 1.0,
    }
    charts = [
        Lines("all", (tag_pattern("bn", "drift"),)),
        Lines("one", (tag("bn/model.layer1/drift"),)),
        Lines("two", (tag("bn/drift"), tag("bn/a (b)/drift"))),
        Band("band", "summary/drift"),
    ]

    def do(trainer: Trainer) -> None:
        _tensorboard.log_scalars(trainer, scalars)
        _tensorboard.add_charts(trainer, "BatchNorm", charts)

    shown = write(tmp_path, do).charts()["BatchNorm"]
    assert shown["all"] == ["bn/a (b)/drift", "bn/model.layer1/drift", "bn/model.layer10/drift"]
    assert shown["one"] == ["bn/model.layer1/drift"]
    assert shown["two"] == ["bn/a (b)/drift", "bn/drift"]
    assert shown["band"][:3] == [f"summary/drift/{one}" for one in ("median", "p05", "p95")]


def test_callbacks_share_one_layout_in_a_fixed_order(tmp_path: Path) -> None:
    def add(category: Any, *charts: Any) -> Each:
        return Each(lambda trainer: _tensorboard.add_charts(trainer, category, charts))

    first, second, third = Lines("one", ("a",)), Lines("two", ("b",)), Lines("one", ("c", "a"))
    callbacks = (
        add("Early stopping", first),
        add("Lottery ticket", second),
        add("Early stopping", second, third),
        add("Summary", Band("three", "d")),
    )
    fit(*callbacks, logger=tensorboard(tmp_path))
    layouts = Board(tmp_path).layouts()
    assert len(layouts) == 4  # one for each callback, none for the five batches that follow
    (summary, ticket, stopping) = layouts[-1].category
    assert [one.title for one in layouts[-1].category] == [
        "Summary",
        "Lottery ticket",
        "Early stopping",
    ]
    assert [chart.title for chart in stopping.chart] == ["one", "two"]
    assert list(stopping.chart[0].multiline.tag) == ["^(?:a)$", "^(?:c)$"]
    assert [chart.title for chart in ticket.chart] == ["two"]
    assert summary.chart[0].margin.series[0].lower == "d/p05"
    assert list(Board(tmp_path).charts()) == ["Summary", "Lottery ticket", "Early stopping"]


def test_a_writer_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    before = len(_tensorboard._layouts), len(_tensorboard._announced)
    write(tmp_path, lambda t: _tensorboard.add_charts(t, "Summary", [Lines("a", ("a",))]))
    gc.collect()
    assert (len(_tensorboard._layouts), len(_tensorboard._announced)) <= before


def search(folder: Path, *loggers: Any, momentum: float | None = None) -> Board:
    """Two rounds of pruning with cycles, beside range tests."""
    finder = LRFinder(1e-3, 1.0, 12, suggestion="minimum", apply=False)
    momenta = HyperparameterFinder(
        "momentum", [0.5, 0.9], steps_per_value=5, apply=momentum is None
    )
    cycles = CyclicalLR(
        0.01,
        0.1,
        step_size=3,
        base_momentum=momentum,
        max_momentum=None if momentum is None else 0.95,
    )
    fit(
        finder,
        momenta,
        cycles,
        LearningRateMonitor("step", log_momentum=True, log_weight_decay=True),
        IterativeMagnitudePruning(2),
        logger=[tensorboard(folder), *loggers],
        max_epochs=2,
    )
    return Board(folder)


def test_every_chart_of_a_search_shows_its_series(tmp_path: Path) -> None:
    assert search(tmp_path, momentum=0.85).charts() == {
        "Lottery ticket": {
            "Density of the network": ["pruning/density"],
            "Density by layer": ["pruning/net.0.weight/density", "pruning/net.3.weight/density"],
            "Density by round": ["rounds/density"],
            "Best val_loss by round": ["rounds/val_loss"],
            "Best step by round": ["rounds/best_step"],
        },
        "Learning rate": {
            "Loss by step of lr_finder": ["lr_finder/round_0/loss"],
            "Loss by step of momentum_finder": ["momentum_finder/round_0/loss"],
            "Learning rate": ["cyclical_lr/lr", "lr-SGD"],
            "Momentum": ["cyclical_lr/momentum", "lr-SGD-momentum"],
        },
    }


def test_the_numbers_of_a_search(tmp_path: Path) -> None:
    board = search(tmp_path)
    # 6*16 + 16*3 = 144 weights; 20 % of them are 28.8, of the 115 that stay 23.
    densities = [1.0, 115 / 144, 92 / 144]
    assert board.values("rounds/density") == pytest.approx(densities)
    assert board.steps("rounds/density") == [0, 1, 2]
    assert board.steps("rounds/val_loss") == board.steps("rounds/best_step") == [0, 1, 2]
    assert all(step in (6.0, 12.0) for step in board.values("rounds/best_step"))
    # Two epochs of 6 steps in each of 3 rounds; the rate climbs from 0.01 to 0.1 in 3 steps.
    assert board.steps("cyclical_lr/lr") == list(range(36))
    rates = [0.01, 0.04, 0.07, 0.1, 0.07, 0.04] * 2
    assert board.values("cyclical_lr/lr") == pytest.approx(rates * 3)
    assert board.values("lr-SGD") == pytest.approx(board.values("cyclical_lr/lr"))
    assert "cyclical_lr/momentum" not in board.scalars()
    assert board.steps("lr_finder/round_0/loss") == list(range(12))


def test_rates_are_logged_when_lightning_logs(tmp_path: Path) -> None:
    cycles = CyclicalLR(0.01, 0.1, step_size=3, base_momentum=0.8, max_momentum=0.9)
    adadelta = Classifier(lambda parameters: torch.optim.Adadelta(parameters))
    with pytest.warns(UserWarning, match="has no momentum in use"):
        fit(
            cycles,
            LearningRateMonitor("step"),
            module=adadelta,
            logger=tensorboard(tmp_path),
            log_every_n_steps=2,
            max_epochs=2,
            accumulate_grad_batches=2,
        )
    board = Board(tmp_path)
    # Steps count from 0, and every second one is logged: 1, 3 and 5 of 6.
    assert board.steps("cyclical_lr/lr") == [1, 3, 5]
    assert board.values("cyclical_lr/lr") == pytest.approx([0.04, 0.1, 0.04])
    assert "cyclical_lr/momentum" not in board.scalars()


def test_other_metrics_at_the_best_step(tmp_path: Path) -> None:
    class TwoMetrics(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"loss": -float(self.trainer.global_step), "accuracy": 0.25})

    pruning = IterativeMagnitudePruning(1, monitor="loss", mode="max")
    fit(pruning, module=TwoMetrics(), logger=tensorboard(tmp_path), max_epochs=2)
    board = Board(tmp_path)
    assert board.values("rounds/loss") == [-6.0, -6.0]
    assert board.values("rounds/accuracy") == [0.25, 0.25]
    charts = board.charts()["Lottery ticket"]
    assert charts["Best loss by round"] == ["rounds/loss"]
    assert charts["Other metrics at the best step, by round"] == ["rounds/accuracy"]


def test_two_loggers_of_tensorboard_and_one_of_another_kind(tmp_path: Path) -> None:
    others = tensorboard(tmp_path / "b", prefix="p"), CSVLogger(tmp_path / "c", "", "")
    first = search(tmp_path / "a", *others)
    second = Board(tmp_path / "b")
    assert {f"p-{name}" for name in first.scalars()} == second.scalars()
    assert len(first.layouts()) == len(second.layouts())
    with (tmp_path / "c" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("cyclical_lr/lr", "pruning/net.0.weight/density", "rounds/val_loss"):
        found = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert [step for step, _ in found] == first.steps(name) == second.steps(f"p-{name}")
        values = first.values(name)
        assert [value for _, value in found] == pytest.approx(values)
        assert second.values(f"p-{name}") == values


@pytest.mark.parametrize(
    "settings", [{"logger": False}, {"fast_dev_run": True}, {"barebones": True}], ids=str
)
def test_without_loggers(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "barebones" in settings:  # takes none of these
        settings = settings | dict.fromkeys(("logger", "log_every_n_steps", "num_sanity_val_steps"))
    callbacks = CyclicalLR(0.01, 0.1, step_size=3), IterativeMagnitudePruning(1)
    fit(Each(write_everything), *callbacks, module=Silent(), **settings)
    assert not list(tmp_path.rglob("events.out*"))


class Silent(Classifier):
    """Logs nothing, of which `barebones` warns."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


def write_everything(trainer: Trainer) -> None:
    log_values(trainer)
    _tensorboard.add_charts(trainer, "Summary", [Lines("a", ("a",))])
    _tensorboard.add_histograms(trainer, {"a": torch.ones(3)})
    _tensorboard.add_text(trainer, "a", "b")
    _tensorboard.add_figure(trainer, "a", lambda: pytest.fail("drawn for nobody"))


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(CSVLogger):
        """Where tensorboard is missing, nobody can have made a TensorBoardLogger."""

    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    fit(Each(write_everything), logger=Other(tmp_path, "", ""))
    assert "bn/layer11/drift" in (tmp_path / "metrics.csv").read_text()


def test_a_logger_that_logs_in_its_own_way(tmp_path: Path) -> None:
    class Own(TensorBoardLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            super().log_metrics({f"own/{name}": metrics[name] for name in metrics}, step)

    fit(Each(log_values), logger=Own(tmp_path, "", "", default_hp_metric=False))
    assert {"own/val_loss", "own/bn/layer0/drift"} <= Board(tmp_path).scalars()


def test_how_to_open_the_page_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        search(tmp_path / "with space")
    lines = [record.message for record in caplog.records if "custom_scalars" in record.message]
    assert lines == [
        f"Charts: `tensorboard --logdir '{tmp_path}/with space/'`, then open "
        f"http://localhost:6006/#custom_scalars"
    ]


def test_histograms_are_small_and_survive_nan(tmp_path: Path) -> None:
    tensors = {
        "plain": torch.linspace(-1.0, 1.0, 64),
        "some": torch.tensor([1.0, math.nan, math.inf, 2.0], dtype=torch.bfloat16),
        "none": torch.full((3,), math.nan),
        "empty": torch.ones(0),
        "scalar": torch.tensor(1.0, requires_grad=True),
        "whole": torch.arange(3),
    }
    board = write(tmp_path, lambda trainer: _tensorboard.add_histograms(trainer, tensors))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["histograms"]) == {"plain", "some", "scalar", "whole"}
    assert events.Histograms("some")[0].histogram_value.max == 2.0
    values = [value for event in board.events() for value in event.summary.value]
    sizes = [value.ByteSize() for value in values if value.tag == "plain"]
    assert len(sizes) == 6
    assert max(sizes) < 600  # 9 kB with the bins that TensorBoard takes by default


def test_figures_are_drawn_for_each_writer(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    drawn = []

    def draw() -> Figure:
        drawn.append(figure := Figure(figsize=(1, 1)))
        return figure

    fit(
        Each(lambda trainer: _tensorboard.add_figure(trainer, "f", draw)),
        logger=[tensorboard(tmp_path / "a"), tensorboard(tmp_path / "b")],
        limit_train_batches=1,
    )
    assert len(drawn) == 2
    for name in ("a", "b"):
        events = EventAccumulator(str(tmp_path / name)).Reload()
        assert events.Tags()["images"] == ["f"]
