"""What people really use beside pruning: precision, several optimizers, compilation, callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch._dynamo.testing
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn, optim
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import powerSGD_hook
from torch.utils.data import IterableDataset

from lightning_lth import FixedMasks, IterativeMagnitudePruning, Masks
from lightning_lth.callbacks._compatibility import touches_gradients
from tests.callbacks.modules import Classifier, assert_equal, data, loader, trainer, weights
from tests.callbacks.test_pruning import SURVIVORS, Watcher, fit


def scaled_precision() -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    return MixedPrecision("16-mixed", "cpu", scaler)


def test_the_gradient_scale_is_rewound_with_the_weights() -> None:
    watcher, alone_watcher = Watcher(), Watcher()
    pruning = IterativeMagnitudePruning(2)
    scales: list[float] = []

    class Scales(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
            scales.append(trainer.precision_plugin.scaler.get_scale())  # type: ignore[attr-defined]

    fit(watcher, Scales(), pruning, plugins=[scaled_precision()], gradient_clip_val=0.1)
    # It doubles after every 5 steps of a round, and a round has 18.
    one_round = [1024.0] * 4 + [2048.0] * 5 + [4096.0] * 5 + [8192.0] * 4
    assert scales == 3 * one_round
    alone = Classifier()
    pruning.ticket.apply_(alone)
    fit(
        FixedMasks(pruning.masks),
        alone_watcher,
        module=alone,
        plugins=[scaled_precision()],
        gradient_clip_val=0.1,
    )
    assert_equal(watcher.ends[2], alone_watcher.ends[0])


class TwoOptimizers(Classifier):
    """Manual optimization with clipping by hand, as people write it for adversarial networks."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.norms: list[float] = []

    def configure_optimizers(self) -> Any:
        first = optim.Adam(self.net[0].parameters(), lr=0.01)
        second = optim.SGD(self.net[3].parameters(), lr=0.1, momentum=0.9)
        schedulers = [optim.lr_scheduler.StepLR(first, 4)]
        return [first, second], schedulers

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 0.1)
        self.norms.append(float(norm))
        masked = [
            p.grad[p == 0].abs().max()
            for p in (self.net[0].weight, self.net[3].weight)
            if (p == 0).any()
        ]
        assert all(float(value) == 0 for value in masked)
        for optimizer in optimizers:
            optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()


def test_manual_optimization_with_two_optimizers_and_own_clipping() -> None:
    watcher, alone_watcher = Watcher(), Watcher()
    pruning = IterativeMagnitudePruning(2)
    module = fit(watcher, pruning, module=TwoOptimizers())
    assert watcher.nonzero == [n for n in SURVIVORS[:3] for _ in range(18)]
    alone = TwoOptimizers()
    pruning.ticket.apply_(alone)
    fit(FixedMasks(pruning.masks), alone_watcher, module=alone)
    assert_equal(watcher.ends[2], alone_watcher.ends[0])
    assert module.norms[36:] == alone.norms  # type: ignore[attr-defined]
    assert watcher.rates[36:] == alone_watcher.rates


