from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.utils import parametrizations, prune

from lightning_lth.initialization.passes import unchanged
from lightning_lth.initialization.unit_variance import data_dependent_

WEIGHTED = (nn.Linear, nn.Bilinear, nn.Embedding, nn.modules.conv._ConvNd)


def weighted(module: Module) -> dict[str, str]:
    return {n: "weight" for n, layer in module.named_modules() if isinstance(layer, WEIGHTED)}


def calibrate(
    module: Module,
    *batch: Tensor,
    run: Callable[[], object] | None = None,
    iterations: int = 10,
    seed: int = 0,
) -> dict[str, str]:
    run = run or (lambda: module(*batch))
    layers = weighted(module)
    with unchanged(module, parameters=True):
        return data_dependent_(module, run, layers, seed=seed, iterations=iterations)


def log_rates(module: Module, *batch: Tensor) -> Tensor:
    """Written anew: log of rms(gradient) / rms(weight), for a normal gradient at the output."""
    with unchanged(module):
        torch.manual_seed(0)
        output = module.train()(*batch)
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        weights = [module.get_submodule(name).weight for name in weighted(module)]
        gradients = torch.autograd.grad((output * noise).sum(), weights)
        masks = [getattr(module.get_submodule(n), "weight_mask", 1) for n in weighted(module)]
    pairs = zip(gradients, masks, weights, strict=True)
    rates = [(g * mask).square().mean() / w.square().mean() for g, mask, w in pairs]
    return torch.stack(rates).sqrt().log()


def spread(rates: Tensor) -> float:
    return (rates.max() - rates.min()).item()


def units(output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    flat = output.detach().movedim(dim, 0).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)


def convolutions(activation: type[Module] = nn.ReLU, *, norm: bool = False) -> nn.Sequential:
    layers: list[Module] = []
    for index in range(6):
        layers.append(nn.Conv2d(12 if index else 3, 12, 3, padding=1))
        layers += [nn.BatchNorm2d(12)] if norm else []
        layers.append(activation())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def perceptron(activation: type[Module] = nn.ReLU) -> nn.Sequential:
    hidden = [layer for _ in range(4) for layer in (nn.Linear(24, 24), activation())]
    return nn.Sequential(nn.Linear(6, 24), activation(), *hidden, nn.Linear(24, 4))


NETWORKS = {"convolutions": (convolutions, (32, 3, 8, 8)), "perceptron": (perceptron, (128, 6))}


@pytest.mark.parametrize("network", NETWORKS)
def test_units_have_mean_0_and_variance_1(network: str) -> None:
    build, shape = NETWORKS[network]
    module, batch = build(), torch.randn(shape)
    assert calibrate(module, batch, iterations=0) == {}
    for layer in module:
        batch = layer(batch)
        if isinstance(layer, WEIGHTED):
            mean, std = units(batch, 1)
            torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
            torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-4, atol=0)


LAYERS = {
    "Linear on a sequence": (nn.Linear(4, 6), (8, 5, 4), -1),
    "Conv1d": (nn.Conv1d(4, 6, 3), (8, 4, 10), 1),
    "unbatched": (nn.Conv2d(4, 6, 3), (4, 10, 10), 0),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (8, 4, 6, 6), 1),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (8, 4, 6, 6), 1),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 3, groups=2), (8, 4, 6), 1),
    "double": (nn.Linear(4, 6).double(), (8, 4), 1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer(kind: str) -> None:
    layer, shape, dim = copy.deepcopy(LAYERS[kind])
    batch = torch.randn(shape, dtype=layer.weight.dtype)
    assert calibrate(layer, batch, iterations=0) == {}
    mean, std = units(layer(batch), dim)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-5, atol=0)


def test_bilinear_layers_and_embeddings() -> None:
    layer, batch = nn.Bilinear(3, 4, 5), (torch.randn(32, 3), torch.randn(32, 4))
    assert calibrate(layer, *batch, iterations=0) == {}
    torch.testing.assert_close(units(layer(*batch), 1)[1], torch.ones(5))
    table, tokens = nn.Embedding(7, 3, padding_idx=0), torch.randint(7, (32, 4))
    assert calibrate(table, tokens, iterations=0) == {}
    torch.testing.assert_close(units(table(tokens), -1)[1], torch.ones(3))
    assert not table.weight[0].any()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x, x, x)[0])


def test_attention_is_normalized_at_its_output_projection() -> None:
    module, batch = Attention().eval(), torch.randn(16, 5, 8)
    assert calibrate(module, batch, iterations=0) == {}
    mean, std = units(module.inner(batch, batch, batch)[0], -1)
    torch.testing.assert_close(mean, torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones(8))
    before = module(batch)
    assert calibrate(module, batch) == {}
    assert spread(log_rates(module, batch)) < 0.01
    torch.testing.assert_close(module(batch), before, rtol=1e-4, atol=1e-4)


