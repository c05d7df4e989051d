import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lth.pruning.masks import Masks


def test_masks_are_boolean_whatever_they_come_from():
    for dtype in (torch.bool, torch.float32, torch.uint8, torch.bfloat16):
        masks = Masks({"w": torch.tensor([1, 0, 1]).to(dtype)})
        assert masks["w"].dtype == torch.bool
        assert masks["w"].tolist() == [True, False, True]


def test_counts_and_densities():
    masks = Masks({"a": torch.tensor([[1, 0], [0, 0]]), "b": torch.ones(4), "c": torch.empty(0)})
    assert (masks.num_weights, masks.num_remaining) == (8, 5)
    assert masks.density == 5 / 8
    assert masks.remaining() == {"a": 1, "b": 4, "c": 0}
    assert masks.densities() == {"a": 0.25, "b": 1.0, "c": 1.0}
    assert Masks({}).density == 1.0
    assert repr(masks) == "Masks(3 tensors, 5 of 8 weights)"


def test_dense_keeps_all():
    masks = Masks.dense({"w": torch.zeros(2, 3)})
    assert masks["w"].shape == (2, 3)
    assert masks.density == 1.0


def test_masks_compare_by_value():
    masks = Masks({"a": torch.tensor([1, 0]), "b": torch.tensor([1])})
    assert masks == Masks({"b": torch.tensor([1]), "a": torch.tensor([1, 0])})
    assert masks != Masks({"a": torch.tensor([0, 1]), "b": torch.tensor([1])})
    assert masks != Masks({"a": torch.tensor([[1, 0]]), "b": torch.tensor([1])})
    assert masks != Masks({"a": torch.tensor([1, 0])})
    with pytest.raises(TypeError, match="unhashable"):
        hash(masks)


@pytest.mark.parametrize("value", [2.0, 0.5, -1.0, float("nan")])
def test_other_values_than_zero_and_one_are_refused(value):
    with pytest.raises(ValueError, match=r"mask of 'w' must hold zeros and ones alone"):
        Masks({"w": torch.tensor([1.0, value])})


def test_other_types_are_refused():
    with pytest.raises(TypeError, match=r"mask of 'w' must be a tensor, got list"):
        Masks({"w": [1, 0]})
    with pytest.raises(TypeError, match=r"name must be a parameter name \(str\), got 0"):
        Masks({0: torch.ones(1)})


def test_apply_zeroes_pruned_weights_also_if_not_finite():
    weights = {
        "w": torch.nn.Parameter(torch.tensor([1.0, float("nan"), float("inf"), -2.0])),
        "other": torch.ones(1),
    }
    Masks({"w": torch.tensor([1, 0, 0, 1])}).apply_(weights)
    assert weights["w"].tolist() == [1.0, 0.0, 0.0, -2.0]
    assert weights["other"].tolist() == [1.0]


def test_misfits_are_refused():
    masks = Masks({"w": torch.ones(2)})
    with pytest.raises(
        ValueError, match=r"Masks for \['w'\] match no parameter\. Parameters: \['v'\]"
    ):
        masks.apply_({"v": torch.ones(2)})
    with pytest.raises(
        ValueError, match=r"mask of 'w' has shape \(2,\), but the parameter has \(3,\)"
    ):
        masks.apply_({"w": torch.ones(3)})


def test_packed_bits():
    # 1 0 1 1 0 0 0 1 -> 128 + 32 + 16 + 1 = 177; the ninth, 1 -> 128
    masks = Masks({"w": torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1])})
    assert masks.pack()["w"].tolist() == [177, 128]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4))
def test_unpack_reverses_pack(bits, rows):
    mask = torch.tensor(bits * rows, dtype=torch.bool).view(rows, len(bits))
    masks = Masks({"w": mask})
    packed = masks.pack()
    assert packed["w"].numel() == -(-mask.numel() // 8)
    assert Masks.unpack(packed, {"w": mask.shape}) == masks


def test_unpack_refuses_what_pack_did_not_make():
    packed = {"w": torch.zeros(2, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"must be 3 bytes for shape \(17,\)"):
        Masks.unpack(packed, {"w": torch.Size([17])})
    with pytest.raises(ValueError, match=r"same names, got \['w'\] and \['v'\]"):
        Masks.unpack(packed, {"v": torch.Size([9])})


def test_fingerprint_tells_names_shapes_and_values_apart():
    a, b = torch.tensor([1, 0]), torch.tensor([0, 1])
    same = Masks({"a": a, "b": b}).fingerprint()
    assert same == Masks({"b": b, "a": a}).fingerprint()
    others = [
        Masks({"a": b, "b": a}),
        Masks({"a": a[None], "b": b}),
        Masks({"a": a, "c": b}),
        Masks({"a": a}),
    ]
    assert same not in {masks.fingerprint() for masks in others}
