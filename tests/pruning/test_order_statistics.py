import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lth.pruning import order_statistics, scoring, sifting
from lightning_lth.pruning.bisection import Part, drop_smallest
from lightning_lth.pruning.order_statistics import Ranking
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.sharding import Ranks

# Few distinct values: many ties, both zeros, the infinities, and neighbouring floats.
VALUES = [0.0, -0.0, 1.0, 1.0000001192092896, -1.0, 2.0, -3.5, math.inf, -math.inf, 1e-45, 3e38]


def reference(scores, masks, count):
    """A stable sort of all survivors; the first `count` fall."""
    names = list(masks)
    values = torch.cat([scores[name].double().flatten() for name in names])
    alive = torch.cat([masks[name].flatten() for name in names])
    survivors = alive.nonzero().flatten()
    order = torch.sort(values[survivors], stable=True).indices
    alive[survivors[order[:count]]] = False
    pieces = alive.split([masks[name].numel() for name in names])
    return {name: piece.view(masks[name].shape) for name, piece in zip(names, pieces, strict=True)}


def by_counting(scores, masks, count, bracket=(-math.inf, math.inf)):
    dtype = (
        torch.float64 if any(t.dtype == torch.float64 for t in scores.values()) else torch.float32
    )
    flat = {name: tensor.flatten().to(dtype) for name, tensor in scores.items()}
    parts = [Part(name, flat[name].__getitem__, masks[name].flatten()) for name in masks]
    kept = drop_smallest(parts, count=count, dtype=dtype, ranks=Ranks(), bracket=bracket)
    return {name: new.view(masks[name].shape) for name, new in zip(masks, kept, strict=True)}


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, mask in expected.items():
        assert torch.equal(got[name], mask), name


@st.composite
def rankings(draw):
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    scores, masks = {}, {}
    for index in range(draw(st.integers(1, 4))):
        values = draw(st.lists(st.sampled_from(VALUES), max_size=12))
        alive = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
        scores[f"p{index}"] = torch.tensor(values, dtype=dtype)
        masks[f"p{index}"] = torch.tensor(alive, dtype=torch.bool)
    count = draw(st.integers(0, sum(int(mask.sum()) for mask in masks.values())))
    return scores, masks, count


@settings(deadline=None)
@given(rankings())
def test_equals_a_stable_sort(case):
    scores, masks, count = case
    assert_same(Ranking(Scores.of(scores), masks).without_smallest(count), reference(*case))


@settings(deadline=None)
@given(rankings(), st.sampled_from(VALUES), st.sampled_from(VALUES))
def test_counting_equals_a_stable_sort_whatever_the_bracket(case, low, high):
    scores, masks, count = case
    if count:
        assert_same(by_counting(scores, masks, count, (low, high)), reference(*case))


@settings(deadline=None)
@given(rankings(), st.randoms(use_true_random=False))
def test_order_of_tensors_matters_for_ties_alone(case, random):
    scores, masks, count = case
    names = list(masks)
    random.shuffle(names)
    shuffled = {name: masks[name] for name in names}
    one = Ranking(Scores.of(scores), masks).without_smallest(count)
    other = Ranking(Scores.of(scores), shuffled).without_smallest(count)
    fell = [scores[name][masks[name] & ~one[name]] for name in masks]
    also = [scores[name][masks[name] & ~other[name]] for name in masks]
    assert sorted(torch.cat(fell).tolist()) == sorted(torch.cat(also).tolist())
    highest = max(torch.cat(fell).tolist(), default=-math.inf)
    for name in names:
        untied = scores[name] != highest
        assert torch.equal(one[name][untied], other[name][untied])


