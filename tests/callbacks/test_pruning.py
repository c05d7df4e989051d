"""Rounds, rewinding and masks of IterativeMagnitudePruning, against independent references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor, nn, optim

from lightning_lth import FixedMasks, IterativeMagnitudePruning, Masks, Ticket
from tests.callbacks.modules import (
    Classifier,
    OptimizerFactory,
    assert_equal,
    loader,
    network,
    trainer,
    weights,
)

PRUNABLE = ("net.0.weight", "net.3.weight")
# Prunes round(0.2 * survivors) of 144 weights: 29, 23, 18 fall, and 115, 92, 74 are left.
SURVIVORS = (144, 115, 92, 74)
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.01, foreach=False),
    "adam_foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True, amsgrad=True),
    "adam_fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3),
}


class Watcher(pl.Callback):
    """Remembers what a user can see: survivors, learning rates and weights, batch by batch."""

    def __init__(self) -> None:
        self.nonzero: list[int] = []
        self.rates: list[float] = []
        self.ends: list[dict[str, Tensor]] = []
        self.starts: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.starts.append(weights(pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        state = pl_module.state_dict()
        self.nonzero.append(sum(int(state[name].count_nonzero()) for name in PRUNABLE))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ends.append(weights(pl_module))


def fit(*callbacks: pl.Callback, module: Classifier | None = None, **kwargs: Any) -> Classifier:
    module = module or Classifier()
    trainer(*callbacks, **({"max_epochs": 3} | kwargs)).fit(module, loader(), loader())
    return module


def reference(make_optimizer: OptimizerFactory, rounds: int, clip: float) -> list[nn.Sequential]:
    """Frankle & Carbin's algorithm in plain torch: one trained network per round."""
    initial = network().state_dict()
    masks = {name: torch.ones_like(initial[name]) for name in ("0.weight", "3.weight")}
    trained = []
    for round_ in range(rounds + 1):
        net = network()
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].mul_(mask)
        optimizer = make_optimizer(list(net.parameters()))
        for _ in range(3):
            for inputs, labels in loader():
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs), labels).backward()
                for name, mask in masks.items():
                    parameters[name].grad.mul_(mask)  # type: ignore[union-attr]
                nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                with torch.no_grad():
                    for name, mask in masks.items():
                        parameters[name].mul_(mask)
        trained.append(net)
        if round_ < rounds:
            survivors = torch.cat([parameters[n][m == 1].abs() for n, m in masks.items()])
            count = int(0.2 * len(survivors) + 0.5)
            threshold = survivors.sort().values[count - 1]
            for name, mask in masks.items():
                mask.mul_((parameters[name].abs() > threshold).float())
    return trained


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_three_rounds_equal_a_plain_torch_implementation_bit_for_bit(name: str) -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(3)
    fit(watcher, pruning, module=Classifier(OPTIMIZERS[name]), gradient_clip_val=0.05)
    expected = reference(OPTIMIZERS[name], rounds=3, clip=0.05)
    for net, end in zip(expected, watcher.ends, strict=True):
        assert_equal({f"net.{key}": value for key, value in net.state_dict().items()}, end)
    assert pruning.masks.num_remaining == 74


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rewind_step", [0, 6])
def test_pruned_weights_are_zero_after_every_step(name: str, rewind_step: int) -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(2, rewind_step=rewind_step)
    fit(watcher, pruning, module=Classifier(OPTIMIZERS[name]), max_epochs=2)
    expected = [144] * 12 + [n for n in SURVIVORS[1:3] for _ in range(12 - rewind_step)]
    assert watcher.nonzero == expected


@pytest.mark.parametrize("mode", ["learning_rate", "none"])
@pytest.mark.parametrize("name", ["momentum", "adam", "lbfgs"])
def test_pruned_weights_stay_zero_where_optimizer_state_is_kept(name: str, mode: Any) -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(2, rewind=mode)
    fit(watcher, pruning, module=Classifier(OPTIMIZERS[name]), max_epochs=2)
    assert watcher.nonzero == [n for n in SURVIVORS[:3] for _ in range(12)]


def one_cycle(module: pl.LightningModule, optimizer: optim.Optimizer) -> dict[str, Any]:
    steps = int(module.trainer.estimated_stepping_batches)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    return {"scheduler": scheduler, "interval": "step"}


