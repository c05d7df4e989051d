import pickle

import pytest
import torch

from lightning_lth.pruning import criteria, scoring
from lightning_lth.pruning.scoring import Scores

FINAL = {"w": torch.tensor([-3.0, 1.0, 0.5, -2.0])}
INITIAL = {"w": torch.tensor([0.5, 2.0, 0.0, -1.0])}


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [  # each worked out by hand from the formula in the comment
        (scoring.magnitude, [3.0, 1.0, 0.5, 2.0]),  # |final|
        (criteria.large_final, [3.0, 1.0, 0.5, 2.0]),
        (criteria.small_final, [-3.0, -1.0, -0.5, -2.0]),  # -|final|
        (criteria.large_init, [0.5, 2.0, 0.0, 1.0]),  # |initial|
        (criteria.small_init, [-0.5, -2.0, 0.0, -1.0]),  # -|initial|
        (criteria.large_init_large_final(), [0.5, 1.0, 0.0, 1.0]),  # min(|final|, |initial|)
        (criteria.large_init_large_final(alpha=0.5), [0.5, 0.5, 0.0, 1.0]),  # final halved
        (criteria.small_init_small_final(), [-3.0, -2.0, -0.5, -2.0]),  # -max(|final|, |initial|)
        (criteria.small_init_small_final(alpha=0.5), [-1.5, -2.0, -0.25, -1.0]),
        (criteria.magnitude_increase, [2.5, -1.0, 0.5, 1.0]),  # |final| - |initial|
        (criteria.movement, [3.5, 1.0, 0.5, 1.0]),  # |final - initial|
        (criteria.large_final_same_sign, [0.0, 1.0, 0.0, 2.0]),  # max(0, sign(initial) * final)
        (criteria.large_final_diff_sign, [3.0, 0.0, 0.0, 0.0]),
    ],
)
def test_criterion_follows_its_formula(criterion, expected):
    scores = criterion(FINAL, INITIAL).materialize()
    assert scores["w"].tolist() == expected
    assert pickle.loads(pickle.dumps(criterion))(FINAL, INITIAL).names == ["w"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype):
    # 1 - 0.001 rounds to 1 in bfloat16 and float16 has 0.999 as 0.99902; float32 keeps a difference
    # that the narrow type cannot hold: 256 - 2^-7 needs 15 bits.
    final, initial = (
        {"w": torch.tensor([256.0], dtype=dtype)},
        {"w": torch.tensor([2**-7]).to(dtype)},
    )
    scores = criteria.magnitude_increase(final, initial).materialize()["w"]
    assert scores.dtype == torch.float32
    assert scores.item() == 256 - 2**-7


def test_float64_stays_float64():
    weights = {"w": torch.tensor([1 + 2**-40], dtype=torch.float64)}
    assert scoring.magnitude(weights).materialize()["w"].item() == 1 + 2**-40


def test_reader_reads_flat_slices_of_tensors_in_any_layout():
    weights = torch.arange(16.0).view(2, 2, 2, 2).to(memory_format=torch.channels_last)
    read = scoring.magnitude({"w": weights}).reader("w")
    assert read(slice(3, None, 4)).tolist() == [3.0, 7.0, 11.0, 15.0]


def test_scores_of_parameters_carry_no_graph():
    weights = {"w": torch.nn.Parameter(torch.ones(2))}
    assert not scoring.magnitude(weights).reader("w")(slice(0, 2)).requires_grad


def test_only_names_of_final_are_scored():
    initial = {**INITIAL, "frozen": torch.ones(3)}
    assert criteria.movement(FINAL, initial).names == ["w"]


def test_random_depends_on_seed_and_name_alone():
    both = {"a": torch.zeros(4), "b": torch.zeros(4)}
    alone = {"b": torch.ones(4, dtype=torch.bfloat16)}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = scoring.random(5)(both, both).materialize()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(scoring.random(5)(alone, alone).materialize()["b"], first["b"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(scoring.random(6)(both, both).materialize()["a"], first["a"])


def test_random_is_uniform():
    weights = {"w": torch.zeros(10_000)}
    scores = scoring.random(0)(weights, weights).materialize()["w"]
    # the mean of 10,000 draws has standard deviation sqrt(1/12/10,000) = 0.0029
    assert abs(scores.mean() - 0.5) < 0.012
    assert 0 <= scores.min() < 0.01
    assert 0.99 < scores.max() < 1


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match=r"`alpha` must be above 0, got"):
        criteria.large_init_large_final(alpha)


def test_missing_initial_weights_are_named():
    with pytest.raises(ValueError, match=r"`initial` has no weights for \['w'\]. It has: \['v'\]"):
        criteria.movement(FINAL, {"v": torch.ones(4)})


def test_inputs_must_be_floating_point_tensors_of_one_shape():
    with pytest.raises(
        ValueError, match=r"Inputs of 'w' must be tensors of one shape.*\(4,\), \(2,\)"
    ):
        criteria.movement(FINAL, {"w": torch.ones(2)})
    with pytest.raises(TypeError, match=r"Inputs of 'w' must be floating-point, got torch.int64"):
        Scores.of({"w": torch.tensor([1])})
    with pytest.raises(TypeError, match=r"Inputs of 'w' must be tensors, got float"):
        Scores.of({"w": 1.0})
