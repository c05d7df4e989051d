"""Tickets: what they hold, their file, and applying them to modules."""

from __future__ import annotations

import copy
import json
import math
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_lth._tensor_files import content_digest, write_file
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.tickets import Ticket


class Net(nn.Module):
    """Weights 0, 1, 2, ... and a batch normalization between two layers."""

    def __init__(self, *, num_outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, num_outputs, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.arange(float(parameter.numel())).view_as(parameter)


def ticket_of(module: nn.Module, masks: dict[str, list[object]], **fields: object) -> Ticket:
    defaults: dict[str, object] = {"round": 1, "step": 0}
    tensors = {name: torch.tensor(mask) for name, mask in masks.items()}
    return Ticket(Masks(tensors), module.state_dict(), **{**defaults, **fields})


HEAD_MASK = {"head.weight": [[1, 0, 1], [0, 0, 1]]}


def net_ticket(**fields: object) -> Ticket:
    return ticket_of(Net(), HEAD_MASK, **fields)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    assert module.state_dict().keys() == state.keys()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


# What a ticket holds


def test_density_counts_the_masked_weights() -> None:
    assert net_ticket().density == 0.5  # 3 of 6


def test_repr_is_short() -> None:
    assert repr(net_ticket()) == "Ticket(round=1, step=0, density=0.5, 3 of 6 weights in 1 tensors)"


def test_training_on_does_not_change_the_ticket() -> None:
    net = Net()
    ticket = ticket_of(net, HEAD_MASK)
    with torch.no_grad():
        net.head.weight.fill_(-1.0)
    assert ticket.weights["head.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_fingerprint_depends_on_the_architecture_alone() -> None:
    net = Net()
    fingerprint = ticket_of(net, HEAD_MASK).fingerprint
    reordered = Ticket(Masks({}), dict(reversed(net.state_dict().items())), round=7, step=9)
    assert reordered.fingerprint == fingerprint
    assert ticket_of(net.double(), HEAD_MASK).fingerprint != fingerprint
    assert ticket_of(Net(num_outputs=3), {}).fingerprint != fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"round": 2},
        {"step": 1},
        {"seed": 1},
        {"metrics": {"acc": 0.5}},
    ],
)
def test_tickets_compare_by_value(change: dict[str, object]) -> None:
    assert net_ticket() == net_ticket()
    assert net_ticket() != net_ticket(**change)