def plateau(module: pl.LightningModule, optimizer: optim.Optimizer) -> dict[str, Any]:
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=9)
    return {"scheduler": scheduler, "monitor": "val_loss"}


def warm_up(module: pl.LightningModule, optimizer: optim.Optimizer) -> dict[str, Any]:
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    return {"scheduler": scheduler, "interval": "step"}


def every_other_epoch(module: pl.LightningModule, optimizer: optim.Optimizer) -> dict[str, Any]:
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    return {"scheduler": scheduler, "interval": "epoch", "frequency": 2}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate_grad_batches": 4},
    "clip": {"gradient_clip_val": 0.05},
    "max_steps": {"max_epochs": -1, "max_steps": 16},
    "val_check_interval": {"val_check_interval": 2},
    "every_other_epoch": {"check_val_every_n_epoch": 2},
    "by_steps": {"check_val_every_n_epoch": None, "val_check_interval": 4},
    "bf16": {"precision": "bf16-mixed"},
    "reload": {"reload_dataloaders_every_n_epochs": 1},
}


@pytest.mark.parametrize(
    ("settings", "scheduler"),
    [
        *(("plain", one) for one in (None, one_cycle, plateau, warm_up, every_other_epoch)),
        # A scheduler that moves by steps, and one that moves by what the setting changes.
        *((settings, one_cycle) for settings in SETTINGS if settings != "plain"),
        *((settings, every_other_epoch) for settings in ("accumulate", "max_steps", "reload")),
        *((settings, plateau) for settings in ("val_check_interval", "by_steps")),
        ("accumulate", warm_up),
        ("every_other_epoch", every_other_epoch),
    ],
)
def test_a_round_equals_training_the_masked_network_alone(
    settings: str, scheduler: Callable[..., Any] | None
) -> None:
    kwargs = SETTINGS[settings]
    watcher, alone_watcher = Watcher(), Watcher()
    pruning = IterativeMagnitudePruning(2)
    fit(watcher, pruning, module=Classifier(scheduler=scheduler), **kwargs)
    alone = Classifier(scheduler=scheduler)
    pruning.ticket.apply_(alone)
    fit(FixedMasks(pruning.masks), alone_watcher, module=alone, **kwargs)
    assert_equal(alone_watcher.starts[0], watcher.starts[2])
    assert_equal(alone_watcher.ends[0], watcher.ends[2])
    num_batches = len(alone_watcher.rates)
    assert watcher.rates == [*watcher.rates[: 2 * num_batches], *alone_watcher.rates]


def test_early_stopping_in_the_middle_of_an_epoch_ends_the_round_as_it_would_end_a_fit() -> None:
    def stopper() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=2, min_delta=0.05)

    watcher, alone_watcher = Watcher(), Watcher()
    pruning = IterativeMagnitudePruning(2)
    settings: dict[str, Any] = {"max_epochs": 30, "val_check_interval": 2}
    fit(watcher, stopper(), pruning, **settings)
    alone = Classifier()
    pruning.ticket.apply_(alone)
    fit(FixedMasks(pruning.masks), stopper(), alone_watcher, module=alone, **settings)
    assert_equal(alone_watcher.ends[0], watcher.ends[2])
    assert [record.stop_reason for record in pruning.history] == ["early_stopping"] * 3
    assert all(0 < record.steps < 180 for record in pruning.history)
    assert pruning.history[2].steps == len(alone_watcher.rates)


def test_settings_may_change_before_the_fit() -> None:
    late, changed = IterativeMagnitudePruning(1, rewind_step=6), IterativeMagnitudePruning(1)
    changed.rewind_step = 6
    assert_equal(weights(fit(late)), weights(fit(changed)))
    assert not torch.equal(
        changed.ticket.weights["net.0.weight"], Classifier().net[0].weight
    )  # not the initial ones


@pytest.mark.parametrize(
    "rewind", [{"rewind_step": 6}, {"rewind_step": 9}, {"rewind_step": 17}, {"rewind_epoch": 2}]
)
@pytest.mark.parametrize("scheduler", [one_cycle, every_other_epoch])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_late_rewinding_without_pruning_replays_the_first_round(
    name: str, scheduler: Any, rewind: dict[str, int]
) -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(
        2,
        fractions={"*": 0.0},
        repeat_data_order=True,
        **rewind,  # type: ignore[arg-type]
    )
    fit(watcher, pruning, module=Classifier(OPTIMIZERS[name], scheduler))
    assert_equal(watcher.ends[0], watcher.ends[1])
    assert_equal(watcher.ends[0], watcher.ends[2])
    step = rewind.get("rewind_step", 12)
    assert watcher.rates == watcher.rates[:18] + 2 * watcher.rates[step:18]
    assert [record.steps for record in pruning.history] == [18, 18, 18]


