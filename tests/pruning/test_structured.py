import pytest
import torch

from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.structured import prune_units


def rows_left(mask):
    """Which units survive; a unit must be whole."""
    rows = mask.flatten(start_dim=1)
    assert torch.equal(rows.any(dim=1), rows.all(dim=1))
    return rows.any(dim=1).tolist()


def test_filters_are_compared_by_their_norms_in_any_memory_layout():
    weights = torch.arange(-8.0, 8.0).view(2, 2, 2, 2)  # 8 + ... + 1 = 36, 0 + ... + 7 = 28
    for layout in (torch.contiguous_format, torch.channels_last):
        one = {"w": weights.to(memory_format=layout)}
        assert rows_left(prune_units(one, Masks.dense(one), fraction=0.5)["w"]) == [True, False]


def test_every_entry_of_a_vector_is_a_unit():
    weights = {"bias": torch.tensor([-3.0, 1.0, 2.0])}
    masks = prune_units(weights, Masks.dense(weights), fraction=0.4)  # 1.2 of 3
    assert masks["bias"].tolist() == [True, False, True]


def test_norms_of_half_precision_are_summed_in_float32():
    # 17 + 2^-6 is above 17, but bfloat16 has 8 bits: it would be 17 as well, and fall by position
    weights = torch.full((2, 4101), 2.0**-8, dtype=torch.bfloat16)
    weights[0, 0] = 1  # 1 + 4100 * 2^-8 = 17.015625
    weights[1] = 0
    weights[1, 0] = 17
    masks = prune_units({"w": weights}, Masks.dense({"w": weights}), fraction=0.5)
    assert rows_left(masks["w"]) == [True, False]


def test_the_lowest_units_of_each_layer_fall_as_a_whole():
    weights = {
        "fc": torch.tensor([[9.0, 0.0], [3.0, 3.0], [4.0, -4.0], [-1.0, 1.0]]),  # 9, 6, 8, 2
        "conv": torch.full((3, 2, 3, 3), 100.0) * torch.tensor([3.0, 1, 2]).view(3, 1, 1, 1),
    }
    masks = prune_units(weights, Masks.dense(weights), fraction=0.5)
    assert rows_left(masks["fc"]) == [True, False, True, False]  # 2 of 4
    assert rows_left(masks["conv"]) == [True, False, False]  # 1.5 of 3, rounded up


@pytest.mark.parametrize(
    ("fraction", "fallen"), [(0.0, 0), (0.04, 0), (0.05, 1), (0.34, 3), (0.95, 10)]
)
def test_the_number_of_units_is_exact(fraction, fallen):
    weights = {"w": torch.randn(10, 7)}
    masks = prune_units(weights, Masks.dense(weights), fraction=fraction)
    assert rows_left(masks["w"]).count(False) == fallen


def test_equal_units_fall_by_position():
    weights = {"w": torch.ones(4, 3)}
    masks = prune_units(weights, Masks.dense(weights), fraction=0.5)
    assert rows_left(masks["w"]) == [False, False, True, True]


def test_rounds_take_their_share_of_the_surviving_units():
    weights = {"w": torch.arange(1.0, 11.0).view(10, 1)}
    masks, counts = Masks.dense(weights), []
    for _ in range(4):
        masks = prune_units(weights, masks, fraction=0.2)
        counts.append(masks.num_remaining)
    assert counts == [8, 6, 5, 4]  # 10 - 2, 8 - 1.6 -> 2, 6 - 1.2 -> 1, 5 - 1
    assert masks["w"].flatten().tolist() == [False] * 6 + [True] * 4


def test_pruned_weights_count_as_zero_and_stay_pruned():
    # without its 9, the first unit has norm 1; the second has 2
    weights = {"w": torch.tensor([[9.0, 1.0], [1.0, 1.0], [5.0, 5.0]])}
    masks = Masks({"w": torch.tensor([[0, 1], [1, 1], [0, 1]])})
    pruned = prune_units(weights, masks, fraction=0.3)  # 0.9 of 3
    assert pruned["w"].tolist() == [[False, False], [True, True], [False, True]]
    assert masks["w"].tolist() == [[False, True], [True, True], [False, True]]
    assert weights["w"][0, 0] == 9


def test_layers_can_have_fractions_of_their_own():
    weights = {
        "body.1": torch.randn(10, 3),
        "body.2": torch.randn(10, 3),
        "head": torch.zeros(10, 3),
    }
    masks = prune_units(
        weights, Masks.dense(weights), fraction=0.5, fractions={"head": 0.0, "*.2": 0.3}
    )
    assert [rows_left(mask).count(False) for mask in masks.values()] == [5, 3, 0]


def test_layers_that_are_not_masked_do_not_matter():
    weights = {"w": torch.tensor([[2.0], [1.0]]), "bias": torch.ones(2), "steps": torch.tensor(3)}
    masks = prune_units(weights, Masks.dense({"w": weights["w"]}), fraction=0.5)
    assert {name: mask.tolist() for name, mask in masks.items()} == {"w": [[True], [False]]}


def test_layers_without_weights():
    weights = {"none": torch.empty(0, 3), "narrow": torch.empty(3, 0), "some": torch.ones(2, 2)}
    masks = prune_units(weights, Masks.dense(weights), fraction=0.5)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "none": (0, 3),
        "narrow": (3, 0),
        "some": (2, 2),
    }


def test_bad_fractions_and_masks_are_refused():
    weights = {"w": torch.ones(2, 2)}
    masks = Masks.dense(weights)
    with pytest.raises(ValueError, match=r"`fraction` must be in \[0, 1\), got 1\."):
        prune_units(weights, masks, fraction=1)
    with pytest.raises(ValueError, match=r"pattern 'v', which matches no parameter"):
        prune_units(weights, masks, fraction=0.5, fractions={"v": 0.1})
    with pytest.raises(ValueError, match=r"Masks for \['w'\] match no parameter"):
        prune_units({"v": torch.ones(2, 2)}, masks, fraction=0.5)
    with pytest.raises(ValueError, match=r"The mask of 'w' has shape \(2, 2\), but the parameter"):
        prune_units({"w": torch.ones(2, 3)}, masks, fraction=0.5)
    with pytest.raises(ValueError, match="NaN"):
        prune_units({"w": torch.tensor([[1.0, torch.nan]] * 2)}, masks, fraction=0.5)