def test_a_module_in_eval_mode_is_normalized_as_it_trains() -> None:
    module, batch = convolutions(norm=True).eval(), torch.randn(32, 3, 8, 8)
    module[-5].running_var.fill_(100.0)  # the last norm divides by 10, but not in train mode
    assert calibrate(module, batch, iterations=0) == {}
    assert not any(layer.training for layer in module.modules())
    std = units(module.train()(batch), 1)[1]
    torch.testing.assert_close(std, torch.ones(10), rtol=1e-4, atol=0)


def test_no_hooks_stay() -> None:
    module, batch = perceptron(), torch.randn(8, 6)
    calibrate(module, batch)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_numbers_by_hand() -> None:
    module = nn.Linear(1, 2)
    nn.init.ones_(module.weight)
    calibrate(module, torch.tensor([[1.0], [5.0]]), iterations=0)
    # Mean 3 and std 2 go with the weight 1.
    torch.testing.assert_close(module.weight, torch.full((2, 1), 0.5))
    torch.testing.assert_close(module.bias, torch.full((2,), -1.5))


def test_random_numbers_go_on_as_without_it() -> None:
    module, batch, state = perceptron(), torch.randn(8, 6), torch.get_rng_state()
    data_dependent_(module, lambda: module(batch), weighted(module), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bias_that_is_frozen_or_missing_is_no_obstacle() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    module[0].bias.requires_grad_(False).fill_(7.0)
    batch = torch.tensor([[1.0], [5.0]])
    assert calibrate(module, batch, iterations=0) == {}
    assert module[0].bias.item() == 7.0
    for output in (module[0](batch), module(batch)):
        assert output.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert calibrate(module, batch) == {}
    assert module[0].bias.item() == 7.0


def test_the_first_step_calls_the_module_once() -> None:
    module, batch, calls = perceptron(), torch.randn(8, 6), []
    calibrate(module, run=lambda: calls.append(module(batch)), iterations=0)
    assert len(calls) == 1


@pytest.mark.parametrize("network", NETWORKS)
def test_rates_become_equal_and_the_function_stays(network: str) -> None:
    build, shape = NETWORKS[network]
    module, batch = build(), torch.randn(shape)
    calibrate(module, batch, iterations=0)
    before = module(batch)
    assert spread(log_rates(module, batch)) > 0.5
    assert calibrate(module, batch, iterations=1) == {}  # exact, so one is enough
    assert spread(log_rates(module, batch)) < 0.01
    torch.testing.assert_close(module(batch), before, rtol=1e-4, atol=1e-4)


def two_weights() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))


@pytest.mark.parametrize("as_loss", [False, True])
def test_rates_by_hand(as_loss: bool) -> None:
    module, batch = two_weights(), torch.tensor([[-2.0], [2.0]])
    nn.init.ones_(module[0].weight)
    nn.init.ones_(module[1].weight)

    def run() -> object:
        output = module(batch)
        if as_loss:
            return {"loss": (output - 3).square().mean()}
        return output, "text", torch.complex(output, output)

    assert calibrate(module, run=run) == {}
    # The first step gives 1/2 and 1, so the rates are as 4 to 1, and the roots over the geometric
    # mean 2 are the square root of 2 and its inverse.
    for layer in module:
        assert layer.weight.item() == pytest.approx(math.sqrt(0.5), rel=1e-4)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 24)
        self.branches = nn.ModuleList(perceptron_branch() for _ in range(3))
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x.relu())


def perceptron_branch() -> nn.Sequential:
    first, last = nn.Linear(24, 24), nn.Linear(24, 24)
    return nn.Sequential(nn.ReLU(), first, nn.Dropout(0.1), nn.ReLU(), last)


OTHERS = {
    "tanh": (lambda: perceptron(nn.Tanh), (128, 6), 0.02),
    "gelu": (lambda: convolutions(nn.GELU), (32, 3, 8, 8), 0.02),
    "batch norm": (lambda: convolutions(norm=True), (32, 3, 8, 8), 0.02),
    "residual": (Residual, (128, 6), math.inf),  # smaller, but not equal
    "saturated": (lambda: convolutions(nn.Tanh), (32, 3, 8, 8), math.inf),
}


@pytest.mark.parametrize("network", OTHERS)
def test_other_networks_keep_the_scale_of_their_output(network: str) -> None:
    build, shape, limit = OTHERS[network]
    module, batch = build(), torch.randn(shape)
    calibrate(module, batch, iterations=0)
    before = spread(log_rates(module, batch))
    notes = calibrate(module, batch)
    with unchanged(module):
        torch.manual_seed(0)  # as in the passes
        mean, std = units(module.train()(batch), 1)
    assert mean.abs().max() < 1e-3
    assert std.square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    after = spread(log_rates(module, batch))
    assert after < min(limit, before)
    assert (after >= 0.02) <= bool(notes)


def test_layers_that_stay_out_of_line_are_reported() -> None:
    module, batch = convolutions(nn.Tanh), torch.randn(32, 3, 8, 8)
    notes = calibrate(module, batch)
    rates = log_rates(module, batch)
    ratio = (rates[-1] - rates.mean()).exp().item()
    assert notes["14"] == f"its relative rate of change is {ratio:.3g} times the average"


