"""The weights that a user finds after a fit has started, in all kinds of projects."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

from lightning_lth import FixedMasks, Initializer, IterativeMagnitudePruning, Masks, initialize_
from lightning_lth import initialization as init
from tests.callbacks.distributed_initializer import Noisy
from tests.callbacks.modules import (
    BATCH_SIZE,
    Classifier,
    assert_equal,
    data,
    loader,
    trainer,
    weights,
)

SCRIPT = Path(__file__).with_name("distributed_initializer.py")


class Start(pl.Callback):
    """Keeps the weights at the start of training."""

    weights: dict[str, Tensor]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights = weights(pl_module)


class Functional(Classifier):
    """Its nonlinearities are functions, and one of them is in the training step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"first": nn.Linear(6, 16), "second": nn.Linear(16, 3)})  # type: ignore[assignment]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = torch.tanh(self.net["first"](batch[0]))  # type: ignore[index]
        logits = self.net["second"](hidden)  # type: ignore[index]
        self.log("train_loss", logits.sum())
        return functional.cross_entropy(logits, batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        return


def start(module: pl.LightningModule, *callbacks: pl.Callback, **kwargs: Any) -> dict[str, Tensor]:
    """The weights with which a fit starts to train."""
    watcher = Start()
    train = kwargs.pop("train") if "train" in kwargs else loader()
    trainer(*callbacks, watcher, max_epochs=1, **kwargs).fit(module, train, loader())
    return watcher.weights


def test_a_fit_starts_from_what_initialize_draws() -> None:
    module, expected = Classifier(), Classifier()
    initializer = Initializer(seed=3)
    found = start(module, initializer)
    batch = torch.randn(8, 6)
    initialize_(expected, seed=3, example_input=batch, forward=lambda m, b: m.net(b))
    assert_equal(found, weights(expected))
    assert [row.activation for row in initializer.report if row.name.endswith("3.weight")] == [
        "linear"
    ]
    assert initializer.report["net.0.weight"].activation == "relu"
    assert not torch.equal(module.net[0].weight, found["net.0.weight"])  # it has trained since


def test_the_training_step_shows_functional_nonlinearities() -> None:
    initializer = Initializer(seed=0)
    start(Functional(), initializer)
    assert initializer.report["net.first.weight"].activation == "tanh"
    assert initializer.report["net.first.weight"].rule == "xavier"


def test_the_seed_is_that_of_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # which Lightning sets, are unset again
        monkeypatch.setenv(name, "0")
    module, initializer = Classifier(), Initializer()
    pl.seed_everything(21, verbose=False)
    found = start(module, initializer)
    assert initializer.report.seed == 21
    assert_equal(found, start(Classifier(), Initializer(seed=21)))


@pytest.mark.parametrize("dataset", [data(), Noisy()])
@pytest.mark.parametrize("shuffle", [True, False])
def test_nothing_but_the_weights_is_different(shuffle: bool, dataset: Dataset[Any]) -> None:
    """The same weights set by hand give the same training, to the bit; generators included."""

    class Mixing(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            share = np.random.beta(1, 1) * random.random()
            return super().training_step([share * batch[0], batch[1]], batch_idx)

    def fit(*callbacks: pl.Callback, by_hand: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        module = Mixing()
        if by_hand:
            initialize_(
                module,
                seed=0,
                example_input=torch.ones(8, 6),
                forward=lambda m, b: m.net(b),
            )
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(5)
        generator = torch.Generator().manual_seed(1)
        train = DataLoader(dataset, BATCH_SIZE, shuffle=shuffle, generator=generator)
        trainer(*callbacks, max_epochs=2, num_sanity_val_steps=1).fit(module, train, loader())
        return weights(module), torch.get_rng_state(), generator.get_state()

    ours = fit(Initializer(seed=0), by_hand=False)
    theirs = fit(by_hand=True)
    assert_equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])


class Counting(Dataset[Any]):
    """Tells which examples are asked for; a list of its own would go back."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        self.tell(index)
        return data()[index]


def test_the_example_is_spread_over_the_data_set() -> None:
    asked: list[int] = []
    dataset = Counting(asked.append)
    start(Classifier(), Initializer(), train=DataLoader(dataset, batch_size=BATCH_SIZE))
    assert asked[:8] == [0, 6, 12, 18, 24, 30, 36, 42]
    assert sorted(asked[8:]) == list(range(48))
    asked.clear()
    start(Classifier(), Initializer(), train=DataLoader(dataset, batch_size=100))
    assert asked[:48] == list(range(48))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(
            data(), batch_sampler=BatchSampler(RandomSampler(data()), 4, drop_last=False)
        ),
        lambda: DataLoader(
            data(), None, sampler=BatchSampler(RandomSampler(data()), 4, drop_last=False)
        ),
        lambda: DataLoader(data(), batch_size=100),
        lambda: DataLoader(data(), batch_size=8, num_workers=1),
    ],
)
def test_kinds_of_loaders(make: Any) -> None:
    initializer = Initializer(seed=0)
    found = start(Classifier(), initializer, train=make())
    assert initializer.report["net.0.weight"].activation == "relu"
    assert_equal(found, start(Classifier(), Initializer(seed=0)))


def test_loaders_in_a_structure() -> None:
    class Pair(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], 0) + super().training_step(batch["b"][0], 0)

    initializer = Initializer(seed=0)
    start(Pair(), initializer, train={"a": loader(), "b": [loader()]})
    assert initializer.report["net.0.weight"].activation == "relu"


def test_the_batch_goes_through_the_hooks_of_the_module() -> None:
    class Unpacking(Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch["inputs"], batch["labels"]] if isinstance(batch, dict) else batch

    def pack(examples: list[Any]) -> dict[str, Tensor]:
        inputs, labels = zip(*examples, strict=True)
        return {"inputs": torch.stack(inputs), "labels": torch.stack(labels)}

    initializer = Initializer(seed=0)
    start(Unpacking(), initializer, train=loader(collate_fn=pack))
    assert initializer.report["net.0.weight"].activation == "relu"


def test_loaders_of_a_data_module() -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader()

        def val_dataloader(self) -> DataLoader[Any]:
            return loader()

    initializer = Initializer(seed=0)
    trainer(initializer, max_epochs=1).fit(Classifier(), datamodule=Data())
    assert initializer.report["net.0.weight"].activation == "relu"


class Stream(IterableDataset[Any]):
    def __init__(self) -> None:
        self.source = iter(data())

    def __iter__(self) -> Any:
        return self.source


def test_a_stream_is_not_used_up() -> None:
    module, stream = Classifier(), Stream()
    message = r"Stream has no examples that can .* relu is assumed"
    with pytest.warns(UserWarning, match=message) as all_:
        start(module, Initializer(seed=0), train=DataLoader(stream, batch_size=8))
    assert sum("assumed" in str(each.message) for each in all_) == 1
    assert next(stream.source, None) is None  # training had them all
    assert module.trainer.global_step == 6


class Described(Classifier):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def test_a_stream_with_an_example() -> None:
    given, described = Initializer(seed=0, example_input=torch.ones(1, 6)), Initializer(seed=0)
    start(Described(), given, train=DataLoader(Stream(), batch_size=8))
    module = Described()
    module.example_input_array = torch.ones(1, 6)
    start(module, described, train=DataLoader(Stream(), batch_size=8))
    for initializer in (given, described):
        assert initializer.report["net.0.weight"].activation == "relu"


def test_a_stream_cannot_do_for_data_driven_schemes() -> None:
    with pytest.raises(LookupError, match="Stream has no examples"):
        start(Classifier(), Initializer("lsuv"), train=DataLoader(Stream(), batch_size=8))


class Sine(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sin()


class Needy(Classifier):
    """Looks at its Trainer in each training step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        assert self.trainer.max_epochs == 1
        return super().training_step(batch, batch_idx)


def test_a_training_step_may_look_at_the_trainer() -> None:
    initializer = Initializer(seed=0)
    start(Needy(), initializer)
    assert initializer.report["net.0.weight"].activation == "relu"


def test_a_training_step_that_cannot_be_tried_out_gives_a_warning() -> None:
    """In manual optimization it would use the real optimizers, so the copy has no Trainer."""
    initializer, module = Initializer(seed=0), Needy()
    module.automatic_optimization = False
    with pytest.warns(UserWarning, match="could not try a training step"):
        start(module, initializer)
    assert initializer.report["net.0.weight"].rule == "he"


@pytest.mark.filterwarnings("error:Which nonlinearity")
def test_a_warning_that_is_an_error_is_no_failed_step() -> None:
    module = Classifier()
    module.net[2] = Sine()
    with pytest.raises(UserWarning, match=r"^Which nonlinearity follows 'net\.0' is not known"):
        start(module, Initializer(seed=0))


def test_trying_out_leaves_no_trace() -> None:
    class Remembering(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.seen.append(batch_idx)
            return super().training_step(batch, batch_idx)

    module = Remembering()
    found = start(module, Initializer(seed=0))
    assert module.seen == list(range(6))
    assert not found["net.1.running_mean"].any()
    assert found["net.1.num_batches_tracked"] == 0


def test_lsuv_uses_training_data() -> None:
    module = Classifier()
    found = start(module, Initializer("lsuv", seed=0), train=DataLoader(data(), batch_size=48))
    inputs = data().tensors[0]
    output = functional.linear(inputs, found["net.0.weight"], found["net.0.bias"])
    assert float(output.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_rewinding_goes_back_to_the_initialized_weights() -> None:
    pruning = IterativeMagnitudePruning(1, fraction=0.5)
    found = start(Classifier(), pruning, Initializer(seed=0))  # the last round's start
    expected = start(Classifier(), Initializer(seed=0))
    mask = pruning.masks["net.0.weight"]
    assert torch.equal(found["net.0.weight"], expected["net.0.weight"] * mask)
    assert torch.equal(pruning.ticket.weights["net.0.weight"], expected["net.0.weight"])


@pytest.mark.parametrize("first", [True, False])
def test_random_reinitialization_of_a_ticket(first: bool) -> None:
    masks = Masks({"net.0.weight": torch.arange(96).remainder(2).view(16, 6)})
    callbacks = [FixedMasks(masks), Initializer(seed=0)]
    found = start(Classifier(), *(callbacks if first else callbacks[::-1]))
    expected = start(Classifier(), Initializer(seed=0))
    assert torch.equal(found["net.0.weight"], expected["net.0.weight"] * masks["net.0.weight"])


def test_a_resumed_fit_is_not_initialized_again(tmp_path: Path) -> None:
    whole, first = Classifier(), Classifier()
    trainer(Initializer(seed=0), max_epochs=2).fit(whole, loader(), loader())
    fitter = trainer(Initializer(seed=0), max_epochs=1)
    fitter.fit(first, loader(), loader())
    fitter.save_checkpoint(tmp_path / "first.ckpt")
    resumed, initializer = Classifier(seed=9), Initializer(seed=4)
    trainer(initializer, max_epochs=2).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "first.ckpt"
    )
    assert_equal(weights(resumed), weights(whole))
    assert initializer.report.seed == 0  # of the fit that was resumed


def test_a_checkpoint_of_a_run_without_the_callback_is_not_initialized(tmp_path: Path) -> None:
    whole, first, resumed = Classifier(), Classifier(), Classifier()
    trainer(max_epochs=2).fit(whole, loader(), loader())
    fitter = trainer(max_epochs=1)
    fitter.fit(first, loader(), loader())
    fitter.save_checkpoint(tmp_path / "first.ckpt")
    initializer = Initializer()
    trainer(initializer, max_epochs=2).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "first.ckpt"
    )
    assert_equal(weights(resumed), weights(whole))
    with pytest.raises(RuntimeError, match=r"no report before `trainer\.fit` has initialized"):
        _ = initializer.report


def test_training_goes_on_in_a_second_fit_of_the_same_trainer() -> None:
    module, watcher = Classifier(), Start()
    fitter = trainer(Initializer(seed=0), watcher, max_epochs=1)
    fitter.fit(module, loader(), loader())
    end = weights(module)
    fitter.fit_loop.max_epochs = 2
    fitter.fit(module, loader(), loader())
    assert_equal(watcher.weights, end)
    assert fitter.global_step == 12


def test_lazy_layers_and_configure_model() -> None:
    class Lazy(Classifier):
        def configure_model(self) -> None:
            self.net = nn.Sequential(
                nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3)
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    assert_equal(
        start(Lazy(), Initializer(seed=0)),
        start(Classifier(), Initializer(seed=0)),
    )


@pytest.mark.slow
def test_a_compiled_module() -> None:
    initializer = Initializer(seed=0)
    compiled = torch.compile(Classifier(), backend="eager")
    found = start(compiled, initializer)  # type: ignore[arg-type]
    assert_equal(found, start(Classifier(), Initializer(seed=0)))


def test_an_orthogonal_parametrization_is_drawn() -> None:
    drawn = []
    for seed in (1, 2):
        module = Classifier()
        nn.utils.parametrizations.orthogonal(module.net[0])
        found = start(module, Initializer("orthogonal", seed=seed))
        drawn.append(found["net.0.parametrizations.weight.0.base"])
    assert not torch.allclose(*drawn, atol=0.01)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision_of_the_trainer(precision: Any) -> None:
    for example in (None, torch.randn(8, 6)):
        initializer = Initializer("lsuv", seed=0, example_input=example)
        start(Described(), initializer, precision=precision)
        assert initializer.report["net.0.weight"].rule == "lsuv of orthogonal"


def test_manual_optimization_needs_an_example() -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()  # type: ignore[union-attr]

    with pytest.warns(UserWarning, match="could not try a training step"):
        start(Manual(), Initializer(seed=0))
    found = start(Manual(), Initializer(seed=0, example_input=torch.ones(1, 6)))
    assert_equal(found, start(Classifier(), Initializer(seed=0)))


def test_the_report_is_text_in_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    initializer = Initializer(seed=0, show_signal=True)
    start(Classifier(), initializer, logger=logger)
    events = EventAccumulator(str(tmp_path)).Reload()
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    report = texts["initialization/report/text_summary"]
    assert "| net.0.weight | Linear | he | 6 | 1.414 | relu |" in report
    assert "net.0" in texts["initialization/signal/text_summary"]
    assert events.Tags()["images"] == ["initialization/signal"]


def test_the_console_says_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        start(Classifier(), Initializer(seed=0))
    assert "Initializer: 6 parameters initialized, 0 skipped; seed 0" in caplog.text


def test_overrides_reach_the_weights() -> None:
    overrides = {"net.3": init.zeros()}
    found = start(Classifier(), Initializer("he", seed=0, overrides=overrides))
    assert not found["net.3.weight"].any()
    assert float(found["net.0.weight"].std()) == pytest.approx(math.sqrt(2 / 6), rel=0.15)


def test_lightnings_learning_rate_finder_keeps_the_weights(tmp_path: Path) -> None:
    class Tunable(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.lr = 0.1

    module = Tunable()
    finder = LearningRateFinder(num_training_steps=5)
    checkpoint = ModelCheckpoint(dirpath=tmp_path)
    found = start(
        module, Initializer(seed=0), finder, checkpoint,
        default_root_dir=tmp_path, enable_checkpointing=True,
    )  # fmt: skip
    assert_equal(found, start(Classifier(), Initializer(seed=0)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "xavir"}, ValueError, "Did you mean 'xavier'"),
        ({"scheme": 3}, TypeError, "`scheme` must be the name of a scheme or a rule"),
        ({"overrides": {"a": 1}}, TypeError, r"`overrides\['a'\]` must be a rule"),
        ({"seed": 1.5}, TypeError, "`seed` must be an integer or None, got float"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Initializer(**arguments)


def test_sharded_parameters_are_refused() -> None:
    fitter = trainer(Initializer(), max_epochs=1)
    fitter.strategy.__class__ = ModelParallelStrategy  # what `strategy=` would have made
    with pytest.raises(ValueError, match="ModelParallelStrategy has sharded"):
        Initializer().on_fit_start(fitter, Classifier())


@pytest.mark.distributed
@pytest.mark.parametrize("scheme", ["auto", "lsuv"])
def test_all_ranks_get_the_same_weights(scheme: str, two_processes: Path) -> None:
    folder = two_processes / f"initializer_{scheme}"
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_equal(first, second)
    if scheme == "auto":  # the seed of rank 0
        assert_equal(first, start(Classifier(), Initializer(seed=7)))
