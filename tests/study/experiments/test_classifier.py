from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_lth import IterativeMagnitudePruning
from lightning_lth.study.experiments.classifier import Classifier, lr_factor
from lightning_lth.study.experiments.images import Digits
from lightning_lth.study.experiments.loader import TensorLoader


def images(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)  # the same each time
    return torch.rand(count, 1, 28, 28, generator=generator), torch.arange(count) % 10


def trainer_for(*callbacks: Callback, **settings: Any) -> Trainer:
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(names, False)
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **(quiet | settings))


def fit(module: Classifier, *callbacks: Callback, **settings: Any) -> Trainer:
    trainer = trainer_for(*callbacks, limit_val_batches=0, **settings)
    loader = TensorLoader(*images(), batch_size=4, shuffle=False)
    trainer.fit(module, loader, loader)
    return trainer


@pytest.mark.parametrize(("part", "method"), [("val", "validate"), ("test", "test")])
def test_metrics_are_means_over_images_however_they_are_batched(part: str, method: str) -> None:
    module, (inputs, labels) = Classifier("lenet_300_100"), images(10)
    labels[:8] = module(inputs[:8]).argmax(1).detach()  # the last batch, of 2, is not like others
    with torch.no_grad():
        logits = module(inputs)
    means = {}
    for size in (10, 4):  # 4, 4 and 2 in a batch
        loader = TensorLoader(inputs, labels, batch_size=size, shuffle=False)
        (means[size],) = getattr(trainer_for(), method)(module, loader, verbose=False)
        assert set(means[size]) == {f"{part}_loss", f"{part}_accuracy"}
        accuracy = int((logits.argmax(1) == labels).sum()) / 10
        assert means[size][f"{part}_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        losses = [row.logsumexp(0) - row[label] for row, label in zip(logits, labels, strict=True)]
        assert means[size][f"{part}_loss"] == pytest.approx(float(sum(losses) / 10), rel=1e-5)


def test_training_takes_steps_down_the_cross_entropy() -> None:
    module = Classifier("lenet_300_100", optimizer="sgd", lr=0.5)
    weight = module.network.get_parameter("output.weight")
    inputs, labels = images()
    before = weight.detach().clone()
    loss = cross_entropy(module.network(inputs[:4]), labels[:4])
    (gradient,) = torch.autograd.grad(loss, weight)
    trainer = fit(module, max_steps=1)
    torch.testing.assert_close(weight.detach(), before - 0.5 * gradient)
    assert not trainer.logged_metrics


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({"lr": 1e-3}, torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0}),
        ({"lr": 1e-3, "weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
        (
            {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        ),
    ],
)
def test_the_optimizer_is_the_one_asked_for_and_fused(
    settings: dict[str, Any], kind: type, expected: dict[str, float]
) -> None:
    trainer = fit(Classifier("lenet_300_100", **settings), max_steps=1)
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in expected} == expected
    assert group["fused"]
    assert not trainer.lr_scheduler_configs


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: Classifier, optimizer: torch.optim.Optimizer
    ) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_the_rate_follows_the_optimizer_step() -> None:
    rates = Rates()
    module = Classifier("lenet_300_100", lr=0.8, warmup_steps=4, lr_drop_steps=[5, 7])
    fit(module, rates, max_steps=9)
    expected = [0.0, 0.2, 0.4, 0.6, 0.8, 0.08, 0.08, 0.008, 0.008]
    assert rates.seen == pytest.approx(expected)


def test_drops_alone_and_warmup_alone_are_scheduled() -> None:
    drops, warmup = Rates(), Rates()
    fit(Classifier("lenet_300_100", lr=0.8, lr_drop_steps=[1]), drops, max_steps=2)
    fit(Classifier("lenet_300_100", lr=0.8, warmup_steps=2), warmup, max_steps=3)
    assert drops.seen == pytest.approx([0.8, 0.08])
    assert warmup.seen == pytest.approx([0.0, 0.4, 0.8])


def test_the_rate_of_a_paper() -> None:
    """ResNet with warm-up: 0.03 after 20,000 steps, a tenth after 20,000 and 25,000."""
    steps = (0, 5_000, 19_999, 20_000, 24_999, 25_000)
    factors = [lr_factor(step, warmup_steps=20_000, drop_steps=[20_000, 25_000]) for step in steps]
    assert factors == pytest.approx([0, 0.25, 0.99995, 0.1, 0.1, 0.01])


def test_it_learns_the_digits_and_is_pruned_by_patterns(tmp_path: Path) -> None:
    module = Classifier("lenet_300_100")
    pruning = IterativeMagnitudePruning(
        1, fraction=0.2, scope="layer", fractions={"*output.weight": 0.1}
    )
    trainer = trainer_for(pruning, max_steps=200, max_epochs=-1, val_check_interval=20)
    trainer.fit(module, datamodule=Digits())
    dense, sparse = pruning.history
    assert dense.metrics["val_accuracy"] > 0.9
    assert sparse.metrics["val_accuracy"] > 0.9
    assert sparse.density == pytest.approx(0.8004, abs=5e-5)  # of the ladder
    (tested,) = trainer.test(module, datamodule=Digits(), verbose=False)
    assert tested["test_accuracy"] > 0.9


def test_a_checkpoint_holds_the_settings(tmp_path: Path) -> None:
    module = Classifier("conv2", width=0.125, dropout=0.5, optimizer="sgd", momentum=0.9, lr=0.3)
    trainer = trainer_for(max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert loaded.lr == 0.3
    assert loaded.network.output.in_features == 256 / 8
    assert loaded.network.hidden2_dropout.p == 0.5
    assert loaded.hparams == module.hparams
    assert torch.equal(loaded.network.output.weight, module.network.output.weight)


def test_the_command_line_can_build_it() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=LightningModule)
    settings = {"network": "resnet20", "optimizer": "sgd", "lr_drop_steps": [20_000, 25_000]}
    path = "lightning_lth.study.experiments.classifier.Classifier"
    config = parser.parse_object({"model": {"class_path": path, "init_args": settings}})
    module = parser.instantiate(config).model
    assert isinstance(module, Classifier)
    assert module.lr_drop_steps == (20_000, 25_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "vgg16"}, "must be one of"),
        ({"optimizer": "adamw"}, "`optimizer` must be 'adam' or 'sgd', got 'adamw'"),
        ({"lr": 0.0}, "`lr` must be above 0, got 0.0"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"momentum": 0.9}, "Adam has none, got 0.9"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0, got -1.0"),
        ({"warmup_steps": -1}, "`warmup_steps` must be at least 0, got -1"),
        ({"lr_drop_steps": [0]}, r"`lr_drop_steps` must be at least 1, got \[0\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(**({"network": "lenet_300_100"} | settings))