class OwnAccumulation(Classifier):
    """Steps after every fourth batch; two batches of each epoch wait for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def test_gradients_left_over_from_one_round_are_not_those_of_the_next() -> None:
    watcher, alone_watcher = Watcher(), Watcher()
    pruning = IterativeMagnitudePruning(2)
    settings: Any = {"limit_val_batches": 0}  # Lightning clears the gradients to validate
    fit(watcher, pruning, module=OwnAccumulation(), **settings)
    alone = OwnAccumulation()
    pruning.ticket.apply_(alone)
    fit(FixedMasks(pruning.masks), alone_watcher, module=alone, **settings)
    assert_equal(watcher.ends[2], alone_watcher.ends[0])


class NoisyGradients(Classifier):
    def on_before_optimizer_step(self, optimizer: optim.Optimizer) -> None:
        for parameter in self.parameters():
            assert parameter.grad is not None
            parameter.grad.add_(torch.randn_like(parameter.grad))


class HandMadeGradients(Classifier):
    def on_after_backward(self) -> None:
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)


class OwnClipping(Classifier):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        for parameter in self.parameters():
            parameter.grad = parameter.grad.sign() + 1  # type: ignore[union-attr]


class OwnBackward(Classifier):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()
        for parameter in self.parameters():
            parameter.grad.add_(1.0)  # type: ignore[union-attr]


class ManualNoise(OwnAccumulation):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(Classifier.training_step(self, batch, batch_idx))
        for parameter in self.parameters():
            parameter.grad.add_(1.0)  # type: ignore[union-attr]
        optimizer.step()


@pytest.mark.parametrize(
    "module_type", [NoisyGradients, HandMadeGradients, OwnClipping, OwnBackward, ManualNoise]
)
def test_pruned_weights_stay_zero_where_users_change_gradients(module_type: Any) -> None:
    watcher = Watcher()
    fit(watcher, IterativeMagnitudePruning(2), module=module_type())
    assert watcher.nonzero == [n for n in SURVIVORS[:3] for _ in range(18)]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_torch_compile_compiles_once_for_all_rounds(whole: bool) -> None:
    torch._dynamo.reset()
    watcher, eager_watcher = Watcher(), Watcher()
    pruning, module = IterativeMagnitudePruning(2), Classifier()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    if whole:
        compiled: Any = torch.compile(module, backend=counter)
    else:
        module.net = torch.compile(module.net, backend=counter)  # type: ignore[assignment]
        compiled = module
    settings = {"max_epochs": 3, "limit_val_batches": 0}  # evaluation would be a second graph
    trainer(EndsOnly(watcher), pruning, **settings).fit(compiled, loader(), loader())
    num_frames = counter.frame_count
    fit(eager_watcher, IterativeMagnitudePruning(2), **settings)
    assert list(pruning.masks) == ["net.0.weight", "net.3.weight"]
    assert pruning.masks.num_remaining == 92
    for end, eager_end in zip(watcher.ends, eager_watcher.ends, strict=True):
        for name, value in end.items():
            torch.testing.assert_close(value, eager_end[name.replace("_orig_mod.", "")])
    assert num_frames == 1


class EndsOnly(pl.Callback):
    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watcher.ends.append(weights(pl_module))


class Stream(IterableDataset[Any]):
    """48 samples without a length."""

    def __iter__(self) -> Iterator[Any]:
        yield from data()


@pytest.mark.parametrize(
    ("settings", "steps"), [({"max_epochs": 3}, 18), ({"max_epochs": -1, "max_steps": 10}, 10)]
)
@pytest.mark.parametrize("rewind_step", [0, 4, 6])
def test_iterable_data_sets(settings: dict[str, int], steps: int, rewind_step: int) -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(1, fractions={"*": 0.0}, rewind_step=rewind_step)
    fitter = trainer(watcher, pruning, **settings)
    fitter.fit(Classifier(), torch.utils.data.DataLoader(Stream(), batch_size=8), loader())
    assert [record.steps for record in pruning.history] == [steps, steps]
    assert_equal(watcher.ends[0], watcher.ends[1])  # a stream comes in the same order each time


def test_weights_are_masked_after_steps_on_gradients_that_ddp_compresses() -> None:
    hooked = DDPStrategy(ddp_comm_hook=powerSGD_hook)  # Lightning hooks it in on GPUs only
    assert touches_gradients(trainer(strategy=hooked), Classifier())
    assert not touches_gradients(trainer(strategy=DDPStrategy()), Classifier())


def test_validation_by_the_clock() -> None:
    pruning = IterativeMagnitudePruning(1)
    fit(pruning, max_epochs=1, val_check_interval=timedelta(0))  # after every batch
    assert [record.monitor for record in pruning.history] == ["val_loss"] * 2


def test_every_round_has_the_whole_time_budget() -> None:
    pruning = IterativeMagnitudePruning(2)
    fit(pruning, max_epochs=500, max_time={"milliseconds": 200})
    assert [record.stop_reason for record in pruning.history] == ["should_stop"] * 3
    assert all(0 < record.steps < 3000 for record in pruning.history)


class Freezing(BaseFinetuning):
    """Trains the head alone in the first epoch, then everything."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.net[0])  # type: ignore[operator]

    def finetune_function(
        self, pl_module: pl.LightningModule, epoch: int, optimizer: optim.Optimizer
    ) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.01)  # type: ignore[operator]


