"""The weights of the best validation, kept in memory or in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from lightning_lth._tensor_files import read_file, write_file
from lightning_lth.snapshot import is_writable

_KIND = "best-weights"


@final
class BestWeights:
    """Copies of all parameters and buffers at one moment.

    Args:
        step: Optimizer step of that moment.
        value: Of the monitored metric; with the step it tells which validation it was.
        tensors: By name.

    Examples:
        >>> module = torch.nn.BatchNorm1d(2)
        >>> best = BestWeights.of(module, step=100, value=0.5)
        >>> _ = module(torch.randn(4, 2))  # moves the running statistics
        >>> best.restore_(module)
        >>> module.running_var
        tensor([1., 1.])
    """

    def __init__(self, step: int, value: float, tensors: Mapping[str, Tensor]) -> None:
        self.step = step
        self.value = value
        self.tensors = dict(tensors)

    @classmethod
    def of(cls, module: Module, *, step: int, value: float) -> BestWeights:
        """A copy of a module; buffers that its ``state_dict`` leaves out are in it, too."""
        copies = {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}
        return cls(step, value, copies)

    @torch.no_grad()
    def restore_(self, module: Module) -> None:
        """Copy the values back into the module's own tensors.

        Raises:
            ValueError: If names or shapes differ.
        """
        present = _tensors(module)
        shapes = {name: value.shape for name, value in self.tensors.items()}
        if shapes != {name: value.shape for name, value in present.items()}:
            wrong = sorted(
                name
                for name in shapes.keys() | present.keys()
                if name not in present or shapes.get(name) != present[name].shape
            )
            raise ValueError(
                f"The best weights are of another module: {wrong} differ in name or shape."
            )
        for name, value in self.tensors.items():
            if is_writable(present[name]):
                present[name].copy_(value)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            IsADirectoryError: If ``path`` is a folder.
            ValueError: If such a file cannot hold one of the tensors.
        """
        unfit = [name for name, value in self.tensors.items() if not _fits_file(value)]
        if unfit:
            raise ValueError(
                f"A safetensors file cannot hold {unfit}: sparse, quantized, of complex128 or on "
                f"the meta device. Leave out `best_weights_path`; memory and checkpoints can."
            )
        tensors = {name: value.cpu().contiguous() for name, value in self.tensors.items()}
        description = json.dumps({"step": self.step, "value": self.value})
        write_file(path, tensors, description, kind=_KIND)

    @classmethod
    def load(cls, path: Path) -> BestWeights:
        """Read what ``save`` wrote. Never unpickles.

        Raises:
            FileNotFoundError: If there is no such file.
            IsADirectoryError: If ``path`` is a folder.
            ValueError: If the file is another one, damaged, or its content is not valid.
        """
        tensors, description = read_file(path, kind=_KIND)
        try:
            step, value = _parse(description)
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"The best-weights in '{path}' are not valid: {error!r}.") from error
        return cls(step, value, tensors)

    def state_dict(self) -> dict[str, Any]:
        """Step, value and tensors."""
        return {"step": self.step, "value": self.value, "tensors": self.tensors}


def _tensors(module: Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _fits_file(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)
    return is_dense and tensor.dtype != torch.complex128


def _parse(description: str) -> tuple[int, float]:
    described = json.loads(description)
    step, value = described["step"], described["value"]
    if type(step) is not int or step < 0:
        raise ValueError(f"`step` must be an integer of at least 0, got {step!r}.")
    if type(value) not in (int, float):
        raise TypeError(f"`value` must be a number, got {value!r}.")
    return step, value
