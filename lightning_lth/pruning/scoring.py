"""Weights -> scores: which weights are worth keeping; a higher score is kept for longer."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from lightning_lth.pruning.sharding import local_part, placed_like

NOT_GIVEN: Mapping[str, Tensor] = {}  # the initial weights, to rules that do not look at them


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """Scores by parameter name, computed piece by piece so that no layer is ever copied whole.

    Scores are at least ``float32``: half-precision inputs are widened before ``function``.

    Args:
        inputs: Parameter name to the tensors that ``function`` takes, all of the same shape.
        function: Elementwise: is given equal-length pieces of the inputs, returns their scores.

    Raises:
        TypeError: If an input is not a tensor of real floating-point numbers.
        ValueError: If a parameter has no inputs, or inputs of several shapes.

    Examples:
        >>> scores = Scores({"weight": (torch.tensor([-3.0, 1.0]),)}, torch.abs)
        >>> scores.materialize()
        {'weight': tensor([3., 1.])}
    """

    inputs: Mapping[str, tuple[Tensor, ...]]
    function: Callable[..., Tensor]

    def __post_init__(self) -> None:
        for name, tensors in self.inputs.items():
            _check_inputs(name, tensors)

    @classmethod
    def of(cls, scores: Mapping[str, Tensor]) -> Scores:
        """Scores that exist already, one tensor for each parameter.

        Examples:
            >>> Scores.of({"weight": torch.tensor([0.5, -1.0])}).materialize()
            {'weight': tensor([ 0.5000, -1.0000])}
        """
        return cls({name: (tensor,) for name, tensor in scores.items()}, _identity)

    @property
    def names(self) -> list[str]:
        """The parameters with scores, in order."""
        return list(self.inputs)

    def shape(self, name: str) -> torch.Size:
        """The shape of the parameter; of all of it, if it is distributed."""
        return self.inputs[name][0].shape

    def dtype(self, name: str) -> torch.dtype:
        """What ``function`` is given: ``float64`` if any input is, otherwise ``float32``."""
        is_double = any(tensor.dtype == torch.float64 for tensor in self.inputs[name])
        return torch.float64 if is_double else torch.float32

    def device(self, name: str) -> torch.device:
        """Where the scores of the parameter are computed."""
        return self.inputs[name][0].device

    def reader(self, name: str) -> Callable[[slice], Tensor]:
        """A function from a slice of flat positions to the scores there.

        Positions count within this rank's shard if the parameter is distributed. Tensors that are
        not contiguous (``channels_last``) are copied for as long as the reader lives.

        Examples:
            >>> scores = magnitude({"weight": torch.tensor([[1.0, -2.0], [3.0, -4.0]])})
            >>> read = scores.reader("weight")
            >>> read(slice(1, 3))
            tensor([2., 3.])
        """
        flat = [local_part(tensor).detach().reshape(-1) for tensor in self.inputs[name]]
        dtype = self.dtype(name)
        return lambda where: self.function(*[tensor[where].to(dtype) for tensor in flat])

    def materialize(self) -> dict[str, Tensor]:
        """All the scores, shaped like the parameters; takes as much memory as the weights."""
        return {
            name: self.function(*[tensor.detach().to(self.dtype(name)) for tensor in tensors])
            for name, tensors in self.inputs.items()
        }


class Criterion(Protocol):
    """Scores the weights of a network; any function with this signature will do.

    Examples:
        >>> def shrinking_least(final, initial):
        ...     inputs = {name: (final[name], initial[name]) for name in final}
        ...     return Scores(inputs, lambda end, start: end.abs() / start.abs())
    """

    def __call__(self, final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
        """Score the weights.

        Args:
            final: Parameter name to trained weights; exactly these parameters are scored.
            initial: Parameter name to the weights before training; at least the names of ``final``.
        """


def magnitude(final: Mapping[str, Tensor], initial: Mapping[str, Tensor] = NOT_GIVEN) -> Scores:
    """``|final|``: keep the weights that end up far from zero. ``initial`` is not looked at.

    Examples:
        >>> magnitude({"weight": torch.tensor([-3.0, 1.0])}).materialize()
        {'weight': tensor([3., 1.])}

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635, section 1.
    """
    return Scores({name: (tensor,) for name, tensor in final.items()}, torch.abs)


def random(seed: int) -> Criterion:
    """Uniform scores in [0, 1) that depend on the seed and the parameter's name and shape alone.

    Neither the global random state nor the device, the order or the other parameters matter, and
    every rank of a distributed run draws the same.

    Args:
        seed: Any integer; use another one for each round and trial.

    Examples:
        >>> weights = {"weight": torch.zeros(3)}
        >>> first, again = random(7)(weights, weights), random(7)(weights, weights)
        >>> torch.equal(first.materialize()["weight"], again.materialize()["weight"])
        True
    """
    return functools.partial(_random, seed)


def _identity(scores: Tensor) -> Tensor:
    return scores


def _random(seed: int, final: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Scores:
    return Scores.of({name: _uniform(seed, name, weights) for name, weights in final.items()})


def _uniform(seed: int, name: str, weights: Tensor) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return placed_like(torch.rand(weights.shape, generator=generator), weights)


def _check_inputs(name: str, tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Inputs of {name!r} must be tensors, got {type(tensor).__name__}.")
        if not tensor.is_floating_point():
            raise TypeError(f"Inputs of {name!r} must be floating-point, got {tensor.dtype}.")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) != 1:
        raise ValueError(f"Inputs of {name!r} must be tensors of one shape, got shapes {shapes}.")