def large(kind, size=3_000_000, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    if kind == "distinct":  # a permutation of 0..n-1, all exact in float32
        return torch.randperm(size, generator=generator).to(dtype)
    if kind == "normal":
        return torch.randn(size, generator=generator).to(dtype)
    if kind == "ties":  # 5 values
        return torch.randint(-2, 3, (size,), generator=generator).to(dtype)
    if kind == "half zeros":
        return torch.randn(size, generator=generator).clamp(min=0).to(dtype)
    return torch.full((size,), 7.0, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["distinct", "normal", "ties", "half zeros", "equal"])
def test_equals_a_stable_sort_on_large_tensors(kind, dtype):
    values = large(kind, 400_000, dtype)
    scores = {"a": values[:300_000].view(300, 1000), "b": values[300_000:]}
    generator = torch.Generator().manual_seed(4)
    masks = {name: torch.rand(t.shape, generator=generator) < 0.7 for name, t in scores.items()}
    for count in (1, 100_001):
        got = Ranking(Scores.of(scores), masks).without_smallest(count)
        assert_same(got, reference(scores, masks, count))


@pytest.mark.parametrize("kind", ["normal", "distinct"])
def test_millions_of_magnitudes_are_selected_exactly(kind):
    values = large(kind)
    weights = {"a": values[:2_500_000].view(2500, 1000), "b": values[2_500_000:]}
    masks = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in weights.items()}
    for count in (600_000, 1):
        got = Ranking(scoring.magnitude(weights), masks).without_smallest(count)
        magnitudes = {name: tensor.abs() for name, tensor in weights.items()}
        assert_same(got, reference(magnitudes, masks, count))
        masks = got


