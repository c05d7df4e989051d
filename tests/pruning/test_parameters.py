"""Which parameters are pruned: by layer type, by pattern, and which are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_lth.pruning.parameters import prunable_parameters, strip_compiled


class Scale(nn.Module):
    """A user's own layer, of no type that we know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.temperature = nn.Parameter(torch.tensor(1.0))


class Conv1D(nn.Module):
    """A linear layer as in transformers: of no type that we know, and transposed."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.ones(2, 3))


class NormalizedLinear(nn.Linear):
    """A user's subclass."""


def names(module: nn.Module, parameters: list[str] | None = None) -> list[str]:
    return list(prunable_parameters(module, parameters))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 3), ["weight"]),
        (NormalizedLinear(2, 3), ["weight"]),
        (nn.Bilinear(2, 2, 3), ["weight"]),
        (nn.Conv1d(1, 2, 3), ["weight"]),
        (nn.Conv2d(1, 2, 3), ["weight"]),
        (nn.Conv3d(1, 2, 3), ["weight"]),
        (nn.ConvTranspose1d(1, 2, 3), ["weight"]),
        (nn.ConvTranspose2d(1, 2, 3), ["weight"]),
        (nn.ConvTranspose3d(1, 2, 3), ["weight"]),
        (nn.Embedding(5, 2), ["weight"]),
        (nn.EmbeddingBag(5, 2), ["weight"]),
        # The biases bias_k, bias_v and in_proj_bias stay dense.
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
        (nn.RNN(2, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.LSTM(2, 3, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
        (
            nn.GRU(2, 3, bidirectional=True),
            ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"],
        ),
        (nn.RNNCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.LSTMCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.GRUCell(2, 3), ["weight_ih", "weight_hh"]),
        (Conv1D(2, 3), ["weight"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_default_selects_the_weights_of_known_layers(layer: nn.Module, expected: list[str]) -> None:
    assert names(layer) == expected


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.LayerNorm(3),
        nn.LayerNorm((2, 3)),
        nn.GroupNorm(1, 3),
        nn.PReLU(),
        Scale(),
        Conv1D(3, 1, 1),  # a scale for each channel, as in ConvNeXt
        nn.ReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_default_leaves_out_other_layers(layer: nn.Module) -> None:
    assert names(nn.Sequential(nn.Linear(2, 3), layer)) == ["0.weight"]


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Identity()])
def test_without_prunable_parameters_tells_what_is_prunable(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"has no prunable parameter\..*Linear.*`parameters`\.$"):
        prunable_parameters(layer)


def test_returns_the_live_parameters() -> None:
    layer = nn.Linear(2, 3)
    assert prunable_parameters(layer)["weight"] is layer.weight


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["0.weight"], ["0.weight"]),
        (["*.weight"], ["0.weight", "1.weight", "2.weight"]),
        (["2.*", "0.bias"], ["0.bias", "2.weight"]),  # the module's order, not the patterns'
        (["[01].bias"], ["0.bias", "1.bias"]),
        # `temperature` has no dimension.
        (["*"], ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]),
    ],
)
def test_patterns_select_exactly_what_matches(patterns: list[str], expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), Scale())
    assert names(model, patterns) == expected


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("0.wieght", r"Did you mean '0\.weight'\? Parameters: '0\.weight', '0\.bias'\."),
        ("zzz*", r"`parameters`\. Parameters: '0\.weight', '0\.bias'\."),
        ("0.WEIGHT", r"Parameters: '0\.weight'"),  # case counts
    ],
)
def test_a_pattern_without_a_match_lists_the_names(pattern: str, hint: str) -> None:
    with pytest.raises(ValueError, match="No parameter matches .*" + hint):
        prunable_parameters(nn.Sequential(nn.Linear(2, 3)), ["0.bias", pattern])


def test_a_pattern_for_a_scalar_matches_nothing() -> None:
    with pytest.raises(ValueError, match="No parameter matches 'temperature'"):
        prunable_parameters(Scale(), ["temperature"])


def test_patterns_must_be_a_sequence() -> None:
    with pytest.raises(TypeError, match="sequence of globs, got the string 'weight'"):
        prunable_parameters(nn.Linear(2, 3), "weight")


def test_patterns_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="`parameters` must name at least one"):
        prunable_parameters(nn.Linear(2, 3), [])


def test_tied_weights_come_once_by_their_first_name() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 2), "head": nn.Linear(2, 5)})
    model["head"].weight = model["embedding"].weight
    selected = prunable_parameters(model)
    assert list(selected) == ["embedding.weight"]
    assert selected["embedding.weight"] is model["head"].weight


def test_a_pattern_may_use_any_name_of_a_tied_weight() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 2), "head": nn.Linear(2, 5)})
    model["head"].weight = model["embedding"].weight
    assert names(model, ["head.weight"]) == ["embedding.weight"]


def test_a_weight_tied_to_an_unknown_layer_is_selected() -> None:
    model = nn.Sequential(Scale(), nn.Linear(3, 3))
    model[0].weight = model[1].weight
    assert names(model) == ["0.weight"]


