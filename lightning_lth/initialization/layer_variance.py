"""LSUV, and how a layer is rescaled in the middle of a forward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import Module, Parameter
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from lightning_lth.initialization.passes import eager, saved_weights
from lightning_lth.initialization.statistics import at_least_float32
from lightning_lth.initialization.writing import effective, name_of, pruning_mask, write_

_TABLES = (nn.Embedding, nn.EmbeddingBag)
_DENSE = (nn.Linear, nn.Bilinear, *_TABLES)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR_FORWARDS = {kind.forward for kind in (*_DENSE, *_CONVOLUTIONS, *_TRANSPOSED)}
_CONSTANT = 1e-6  # std relative to the mean; below it float32 shows its rounding


def lsuv_(module: Module, run: Callable[[], object], layers: Mapping[str, str]) -> dict[str, str]:
    """Divide each weight by the standard deviation of its layer's output, in one forward pass.

    The pass goes on with the corrected output, so that later layers, and normalization, already
    see the new scale. A layer that is called several times is scaled at its first call. The bias
    is left out of the standard deviation and stays as it is.

    Args:
        module: Is changed in place. Put into train mode, and left there, unless it is in it.
        run: Calls the module once on a batch.
        layers: Layer name, without ``_orig_mod``, to the attribute of the weight to scale.

    Returns:
        Layer name to reason, for the layers that keep their weight.

    Examples:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 8.0)
        >>> lsuv_(layer, lambda: layer(torch.tensor([[-2.0], [2.0]])), {"": "weight"})
        {}
        >>> layer.weight.item()  # the output was -16 and 16
        0.5

    Note:
        The source starts from orthonormal weights, and repeats forward passes until the variance
        is within a tolerance; one pass that goes on corrected meets it exactly.

    Source:
        Mishkin & Matas 2015, arXiv:1511.06422: algorithm 1.
    """
    with as_trained(module):
        return rescale_(run, find_sites(module, layers), _to_unit_std)


def _to_unit_std(site: Site, signal: Tensor) -> Change | str:
    mean, std = mean_and_std(signal)
    return why_not(mean, std) or Change(1 / std)


def mean_and_std(signal: Tensor, dims: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Over these dimensions, or all; on a CPU this is faster than ``torch.var_mean``.

    Examples:
        >>> mean_and_std(torch.tensor([1.0, 3.0]))
        (tensor(2.), tensor(1.))
    """
    dims = dims or range(signal.dim())
    mean = signal.mean(tuple(dims), keepdim=True)
    std = (signal - mean).square_().mean(tuple(dims)).sqrt()
    return mean.reshape(std.shape), std


def is_constant(mean: Tensor, std: Tensor) -> Tensor:
    """Whether there is nothing but rounding in a standard deviation."""
    return std <= _CONSTANT * mean.abs()


def why_not(mean: Tensor, std: Tensor) -> str:
    """Why an output cannot be scaled; empty if it can."""
    if not bool(std.isfinite().all()):
        return "output is not finite"
    return "output is constant" if bool(is_constant(mean, std).all()) else ""


@final
@dataclass(frozen=True, eq=False)
class Site:
    """A layer that may be rescaled.

    Attributes:
        name: Of the layer.
        layer: Has the weight.
        attribute: Of the weight.
        host: Returns the output: the layer itself, but the attention layer around an ``out_proj``,
            which uses that without calling it.
        keeps_bias: Whether the bias must stay, even if it is trained.
    """

    name: str
    layer: Module
    attribute: str
    host: Module
    keeps_bias: bool = False

    @property
    def positions(self) -> int | None:
        """Dimensions of the output after that of the units; ``None`` for unknown types."""
        if isinstance(self.layer, _ConvNd):
            return len(self.layer.kernel_size)
        return 0 if isinstance(self.layer, _DENSE) else None

    @property
    def bias(self) -> Tensor | None:
        """What the layer adds, one number per unit."""
        if self.positions is None or getattr(self.layer, "bias", None) is None:
            return None
        return at_least_float32(effective(self.layer, "bias"))

    @property
    def free_bias(self) -> Parameter | None:
        """The bias, if it may be written."""
        if self.keeps_bias or self.positions is None:
            return None
        bias = self.layer._parameters.get("bias")
        return bias if bias is not None and bias.requires_grad else None

    @property
    def is_linear(self) -> bool:
        """Whether the output is bound to be linear in the weight."""
        own = type(self.layer).forward if "forward" not in vars(self.layer) else None
        is_parametrized = parametrize.is_parametrized(self.layer, self.attribute)
        return own in _LINEAR_FORWARDS and not is_parametrized

    def per_unit(self, values: Tensor) -> Tensor:
        """Shape one number per unit to be combined with the output; one in all stays so."""
        return values if values.dim() == 0 else values.reshape(-1, *[1] * (self.positions or 0))

    def per_row(self, values: Tensor) -> Tensor:
        """Shape one number per unit to be combined with the weight; one in all stays so."""
        if values.dim() == 0 or isinstance(self.layer, _TABLES):
            return values
        weight = raw(self.layer, self.attribute)
        if not isinstance(self.layer, _ConvTransposeNd):
            return values.reshape(-1, *[1] * (weight.dim() - 1))
        groups = self.layer.groups  # the weight is (groups x inputs, outputs, ...)
        rows = values.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
        return rows.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


