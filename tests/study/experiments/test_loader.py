from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed, nn

from lightning_lth import IterativeMagnitudePruning
from lightning_lth.study.experiments.loader import TensorLoader


def numbers(count: int = 10, **settings: Any) -> TensorLoader:
    """Examples that are their own labels, 0 to count - 1, in batches of 3."""
    examples = torch.arange(float(count))[:, None]
    settings = {"batch_size": 3, "shuffle": True, "seed": 7} | settings
    return TensorLoader(examples, torch.arange(count), **settings)


def labels_of(loader: TensorLoader) -> list[list[int]]:
    batches = []
    for inputs, labels in loader:
        assert torch.equal(inputs[:, 0].long(), labels)  # they belong together
        batches.append(labels.tolist())
    return batches


def flat(batches: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(batches))


def test_without_shuffling_batches_are_slices_without_a_copy() -> None:
    loader = numbers(shuffle=False)
    assert labels_of(loader) == labels_of(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(loader) == 4
    first, _ = next(iter(loader))
    assert first.data_ptr() == loader.inputs.data_ptr()


def test_the_smaller_last_batch_can_be_left_out() -> None:
    loader = numbers(shuffle=False, drop_last=True)
    assert labels_of(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len(loader) == 3
    assert len(numbers(9)) == len(numbers(9, drop_last=True)) == 3


def test_each_epoch_has_all_examples_in_an_order_of_its_own() -> None:
    loader = numbers(100)
    first, second = labels_of(loader), labels_of(loader)
    assert first != second
    for batches in (first, second):
        assert sorted(flat(batches)) == list(range(100))
        assert flat(batches) != list(range(100))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    counted = numbers(100)
    passes = [labels_of(counted) for _ in range(4)]
    set_to = numbers(100)
    for epoch in (3, 1, 0):
        set_to.sampler.set_epoch(epoch)
        torch.rand(5)
        assert labels_of(set_to) == passes[epoch]
    assert labels_of(numbers(100, seed=8)) != passes[0]
    assert labels_of(numbers(100, batch_size=50))[0] == flat(passes[0])[:50]


def test_passes_that_are_not_finished_count_too() -> None:
    whole = numbers(100)
    passes = [labels_of(whole) for _ in range(2)]
    loader = numbers(100)
    firsts = [next(iter(loader))[1].tolist() for _ in range(2)]
    assert firsts == [passes[0][0], passes[1][0]]


def test_by_default_the_global_seed_decides_and_no_random_number_is_used_up() -> None:
    torch.manual_seed(5)
    torch.rand(3)
    before = torch.get_rng_state()
    loader = numbers(100, seed=None, augment=lambda inputs, generator: inputs)
    assert labels_of(loader) == labels_of(numbers(100, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)  # later seeds do not matter
    assert labels_of(loader) == labels_of_epoch(numbers(100, seed=5), 1)


def labels_of_epoch(loader: TensorLoader, epoch: int) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)
    return labels_of(loader)


def noise(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + torch.rand(inputs.shape, generator=generator)


def test_augmentation_depends_on_seed_epoch_and_batch_alone() -> None:
    def noises(loader: TensorLoader, epoch: int) -> Tensor:
        loader.sampler.set_epoch(epoch)
        return torch.cat([inputs[:, 0] - labels for inputs, labels in loader])

    loader = numbers(96, shuffle=False, augment=noise)
    first, second = noises(loader, 0), noises(loader, 1)
    torch.testing.assert_close(noises(numbers(96, shuffle=False, augment=noise), 0), first)
    assert first.unique().numel() == 96  # no two batches alike
    assert not torch.isclose(first, second).any()
    other = noises(numbers(96, shuffle=False, augment=noise, seed=8), 0)
    assert not torch.isclose(first, other).any()
    assert torch.equal(loader.inputs[:, 0], torch.arange(96.0))


def test_a_state_names_the_batch_that_comes_next() -> None:
    loader = numbers()
    batches = iter(loader)
    states = [loader.state_dict()]
    for _ in range(4):
        next(batches)
        states.append(loader.state_dict())
    expected = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert [(state["epoch"], state["batch"]) for state in states] == expected


def test_a_loaded_state_holds_for_one_pass() -> None:
    whole = numbers()
    passes = [labels_of(whole) for _ in range(4)]
    loader = numbers()
    loader.load_state_dict({"epoch": 2, "batch": 3})
    assert loader.state_dict() == {"epoch": 2, "batch": 3}
    assert [labels_of(loader), labels_of(loader)] == [passes[2][3:], passes[3]]
    loader.sampler.set_epoch(2)
    assert labels_of(loader) == passes[2]
    loader.sampler.set_epoch(3)
    loader.load_state_dict({"epoch": 1, "batch": 2})  # earlier than where it is
    assert labels_of(loader) == passes[1][2:]


def test_a_state_of_an_epoch_that_was_cut_short_does_not_shorten_the_next() -> None:
    whole = numbers()
    passes = [labels_of(whole) for _ in range(4)]
    loader = numbers()
    loader.load_state_dict({"epoch": 2, "batch": 3})
    loader.sampler.set_epoch(3)  # Lightning: that epoch is over
    assert labels_of(loader) == passes[3]


class Sum(LightningModule):
    """Two weights, and a loss by which all that has been seen, and its order, can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2, bias=False)
        nn.init.ones_(self.layer.weight)
        self.seen: list[list[int]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch[1].tolist())
        return (self.layer(batch[0]) - batch[1][:, None] / 2).square().mean() / 100

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer_for(*callbacks: Callback, **settings: Any) -> Trainer:
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(names, False) | {"max_epochs": 3}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **(quiet | settings))


class SaveAt(Callback):
    """Saves after so many batches of all, in ``on_train_batch_end``."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches = batches
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, module: Sum, *_: Any) -> None:
        if len(module.seen) == self.batches:
            trainer.save_checkpoint(self.path)


def test_lightning_says_which_epoch_it_is() -> None:
    module, whole = Sum(), numbers()
    trainer_for().fit(module, numbers())
    assert module.seen == flat(labels_of(whole) for _ in range(3))


class Validated(Sum):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen.append(batch[1].tolist())


def test_lightning_takes_it_for_validation_too() -> None:
    module = Validated()
    trainer_for().validate(module, numbers(shuffle=False), verbose=False)
    assert module.seen == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize("batches", [1, 4, 6])  # in the first epoch, at its end, in the second
def test_a_resumed_fit_goes_on_with_the_next_batch(tmp_path: Path, batches: int) -> None:
    module, uninterrupted, path = Sum(), Sum(), tmp_path / "saved.ckpt"
    trainer_for(SaveAt(batches, path)).fit(uninterrupted, numbers(augment=noise))
    trainer_for().fit(module, numbers(augment=noise), ckpt_path=path, weights_only=True)
    assert module.seen == uninterrupted.seen[batches:]
    assert torch.equal(module.layer.weight, uninterrupted.layer.weight)


class SaveAfterFirstEpoch(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_after_a_shortened_epoch_a_resumed_fit_starts_the_next_one_anew(tmp_path: Path) -> None:
    module, uninterrupted, path = Sum(), Sum(), tmp_path / "saved.ckpt"
    trainer_for(SaveAfterFirstEpoch(path), limit_train_batches=2).fit(uninterrupted, numbers())
    trainer = trainer_for(limit_train_batches=2)
    trainer.fit(module, numbers(), ckpt_path=path, weights_only=True)
    assert module.seen == uninterrupted.seen[2:]


def test_rounds_of_pruning_go_on_with_the_order() -> None:
    module, whole = Sum(), numbers()
    pruning = IterativeMagnitudePruning(1, fraction=0.5)
    trainer_for(pruning, max_epochs=2).fit(module, numbers())
    assert module.seen == flat(labels_of(whole) for _ in range(4))


def test_rounds_of_pruning_can_repeat_the_order() -> None:
    module, whole = Sum(), numbers()
    pruning = IterativeMagnitudePruning(1, fraction=0.5, repeat_data_order=True)
    trainer_for(pruning, max_epochs=2).fit(module, numbers())
    assert module.seen == 2 * flat(labels_of(whole) for _ in range(2))


@pytest.mark.parametrize("batches", [2, 6, 10, 13])  # 4 an epoch, 8 a round; never between epochs
def test_a_resumed_round_of_pruning_goes_on_with_the_next_batch(
    tmp_path: Path, batches: int
) -> None:
    def fit(module: Sum, *callbacks: Callback, **settings: Any) -> None:
        pruning = IterativeMagnitudePruning(1, fraction=0.5)
        trainer = trainer_for(pruning, *callbacks, max_epochs=2)
        trainer.fit(module, numbers(augment=noise), **settings)

    module, uninterrupted, path = Sum(), Sum(), tmp_path / "saved.ckpt"
    fit(uninterrupted, SaveAt(batches, path))
    fit(module, ckpt_path=path, weights_only=True)
    assert module.seen == uninterrupted.seen[batches:]
    assert torch.equal(module.layer.weight, uninterrupted.layer.weight)


def test_several_processes_are_refused() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    loader = numbers()
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(RuntimeError, match=r"one process, and there are 2: all would train"):
            iter(loader)
    finally:
        distributed.destroy_process_group()
    distributed.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    try:
        assert len(labels_of(loader)) == 4
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": torch.zeros(3)}, "must be equally many, got 2 and 3"),
        ({"labels": torch.zeros(2, device="meta")}, "same device, got cpu and meta"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 3, "drop_last": True}, "at least 3 examples, got 2"),
        ({"inputs": torch.zeros(0), "labels": torch.zeros(0)}, "at least 1 examples, got 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    arguments = {"inputs": torch.zeros(2), "labels": torch.zeros(2), "batch_size": 1} | settings
    with pytest.raises(ValueError, match=message):
        TensorLoader(**arguments, shuffle=False)
