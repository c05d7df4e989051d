"""Scores of weights that have not been trained: SNIP, GraSP and SynFlow.

Nothing is written to the module: it runs on copies of its parameters and buffers. Its gradients,
buffers, ``requires_grad``, train and eval modes and all random states are afterwards as before,
also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_lth.pruning.detached import Batches, DetachedNetwork, Loss, without_trace
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.selection import keep

if TYPE_CHECKING:
    from torch.nn import Module

DEFAULT_TEMPERATURE = 200.0  # the authors' code, github.com/alecwangcq/GraSP
DEFAULT_ITERATIONS = 100  # Tanaka et al. 2020, section 6


def snip(
    module: Module, batches: Batches, loss: Loss, *, parameters: Sequence[str] | None = None
) -> Scores:
    """``|w * dL/dw|``: keep the weights without which the loss would change most.

    The module runs in its present train or eval mode. The authors' code scores in eval mode, and
    that matters to BatchNorm: in training mode, a VGG-16 has an empty layer at a tenth of the
    compression (measured at a quarter of its width).

    Args:
        module: The network before training, on the device of the batches. Not modified.
        batches: Pairs of inputs, as the module takes them, and targets. The gradient is the mean
            over the batches.
        loss: Outputs and targets to a scalar, the mean over the batch.
        parameters: Globs that select what is scored, as for
            ``lightning_lth.pruning.parameters.prunable_parameters``; ``None`` is its default.

    Returns:
        Scores of all selected weights, to be ranked globally.

    Raises:
        ValueError: If there is no batch, or the loss is not a scalar.

    Examples:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -1.0]])
        >>> batch = torch.tensor([[1.0, 5.0]]), torch.tensor([[0.0]])
        >>> scores = snip(layer, [batch], lambda output, target: (output - target).sum())
        >>> scores.materialize()["weight"]  # dL/dw is the input
        tensor([[3., 5.]])

    Note:
        The source divides by the sum of all scores, which changes no ranking. Its code takes one
        batch of 100 or 128 examples, and scores biases too: name them in ``parameters``.

    Source:
        Lee, Ajanthan & Torr 2019, "SNIP", arXiv:1810.02340: equations 5 and 6.
    """
    _check_batches(batches)
    with without_trace(module):
        network = DetachedNetwork.of(module, parameters, torch.clone)
        gradients = network.mean_gradients(batches, loss)
    return _scores(network, gradients, _magnitude_of_product)


def grasp(
    module: Module,
    batches: Batches,
    loss: Loss,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    parameters: Sequence[str] | None = None,
) -> Scores:
    """``w * (H g)``: prune the weights without which the gradient would grow most.

    ``g`` is the gradient of the loss and ``H`` its Hessian, both the mean over the batches. The
    module runs in its present train or eval mode; the authors' code scores in training mode.

    Args:
        module: As for ``snip``; it returns logits.
        batches: As for ``snip``; the source takes 10 examples of each class.
        loss: As for ``snip``.
        temperature: What the outputs are divided by before the loss, above 0.
        parameters: As for ``snip``.

    Returns:
        Scores of all selected weights, to be ranked globally.

    Raises:
        ValueError: If there is no batch, the loss is not a scalar, or the temperature not above 0.

    Examples:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, 1.0]])
        >>> batch = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]])
        >>> scores = grasp(layer, [batch], lambda y, t: (y - t).square().sum() / 2, temperature=1)
        >>> scores.materialize()["weight"]  # g = (3, 0), H = ((1, 0), (0, 0))
        tensor([[9., 0.]])

    Note:
        The source scores ``-w * (H g)`` and prunes the highest; here the sign is the other way
        round, since the highest stay. The authors' code draws new weights for linear layers before
        it scores them; here the weights are scored that will be trained.

    Source:
        Wang, Zhang & Grosse 2020, "Picking Winning Tickets Before Training by Preserving Gradient
        Flow", arXiv:2002.07376: equation 8 and algorithm 2.
    """
    _check_batches(batches)
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}.")

    def softened(outputs: Tensor, targets: Any) -> Tensor:
        return loss(outputs / temperature, targets)

    with without_trace(module):
        network = DetachedNetwork.of(module, parameters, torch.clone)
        gradients = network.mean_gradients(batches, softened)
        products = network.mean_hessian_product(batches, softened, gradients)
    return _scores(network, products, torch.mul)


def synflow_scores(
    module: Module, example: Tensor, *, parameters: Sequence[str] | None = None
) -> Scores:
    """``|w * dR/dw|``, where ``R`` sums the products of ``|w|`` along all paths; needs no data.

    ``R`` is the summed output for an input of ones, when all weights are replaced by their
    magnitudes. The scores of a layer that all paths go through sum to ``R``, whatever its size.

    The module runs in eval mode, as in the authors' code: BatchNorm then scales each channel by a
    constant. In training mode it would normalize the one example by itself, so that the output
    would not depend on the weights before it, or refuse to run. All is computed in ``float64``,
    since products over many layers leave the range of ``float32``.

    Args:
        module: The network before training; it returns logits. Not modified.
        example: A batch of floating-point inputs, for its shape and device: of its first dimension
            one is taken, of its values none.
        parameters: As for ``snip``.

    Returns:
        Scores of all selected weights in ``float64``, to be ranked globally.

    Raises:
        TypeError: If ``example`` is not a floating-point tensor.

    Examples:
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 1))
        >>> network[0].weight.data = torch.tensor([[3.0, -1.0]])
        >>> network[1].weight.data = torch.tensor([[-2.0]])
        >>> scores = synflow_scores(network, torch.zeros(1, 2)).materialize()
        >>> scores["0.weight"], scores["1.weight"]  # two paths, 3 * 2 and 1 * 2
        (tensor([[6., 2.]], dtype=torch.float64), tensor([[8.]], dtype=torch.float64))

    Note:
        Biases and running means that are not scored count as 0, as they do in ``R``; the authors'
        code has their magnitudes there, which are 0 in its networks. Elsewhere they would favour
        the later layers, which could then empty the earlier ones.

    Source:
        Tanaka, Kunin, Yamins & Ganguli 2020, "Pruning neural networks without any data by
        iteratively conserving synaptic flow", arXiv:2006.05467: equation 7.
    """
    _check_example(example)
    with without_trace(module):
        return _flow_scores(_flow_network(module, parameters), example)


def synflow(
    module: Module,
    example: Tensor,
    density: float,
    *,
    iterations: int = DEFAULT_ITERATIONS,
    parameters: Sequence[str] | None = None,
) -> Masks:
    """Prune by ``synflow_scores`` in many small steps, so that no layer loses all weights.

    Each step scores what is left, and leaves ``density ** (step / iterations)`` of all weights,
    ranked over all layers together.

    Args:
        module: As for ``synflow_scores``.
        example: As for ``synflow_scores``.
        density: Share of the selected weights that survives in the end, in ``(0, 1]``.
        iterations: How many steps, at least 1.
        parameters: As for ``snip``.

    Returns:
        Masks of all selected weights, on their devices.

    Raises:
        TypeError: If ``example`` is not a floating-point tensor.
        ValueError: If ``density`` or ``iterations`` is out of range, or no weight would survive.

    Examples:
        >>> network = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))
        >>> masks = synflow(network, torch.zeros(1, 20), 0.004)
        >>> masks.num_remaining, min(masks.remaining().values())  # of 750; no layer is empty
        (3, 1)

    Source:
        Tanaka et al. 2020, arXiv:2006.05467: algorithm 1, with 100 iterations.
    """
    _check_example(example)
    _check_schedule(density, iterations)
    with without_trace(module):
        network = _flow_network(module, parameters)
        masks = Masks.dense(network.weights)
        if round(masks.num_weights * density) == 0:
            raise ValueError(
                f"`density` must leave a weight, got {density} of {masks.num_weights} weights."
            )
        for step in range(1, iterations + 1):
            count = round(masks.num_weights * density ** (step / iterations))
            masks = keep(_flow_scores(network, example), masks, num_remaining=count)
            masks.apply_(network.weights)
    return masks


def _flow_network(module: Module, parameters: Sequence[str] | None) -> DetachedNetwork:
    """The network of magnitudes in eval mode, without what is added and not scored."""
    module.eval()
    network = DetachedNetwork.of(module, parameters, _magnitude)
    for name, tensor in network.tensors.items():
        attribute = name.rpartition(".")[2]
        if ("bias" in attribute or attribute == "running_mean") and not tensor.requires_grad:
            tensor.zero_()
    return network


def _flow_scores(network: DetachedNetwork, example: Tensor) -> Scores:
    ones = torch.ones_like(example[:1], dtype=torch.float64)
    return _scores(network, network.derivatives(network.run(ones).sum()), _magnitude_of_product)


def _scores(
    network: DetachedNetwork, factors: Sequence[Tensor], function: Callable[..., Tensor]
) -> Scores:
    pairs = zip(network.weights.items(), factors, strict=True)
    return Scores({name: (weight, factor) for (name, weight), factor in pairs}, function)


def _magnitude(tensor: Tensor) -> Tensor:
    return tensor.abs().double() if tensor.is_floating_point() else tensor.clone()


def _magnitude_of_product(weight: Tensor, factor: Tensor) -> Tensor:
    return (weight * factor).abs()


def _check_batches(batches: Batches) -> None:
    if not len(batches):
        raise ValueError("`batches` must hold at least one pair of inputs and targets, got none.")


def _check_example(example: Tensor) -> None:
    if not isinstance(example, Tensor) or not example.is_floating_point():
        got = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(
            f"`example` must be a floating-point tensor, got {got}. "
            "SynFlow needs an input of ones: pass the embedded tokens to the layers behind."
        )


def _check_schedule(density: float, iterations: int) -> None:
    if not 0 < density <= 1:
        raise ValueError(
            f"`density` must be in (0, 1], got {density}. "
            "Percentages are written as fractions: 0.2."
        )
    if iterations < 1:
        raise ValueError(f"`iterations` must be at least 1, got {iterations}.")
