import pytest
import torch
from torch import nn

from lightning_lth.layer_stats.dropout import (
    channel_dim,
    drawn_count,
    keep_statistics,
    kept_count,
    variance_ratio,
)


def keep_counts(values, output, layer):
    """Kept and drawn."""
    return torch.stack((kept_count(output, layer), drawn_count(values, layer)))


def truly_kept(layer, values):
    """Which elements an equal layer keeps, told by an input without ambiguous values."""
    output = layer(torch.full_like(values, 3.0))
    dropped = output.min() if output.unique().numel() > 1 else torch.tensor(torch.nan)
    return output != dropped


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout(0.3), (64, 5, 4)),
        (nn.Dropout(0.3), (64,)),
        (nn.AlphaDropout(0.3), (64, 20)),
    ],
)
def test_elements_that_are_kept_are_counted_in_an_eighth_of_the_batch(layer, shape):
    values = torch.randn(shape)
    state = torch.get_rng_state()
    kept = truly_kept(layer, values)[:8]
    torch.set_rng_state(state)
    counts = keep_counts(values, layer(values), layer)
    assert counts.tolist() == [kept.sum(), values[:8].numel()]


@pytest.mark.parametrize(
    ("layer", "shape", "sampled"),
    [
        (nn.Dropout1d(0.4), (64, 30, 7), 8),
        (nn.Dropout2d(0.4), (64, 30, 3, 3), 8),
        (nn.Dropout3d(0.4), (64, 30, 2, 2, 2), 8),
        (nn.FeatureAlphaDropout(0.4), (64, 30, 3, 3), 8),
        (nn.Dropout1d(0.4), (30, 7), None),  # without a batch: all channels
        (nn.Dropout3d(0.4), (30, 2, 2, 2), None),
        (nn.Dropout2d(0.4), (9, 30, 2, 2), 2),  # rounded up
    ],
)
def test_channels_are_counted_as_one_draw_each(layer, shape, sampled):
    values = torch.randn(shape)
    state = torch.get_rng_state()
    kept = truly_kept(layer, values)
    torch.set_rng_state(state)
    kept = kept[:sampled] if sampled else kept[None]
    counts = keep_counts(values, layer(values), layer)
    per_channel = kept.flatten(2)[:, :, 0]
    assert counts.tolist() == [per_channel.sum(), per_channel.numel()]
    assert 0 < counts[0] < counts[1]


def test_zeros_in_the_input_are_no_draws():
    values = torch.randn(800, 100).relu()
    kept, drawn = keep_counts(values, nn.Dropout(0.5)(values), nn.Dropout(0.5))
    assert drawn == values[:100].count_nonzero()
    assert kept / drawn == pytest.approx(0.5, abs=0.03)  # 5000 draws: 4 standard errors


def test_channels_of_zeros_are_no_draws():
    values = torch.ones(8, 4, 2, 2)
    values[0, 1] = 0
    values[0, 2, 0] = 0  # not all of it
    assert keep_counts(values, values, nn.Dropout2d(0.5)).tolist() == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_units_at_the_floor_of_selu_are_no_draws_of_alpha_dropout(dtype):
    values = torch.randn(1, 4000)
    values[0, :1000] = -50
    values = nn.functional.selu(values).to(dtype)
    layer = nn.AlphaDropout(0.5)
    kept, drawn = keep_counts(values, layer(values), layer)
    assert drawn == pytest.approx(3000, abs=20)
    assert kept / drawn == pytest.approx(0.5, abs=0.04)  # 4 standard errors


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
@pytest.mark.parametrize(("p", "keep"), [(0.0, 1.0), (1.0, 0.0)])
def test_all_or_nothing(kind, p, keep):
    values, layer = torch.randn(16, 5, 2, 2), kind(p)
    kept, drawn = keep_counts(values, layer(values), layer)
    assert drawn == (10 if kind is nn.Dropout2d else 40)
    assert kept / drawn == keep
    assert keep_statistics(torch.stack((kept, drawn))[None], torch.tensor([1 - p]))[
        "keep_z"
    ].isnan()


