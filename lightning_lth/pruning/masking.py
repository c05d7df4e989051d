"""Keeps pruned weights at exactly zero while ordinary optimizers train the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
from torch import optim

from lightning_lth.pruning.parameters import named_parameters
from lightning_lth.pruning.sharding import is_distributed, local_part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from lightning_lth.pruning.masks import Masks

# Every weight is updated from its own gradient and state alone, and a zero gradient with zero state
# leaves a zero weight at zero, weight decay included. True of these classes, not of subclasses.
_ELEMENTWISE_OPTIMIZERS = frozenset(
    {
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.NAdam,
        optim.RAdam,
        optim.Adamax,
        optim.RMSprop,
        optim.Adagrad,
        optim.Adadelta,
        optim.ASGD,
        optim.Rprop,
    }
)
# Where each optimizer keeps the second moment that it takes the root of. On a CPU, sqrt of exact
# zeros made Adam's step 1.4 to 1.6 times slower, so pruned entries hold 1 there: the update of a
# pruned weight is 0 / (sqrt(1) + eps) instead of 0 / (sqrt(0) + eps), zero in both cases.
_SECOND_MOMENTS = {
    optim.Adam: "exp_avg_sq",
    optim.AdamW: "exp_avg_sq",
    optim.NAdam: "exp_avg_sq",
    optim.RAdam: "exp_avg_sq",
    optim.RMSprop: "square_avg",
    optim.Adagrad: "sum",
}
_DECAYED = 1e-20  # the 1 decays; it is written again before it comes near the denormal numbers


@final
class MaskKeeper:
    """Holds masks during training, without a trace in the module's structure or state dict.

    Gradients are masked as they are accumulated, so clipping, gradient norms, all-reduce and
    gradient scaling see the masked gradient. With the element-wise optimizers of ``torch.optim``
    that is enough for pruned weights to stay at exactly zero; for any other optimizer (LBFGS, Muon,
    third-party ones), or with ``project=True``, the weights are masked after every step as well.

    Args:
        parameters: Name to parameter.
        optimizers: The optimizers that step them.
        project: Mask the weights after every step, whatever the optimizer; needed where other code
            changes gradients between the backward pass and the step.

    Examples:
        >>> import lightning_lth
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> keeper = MaskKeeper({"weight": layer.weight}, [sgd])
        >>> keeper.hold_(lightning_lth.Masks({"weight": torch.tensor([[1, 0]])}))
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> layer.weight.grad
        tensor([[1., 0.]])
        >>> keeper.release()
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        optimizers: Sequence[Optimizer],
        *,
        project: bool = False,
    ) -> None:
        self._parameters = dict(parameters)
        self._factors: dict[str, Tensor] = {}
        self._optimizers = list(optimizers)
        self._fillers: list[_SecondMomentFiller] = []
        self._handles: list[RemovableHandle] = [
            _register_gradient_hook(parameter, self._gradient_hook(name))
            for name, parameter in self._parameters.items()
        ]
        for optimizer in optimizers:
            if project or type(optimizer) not in _ELEMENTWISE_OPTIMIZERS:
                self._handles.append(optimizer.register_step_post_hook(self._project))
            if type(optimizer) in _SECOND_MOMENTS:
                self._fillers.append(_SecondMomentFiller(self, optimizer))
                self._handles.append(optimizer.register_step_post_hook(self._fillers[-1]))

    def hold_(self, masks: Masks) -> None:
        """Set pruned weights, their gradients and optimizer state to zero, and keep them there.

        Args:
            masks: For any of the parameters; the others are trained unmasked.

        Raises:
            ValueError: If a mask fits no parameter.
        """
        masks.apply_(self._parameters)
        for filler in self._fillers:
            filler.undo()  # a weight that the new masks let in must not find a 1
        self._factors.clear()
        for name, mask in masks.items():
            self._factors[name] = _factor(mask, local_part(self._parameters[name]))
            self._mask_gradient(name)
            self._clear_optimizer_state(name)

    def check(self) -> None:
        """Refuse weights that others than the optimizers have written to.

        Raises:
            RuntimeError: If a pruned weight is not zero. Of NaN training has to be told otherwise.
        """
        written = [name for name, factor in self._factors.items() if self._is_written(name, factor)]
        if written:
            raise RuntimeError(
                f"Pruned weights must stay zero, but those of {written} were written to by "
                "something else than an optimizer's step: a hook such as `on_train_start` that "
                "draws weights, another callback, or code that changes gradients where it is not "
                "looked for. Draw weights before `fit`; change gradients in "
                "`on_before_optimizer_step`."
            )

    def release(self) -> None:
        """Remove every hook; the weights stay as they are."""
        for filler in self._fillers:
            filler.undo()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def masked_parameters(self) -> list[tuple[Parameter, Tensor]]:
        """Each masked parameter with its mask as a factor: zero where it is pruned."""
        return [(self._parameters[name], factor) for name, factor in self._factors.items()]

    def _is_written(self, name: str, factor: Tensor) -> bool:
        weight = local_part(self._parameters[name].detach())
        return bool(((weight != 0) & (factor == 0) & weight.isfinite()).any())

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        factors = self._factors  # no look-up that can be spared: this runs in every step
        if is_distributed(self._parameters[name]):
            return lambda parameter: self._mask_gradient(name)

        def mask_gradient(parameter: Tensor) -> None:
            if name in factors:
                parameter.grad.mul_(factors[name])  # type: ignore[union-attr]

        return mask_gradient

    def _mask_gradient(self, name: str) -> None:
        gradient, factor = self._parameters[name].grad, self._factors.get(name)
        if gradient is not None and factor is not None:
            local_part(gradient).mul_(factor)

    def _clear_optimizer_state(self, name: str) -> None:
        parameter = self._parameters[name]
        for optimizer in self._optimizers:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    _fill_pruned_(value, self._factors[name], 0)  # infinity times 0 would be NaN

    def _project(self, optimizer: Optimizer, *_: object) -> None:
        # Only what it has stepped: a generator's weights must stay until its own backward pass.
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        with torch.no_grad():
            for parameter, factor in self.masked_parameters():
                if parameter in stepped:
                    local_part(parameter).mul_(factor)


