"""Interrupted and resumed, or ended by an exception: nothing is lost and nothing is left behind."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, optim

from lightning_lth import IterativeMagnitudePruning
from tests.callbacks.modules import Classifier, assert_equal, data, loader, trainer, weights
from tests.callbacks.test_pruning import one_cycle, warm_up


class ResumableLoader(torch.utils.data.DataLoader[Any]):
    """Knows which batch is next; Lightning saves and restores such a loader."""

    def __init__(self, dataset: Any = None, batch_size: int = 8, **options: Any) -> None:
        super().__init__(data() if dataset is None else dataset, batch_size, **options)
        self.first_batch = self.next_batch = 0

    def __iter__(self) -> Any:
        start, self.first_batch = self.first_batch, 0  # a pass that is broken off leaves no trace
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.next_batch = (index + 1) % 6
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first_batch = state["next_batch"]


class SaveAll(pl.Callback):
    """Saves a checkpoint after every batch and at every epoch border, wherever Lightning can."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_saved = 0

    def save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{self.num_saved:03d}-{name}.ckpt")
        self.num_saved += 1


class SaveEpochs(SaveAll):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, "epoch")


class SaveBatches(SaveAll):
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        self.save(trainer, "batch")


def adamw(parameters: list[torch.nn.Parameter]) -> optim.Optimizer:
    return optim.AdamW(parameters, lr=0.01)


def run(*callbacks: pl.Callback, ckpt_path: Path | None = None, **kwargs: Any) -> Any:
    module = Classifier(adamw, kwargs.pop("scheduler", one_cycle), seed=0 if not ckpt_path else 9)
    pruning = IterativeMagnitudePruning(2, **kwargs.pop("pruning", {}))
    settings = {
        "max_epochs": 3,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    fitter = trainer(pruning, *callbacks, **(settings | kwargs))
    fitter.fit(module, ResumableLoader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return module, pruning, fitter


def assert_same_end(resumed: Any, uninterrupted: Any, checkpoint: Path) -> None:
    module, pruning, fitter = resumed
    other_module, other_pruning, other_fitter = uninterrupted
    assert_equal(weights(module), weights(other_module))
    assert pruning.masks == other_pruning.masks, checkpoint
    assert pruning.history.rows() == other_pruning.history.rows(), checkpoint
    assert fitter.global_step == other_fitter.global_step


@pytest.mark.parametrize("rewind_step", [0, 6])
def test_resume_at_every_epoch_border_is_bit_identical(tmp_path: Path, rewind_step: int) -> None:
    settings: dict[str, Any] = {"pruning": {"rewind_step": rewind_step}}
    uninterrupted = run(SaveEpochs(tmp_path), **settings)
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) == (9 if rewind_step == 0 else 7)
    for checkpoint in checkpoints:
        assert_same_end(run(ckpt_path=checkpoint, **settings), uninterrupted, checkpoint)


def test_resume_inside_epochs_is_bit_identical(tmp_path: Path) -> None:
    # Not with OneCycleLR: `estimated_stepping_batches` makes Lightning build the loader too early.
    settings: dict[str, Any] = {"scheduler": warm_up, "val_check_interval": 2}
    uninterrupted = run(SaveBatches(tmp_path), **settings)
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) == 54
    for checkpoint in checkpoints[::7] + checkpoints[5::24]:  # 7 comes to each place in an epoch
        resumed = run(ckpt_path=checkpoint, **settings)
        assert_equal(weights(resumed[0]), weights(uninterrupted[0]))
        assert resumed[1].masks == uninterrupted[1].masks


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resume_where_early_stopping_has_just_ended_a_round(tmp_path: Path) -> None:
    def stopper() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=1, min_delta=0.1)

    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{round:.0f}-{epoch}")
    uninterrupted = run(stopper(), saver, max_epochs=20)
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) == sum(record.epochs for record in uninterrupted[1].history)
    assert all(record.stop_reason == "early_stopping" for record in uninterrupted[1].history)
    for checkpoint in checkpoints:
        saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{round:.0f}-{epoch}")
        resumed = run(stopper(), saver, max_epochs=20, ckpt_path=checkpoint)
        assert_same_end(resumed, uninterrupted, checkpoint)


def test_a_checkpoint_loads_into_the_plain_module(tmp_path: Path) -> None:
    module, _, fitter = run()
    fitter.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    plain = Classifier(seed=7)
    plain.load_state_dict(saved["state_dict"])
    assert_equal(weights(plain), weights(module))
    assert saved["callbacks"]["IterativeMagnitudePruning"]["masks"]["net.0.weight"].numel() == 12