def test_late_rewinding_inside_an_accumulation_window_replays_the_first_round() -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(
        1, fractions={"*": 0.0}, repeat_data_order=True, rewind_step=3
    )
    fit(watcher, pruning, accumulate_grad_batches=4)  # 6 batches: steps after 4 and 6
    assert_equal(watcher.ends[0], watcher.ends[1])
    assert [record.steps for record in pruning.history] == [6, 6]


def test_rewinding_goes_back_to_the_weights_of_the_step() -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(1, rewind_step=6)
    fit(watcher, pruning)
    after_six_steps = Watcher()
    fit(after_six_steps, max_epochs=1)
    mask = {name: pruning.masks[name] for name in PRUNABLE}
    for name, value in after_six_steps.ends[0].items():
        expected = value * mask[name] if name in mask else value
        assert torch.equal(watcher.starts[1][name], expected), name


def test_learning_rate_rewinding_keeps_the_trained_weights() -> None:
    watcher = Watcher()
    pruning = IterativeMagnitudePruning(1, rewind="learning_rate", rewind_step=6)
    fit(watcher, pruning, module=Classifier(scheduler=one_cycle))
    for name in PRUNABLE:
        assert torch.equal(watcher.starts[1][name], watcher.ends[0][name] * pruning.masks[name])
    assert watcher.rates == watcher.rates[:18] + watcher.rates[6:18]


def test_fine_tuning_keeps_the_trained_weights_and_the_final_learning_rate() -> None:
    watcher = Watcher()
    module = Classifier(scheduler=one_cycle)
    run = trainer(
        watcher, pruning := IterativeMagnitudePruning(2, rewind="none", rewind_step=6), max_epochs=3
    )
    run.fit(module, loader(), loader())
    for name in PRUNABLE:
        first = (watcher.ends[0][name] != 0) & (watcher.starts[1][name] == 0)
        assert torch.equal(watcher.starts[1][name], watcher.ends[0][name] * ~first)
    assert watcher.rates[18:] == [watcher.rates[17]] * 24
    assert run.lr_scheduler_configs[0].frequency == 1
    assert pruning.masks.num_remaining == 92


def test_one_shot_prunes_once() -> None:
    pruning = IterativeMagnitudePruning(1, fraction=0.75)
    module = fit(pruning)
    assert pruning.masks.num_remaining == 36  # a quarter of 144
    assert sum(int(module.state_dict()[name].count_nonzero()) for name in PRUNABLE) == 36


def test_layer_scope_and_fractions_by_pattern() -> None:
    pruning = IterativeMagnitudePruning(
        1, fraction=0.5, scope="layer", fractions={"net.3.weight": 0.25}
    )
    fit(pruning)
    assert pruning.masks.remaining() == {"net.0.weight": 48, "net.3.weight": 36}  # of 96 and 48


def test_the_callback_leaves_round_zero_and_the_module_untouched() -> None:
    watcher, plain_watcher = Watcher(), Watcher()
    module = fit(watcher, IterativeMagnitudePruning(1))
    plain = fit(plain_watcher)
    assert_equal(watcher.ends[0], plain_watcher.ends[0])
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in module.named_modules()] == [
        name for name, _ in plain.named_modules()
    ]
    assert all(not p._post_accumulate_grad_hooks for p in module.parameters())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_round_zero_draws_the_random_numbers_of_a_plain_fit(num_workers: int) -> None:
    """Shuffling and dropout draw from the global generator, and nothing else may."""

    def run(*callbacks: pl.Callback) -> tuple[Tensor, dict[str, Tensor]]:
        module, watcher = Classifier(), Watcher()
        module.net.append(nn.Dropout(0.5))
        torch.manual_seed(3)
        state: list[Tensor] = []

        class AtEnd(pl.Callback):
            def on_train_end(self, *args: object) -> None:
                state.append(torch.get_rng_state())

        train = loader(shuffle=True, num_workers=num_workers)
        trainer(watcher, AtEnd(), *callbacks, max_epochs=2).fit(module, train, loader())
        return state[0], watcher.ends[0]

    rng, end = run(IterativeMagnitudePruning(1))
    plain_rng, plain_end = run()
    assert torch.equal(rng, plain_rng)
    assert_equal(end, plain_end)


