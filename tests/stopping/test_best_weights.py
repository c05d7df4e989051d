"""Copies of parameters and buffers, restored bit for bit, from memory and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_lth._tensor_files import write_file
from lightning_lth.stopping.best_weights import BestWeights


class Module(nn.Module):
    """Tied weights, batch statistics, a buffer that `state_dict` leaves out, and odd types."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.narrow = nn.Parameter(torch.randn(2, 2).to(torch.bfloat16))
        self.register_buffer("hidden", torch.arange(3), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("expanded", torch.ones(1).expand(3))
        self.turned = nn.Parameter(torch.randn(2, 3).t())  # not contiguous


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    present = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in present}


def disturb(module: nn.Module) -> None:
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if name == "expanded":
                continue  # torch refuses to write into it
            value.copy_(value.logical_not() if value.dtype == torch.bool else value + 1)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert torch.equal(value, second[name]), name


def test_restored_bit_for_bit_into_the_same_tensors() -> None:
    module = Module()
    before, objects = tensors(module), list(module.parameters())
    best = BestWeights.of(module, step=7, value=0.1)
    disturb(module)
    assert not torch.equal(before["first.weight"], module.first.weight)
    best.restore_(module)
    assert_same(tensors(module), before)
    assert (best.step, best.value) == (7, 0.1)
    assert all(a is b for a, b in zip(module.parameters(), objects, strict=True))
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    disturb(module)
    best.restore_(module)  # the copy is not an alias
    assert_same(tensors(module), before)


def test_from_a_file(tmp_path: Path) -> None:
    module = Module()
    before = tensors(module)
    BestWeights.of(module, step=7, value=0.1).save(tmp_path / "new" / "best.safetensors")
    disturb(module)
    best = BestWeights.load(tmp_path / "new" / "best.safetensors")
    best.restore_(module)
    assert_same(tensors(module), before)
    assert (best.step, best.value) == (7, 0.1)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize(
    "value", [torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex128)], ids=["coo", "c128"]
)
def test_what_no_safetensors_file_holds_stays_in_memory(tmp_path: Path, value: Any) -> None:
    module = nn.Linear(1, 1)
    module.register_buffer("graph", value)
    best = BestWeights.of(module, step=7, value=0.1)
    value.mul_(2)
    best.restore_(module)
    assert torch.equal(module.graph.to_dense(), best.tensors["graph"].to_dense())
    message = r"cannot hold \['graph'\]: sparse.*Leave out `best_weights_path`"
    with pytest.raises(ValueError, match=message):
        best.save(tmp_path / "best.safetensors")


def test_a_new_best_replaces_the_file(tmp_path: Path) -> None:
    module, path = Module(), tmp_path / "best.safetensors"
    BestWeights.of(module, step=7, value=0.1).save(path)
    disturb(module)
    BestWeights.of(module, step=8, value=0.1).save(path)
    assert BestWeights.load(path).step == 8
    assert_same(BestWeights.load(path).tensors, tensors(module))


def test_through_a_state_dict() -> None:
    module = Module()
    state = BestWeights.of(module, step=7, value=0.1).state_dict()
    twin = BestWeights(**state)
    assert (twin.step, twin.value) == (7, 0.1)
    assert_same(twin.tensors, tensors(module))


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        (nn.Linear(4, 2), r"\['weight'\]"),
        (nn.Linear(3, 2, bias=False), r"\['bias'\]"),
        (nn.BatchNorm1d(2), r"\['num_batches_tracked', 'running_mean', 'running_var', 'weight'\]"),
    ],
)
def test_another_module_is_refused_before_anything_is_written(other: nn.Module, wrong: str) -> None:
    best = BestWeights.of(nn.Linear(3, 2), step=0, value=0.1)
    before = tensors(other)
    with pytest.raises(ValueError, match=f"of another module: {wrong} differ in name or shape"):
        best.restore_(other)
    assert_same(tensors(other), before)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no best-weights file"):
        BestWeights.load(tmp_path / "none.safetensors")
    write_file(tmp_path / "ticket.safetensors", {"w": torch.ones(1)}, "{}", kind="ticket")
    with pytest.raises(ValueError, match="no best-weights of lightning-lth"):
        BestWeights.load(tmp_path / "ticket.safetensors")
    path = tmp_path / "best.safetensors"
    BestWeights.of(nn.Linear(3, 2), step=0, value=0.1).save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged or cut off"):
        BestWeights.load(path)
    with pytest.raises(IsADirectoryError, match="which is a folder"):
        BestWeights.of(nn.Linear(3, 2), step=0, value=0.1).save(tmp_path)
