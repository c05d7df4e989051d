"""The monitor in real trainings: what it logs, when, and that it changes nothing."""

from __future__ import annotations

import copy
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader, IterableDataset

from lightning_lth import (
    FixedMasks,
    IterativeMagnitudePruning,
    LayerStatsMonitor,
    Masks,
    Thresholds,
)
from lightning_lth.callbacks import _layer_charts
from lightning_lth.layer_stats.observer import LayerObserver
from lightning_lth.layer_stats.table import Table
from tests.callbacks.boards import Board
from tests.callbacks.distributed_layer_monitor import Remembering
from tests.callbacks.modules import Classifier, data, loader, network, trainer
from tests.callbacks.test_lr_finder import Busy, assert_same, everything

QUIET = Thresholds(values_per_channel=0)  # batches of 8 are few
BN = "batch_norm/net.2/"
pytestmark = pytest.mark.filterwarnings("ignore:BatchNorm 'net.*is evaluated after")


def fit(
    *callbacks: Callback,
    module: LightningModule | None = None,
    train: Any = None,
    val: Any = None,
    **kwargs: Any,
) -> Trainer:
    fitter = trainer(*callbacks, **({"max_epochs": 1, "log_every_n_steps": 1} | kwargs))
    fitter.fit(
        Remembering() if module is None else module,
        loader() if train is None else train,
        loader() if val is None else val,
    )
    return fitter


def monitor(every_n_steps: int | None = None, **kwargs: Any) -> LayerStatsMonitor:
    return LayerStatsMonitor(every_n_steps, **({"thresholds": QUIET} | kwargs))


def tensorboard(folder: Path, **kwargs: Any) -> TensorBoardLogger:
    return TensorBoardLogger(folder, "", "", default_hp_metric=False, **kwargs)


def training_steps(monitor: LayerStatsMonitor, layer: str = "net.2") -> list[int]:
    """The steps of training batches; the others are of validations."""
    return [r["step"] for r in monitor.table.rows() if "neg_beta" in r and r["layer"] == layer]


def findings(monitor: LayerStatsMonitor) -> list[tuple[str, str]]:
    return [(one.finding.name, one.layer) for one in monitor.diagnoses]


def drifts(inputs: list[Tensor], momentum: float = 0.1) -> list[float]:
    """The drift of the mean for each batch, from the definition."""
    mean, variance = torch.zeros(16).double(), torch.ones(16).double()
    found = []
    for batch in (one.double() for one in inputs):
        square = (batch.mean(0) - mean).square() / (variance + 1e-5)
        found.append(float(square.mean().sqrt()))
        mean += momentum * (batch.mean(0) - mean)
        variance += momentum * (batch.var(0) - variance)
    return found


def is_mode_active() -> bool:
    return torch._C._len_torch_function_stack() > 0


@pytest.fixture(autouse=True)
def nothing_stays_active() -> Iterator[None]:
    yield
    assert not is_mode_active()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def hooks(module: nn.Module) -> list[str]:
    return [n for n, m in module.named_modules() if m._forward_pre_hooks or m._forward_hooks]


# Numbers -----------------------------------------------------------------------------------------


class Parameters(Callback):
    """Remembers the offsets after each batch."""

    def __init__(self) -> None:
        self.negative: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.negative.append(float((pl_module.net[2].bias < 0).float().mean()))


def test_logged_values_are_those_of_the_definitions(tmp_path: Path) -> None:
    module, parameters = Remembering(), Parameters()
    fit(parameters, monitor(), module=module, max_epochs=2, logger=tensorboard(tmp_path))
    board = Board(tmp_path)
    assert board.steps(f"{BN}drift_mean") == list(range(12))
    assert board.values(f"{BN}drift_mean") == pytest.approx(drifts(module.seen), rel=1e-4)
    assert board.values(f"{BN}neg_beta") == pytest.approx(parameters.negative)
    kept = [float((one[0] != 0).float().mean()) for one in module.seen]  # one sample of 8
    assert board.values("dropout/net.1/keep") == pytest.approx(kept)


