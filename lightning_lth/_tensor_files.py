"""Tensors and a text in one safetensors file, written whole or not at all, with a checksum."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save

from lightning_lth._files import write_whole
from lightning_lth._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_FORMAT = "lightning-lth"
_FORMAT_VERSION = "1"


def content_digest(tensors: Mapping[str, Tensor], description: str) -> str:
    """A hash of the names, shapes, dtypes and bytes of tensors on the CPU, and of a text.

    Examples:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> content_digest({"a": zero}, "") == content_digest({"a": one}, "")
        False
    """
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_file(
    path: Path, tensors: Mapping[str, Tensor], description: str, *, kind: str = "ticket"
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The file; it is replaced if it exists, and its folders are made.
        tensors: Contiguous CPU tensors that share no memory.
        description: Stored beside the tensors.
        kind: What the file holds; ``read_file`` refuses others.

    Raises:
        IsADirectoryError: If ``path`` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"Cannot save a {kind} file as '{path}', which is a folder.")
    metadata = {
        "format": f"{_FORMAT} {kind}",
        "format_version": _FORMAT_VERSION,
        "description": description,
        "sha256": content_digest(tensors, description),
    }
    write_whole(path, save(dict(tensors), metadata))  # `save_file` would hide it from other users


def read_file(path: Path, *, kind: str = "ticket") -> tuple[dict[str, Tensor], str]:
    """The tensors and the description that ``write_file`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If ``path`` is a folder.
        ValueError: If the file is of another kind, of another format version, or damaged.
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder. Give the {kind} file in it.")
    if not path.exists():
        raise FileNotFoundError(f"There is no {kind} file '{path}'.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, TypeError) as error:  # torch, if a size is none of its
        raise ValueError(
            f"'{path}' is no safetensors file, or it is damaged or cut off: {_first_line(error)}."
        ) from error
    _check_metadata(path, tensors, metadata, kind)
    return tensors, metadata["description"]


def _check_metadata(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], kind: str
) -> None:
    if metadata.get("format") != f"{_FORMAT} {kind}":
        raise ValueError(f"'{path}' is a safetensors file, but no {kind} of lightning-lth.")
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise ValueError(
            f"The {kind} in '{path}' has format version {version}, but lightning-lth "
            f"{__version__} reads version {_FORMAT_VERSION}. Install the release that wrote it."
        )
    if "description" not in metadata or metadata.get("sha256") != content_digest(
        tensors, metadata["description"]
    ):
        raise ValueError(f"The {kind} in '{path}' is damaged: its checksum does not match.")


def _first_line(error: Exception) -> str:
    """What torch says, without the C++ frames below it."""
    return str(error).partition("\n")[0]