def test_a_round_starts_without_the_metrics_of_the_last() -> None:
    seen: list[list[str]] = []

    class AtStart(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, *args: object) -> None:
            seen.append(sorted(trainer.callback_metrics))

    fit(AtStart(), IterativeMagnitudePruning(2))
    assert seen == [[], [], []]


def test_data_is_reloaded_when_a_training_alone_would_reload_it() -> None:
    class Loading(Classifier):
        loads: tuple[int, ...] = ()

        def train_dataloader(self) -> Any:
            self.loads = (*self.loads, self.current_epoch)
            return loader()

        def val_dataloader(self) -> Any:
            return loader()

    module = Loading()
    settings = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 2}
    trainer(IterativeMagnitudePruning(2), **settings).fit(module)
    assert module.loads == (0, 2) * 3


class ShuffledOrders(pl.Callback):
    def __init__(self) -> None:
        self.orders: list[list[float]] = []

    def on_train_start(self, *args: object) -> None:
        self.orders.append([])

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: list[Tensor],
        batch_idx: int,
    ) -> None:
        self.orders[-1].append(float(batch[0].sum()))


def epoch_sampler() -> torch.utils.data.DistributedSampler[Any]:
    from tests.callbacks.modules import data

    return torch.utils.data.DistributedSampler(data(), num_replicas=1, rank=0, seed=3)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("repeats", [True, False])
def test_data_order_goes_on_or_repeats(repeats: bool, num_workers: int) -> None:
    orders = ShuffledOrders()
    pruning = IterativeMagnitudePruning(2, repeat_data_order=repeats)
    train = loader(sampler=epoch_sampler(), num_workers=num_workers)
    trainer(orders, pruning, max_epochs=2).fit(Classifier(), train, loader())
    first, second, third = orders.orders
    assert len(first) == len(second) == len(third) == 12
    assert first[:6] != first[6:]
    if repeats:
        assert first == second == third
    else:
        epochs = [first[:6], first[6:], second[:6], second[6:], third[:6], third[6:]]
        assert len({tuple(epoch) for epoch in epochs}) == 6
        plain = ShuffledOrders()  # six epochs of a plain training
        trainer(plain, max_epochs=6).fit(Classifier(), loader(sampler=epoch_sampler()), loader())
        assert first + second + third == plain.orders[0]


def test_repeating_the_order_of_an_unseeded_shuffle_is_refused() -> None:
    pruning = IterativeMagnitudePruning(1, repeat_data_order=True)
    with pytest.raises(ValueError, match="needs a sampler with `set_epoch`"):
        trainer(pruning, max_epochs=1).fit(Classifier(), loader(shuffle=True), loader())


def test_model_checkpoint_keeps_the_best_trained_weights_of_each_round(tmp_path: Any) -> None:
    watcher = Watcher()
    checkpoint = ModelCheckpoint(tmp_path, "{round:.0f}-{epoch}", save_last=True, every_n_epochs=3)
    fit(watcher, IterativeMagnitudePruning(2), checkpoint, enable_checkpointing=True)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["last.ckpt", *(f"round={r}-epoch=2.ckpt" for r in range(3))]
    for round_ in range(3):
        saved = torch.load(tmp_path / f"round={round_}-epoch=2.ckpt", weights_only=True)
        assert_equal(saved["state_dict"], watcher.ends[round_])