def test_the_shift_in_validation_is_that_of_the_definition(tmp_path: Path) -> None:
    module = Remembering()
    fit(monitor(), module=module, logger=tensorboard(tmp_path))
    board = Board(tmp_path)
    layer = module.net[2]
    inputs = torch.cat([module.net[0](batch[0]) for batch in loader()])
    ratio = (inputs.var(0) + 1e-5) / (layer.running_var + 1e-5)
    expected = float(torch.maximum(ratio, 1 / ratio).detach().mean())
    assert board.steps(f"{BN}train_eval_shift") == [5]  # as Lightning: the step before it
    assert board.values(f"{BN}train_eval_shift") == pytest.approx([expected], rel=1e-4)


def test_only_some_batches_of_a_long_validation_are_watched() -> None:
    class Counting(Remembering):
        watched = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            observer = watch._observer
            assert observer is not None
            self.watched += observer.is_in_batch

    for num_samples, expected in ((16, 16), (17, 9), (48, 16)):  # every first, second, third
        watch, module = monitor(), Counting()
        val = DataLoader(data(), batch_size=1)
        fit(watch, module=module, val=val, limit_val_batches=num_samples)
        assert module.watched == expected


def test_activations_only_when_asked_for(tmp_path: Path) -> None:
    module = Remembering()
    module.net.append(nn.LayerNorm(3))
    fit(monitor(activations=True), module=module, logger=tensorboard(tmp_path))
    tags = Board(tmp_path).scalars()
    assert {f"{BN}input_mean", "layer_norm/net.5/input_std", "layer_norm/net.5/gamma_abs"} <= tags
    plain = monitor()
    fit(plain)
    assert "input_mean" not in plain.table.latest["net.2"]


def test_the_rows_of_layers() -> None:
    watch = monitor()
    fit(watch)
    first, second = watch.layers
    assert (first["layer"], first["state"], first["momentum_horizon"]) == ("net.2", "tracking", 10)
    assert (first["values_per_channel"], first["batches_tracked"]) == (8, 6)
    assert (second["layer"], second["p"]) == ("net.1", 0.5)
    assert second["keep_low"] < second["keep"] < second["keep_high"]


def test_precision_in_half() -> None:
    watch, module = monitor(), Remembering()
    fit(watch, module=module, precision="bf16-mixed")
    assert watch.table.series("net.2", "drift_mean") == pytest.approx(drifts(module.seen), rel=1e-2)


# Steps -------------------------------------------------------------------------------------------


class Logging(Classifier):
    """Logs the loss by ``self.log``; 30 batches an epoch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("loss", loss := super().training_step(batch, batch_idx))
        return loss

    def train_dataloader(self) -> Any:
        return DataLoader(torch.utils.data.ConcatDataset([data()] * 5), batch_size=8)

    def val_dataloader(self) -> Any:
        return loader()


@pytest.mark.parametrize(("n", "is_told"), [(6, False), (7, True)])
def test_a_training_that_is_too_short_to_be_measured(
    n: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(monitor(n))  # 6 steps
    assert ("it looks at every 7th, and training was shorter" in caplog.text) == is_told


@pytest.mark.parametrize("n", [None, 50])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_logs_where_lightning_logs(tmp_path: Path, n: int | None, accumulate: int) -> None:
    watch = monitor(n)
    every = 50 if accumulate == 1 else 10
    fitter = trainer(
        watch if n is None else monitor(every),
        max_epochs=4,
        logger=tensorboard(tmp_path),
        log_every_n_steps=every,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
    )
    fitter.fit(Logging())
    board = Board(tmp_path)
    # 120 batches; or 8 steps an epoch, the last of which takes two batches.
    assert board.steps("loss") == ([49, 99] if accumulate == 1 else [9, 19, 29])
    assert board.steps("batch_norm/net.1/drift_mean") == board.steps("loss")


def test_of_accumulated_batches_only_the_stepping_one_is_read() -> None:
    watch, module = monitor(), Remembering()
    fit(watch, module=module, accumulate_grad_batches=4, limit_val_batches=0)
    expected = drifts(module.seen)
    assert watch.table.steps == [0, 1]
    assert watch.table.series("net.2", "drift_mean") == pytest.approx(
        [expected[3], expected[5]], rel=1e-4
    )


class Manual(Remembering):
    """Two optimizers, so that ``global_step`` counts double."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        first, second = self.optimizers()
        self.manual_backward(loss)
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        parts = self.net[0], self.net[2:]
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]


