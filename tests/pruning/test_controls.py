import math

import numpy as np
import pytest
import torch

from lightning_lth.pruning.controls import (
    derive_seed,
    keep_signs,
    random_masks,
    shuffled_masks,
    signed_constants,
)
from lightning_lth.pruning.masks import Masks

MASKS = Masks(
    {
        "a": torch.arange(600).view(20, 30) < 60,
        "b": torch.arange(400) < 380,
        "full": torch.ones(5),
        "none": torch.zeros(5),
        "empty": torch.empty(0, 2),
    }
)


def test_shuffled_masks_keep_the_counts_of_layers_elsewhere():
    masks = shuffled_masks(MASKS, seed=1)
    assert masks.remaining() == {"a": 60, "b": 380, "full": 5, "none": 0, "empty": 0}
    assert [mask.shape for mask in masks.values()] == [mask.shape for mask in MASKS.values()]
    for name in ("a", "b"):
        assert not torch.equal(masks[name], MASKS[name])


def test_shuffled_masks_are_uniform():
    # 2 of 5 positions: each of the 10 choices has probability 0.1; over 1000 seeds 100 +- 9.5
    mask = Masks({"w": torch.tensor([1, 1, 0, 0, 0])})
    drawn = [tuple(shuffled_masks(mask, seed=seed)["w"].tolist()) for seed in range(1000)]
    counts = [drawn.count(choice) for choice in set(drawn)]
    assert len(counts) == math.comb(5, 2)
    assert all(abs(count - 100) < 4 * 9.5 for count in counts)


def test_random_masks_keep_the_overall_count_alone():
    # 100 of 2000 weights, all in one layer; drawn over both, each has 50 +- 4.75
    masks = Masks({"a": torch.arange(1000) < 100, "b": torch.zeros(10, 100)})
    drawn = random_masks(masks, seed=2)
    assert drawn.num_remaining == 100
    assert drawn["b"].shape == (10, 100)
    assert all(abs(count - 50) < 20 for count in drawn.remaining().values())


@pytest.mark.parametrize("draw", [shuffled_masks, random_masks])
def test_masks_depend_on_the_seed_alone(draw):
    state = torch.get_rng_state()
    first = draw(MASKS, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert draw(MASKS, seed=3) == first
    assert draw(MASKS, seed=4) != first


def test_shuffled_layers_do_not_depend_on_each_other():
    alone = shuffled_masks(Masks({"b": MASKS["b"]}), seed=5)
    assert torch.equal(alone["b"], shuffled_masks(MASKS, seed=5)["b"])
    twins = shuffled_masks(Masks({"b": MASKS["b"], "c": MASKS["b"]}), seed=5)
    assert not torch.equal(twins["b"], twins["c"])


def test_signs_are_kept_and_magnitudes_are_fresh():
    fresh = {"w": torch.tensor([[0.5, -2.0], [3.0, -4.0]]), "bias": torch.tensor([-1.0])}
    initial = {"w": torch.tensor([[-9.0, 9.0], [0.0, -9.0]]), "bias": torch.tensor([9.0])}
    result = keep_signs(fresh, initial, ["w"])
    assert result["w"].tolist() == [[-0.5, 2.0], [0.0, -4.0]]
    assert result["bias"].tolist() == [-1.0]
    result["bias"].zero_()
    assert fresh["bias"].tolist() == [-1.0]


def test_signs_of_another_shape_are_refused():
    fresh, initial = {"w": torch.ones(2, 3)}, {"w": torch.ones(3)}
    with pytest.raises(ValueError, match=r"'w' must have one shape .* got \(2, 3\) and \(3,\)\."):
        keep_signs(fresh, initial, ["w"])


def test_dtypes_of_fresh_weights_are_kept():
    fresh, initial = {"w": torch.ones(1, dtype=torch.bfloat16)}, {"w": torch.tensor([-2.0])}
    assert keep_signs(fresh, initial, ["w"])["w"].dtype == torch.bfloat16


def test_signed_constants_have_the_deviation_of_their_tensor():
    # w has mean 0 and squares that sum to 36, over 4: 9; v is 1 away from its mean 2
    initial = {
        "w": torch.tensor([1.0, -5.0, 3.0, 1.0]),
        "v": torch.tensor([[3.0], [1.0]]),
        "bias": torch.tensor([7.0, 8.0]),
    }
    names = iter(["w", "v"])
    result = signed_constants(initial, names)
    assert result["w"].tolist() == pytest.approx([3, -3, 3, 3])
    assert result["v"].tolist() == [[1.0], [1.0]]
    assert result["bias"].tolist() == [7.0, 8.0]
    result["bias"].zero_()
    assert initial["bias"].tolist() == [7.0, 8.0]


def test_results_carry_no_graph():
    weights = {name: torch.nn.Parameter(torch.randn(3)) for name in ("a", "b")}
    for result in (keep_signs(weights, weights, ["a"]), signed_constants(weights, ["a"])):
        assert not any(tensor.requires_grad for tensor in result.values())


def test_unknown_names_are_refused():
    some, all_of_them = {"w": torch.ones(1)}, {"w": torch.ones(1), "v": torch.ones(1)}
    expected = r"`{}` must have all of `names`, it lacks \['v'\]\. It has: \['w'\]\."
    with pytest.raises(ValueError, match=expected.format("initial")):
        keep_signs(all_of_them, some, ["v", "w"])
    with pytest.raises(ValueError, match=expected.format("fresh")):
        keep_signs(some, all_of_them, ["v", "w"])
    with pytest.raises(ValueError, match=expected.format("initial")):
        signed_constants(some, ["v"])


def test_seeds_are_the_same_everywhere():
    # python -c "import hashlib; h = hashlib.sha256(b'[0, \"reinit\", 1]').digest();
    #            print(int.from_bytes(h[:4], 'little') // 2)"
    assert derive_seed(0, "reinit", 1) == 1703062370
    assert derive_seed(np.int64(0), "reinit", np.int32(1)) == 1703062370


def test_seeds_differ_by_names_and_by_how_these_are_split():
    names = [(0,), (1,), (0, 1), (0, "1"), (0, "a", "b"), (0, "ab"), (0, "b", "a"), (0, 'a", "b')]
    assert len({derive_seed(*parts) for parts in names}) == len(names)


def test_seeds_fill_their_range():
    seeds = [derive_seed(seed, "arm") for seed in range(2000)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == 2000
    assert min(seeds) < 2**31 / 100
    assert max(seeds) > 2**31 * 0.99


@pytest.mark.parametrize("parts", [(0.5,), (0, 1.0), ("0", None)])
def test_other_than_names_and_whole_numbers_is_refused(parts):
    with pytest.raises(TypeError):
        derive_seed(*parts)
