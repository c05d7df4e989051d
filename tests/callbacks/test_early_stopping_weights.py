"""Going back to the best weights, and resuming: nothing is lost, in memory or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks
from torch import Tensor, nn

from lightning_lth import EarlyStopping, FixedMasks, IterativeMagnitudePruning, Masks
from lightning_lth.stopping.best_weights import BestWeights
from tests.callbacks.modules import assert_equal, loader, trainer, weights
from tests.callbacks.scripted import Scripted, values
from tests.callbacks.test_pruning_resume import ResumableLoader, SaveBatches, SaveEpochs

# Of Lightning, where a resumed fit lacks the ModelCheckpoint that the first had.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
LOSSES = [3.0, 2.0, 1.0, 1.5, 1.25, 1.0, 1.75, 1.8]  # the best is the third


class Copies(pl.Callback):
    """A copy of all parameters and buffers at every validation, by round and step."""

    def __init__(self) -> None:
        self.at: dict[tuple[int, int], dict[str, Tensor]] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        round_ = int(trainer.callback_metrics.get("round", 0))
        self.at[round_, trainer.global_step] = tensors(pl_module)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """With buffers that `state_dict` leaves out."""
    present = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in present}


class Buffered(Scripted):
    """Counts its training batches in a buffer that `state_dict` leaves out."""

    def __init__(self, losses: Any = LOSSES) -> None:
        super().__init__(losses)
        self.register_buffer("num_batches", torch.tensor(0), persistent=False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.num_batches += 1
        return super().training_step(batch, batch_idx)


def stopper(path: Path | None = None, **arguments: Any) -> EarlyStopping:
    defaults = {"patience": 4, "restore_best": True, "best_weights_path": path}
    return EarlyStopping("val_loss", **(defaults | arguments))


def run(*extra: pl.Callback, module: Any = None, ckpt_path: Any = None, **settings: Any) -> Any:
    module = Buffered() if module is None else module
    fitter = trainer(*extra, **({"max_epochs": 12} | settings))
    fitter.fit(module, ResumableLoader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return module, fitter


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize(
    ("patience", "settings", "steps"),
    [
        (3, {}, 36),  # stopped at the sixth validation
        (9, {"max_epochs": 4}, 24),  # not stopped
        (9, {"max_steps": 20}, 20),
        (3, {"val_check_interval": 3}, 18),
        (9, {"max_epochs": 3}, 18),  # the last is the best
    ],
)
def test_parameters_and_buffers_of_the_best_validation_come_back(
    where: str, patience: int, settings: Any, steps: int, tmp_path: Path
) -> None:
    path = tmp_path / "best" / "weights.safetensors" if where == "file" else None
    stopping, copies = stopper(path, patience=patience), Copies()
    module, fitter = run(stopping, copies, **settings)
    assert fitter.global_step == steps
    assert stopping.best is stopping.validations[2]
    assert_equal(tensors(module), copies.at[0, stopping.best.step])
    assert int(module.num_batches) == stopping.best.step
    assert (path is not None) == any(tmp_path.iterdir())


def test_without_it_the_last_weights_stay() -> None:
    copies = Copies()
    module, _ = run(EarlyStopping("val_loss", patience=3), copies)
    assert_equal(tensors(module), copies.at[0, 36])


def test_recording_alone_can_restore() -> None:
    stopping, copies = stopper(stop=False, patience=0), Copies()
    module, _ = run(stopping, copies, max_epochs=5)
    assert_equal(tensors(module), copies.at[0, 18])


def test_a_training_without_a_best_validation_keeps_its_weights() -> None:
    stopping, copies = stopper(check_finite=False), Copies()
    module, _ = run(stopping, copies, module=Buffered([float("nan")]), max_epochs=2)
    assert_equal(tensors(module), copies.at[0, 12])


def test_weights_of_another_step_than_the_validation_are_refused() -> None:
    stopping = stopper(check_on_train_epoch_end=True)
    message = r"'val_loss' of step 4 is looked at in step 6.*Leave out `check_on_train_epoch_end`"
    with pytest.raises(RuntimeError, match=message):
        run(stopping, val_check_interval=4)
    module, _ = run(stopping, val_check_interval=3, max_epochs=4)
    assert (stopping.best.step, int(module.num_batches)) == (18, 18)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: callbacks.EMAWeightAveraging(), "EMAWeightAveraging: training ends with averaged"),
        (lambda: callbacks.StochasticWeightAveraging(0.1), "StochasticWeightAveraging: training"),
        (
            lambda: EarlyStopping("f1", mode="max", restore_best=True),
            "another EarlyStopping of '(f1|val_loss)': each would go back to other weights",
        ),
    ],
)
def test_other_callbacks_that_choose_the_last_weights_are_refused(other: Any, message: str) -> None:
    for order in (1, -1):
        with pytest.raises(ValueError, match=r"`restore_best=True`.*" + message):
            run(*[stopper(), EarlyStopping("acc", strict=False), other()][::order])
    run(stopper(restore_best=False), EarlyStopping("num", strict=False), fast_dev_run=True)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_after_an_exception_nothing_is_restored(error: type[BaseException], tmp_path: Path) -> None:
    class Failing(Buffered):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 4:
                raise error("on purpose")

    path = tmp_path / "best.safetensors"
    for stopping in (stopper(), stopper(path)):
        module, copies = Failing(), Copies()
        with pytest.raises((KeyError, SystemExit, KeyboardInterrupt)):
            run(stopping, copies, module=module)
        assert_equal(tensors(module), copies.at[0, 24])
    restored = Buffered()
    BestWeights.load(path).restore_(restored)  # the file is there, whatever happened
    assert_equal(tensors(restored), copies.at[0, 18])


def test_each_round_of_pruning_ends_with_its_best_weights_and_its_zeros() -> None:
    class AtEnd(pl.Callback):
        """The weights on which the next pruning decides."""

        def __init__(self) -> None:
            self.weights: list[dict[str, Tensor]] = []

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.weights.append(tensors(pl_module))

    stopping, copies, ends = stopper(patience=2), Copies(), AtEnd()
    pruning = IterativeMagnitudePruning(2, fraction=0.5)
    module, _ = run(pruning, stopping, copies, ends)
    assert len(stopping.rounds) == len(ends.weights) == 3
    for round_, (validations, end) in enumerate(zip(stopping.rounds, ends.weights, strict=True)):
        assert values(validations) == LOSSES[:5]
        assert_equal(end, copies.at[round_, 18])
        zeros = sum(int((end[name] == 0).sum()) for name in ("net.0.weight", "net.3.weight"))
        assert zeros == [0, 72, 108][round_]  # of 144 weights, then of 72 survivors, a half
    assert_equal(tensors(module), copies.at[2, 18])
    mask = pruning.masks["net.0.weight"].bool()
    assert not module.net[0].weight[~mask].any()


def test_fixed_masks_stay_on_the_restored_weights() -> None:
    masks = Masks({"net.0.weight": torch.arange(96).remainder(2).view(16, 6)})
    copies = Copies()
    module, _ = run(FixedMasks(masks), stopper(patience=3), copies)
    assert_equal(tensors(module), copies.at[0, 18])
    assert not module.net[0].weight[~masks["net.0.weight"].bool()].any()
    assert module.net[0].weight.count_nonzero() == 48


def test_weights_that_are_not_those_of_the_best_validation_are_left_alone(tmp_path: Path) -> None:
    class Replace(pl.Callback):
        """At the end of training, another fit has written the file, or nothing is there."""

        def __init__(self, change: Any) -> None:
            self.change = change

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 3:
                self.change()

    path = tmp_path / "best.safetensors"
    cases = [
        (
            lambda: BestWeights.of(Buffered(), step=6, value=1.0).save(path),
            "are those of step 6 (1)",
        ),
        (
            lambda: BestWeights.of(Buffered(), step=18, value=7.0).save(path),
            "are those of step 18 (7)",
        ),
        (path.unlink, "are not there"),
        (lambda: path.write_bytes(b"damaged"), "are not there"),
    ]
    for change, held in cases:
        copies = Copies()
        with pytest.warns(UserWarning, match="best weights|the kept weights") as warned:
            module, _ = run(stopper(path), copies, Replace(change), max_epochs=4)
        messages = [str(one.message) for one in warned if "best weights" in str(one.message)]
        message = str(warned[-1].message)
        assert message.startswith("The best validation was at step 18 (1), but the kept weights")
        assert message.endswith("The weights stay as training left them.")
        assert held in message
        assert len(messages) == (held == "are not there")  # why they cannot be read
        assert_equal(tensors(module), copies.at[0, 24])


# --- Resuming


def summary(stopping: EarlyStopping) -> Any:
    return [one.state_dict() for one in stopping.rounds], stopping.decision, stopping.stopped_epoch


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("saver", [SaveEpochs, SaveBatches])
@pytest.mark.parametrize("patience", [3, 20])
def test_resumed_equals_uninterrupted(
    saver: Any, where: str, patience: int, tmp_path: Path
) -> None:
    path = tmp_path / "best.safetensors" if where == "file" else None
    folder = tmp_path / "checkpoints"
    settings = {"max_epochs": 3, "val_check_interval": 2}  # 9 validations
    if saver is SaveEpochs:
        settings = {"max_epochs": 7}

    def once(*extra: pl.Callback, **others: Any) -> Any:
        stopping = stopper(path, patience=patience)
        module, _ = run(stopping, *extra, module=Scripted(LOSSES), **(settings | others))
        return module, stopping

    module, stopping = once(saver(folder))
    checkpoints = sorted(folder.iterdir())
    # Not of the batches that end in a validation: they are saved before it, and Lightning goes on
    # after it.
    chosen = checkpoints if saver is SaveEpochs else checkpoints[::4]
    assert len(chosen) >= 3
    for checkpoint in chosen:
        resumed, other = once(ckpt_path=checkpoint)
        assert summary(other) == summary(stopping), checkpoint
        assert_equal(weights(resumed), weights(module))


@pytest.mark.parametrize("is_early", [True, False])
def test_rounds_of_pruning_resumed_equal_uninterrupted(is_early: bool, tmp_path: Path) -> None:
    def once(*extra: pl.Callback, **others: Any) -> Any:
        stopping = stopper(patience=2 if is_early else 9)
        pruning = IterativeMagnitudePruning(1)
        module, _ = run(pruning, stopping, *extra, module=Scripted(LOSSES), max_epochs=6, **others)
        return module, stopping, pruning

    module, stopping, pruning = once(SaveEpochs(tmp_path))
    last_of_round = 4 if is_early else 5
    for index, checkpoint in enumerate(sorted(tmp_path.iterdir())):
        if index == last_of_round:
            continue  # see the next test
        resumed, other, other_pruning = once(ckpt_path=checkpoint)
        assert summary(other)[0] == summary(stopping)[0], checkpoint
        assert other_pruning.masks == pruning.masks
        assert_equal(weights(resumed), weights(module))


@pytest.mark.parametrize("is_early", [True, False])
def test_a_round_that_was_over_is_resumed_with_its_best_weights(
    is_early: bool, tmp_path: Path
) -> None:
    def once(*extra: pl.Callback, **others: Any) -> Any:
        stopping = stopper(patience=2 if is_early else 9)
        pruning = IterativeMagnitudePruning(1)
        module, _ = run(pruning, stopping, *extra, module=Scripted(LOSSES), max_epochs=6, **others)
        return module, pruning

    module, pruning = once(SaveEpochs(tmp_path))
    checkpoint = sorted(tmp_path.iterdir())[4 if is_early else 5]
    resumed, other_pruning = once(ckpt_path=checkpoint)
    assert other_pruning.masks == pruning.masks
    assert_equal(weights(resumed), weights(module))


@pytest.mark.parametrize("interval", [1.0, 4])
def test_a_validation_is_not_forgotten_before_the_epoch_ends(
    interval: float, tmp_path: Path
) -> None:
    def once(*extra: pl.Callback, **others: Any) -> list[tuple[int, int, float]]:
        record = EarlyStopping("val_loss", stop=False, check_on_train_epoch_end=True)
        settings = {"max_epochs": 3, "val_check_interval": interval, **others}
        run(record, *extra, module=Scripted(LOSSES), **settings)
        return [(one.step, one.epoch, one.value) for one in record.validations]

    saver = callbacks.ModelCheckpoint(tmp_path, save_on_train_epoch_end=False, save_top_k=-1)
    expected = once(saver, enable_checkpointing=True)
    for checkpoint in tmp_path.iterdir():  # each of a moment between validation and end of epoch
        assert once(ckpt_path=checkpoint) == expected


def stopped(tmp_path: Path, **settings: Any) -> tuple[EarlyStopping, Any, Path]:
    """A run with patience 2 that a ModelCheckpoint has seen stop."""
    saver = callbacks.ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1)
    stopping = EarlyStopping("val_loss", patience=2)
    _, fitter = run(stopping, saver, enable_checkpointing=True, **settings)
    assert stopping.decision is not None
    return stopping, fitter, tmp_path / "last.ckpt"


@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 2}, {"val_check_interval": 4}])
def test_a_stopped_run_does_not_go_on(settings: Any, tmp_path: Path) -> None:
    stopping, fitter, checkpoint = stopped(tmp_path, **settings)
    again, copies = EarlyStopping("val_loss", patience=2), Copies()
    _, other = run(again, copies, ckpt_path=checkpoint, **settings)
    assert other.global_step == fitter.global_step
    assert copies.at == {}
    assert list(again.validations) == list(stopping.validations)
    assert again.decision == stopping.decision
    assert again.stopped_epoch == stopping.stopped_epoch


def test_changed_settings_win(tmp_path: Path) -> None:
    _, _, checkpoint = stopped(tmp_path)  # at the fifth validation
    for arguments, epochs in [({"patience": 4}, 7), ({"patience": 2, "stop": False}, 8)]:
        again = EarlyStopping("val_loss", **arguments)
        _, fitter = run(again, ckpt_path=checkpoint, max_epochs=8)
        assert fitter.current_epoch == epochs
        assert values(again.validations) == LOSSES[:epochs]
        assert again.patience == arguments["patience"]
    stricter = EarlyStopping("val_loss", patience=9, stopping_threshold=1.3)
    _, fitter = run(stricter, ckpt_path=checkpoint)
    assert fitter.current_epoch == 5
    assert stricter.decision is not None
    assert stricter.decision.reason.value == "target"


def test_a_stopped_run_with_a_larger_min_epochs_goes_on(tmp_path: Path) -> None:
    _, _, checkpoint = stopped(tmp_path)
    again = EarlyStopping("val_loss", patience=2)
    _, fitter = run(again, ckpt_path=checkpoint, min_epochs=7)
    assert fitter.current_epoch == 7


def test_restoring_that_is_switched_on_later_says_what_it_lacks(tmp_path: Path) -> None:
    _, _, checkpoint = stopped(tmp_path)
    copies = Copies()
    with pytest.warns(UserWarning, match=r"best validation was at step 18 \(1\), but .* not there"):
        module, _ = run(stopper(patience=3), copies, ckpt_path=checkpoint)
    assert_equal(weights(module), {k: copies.at[0, 36][k] for k in weights(module)})


@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_finished_fit_that_is_resumed_ends_with_the_best_weights(
    where: str, tmp_path: Path
) -> None:
    path = tmp_path / "best.safetensors" if where == "file" else None
    module, _ = run(stopper(path), SaveEpochs(tmp_path / "all"), max_epochs=4)
    checkpoint = max((tmp_path / "all").iterdir())  # of the last epoch, before the end
    resumed, _ = run(stopper(path), module=Buffered(), max_epochs=4, ckpt_path=checkpoint)
    assert_equal(weights(resumed), weights(module))


def test_fitting_on_with_the_same_trainer_ends_with_the_best_weights_again() -> None:
    stopping = stopper(patience=9)
    module, fitter = run(stopping, max_epochs=4)
    best = weights(module)
    fitter.fit_loop.max_epochs = 6
    fitter.fit(module, ResumableLoader(), loader())
    assert len(stopping.validations) == 6
    assert_equal(weights(module), best)


def test_a_second_fit_without_budget_leaves_the_weights_alone() -> None:
    stopping = stopper()
    module, fitter = run(stopping, max_epochs=4)
    with torch.no_grad():
        module.net[0].weight.fill_(7.0)
    fitter.fit(module, ResumableLoader(), loader())
    assert module.net[0].weight.eq(7.0).all()


def test_checkpoints_are_plain_and_hold_no_settings(tmp_path: Path) -> None:
    stopping, copies = stopper(), Copies()
    _, fitter = run(stopping, copies, max_epochs=4)
    fitter.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    state = checkpoint["callbacks"][stopping.state_key]
    assert not state.keys() & {"patience", "min_delta", "restore_best", "stop"}
    assert_equal(state["best_weights"]["tensors"], copies.at[0, 18])
    twin = stopper()
    twin.load_state_dict(state)
    assert list(twin.validations) == list(stopping.validations)
    assert twin.best == stopping.best
    in_file = stopper(tmp_path / "best.safetensors")
    run(in_file, max_epochs=4)
    assert in_file.state_dict()["best_weights"] is None


def test_a_checkpoint_of_lightnings_callback_gives_a_warning_and_a_new_record(
    tmp_path: Path,
) -> None:
    _, fitter = run(callbacks.EarlyStopping("val_loss", patience=9), max_epochs=2)
    fitter.save_checkpoint(tmp_path / "lightnings.ckpt")
    stopping = EarlyStopping("val_loss", patience=9)
    with pytest.warns(UserWarning, match=r"Lightning's EarlyStopping.* The record starts here\."):
        run(stopping, ckpt_path=tmp_path / "lightnings.ckpt", max_epochs=4)
    assert values(stopping.validations) == LOSSES[2:4]