def test_manual_optimization_with_two_optimizers() -> None:
    watch, module = monitor(2), Manual()
    fitter = fit(watch, module=module, max_epochs=2, limit_val_batches=0)
    assert fitter.global_step == 24
    assert watch.table.steps == [1, 3, 5, 7, 9, 11]
    assert watch.table.series("net.2", "drift_mean") == pytest.approx(
        drifts(module.seen)[1::2], rel=1e-4
    )


def test_the_survey_ends_before_the_backward_pass() -> None:
    class Backward(Remembering):
        def on_after_backward(self) -> None:
            assert not is_mode_active()

    fit(monitor(), module=Backward())


def test_in_manual_optimization_all_forward_passes_are_surveyed() -> None:
    class Twice(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            return nn.functional.dropout(batch[0], 0.1).sum()

    watch = monitor()
    fit(watch, module=Twice(), limit_val_batches=0)
    assert findings(watch)[0] == ("UNWATCHED_DROPOUT", "")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data())


def test_data_without_a_length() -> None:
    watch = monitor(landscape=True)
    stream = DataLoader(Stream(), batch_size=8)
    fit(watch, train=stream, val=DataLoader(Stream(), batch_size=8), accumulate_grad_batches=4)
    assert watch.table.steps == [0, 1]  # 6 batches: the last step takes two
    assert "train_eval_shift" in watch.table.latest["net.2"]
    assert len(watch.landscapes) == 1


def test_a_batch_that_the_module_skips() -> None:
    class Skipping(Remembering):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            # Surveyed until a batch has run.
            assert is_mode_active() is (self.trainer.current_epoch < 2 and batch_idx == 0)
            return -1 if batch_idx >= self.trainer.current_epoch else None

    watch = monitor()
    fit(watch, module=Skipping(), max_epochs=3, limit_val_batches=0)
    assert not is_mode_active()
    drift = watch.table.series("net.2", "drift_mean")
    assert sum(value == value for value in drift) == 1 + 2


# Diagnoses ---------------------------------------------------------------------------------------


