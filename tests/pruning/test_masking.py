"""Pruned weights stay at zero, and the others train as if the pruned ones did not exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, optim

from lightning_lth import Masks
from lightning_lth.pruning.masking import MaskKeeper

Factory = Callable[[list[nn.Parameter]], optim.Optimizer]
OPTIMIZERS: dict[str, Factory] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: optim.Adam(p, lr=0.1, fused=False),
    "Adam fused": lambda p: optim.Adam(p, lr=0.1, fused=True),
    "AdamW amsgrad": lambda p: optim.AdamW(p, lr=0.1, amsgrad=True),
    "NAdam": lambda p: optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: optim.RAdam(p, lr=0.1),
    "Adamax": lambda p: optim.Adamax(p, lr=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, alpha=0.5),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: optim.Adadelta(p),
    "ASGD": lambda p: optim.ASGD(p, lr=0.1),
    "Rprop": lambda p: optim.Rprop(p, lr=0.1),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.1),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3),
}
MASK = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]])


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, 2, dtype=dtype)


def train(module: nn.Linear, optimizer: optim.Optimizer, steps: int, mask: Tensor | None) -> None:
    """With a mask: in the graph and on the weights after each step, as a reference."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        inputs = torch.randn(3, 4, generator=generator, dtype=torch.float32).to(module.weight.dtype)

        def closure(inputs: Tensor = inputs) -> Tensor:
            optimizer.zero_grad()
            weight = module.weight if mask is None else module.weight * mask
            loss = nn.functional.linear(inputs, weight, module.bias).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        if mask is not None:
            module.weight.data.mul_(mask)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_equals_that_with_the_mask_in_the_graph(name: str) -> None:
    held, reference = layer(), layer()
    optimizer = OPTIMIZERS[name](list(held.parameters()))
    keeper = MaskKeeper({"weight": held.weight}, [optimizer])
    keeper.hold_(Masks({"weight": MASK}))
    train(held, optimizer, 30, mask=None)
    reference.weight.data.mul_(MASK)
    train(reference, OPTIMIZERS[name](list(reference.parameters())), 30, mask=MASK)
    assert torch.equal(held.weight, reference.weight)
    assert torch.equal(held.weight[MASK == 0], torch.zeros(3))
    assert not (held.weight[MASK == 1] == 0).any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_of_dense_training_does_not_revive_pruned_weights(name: str) -> None:
    module = layer()
    optimizer = OPTIMIZERS[name](list(module.parameters()))
    train(module, optimizer, 5, mask=None)
    MaskKeeper({"weight": module.weight}, [optimizer]).hold_(Masks({"weight": MASK}))
    for _ in range(5):
        train(module, optimizer, 1, mask=None)
        assert torch.equal(module.weight[MASK == 0], torch.zeros(3))