def test_the_last_checkpoint_is_of_the_last_round_where_nothing_else_is_saved(
    tmp_path: Any,
) -> None:
    watcher = Watcher()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=5)
    fit(watcher, IterativeMagnitudePruning(1), checkpoint, enable_checkpointing=True, max_epochs=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_equal(saved["state_dict"], watcher.ends[1])


def test_history_and_its_table(tmp_path: Any) -> None:
    values = iter([3.0, 1.0, 1.0, 4.0, 2.0, 2.5])  # two rounds of three validations

    class Scripted(Classifier):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            if batch_idx == 0:
                self.log("val_loss", next(values), batch_size=1)
            self.log("test_acc", float(self.global_step), batch_size=1)

    module = Scripted()
    pruning = IterativeMagnitudePruning(1)
    trainer(pruning, max_epochs=3).fit(module, loader(), loader())
    first, second = pruning.history
    assert (first.best_value, first.best_step, first.best_metrics["test_acc"]) == (1.0, 12, 12.0)
    assert (second.best_value, second.best_step) == (2.0, 12)
    assert (first.density, second.density) == (1.0, 115 / 144)
    assert first.stop_reason == "max_epochs"
    text = pruning.history.to_csv(tmp_path / "new" / "history.csv").read_text().splitlines()
    assert text[0].startswith("round,density,steps,epochs,stop_reason,monitor,best_value,best_step")
    assert text[2].startswith(f"1,{115 / 144},18,3,max_epochs,val_loss,2.0,12,")


def test_learning_rate_monitor_and_loggers_see_every_round(tmp_path: Any) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    pruning = IterativeMagnitudePruning(2)
    fit(
        pruning,
        LearningRateMonitor("step"),
        module=Classifier(scheduler=one_cycle),
        logger=logger,
        log_every_n_steps=1,
    )
    import csv

    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    densities = [float(row["pruning/density"]) for row in rows if row["pruning/density"]]
    assert densities == pytest.approx([1.0, 115 / 144, 92 / 144])
    assert sum(bool(row["pruning/net.0.weight/density"]) for row in rows) == 3
    steps = [int(row["step"]) for row in rows if row["lr-SGD"]]
    assert steps == list(range(54))  # three rounds of 18 steps, one after the other


class LoggingTraining(Classifier):
    """Logs, as ``train_loss``, the mean of an epoch: 2, then 0, then 1 in the last."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        value = (2.0, 0.0, 1.0)[self.current_epoch]
        self.log("train_loss", value, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class LoggingInHook(Classifier):
    """Logs the same in a hook, as people do with what they compute over an epoch."""

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", (2.0, 0.0, 1.0)[self.current_epoch])


@pytest.mark.parametrize(("mode", "best"), [("min", (0.0, 12)), ("max", (2.0, 6))])
@pytest.mark.parametrize(
    ("module", "settings"),
    [
        *(
            (LoggingTraining, s)
            for s in ({}, {"val_check_interval": 0.5}, {"limit_val_batches": 0})
        ),
        (LoggingInHook, {}),
    ],
)
def test_a_metric_of_training_is_looked_at_when_epochs_end(
    mode: Any, best: tuple[float, int], module: type[Classifier], settings: dict[str, Any]
) -> None:
    pruning = IterativeMagnitudePruning(1, monitor="train_loss", mode=mode)
    trainer(pruning, max_epochs=3, **settings).fit(module(), loader(), loader())
    assert [(one.best_value, one.best_step) for one in pruning.history] == [best] * 2
    assert [one.metrics["train_loss"] for one in pruning.history] == [1.0, 1.0]


def test_checkpoints_know_what_a_module_logs_when_the_epoch_ends(tmp_path: Any) -> None:
    pruning = IterativeMagnitudePruning(1, monitor="train_loss", mode="max")
    checkpoint = ModelCheckpoint(tmp_path, "end", save_top_k=1)
    fit(pruning, checkpoint, module=LoggingInHook(), enable_checkpointing=True, max_epochs=1)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    state = saved["callbacks"]["IterativeMagnitudePruning"]
    assert (state["best"]["value"], state["best"]["step"]) == (2.0, 6)
    assert state["metrics"]["train_loss"] == 2.0


def test_a_finished_ticket_file_per_round(tmp_path: Any) -> None:
    watcher = Watcher()
    fit(watcher, IterativeMagnitudePruning(2, ticket_dir=tmp_path / "tickets"))
    for round_ in range(3):
        ticket = Ticket.load(tmp_path / "tickets" / f"round_{round_:02d}.safetensors")
        module = Classifier(seed=5)
        ticket.apply_(module)
        assert_equal(weights(module), watcher.starts[round_])
        assert ticket.masks.num_remaining == SURVIVORS[round_]


@pytest.mark.parametrize("buffer", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_what_no_ticket_can_hold_is_refused_before_training(tmp_path: Any, buffer: Tensor) -> None:
    module, watcher = Classifier(), Watcher()
    module.register_buffer("rotations", buffer, persistent=False)
    with pytest.raises(ValueError, match="'rotations' cannot be stored in a ticket"):
        fit(watcher, IterativeMagnitudePruning(1, ticket_dir=tmp_path), module=module)
    assert watcher.nonzero == []


def test_tickets_of_another_search_are_told(tmp_path: Path) -> None:
    fit(IterativeMagnitudePruning(2, ticket_dir=tmp_path), max_epochs=1)
    with pytest.warns(UserWarning, match=r"another search: round_00.safetensors, .* an empty fol"):
        fit(IterativeMagnitudePruning(1, ticket_dir=tmp_path), max_epochs=1)


def test_fast_dev_run_runs_one_batch_of_each_round() -> None:
    watcher = Watcher()
    fit(watcher, IterativeMagnitudePruning(3, rewind_step=100), max_epochs=3, fast_dev_run=True)
    assert watcher.nonzero == list(SURVIVORS)


def test_a_round_that_empties_a_layer_warns_or_is_refused() -> None:
    class TinyHead(Classifier):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.net[3].weight.mul_(1e-6)

        def configure_optimizers(self) -> optim.Optimizer:
            return optim.SGD(self.parameters(), lr=1e-9)

    with pytest.warns(UserWarning, match=r"prunes every weight of \['net.3.weight'\]"):
        fit(IterativeMagnitudePruning(1, fraction=0.5), module=TinyHead())
    refusing = IterativeMagnitudePruning(1, fraction=0.5, empty_layers="refuse")
    with pytest.raises(RuntimeError, match="scope='layer'"):
        fit(refusing, module=TinyHead())


def test_fixed_masks_are_there_when_the_sanity_check_looks() -> None:
    seen: list[int] = []

    class AtSanityCheck(pl.Callback):
        def on_sanity_check_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            seen.append(int(module.state_dict()[PRUNABLE[0]].count_nonzero()))

    mask = torch.arange(96).remainder(2).view(16, 6)
    fit(AtSanityCheck(), FixedMasks(Masks({PRUNABLE[0]: mask})), num_sanity_val_steps=1)
    assert seen == [48]


@pytest.mark.parametrize(
    "callback", [IterativeMagnitudePruning(1, parameters=["net.0.weight"]), "fixed"]
)
def test_weights_that_are_drawn_when_training_starts_are_refused(callback: Any) -> None:
    class Drawing(Classifier):
        def on_train_start(self) -> None:
            nn.init.ones_(self.net[0].weight)  # type: ignore[arg-type]

    if callback == "fixed":
        callback = FixedMasks(Masks({"net.0.weight": torch.arange(96).remainder(2).view(16, 6)}))
    with pytest.raises(RuntimeError, match=r"must stay zero, .* \['net.0.weight'\] .*Draw weights"):
        fit(callback, module=Drawing(), max_epochs=1)


@pytest.mark.parametrize("start", [0, 8, 80])
def test_weights_under_fixed_masks_may_be_averaged(start: int) -> None:
    """Before the first update Lightning validates the weights that there were in ``setup``."""

    class Seeing(Classifier):
        seen: frozenset[int] = frozenset()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.seen |= {int(self.net[0].weight.count_nonzero())}  # type: ignore[arg-type]

    module = Seeing(OPTIMIZERS["adam"])
    masks = Masks({"net.0.weight": torch.arange(96).remainder(2).view(16, 6)})
    average = EMAWeightAveraging(update_starting_at_step=start)
    fit(average, FixedMasks(masks), module=module, num_sanity_val_steps=1)
    assert module.seen == {48}
    assert int(module.net[0].weight.count_nonzero()) == 48  # type: ignore[arg-type]


def test_averages_of_batch_norm_under_fixed_masks() -> None:
    watcher = Watcher()
    masks = Masks({"net.0.weight": torch.arange(96).remainder(2).view(16, 6)})
    fit(watcher, StochasticWeightAveraging(0.1, swa_epoch_start=1), FixedMasks(masks))
    assert set(watcher.nonzero) == {96}


def test_fixed_masks_hold_in_every_training() -> None:
    watcher = Watcher()
    mask = torch.zeros(16, 6)
    mask[::2] = 1
    fit(watcher, FixedMasks(Masks({"net.0.weight": mask})))
    assert watcher.nonzero == [48 + 48] * 18  # half of the first layer and the whole second
