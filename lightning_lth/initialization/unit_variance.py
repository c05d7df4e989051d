"""Units with mean 0 and variance 1 on data, and layers that learn at the same relative rate."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import torch
from torch import Generator, Tensor
from torch.nn import Module
from torch.nn.utils import parametrize

from lightning_lth.initialization.drawing import empty
from lightning_lth.initialization.layer_variance import (
    Change,
    Site,
    as_trained,
    find_sites,
    is_constant,
    mean_and_std,
    raw,
    rescale_,
    why_not,
)
from lightning_lth.initialization.passes import in_range, seeded, tensors_in
from lightning_lth.initialization.statistics import at_least_float32
from lightning_lth.initialization.writing import write_

_ROUNDING = 1e-6
_SMALLEST = 1 / 8  # share of a full step that is still tried


def data_dependent_(
    module: Module,
    run: Callable[[], object],
    layers: Mapping[str, str],
    *,
    seed: int,
    iterations: int = 10,
    tolerance: float = 0.01,
    kept_biases: Collection[str] = (),
) -> dict[str, str]:
    """Normalize every unit on a batch, then make all layers change at the same relative rate.

    Within layers, in one forward pass that goes on corrected: each unit (channel) gets variance 1
    over batch and positions, and mean 0 if its layer has a bias that is trained. Between layers:
    each weight gets a factor, so that ``rms(gradient) / rms(weight)`` is the same everywhere while
    the outputs of the last layer keep their scale; biases follow, so that means stay 0.

    If the layers in between are homogeneous (ReLU, pooling), the second step does not change what
    the module computes. Else it does, and cannot always reach its aim: with residual branches
    or saturated units it ends at the best that it found. In front of normalization it is free.

    Args:
        module: Is changed in place. Put into train mode, and left there, unless it is in it.
        run: Calls the module once on a batch, always the same, and returns outputs or the loss.
        layers: Layer name, without ``_orig_mod``, to the attribute of the weight to scale. A bias
            is written if it requires a gradient.
        seed: Of the standard normal gradients with respect to what ``run`` returns, and of dropout,
            which is the same in all passes. The size of the gradient of a loss does not matter.
        iterations: At most so many changes between layers; 0 leaves the second step out.
        tolerance: The second step ends when all ratios are so close, relatively, to their
            geometric mean.
        kept_biases: Names of layers whose bias is not written.

    Returns:
        Layer name to reason, for the layers that were not, or not fully, brought into line.

    Examples:
        >>> layer = torch.nn.Linear(1, 1)
        >>> batch = torch.tensor([[1.0], [3.0]])
        >>> data_dependent_(layer, lambda: layer(batch), {"": "weight"}, seed=0, iterations=0)
        {}
        >>> layer(batch).flatten().abs().round(decimals=4).tolist()
        [1.0, 1.0]

    Note:
        A weight is multiplied by the root of its ratio over the geometric mean, as in the authors'
        code (magic_init), which is exact for homogeneous networks. A change that does not help
        is taken back and halved. The authors draw the scale of the output to 1; here it is held.
        They multiply biases by the change of the signal, which is the same if homogeneous.

    Source:
        Krähenbühl et al. 2015, arXiv:1511.06856: algorithms 1 and 2, without PCA and k-means.
    """
    with as_trained(module):
        normal = _Normalization()
        sites = find_sites(module, layers, kept_biases)
        same = functools.partial(seeded, run, seed)
        failed = rescale_(same, sites, normal)
        if iterations == 0:
            return normal.notes | failed
        # A pass went through `scales` in order of execution.
        by_name = {site.name: site for site in sites}
        usable = [by_name[name] for name in normal.scales if name not in failed]
        rates = _Rates(same, usable, normal.scales, seed)
        return normal.notes | failed | rates.balance_(iterations, tolerance)


@final
class _Normalization:
    """Decides in the first step; keeps the scales that it leaves behind."""

    def __init__(self) -> None:
        self.scales: dict[str, float] = {}
        self.notes: dict[str, str] = {}

    def __call__(self, site: Site, signal: Tensor) -> Change | str:
        if site.positions is None:
            return f"which dimension of {type(site.layer).__name__} has the units is not known"
        mean, std = _of_units(site, signal)
        constant = is_constant(mean, std)
        reason = why_not(mean, std)
        if reason:
            return reason
        if bool(constant.any()):
            self.notes[site.name] = f"{int(constant.sum())} of {len(std)} units are constant"
        factor = torch.where(constant, torch.ones_like(std), 1 / std)
        self.scales[site.name] = _rms(std * factor)
        return Change(factor, -mean * factor if site.free_bias is not None else None)


@final
class _Rates:
    """Layers whose relative rates of change are to become the same.

    Args:
        run: A forward pass.
        sites: The layers in order of execution.
        scales: The standard deviation of their units, pooled.
        seed: Of the gradients that start the backward pass.
    """

    def __init__(
        self, run: Callable[[], object], sites: list[Site], scales: Mapping[str, float], seed: int
    ) -> None:
        self._run = run
        self._sites = sites
        self._scales = {site.name: scales[site.name] for site in sites}
        self._seed = seed

    def balance_(self, iterations: int, tolerance: float) -> dict[str, str]:
        """Rescale until the rates are the same; says whose are not."""
        rates = self._log_rates()
        notes = {name: "no gradient arrives" for name in self._scales if name not in rates}
        if len(rates) < 2:
            return notes
        last = next(name for name in reversed(self._scales) if name in rates)
        strength, scale = 1.0, self._scales[last]
        for _ in range(iterations):
            if strength < _SMALLEST or max(map(abs, _gaps(rates).values())) < tolerance:
                break
            weights = self._values()
            self._rescale_({name: strength / 2 * gap for name, gap in _gaps(rates).items()})
            self._hold_(last, scale, list(rates), tolerance)
            new = self._log_rates()
            if new.keys() == rates.keys() and _spread(new) < (1 - strength / 2) * _spread(rates):
                rates = new
                continue
            self._restore_(weights)
            strength /= 2
        return notes | _unbalanced(rates, tolerance)

    def _rescale_(self, logs: Mapping[str, float]) -> None:
        """Multiply weights by ``exp(logs)``; biases again make up for the mean."""

        def decide(site: Site, signal: Tensor) -> Change | str:
            mean, std = _of_units(site, signal)
            factor = torch.full_like(mean[0], math.exp(logs.get(site.name, 0.0)))
            self._scales[site.name] = _rms(std * factor)
            return Change(factor, -mean * factor if site.free_bias is not None else None)

        rescale_(self._run, self._sites, decide)

    def _hold_(self, last: str, scale: float, names: list[str], tolerance: float) -> None:
        """Give the output of the last layer its scale back, with all layers if they let it."""
        order = float(len(names))  # the power of a common factor that the output goes with
        drift = _log(self._scales[last] / scale)
        for _ in range(3):
            if not abs(drift) > tolerance / 10:  # or not a number
                break
            self._rescale_(dict.fromkeys(names, -drift / order))
            rest = _log(self._scales[last] / scale)
            order = max((drift - rest) * order / drift, 0.5)
            drift = rest
        if abs(drift) > _ROUNDING:
            self._rescale_({last: -drift})

    def _log_rates(self) -> dict[str, float]:
        """Logarithms of ``rms(gradient) / rms(weight)``, where a gradient arrives."""
        weights: dict[str, Tensor] = {}

        def hook(site: Site, *_: Any) -> None:
            weights.setdefault(site.name, getattr(site.layer, site.attribute))

        with contextlib.ExitStack() as stack:
            for site in self._sites:
                own = functools.partial(hook, site)
                stack.enter_context(site.host.register_forward_hook(own))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(parametrize.cached())  # the hooks get the tensors that are used
            loss = _loss(self._run(), self._seed)
            used = {name: weight for name, weight in weights.items() if weight.requires_grad}
            if not loss.requires_grad or not used:
                return {}
            found = torch.autograd.grad(loss, list(used.values()), allow_unused=True)
        gradients = dict(zip(used, found, strict=True))
        rates = {
            site.name: _log_rate(used[site.name], gradients[site.name])
            for site in self._sites
            if site.name in used
        }
        return {name: rate for name, rate in rates.items() if math.isfinite(rate)}

    def _values(self) -> list[tuple[Site, Tensor, Tensor | None]]:
        return [
            (
                site,
                raw(site.layer, site.attribute).clone(),
                None if site.free_bias is None else site.free_bias.detach().clone(),
            )
            for site in self._sites
        ]

    def _restore_(self, values: list[tuple[Site, Tensor, Tensor | None]]) -> None:
        for site, weight, bias in values:
            write_(site.layer, site.attribute, weight)
            if bias is not None:
                write_(site.layer, "bias", bias)


def _of_units(site: Site, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every unit, over batch and positions."""
    units = signal.dim() - 1 - (site.positions or 0)
    if signal.dim() == 1:  # a vector without a batch, which is a batch of one
        signal, units = signal.unsqueeze(0), 1
    return mean_and_std(signal, [dim for dim in range(signal.dim()) if dim != units])


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _gaps(rates: Mapping[str, float]) -> dict[str, float]:
    mean = sum(rates.values()) / len(rates)
    return {name: rate - mean for name, rate in rates.items()}


def _spread(rates: Mapping[str, float]) -> float:
    return math.hypot(*_gaps(rates).values())


def _unbalanced(rates: Mapping[str, float], tolerance: float) -> dict[str, str]:
    return {
        name: f"its relative rate of change is {math.exp(gap):.3g} times the average"
        for name, gap in _gaps(rates).items()
        if abs(gap) >= tolerance
    }


def _loss(output: object, seed: int) -> Tensor:
    """A scalar whose gradient with respect to the outputs is standard normal."""
    generator = Generator("cpu").manual_seed(in_range(seed))  # so the same for every device
    floating = (at_least_float32(t) for t in tensors_in(output) if t.is_floating_point())
    terms = [
        (tensor * empty(tensor.shape).normal_(generator=generator).to(tensor.device)).sum()
        for tensor in floating
    ]
    return sum(terms, empty(()).zero_())


def _log_rate(weight: Tensor, gradient: Tensor | None) -> float:
    if gradient is None:
        return math.nan
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    weight = weight.detach()
    gradient = gradient * (weight != 0)  # not of those that are pruned
    rate = at_least_float32(gradient).norm() / at_least_float32(weight).norm()
    return float(rate.log())