def test_subclasses_of_torch_optimizers_are_not_trusted_to_be_elementwise() -> None:
    class Shifting(optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                parameter.data.add_(1.0)

    module = layer()
    optimizer = Shifting([module.weight], lr=0.1)
    MaskKeeper({"weight": module.weight}, [optimizer]).hold_(Masks({"weight": MASK}))
    optimizer.step()
    assert torch.equal(module.weight == 0, MASK == 0)


def test_second_moments_of_pruned_weights_are_one_where_zeros_would_be_slow() -> None:
    module = layer()
    optimizer = optim.Adam(module.parameters(), fused=False, betas=(0.9, 0.5))
    keeper = MaskKeeper({"weight": module.weight}, [optimizer])
    keeper.hold_(Masks({"weight": MASK}))
    train(module, optimizer, 1, mask=None)
    moment = optimizer.state[module.weight]["exp_avg_sq"]
    assert torch.equal(moment[MASK == 0], torch.ones(3))
    keeper.hold_(Masks({"weight": MASK}))
    assert torch.equal(moment[MASK == 0], torch.zeros(3))
    train(module, optimizer, 1, mask=None)
    assert torch.equal(moment[MASK == 0], torch.ones(3))
    for _ in range(1000):  # 0.5 ** 1000 is 0; it has to be written anew
        train(module, optimizer, 1, mask=None)
        assert float(moment[MASK == 0].min()) > 1e-20


def test_gradients_are_masked_before_the_step_also_over_accumulation() -> None:
    module = layer()
    optimizer = optim.SGD(module.parameters(), lr=0.1)
    MaskKeeper({"weight": module.weight}, [optimizer]).hold_(Masks({"weight": MASK}))
    for _ in range(2):
        module(torch.ones(1, 4)).sum().backward()
    # Two backward passes: the gradients of 5 survivors and 2 biases are 2, their norm sqrt(28).
    assert torch.equal(module.weight.grad, 2.0 * MASK)
    norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    assert float(norm) == pytest.approx(28**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    module = layer(dtype)
    optimizer = optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    MaskKeeper({"weight": module.weight}, [optimizer]).hold_(Masks({"weight": MASK}))
    train(module, optimizer, 5, mask=None)
    assert torch.equal(module.weight == 0, MASK == 0)
    assert module.weight.dtype == dtype


def test_tied_weights_are_one_weight() -> None:
    embedding, head = nn.Embedding(2, 4), nn.Linear(4, 2, bias=False)
    head.weight = embedding.weight
    optimizer = optim.SGD(head.parameters(), lr=0.1)
    MaskKeeper({"weight": embedding.weight}, [optimizer]).hold_(Masks({"weight": MASK}))
    head(embedding(torch.tensor([0, 1]))).sum().backward()
    assert torch.equal(head.weight.grad == 0, MASK == 0)
    optimizer.step()
    assert torch.equal(head.weight == 0, MASK == 0)
    assert head.weight is embedding.weight


def test_a_frozen_weight_is_masked_when_it_is_unfrozen_later() -> None:
    module = layer()
    module.weight.requires_grad_(False)
    optimizer = optim.SGD(module.parameters(), lr=0.1)
    MaskKeeper({"weight": module.weight}, [optimizer]).hold_(Masks({"weight": MASK}))
    assert not module.weight.requires_grad
    module.weight.requires_grad_(True)
    train(module, optimizer, 2, mask=None)
    assert torch.equal(module.weight == 0, MASK == 0)


def test_new_masks_replace_the_old_ones_and_release_lets_all_weights_train() -> None:
    module = layer()
    optimizer = optim.SGD(module.parameters(), lr=0.1)
    keeper = MaskKeeper({"weight": module.weight}, [optimizer], project=True)
    keeper.hold_(Masks({"weight": MASK}))
    denser = MASK.clone()
    denser[0, 0] = 0
    keeper.hold_(Masks({"weight": denser}))
    train(module, optimizer, 2, mask=None)
    assert torch.equal(module.weight == 0, denser == 0)
    keeper.release()
    train(module, optimizer, 2, mask=None)
    assert not (module.weight == 0).any()


@pytest.mark.parametrize("name", ["Adam", "AdamW amsgrad", "NAdam", "RAdam", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("is_released", [True, False])
def test_weights_that_are_let_in_again_find_no_second_moment(name: str, is_released: bool) -> None:
    module = layer()
    optimizer = OPTIMIZERS[name](list(module.parameters()))
    keeper = MaskKeeper({"weight": module.weight}, [optimizer])
    keeper.hold_(Masks({"weight": MASK}))
    train(module, optimizer, 3, mask=None)
    if is_released:
        keeper.release()
    else:
        keeper.hold_(Masks({"weight": torch.ones_like(MASK)}))
    state = [value for value in optimizer.state[module.weight].values() if value.dim() == 2]
    assert all(torch.equal(value[MASK == 0], torch.zeros(3)) for value in state)


def test_infinite_optimizer_state_of_pruned_weights_is_cleared() -> None:
    module = layer()
    optimizer = OPTIMIZERS["SGD"]([module.weight])
    train(module, optimizer, 1, mask=None)
    momentum = optimizer.state[module.weight]["momentum_buffer"].fill_(torch.inf)
    MaskKeeper({"weight": module.weight}, [optimizer]).hold_(Masks({"weight": MASK}))
    assert torch.equal(momentum[MASK == 0], torch.zeros(3))


def test_masks_that_fit_no_parameter_are_refused_and_nothing_changes() -> None:
    module = layer()
    before = module.weight.detach().clone()
    keeper = MaskKeeper({"weight": module.weight}, [])
    with pytest.raises(ValueError, match=r"Masks for \['wieght'\] match no parameter"):
        keeper.hold_(Masks({"weight": MASK, "wieght": MASK}))
    with pytest.raises(ValueError, match=r"has shape \(1, 4\), but the parameter has \(2, 4\)"):
        keeper.hold_(Masks({"weight": MASK[:1]}))
    assert torch.equal(module.weight, before)


def test_a_step_leaves_the_weights_of_other_optimizers_alone() -> None:
    """A GAN that steps its discriminator before the generator's backward pass."""
    generator = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 2, bias=False))
    discriminator = nn.Linear(2, 1)
    optimizers = [torch.optim.Adam(net.parameters()) for net in (generator, discriminator)]
    keeper = MaskKeeper(dict(generator.named_parameters()), optimizers, project=True)
    mask = torch.tensor([[1, 0]] * 4)
    keeper.hold_(Masks({"0.weight": mask, "1.weight": torch.ones(2, 4)}))
    fake = generator(torch.ones(8, 2))
    discriminator(fake.detach()).sum().backward()
    optimizers[1].step()
    before = generator[0].weight.detach().clone()
    discriminator(fake).sum().backward()  # fails if the weights have been written to
    optimizers[0].step()
    assert (generator[0].weight[:, 1] == 0).all()
    assert (generator[0].weight[:, 0] != before[:, 0]).all()