def test_not_a_number_and_infinity():
    values = torch.tensor([[1.0, torch.nan, torch.inf, torch.inf]])
    output = torch.tensor([[2.0, torch.nan, torch.inf, torch.nan]])  # inf * 0 is NaN
    assert keep_counts(values, output, nn.Dropout(0.5)).tolist() == [2, 3]


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_is_drawn_from_an_empty_batch(shape):
    values = torch.zeros(shape)
    assert keep_counts(values, values, nn.Dropout2d(0.5)).tolist() == [0, 0]
    assert variance_ratio(values, 0.5).isnan()


def test_interval_and_distance():
    # Wilson's interval for 8 of 10 is 0.4902 to 0.9433 (Newcombe 1998 gives such tables).
    # z: (0.8 - 0.5) / sqrt(0.5 * 0.5 / 10) = 1.8974
    found = keep_statistics(torch.tensor([[8.0, 10.0], [0.0, 0.0]]), torch.tensor([0.5, 0.5]))
    assert found["keep"][0] == pytest.approx(0.8)
    assert found["keep_low"][0] == pytest.approx(0.4902, abs=1e-4)
    assert found["keep_high"][0] == pytest.approx(0.9433, abs=1e-4)
    assert found["keep_z"][0] == pytest.approx(1.8974, abs=1e-4)
    assert all(values[1].isnan() for values in found.values())


@pytest.mark.parametrize(
    ("p", "mean", "variance", "ratio"),
    [
        (0.5, 0.0, 1.0, 0.5),
        (0.5, 0.4, 0.34, 0.40476),
        (0.1, 0.4, 0.34, 0.8596),
        (0.5, 1.0, 1.0, 0.3333),
        (0.5, 2.0, 1.0, 0.1667),
        (0.0, 2.0, 1.0, 1.0),
        (1.0, 2.0, 1.0, 0.0),
    ],
)
def test_variance_ratio_is_the_analytic_one(p, mean, variance, ratio):
    # Two values around the mean have exactly this variance.
    values = mean + variance**0.5 * torch.tensor([-1.0, 1.0]).repeat(32).reshape(64, 1)
    assert variance_ratio(values, 1 - p) == pytest.approx(ratio, abs=1e-4)


def test_variance_ratio_agrees_with_dropout_itself():
    values = torch.randn(400_000, 1).add(0.7).relu()
    observed = values.var() / nn.functional.dropout(values, 0.2).var()
    assert variance_ratio(values, 0.8) == pytest.approx(observed.item(), rel=0.02)


def test_variance_ratio_is_the_mean_over_channels_that_live():
    # Channel means 0, 1, 2 with variance 1 each, then one of zeros: (1/2 + 1/3 + 1/6) / 3.
    spread = torch.tensor([-1.0, 1.0]).repeat(8)[:, None]
    values = torch.cat((spread, spread + 1, spread + 2, 0 * spread), 1)
    assert variance_ratio(values, 0.5) == pytest.approx(1 / 3, abs=1e-5)
    images = values[:, :, None, None].expand(-1, -1, 3, 3)
    assert variance_ratio(images, 0.5) == pytest.approx(1 / 3, abs=1e-5)
    sequences = values[:, None].expand(-1, 5, -1)
    dim = channel_dim(sequences, nn.Dropout())
    assert variance_ratio(sequences, 0.5, channel_dim=dim) == pytest.approx(1 / 3, abs=1e-5)
    assert channel_dim(sequences, nn.Dropout1d()) == 1


def test_variance_ratio_of_large_means_does_not_cancel():
    values = 1000 + torch.tensor([-1.0, 1.0]).repeat(32).reshape(64, 1)
    # 0.5 * 1 / (1 + 0.5 * 1e6)
    assert variance_ratio(values, 0.5) == pytest.approx(0.5 / 500_001, rel=1e-3)


def test_one_value_per_channel_has_no_variance() -> None:
    assert variance_ratio(torch.ones(1, 3), 0.5).isnan()
    assert variance_ratio(torch.tensor([[1.0, 2.0, 3.0]] * 9), 0.5) == 0.0  # two equal ones have