def test_weights_depend_on_the_seed_alone() -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        module = nn.Sequential(nn.Dropout(0.5), perceptron())
        torch.manual_seed(len(results))
        calibrate(module, torch.ones(64, 6).cumsum(0), seed=seed)
        results.append(module[1][0].weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_weight_norm_takes_part() -> None:
    module, batch = perceptron(), torch.randn(128, 6)
    plain = copy.deepcopy(module)
    parametrizations.weight_norm(module[2])
    assert calibrate(module, batch) == calibrate(plain, batch) == {}
    torch.testing.assert_close(module[2].weight, plain[2].weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(module(batch), plain(batch), rtol=1e-3, atol=1e-3)


def test_pruned_weights_have_no_rate_but_keep_their_values() -> None:
    module, batch = perceptron(), torch.randn(128, 6)
    prune.l1_unstructured(module[4], "weight", amount=0.5)
    before = module[4].weight_orig.detach().clone()
    assert calibrate(module, batch) == {}
    assert spread(log_rates(module, batch)) < 0.01
    assert (module[4].weight_orig / before).min() > 0  # scaled under the mask, too
    torch.testing.assert_close(module[4].weight, module[4].weight_orig * module[4].weight_mask)


def test_weights_that_are_zero_have_no_rate() -> None:
    module, batch = perceptron(), torch.randn(128, 6)
    mask = torch.rand(24, 24) < 0.1
    module[4].weight.data *= mask  # as of `initialize_(..., masks=...)`
    twin = copy.deepcopy(module)
    prune.custom_from_mask(twin[4], "weight", mask)
    assert calibrate(module, batch) == calibrate(twin, batch)
    torch.testing.assert_close(module[4].weight, twin[4].weight)


@pytest.mark.parametrize("shape", [(6,), (1, 6)])
def test_a_single_vector_says_nothing_about_units(shape: tuple[int, ...]) -> None:
    assert calibrate(nn.Linear(6, 4), torch.randn(shape)) == {"": "output is constant"}


def test_a_scale_that_is_normalized_away_takes_no_part() -> None:
    module, batch = perceptron(), torch.randn(128, 6)
    parametrizations.spectral_norm(module[2])
    before = copy.deepcopy(dict(module[2].named_parameters()))
    assert calibrate(module, batch) == {"2": "spectral_norm divides the scale away"}
    for name, value in module[2].named_parameters():
        assert torch.equal(value, before[name]), name


def test_constant_units_are_reported_and_kept() -> None:
    module, batch = nn.Linear(2, 3), torch.randn(16, 2)
    nn.init.zeros_(module.weight[1])
    assert calibrate(module, batch, iterations=0) == {"": "1 of 3 units are constant"}
    assert not module.weight[1].any()
    torch.testing.assert_close(units(module(batch), 1)[1], torch.tensor([1.0, 0.0, 1.0]))


class Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.cut, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()) + self.cut(x).detach()


def test_layers_without_gradient_or_call_are_reported() -> None:
    module = Loose()
    notes = calibrate(module, torch.randn(64, 4))
    assert notes == {"cut": "no gradient arrives", "unused": "not called as a module"}


@pytest.mark.parametrize("result", [None, torch.ones(2)])
def test_without_outputs_to_differentiate_the_first_step_is_all(result: object) -> None:
    module, batch = two_weights(), torch.tensor([[-2.0], [2.0]])
    reason = "no gradient arrives"
    notes = calibrate(module, run=lambda: [module(batch).detach(), result])
    assert notes == {"0": reason, "1": reason}
    assert abs(module[0].weight.item()) == pytest.approx(0.5)


def test_gradients_are_taken_within_no_grad() -> None:
    module, batch = two_weights(), torch.tensor([[-2.0], [2.0]])
    with torch.no_grad():
        assert calibrate(module, batch) == {}
    assert abs(module[0].weight.item()) == pytest.approx(math.sqrt(0.5), rel=1e-4)
    assert module[0].weight.grad is None


def test_types_with_unknown_units_are_reported() -> None:
    module = nn.PReLU()
    with unchanged(module, parameters=True):
        notes = data_dependent_(
            module, lambda: module(torch.randn(4, 2)), {"": "weight"}, seed=0, iterations=0
        )
    assert notes == {"": "which dimension of PReLU has the units is not known"}
    assert module.weight.item() == 0.25


def test_after_an_error_the_module_is_as_before() -> None:
    module, batch, calls = perceptron(), torch.randn(8, 6), []
    before = copy.deepcopy(module.state_dict())

    def run() -> Tensor:
        calls.append(None)
        if len(calls) == 3:  # in the midst of the second step
            raise RuntimeError("stop")
        return module(batch)

    with pytest.raises(RuntimeError, match="stop"):
        calibrate(module, run=run)
    module(batch)  # a hook would change weights
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