class WithDropout(Classifier):
    """Dropout before batch norm; nothing is learned, so that only dropout shifts anything."""

    def __init__(self, p: float) -> None:
        super().__init__(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
        self.net = nn.Sequential(nn.Dropout(p), nn.BatchNorm1d(6), nn.Linear(6, 3))


def test_dropout_before_batch_norm_is_told_once() -> None:
    watch = monitor()
    with pytest.warns(UserWarning, match="runs behind Dropout") as told:
        fit(watch, module=WithDropout(0.5), max_epochs=12)
    assert findings(watch) == [
        ("NOT_WARMED_UP", "net.1"),
        ("DROPOUT_BEFORE_BATCH_NORM", "net.1"),
    ]
    messages = [str(one.message) for one in told if "net.1" in str(one.message)]
    assert messages == [one.message for one in watch.diagnoses]
    assert "BatchNorm 'net.1' runs behind Dropout 'net.0'" in messages[1]


def test_without_dropout_there_is_no_shift() -> None:
    """Training and validation see the same 48 samples, both in unbiased variances."""
    watch = monitor()
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", ".*is evaluated after|.*bottleneck|.*LeafSpec")
        whole = DataLoader(data(), batch_size=48)
        fit(watch, module=WithDropout(0.0), max_epochs=80, train=whole)
    assert watch.table.latest["net.1"]["train_eval_shift"] == pytest.approx(1, abs=1e-3)
    assert findings(watch) == [("NOT_WARMED_UP", "net.1")]


def test_a_shift_from_before_the_warm_up_is_never_judged() -> None:
    """Later training batches are warmed up, but the only validation was not."""

    class Once(WithDropout):
        def on_validation_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.trainer.check_val_every_n_epoch = 99

    watch = monitor()
    with pytest.warns(UserWarning, match="is evaluated after 6 batches"):
        fit(watch, module=Once(0.5), max_epochs=8)
    assert watch.table.latest["net.1"]["train_eval_ratio"] < 0.9
    assert findings(watch) == [("NOT_WARMED_UP", "net.1")]


def test_thresholds_are_arguments() -> None:
    watch = LayerStatsMonitor(thresholds=Thresholds(values_per_channel=9))
    with pytest.warns(UserWarning, match="normalizes with 8 values per channel"):
        fit(watch)
    assert ("FEW_VALUES", "net.2") in findings(watch)
    assert watch.diagnoses[0] is not None
    watch.diagnoses.clear()  # a copy
    assert watch.diagnoses


class Functional(Remembering):
    """Two dropouts that no layer does, one of them in evaluation, too."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.dropout(inputs, 0.25, self.training)
        return self.net(nn.functional.dropout(hidden, 0.5))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])


@pytest.mark.parametrize("num_sanity_val_steps", [0, 2])
def test_functional_dropout_is_noticed(
    num_sanity_val_steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    watch, settings = monitor(), {"num_sanity_val_steps": num_sanity_val_steps}
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="drops values in evaluation"):
        fit(watch, module=Functional(), **settings)
    assert findings(watch).count(("UNWATCHED_DROPOUT", "")) == 2
    assert findings(watch).count(("DROPOUT_IN_EVALUATION", "")) == 1
    notes = [r.message for r in caplog.records if "is not observed" in r.message]
    assert len(notes) == 2
    assert "p=0.25" in notes[0] + notes[1]


def test_the_sanity_check_is_surveyed_but_not_recorded() -> None:
    class Seen(Functional):
        def on_train_start(self) -> None:
            assert watch.table.rows() == []
            assert not is_mode_active()

    watch = monitor()
    with pytest.warns(UserWarning, match="drops values in evaluation"):
        # There is no other validation.
        fit(watch, module=Seen(), num_sanity_val_steps=2, check_val_every_n_epoch=9)
    shifts = []
    for num_sanity_val_steps in (0, 2):
        torch.manual_seed(0)
        watch = monitor()
        fit(watch, num_sanity_val_steps=num_sanity_val_steps)
        shifts.append(watch.table.latest["net.2"]["train_eval_shift"])
    assert shifts[0] == shifts[1]


class Freezing(BaseFinetuning):
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.net, train_bn=False)
        self.make_trainable(pl_module.net[4])

    def finetune_function(self, *args: Any) -> None:
        pass


def test_frozen_by_lightning() -> None:
    watch = monitor()
    with pytest.warns(UserWarning, match="'net.2' is frozen .* Call `.eval\\(\\)`"):
        fit(Freezing(), watch, limit_val_batches=0)
    assert watch.layers[0]["state"] == "unfollowed"
    assert findings(watch) == [("FROZEN_WITH_BATCH_STATISTICS", "net.2")]


# Nothing changes ---------------------------------------------------------------------------------


class MoreBusy(Busy):
    """With dropout before and after batch norm, too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net.insert(1, nn.Dropout(0.2))
        self.norm = nn.LayerNorm(3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step([nn.functional.dropout(batch[0], 0.1), batch[1]], batch_idx)


@pytest.mark.filterwarnings("ignore:BatchNorm|The variance|Dropout")
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5, "num_sanity_val_steps": 1},
        {"precision": "bf16-mixed", "val_check_interval": 2},
    ],
    ids=str,
)
def test_nothing_is_different_afterwards(kwargs: dict[str, Any]) -> None:
    def shuffled() -> Any:
        return loader(shuffle=True)

    watch = LayerStatsMonitor(1, activations=True, histograms=True, landscape=True)
    settings = {"make": MoreBusy, "loaders": shuffled, **kwargs}
    found = everything(watch, **settings)
    assert_same(everything(**settings), found)
    assert len(watch.landscapes) == 2
    assert "train_eval_shift" in watch.table.latest["net.2"]