def test_resuming_a_finished_fit_changes_nothing(tmp_path: Path) -> None:
    finished = run()
    finished[2].save_checkpoint(tmp_path / "end.ckpt")
    assert_same_end(run(ckpt_path=tmp_path / "end.ckpt"), finished, tmp_path)


def test_a_checkpoint_without_rewind_point_is_refused_when_it_is_behind(tmp_path: Path) -> None:
    module = Classifier()
    plain = trainer(max_epochs=1)
    plain.fit(module, loader(), loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    pruning = IterativeMagnitudePruning(1)
    with pytest.raises(RuntimeError, match="starts at step 6, epoch 1, behind the rewind point"):
        trainer(pruning, max_epochs=2).fit(
            module, loader(), loader(), ckpt_path=tmp_path / "plain.ckpt"
        )


def test_early_stopping_may_join_at_a_resume(tmp_path: Path) -> None:
    fitter = trainer(IterativeMagnitudePruning(1), SaveEpochs(tmp_path), max_epochs=2)
    fitter.fit(Classifier(), loader(), loader())
    pruning = IterativeMagnitudePruning(1)
    stopper = EarlyStopping("val_loss", stopping_threshold=100.0)  # of Lightning: stops at once
    resumed = trainer(pruning, stopper, max_epochs=2)
    first = min(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    resumed.fit(Classifier(), loader(), loader(), ckpt_path=first)
    assert [record.stop_reason for record in pruning.history] == ["early_stopping"] * 2
    assert [record.steps for record in pruning.history] == [12, 6]  # it began in epoch 1


class Failing(Classifier):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.fails and self.trainer.callback_metrics["round"] == 1:
            raise KeyError("on purpose")
        return super().training_step(batch, batch_idx)

    fails = True


def test_an_exception_leaves_no_hook_behind() -> None:
    module = Failing()
    pruning = IterativeMagnitudePruning(1)
    fitter = trainer(pruning, max_epochs=1)
    with pytest.raises(KeyError, match="on purpose"):
        fitter.fit(module, loader(), loader())
    assert all(not p._post_accumulate_grad_hooks for p in module.parameters())
    assert not fitter.optimizers[0]._optimizer_step_post_hooks
    assert "run" not in vars(fitter.fit_loop)
    assert len(pruning.history) == 1
    module.fails = False
    fresh = trainer(max_epochs=1)
    fresh.fit(module, loader(), loader())
    assert all(int((p == 0).sum()) == 0 for p in module.net[0].parameters())  # all train again


def test_fit_test_fit_and_reuse_in_another_trainer() -> None:
    class Tested(Classifier):
        def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("test_zeros", float((self.net[0].weight == 0).sum()))

    pruning = IterativeMagnitudePruning(1, fraction=0.5)
    first, fitter = Tested(), trainer(pruning, max_epochs=1)
    fitter.fit(first, loader(), loader())
    pruned = float((first.net[0].weight == 0).sum())
    assert fitter.test(first, loader(), verbose=False) == [{"test_zeros": pruned}]
    end = weights(first)
    fitter.fit(first, loader(), loader())  # the budget of the last round is used up
    assert_equal(weights(first), end)
    second = Tested()
    trainer(pruning, max_epochs=1).fit(second, loader(), loader())
    assert_equal(weights(second), end)
    assert len(pruning.history) == 2


def test_the_callback_can_be_pickled_before_and_after_a_fit() -> None:
    pruning = IterativeMagnitudePruning(1)
    pickle.loads(pickle.dumps(pruning))
    trainer(pruning, max_epochs=1).fit(Classifier(adamw), loader(), loader())
    assert pickle.loads(pickle.dumps(pruning)).masks == pruning.masks


def test_a_new_fit_starts_from_its_own_weights() -> None:
    pruning = IterativeMagnitudePruning(1)
    for seed in (1, 2):
        module = Classifier(seed=seed)
        start = weights(module)["net.0.weight"]
        trainer(pruning, max_epochs=1).fit(module, loader(), loader())
        assert torch.equal(pruning.ticket.weights["net.0.weight"], start)
        assert [record.round for record in pruning.history] == [0, 1]


def test_schedulers_stay_at_rest_when_fine_tuning_is_resumed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"pruning": {"rewind": "none"}, "scheduler": warm_up}
    uninterrupted = run(SaveEpochs(tmp_path), **settings)
    for checkpoint in sorted(tmp_path.iterdir()):
        resumed = run(ckpt_path=checkpoint, **settings)
        assert_same_end(resumed, uninterrupted, checkpoint)
        assert (
            resumed[2].optimizers[0].param_groups[0]["lr"]
            == (uninterrupted[2].optimizers[0].param_groups[0]["lr"])
        )
        assert resumed[2].lr_scheduler_configs[0].scheduler.last_epoch == 18
