from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lth.pruning import scoring
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.selection import check_fractions, emptied, keep, num_pruned, prune

LENET = {"fc1": 784 * 300, "fc2": 300 * 100, "output": 100 * 10}  # 266,200 weights
CONV_2 = {
    "conv1": 3 * 64 * 9,
    "conv2": 64 * 64 * 9,
    "fc1": 16 * 16 * 64 * 256,
    "fc2": 256 * 256,
    "output": 256 * 10,
}
CONV_4 = CONV_2 | {"conv3": 64 * 128 * 9, "conv4": 128 * 128 * 9, "fc1": 8 * 8 * 128 * 256}
CONV_6 = CONV_4 | {"conv5": 128 * 256 * 9, "conv6": 256 * 256 * 9, "fc1": 4 * 4 * 256 * 256}


def weights_of(sizes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def ladder(sizes, fractions, rounds):
    """Percent of weights remaining after each round, by layer, fully-connected layers at 20 %."""
    weights = weights_of(sizes)
    masks = Masks.dense(weights)
    percents = [100 * masks.density]
    for _ in range(rounds):
        masks = prune(
            scoring.magnitude(weights), masks, fraction=0.2, scope="layer", fractions=fractions
        )
        percents.append(100 * masks.density)
    return percents


def test_lenet_climbs_down_the_ladder_of_the_paper():
    # Frankle & Carbin 2019, figure 2: 20 % a round, 10 % for the output layer; by arithmetic
    # 235,200 * 0.8^r + 30,000 * 0.8^r + 1,000 * 0.9^r, over 266,200.
    expected = (
        "100 80.04 64.06 51.28 41.05 32.87 26.32 21.07 16.88 13.52 10.83 8.68 6.95 5.57 4.47 3.58 "
        "2.87 2.31 1.85 1.49 1.19"
    )
    percents = ladder(LENET, {"output": 0.1}, rounds=20)
    assert [round(percent, 2) for percent in percents] == [float(p) for p in expected.split()]


@pytest.mark.parametrize(
    ("sizes", "total", "conv", "expected"),
    [  # P_m of the paper's figures: 8.8 and 4.6; 11.1 and 9.2. Conv-6 is of the size drawn there.
        (CONV_2, 4_300_992, 0.10, {11: 8.81, 14: 4.57}),
        (CONV_4, 2_425_024, 0.10, {11: 11.06, 12: 9.18}),
        (CONV_6, 2_261_184, 0.15, {7: 26.61, 10: 15.29}),
    ],
)
def test_conv_nets_climb_down_the_ladder_of_the_paper(sizes, total, conv, expected):
    assert sum(sizes.values()) == total
    percents = ladder(sizes, {"conv*": conv, "output": 0.1}, rounds=max(expected))
    assert {level: round(percents[level], 2) for level in expected} == expected


@pytest.mark.parametrize(
    ("survivors", "fraction", "expected"),
    [
        (10, 0.2, 2),
        (5, 0.5, 3),  # 2.5 goes up
        (15, 0.1, 2),  # 1.5 goes up; Python's round() goes to the even number, here also 2
        (25, 0.1, 3),  # 2.5 goes up; Python's round() gives 2
        (100, 0.145, 15),  # 14.5 goes up; in floats 0.145 * 100 = 14.499999999999998
        (1000, 0.2855, 286),  # 285.5 goes up; in floats 285.49999999999994
        (1, 0.49, 0),
        (1, 0.5, 1),
        (0, 0.9, 0),
        (7, 0.0, 0),
        (10**15 + 1, 0.5, 5 * 10**14 + 1),  # beyond what float32 can count
    ],
)
def test_number_of_pruned_weights_is_exact(survivors, fraction, expected):
    assert num_pruned(survivors, fraction) == expected


@given(st.integers(0, 10**12), st.integers(0, 999))
def test_number_of_pruned_weights_is_nearest(survivors, thousandths):
    error = num_pruned(survivors, thousandths / 1000) - Fraction(thousandths, 1000) * survivors
    assert Fraction(-1, 2) < error <= Fraction(1, 2)


def test_global_scope_ranks_all_layers_together():
    # magnitudes 1..8; the 4 lowest are 1 2 (a) and 3 4 (b)
    weights = {
        "a": torch.tensor([-1.0, 2.0, 7.0, -8.0]),
        "b": torch.tensor([[3.0, -4.0], [5.0, 6.0]]),
    }
    masks = prune(scoring.magnitude(weights), Masks.dense(weights), fraction=0.5)
    assert masks["a"].tolist() == [False, False, True, True]
    assert masks["b"].tolist() == [[False, False], [True, True]]


def test_layer_scope_ranks_each_tensor_apart():
    weights = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([50.0, 60.0])}
    masks = prune(scoring.magnitude(weights), Masks.dense(weights), fraction=0.5, scope="layer")
    assert masks["a"].tolist() == [False, False, True, True]  # 2 of 4
    assert masks["b"].tolist() == [False, True]  # 1 of 2


