"""Rewind points: what training depends on at one step, copied, and put back later."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch

from lightning_lth.pruning.parameters import named_parameters, strip_compiled
from lightning_lth.pruning.sharding import is_distributed, placed_like, whole
from lightning_lth.snapshot import Stateful, is_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer


@final
@dataclass(frozen=True, eq=False)
class RewindPoint:
    """A copy of everything that training depends on at one step, but for random states.

    Restoring it and feeding the same batches replays training bit for bit, dropout included if the
    random states are the same. Copies live on the CPU, and neither training nor restoring changes
    them.

    Attributes:
        weights: Parameter name to values, without the ``_orig_mod.`` of compiled modules.
        buffers: The same for all buffers, non-persistent ones included.
        trainable: Parameter name to ``requires_grad``.
        optimizers: State dict of each optimizer.
        schedulers: State dict of each LR scheduler.
        scaler: State dict of the gradient scaler; empty without one.

    Examples:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> point = RewindPoint.capture(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(7.0)
        >>> point.restore_(layer)
        >>> bool((layer.weight == 7.0).any())
        False

    Source:
        Frankle et al. 2019, arXiv:1903.01611: section 3 (rewinding to iteration k).
    """

    weights: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    trainable: Mapping[str, bool]
    optimizers: Sequence[dict[str, Any]] = ()
    schedulers: Sequence[dict[str, Any]] = ()
    scaler: Mapping[str, Any] | None = None

    @classmethod
    def capture(
        cls,
        module: Module,
        optimizers: Sequence[Optimizer] = (),
        schedulers: Sequence[Stateful] = (),
        scaler: Stateful | None = None,
    ) -> RewindPoint:
        """Copy the present state; nothing is changed.

        Args:
            module: Its parameters and all of its buffers are copied.
            optimizers: Their state dicts are copied, hyperparameters included.
            schedulers: Likewise.
            scaler: Likewise; anything with a state dict.
        """
        return cls(
            weights=_copied(named_parameters(module)),
            buffers=_copied(_named_buffers(module)),
            trainable={name: p.requires_grad for name, p in named_parameters(module).items()},
            optimizers=[_copied(optimizer.state_dict()) for optimizer in optimizers],
            schedulers=[_copied(scheduler.state_dict()) for scheduler in schedulers],
            scaler=_copied(scaler.state_dict()) if scaler is not None else None,
        )

    def restore_(
        self,
        module: Module,
        optimizers: Sequence[Optimizer] = (),
        schedulers: Sequence[Stateful] = (),
        scaler: Stateful | None = None,
    ) -> None:
        """Put everything back, in place: the tensors of the module stay the same objects.

        Raises:
            ValueError: If the module, the number of optimizers or schedulers, or the parameter
                groups are not those that were captured, apart from groups added since. Nothing is
                changed then.
        """
        self._check(module, optimizers, schedulers)
        _write(self.weights, named_parameters(module))
        _write(self.buffers, _named_buffers(module))
        for name, parameter in named_parameters(module).items():
            parameter.requires_grad_(self.trainable[name])
        for optimizer, state in zip(optimizers, self.optimizers, strict=True):
            _restore_optimizer_(optimizer, state)
        for scheduler, scheduler_state in zip(schedulers, self.schedulers, strict=True):
            scheduler.load_state_dict(copy.deepcopy(scheduler_state))
        if scaler is not None and self.scaler:
            scaler.load_state_dict(copy.deepcopy(dict(self.scaler)))

    def restore_schedule_(
        self, optimizers: Sequence[Optimizer], schedulers: Sequence[Stateful]
    ) -> None:
        """Put back the learning rates alone: schedulers and optimizer hyperparameters.

        Weights, buffers, momentum and every other optimizer state stay.

        Source:
            Renda et al. 2020, arXiv:2003.02389: section 2 (learning rate rewinding).
        """
        for optimizer, state in zip(optimizers, self.optimizers, strict=True):
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
                group.update(_settings(saved, group))
        for scheduler, scheduler_state in zip(schedulers, self.schedulers, strict=True):
            scheduler.load_state_dict(copy.deepcopy(scheduler_state))

    def weights_like(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The copied weights of some parameters, each placed like its tensor when it is read."""
        return _Placed(self.weights, tensors)

    def state_dict(self) -> dict[str, Any]:
        """The point as plain dictionaries of tensors and numbers, for a checkpoint.

        Shards of distributed tensors are gathered: every rank has to call it.
        """
        return {
            "weights": {name: whole(value) for name, value in self.weights.items()},
            "buffers": {name: whole(value) for name, value in self.buffers.items()},
            "trainable": dict(self.trainable),
            "optimizers": [_mapped(state, whole) for state in self.optimizers],
            "schedulers": list(self.schedulers),
            "scaler": self.scaler,
        }

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> RewindPoint:
        """The point that ``state_dict`` described; copies, so that the two share nothing."""
        return cls(**_copied(dict(state_dict)))

    def _check(
        self, module: Module, optimizers: Sequence[Optimizer], schedulers: Sequence[Stateful]
    ) -> None:
        for kind, saved, present in (
            ("parameters", self.weights, named_parameters(module)),
            ("buffers", self.buffers, _named_buffers(module)),
        ):
            changed = sorted(
                name
                for name in saved.keys() | present.keys()
                if name not in saved
                or name not in present
                or saved[name].shape != present[name].shape
            )
            if changed:
                raise ValueError(
                    f"The module is not the one of the rewind point: {kind} {changed} were added, "
                    "removed or resized since. Rewind to a step at which the network is complete."
                )
        for kind, num_saved, num_present in (
            ("optimizers", len(self.optimizers), len(optimizers)),
            ("schedulers", len(self.schedulers), len(schedulers)),
        ):
            if num_saved != num_present:
                raise ValueError(
                    f"The rewind point has {num_saved} {kind}, got {num_present} to restore."
                )
        for optimizer, state in zip(optimizers, self.optimizers, strict=True):
            _check_groups(optimizer, state)


class _Placed(Mapping[str, "Tensor"]):
    def __init__(self, values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        self._values, self._targets = values, targets

    def __getitem__(self, name: str) -> Tensor:
        return placed_like(self._values[name], self._targets[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)


def _named_buffers(module: Module) -> dict[str, Tensor]:
    return {strip_compiled(name): buffer for name, buffer in module.named_buffers()}


def _write(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            if is_writable(targets[name]):
                targets[name].copy_(placed_like(value, targets[name]))


def _check_groups(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    saved = [len(group["params"]) for group in state["param_groups"]]
    present = [len(group["params"]) for group in optimizer.param_groups]
    if present[: len(saved)] != saved:  # more are allowed: added since, by unfreezing
        raise ValueError(
            f"The rewind point has a {type(optimizer).__name__} with {saved} parameters in its "
            f"groups, got one with {present}. Change groups only before the rewind point."
        )


def _restore_optimizer_(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    groups = state["param_groups"]
    del optimizer.param_groups[len(groups) :]
    earlier = list(optimizer.param_groups)
    optimizer.load_state_dict(copy.deepcopy(dict(state)))
    for group, saved, before in zip(optimizer.param_groups, groups, earlier, strict=True):
        group.update(_settings(saved, before))


def _settings(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """The saved hyperparameters; those that are tensors in ``present`` are written into them."""
    values = {key: value for key, value in saved.items() if key != "params"}
    return {key: _written(value, present.get(key)) for key, value in values.items()}


def _written(value: Any, present: Any) -> Any:
    if isinstance(value, torch.Tensor) and isinstance(present, torch.Tensor):
        present.detach().copy_(value)  # captured graphs go on reading this very tensor
        return present
    return copy.deepcopy(value)


def _copied(value: Any) -> Any:
    """A copy that shares nothing with ``value``; tensors go to the CPU, shards stay in place."""
    return _mapped(value, lambda t: t.detach().clone() if is_distributed(t) else _to_cpu(t))


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _mapped(value: Any, function: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if type(value) is dict:
        return {key: _mapped(item, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, function) for item in value)
    return copy.deepcopy(value)
