from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from lightning_lth.layer_stats.batch_norm import (
    BatchNormReader,
    BatchNormState,
    is_warmed_up,
    momentum_horizon,
    state_of,
)

Numbers = dict[tuple[str, str], float]


def tracking() -> nn.Module:
    return nn.BatchNorm2d(3)


def prepared(prepare: Callable[[nn.Module], object], **settings: object) -> nn.Module:
    layer = nn.BatchNorm2d(3, **settings)  # type: ignore[arg-type]
    prepare(layer)
    return layer


def freeze_as_lightning(layer: nn.Module) -> None:
    BaseFinetuning.freeze(layer, train_bn=False)


def keep(_: nn.Module) -> None: ...


STATES = {  # layer, state, normalizes with the batch, moves the buffers
    "training": (tracking(), "TRACKING", True, True),
    "training, no affine": (prepared(keep, affine=False), "TRACKING", True, True),
    "no buffers": (prepared(keep, track_running_stats=False), "UNTRACKED", True, False),
    "evaluation": (tracking().eval(), "EVALUATION", False, False),
    "no buffers, evaluation": (
        prepared(keep, track_running_stats=False).eval(),
        "UNTRACKED_EVALUATION",
        True,
        False,
    ),
    "freeze(train_bn=False)": (prepared(freeze_as_lightning), "UNFOLLOWED", True, False),
    "freeze(train_bn=False), evaluation": (
        prepared(freeze_as_lightning).eval(),
        "EVALUATION",
        False,
        False,
    ),
    "freeze(train_bn=True)": (
        prepared(lambda layer: BaseFinetuning.freeze(layer, train_bn=True)),
        "TRACKING",
        True,
        True,
    ),
    "requires_grad_(False)": (tracking().requires_grad_(False), "AFFINE_FROZEN", True, True),
    "only the offset frozen": (
        prepared(lambda layer: layer.bias.requires_grad_(False)),
        "TRACKING",
        True,
        True,
    ),
    "momentum 0": (prepared(keep, momentum=0.0), "PINNED", True, False),
    "momentum 0, frozen": (
        prepared(lambda layer: layer.requires_grad_(False), momentum=0.0),
        "PINNED",
        True,
        False,
    ),
    "momentum None": (prepared(keep, momentum=None), "CUMULATIVE", True, True),
    "momentum None, frozen": (
        prepared(lambda layer: layer.requires_grad_(False), momentum=None),
        "AFFINE_FROZEN",
        True,
        True,
    ),
    "buffers taken away": (
        prepared(lambda layer: layer._buffers.update(running_mean=None, running_var=None)),
        "UNTRACKED",
        True,
        False,
    ),
    "torchvision's frozen": (FrozenBatchNorm2d(3), "FIXED", False, False),
}


@pytest.mark.parametrize("case", STATES)
def test_every_state_by_a_real_forward_pass(case: str) -> None:
    layer, name, with_batch, moves = STATES[case]
    layer = copy.deepcopy(layer)
    state = state_of(layer)
    assert state is BatchNormState[name]
    assert (state.normalizes_with_batch, state.moves_buffers) == (with_batch, moves)

    x = 3 + 2 * torch.randn(8, 3, 4, 4)
    before = copy.deepcopy(layer.state_dict())
    output = layer(x)
    # The running statistics are 0 and 1: by them the output is as the input.
    by_batch = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(output, by_batch if with_batch else x, rtol=1e-3, atol=1e-3)
    after = layer.state_dict()
    buffers = [key for key in ("running_mean", "running_var") if key in before]
    assert moves == any(not torch.equal(before[key], after[key]) for key in buffers)


@pytest.mark.parametrize("case", STATES)
def test_a_reading_exists_where_the_buffers_move(case: str) -> None:
    layer, _, _, moves = STATES[case]
    layer = copy.deepcopy(layer)
    numbers = read(layer, torch.randn(8, 3, 4, 4))
    assert (("bn", "drift_mean") in numbers) == (("bn", "drift_logvar") in numbers) == moves


def read(layer: nn.Module, *batches: Tensor, reader: BatchNormReader | None = None) -> Numbers:
    """What one reading says of forward passes of these batches."""
    reader = reader or BatchNormReader({"bn": layer})
    reader.before()
    for batch in batches:
        layer(batch)
    return reader.after().to_numbers()


