from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, prune, spectral_norm
from torch.utils.hooks import RemovableHandle

from lightning_lth.initialization.layer_variance import lsuv_
from lightning_lth.initialization.passes import unchanged

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def weighted(module: Module) -> dict[str, str]:
    return {n: "weight" for n, layer in module.named_modules() if isinstance(layer, WEIGHTED)}


def calibrate(module: Module, *batch: Tensor) -> dict[str, str]:
    with unchanged(module, parameters=True):
        return lsuv_(module, lambda: module(*batch), weighted(module))


def output_stds(module: Module, *batch: Tensor) -> dict[str, float]:
    """In train mode, of every layer with a weight, at its first call."""
    stds: dict[str, float] = {}

    def watch(name: str) -> None:
        def hook(layer: Module, args: object, output: Tensor) -> None:
            stds.setdefault(name, output.std(correction=0).item())

        handles.append(module.get_submodule(name).register_forward_hook(hook))

    with unchanged(module), torch.no_grad():
        handles: list[RemovableHandle] = []
        for name in weighted(module):
            watch(name)
        module.train()
        module(*batch)
        for handle in handles:
            handle.remove()
    return stds


def images(seed: int, size: int = 64) -> Tensor:
    """All batches have the very same scale, which deep GELU and SiLU networks would amplify."""
    values = torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return values / values.std(correction=0)


def start(module: Module, rule: Callable[[Tensor], Tensor]) -> Module:
    for layer in module.modules():
        if isinstance(layer, WEIGHTED):
            rule(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def convolutions(activation: type[Module], *, norm: bool = False, depth: int = 12) -> nn.Sequential:
    layers: list[Module] = []
    for index in range(depth):
        layers.append(nn.Conv2d(64 if index else 3, 64, 3, padding=1))
        layers += [nn.BatchNorm2d(64)] if norm else []
        layers.append(activation())
    return nn.Sequential(*layers)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.norm(self.first(x.relu())).relu())


def residual() -> nn.Sequential:
    blocks = [Block(48) for _ in range(12)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 64)
    return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), *blocks, *ends)


NETWORKS = {
    "gelu": lambda: convolutions(nn.GELU),
    "silu": lambda: convolutions(nn.SiLU),
    "tanh": lambda: convolutions(nn.Tanh),
    "gelu and batch norm": lambda: convolutions(nn.GELU, norm=True),
}
RULES = {"orthogonal": nn.init.orthogonal_, "he": nn.init.kaiming_normal_}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_all_outputs_have_std_1_on_the_batch_and_on_another(network: str, rule: str) -> None:
    module = start(NETWORKS[network](), RULES[rule])
    assert calibrate(module, images(1)) == {}
    assert list(output_stds(module, images(1)).values()) == pytest.approx([1.0] * 12, abs=1e-5)
    assert list(output_stds(module, images(2)).values()) == pytest.approx([1.0] * 12, abs=0.03)


def test_residual_branches_have_std_1_as_well() -> None:
    module = start(residual(), nn.init.kaiming_normal_)
    assert calibrate(module, images(1)) == {}
    assert list(output_stds(module, images(1)).values()) == pytest.approx([1] * 26, abs=1e-5)
    fresh = list(output_stds(module, images(2)).values())
    assert fresh[:-1] == pytest.approx([1] * 25, abs=0.03)
    assert fresh[-1] == pytest.approx(1, abs=0.06)  # of 64 x 64 numbers only


def iterative_lsuv_(module: nn.Sequential, batch: Tensor) -> None:
    """As in the paper: layer by layer, forward passes until the variance is 1."""
    with torch.no_grad():
        for end, layer in enumerate(module, start=1):
            while isinstance(layer, WEIGHTED):
                std = module[:end](batch).std(correction=0)
                if abs(std - 1) < 1e-6:
                    break
                layer.weight /= std


@pytest.mark.parametrize("norm", [False, True])
def test_weights_are_those_of_the_iterative_algorithm(norm: bool) -> None:
    module = start(convolutions(nn.GELU, norm=norm, depth=5), nn.init.orthogonal_)
    other = copy.deepcopy(module)
    calibrate(module, images(1, 16))
    iterative_lsuv_(other, images(1, 16))
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_module_is_called_once() -> None:
    module, calls = convolutions(nn.ReLU, depth=3), []
    lsuv_(module, lambda: calls.append(module(images(1))), weighted(module))
    assert len(calls) == 1


