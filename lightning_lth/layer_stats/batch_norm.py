"""What batch normalization does: its state, and how batches differ from the running statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from lightning_lth.layer_stats.layers import Spans
from lightning_lth.layer_stats.readings import Readings, joined

STATISTICS = ("drift_mean", "drift_logvar", "step_shift", "batches_tracked")


@final
class BatchNormState(Enum):
    """Which statistics normalize a layer, and whether the running ones move, in its present mode.

    What differs in both comes first: with momentum 0 and a frozen scale it is ``PINNED``.
    """

    TRACKING = "tracking"
    """Training: the batch's normalize, the running ones follow."""
    CUMULATIVE = "cumulative"
    """The same with ``momentum=None``: the running ones are the mean of all batches."""
    AFFINE_FROZEN = "affine frozen"
    """Training after ``requires_grad_(False)``: scale and offset rest, the running ones follow."""
    PINNED = "pinned"
    """Training with ``momentum=0``: the batch's normalize, the running ones rest."""
    UNFOLLOWED = "unfollowed"
    """Training with ``track_running_stats`` set to False later, as by Lightning's
    ``freeze(train_bn=False)``: the batch's normalize, but in evaluation the resting old ones."""
    UNTRACKED = "untracked"
    """Training without running statistics: the batch's normalize."""
    UNTRACKED_EVALUATION = "untracked evaluation"
    """Evaluation without running statistics: the batch's normalize there too."""
    EVALUATION = "evaluation"
    """Evaluation, or ``layer.eval()`` in training: the running ones normalize and rest."""
    FIXED = "fixed"
    """No momentum, as torchvision's ``FrozenBatchNorm2d``: the running ones normalize always."""

    @property
    def normalizes_with_batch(self) -> bool:
        """Whether the batch's own statistics normalize it; otherwise the running ones do."""
        return self not in (BatchNormState.EVALUATION, BatchNormState.FIXED)

    @property
    def moves_buffers(self) -> bool:
        """Whether a forward pass changes the running mean and variance."""
        return self in (
            BatchNormState.TRACKING,
            BatchNormState.CUMULATIVE,
            BatchNormState.AFFINE_FROZEN,
        )