def test_the_users_metrics_are_logged_as_without(tmp_path: Path) -> None:
    for name, callbacks in (("with", [monitor(landscape=True)]), ("without", [])):
        torch.manual_seed(0)
        module = Logging()
        logger = tensorboard(tmp_path / name)
        trainer(*callbacks, max_epochs=2, logger=logger, log_every_n_steps=7).fit(module)
    boards = [Board(tmp_path / name) for name in ("with", "without")]
    for tag in boards[1].scalars():
        assert boards[0].steps(tag) == boards[1].steps(tag)
        assert boards[0].values(tag) == boards[1].values(tag)


class Failing(Remembering):
    def __init__(self, where: str, error: type[BaseException]) -> None:
        super().__init__()
        self.where, self.error = where, error

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        assert batch_idx or is_mode_active()
        loss = super().training_step(batch, batch_idx)
        self.fail("training_step")
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.fail("sanity_check" if self.trainer.sanity_checking else "validation_step")

    def on_train_epoch_end(self) -> None:
        self.fail("on_train_epoch_end")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise self.error(where)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "where", ["sanity_check", "training_step", "validation_step", "on_train_epoch_end"]
)
def test_an_exception_leaves_no_hook_and_no_mode(where: str, error: type[BaseException]) -> None:
    module, watch = Failing(where, error), monitor()
    with pytest.raises((KeyError, SystemExit)):
        fit(watch, module=module, num_sanity_val_steps=1)
    assert not is_mode_active()
    assert hooks(module) == []
    module.where = ""
    fit(watch, module=module.train())  # the instance can be used again
    assert hooks(module) == []
    assert training_steps(watch) == [0, 1, 2, 3, 4, 5]


def test_no_batch_is_kept() -> None:
    watch = monitor(landscape=True)
    fit(watch)
    assert watch._last_batch is None
    assert watch._observer is None


# Again -------------------------------------------------------------------------------------------


def test_another_fit_starts_anew_and_a_further_one_goes_on() -> None:
    watch = monitor(landscape=True, thresholds=Thresholds())
    for _ in range(2):
        with pytest.warns(UserWarning, match="8 values per channel"):
            fitter = fit(watch)
        assert training_steps(watch) == [0, 1, 2, 3, 4, 5]
        assert len(watch.landscapes) == 1
    fitter.fit_loop.max_epochs = 2
    fitter.fit(fitter.lightning_module, loader(), loader())
    assert training_steps(watch) == list(range(12))
    assert len(watch.landscapes) == 2
    fitter.validate(fitter.lightning_module, loader(), verbose=False)
    assert training_steps(watch) == list(range(12))
    fitter.fit_loop.max_epochs = 3
    with pytest.warns(UserWarning, match="'net.1' normalizes with 8"):
        fitter.fit(Classifier(), loader(), loader())  # other layers
    assert [row["layer"] for row in watch.layers] == ["net.1"]


def test_rounds_of_pruning(tmp_path: Path) -> None:
    watch = monitor(histograms=True, landscape=True)
    fit(IterativeMagnitudePruning(2), watch, logger=tensorboard(tmp_path))
    board = Board(tmp_path)
    assert board.steps(f"{BN}drift_mean") == list(range(18))
    # No shift from the last batch of a round to the first of the next.
    assert board.steps(f"{BN}step_shift") == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17]
    assert len(watch.landscapes) == 3


# torch.compile -----------------------------------------------------------------------------------


