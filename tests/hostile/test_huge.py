"""Files of some kilobytes that say they are huge are refused, with 512 MiB to spare."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lightning_lth import Ticket
from lightning_lth._tensor_files import write_file
from lightning_lth.study import load_study
from lightning_lth.study.reading import read_config, read_json, read_table
from tests.hostile.damage import read_or_refuse
from tests.study import tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

SPARE = 512 * 2**20


@contextmanager
def little_memory() -> Iterator[None]:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_refused(read: Callable[[Path], Any], path: Path) -> None:
    assert path.stat().st_size < 2 * 10**6
    with little_memory():
        assert read_or_refuse(read, path) is None


def test_the_limit_is_one(tmp_path: Path) -> None:
    with little_memory(), pytest.raises(MemoryError):
        bytes(2 * SPARE)


@pytest.mark.parametrize("shape", [[2**40], [2**40, 2**20], [2**31, 2**31, 2]])
@pytest.mark.parametrize("end", [64, 2**42, 2**62])
def test_tensors(tmp_path: Path, shape: list[int], end: int) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    text = json.dumps({"w": entry}).encode()
    (tmp_path / "t").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    check_refused(Ticket.load, tmp_path / "t")


@pytest.mark.parametrize("length", [10**8, 2**40, 2**63])
def test_headers(tmp_path: Path, length: int) -> None:
    (tmp_path / "t").write_bytes(struct.pack("<Q", length) + b"{}")
    check_refused(Ticket.load, tmp_path / "t")


@pytest.mark.parametrize("shape", [[2**40], [2**40, 0], [2**62, 4]])
def test_masks(tmp_path: Path, shape: list[int]) -> None:
    described = {"mask_shapes": {"w": shape}, "round": 0, "step": 0, "seed": None, "metrics": {}}
    bits = torch.zeros(1, dtype=torch.uint8)
    write_file(tmp_path / "t", {"mask/w": bits}, json.dumps({**described, "versions": {}}))
    check_refused(Ticket.load, tmp_path / "t")


def test_rows_that_are_all_the_same(tmp_path: Path) -> None:
    """Parquet writes them once; each is several numbers of 8 bytes when it is read."""
    columns = {"arm": "a", "seed": 0, "round": 0, "density": 1.0}
    rows = pa.table({name: pa.repeat(value, 2_000_000) for name, value in columns.items()})
    pq.write_table(rows, tmp_path / "rounds.parquet")
    assert (tmp_path / "rounds.parquet").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"rounds.parquet' is damaged: .* got 8,000,000\."):
        read_table(tmp_path / "rounds.parquet")


@pytest.mark.parametrize(
    ("first", "template"),
    [("[x, x]", "[{}]"), ("{x: 1}", "{{x: [{}]}}"), ("{x: 1}", "{{<<: [{}]}}")],
    ids=["lists", "values", "merged keys"],
)
def test_aliases_of_aliases(tmp_path: Path, first: str, template: str) -> None:
    """Thirty levels, each of nine aliases of the one before: 9**30 values."""
    lines = [f"k0: &a0 {first}"]
    for i in range(1, 31):
        lines.append(f"k{i}: &a{i} " + template.format(", ".join([f"*a{i - 1}"] * 9)))
    (tmp_path / "study.yaml").write_text("\n".join(lines))
    check_refused(read_config, tmp_path / "study.yaml")


@pytest.mark.parametrize("text", ["k: &a [*a, *a]", "k: " + "[" * 10**6, "k: " + "{a: " * 10**5])
def test_lists_without_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    check_refused(read_config, tmp_path / "study.yaml")


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, "1" * 10**6])
def test_json_without_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "done.json").write_text(text)
    check_refused(read_json, tmp_path / "done.json")


def test_rounds(tmp_path: Path) -> None:
    config = tiny.config(pruning={"rounds": 10**12})
    (tmp_path / "study.yaml").write_text(json.dumps(config))
    check_refused(load_study, tmp_path / "study.yaml")