def test_a_module_used_twice_comes_once() -> None:
    layer = nn.Linear(2, 2)
    assert names(nn.Sequential(layer, nn.ReLU(), layer)) == ["0.weight"]


def test_names_of_compiled_modules_are_plain() -> None:
    # torch.compile compiles nothing before the first forward.
    model = torch.compile(nn.Sequential(torch.compile(nn.Linear(2, 3)), nn.Linear(3, 2)))
    assert names(model) == ["0.weight", "1.weight"]
    assert names(model, ["0.weight"]) == ["0.weight"]


def test_strip_compiled_strips_whole_parts_only() -> None:
    assert strip_compiled("_orig_mod.a._orig_mod.weight") == "a.weight"
    assert strip_compiled("my_orig_mod.weight") == "my_orig_mod.weight"


def test_lazy_weights_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match=r"'0\.weight' is lazy.*Run one forward pass"):
        prunable_parameters(model)
    with pytest.raises(RuntimeError, match=r"'0\.weight' is lazy"):
        prunable_parameters(model, ["0.weight"])
    assert names(model, ["1.weight"]) == ["1.weight"]
    model(torch.ones(1, 2))
    assert names(model) == ["0.weight", "1.weight"]


def parametrized(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", nn.Tanh())


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (parametrized, "remove_parametrizations"),
        (parametrizations.weight_norm, "remove_parametrizations"),
        (parametrizations.orthogonal, "remove_parametrizations"),
        (nn.utils.spectral_norm, "remove_spectral_norm"),
        (lambda layer: prune.random_unstructured(layer, "weight", 0.5), "prune.remove"),
    ],
    ids=["parametrize", "weight_norm", "orthogonal", "spectral_norm", "prune"],
)
@pytest.mark.parametrize("patterns", [None, ["0.weight"], ["0.*"]])
def test_parametrized_weights_are_refused(
    change: object, remedy: str, patterns: list[str] | None
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    change(model[0])
    with pytest.raises(ValueError, match=rf"'0\.weight' is parametrized.*{remedy}\(layer, 'weig"):
        prunable_parameters(model, patterns)
    assert names(model, ["1.weight"]) == ["1.weight"]


def test_old_weight_norm_is_refused() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"'weight' is parametrized.*remove_weight_norm"):
        prunable_parameters(layer)


def test_the_remedy_of_parametrized_weights_works() -> None:
    layer = parametrizations.weight_norm(nn.Linear(2, 3))
    parametrize.remove_parametrizations(layer, "weight")
    assert names(layer) == ["weight"]


def test_a_parametrized_bias_is_no_obstacle() -> None:
    layer = parametrize.register_parametrization(nn.Linear(2, 3), "bias", nn.Tanh())
    assert names(layer) == ["weight"]


def test_a_plain_parameter_may_have_a_parametrization_like_name() -> None:
    layer = nn.Linear(2, 3)
    layer.weight_g = nn.Parameter(torch.ones(3))
    assert names(layer, ["weight_g"]) == ["weight_g"]


def test_frozen_weights_are_left_out_unless_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3).requires_grad_(False), nn.Linear(3, 2))
    assert names(model) == ["1.weight"]
    assert names(model, ["0.weight"]) == ["0.weight"]


def test_a_frozen_model_tells_what_was_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"Left out: '0\.weight' \(frozen: `requires_grad`"):
        prunable_parameters(model)


def test_empty_weights_are_left_out_unless_named() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 3)
    model = nn.Sequential(empty, nn.Linear(3, 2))
    assert names(model) == ["1.weight"]
    assert names(model, ["0.weight"]) == ["0.weight"]


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_left_out_and_refused_if_named(layer: type[nn.Module]) -> None:
    model = nn.Sequential(layer(5, 2, sparse=True), nn.Linear(2, 2))
    assert names(model) == ["1.weight"]
    with pytest.raises(ValueError, match=r"'0\.weight' gets sparse gradients.*`sparse=False`"):
        prunable_parameters(model, ["0.weight"])


def test_a_weight_tied_to_a_sparse_embedding_gets_sparse_gradients_too() -> None:
    model = nn.Sequential(nn.Linear(2, 5), nn.Embedding(5, 2, sparse=True), nn.Linear(2, 2))
    model[0].weight = model[1].weight
    assert names(model) == ["2.weight"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_real_floating_point_is_fine(dtype: torch.dtype) -> None:
    assert names(nn.Linear(2, 3, dtype=dtype)) == ["weight"]


def test_complex_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"'1\.weight' is torch\.complex64; only torch\.float64"):
        prunable_parameters(model)
    assert names(model, ["0.weight"]) == ["0.weight"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_quantized_weights_are_left_out_and_refused_if_named(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].weight = nn.Parameter(torch.zeros(3, 2).to(dtype), requires_grad=False)
    assert names(model) == ["1.weight"]
    with pytest.raises(ValueError, match=rf"'0\.weight' is {dtype}"):
        prunable_parameters(model, ["0.weight"])


def test_meta_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'weight' is on the meta device.*`to_empty`"):
        prunable_parameters(nn.Linear(2, 3, device="meta"))