class Plain(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(self.net[0], nn.Dropout(0.5), *self.net[1:])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["module", "submodule", "in place"])
def test_compiled(what: str) -> None:
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    module: Any = Plain()
    frames, reference = [], monitor()
    fit(reference, module=copy.deepcopy(module))
    if what == "module":
        module = torch.compile(module, backend=backend)
    elif what == "submodule":
        module.net = torch.compile(module.net, backend=backend)
    else:
        module.net.compile(backend=backend)
    watch = monitor(2)
    for max_epochs in (1, 4):
        fit(watch, module=module, max_epochs=max_epochs)
        frames.append(backend.frame_count)
    assert frames[0] > 0
    assert frames[1] - frames[0] <= frames[0]  # not by the number of steps
    names = {row["layer"].replace("_orig_mod.", "") for row in watch.layers}
    assert names == {"net.1", "net.2"}
    batch_norm, dropout = watch.layers
    assert batch_norm.keys() == reference.layers[0].keys()
    assert dropout.keys() == reference.layers[1].keys()
    assert batch_norm["values_per_channel"] == 8
    assert len(training_steps(watch, batch_norm["layer"])) == 12


@pytest.mark.slow
def test_numbers_of_a_compiled_module_are_right() -> None:
    torch._dynamo.reset()
    series = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        module: Any = Plain()
        module.net[1].p = 0.0  # compiled dropout draws other numbers
        if is_compiled:
            module = torch.compile(module, backend="aot_eager")
        watch = monitor()
        fit(watch, module=module)
        series.append([watch.table.series("net.2", s)[1:] for s in ("drift_mean", "step_shift")])
    assert series[0][0] == pytest.approx(series[1][0], rel=1e-4)
    assert series[0][1] == pytest.approx(series[1][1], rel=1e-3)


# Loggers -----------------------------------------------------------------------------------------


def test_every_chart_has_a_series(tmp_path: Path) -> None:
    whole = DataLoader(data(), batch_size=48)  # the shift of variance needs some samples
    fit(monitor(), logger=tensorboard(tmp_path), max_epochs=2, train=whole)
    charts = Board(tmp_path).charts()
    assert list(charts) == ["Summary", "BatchNorm", "Dropout"]
    assert [len(one) for one in charts.values()] == [5, 9, 2]
    assert [title for one in charts.values() for title, tags in one.items() if not tags] == []
    assert all(len(tags) == 3 for tags in charts["Summary"].values())
    assert charts["BatchNorm"]["Share of dead channels"] == [f"{BN}dead"]


def test_charts_only_of_what_there_is(tmp_path: Path) -> None:
    fit(monitor(), module=Classifier(), logger=tensorboard(tmp_path / "a"))
    assert list(Board(tmp_path / "a").charts()) == ["Summary", "BatchNorm"]
    module = Classifier()
    module.net[1] = nn.Dropout(0.5)
    fit(monitor(), module=module, logger=tensorboard(tmp_path / "b"))
    assert list(Board(tmp_path / "b").charts()) == ["Dropout"]


def test_the_summary_is_over_all_batch_norms_and_no_others() -> None:
    layers = [nn.BatchNorm1d(2), nn.LayerNorm(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)]
    observer = LayerObserver(nn.Sequential(*layers))
    numbers = {(str(index), "neg_beta"): value for index, value in enumerate((0, 9, 0.5, 1))}
    found = _layer_charts.scalars(observer, numbers)
    observer.release()
    assert found["layer_norm/1/neg_beta"] == 9
    # Of 0, 0.5 and 1: interpolated between the outer ones.
    summary = {name.split("/")[-1]: v for name, v in found.items() if name.startswith("summary")}
    assert summary == pytest.approx({"median": 0.5, "p05": 0.05, "p95": 0.95})
    infinite = {(name, "neg_beta"): float("inf") for name in "02"}
    assert "summary/neg_beta/median" in _layer_charts.scalars(observer, infinite)
    assert _layer_charts.scalars(observer, {("0", "batches_tracked"): 1.0}) == {}