class FilteringClassifier(Classifier):
    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def test_layers_unfrozen_in_the_course_of_a_round_are_frozen_again_in_the_next() -> None:
    watcher, alone_watcher = Watcher(), Watcher()
    pruning = IterativeMagnitudePruning(2, parameters=["net.*.weight"], fractions={"net.1.*": 0})
    fit(watcher, Freezing(), pruning, module=FilteringClassifier())
    alone = FilteringClassifier()
    pruning.ticket.apply_(alone)
    fit(alone_watcher, Freezing(), FixedMasks(pruning.masks), module=alone)
    assert_equal(watcher.ends[2], alone_watcher.ends[0])
    body = "net.0.bias"
    assert not torch.equal(watcher.starts[2][body], watcher.ends[2][body])


class Sequences(Classifier):
    """An embedding tied to the output layer, attention and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()  # type: ignore[assignment]
        self.embedding = nn.Embedding(7, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embedding.weight

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        tokens = (batch[0].abs() * 3).long().clamp(max=6)
        states, _ = self.recurrent(self.encoder(self.embedding(tokens)))
        return nn.functional.cross_entropy(self.head(states).flatten(0, 1), tokens.flatten())


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # by the switch for oneDNN itself
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_attention_recurrence_and_tied_embeddings(precision: str) -> None:
    module = Sequences()
    pruning = IterativeMagnitudePruning(2, fraction=0.5, scope="layer")
    counts: list[int] = []

    class Counter(pl.Callback):
        def on_train_batch_end(self, *args: object) -> None:
            counts.append(sum(int(p.count_nonzero()) for p in weights_of(module, pruning)))

    settings: Any = {"precision": precision, "limit_val_batches": 0, "max_epochs": 2}
    with torch.backends.mkldnn.flags(enabled=False):  # oneDNN's LSTM in bf16 needs AVX-512
        fit(Counter(), pruning, module=module, **settings)
    assert sorted(pruning.masks) == [
        "embedding.weight",
        "encoder.linear1.weight",
        "encoder.linear2.weight",
        "encoder.self_attn.in_proj_weight",
        "encoder.self_attn.out_proj.weight",
        *(f"recurrent.weight_{kind}_l{layer}" for kind in ("hh", "ih") for layer in (0, 1)),
    ]
    # 56 + 2 * 128 + 192 + 64 + 4 * 256 = 1592 weights: half of them, and half of those
    assert [counts[12], counts[24]] == [796, 398]
    assert set(counts[12:24]) == {796}
    assert module.head.weight is module.embedding.weight


def weights_of(module: nn.Module, pruning: IterativeMagnitudePruning) -> list[Tensor]:
    return [module.get_parameter(name) for name in pruning.masks]


def test_the_learning_rate_finder_of_lightning_runs_one_sweep_and_no_round() -> None:
    class WithRate(Classifier):
        lr = 0.01

        def configure_optimizers(self) -> optim.Optimizer:
            return optim.SGD(self.parameters(), lr=self.lr)

    pruning = IterativeMagnitudePruning(1)
    finder = LearningRateFinder(num_training_steps=5, min_lr=1e-4, max_lr=0.1, update_attr=False)
    module, watcher = WithRate(), Watcher()
    start = weights(module)
    fit(watcher, finder, pruning, module=module, max_epochs=1)
    assert len(pruning.history) == 2
    mask = pruning.masks["net.0.weight"]
    assert torch.equal(watcher.starts[-1]["net.0.weight"], start["net.0.weight"] * mask)


def test_accumulation_by_schedule_starts_anew_each_round() -> None:
    schedule = GradientAccumulationScheduler({0: 1, 1: 3})
    pruning = IterativeMagnitudePruning(2)
    fit(schedule, pruning, max_epochs=2)
    assert [record.steps for record in pruning.history] == [6 + 2] * 3


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: EMAWeightAveraging(), "carry pruned weights back"),
        (lambda: StochasticWeightAveraging(0.1), "carry pruned weights back"),
        (lambda: ModelPruning("l1_unstructured", amount=0.5), "prunes the same weights"),
        (lambda: FixedMasks(Masks({})), "two masks"),
    ],
)
def test_callbacks_that_would_break_the_masks_are_refused(other: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit(IterativeMagnitudePruning(1), other())


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_flatten_parameters_are_refused(strategy: Any) -> None:
    pruning = IterativeMagnitudePruning(1)
    fitter = trainer(pruning)
    fitter.strategy.__class__ = strategy  # neither starts on a machine without GPUs
    with pytest.raises(ValueError, match=r"flattened copies .* Use DDP"):
        pruning.setup(fitter, Classifier(), "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, r"`rounds` must be an integer of at least 1, got 0\."),
        ({"fraction": 20}, r"`fraction` must be in \(0, 1\), got 20\. .* fractions: 0\.2\."),
        (
            {"mode": "max"},
            r"`mode` is for `monitor`, which is not given, got 'max'. Name the metric",
        ),
        ({"fraction": 1.0}, r"`fraction` must be in \(0, 1\), got 1\.0\.$"),
        ({"scope": "globally"}, r"`scope` must be one of \['global', 'layer'\], got 'globally'\."),
        ({"rewind": "all"}, "`rewind` must be one of"),
        ({"rewind_step": -1}, "`rewind_step` must be an integer of at least 0"),
        ({"rewind_step": 2, "rewind_epoch": 1}, "Give `rewind_step` or `rewind_epoch`, not both"),
        ({"fractions": {"head*": 1.5}}, r"`fractions\['head\*'\]` must be in \[0, 1\), got 1\.5"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IterativeMagnitudePruning(**({"rounds": 1} | arguments))


def test_a_criterion_by_name() -> None:
    with pytest.raises(TypeError, match=r"must be a function, such as .*magnitude`, got 'magni"):
        IterativeMagnitudePruning(1, criterion="magnitude")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pruning", "settings", "message"),
    [
        ({"rewind_step": 5}, {"max_steps": 5}, r"less than `Trainer\(max_steps=5\)`"),
        ({"rewind_step": 18}, {"max_epochs": 3}, r"18 steps in `Trainer\(max_epochs=3\)`, got 18"),
        ({"rewind_step": 9}, {"max_epochs": 3, "accumulate_grad_batches": 2}, "9 steps in"),
        ({"rewind_epoch": 3}, {"max_epochs": 3}, r"less than `Trainer\(max_epochs=3\)`"),
        ({"fractions": {"nett*": 0.1}}, {}, "nett"),
        ({"parameters": ["head.weight"]}, {}, "net.3.weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(
    pruning: Any, settings: Any, message: str
) -> None:
    watcher = Watcher()
    with pytest.raises(ValueError, match=message):
        fit(watcher, IterativeMagnitudePruning(1, **pruning), **settings)
    assert watcher.nonzero == []


def test_a_rewind_step_that_training_never_reaches() -> None:
    with pytest.raises(RuntimeError, match="Round 0 ended at step 18, epoch 3, before"):
        fit(IterativeMagnitudePruning(1, rewind_step=18), reload_dataloaders_every_n_epochs=1)


def test_the_last_step_that_training_reaches() -> None:
    pruning = IterativeMagnitudePruning(1, rewind_step=17)
    fit(pruning)  # 18 steps, the last of which starts at 17
    assert [record.steps for record in pruning.history] == [18, 18]


def test_the_round_is_in_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    fit(IterativeMagnitudePruning(2), TQDMProgressBar(), enable_progress_bar=True, max_epochs=1)
    output = capsys.readouterr()
    assert all(f"round={r}/2" in output.out + output.err for r in range(3))


def test_figures_in_tensorboard(tmp_path: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    fit(IterativeMagnitudePruning(2), logger=logger, max_epochs=1)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    assert [e.value for e in events.Scalars("pruning/round")] == [0.0, 1.0, 2.0]
    assert [e.step for e in events.Scalars("pruning/density")] == [0, 6, 12]
    assert [e.step for e in events.Images("pruning/densities")] == [6, 12, 18]
    assert len(events.Images("pruning/best")) == 3