def test_rounds_take_their_share_of_the_survivors():
    weights = {"w": torch.arange(1.0, 11.0)}
    scores, masks = scoring.magnitude(weights), Masks.dense(weights)
    counts = []
    for _ in range(4):
        masks = prune(scores, masks, fraction=0.2)
        counts.append(masks.num_remaining)
    assert counts == [8, 6, 5, 4]  # 10 - 2, 8 - 1.6 -> 2, 6 - 1.2 -> 1, 5 - 1


def test_weights_with_the_same_rule_are_ranked_together():
    weights = {
        "conv1": torch.tensor([1.0, 2.0]),
        "conv2": torch.tensor([3.0, 4.0]),
        "fc1": torch.tensor([5.0, 6.0]),
        "fc2": torch.tensor([7.0, 8.0]),
        "head": torch.tensor([0.0, 0.1]),
    }
    masks = prune(
        scoring.magnitude(weights),
        Masks.dense(weights),
        fraction=0.5,
        fractions={"conv*": 0.25, "head": 0.0},
    )
    # conv: 1 of 4 falls, the 1; fc: 2 of 4, 5 and 6; head: none, though the lowest of all
    remaining = {"conv1": 1, "conv2": 2, "fc1": 0, "fc2": 2, "head": 2}
    assert masks.remaining() == remaining


def test_first_pattern_that_matches_counts():
    weights = {"block.conv": torch.arange(10.0), "block.fc": torch.arange(10.0)}
    for fractions, expected in [
        ({"*.conv": 0.1, "block.*": 0.5}, {"block.conv": 9, "block.fc": 5}),
        ({"block.*": 0.5, "*.conv": 0.1}, {"block.conv": 5, "block.fc": 5}),
    ]:
        masks = prune(
            scoring.magnitude(weights),
            Masks.dense(weights),
            fraction=0.0,
            scope="layer",
            fractions=fractions,
        )
        assert masks.remaining() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_weights(dtype):
    weights = {"w": torch.tensor([3.0, -1.0, 2.0, -4.0], dtype=dtype)}
    masks = prune(scoring.magnitude(weights), Masks.dense(weights), fraction=0.5)
    assert masks["w"].tolist() == [True, False, False, True]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), max_size=20), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), min_size=1, max_size=4),
    st.sampled_from(["global", "layer"]),
)
def test_exact_counts_and_masks_that_only_shrink(values, fractions, scope):
    weights = {f"w{i}": torch.tensor(v, dtype=torch.float32) for i, v in enumerate(values)}
    masks = Masks.dense(weights)
    for fraction in fractions:
        smaller = prune(scoring.magnitude(weights), masks, fraction=fraction, scope=scope)
        assert all(bool((masks[name] | ~smaller[name]).all()) for name in weights)
        fell = {name: masks.remaining()[name] - n for name, n in smaller.remaining().items()}
        if scope == "layer":
            assert fell == {name: num_pruned(n, fraction) for name, n in masks.remaining().items()}
        assert scope == "layer" or sum(fell.values()) == num_pruned(masks.num_remaining, fraction)
        masks = smaller