def state_of(layer: Module) -> BatchNormState:
    """The state of a batch-norm layer, from its attributes alone.

    Examples:
        >>> state_of(torch.nn.BatchNorm1d(2).eval())
        <BatchNormState.EVALUATION: 'evaluation'>
    """
    if not hasattr(layer, "momentum"):
        return BatchNormState.FIXED
    has_buffers = getattr(layer, "running_mean", None) is not None
    if not layer.training:
        return BatchNormState.EVALUATION if has_buffers else BatchNormState.UNTRACKED_EVALUATION
    if not has_buffers:
        return BatchNormState.UNTRACKED
    if not getattr(layer, "track_running_stats", True):
        return BatchNormState.UNFOLLOWED
    if layer.momentum == 0:
        return BatchNormState.PINNED
    parameters = list(layer.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return BatchNormState.AFFINE_FROZEN
    return BatchNormState.CUMULATIVE if layer.momentum is None else BatchNormState.TRACKING


def momentum_horizon(layer: Module) -> float:
    """Over how many forward passes the running statistics reach back.

    Returns:
        ``1 / momentum``; infinity for 0 or none at all. For ``momentum=None`` the number of passes
        so far, for which it waits for the device; NaN if the layer does not count them.

    Examples:
        >>> momentum_horizon(torch.nn.BatchNorm1d(2, momentum=0.1))
        10.0
    """
    momentum: Any = getattr(layer, "momentum", 0.0)
    if momentum is None:
        tracked: Any = getattr(layer, "num_batches_tracked", None)
        return math.nan if tracked is None else float(tracked)
    return 1 / momentum if momentum else math.inf


def is_warmed_up(layer: Module, batches_tracked: float) -> bool:
    """Whether the running statistics have all but forgotten their start from 0 and 1.

    Args:
        layer: A batch-norm layer.
        batches_tracked: As read by ``BatchNormReader``; asking the layer waits for the device.

    Returns:
        Whether it saw more than ``3 / momentum`` batches: at most 5 % is left of the start. With
        ``momentum=None``, which forgets the start at once, more than 3.

    Examples:
        >>> is_warmed_up(torch.nn.BatchNorm1d(2, momentum=0.1), 30.0)
        False
    """
    is_cumulative = getattr(layer, "momentum", 0.0) is None
    return batches_tracked > 3 * (1 if is_cumulative else momentum_horizon(layer))


@final
class BatchNormReader:
    """Compares batches with the running statistics, from the buffers alone: no hook, no forward.

    Call ``before`` and ``after`` around forward passes in training; what they averaged into
    the buffers follows from the difference. Neither waits for the device, unless ``momentum`` or
    ``eps`` changed. Works under ``torch.compile``.

    Args:
        layers: Name to layer. Only subclasses of torch's batch norm are read. Instance norm is not:
            it does not count its forward passes.

    Examples:
        >>> layer = torch.nn.BatchNorm1d(1)
        >>> reader = BatchNormReader({"bn": layer})
        >>> reader.before()
        >>> _ = layer(torch.tensor([[1.0], [3.0]]))
        >>> round(reader.after().to_numbers()[("bn", "drift_mean")], 3)  # batch 2, running 0 and 1
        2.0

    Note:
        Several passes between the two (accumulation, checkpointing, a second forward) give their
        mean weighted by ``(1 - momentum) ** age``; of the variances too, so it lacks the spread of
        their means. With DDP only rank 0 is right: the others' buffers are overwritten. Rounding
        of the buffers is multiplied by ``1 / momentum``: half-precision buffers give about two
        digits. ``momentum`` is taken as it is in ``after``.
    """

    def __init__(self, layers: Mapping[str, Module]) -> None:
        self._layers = {n: layer for n, layer in layers.items() if isinstance(layer, _BatchNorm)}
        self._start: dict[torch.device, _Buffers] | None = None
        self._groups: dict[torch.device, _Group] = {}

    @torch.no_grad()
    def before(self) -> None:
        """Keep copies of the running statistics."""
        self._start = _copies(self._layers)

    @torch.no_grad()
    def after(self) -> Readings:
        """Compare the forward passes since ``before`` with the running statistics before them.

        * ``drift_mean``: root mean square, over channels, of (batch mean - running mean) in
          running standard deviations.
        * ``drift_logvar``: mean of abs(log(batch variance / running variance)), both unbiased.
        * ``step_shift``: mean of KL(p, q) + KL(q, p), for the Gaussians of this read and of the
          layer's previous one.
        * ``batches_tracked``: the layer's count of forward passes.

        Returns:
            NaN where no forward pass moved the buffers, and for ``step_shift`` at the first read.
            Layers without buffers are left out.

        Raises:
            RuntimeError: Without a call of ``before`` since the last one.
        """
        if self._start is None:
            raise RuntimeError("`after` needs buffers to compare with. Call `before` first.")
        start, self._start = self._start, None
        parts = []
        for device, end in _copies(self._layers).items():
            known = self._groups.get(device)
            if known is None or known.widths != end.widths:
                known = self._groups[device] = _Group(end.widths, device)
            if device in start and start[device].widths == end.widths:
                known.set(self._layers)
                parts.append(known.read(start[device], end))
        return joined(parts)


@dataclass(frozen=True, eq=False)
class _Buffers:
    """The running statistics of layers on one device: means and variances of shape (2, C)."""

    widths: dict[str, int]
    moments: Tensor
    num_batches: Tensor


def _copies(layers: Mapping[str, _BatchNorm]) -> dict[torch.device, _Buffers]:
    groups: dict[torch.device, dict[str, tuple[Tensor, Tensor, Tensor]]] = {}
    for name, layer in layers.items():
        buffers = layer._buffers  # asking for attributes takes longer than all the arithmetic
        mean, var = buffers.get("running_mean"), buffers.get("running_var")
        count = buffers.get("num_batches_tracked")
        if mean is not None and var is not None and count is not None and not is_lazy(mean):
            groups.setdefault(mean.device, {})[name] = mean, var, count
    return {device: _end_to_end(buffers) for device, buffers in groups.items()}


def _end_to_end(buffers: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> _Buffers:
    means, variances, counts = zip(*buffers.values(), strict=True)
    widths = {name: mean.numel() for name, (mean, _, _) in buffers.items()}
    moments = torch.cat([*means, *variances]).float().view(2, -1)
    return _Buffers(widths, moments, torch.stack(counts))


class _Group:
    """The layers on one device: their constants, and the batch of the previous read."""

    def __init__(self, widths: dict[str, int], device: torch.device) -> None:
        self.widths, self._device = widths, device
        self._of_channels = Spans([*widths.values()], device)
        self._of_statistics = Spans([*widths.values()] * 3, device)
        self._settings: list[tuple[float | None, float]] = []
        self._previous = _floats(torch.nan, device).repeat(2, sum(widths.values()))

    def set(self, layers: Mapping[str, _BatchNorm]) -> None:
        """Take over momentum and eps, if they changed."""
        settings = [(layers[name].momentum, layers[name].eps) for name in self.widths]
        if settings != self._settings:
            self._settings = settings
            retained = [_log_retained(momentum) for momentum, _ in settings]
            self._log_retained = _floats(retained, self._device)
            eps = _floats([eps for _, eps in settings], self._device)
            self._eps = self._of_channels.spread(eps)

    def read(self, start: _Buffers, end: _Buffers) -> Readings:
        weight = self._of_channels.spread(self._weight(start.num_batches, end.num_batches))
        batch = torch.addcdiv(start.moments, end.moments - start.moments, weight)
        batch[1].clamp_(min=0).add_(self._eps)  # rounding can take the variance below 0
        values = self._compare(batch, start.moments[0], start.moments[1] + self._eps)
        self._previous = torch.where(batch.isnan(), self._previous, batch)
        names = tuple((name, statistic) for statistic in STATISTICS for name in self.widths)
        return Readings(names, torch.cat([values, end.num_batches]))

    def _weight(self, start: Tensor, end: Tensor) -> Tensor:
        """The share that the new batches have in each layer's running statistics; NaN if none."""
        passes = (end - start).float()
        # 1 - (1 - momentum) ** passes, without loss of digits for a small momentum.
        weight = -torch.expm1(passes * self._log_retained)
        weight = torch.where(self._log_retained == math.inf, passes / end, weight)
        return torch.where(weight > 0, weight, torch.nan)

    def _compare(self, batch: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        (mean, var), (old_mean, old_var) = batch, self._previous
        square = (mean - running_mean).square_().div_(running_var)
        log_ratio = (var / running_var).log_().abs_()
        # KL(p, q) + KL(q, p), in a form that loses no digits when p is almost q.
        gap = ((var - old_var) / var).mul_((var - old_var) / old_var)
        shift = (mean - old_mean).square_().mul_(1 / var + 1 / old_var).add_(gap).div_(2)
        values = self._of_statistics.means(torch.cat([square, log_ratio, shift]))
        values[: len(self.widths)].sqrt_()
        return values


def _floats(values: float | list[float], device: torch.device) -> Tensor:
    """Whatever the default dtype is."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def _log_retained(momentum: float | None) -> float:
    """log(1 - momentum), and infinity for ``None``."""
    if momentum is None:
        return math.inf
    if momentum >= 1:
        return -math.inf if momentum == 1 else math.nan
    return math.log1p(-momentum)
