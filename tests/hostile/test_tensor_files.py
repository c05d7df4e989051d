"""Tickets and best weights from anywhere: the same as was written, or refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import _SIZE, save

from lightning_lth import Masks, Ticket
from lightning_lth._tensor_files import content_digest, read_file, write_file
from lightning_lth.cli import main
from lightning_lth.stopping.best_weights import BestWeights
from tests.hostile.damage import NUMBERS, TEXTS, VALUES, attacks, damaged, read_or_refuse

TICKET = Ticket(
    Masks({"net.w": torch.tensor([[1, 0, 1], [0, 1, 1]])}),
    {"net.w": torch.arange(6.0).view(2, 3), "net.b": torch.tensor([1, 2])},
    round=1,
    step=7,
    seed=3,
    metrics={"accuracy": 0.5},
)
BEST = BestWeights(7, 0.25, {"net.w": torch.arange(6.0).view(2, 3)})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for files, one after the other."""
    return tmp_path_factory.mktemp("hostile") / "file.safetensors"


def written(value: Ticket | BestWeights) -> bytes:
    path = Path("unused")
    contents: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_lth._tensor_files.write_whole", lambda _, c: contents.append(c))
        value.save(path)
    return contents[0]


def same_weights(one: BestWeights, other: BestWeights) -> bool:
    described = [json.dumps([best.step, best.value]) for best in (one, other)]
    digests = [content_digest(best.tensors, "") for best in (one, other)]
    return described[0] == described[1] and digests[0] == digests[1]


@given(damaged(written(TICKET)))
def test_a_damaged_ticket_is_the_same_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    loaded = read_or_refuse(Ticket.load, path)
    assert loaded is None or loaded == TICKET


@given(damaged(written(BEST)))
def test_damaged_best_weights_are_the_same_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    loaded = read_or_refuse(BestWeights.load, path)
    assert loaded is None or same_weights(loaded, BEST)


def header(entries: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


sizes = st.sampled_from([0, 1, 2, 4, 2**31, 2**32, 2**62, 2**63, 2**64]) | st.integers(0, 16)
shapes = st.lists(sizes, max_size=4) | VALUES
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BOOL", "U8", "I64", "F4", "F8_E8M0", "C64", "X"]),
        "shape": shapes,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | VALUES,
    }
)


@given(st.dictionaries(TEXTS, entries | VALUES, max_size=3), st.binary(max_size=16), st.booleans())
def test_headers_that_declare_anything_are_refused(
    path: Path, tensors: dict[str, Any], data: bytes, has_metadata: bool
) -> None:
    """No checksum of zeros is right, so not one of them can be read."""
    metadata = {"format": "lightning-lth ticket", "format_version": "1", "description": "{}"}
    first = {"__metadata__": {**metadata, "sha256": "0" * 64}} if has_metadata else {}
    path.write_bytes(header({**tensors, **first}, data))
    assert read_or_refuse(read_file, path) is None


@given(st.sampled_from([-8, 0, 1, 100, 2**27, 2**40, 2**63, 2**64 - 1]), st.binary(max_size=40))
def test_headers_of_any_length_are_refused(path: Path, length: int, rest: bytes) -> None:
    path.write_bytes(struct.pack("<Q", length % 2**64) + rest)
    assert read_or_refuse(read_file, path) is None


def test_a_shape_that_torch_has_no_number_for_is_refused(path: Path) -> None:
    shape = {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}
    path.write_bytes(header({"w": shape}, b""))
    with pytest.raises(ValueError, match=r"file.safetensors' is no safetensors file, or it is dam"):
        Ticket.load(path)


DESCRIPTION = {
    "round": 1,
    "step": 0,
    "seed": None,
    "metrics": {"accuracy": "0.5"},
    "mask_shapes": {"w": [3]},
    "fingerprint": Ticket(Masks({}), {"w": torch.zeros(3)}, round=0, step=0).fingerprint,
    "versions": {},
}
shaped = st.sampled_from([[3], [4], [8], [9], [1, 3], [3, 1], [2, 2], []])
replaced = shaped.map(lambda shape: {"mask_shapes": {"w": shape}}) | st.dictionaries(
    st.sampled_from(sorted(DESCRIPTION)), VALUES, min_size=1, max_size=2
)


def write_honestly(path: Path, text: str, tensors: dict[str, torch.Tensor], kind: str) -> None:
    """With a right checksum, whatever is in it; in place, as nothing is at stake."""
    digest = content_digest(tensors, text)
    metadata = {"format": f"lightning-lth {kind}", "format_version": "1", "description": text}
    path.write_bytes(save(tensors, {**metadata, "sha256": digest}))


