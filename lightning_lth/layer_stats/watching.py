"""Hooks that collect what only a forward pass shows, and only while they are switched on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from lightning_lth.layer_stats.collecting import Collector, DropoutCollector, NormCollector, Switch
from lightning_lth.layer_stats.dropout import drop_probability, keep_statistics
from lightning_lth.layer_stats.layers import dropout_layers, normalization_layers
from lightning_lth.layer_stats.readings import Readings, joined
from lightning_lth.layer_stats.survey import is_compiled


@final
class Watch:
    """Watches the normalization and dropout layers of a network, on the batches that you choose.

    The hooks stay attached and do nothing until switched on, because a compiled network never
    sees hooks that come later. Create the watch and call ``prepare`` before the first batch,
    sanity check included. Switched on, they change neither outputs nor random numbers, and keep
    no reference to a batch. Inside ``nn.TransformerEncoderLayer``, which leaves its fast path in
    evaluation where hooks are attached, they are so only while ``is_on``, unless it is compiled.

    Attributes:
        is_on: Set it around the forward pass of a training batch to read. What checkpointing
            computes again in the backward pass is not read.
        is_evaluating: The same around the validation batches; they add up until they are read.

    Args:
        module: The network.
        activations: Also read mean and standard deviation of the input of every normalization
            layer while ``is_on``.

    Examples:
        >>> network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
        >>> watch = Watch(network)
        >>> watch.is_on = True
        >>> output = network(torch.ones(16, 2))
        >>> watch.is_on = False
        >>> watch.training_readings().to_numbers()[("1", "values_per_channel")]
        16.0
        >>> watch.release()

    Note:
        Not read are inputs that are no plain tensors of floating point (nested and distributed
        ones), and calls inside ``torch.func`` transforms.
    """

    def __init__(self, module: nn.Module, *, activations: bool = False) -> None:
        self._module = module
        self._switch = Switch()
        self._norms = {
            name: NormCollector(layer, self._switch, activations)
            for name, layer in normalization_layers(module).items()
            if activations or isinstance(layer, _BatchNorm)
        }
        self._dropouts = {
            name: DropoutCollector(layer, self._switch)
            for name, layer in dropout_layers(module).items()
        }
        self._activations = activations
        self._collectors: list[Collector] = [*self._norms.values(), *self._dropouts.values()]
        passing = _in_fast_paths(module)
        self._passing = [one for one in self._collectors if one.layer in passing]
        lasting = [one for one in self._collectors if one.layer not in passing]
        self._handles = [handle for collector in lasting for handle in collector.attach()]
        self._passing_handles: list[RemovableHandle] = []
        self.prepare()

    @property
    def is_on(self) -> bool:
        """Whether training batches are read."""
        return self._switch.is_on

    @is_on.setter
    def is_on(self, value: bool) -> None:
        self._switch.is_on = value
        _remove(self._passing_handles)
        training = [one for one in self._passing if value and one.layer.training]
        self._passing_handles += [handle for one in training for handle in one.attach()]

    @property
    def is_evaluating(self) -> bool:
        """Whether validation batches are read."""
        return self._switch.is_evaluating

    @is_evaluating.setter
    def is_evaluating(self, value: bool) -> None:
        self._switch.is_evaluating = value

    def prepare(self) -> None:
        """Collect on the device of the network, if that has moved, and for all its channels."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        for collector in self._collectors:
            collector.prepare(device)

    def release(self) -> None:
        """Switch off and detach the hooks; a second time does nothing."""
        self.is_on = self.is_evaluating = False
        _remove(self._handles)

    def training_readings(self) -> Readings:
        """What the training batches showed since the last call.

        Of dropout layers ``keep``, ``keep_low``, ``keep_high``, ``keep_z`` (see
        ``keep_statistics``) and ``var_shift`` (see ``variance_ratio``; not of alpha
        dropout, which is made to avoid it). Of batch normalization ``values_per_channel``, which
        each mean is taken over, the fewest of all calls; and with ``activations`` of every
        normalization ``input_mean`` and ``input_std``, averaged over the calls. NaN where nothing
        was seen.
        """
        return joined([self._dropout_readings(), *self._norm_readings()])

    def evaluation_readings(self) -> Readings:
        """How the inputs of batch normalization in validation differ from the running statistics.

        Over all watched batches since the last call together: ``train_eval_shift``, the mean over
        channels of ``max(r, 1 / r)`` with ``r`` the variance relative to ``running_var``, both
        unbiased; ``train_eval_ratio``, the geometric mean of ``r``, in which the noise of single
        channels cancels, while Dropout in front takes it below 1; and ``train_eval_mean_shift``,
        the root mean square of the mean's distance in standard deviations. NaN if nothing was
        watched, or there are no running statistics; the first two for one value per channel, too.

        Source:
            Li et al. 2019, arXiv:1801.05134: dropout in front shifts the variance.

        Note:
            ``eps`` is added to both variances, or dead channels would give infinity.
        """
        shifts = {
            name: norm.shifts_and_reset()
            for name, norm in self._norms.items()
            if isinstance(norm.layer, _BatchNorm)
        }
        return _table(shifts, ("train_eval_shift", "train_eval_ratio", "train_eval_mean_shift"))

    def _dropout_readings(self) -> Readings:
        if not self._dropouts:
            return _table({}, ())
        layers = {name: collector.layer for name, collector in self._dropouts.items()}
        totals = torch.stack([c.totals_and_reset() for c in self._dropouts.values()])
        probabilities = totals.new_tensor([1 - drop_probability(one) for one in layers.values()])
        columns = keep_statistics(totals[:, :2], probabilities)
        columns["var_shift"] = totals[:, 2] / totals[:, 3]
        rows = torch.stack([*columns.values()], 1)
        return _table(dict(zip(layers, rows, strict=True)), (*columns,))

    def _norm_readings(self) -> list[Readings]:
        counts = {
            name: norm.values_per_channel_and_reset() * _num_processes(norm.layer)
            for name, norm in self._norms.items()
            if isinstance(norm.layer, _BatchNorm)
        }
        readings = [_table(counts, ("values_per_channel",))]
        if self._activations:
            moments = {name: norm.moments_and_reset() for name, norm in self._norms.items()}
            readings.append(_table(moments, ("input_mean", "input_std")))
        return readings


def _in_fast_paths(module: nn.Module) -> set[nn.Module]:
    """Layers inside ``nn.TransformerEncoderLayer`` that are needed only in training."""
    if is_compiled(module):
        return set()
    encoders = [part for part in module.modules() if isinstance(part, nn.TransformerEncoderLayer)]
    layers = {layer for encoder in encoders for layer in encoder.modules()}
    return {layer for layer in layers if not isinstance(layer, _BatchNorm)}


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


def _num_processes(layer: nn.Module) -> int:
    """How many processes a batch normalization takes its statistics over."""
    if not isinstance(layer, nn.SyncBatchNorm) or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size(layer.process_group)


def _table(rows: Mapping[str, Tensor], statistics: tuple[str, ...]) -> Readings:
    """One row per layer as readings."""
    names = tuple((name, statistic) for name in rows for statistic in statistics)
    return Readings(names, torch.cat([*rows.values()]) if rows else torch.empty(0))