def test_histograms_figures_and_texts(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="8 values per channel"):
        fit(LayerStatsMonitor(histograms=True), logger=tensorboard(tmp_path), max_epochs=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["histograms"]) == {f"{BN}gamma", f"{BN}beta"}
    assert events.Histograms(f"{BN}beta")[0].histogram_value.num == 16
    assert set(events.Tags()["images"]) == {"batch_norm/drift_mean", "batch_norm/drift_logvar"}
    (text,) = events.Tensors("diagnoses/net.2/few_values/text_summary")
    assert b"8 values per channel" in text.tensor_proto.string_val[0]


def test_no_histograms_unless_asked_for(tmp_path: Path) -> None:
    fit(monitor(), logger=tensorboard(tmp_path))
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["histograms"] == []


def test_all_loggers_get_the_same_numbers(tmp_path: Path) -> None:
    loggers = [
        tensorboard(tmp_path / "a"),
        tensorboard(tmp_path / "b", prefix="p"),
        CSVLogger(tmp_path / "c", "", ""),
    ]
    watch = monitor()
    fit(watch, logger=loggers)
    first, second = Board(tmp_path / "a"), Board(tmp_path / "b")
    assert {f"p-{tag}" for tag in first.scalars()} == second.scalars()
    with (tmp_path / "c" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for tag in (f"{BN}drift_mean", "dropout/net.1/keep", "summary/drift_mean/median"):
        found = [float(row[tag]) for row in rows if row.get(tag)]
        assert found == pytest.approx(first.values(tag))
        assert second.values(f"p-{tag}") == first.values(tag)
    assert watch.table.series("net.2", "drift_mean") == first.values(f"{BN}drift_mean")


@pytest.mark.parametrize("kwargs", [{"fast_dev_run": True}, {"barebones": True}, {}], ids=str)
def test_without_a_logger(kwargs: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if "barebones" in kwargs:
        kwargs |= dict.fromkeys(("logger", "log_every_n_steps", "num_sanity_val_steps"))
    watch = monitor(landscape=True, histograms=True)
    module = Remembering()
    module.validation_step = lambda batch, batch_idx: module.net(batch[0])
    fit(watch, module=module, **kwargs)
    assert "train_eval_shift" in watch.table.latest["net.2"]
    assert ("drift_mean" in watch.layers[0]) is ("barebones" not in kwargs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_dropout", [True, False])
def test_networks_without_batch_norm(has_dropout: bool, tmp_path: Path) -> None:
    module = Classifier()
    module.net[1] = nn.Dropout(0.5) if has_dropout else nn.Identity()
    watch = monitor(activations=True, histograms=True)
    fit(watch, module=module, logger=tensorboard(tmp_path))
    assert findings(watch) == []
    assert [row["layer"] for row in watch.layers] == (["net.1"] if has_dropout else [])
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == []


def test_the_table_is_bounded() -> None:
    watch = monitor()
    fitter = fit(watch)
    watch.table = Table(capacity=8)  # 1000 steps would take seconds
    fitter.fit_loop.max_epochs = 4
    fitter.fit(fitter.lightning_module, loader(), loader())
    assert watch.table.steps == [6, 10, 14, 18, 22]
    assert monitor().table.capacity == 1000


# Landscape ---------------------------------------------------------------------------------------


def test_the_landscape_of_each_epoch(tmp_path: Path) -> None:
    watch, module = monitor(landscape=True), Remembering()
    fit(watch, module=module, max_epochs=2, logger=tensorboard(tmp_path), val_check_interval=3)
    board = Board(tmp_path)
    (_, first), (step, second) = watch.landscapes
    assert board.steps("landscape/loss/min") == [5 + 1, 11 + 1]
    assert step == 12
    for name, value in (
        ("loss/min", second.loss_min),
        ("loss/max", second.loss_max),
        ("gradient/min", second.predictiveness_min),
        ("gradient/max", second.predictiveness_max),
        ("beta", second.beta),
    ):
        assert board.values(f"landscape/{name}")[1] == pytest.approx(value)
    assert first.etas == pytest.approx((0.05, 0.1, 0.2, 0.4))
    shift = second.shifts[0]
    tag = f"internal_covariate_shift/{shift.layer}"
    assert shift.layer == "net.2"
    assert board.values(f"{tag}/difference")[1] == pytest.approx(shift.difference)
    assert board.values(f"{tag}/cosine")[1] == pytest.approx(shift.cosine)


def test_the_landscape_is_that_of_the_last_batch() -> None:
    class Plainest(Classifier):
        def __init__(self) -> None:
            super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=1e-12))

    watch = monitor(landscape=True)
    fit(watch, module=Plainest())
    net, (*_, batch) = network(), loader()
    loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
    assert watch.landscapes[0][1].loss == pytest.approx(loss.item(), rel=1e-5)


def test_no_landscape_where_the_rate_is_zero_or_none_was_asked_for() -> None:
    watch = monitor(landscape=True)
    fit(watch, module=WithDropout(0.0))
    assert watch.landscapes == []
    fit(watch := monitor())
    assert watch.landscapes == []


def test_the_landscape_is_that_of_the_pruned_network() -> None:
    class Seeing(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            pruned.append(not (self.net[0].weight * (1 - mask)).any())
            return super().training_step(batch, batch_idx)

    pruned: list[bool] = []
    mask = torch.arange(96).remainder(2).view(16, 6)
    watch, module = monitor(landscape=True), Seeing()
    fit(FixedMasks(Masks({"net.0.weight": mask})), watch, module=module)
    assert len(pruned) == 6 + 5 + 2  # 4 step sizes; layers behind the first
    assert all(pruned)
    assert not module.net[0].weight._backward_hooks


def test_the_landscape_of_a_compiled_network_with_masks() -> None:
    class Compiled(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(self.net, backend="eager")

    watch = monitor(landscape=True)
    fit(FixedMasks(Masks({"net.0.weight": torch.ones(16, 6)})), watch, module=Compiled())
    assert len(watch.landscapes) == 1


def test_manual_optimization_has_no_landscape() -> None:
    with pytest.raises(ValueError, match="`landscape=True` needs automatic optimization"):
        fit(monitor(landscape=True), module=Manual())


# Arguments and processes -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1])
def test_bad_arguments(n: int) -> None:
    with pytest.raises(ValueError, match="`every_n_steps` must be an integer of at least 1"):
        LayerStatsMonitor(n)


def test_the_landscape_of_sharded_weights_is_refused() -> None:
    fitter = trainer(max_epochs=1)
    fitter.strategy.__class__ = ModelParallelStrategy  # what `strategy=` would have made
    with pytest.raises(ValueError, match="shards of ModelParallelStrategy"):
        LayerStatsMonitor(landscape=True).setup(fitter, Classifier(), "fit")
    LayerStatsMonitor().setup(fitter, Classifier(), "fit")


def test_two_monitors_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="Only one `LayerStatsMonitor`"):
        fit(monitor(), monitor(5))


@pytest.mark.distributed
def test_two_processes(two_processes: Path) -> None:
    folder = two_processes / "layer_monitor"

    def load(name: str) -> Any:
        return torch.load(folder / f"{name}.pt", weights_only=True)

    for rank in (0, 1):
        assert_same(load(f"without_{rank}"), load(f"with_{rank}"))
    assert load("table_0")[0] == [*range(12)]
    assert load("table_0")[1] > 0
    assert load("table_1") == ([], 0)
    assert len(list((folder / "with").glob("events*"))) == 1
    board = Board(folder / "with")
    assert board.steps(f"{BN}drift_mean") == list(range(12))
    expected = drifts(load("with_0")["seen"])
    assert board.values(f"{BN}drift_mean") == pytest.approx(expected, rel=1e-4)
    assert board.values(f"{BN}drift_mean") != pytest.approx(drifts(load("with_1")["seen"]), rel=0.1)
    assert len(board.steps("landscape/beta")) == 2