@final
@dataclass(frozen=True, eq=False)
class Change:
    """What happens to a layer.

    Attributes:
        factor: Of the weight: one number in all, or one per unit.
        bias: New values, one per unit; ``None`` leaves the old ones.
    """

    factor: Tensor
    bias: Tensor | None = None


Decide = Callable[[Site, Tensor], Change | str]


def raw(layer: Module, attribute: str) -> Tensor:
    """Like ``effective``, but with the values that are pruned, which stay of use."""
    if pruning_mask(layer, attribute) is None:
        return effective(layer, attribute)
    return cast(Tensor, getattr(layer, f"{attribute}_orig")).detach()


def find_sites(
    module: Module, layers: Mapping[str, str], kept_biases: Collection[str] = ()
) -> list[Site]:
    """Look layers up by name."""
    # A compiled module comes before the module inside it, which gets the same name and stays.
    modules = {name_of(name): layer for name, layer in module.named_modules()}
    return [
        Site(name, modules[name], attribute, _host(name, modules), name in kept_biases)
        for name, attribute in layers.items()
    ]


def _host(name: str, modules: Mapping[str, Module]) -> Module:
    parent, _, own = name.rpartition(".")
    around = modules.get(parent)
    is_inside = own == "out_proj" and isinstance(around, nn.MultiheadAttention)
    return around if around is not None and is_inside else modules[name]


@contextlib.contextmanager
def as_trained(module: Module) -> Iterator[None]:
    """Run a module in train mode, but parts as they are if it is in it; not compiled or fused."""
    if not module.training:
        module.train()
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eager():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@torch.no_grad()
def rescale_(run: Callable[[], object], sites: Sequence[Site], decide: Decide) -> dict[str, str]:
    """Change layers when a forward pass comes to them; it goes on with their new output.

    Args:
        run: Calls the module once.
        sites: Layers to change, each at its first call.
        decide: Gets the output less the bias, in ``float32`` at least; returns what to change, or
            why nothing.

    Returns:
        Layer name to reason, for the layers that are as they were.
    """
    notes = {site.name: "not called as a module" for site in sites}
    called: set[Site] = set()

    def hook(site: Site, host: Module, args: Any, kwargs: Any, output: Any) -> Any:
        if site in called:
            return output
        called.add(site)
        again = functools.partial(host.forward, *args, **kwargs)
        with torch.no_grad():
            output, notes[site.name] = _visit_(site, decide, output, again)
        return output

    with contextlib.ExitStack() as hooks:
        for site in sites:
            own = functools.partial(hook, site)
            hooks.enter_context(site.host.register_forward_hook(own, with_kwargs=True))
        run()
    return {name: note for name, note in notes.items() if note}


def _visit_(site: Site, decide: Decide, output: Any, again: Callable[[], Any]) -> tuple[Any, str]:
    """The output from now on, and why that is the old one."""
    if isinstance(site.host, nn.MultiheadAttention):
        first, note = _change_(site, decide, output[0], lambda: again()[0])
        return (first, *output[1:]), note
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output, "output is not a tensor of real numbers"
    return _change_(site, decide, output, again)


def _change_(
    site: Site, decide: Decide, output: Tensor, again: Callable[[], Tensor]
) -> tuple[Tensor, str]:
    old_bias = site.bias
    signal = at_least_float32(output)
    signal = signal if old_bias is None else signal - site.per_unit(old_bias)
    change = decide(site, signal)
    if isinstance(change, str):
        return output, change
    expected = signal * site.per_unit(change.factor)
    bias = old_bias if change.bias is None else change.bias
    expected = expected if bias is None else expected + site.per_unit(bias)
    return _write_(site, change, output, expected.to(output.dtype), again)


def _write_(
    site: Site, change: Change, output: Tensor, expected: Tensor, again: Callable[[], Tensor]
) -> tuple[Tensor, str]:
    restore_ = saved_weights(site.layer)
    weight = at_least_float32(raw(site.layer, site.attribute)) * site.per_row(change.factor)
    note = write_(site.layer, site.attribute, weight)
    if change.bias is not None:
        write_(site.layer, "bias", change.bias)
    if not note and not site.is_linear:
        new = again()
        note = "" if _is_close(new, expected) else "output does not follow the scale of the weight"
        expected = new
    if not note:
        return expected, ""
    restore_()
    return output, note


def _is_close(output: Tensor, expected: Tensor) -> bool:
    return bool((output - expected).norm() <= 0.01 * expected.norm())