def moments(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, directly."""
    values = batch.detach().double().transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1, correction=1)


def drifts(
    layer: nn.BatchNorm2d, mean: Tensor, var: Tensor, eps: float = 1e-5
) -> tuple[float, float]:
    """The two drifts of this batch from what the layer has now, by their definitions."""
    running_mean, running_var = layer.running_mean.double(), layer.running_var.double() + eps
    shift = ((mean - running_mean) / running_var.sqrt()).square().mean().sqrt()
    return float(shift), float(((var + eps) / running_var).log().abs().mean())


def test_one_batch_worked_by_hand() -> None:
    # Two values, 1 and 3: mean 2, unbiased variance 2; the running ones are 0 and 1.
    layer = nn.BatchNorm1d(1, eps=1e-12)
    numbers = read(layer, torch.tensor([[1.0], [3.0]]))
    assert numbers == pytest.approx(
        {
            ("bn", "drift_mean"): 2.0,
            ("bn", "drift_logvar"): math.log(2),
            ("bn", "batches_tracked"): 1.0,
        }
    )


def test_drift_over_channels_worked_by_hand() -> None:
    # Means 3 and 4 against 0: root mean square sqrt(12.5). Variances 2 and 8 against 4 and 4.
    layer = nn.BatchNorm1d(2, eps=1e-12)
    layer.running_var.fill_(4.0)
    numbers = read(layer, torch.tensor([[2.0, 2.0], [4.0, 6.0]]))
    assert numbers["bn", "drift_mean"] == pytest.approx(math.sqrt(12.5) / 2)
    assert numbers["bn", "drift_logvar"] == pytest.approx(math.log(2))


def test_eps_keeps_dead_channels_finite() -> None:
    layer = nn.BatchNorm1d(1, eps=0.01)
    layer.running_var.fill_(0.0)
    numbers = read(layer, torch.full((4, 1), 0.5))
    assert numbers["bn", "drift_mean"] == pytest.approx(5)  # 0.5 / sqrt(0.01)
    assert numbers["bn", "drift_logvar"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("momentum", "error"),
    [(1.0, 1e-6), (0.5, 1e-6), (0.1, 3e-6), (0.01, 3e-5), (0.001, 3e-4), (None, 4e-4)],
)
def test_the_batch_is_recovered_after_many(momentum: float | None, error: float) -> None:
    # Errors as measured elsewhere for such data: mean 3, standard deviation 2, 500 batches.
    layer = nn.BatchNorm2d(16, momentum=momentum)
    for _ in range(500):
        layer(3 + 2 * torch.randn(4, 16, 2, 2))
    batch = 4 + 3 * torch.randn(4, 16, 2, 2)  # another distribution
    expected = drifts(layer, *moments(batch))
    numbers = read(layer, batch)
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], abs=error)
    assert numbers["bn", "drift_logvar"] == pytest.approx(expected[1], abs=error)
    assert numbers["bn", "batches_tracked"] == 501


@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_several_passes_give_the_weighted_mean_of_their_moments(momentum: float) -> None:
    layer = nn.BatchNorm2d(3, momentum=momentum)
    batches = [i + torch.randn(8, 3, 4, 4) * (i + 1) for i in range(3)]
    weights = [(1 - momentum) ** age for age in (2, 1, 0)]
    mean, var = weighted([moments(batch) for batch in batches], weights)
    expected = drifts(layer, mean, var)
    numbers = read(layer, *batches)
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], rel=1e-5)
    assert numbers["bn", "drift_logvar"] == pytest.approx(expected[1], rel=1e-5)


def test_several_passes_with_a_cumulative_mean() -> None:
    layer = nn.BatchNorm2d(3, momentum=None)
    layer(torch.randn(8, 3, 4, 4))
    batches = [i + torch.randn(8, 3, 4, 4) * (i + 1) for i in range(3)]
    expected = drifts(layer, *weighted([moments(batch) for batch in batches], [1, 1, 1]))
    numbers = read(layer, *batches)
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], rel=1e-5)
    assert numbers["bn", "drift_logvar"] == pytest.approx(expected[1], rel=1e-5)


def weighted(
    each: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    means, variances = zip(*each, strict=True)
    return shares @ torch.stack(means), shares @ torch.stack(variances)


def test_the_same_batch_twice_is_that_batch() -> None:
    # The formula for one pass gives 5.8 for a mean of 3.
    layer, batch = nn.BatchNorm2d(3), 3 + torch.randn(8, 3, 4, 4)
    expected = drifts(layer, *moments(batch))
    assert read(layer, batch, batch)["bn", "drift_mean"] == pytest.approx(expected[0])


def test_checkpointing_passes_twice() -> None:
    layer, batch = nn.BatchNorm2d(3), 3 + torch.randn(8, 3, 4, 4)
    expected = drifts(layer, *moments(batch))
    reader = BatchNormReader({"bn": layer})
    reader.before()
    output = checkpoint(layer, batch.requires_grad_(), use_reentrant=False)
    torch.autograd.backward(output.square().sum())
    numbers = reader.after().to_numbers()
    assert numbers["bn", "batches_tracked"] == 2
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0])


def test_step_shift_is_the_divergence_from_the_previous_read() -> None:
    layer = nn.BatchNorm2d(3, eps=1e-3)
    reader = BatchNormReader({"bn": layer})
    first, between, second = (i + (i + 1) * torch.randn(8, 3, 4, 4) for i in range(3))
    assert ("bn", "step_shift") not in read(layer, first, reader=reader)
    layer(between)  # not read
    numbers = read(layer, second, reader=reader)
    p, q = (Normal(m, (v + 1e-3).sqrt()) for m, v in (moments(first), moments(second)))
    expected = (kl_divergence(p, q) + kl_divergence(q, p)).mean()
    assert numbers["bn", "step_shift"] == pytest.approx(float(expected), rel=1e-5)


def test_step_shift_of_like_batches_keeps_its_digits() -> None:
    layer = nn.BatchNorm1d(1, momentum=1.0, eps=1e-12)
    reader = BatchNormReader({"bn": layer})
    batch = torch.tensor([[-1.0], [1.0]])
    read(layer, batch, reader=reader)
    # The variance becomes r = 1.0001 ** 2 times as large: (r + 1 / r - 2) / 2 = 2e-8.
    numbers = read(layer, batch * 1.0001, reader=reader)
    assert numbers["bn", "step_shift"] == pytest.approx(2e-8, rel=1e-2, abs=0)


def test_step_shift_skips_reads_in_which_the_layer_did_not_run() -> None:
    layer = nn.BatchNorm2d(3)
    reader = BatchNormReader({"bn": layer})
    batch = torch.randn(8, 3, 4, 4)
    read(layer, batch, reader=reader)
    assert ("bn", "step_shift") not in read(layer, reader=reader)
    assert read(layer, batch, reader=reader)["bn", "step_shift"] == pytest.approx(0, abs=1e-6)


def test_all_layers_at_once_are_as_each_alone() -> None:
    settings = [(4, 0.1, 1e-5), (1, 0.3, 1e-2), (7, None, 1e-3), (2, 0.0, 1e-5), (3, 0.9, 0.1)]
    layers = {
        str(i): nn.BatchNorm1d(width, momentum=momentum, eps=eps)
        for i, (width, momentum, eps) in enumerate(settings)
    }
    together = BatchNormReader(layers)
    apart = [BatchNormReader({name: layer}) for name, layer in layers.items()]
    for _ in range(3):
        for reader in (together, *apart):
            reader.before()
        for layer in list(layers.values())[:-1]:  # the last one does not run
            layer(torch.randn(16, layer.num_features))
        numbers = together.after().to_numbers()
        singly: Numbers = {}
        for reader in apart:
            singly |= reader.after().to_numbers()
        assert numbers == pytest.approx(singly)
    counts = [numbers[str(i), "batches_tracked"] for i in range(5)]
    assert counts == [3, 3, 3, 3, 0]
    assert {name for name, statistic in numbers if statistic == "step_shift"} == {"0", "1", "2"}


@pytest.mark.parametrize(("name", "value"), [("momentum", 0.5), ("momentum", None), ("eps", 0.5)])
def test_settings_changed_in_training(name: str, value: float | None) -> None:
    layer = nn.BatchNorm2d(3)
    reader = BatchNormReader({"bn": layer})
    read(layer, torch.randn(8, 3, 4, 4), reader=reader)
    setattr(layer, name, value)
    batch = 2 + torch.randn(8, 3, 4, 4)
    expected = drifts(layer, *moments(batch), eps=layer.eps)
    numbers = read(layer, batch, reader=reader)
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], rel=1e-5)
    assert numbers["bn", "drift_logvar"] == pytest.approx(expected[1], rel=1e-5)


def test_frozen_and_released_in_training() -> None:
    layer = nn.BatchNorm2d(3)
    reader = BatchNormReader({"bn": layer})
    exists = []
    for change in (keep, nn.Module.eval, nn.Module.train, freeze_as_lightning):
        change(layer)
        exists.append(("bn", "drift_mean") in read(layer, torch.randn(2, 3, 4, 4), reader=reader))
    assert exists == [True, False, True, False]


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_a_momentum_without_meaning_has_no_reading(momentum: float) -> None:
    layer = nn.BatchNorm2d(3, momentum=momentum)
    assert ("bn", "drift_mean") not in read(layer, torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("momentum", [0.1, 0.0, None, 1.0])
def test_a_reset_between_is_no_batch(momentum: float | None) -> None:
    layer = nn.BatchNorm2d(3, momentum=momentum)
    for _ in range(2):
        layer(torch.randn(2, 3, 4, 4))
    reader = BatchNormReader({"bn": layer})
    reader.before()
    layer.reset_running_stats()
    assert reader.after().to_numbers() == {("bn", "batches_tracked"): 0}


def test_buffers_replaced_and_removed() -> None:
    layer = nn.BatchNorm2d(3)
    reader = BatchNormReader({"bn": layer, "other": nn.BatchNorm2d(2)})
    read(layer, torch.randn(2, 3, 4, 4), reader=reader)
    layer.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    layer.running_mean = layer.running_mean.clone()
    batch = 2 + torch.randn(8, 3, 4, 4)
    expected = drifts(layer, *moments(batch))
    numbers = read(layer, batch, reader=reader)
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], rel=1e-5)
    layer.running_mean = layer.running_var = None
    names = {name for name, _ in read(layer, batch, reader=reader)}
    assert names == {"other"}


def test_buffers_removed_between() -> None:
    layer = nn.BatchNorm2d(3)
    reader = BatchNormReader({"bn": layer, "other": nn.BatchNorm2d(2)})
    reader.before()
    layer.running_mean = layer.running_var = None
    assert reader.after().names == ()


def test_other_normalization_is_not_read() -> None:
    layers = {
        "instance": nn.InstanceNorm2d(3, track_running_stats=True),
        "fixed": FrozenBatchNorm2d(3),
        "group": nn.GroupNorm(1, 3),
        "untracked": nn.BatchNorm2d(3, track_running_stats=False),
    }
    reader = BatchNormReader(layers)
    reader.before()
    for layer in layers.values():
        layer(torch.randn(2, 3, 4, 4))
    assert reader.after().names == ()


def test_lazy_layers_are_read_once_they_know_their_size() -> None:
    with pytest.MonkeyPatch.context() as patch:  # says that it is experimental
        patch.setattr("warnings.warn", lambda *_args, **_kwargs: None)
        layer = nn.LazyBatchNorm1d()
    reader, batch = BatchNormReader({"bn": layer}), torch.randn(4, 2)
    assert not read(layer, batch, reader=reader)
    assert len(read(layer, batch, reader=reader)) == 3


def test_before_is_needed_each_time() -> None:
    layer = nn.BatchNorm1d(2)
    reader = BatchNormReader({"bn": layer})
    with pytest.raises(RuntimeError, match=r"Call `before` first\."):
        reader.after()
    read(layer, torch.randn(4, 2), reader=reader)
    with pytest.raises(RuntimeError, match=r"Call `before` first\."):
        reader.after()


def test_before_again_starts_anew() -> None:
    layer, batch = nn.BatchNorm2d(3), 2 + torch.randn(8, 3, 4, 4)
    reader = BatchNormReader({"bn": layer})
    reader.before()
    layer(batch + 100)
    expected = drifts(layer, *moments(batch))
    assert read(layer, batch, reader=reader)["bn", "drift_mean"] == pytest.approx(expected[0])


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-6), (torch.float16, 0.03), (torch.bfloat16, 0.15)]
)
def test_other_dtypes(dtype: torch.dtype, error: float) -> None:
    layer = nn.BatchNorm2d(3, dtype=dtype)
    batch = 2 + torch.randn(64, 3, 4, 4, dtype=dtype)
    expected = drifts(layer, *moments(batch))
    numbers = read(layer, batch)
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], rel=error)
    # A sum of 4000 values is inexact in 32 bits, and would be nonsense in 16.
    wide, like = nn.BatchNorm2d(4000, dtype=dtype), batch[:, :1].expand(-1, 4000, -1, -1)
    expected = drifts(wide, *moments(like))
    numbers = read(wide, like)
    assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], rel=max(error, 1e-4))


def test_mixed_dtypes() -> None:
    layers = {"half": nn.BatchNorm1d(3, dtype=torch.bfloat16), "full": nn.BatchNorm1d(2)}
    reader = BatchNormReader(layers)
    reader.before()
    layers["full"](torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    readings = reader.after()
    assert readings.values.dtype == torch.float32
    assert readings.to_numbers()["full", "drift_mean"] == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_reading_changes_nothing(mode: Callable[[], torch.autograd.grad_mode.no_grad]) -> None:
    layer = nn.BatchNorm2d(3)
    twin = copy.deepcopy(layer)
    reader = BatchNormReader({"bn": layer})
    for _ in range(2):
        batch = torch.randn(8, 3, 4, 4)
        with mode():
            reader.before()
        expected, output = twin(batch), layer(batch)
        with mode():
            readings = reader.after()
        assert torch.equal(output, expected)
        assert not readings.values.requires_grad
    assert not layer._forward_hooks
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])


def test_compiled_without_a_break() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    reader = BatchNormReader({"bn": network[1]})
    for _ in range(3):
        batch = torch.randn(4, 1, 8, 8)
        expected = drifts(network[1], *moments(network[0](batch)))
        reader.before()
        torch.autograd.backward(compiled(batch).sum())
        numbers = reader.after().to_numbers()
        assert numbers["bn", "drift_mean"] == pytest.approx(expected[0], rel=1e-4)
        assert numbers["bn", "drift_logvar"] == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm1d(1, momentum=0.1), 10),
        (nn.BatchNorm1d(1, momentum=1.0), 1),
        (nn.BatchNorm1d(1, momentum=0.0), math.inf),
        (nn.BatchNorm1d(1, momentum=None), 0),
        (nn.BatchNorm1d(1, momentum=None, track_running_stats=False), math.nan),
        (FrozenBatchNorm2d(1), math.inf),
    ],
)
def test_momentum_horizon(layer: nn.Module, expected: float) -> None:
    assert momentum_horizon(layer) == pytest.approx(expected, nan_ok=True)


def test_momentum_horizon_of_a_cumulative_mean() -> None:
    layer = nn.BatchNorm1d(1, momentum=None)
    for _ in range(3):
        layer(torch.randn(2, 1))
    assert momentum_horizon(layer) == 3


@pytest.mark.parametrize(
    ("momentum", "batches", "expected"),
    [(0.1, 30, False), (0.1, 31, True), (0.5, 7, True), (0.0, 10**9, False), (None, 3, False)],
)
def test_is_warmed_up(momentum: float | None, batches: int, expected: bool) -> None:
    assert is_warmed_up(nn.BatchNorm1d(1, momentum=momentum), batches) is expected


def test_a_cumulative_mean_is_warm_at_once() -> None:
    assert is_warmed_up(nn.BatchNorm1d(1, momentum=None), 4)


def test_the_device_is_waited_for_by_nothing() -> None:
    # On the meta device whatever needs a value fails.
    layers = {str(i): nn.BatchNorm1d(i, device="meta") for i in (1, 2)}
    reader = BatchNormReader(layers)
    for _ in range(2):
        reader.before()
        assert reader.after().values.shape == (8,)