@pytest.mark.parametrize("outlier", [-5.0, 5.0])
def test_a_sample_that_misleads_does_no_harm(outlier):
    # Sampled positions hold other values than all the rest, so that each bracket misses.
    size = 600_001
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    for sample_size, _ in order_statistics._SAMPLES:
        stride = max(order_statistics._MIN_STRIDE, size // sample_size) | 1
        values[stride // 2 :: stride] += outlier
    scores, masks = {"w": values}, {"w": torch.ones(size, dtype=torch.bool)}
    got = Ranking(Scores.of(scores), masks).without_smallest(size // 2)
    assert_same(got, reference(scores, masks, size // 2))


def test_too_many_candidates_leave_it_to_counting():
    # 0 is half of the values and the threshold is just above: the bracket holds all zeros.
    values = torch.arange(1_000_000.0).sub_(500_000).clamp_(min=0)
    scores, masks = {"w": values}, {"w": torch.ones(1_000_000, dtype=torch.bool)}
    parts = [Part("w", values.__getitem__, masks["w"])]
    arguments = {"count": 500_100, "num_survivors": 1_000_000}
    assert sifting.drop_smallest(parts, **arguments, bracket=(0.0, 9000.0)) is None
    got = Ranking(Scores.of(scores), masks).without_smallest(500_100)
    assert got["w"].sum() == 499_900
    assert not got["w"][:500_100].any()


def test_no_selection_from_a_part_of_the_candidates():
    # All 1,000,000 are candidates; the pass stops when it has collected too many of them.
    parts = [Part("w", torch.zeros(1_000_000).__getitem__, torch.ones(1_000_000) > 0)]
    for count in (100_000, 960_000, 1_000_000):
        arguments = {"count": count, "num_survivors": 1_000_000, "bracket": (0.0, 0.0)}
        assert sifting.drop_smallest(parts, **arguments) is None


def test_what_is_full_stays_full_when_a_thread_loses_a_subtraction():
    sieve = sifting._Sieve([Part("w", torch.zeros(10).__getitem__, torch.ones(10) > 0)], (0.0, 0.0))
    sieve.room = 9
    sieve.run()
    sieve.room = 1
    assert sieve.is_full


def test_a_bracket_beside_the_threshold_is_noticed():
    values = torch.arange(1000.0)
    parts = [Part("w", values.__getitem__, torch.ones(1000, dtype=torch.bool))]
    for bracket in [(0.0, 98.0), (100.0, 200.0)]:  # the 100 lowest are 0..99, the threshold is 99
        missed = sifting.drop_smallest(parts, count=100, num_survivors=1000, bracket=bracket)
        assert missed is None
    (kept,) = sifting.drop_smallest(parts, count=100, num_survivors=1000, bracket=(99.0, 99.0))
    assert torch.equal(kept, values > 99)


def test_masks_are_where_the_scores_are_also_if_nothing_falls():
    ranking = Ranking(Scores.of({"w": torch.ones(2, device="meta")}), {"w": torch.ones(2) > 0})
    assert ranking.without_smallest(0)["w"].device.type == "meta"


def test_ties_fall_in_the_order_of_masks_then_of_positions():
    scores = Scores.of({"a": torch.ones(2, 2), "b": torch.ones(3)})
    masks = {"b": torch.tensor([True, False, True]), "a": torch.ones(2, 2, dtype=torch.bool)}
    got = Ranking(scores, masks).without_smallest(3)
    # b[0], then b[2], since b[1] fell before; then a[0, 0]
    assert got["b"].tolist() == [False, False, False]
    assert got["a"].tolist() == [[False, True], [True, True]]


def test_zeros_of_either_sign_are_equal():
    got = Ranking(Scores.of({"w": torch.tensor([0.0, -0.0, 0.0])}), {"w": torch.ones(3) > 0})
    assert got.without_smallest(1)["w"].tolist() == [False, True, True]


def test_infinite_scores_rank_first_and_last():
    scores = Scores.of({"w": torch.tensor([math.inf, 1.0, -math.inf, 3e38])})
    ranking = Ranking(scores, {"w": torch.ones(4, dtype=torch.bool)})
    assert ranking.without_smallest(1)["w"].tolist() == [True, True, False, True]
    assert ranking.without_smallest(3)["w"].tolist() == [True, False, False, False]


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("filled", ["one", "all", "rest equal"])
def test_nan_among_survivors_is_refused_by_name(size, filled):
    bad = torch.arange(float(size)) if filled == "one" else torch.full((size,), math.nan)
    if filled == "rest equal":
        bad = torch.ones(size)
    bad[size // 2] = math.nan
    scores = Scores.of({"good": torch.zeros(size), "bad": bad})
    masks = {name: torch.ones(size, dtype=torch.bool) for name in ("good", "bad")}
    with pytest.raises(ValueError, match=r"Scores must not be NaN, got NaN in \['bad'\]\."):
        Ranking(scores, masks).without_smallest(size // 5)


def test_nan_that_is_pruned_does_not_count():
    scores = Scores.of({"w": torch.tensor([math.nan, 2.0, 1.0])})
    got = Ranking(scores, {"w": torch.tensor([False, True, True])}).without_smallest(1)
    assert got["w"].tolist() == [False, True, False]


def test_float32_and_float64_are_compared_exactly():
    # 1 < 1 + 2^-40, which float32 cannot hold: there `b` would tie with `a`, and fall first
    between = torch.tensor([1 + 2**-40], dtype=torch.float64)
    scores = {"b": between, "a": torch.tensor([1.0, 2.0])}
    masks = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in scores.items()}
    for got in (
        Ranking(Scores.of(scores), masks).without_smallest(1),
        by_counting(scores, masks, 1),
    ):
        assert [got["b"].tolist(), got["a"].tolist()] == [[True], [False, True]]


def test_masks_and_scores_are_left_alone():
    weights, mask = torch.tensor([3.0, -1.0]), torch.tensor([True, True])
    Ranking(scoring.magnitude({"w": weights}), {"w": mask}).without_smallest(1)
    assert weights.tolist() == [3.0, -1.0]
    assert mask.tolist() == [True, True]


def test_layouts_do_not_matter():
    values = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(values, dtype=torch.bool)
    strided = {"w": values.to(memory_format=torch.channels_last)}
    got = Ranking(scoring.magnitude(strided), {"w": torch.ones_like(strided["w"]) > 0})
    expected = Ranking(scoring.magnitude({"w": values}), {"w": mask}).without_smallest(100)
    assert_same(got.without_smallest(100), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_threads_does_not_matter(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(sifting, "_SPAN", 1 << 12)
    scores = {"a": large("ties", 30_000), "b": large("normal", 40_000)}
    masks = {name: torch.ones_like(t, dtype=torch.bool) for name, t in scores.items()}
    got = Ranking(Scores.of(scores), masks).without_smallest(20_000)
    assert_same(got, reference(scores, masks, 20_000))


@pytest.mark.parametrize("count", [-1, 3])
def test_count_out_of_range_is_refused(count):
    ranking = Ranking(Scores.of({"w": torch.ones(2)}), {"w": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=rf"`count` must be in \[0, 2\], got {count}\."):
        ranking.without_smallest(count)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["normal", "ties", "equal"])
def test_a_gpu_selects_the_same(kind):
    scores = {"a": large(kind), "b": large(kind, 1000), "empty": torch.empty(0)}
    masks = {name: torch.ones_like(t, dtype=torch.bool) for name, t in scores.items()}
    there = {name: tensor.cuda() for name, tensor in scores.items()}
    got = Ranking(Scores.of(there), masks).without_smallest(700_000)
    assert got["a"].device.type == "cuda"
    got = {name: mask.cpu() for name, mask in got.items()}
    assert_same(got, reference(scores, masks, 700_000))