def test_tickets_with_other_weights_or_masks_differ() -> None:
    net = Net()
    ticket = ticket_of(net, HEAD_MASK)
    assert ticket != ticket_of(net, {"head.weight": [[1, 0, 1], [0, 1, 1]]})
    net.norm.running_mean[0] = 1.0
    assert ticket != ticket_of(net, HEAD_MASK)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_tickets_can_be_copied_and_pickled(copied: object) -> None:
    assert copied(net_ticket()) == net_ticket()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"round": -1}, ValueError, "`round` must be at least 0, got -1"),
        ({"step": 1.0}, TypeError, r"`step` must be an integer, got 1\.0"),
        ({"round": True}, TypeError, "`round` must be an integer, got True"),
        ({"seed": "1"}, TypeError, "`seed` must be an integer or None, got '1'"),
        ({"metrics": {"acc": "high"}}, TypeError, "metric 'acc' must be a number, got 'high'"),
    ],
)
def test_wrong_fields_are_refused(
    fields: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        net_ticket(**fields)


def test_masks_must_fit_the_weights() -> None:
    with pytest.raises(ValueError, match=r"mask of 'head\.weight' has shape"):
        ticket_of(Net(), {"head.weight": [1, 0]})
    with pytest.raises(ValueError, match="match no parameter"):
        ticket_of(Net(), {"tail.weight": [1, 0]})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_masked_weights_must_be_finite(value: float) -> None:
    net = Net()
    net.head.weight.data[0, 1] = value  # even a pruned one
    with pytest.raises(ValueError, match=r"'head\.weight' holds NaN or infinity"):
        ticket_of(net, HEAD_MASK)


def test_buffers_may_be_infinite() -> None:
    net = Net()
    net.norm.running_mean.fill_(-math.inf)
    assert ticket_of(net, HEAD_MASK).weights["norm.running_mean"][0] == -math.inf


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.zeros(1, device="meta"), ValueError, "device meta"),
        (torch.zeros(1, dtype=torch.complex64), ValueError, r"torch\.complex64"),
        (torch.zeros(1).to_sparse(), ValueError, r"layout torch\.sparse_coo"),
        ([0.0], TypeError, "must be a tensor, got list"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    weight: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Ticket(Masks({}), {"w": weight}, round=0, step=0)


# The file


def test_save_and_load_give_an_equal_ticket(tmp_path: Path) -> None:
    ticket = net_ticket(round=3, step=120, seed=42, metrics={"acc": 0.1, "loss": 2})
    path = ticket.save(tmp_path / "ticket.safetensors")
    loaded = Ticket.load(path)
    assert loaded == ticket
    assert (loaded.round, loaded.step, loaded.seed) == (3, 120, 42)
    assert loaded.metrics == {"acc": 0.1, "loss": 2.0}
    assert loaded.masks == Masks({"head.weight": torch.tensor([[1, 0, 1], [0, 0, 1]])})
    assert loaded.versions == ticket.versions
    assert loaded.versions["torch"] == torch.__version__


def test_the_file_has_one_bit_per_masked_weight(tmp_path: Path) -> None:
    tensors = load_file(net_ticket().save(tmp_path / "t"))
    assert tensors["mask/head.weight"].tolist() == [0b10100100]  # 101 001, then two zero bits
    assert tensors["weight/head.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64),
        *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_dtypes_and_shapes_round_trip(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    weight = (torch.rand(shape) * 3).to(dtype)
    mask = torch.rand(shape) < 0.5
    ticket = Ticket(Masks({"w": mask}), {"w": weight}, round=0, step=0)
    loaded = Ticket.load(ticket.save(tmp_path / "t"))
    assert loaded.weights["w"].dtype == dtype
    assert torch.equal(loaded.weights["w"], weight)
    assert torch.equal(loaded.masks["w"], mask)


def test_not_finite_metrics_round_trip(tmp_path: Path) -> None:
    ticket = net_ticket(metrics={"a": math.nan, "b": -math.inf, "c": torch.tensor(0.5)})
    loaded = Ticket.load(ticket.save(tmp_path / "t"))
    assert math.isnan(loaded.metrics["a"])
    assert loaded.metrics["b"] == -math.inf
    assert loaded.metrics["c"] == 0.5


def test_tied_and_strided_weights_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    weights = {"a": base, "b": base, "transposed": base.t(), "row": base[1]}
    loaded = Ticket.load(Ticket(Masks({}), weights, round=0, step=0).save(tmp_path / "t"))
    for name, weight in weights.items():
        assert torch.equal(loaded.weights[name], weight)


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "t"
    net_ticket(round=1).save(str(path))
    net_ticket(round=2).save(path)
    assert Ticket.load(str(path)).round == 2
    assert [p.name for p in path.parent.iterdir()] == ["t"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = net_ticket(round=1).save(tmp_path / "t")

    def full_disk(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        net_ticket(round=2).save(path)
    assert Ticket.load(path).round == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = net_ticket().save(tmp_path / "t")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="which is a folder"):
        net_ticket().save(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Give the ticket file"):
        Ticket.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ticket file '.*gone\.safetensors'"):
        Ticket.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x80\x02}q\x00." * 9])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="foreign' is no safetensors file"):
        Ticket.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_another_safetensors_file_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign", metadata)
    with pytest.raises(ValueError, match="foreign' is a safetensors file, but no ticket"):
        Ticket.load(tmp_path / "foreign")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    save_file({}, path, {"format": "lightning-lth ticket", "format_version": "2"})
    with pytest.raises(ValueError, match=r"t' has format version 2, but .* reads version 1"):
        Ticket.load(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = net_ticket().save(tmp_path / "t")
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"t' is no safetensors file, or it is damaged"):
            Ticket.load(path)


def test_a_flipped_weight_is_noticed(tmp_path: Path) -> None:
    path = net_ticket().save(tmp_path / "t")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="t' is damaged: its checksum does not match"):
        Ticket.load(path)


damage = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(damage, min_size=1, max_size=3))
def test_a_damaged_file_is_refused_or_gives_the_same_ticket(
    damages: list[tuple[str, float, int]],
) -> None:
    ticket = net_ticket(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        path = ticket.save(Path(folder) / "t")
        content = bytearray(path.read_bytes())
        for kind, where, bits in damages:
            position = int(where * len(content))
            if kind == "cut":
                del content[position:]
            elif content:
                content[position] ^= bits
        path.write_bytes(content)
        try:
            loaded = Ticket.load(path)
        except ValueError as error:
            refusal = str(error)
        else:
            assert loaded == ticket  # the damage was in what says nothing, as the header's padding
            return
    assert str(path) in refusal


VALID = {
    "round": 1,
    "step": 0,
    "seed": None,
    "metrics": {"acc": "0.5"},
    "mask_shapes": {"w": [3]},
    "fingerprint": Ticket(Masks({}), {"w": torch.zeros(3)}, round=0, step=0).fingerprint,
    "versions": {},
}


def write_ticket(path: Path, description: str, **tensors: Tensor) -> Path:
    """A file with a right checksum, whatever is in it."""
    content = {
        "mask/w": tensors.get("mask", torch.tensor([0b10100000], dtype=torch.uint8)),
        "weight/w": tensors.get("weight", torch.zeros(3)),
    }
    write_file(path, content, description)
    return path


def test_the_valid_description_is_valid(tmp_path: Path) -> None:
    loaded = Ticket.load(write_ticket(tmp_path / "t", json.dumps(VALID)))
    assert loaded.masks["w"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    "description",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        *(json.dumps({k: v for k, v in VALID.items() if k != left_out}) for left_out in VALID),
        json.dumps({**VALID, "round": "1"}),
        json.dumps({**VALID, "step": -1}),
        json.dumps({**VALID, "metrics": {"acc": "high"}}),
        json.dumps({**VALID, "metrics": [1]}),
        json.dumps({**VALID, "mask_shapes": {"w": [9]}}),
        json.dumps({**VALID, "mask_shapes": {"w": [4]}}),
        json.dumps({**VALID, "mask_shapes": {"w": [-1]}}),
        json.dumps({**VALID, "mask_shapes": {"w": [10**30]}}),
        json.dumps({**VALID, "mask_shapes": {"w": "3"}}),
        json.dumps({**VALID, "mask_shapes": {}}),
        json.dumps({**VALID, "fingerprint": "0"}),
        json.dumps({**VALID, "versions": 3}),
    ],
    ids=lambda description: description[:20] if len(description) < 20 else None,
)
def test_a_wrong_description_is_refused(tmp_path: Path, description: str) -> None:
    path = write_ticket(tmp_path / "t", description)
    with pytest.raises(ValueError, match=r"ticket in '.*t' is not valid"):
        Ticket.load(path)


def test_a_wrong_mask_is_refused(tmp_path: Path) -> None:
    two_bytes = torch.zeros(2, dtype=torch.uint8)
    path = write_ticket(tmp_path / "t", json.dumps(VALID), mask=two_bytes)
    with pytest.raises(ValueError, match="packed mask of 'w' must be 1 bytes"):
        Ticket.load(path)


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    path = write_ticket(tmp_path / "t", json.dumps(VALID), weight=torch.full((3,), math.nan))
    with pytest.raises(ValueError, match=r"t' is not valid.*'w' holds NaN"):
        Ticket.load(path)


def test_the_checksum_covers_names_shapes_and_dtypes() -> None:
    zeros = torch.zeros(4)
    variants = [
        ({"a": zeros}, ""),
        ({"b": zeros}, ""),
        ({"a": zeros.view(2, 2)}, ""),
        ({"a": zeros.view(torch.int32)}, ""),
        ({"a": zeros, "b": zeros[:0]}, ""),
        ({"a": zeros}, "text"),
    ]
    assert len({content_digest(tensors, text) for tensors, text in variants}) == len(variants)


# Applying


def test_apply_loads_the_weights_and_zeroes_the_pruned_ones() -> None:
    net = Net()
    net.norm.running_mean.fill_(5.0)
    net.norm.num_batches_tracked.fill_(7)
    ticket = ticket_of(net, HEAD_MASK)
    other = Net()
    for parameter in other.parameters():
        parameter.data.fill_(math.nan)
    head = other.head.weight
    report = ticket.apply_(other)
    assert report.is_exact
    assert other.head.weight is head
    assert head.tolist() == [[0, 0, 2], [0, 0, 5]]  # 0..5, where the mask is 101 001
    assert other.body.weight.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert other.norm.running_mean.tolist() == [5, 5, 5]
    assert other.norm.num_batches_tracked == 7
    assert report.masks == ticket.masks
    assert ticket.weights["head.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]  # not masked


def test_applying_a_loaded_ticket_gives_the_same_network(tmp_path: Path) -> None:
    ticket = net_ticket()
    first, second = Net(), Net()
    ticket.apply_(first)
    Ticket.load(ticket.save(tmp_path / "t")).apply_(second)
    assert_same_state(second, state_of(first))


def test_strict_refuses_and_leaves_the_module_untouched() -> None:
    ticket = net_ticket()
    other = Net(num_outputs=4)
    other.extra = nn.Linear(1, 1)
    del other.norm
    other.body.weight.data.fill_(9.0)
    before = state_of(other)
    with pytest.raises(ValueError, match="does not fit Net") as caught:
        ticket.apply_(other)
    assert str(caught.value) == (
        "The ticket does not fit Net. Missing in the ticket: 'extra.weight', 'extra.bias'. "
        "Not in the module: 'norm.weight', 'norm.bias', 'norm.running_mean', "
        "'norm.running_var', 'norm.num_batches_tracked'. "
        "Of another shape: 'head.weight' (2, 3) in the ticket, (4, 3) in the module. "
        "To load only what fits, pass `strict=False`."
    )
    assert_same_state(other, before)


def test_not_strict_loads_what_fits() -> None:
    masks = {**HEAD_MASK, "body.weight": [[1, 0], [1, 1], [0, 1]]}
    other = Net(num_outputs=4)
    other.body.weight.data.fill_(9.0)
    other.head.weight.data.fill_(9.0)
    report = ticket_of(Net(), masks).apply_(other, strict=False)
    assert report.mismatched == {"head.weight": ((2, 3), (4, 3))}
    assert (report.missing, report.extra) == ((), ())
    assert not report.is_exact
    assert other.body.weight.tolist() == [[0, 0], [2, 3], [0, 5]]  # 0..5 without 1 and 4
    assert (other.head.weight == 9.0).all()
    assert list(report.masks) == ["body.weight"]


def test_nothing_that_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="Nothing of the ticket fits Linear"):
        net_ticket().apply_(nn.Linear(2, 2), strict=False)


def tied_net() -> nn.ModuleDict:
    net = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    net["head"].weight = net["embedding"].weight
    net["embedding"].weight.data = torch.arange(6.0).view(3, 2)
    return net


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
@pytest.mark.parametrize("all_names", [True, False])
def test_tied_weights_stay_tied_and_masked(tmp_path: Path, name: str, all_names: bool) -> None:
    weights = tied_net().state_dict() if all_names else {name: tied_net().state_dict()[name]}
    mask = torch.tensor([[1, 1], [0, 1], [1, 0]])
    ticket = Ticket(Masks({name: mask}), weights, round=1, step=0)
    net = tied_net()
    net["head"].weight.data.fill_(9.0)
    report = Ticket.load(ticket.save(tmp_path / "t")).apply_(net)
    assert report.is_exact
    assert net["head"].weight is net["embedding"].weight
    assert net["head"].weight.tolist() == [[0, 1], [0, 3], [4, 0]]
    assert list(report.masks) == ["embedding.weight"]  # the name that `named_parameters` gives


def test_weights_that_the_module_ties_must_be_equal() -> None:
    weights = {"embedding.weight": torch.zeros(3, 2), "head.weight": torch.ones(3, 2)}
    ticket = Ticket(Masks({}), weights, round=1, step=0)
    with pytest.raises(ValueError, match=r"Not in the module: 'head\.weight'\."):
        ticket.apply_(tied_net())


def test_names_of_compiled_modules_are_plain() -> None:
    # torch.compile compiles nothing before the first forward.
    compiled = nn.ModuleDict({"body": torch.compile(nn.Linear(2, 1, bias=False))})
    plain = nn.ModuleDict({"body": nn.Linear(2, 1, bias=False)})
    mask = Masks({"body._orig_mod.weight": torch.tensor([[0, 1]])})
    ticket = Ticket(mask, compiled.state_dict(), round=1, step=0)
    assert list(ticket.weights) == ["body.weight"]
    for module in (plain, compiled):
        assert ticket.apply_(module).is_exact
        assert module["body"].weight.tolist() == [[0, compiled["body"].weight[0, 1].item()]]


@pytest.mark.parametrize("is_in_ticket", [True, False])
def test_buffers_that_are_not_persistent_are_optional(is_in_ticket: bool) -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.register_buffer("cache", torch.tensor([3.0]), persistent=False)
    weights = {"weight": torch.ones(1, 1)}
    if is_in_ticket:
        weights["cache"] = torch.tensor([8.0])
    assert Ticket(Masks({}), weights, round=0, step=0).apply_(layer).is_exact
    assert layer.cache.item() == (8.0 if is_in_ticket else 3.0)


def test_expanded_buffers_stay_as_they_are_and_may_not_change() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.register_buffer("scale", torch.tensor([3.0]).expand(2))
    weights = {"weight": torch.ones(1, 2), "scale": torch.tensor([3.0, 3.0])}
    assert Ticket(Masks({}), weights, round=0, step=0).apply_(layer).is_exact
    assert layer.weight.tolist() == [[1, 1]]
    weights = {"weight": torch.zeros(1, 2), "scale": torch.tensor([3.0, 4.0])}
    with pytest.raises(ValueError, match=r"'scale' has other values .* by its `clone\(\)` first"):
        Ticket(Masks({}), weights, round=0, step=0).apply_(layer)
    assert layer.weight.tolist() == [[1, 1]]


def test_values_are_cast_to_the_modules_dtypes() -> None:
    net = Net().to(torch.bfloat16)
    net_ticket().apply_(net)
    assert net.head.weight.dtype == torch.bfloat16
    assert net.head.weight.tolist() == [[0, 0, 2], [0, 0, 5]]


def test_applying_does_not_touch_gradients_or_requires_grad() -> None:
    net = Net()
    net.body.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones(2, 3)
    net_ticket().apply_(net)
    assert not net.body.weight.requires_grad
    assert net.head.weight.requires_grad
    assert net.head.weight.is_leaf
    assert net.head.weight.grad.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_lazy_modules_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"'weight' is lazy.*Run one forward pass"):
        net_ticket().apply_(nn.LazyLinear(2))


def test_modules_without_storage_are_refused() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'weight' is on the meta device"):
        net_ticket().apply_(net)