def masked_parameters(module: Module, masks: Masks) -> dict[str, Parameter]:
    """The parameters that there are masks for.

    Raises:
        ValueError: If a mask fits no parameter.

    Examples:
        >>> import lightning_lth
        >>> masks = lightning_lth.Masks({"weight": torch.ones(1, 2)})
        >>> list(masked_parameters(torch.nn.Linear(2, 1), masks))
        ['weight']
    """
    present = named_parameters(module)
    masks.check_matches(present)
    return {name: present[name] for name in masks}


class _SecondMomentFiller:
    """Step post-hook of one optimizer: writes 1 into the second moments of pruned weights."""

    def __init__(self, keeper: MaskKeeper, optimizer: Optimizer) -> None:
        self._keeper = keeper
        self._optimizer = optimizer
        self._steps_left = 0

    def undo(self) -> None:
        """Set them back to 0, also where AMSGrad has copied them; write again after a step."""
        self._fill(0)
        self._fill(0, "max_exp_avg_sq")
        self._steps_left = 0

    def __call__(self, *_: object) -> None:
        if self._steps_left == 0:
            self._fill(1)
            self._steps_left = _num_steps_to_decay(self._optimizer)
        self._steps_left -= 1

    def _fill(self, value: float, key: str | None = None) -> None:
        key = key or _SECOND_MOMENTS[type(self._optimizer)]
        groups = self._optimizer.param_groups
        fused = {p for group in groups if group.get("fused") for p in group["params"]}
        for parameter, factor in self._keeper.masked_parameters():
            moment = self._optimizer.state.get(parameter, {}).get(key)
            if moment is not None and moment.device.type == "cpu" and parameter not in fused:
                _fill_pruned_(moment, factor, value)


def _num_steps_to_decay(optimizer: Optimizer) -> int:
    group = optimizer.param_groups[0]
    decay = float(group["betas"][1] if "betas" in group else group.get("alpha", 1.0))
    return 1 + int(math.log(_DECAYED) / math.log(decay)) if 0 < decay < 1 else 1 << 20


def _register_gradient_hook(
    parameter: Parameter, hook: Callable[[Tensor], None]
) -> RemovableHandle:
    # torch registers only on tensors that require a gradient; a frozen one may be unfrozen later.
    requires_grad = parameter.requires_grad
    parameter.requires_grad_(True)
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(requires_grad)
    return handle


def _fill_pruned_(tensor: Tensor, factor: Tensor, value: float) -> None:
    # After a fit, Lightning has moved optimizer state to the CPU, where it then differs.
    local_part(tensor).masked_fill_((factor == 0).to(tensor.device), value)


def _factor(mask: Tensor, weight: Tensor) -> Tensor:
    # Multiplying by booleans is two to four times slower on a CPU; elsewhere they save memory.
    mask = local_part(mask).to(weight.device)
    return mask.to(weight.dtype) if weight.device.type == "cpu" else mask
