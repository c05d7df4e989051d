"""How smooth the loss is along the next step: what batch norm improves, by Santurkar et al."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from lightning_lth.snapshot import Snapshot, undone

if TYPE_CHECKING:
    from torch.nn import Module


@final
@dataclass(frozen=True)
class LayerShift:
    """What a step of the layers before it does to a layer's gradient.

    Attributes:
        layer: Name of the module, as in ``named_modules()``.
        difference: L2 norm of the change: its internal covariate shift.
        cosine: Between the gradients before and after; NaN if one of them is zero.
    """

    layer: str
    difference: float
    cosine: float


@final
@dataclass(frozen=True)
class Landscape:
    """The loss and its gradient g along ``weights - eta * g``; a NaN somewhere is kept.

    Attributes:
        loss: At the present weights.
        gradient_norm: L2 norm of the gradient g there, over all trainable parameters.
        etas: The step sizes, as learning rates.
        losses: The loss after each.
        gradient_differences: L2 norm of the change of the gradient after each.
        shifts: By layer but the first, which has none before it; empty if not asked for.
    """

    loss: float
    gradient_norm: float
    etas: tuple[float, ...]
    losses: tuple[float, ...]
    gradient_differences: tuple[float, ...]
    shifts: tuple[LayerShift, ...] = ()

    @property
    def loss_min(self) -> float:
        """Lower end of the variation of the loss."""
        return _nan_or(min, self.losses)

    @property
    def loss_max(self) -> float:
        """Upper end of the variation of the loss."""
        return _nan_or(max, self.losses)

    @property
    def predictiveness_min(self) -> float:
        """Lower end of the gradient predictiveness; less is more predictive."""
        return _nan_or(min, self.gradient_differences)

    @property
    def predictiveness_max(self) -> float:
        """Upper end of the gradient predictiveness."""
        return _nan_or(max, self.gradient_differences)

    @property
    def beta(self) -> float:
        """Effective beta-smoothness: most change of gradient per distance; NaN without gradient."""
        distances = [eta * self.gradient_norm for eta in self.etas]
        pairs = zip(self.gradient_differences, distances, strict=True)
        return _nan_or(max, [change / moved if moved else math.nan for change, moved in pairs])

    def __str__(self) -> str:
        numbers = self.loss, self.gradient_norm, self.beta
        lines = ["loss {:.4g}, gradient norm {:.4g}, effective beta {:.4g}".format(*numbers)]
        lines.append(f"{'eta':>10} {'loss':>10}  gradient difference")
        for row in zip(self.etas, self.losses, self.gradient_differences, strict=True):
            lines.append("{:>10.4g} {:>10.4g} {:>20.4g}".format(*row))
        if self.shifts:
            lines.append(f"{'shift':>10} {'cosine':>10}  layer")
        lines += [f"{s.difference:>10.4g} {s.cosine:>10.4f}  {s.layer}" for s in self.shifts]
        return "\n".join(lines)


def probe(
    loss: Callable[[], Tensor],
    module: Module,
    *,
    lr: float,
    multiples: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    internal_covariate_shift: bool = False,
) -> Landscape:
    """Try steps of several sizes along the gradient, and measure loss and gradient after each.

    Afterwards parameters, buffers, ``.grad``, train/eval flags and the random states of Python,
    NumPy, torch and CUDA are bit for bit what they were, after an error or Ctrl-C too. Every
    evaluation starts from that state: same buffers, same dropout masks. Held are a copy of
    parameters, buffers and ``.grad`` on the CPU and, beside a backward pass, one gradient.

    Args:
        loss: The loss of one fixed batch, computed anew at each call with the module as it is
            then, in the train/eval mode as set. What it changes outside the module is not undone.
        module: Its parameters that require a gradient are moved. Not wrapped in DDP or FSDP.
        lr: The present learning rate, above 0.
        multiples: Step sizes in units of ``lr``, above 0.
        internal_covariate_shift: Also measure each layer's shift by a step of size ``lr`` of those
            before it; one evaluation more per layer. Layers are the modules that hold trainable
            parameters themselves, in the order of registration; a tied one belongs to the first.

    Returns:
        The measurements, as numbers; waits for the device after each evaluation.

    Raises:
        ValueError: For a step size not above 0, nothing to train, or a loss without gradient.

    Note:
        The step is that of plain SGD, also for the shift, where the source takes the optimizer's.
        Half-precision weights round it, as in training; norms are in float32. Forward hooks and
        tensor hooks on parameters run, but hooks after accumulation do not, among them those that
        keep pruned weights at zero: mask by tensor hooks meanwhile. The weights are written to, so
        torch refuses the backward pass of a loss computed before.

    Examples:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
        >>> loss = lambda: layer(torch.ones(1)).square().sum()
        >>> print(probe(loss, layer, lr=0.5, multiples=(0.5, 1)))
        loss 4, gradient norm 4, effective beta 2
               eta       loss  gradient difference
              0.25          1                    2
               0.5          0                    4

    Source:
        Santurkar et al. 2018, arXiv:1805.11604: section 3.2, with their range for VGG; def. 2.1.
    """
    etas = _checked_etas(lr, multiples)
    layers = _trainable_layers(module)
    with torch.inference_mode(False), torch.enable_grad(), undone(module) as snapshot:
        ray = _Ray(loss, snapshot, [parameter for own in layers.values() for parameter in own])
        points = [ray.measure(eta) for eta in etas]
        shifts = tuple(_shifts(ray, layers, lr)) if internal_covariate_shift else ()
    losses, differences = zip(*points, strict=True)
    return Landscape(ray.loss, _norm(ray.gradient.values()), etas, losses, differences, shifts)


class _Ray:
    """The way from the present weights down the gradient there."""

    def __init__(
        self, loss: Callable[[], Tensor], snapshot: Snapshot, parameters: Sequence[Tensor]
    ) -> None:
        self._compute_loss, self._snapshot = loss, snapshot
        self.loss, gradients = self._differentiate(parameters)
        self.gradient = dict(zip(parameters, gradients, strict=True))

    def measure(self, eta: float) -> tuple[float, float]:
        loss, gradients = self.after_step(eta, self.gradient, tuple(self.gradient))
        return loss, _distance(gradients, self.gradient.values())

    def after_step(
        self, eta: float, moved: Iterable[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        self._snapshot.restore()
        with torch.no_grad():
            for parameter in moved:
                parameter.sub_(self.gradient[parameter], alpha=eta)
        return self._differentiate(wanted)

    def _differentiate(self, parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        torch.clear_autocast_cache()  # an autocast around this would go on with other weights
        try:
            loss = _checked_loss(self._compute_loss())
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        finally:
            torch.clear_autocast_cache()
        return loss.item(), [gradient.to_dense() for gradient in gradients]  # embeddings: sparse


def _shifts(ray: _Ray, layers: Mapping[str, list[Tensor]], lr: float) -> Iterator[LayerShift]:
    earlier: list[Tensor] = []
    for name, own in layers.items():
        if earlier:
            before = [ray.gradient[parameter] for parameter in own]
            after = ray.after_step(lr, earlier, own)[1]
            yield LayerShift(name, _distance(after, before), _cosine(after, before))
        earlier += own


def _checked_etas(lr: float, multiples: Sequence[float]) -> tuple[float, ...]:
    etas = tuple(float(lr * multiple) for multiple in multiples)
    if not etas or not all(0 < eta <= torch.finfo(torch.float32).max for eta in (lr, *etas)):
        raise ValueError(
            "`lr` and one or more `multiples` of it must be positive and finite, "
            f"got {lr} and {multiples!r}. Pass, e.g., `lr=0.1, multiples=(0.5, 1, 2, 4)`."
        )
    return etas


def _checked_loss(loss: Tensor) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    raise ValueError(
        f"`loss` must return a scalar tensor with a gradient, got {loss!r:.80}. "
        "Compute it from the module's output, without `.detach()` or `.item()`."
    )


def _trainable_layers(module: Module) -> dict[str, list[Tensor]]:
    layers: dict[str, list[Tensor]] = {}
    seen: set[Tensor] = set()
    for name, layer in module.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad and p not in seen]
        seen.update(own)
        layers |= {name: own} if own else {}
    if not layers:
        raise ValueError("`module` must have trainable parameters, got none. Unfreeze one.")
    return layers


def _nan_or(choose: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else choose(values)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(_wide(tensor)).item() for tensor in tensors))


def _distance(ones: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    return _norm(_wide(one) - _wide(other) for one, other in zip(ones, others, strict=True))


def _cosine(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    pairs = zip(ones, others, strict=True)
    dot = sum(float(torch.vdot(_wide(a).ravel(), _wide(b).ravel()).real) for a, b in pairs)
    lengths = _norm(ones) * _norm(others)
    return min(max(dot / lengths, -1.0), 1.0) if lengths else math.nan  # NaN stays NaN