@given(
    replaced.map(lambda changes: json.dumps({**DESCRIPTION, **changes})) | VALUES.map(json.dumps)
)
def test_a_ticket_described_by_anything_can_be_saved_again_or_is_refused(
    path: Path, text: str
) -> None:
    tensors = {"mask/w": torch.tensor([160], dtype=torch.uint8), "weight/w": torch.zeros(3)}
    write_honestly(path, text, tensors, "ticket")
    loaded = read_or_refuse(Ticket.load, path)
    if loaded is not None:
        assert loaded.masks["w"].shape == loaded.weights["w"].shape
        assert Ticket.load(loaded.save(path.with_name("again"))) == loaded


names = TEXTS.filter(lambda text: text.isprintable()) | st.sampled_from(
    ["w", "a\0b", "_orig_mod.w"]
)
# Complex numbers and uint16 came later than safetensors 0.5.
UNUSUAL = [kind for kind in (torch.float8_e5m2, torch.uint16, torch.complex64) if kind in _SIZE]
some_tensors = st.tuples(
    st.sampled_from([torch.uint8, torch.bool, torch.float32, torch.int64, torch.bfloat16])
    | st.sampled_from(UNUSUAL),
    st.lists(st.integers(0, 3), max_size=3),
).map(lambda chosen: torch.ones(chosen[1]).to(chosen[0]))
prefixed = st.tuples(st.sampled_from(["mask/", "weight/", ""]), names).map("".join)


@given(
    st.dictionaries(prefixed, some_tensors, max_size=4),
    st.dictionaries(names, st.lists(NUMBERS, max_size=3), max_size=2),
)
def test_tensors_of_any_name_shape_and_dtype_are_a_ticket_or_refused(
    path: Path, tensors: dict[str, torch.Tensor], mask_shapes: dict[str, Any]
) -> None:
    text = json.dumps({**DESCRIPTION, "mask_shapes": mask_shapes})
    write_honestly(path, text, tensors, "ticket")
    loaded = read_or_refuse(Ticket.load, path)
    assert loaded is None or loaded.masks.keys() <= loaded.weights.keys()
    assert {file.name for file in path.parent.iterdir()} <= {path.name, "again"}


@given(VALUES | st.fixed_dictionaries({"step": VALUES, "value": VALUES}))
def test_best_weights_described_by_anything_have_numbers_or_are_refused(
    path: Path, description: Any
) -> None:
    write_honestly(path, json.dumps(description), {"w": torch.zeros(3)}, "best-weights")
    loaded = read_or_refuse(BestWeights.load, path)
    assert loaded is None or (loaded.step >= 0 and isinstance(loaded.value, int | float))


@pytest.mark.parametrize(
    "description",
    [
        '{"step": 1}',
        "[]",
        '{"step": 1, "value": 2, "tensors": 3}',
        '{"step": -1, "value": 0}',
        '{"step": "1", "value": 0}',
        '{"step": 1, "value": "0"}',
        "[" * 100_000,
        "{",
    ],
    ids=lambda text: text[:20],
)
def test_best_weights_with_a_wrong_description_are_refused(
    tmp_path: Path, description: str
) -> None:
    path = tmp_path / "best"
    write_file(path, {}, description, kind="best-weights")
    if '"tensors"' in description:  # what we do not know does no harm
        assert BestWeights.load(path).tensors == {}
        return
    with pytest.raises(ValueError, match=r"The best-weights in '.*best' are not valid"):
        BestWeights.load(path)


@pytest.mark.parametrize("read", [Ticket.load, BestWeights.load])
def test_pickles_and_archives_are_refused_and_not_run(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    marker = tmp_path / "marker"
    for content in attacks(marker):
        (tmp_path / "t.safetensors").write_bytes(content)
        assert read_or_refuse(read, tmp_path / "t.safetensors") is None
    assert not marker.exists()


@pytest.mark.parametrize("versions", [3, "", [["a", "b"]], {"torch": 3}, None])
def test_versions_that_are_no_texts_are_refused(tmp_path: Path, versions: object) -> None:
    tensors = {"mask/w": torch.tensor([160], dtype=torch.uint8), "weight/w": torch.zeros(3)}
    write_file(tmp_path / "t", tensors, json.dumps({**DESCRIPTION, "versions": versions}))
    with pytest.raises(ValueError, match="versions must be a text for each library"):
        Ticket.load(tmp_path / "t")


def test_the_command_line_shows_names_without_what_moves_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "w\n\x1b[2J\u202e"
    ticket = Ticket(Masks({evil: torch.ones(1)}), {evil: torch.ones(1)}, round=0, step=0)
    main(["ticket", "show", str(ticket.save(tmp_path / "t"))])
    shown = capsys.readouterr().out
    assert r"100.00% left of w\n\x1b[2J\u202e: 1 of 1" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "content", [b"", b"{}", written(TICKET)[:-1], written(BEST), *attacks(Path("m"))]
)
def test_the_command_line_refuses_them_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["ticket", "show", str(path)])
    assert str(ended.value.code).startswith("error: ")  # Python prints it, and exits with 1
    assert str(path) in str(ended.value.code)
    assert "\n" not in str(ended.value.code)
    assert capsys.readouterr().out == ""