def test_nothing_but_the_weights_changes() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)).eval()
    before = copy.deepcopy(module)
    state = torch.get_rng_state()
    calibrate(module, images(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer.training for layer in module.modules())
    assert not torch.equal(module[0].weight, before[0].weight)
    module[0].weight = before[0].weight
    for name, value in module.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name


def test_biases_are_left_out_and_stay() -> None:
    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight.fill_(4.0)
        module.bias.copy_(torch.tensor([10.0, -10.0]))
    calibrate(module, torch.tensor([[-1.0], [1.0]]))
    assert module.weight.flatten().tolist() == [1.0, 1.0]  # 4 x +-1 has std 4
    assert module.bias.tolist() == [10.0, -10.0]


def test_a_module_in_eval_mode_is_scaled_as_it_trains() -> None:
    module = start(convolutions(nn.ReLU, norm=True, depth=3), nn.init.kaiming_normal_).eval()
    calibrate(module, images(1))
    assert list(output_stds(module, images(1)).values()) == pytest.approx([1.0] * 3, abs=1e-5)


def test_frozen_normalization_stays_in_eval_mode() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, bias=False))
    module[0].eval()
    module[0].running_var.fill_(100.0)  # its output has std 0.1, but 1 in train mode
    calibrate(module, images(1))
    with torch.no_grad():
        assert module(images(1)).std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_a_shared_layer_is_scaled_at_its_first_call() -> None:
    shared = nn.Linear(8, 8, bias=False)
    module = nn.Sequential(shared, nn.Linear(8, 8, bias=False), nn.Tanh(), shared)
    batch = torch.randn(64, 8)
    assert calibrate(module, batch) == {}
    stds = output_stds(module, batch)
    assert stds == {"0": pytest.approx(1, abs=1e-5), "1": pytest.approx(1, abs=1e-5)}


def test_dropout_is_part_of_the_signal() -> None:
    layers = [nn.Linear(64, 512), nn.GELU(), nn.Dropout(0.5), nn.Linear(512, 256)]
    module = nn.Sequential(*layers, nn.GELU(), nn.Dropout(0.2), nn.Linear(256, 64))
    calibrate(module, torch.randn(512, 64))
    stds = output_stds(module, torch.randn(512, 64))
    assert list(stds.values()) == pytest.approx([1, 1, 1], abs=0.03)