def test_parameters_without_weights():
    weights = {"none": torch.empty(0, 3), "some": torch.tensor([1.0, 2.0])}
    for scope in ("global", "layer"):
        masks = prune(scoring.magnitude(weights), Masks.dense(weights), fraction=0.5, scope=scope)
        assert masks["none"].shape == (0, 3)
        assert masks["some"].tolist() == [False, True]
    nothing = {"none": torch.empty(0)}
    assert prune(scoring.magnitude(nothing), Masks.dense(nothing), fraction=0.5).num_weights == 0
    assert dict(prune(Scores.of({}), Masks({}), fraction=0.5)) == {}


def test_emptied_names_layers_without_survivors():
    masks = Masks({"a": torch.zeros(2), "b": torch.tensor([0, 1]), "none": torch.empty(0)})
    assert emptied(masks) == ["a"]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 20, float("nan")])
def test_fraction_out_of_range_is_refused(fraction):
    weights = {"w": torch.ones(2)}
    scores, masks = scoring.magnitude(weights), Masks.dense(weights)
    wording = rf"must be in \[0, 1\), got {fraction}\. Percentages are written as fractions: 0\.2\."
    with pytest.raises(ValueError, match=f"`fraction` {wording}"):
        prune(scores, masks, fraction=fraction)
    with pytest.raises(ValueError, match=rf"`fractions\['w'\]` {wording}"):
        prune(scores, masks, fraction=0.2, fractions={"w": fraction})


def test_pattern_without_match_is_refused():
    weights = {"encoder.weight": torch.ones(2), "head.weight": torch.ones(2)}
    expected = (
        r"the pattern 'encoder.wieght', which matches no parameter\. "
        r"Did you mean 'encoder.weight'\? Prunable: 'encoder.weight', 'head.weight'\."
    )
    with pytest.raises(ValueError, match=expected):
        prune(
            scoring.magnitude(weights),
            Masks.dense(weights),
            fraction=0.2,
            fractions={"encoder.wieght": 0.1},
        )


def test_unknown_scope_and_misfits_are_refused():
    weights = {"w": torch.ones(2)}
    scores = scoring.magnitude(weights)
    with pytest.raises(ValueError, match=r"`scope` must be 'global' or 'layer', got 'local'\."):
        prune(scores, Masks.dense(weights), fraction=0.2, scope="local")
    with pytest.raises(ValueError, match=r"same names, got \['w'\] and \['v'\]"):
        prune(scores, Masks({"v": torch.ones(2)}), fraction=0.2)
    with pytest.raises(
        ValueError, match=r"mask of 'w' has shape \(3,\), but its scores have \(2,\)"
    ):
        prune(scores, Masks({"w": torch.ones(3)}), fraction=0.2)


def test_keep_leaves_the_highest_of_all_survivors():
    scores = Scores.of({"a": torch.tensor([9.0, 1.0, 5.0]), "b": torch.tensor([[4.0], [8.0]])})
    masks = Masks({"a": torch.tensor([0, 1, 1]), "b": torch.tensor([[1], [1]])})
    kept = keep(scores, masks, num_remaining=2)  # of 1, 5, 4 and 8; the 9 is pruned already
    assert kept["a"].tolist() == [False, False, True]
    assert kept["b"].tolist() == [[False], [True]]
    assert masks.num_remaining == 4
    assert keep(scores, masks, num_remaining=4) == masks
    assert keep(scores, masks, num_remaining=0).num_remaining == 0


def test_keep_drops_equal_scores_by_position():
    scores = Scores.of({"a": torch.ones(2), "b": torch.ones(2)})
    kept = keep(scores, Masks.dense(scores.materialize()), num_remaining=1)
    assert kept["b"].tolist() == [False, True]


def test_keep_refuses_numbers_and_masks_that_do_not_fit():
    scores = Scores.of({"w": torch.ones(3)})
    masks = Masks({"w": torch.tensor([1, 1, 0])})
    for count in (-1, 3):
        with pytest.raises(
            ValueError, match=rf"must be in \[0, 2\], the number of survivors, got {count}\."
        ):
            keep(scores, masks, num_remaining=count)
    with pytest.raises(ValueError, match=r"same names, got \['w'\] and \['v'\]"):
        keep(scores, Masks({"v": torch.ones(3)}), num_remaining=1)


def test_names_may_be_an_iterator():
    check_fractions({"a": 0.1, "b": 0.2}, iter(["a", "b"]))