LAYERS = {
    "Conv1d": (nn.Conv1d(4, 8, 3), (16, 4, 10)),
    "Conv3d": (nn.Conv3d(4, 8, 3), (4, 4, 6, 6, 6)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), (8, 4, 6, 6)),
    "unbatched": (nn.Conv2d(4, 8, 3), (4, 16, 16)),
    "transposed": (nn.ConvTranspose2d(4, 8, 4, stride=2, groups=2), (8, 4, 6, 6)),
    "circular": (nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular"), (16, 4, 10)),
    "sequence": (nn.Linear(4, 8), (8, 5, 4)),
    "double": (nn.Linear(4, 8).double(), (8, 5, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer(kind: str) -> None:
    layer, shape = copy.deepcopy(LAYERS[kind][0]), LAYERS[kind][1]
    nn.init.zeros_(layer.bias)
    batch = torch.randn(shape, dtype=layer.weight.dtype)
    assert calibrate(layer, batch) == {}
    assert output_stds(layer, batch) == {"": pytest.approx(1, abs=1e-5)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_bits_are_measured_with_more(dtype: torch.dtype) -> None:
    module = nn.Linear(64, 64, dtype=dtype)
    nn.init.normal_(module.weight, std=30.0)  # squares of the outputs exceed 65504
    nn.init.zeros_(module.bias)
    batch = torch.randn(256, 64, dtype=dtype)
    assert calibrate(module, batch) == {}
    assert module(batch).float().std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm(old: bool) -> None:
    norm = nn.utils.weight_norm if old else parametrizations.weight_norm
    module = nn.Sequential(norm(nn.Linear(8, 16, bias=False)), nn.Tanh(), nn.Linear(16, 8))
    batch = torch.randn(64, 8)
    assert calibrate(module, batch) == {}
    assert output_stds(module, batch)["0"] == pytest.approx(1, abs=1e-5)
    loud = module(batch).detach()
    torch.testing.assert_close(module(batch), loud)


def test_pruned_weights_keep_their_values_under_the_mask() -> None:
    module = nn.Linear(8, 8, bias=False)
    before = module.weight.detach().clone()
    prune.l1_unstructured(module, "weight", amount=0.5)
    batch = torch.randn(64, 8)
    assert calibrate(module, batch) == {}
    assert output_stds(module, batch) == {"": pytest.approx(1, abs=1e-5)}
    ratio = module.weight_orig / before
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0, 0].item()))


@pytest.mark.parametrize("normalize", [spectral_norm, parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
def test_a_scale_that_is_normalized_away_is_left_alone(normalize: Callable) -> None:
    module = nn.Sequential(normalize(nn.Linear(8, 8)), nn.Linear(8, 8, bias=False))
    before = copy.deepcopy(dict(module[0].named_parameters()))
    batch = torch.randn(64, 8)
    for _ in range(20):  # power iterations
        module[0](batch)
    assert calibrate(module, batch) == {"0": "spectral_norm divides the scale away"}
    for name, value in module[0].named_parameters():
        assert torch.equal(value, before[name]), name
    assert module(batch).std(correction=0).item() == pytest.approx(1, abs=0.05)  # one power step


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_scaled_at_its_output_projection(training: bool) -> None:
    module, batch = Attention().train(training), torch.randn(16, 5, 16)
    nn.init.zeros_(module.head.bias)
    with torch.no_grad():
        before = module.attention.in_proj_weight.clone()
        assert calibrate(module, batch) == {}
        assert torch.equal(module.attention.in_proj_weight, before)
        stds = [module.attention(batch, batch, batch)[0].std(correction=0), module(batch).std()]
    assert [std.item() for std in stds] == pytest.approx([1, 1], abs=1e-3)


def test_layers_in_eval_mode_are_not_fused_away() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()  # takes nested tensors if it is fused
    module, batch = nn.ModuleList([encoder]), torch.randn(16, 5, 16)
    module.training = True
    padding = torch.arange(5).expand(16, 5) > 3

    def run() -> Tensor:
        return encoder(batch, src_key_padding_mask=padding)

    assert lsuv_(module, run, {"0.layers.0.linear1": "weight"}) == {}
    layer = encoder.layers[0]
    attended = layer.self_attn(batch, batch, batch, key_padding_mask=padding)[0]
    signal = layer.linear1(layer.norm1(batch + attended)) - layer.linear1.bias
    assert signal.std(correction=0).item() == pytest.approx(1, abs=1e-5)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(linear(x, self.used.weight))


def test_layers_that_are_not_called_are_reported() -> None:
    module = Functional()
    before = module.used.weight.detach().clone()
    missed = "not called as a module"
    assert calibrate(module, torch.randn(8, 4)) == {"used": missed, "unused": missed}
    assert torch.equal(module.used.weight, before)


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "output is constant"), (torch.nan, "output is not finite")]
)
def test_outputs_without_a_scale_are_reported(value: float, reason: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(module[0].weight, value)
    notes = calibrate(module, torch.randn(8, 4))
    assert notes["0"] == reason
    torch.testing.assert_close(
        module[0].weight, torch.full((4, 4), value), equal_nan=True, rtol=0, atol=0
    )


def test_rounding_is_no_signal() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    batch = torch.tensor([[1.0], [1.0000001]])
    assert batch[0] != batch[1]
    assert calibrate(module, batch) == {"": "output is constant"}


class Rectified(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Standardized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight / self.weight.std())


def test_layers_of_others_are_tried() -> None:
    batch = torch.randn(64, 8)
    module = Rectified(8, 8, bias=False)
    assert calibrate(module, batch) == {}
    assert output_stds(module, batch) == {"": pytest.approx(1, abs=1e-5)}
    module = Standardized(8, 8, bias=False)
    before = module.weight.detach().clone()
    reason = "output does not follow the scale of the weight"
    assert calibrate(module, batch) == {"": reason}
    assert torch.equal(module.weight, before)


def test_outputs_that_are_no_tensor_are_reported() -> None:
    module = nn.LSTM(4, 4)
    notes = lsuv_(module, lambda: module(torch.randn(3, 2, 4)), {"": "weight_ih_l0"})
    assert notes == {"": "output is not a tensor of real numbers"}


def test_a_compiled_module_runs_eagerly() -> None:
    inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def refuse(graph: object, inputs: object) -> object:
        raise AssertionError("compiled")

    module, batch = torch.compile(inner, backend=refuse), torch.randn(64, 8)
    layers = {"0": "weight", "1": "weight"}
    with unchanged(module, parameters=True):
        assert lsuv_(module, lambda: module(batch), layers) == {}
    signal = inner[0](batch) - inner[0].bias
    assert signal.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_after_an_error_the_module_is_as_before() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(4, 8))  # shapes do not fit
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        calibrate(module, torch.randn(8, 4))
    module[1](torch.randn(8, 4))  # a hook would scale the weight
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
