"""What a user sees after ``initialize_``: the weights, the report, and how the signal fares."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from lightning_lth import initialization as init
from lightning_lth.initialization import initialize_
from lightning_lth.initialization.writing import effective


def rms(values: Tensor) -> float:
    return float(values.detach().square().mean().sqrt())


def assert_same_state(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def perceptron(depth: int, width: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers)


class Block(nn.Module):
    """A residual block without normalization, or with it at the end of the branch."""

    def __init__(self, width: int, *, norm: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        branch = self.second(functional.relu(self.first(inputs)))
        return functional.relu(inputs + self.norm(branch))


def residual(blocks: int, width: int = 64, *, norm: bool = False) -> nn.Sequential:
    return nn.Sequential(*(Block(width, norm=norm) for _ in range(blocks)), nn.Linear(width, 10))


# Which rule a layer gets -------------------------------------------------------------------------


def test_auto_goes_by_the_nonlinearity_that_follows() -> None:
    net = nn.Sequential(
        nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 200), nn.Tanh(),
        nn.Linear(200, 300), nn.SELU(), nn.Linear(300, 100),
    )  # fmt: skip
    report = initialize_(net, seed=0, example_input=torch.randn(4, 200))
    found = [(row.name, row.rule, row.activation) for row in report if "weight" in row.name]
    assert found == [
        ("0.weight", "he", "relu"),
        ("2.weight", "xavier", "tanh"),
        ("4.weight", "lecun", "selu"),
        ("6.weight", "xavier", "linear"),
    ]
    expected = [
        math.sqrt(2 / 200),
        1.5925374 * math.sqrt(2 / 500),
        math.sqrt(1 / 200),
        math.sqrt(2 / 400),
    ]
    for row, std in zip([report[name] for name, _, _ in found], expected, strict=True):
        layer = net.get_submodule(row.name.removesuffix(".weight"))
        assert rms(layer.weight) == pytest.approx(std, rel=0.02)  # type: ignore[arg-type]
        assert row.std_after == pytest.approx(std, rel=0.02)
    assert report["0.weight"].fan == 200
    assert report["0.weight"].gain == pytest.approx(math.sqrt(2))
    assert report["2.weight"].fan == 250


def test_biases_are_zero_and_normalization_is_one() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.PReLU())
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.3, 0.4)
    net[1].running_mean.fill_(5.0)
    report = initialize_(net, "he", seed=0)
    assert not net[0].bias.any()
    assert net[1].weight.tolist() == [1] * 8
    assert not net[1].bias.any()
    assert net[1].running_mean.tolist() == [5] * 8
    assert 0.3 <= float(net[3].weight.detach()) <= 0.4
    assert (report["3.weight"].rule, report["3.weight"].note) == (None, "slopes are kept")
    initialize_(net, "xavier", seed=0, reset_running_stats=True)
    assert net[1].running_mean.tolist() == [0] * 8


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 128, 3, groups=4, padding=1, bias=False),
        nn.Conv2d(64, 64, 3, groups=64, padding=1, bias=False),
        nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(256, 64, 4, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(64, 256, 4, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(256, 64, 3, padding=1, bias=False),
        nn.ConvTranspose2d(64, 64, 2, stride=2, bias=False),
        nn.ConvTranspose2d(64, 128, 4, stride=2, groups=4, padding=1, bias=False),
        nn.Linear(200, 300, bias=False),
    ],
    ids=str,
)
def test_true_fans_keep_the_scale_forward_and_backward(layer: nn.Module) -> None:
    """The cases of which torch's own fans get up to a factor of 8 wrong."""
    is_linear = isinstance(layer, nn.Linear)
    channels = 200 if is_linear else layer.in_channels
    inputs = torch.randn(8, channels) if is_linear else torch.randn(2, channels, 32, 32)
    inputs.requires_grad_()
    initialize_(layer, init.lecun(), seed=0)
    output = layer(inputs)
    inner = output if is_linear else output[..., 2:-2, 2:-2]
    assert rms(inner) == pytest.approx(1, rel=0.08)
    initialize_(layer, init.lecun(fan="fan_out"), seed=0)
    output = layer(inputs)
    (gradient,) = torch.autograd.grad(output, inputs, torch.randn_like(output))
    inner = gradient if is_linear else gradient[..., 2:-2, 2:-2]
    assert rms(inner) == pytest.approx(1, rel=0.08)


def test_orthogonal_keeps_the_scale_of_strided_transposed_convolutions() -> None:
    layer = nn.ConvTranspose2d(256, 64, 4, stride=2, groups=2, padding=1, bias=False)
    initialize_(layer, init.orthogonal(gain=1.0), seed=0)
    output = layer(torch.randn(2, 256, 16, 16))
    assert rms(output[..., 2:-2, 2:-2]) == pytest.approx(1, rel=0.05)


def test_recurrent_layers_gate_by_gate() -> None:
    layer = nn.LSTM(50, 60, num_layers=2, bidirectional=True)
    report = initialize_(layer, seed=0)
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.detach().chunk(4):
                torch.testing.assert_close(torch.linalg.svdvals(gate), torch.ones(60))
            assert report[name].rule == "orthogonal"
        elif name.startswith("weight_ih"):
            for gate in parameter.detach().chunk(4):
                fans = 60 + parameter.shape[1]
                assert float(gate.std()) == pytest.approx(math.sqrt(2 / fans), rel=0.05)
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        total = getattr(layer, f"bias_ih_{suffix}") + getattr(layer, f"bias_hh_{suffix}")
        assert (
            total.tolist() == [0.0] * 60 + [1.0] * 60 + [0.0] * 120
        )  # in torch's order i, f, g, o
    assert report["bias_ih_l0"].note == "forget gate 1"


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, nn.utils.weight_norm, prune.identity]
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_computed_weights_of_recurrent_layers(wrap: Any) -> None:
    layer, plain = nn.LSTM(6, 5), nn.LSTM(6, 5)
    layer.start = nn.Parameter(torch.ones(1, 1, 5))
    wrap(layer, "weight_hh_l0")
    report = initialize_(layer, seed=0)
    assert bool((layer.start == 1).all())  # which torch's layer does not have
    initialize_(plain, seed=0)
    assert report["weight_hh_l0"].rule == "orthogonal"
    torch.testing.assert_close(effective(layer, "weight_hh_l0"), plain.weight_hh_l0.detach())


def test_attention_projection_by_projection() -> None:
    layer = nn.MultiheadAttention(64, 4)
    initialize_(layer, seed=0)
    for chunk in layer.in_proj_weight.detach().chunk(3):
        assert float(chunk.std()) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert float(layer.out_proj.weight.detach().std()) == pytest.approx(
        math.sqrt(2 / 128), rel=0.05
    )
    assert not layer.in_proj_bias.any()


def test_embeddings_have_their_own_rule() -> None:
    net = nn.Sequential(nn.Embedding(1000, 64, padding_idx=3), nn.Linear(64, 8))
    initialize_(net, "he", seed=0, example_input=torch.zeros(1, 2, dtype=torch.long))
    assert not net[0].weight[3].any()
    kept = torch.cat([net[0].weight[:3], net[0].weight[4:]])
    assert rms(kept) == pytest.approx(1 / 8, rel=0.02)
    initialize_(net, init.constant_std(0.02), seed=0)
    assert rms(net[0].weight) == pytest.approx(0.02, rel=0.03)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 500, bias=False)
        self.table = nn.Embedding(500, 64)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens))


def test_a_tied_head_keeps_the_scale_of_the_embedding() -> None:
    net = Tied()
    report = initialize_(net, seed=0, example_input=torch.zeros(1, 2, dtype=torch.long))
    assert rms(net.table.weight) == pytest.approx(1 / 8, rel=0.02)
    assert report["head.weight"].note == "tied to table.weight"
    assert net.head.weight is net.table.weight


@pytest.mark.parametrize("name", ["head.weight", "table.weight"])
def test_a_mask_counts_under_either_name_of_a_tied_weight(name: str) -> None:
    net, mask = Tied(), torch.rand(500, 64) < 0.25
    report = initialize_(net, "xavier", seed=0, masks={name: mask})
    assert torch.equal(net.head.weight != 0, mask)
    assert "density" in report["table.weight"].note


@pytest.mark.parametrize("key", ["head", "head.weight", nn.Linear])
def test_an_override_of_nothing_but_a_tied_weight_is_refused(key: Any) -> None:
    message = r"matches only 'head.weight', which is tied to 'table.weight' .* Use 'table.weight'"
    with pytest.raises(ValueError, match=message):
        initialize_(Tied(), "xavier", seed=0, overrides={key: init.zeros()})
    initialize_(Tied(), "xavier", seed=0, overrides={"*": init.zeros()})


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(width, width) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(inputs)) * self.up(inputs))


def test_gated_units_keep_the_scale() -> None:
    net = nn.Sequential(*(SwiGLU(512) for _ in range(2)))
    inputs = torch.randn(64, 512)
    report = initialize_(net, seed=0, example_input=inputs)
    assert report["0.gate.weight"].activation == "swiglu"
    assert report["0.gate.weight"].gain == 1
    assert report["0.down.weight"].gain == pytest.approx(1.6765, rel=1e-3)
    assert rms(net(inputs)) == pytest.approx(1, rel=0.1)
    told = {"*.down": init.auto(activation="linear")}  # which is what was found
    report = initialize_(net, seed=0, example_input=inputs, overrides=told)
    assert report["0.down.weight"].gain == pytest.approx(1.6765, rel=1e-3)


def test_the_larger_gain_wins_where_two_nonlinearities_follow() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.stem(inputs)
            return torch.relu(hidden), torch.tanh(hidden)

    row = initialize_(Fork(), seed=0, example_input=torch.ones(1, 4))["stem.weight"]
    assert (row.rule, row.activation) == ("xavier", "relu, tanh")
    assert row.gain == pytest.approx(1.5925, rel=1e-3)  # more than the 1.4142 of ReLU


# What is left alone ------------------------------------------------------------------------------


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.full((4, 6), 7.0))
        self.scale = nn.Parameter(torch.full((4,), 7.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.table * self.scale.sum()


def test_unknown_types_and_frozen_layers_are_left_alone_and_listed() -> None:
    net = nn.Sequential(Custom(), nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 2))
    before = state(net)
    report = initialize_(net, "xavier", seed=0)
    assert {row.name: row.note for row in report.skipped} == {
        "0.table": "no rule for this type; name one in `overrides`",
        "0.scale": "no rule for this type; name one in `overrides`",
        "1.weight": "frozen",
        "1.bias": "frozen",
    }
    for name in ("0.table", "0.scale", "1.weight", "1.bias"):
        assert torch.equal(net.state_dict()[name], before[name])
    assert not torch.equal(net[2].weight, before["2.weight"])


class Matrix(nn.Module):
    """A linear layer that transposes its weight, as in transformers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((inputs, outputs), 7.0))
        self.bias = nn.Parameter(torch.full((outputs,), 7.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def test_matrices_of_unknown_layers_are_told() -> None:
    net = nn.Sequential(Matrix(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.warns(UserWarning, match=r"type Matrix are not known, so that '0.weight' keep"):
        initialize_(net, "xavier", seed=0)
    assert (net[0].weight == 7).all()
    initialize_(net, "xavier", seed=0, overrides={"0.weight": init.he()})
    assert net[0].weight.std() < 1
    net[0].requires_grad_(False)  # as the user wants it
    initialize_(net, "xavier", seed=0)


def test_matrices_that_a_forward_pass_multiplies_with_are_told() -> None:
    net = nn.Sequential(Custom(), nn.Linear(6, 2))
    with pytest.warns(UserWarning, match=r"type Custom are not known, so that '0.table' keep"):
        initialize_(net, "xavier", seed=0, example_input=torch.ones(1, 4))


def test_complex_weights_are_told() -> None:
    with pytest.warns(UserWarning, match=r"^'weight' \(complex numbers\) cannot be drawn and keep"):
        initialize_(nn.Linear(4, 3, dtype=torch.complex64), "xavier", seed=0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformers.pytorch_utils.Conv1D", (100, 400)),
        ("torch_geometric.nn.dense.linear.Linear", (400, 100)),
    ],
)
def test_linear_layers_of_other_libraries(name: str, shape: tuple[int, int]) -> None:
    """He for the ReLU behind: a standard deviation of sqrt(2 / 100)."""
    module, _, kind = name.rpartition(".")
    layer = type(kind, (Matrix,), {"__module__": module})(*shape)
    if kind == "Linear":
        layer.forward = lambda inputs: functional.linear(inputs, layer.weight)
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(400, 2))
    row = initialize_(net, seed=0, example_input=torch.ones(1, 100))["0.weight"]
    assert (row.rule, row.fan, row.activation) == ("he", 100, "relu")
    assert float(net[0].weight.detach().std()) == pytest.approx(0.02**0.5, rel=0.02)
    assert (net[0].bias[:100] == 0).all()
    initialize_(net, init.orthogonal(gain=1.0), seed=0)
    weight = net[0].weight.detach()
    square = weight @ weight.T if kind == "Conv1D" else weight.T @ weight
    torch.testing.assert_close(square, torch.eye(100))


def test_buffers_gradients_flags_and_random_states_are_untouched() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
    net[1].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    random_state = torch.get_rng_state()
    for scheme in ("auto", "lsuv", "data_dependent", "orthogonal"):
        initialize_(net, scheme, seed=0, example_input=torch.randn(
            4, 3, 8, 8, generator=torch.Generator().manual_seed(0)
        ))  # fmt: skip
        assert torch.equal(torch.get_rng_state(), random_state), scheme
        assert not net[1].running_mean.any(), scheme
        assert [layer.training for layer in net.modules()] == [True, True, False, True, True]
        assert bool((net[0].weight.grad == 1).all())
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


# Overrides and masks -----------------------------------------------------------------------------


def test_overrides_by_name_and_by_type() -> None:
    net = nn.Sequential(Custom(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    report = initialize_(
        net,
        seed=0,
        example_input=torch.ones(3, 4),
        overrides={
            "3": init.zeros(),
            "1.bias": init.constant(0.5),
            Custom: init.constant_std(0.0),
            "*": init.constant(0.25),
        },
    )
    assert not net[3].weight.any()  # the name of the layer means its weight
    assert net[1].bias.tolist() == [0.5] * 6
    assert not net[3].bias.any()  # "*" means weights only
    assert not net[0].table.any()
    assert net[0].scale.tolist() == [7.0] * 4
    assert bool((net[1].weight == 0.25).all())
    assert report["1.weight"].rule == "constant(0.25)"


def test_an_override_that_draws_nothing_is_told() -> None:
    net = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))
    rules = {"0": init.zeros(), "*": init.he()}
    with pytest.warns(UserWarning, match=r"^'0' in `overrides` draws nothing: '0.weight' is .*fro"):
        initialize_(net, "xavier", seed=0, overrides=rules)  # type: ignore[arg-type]


def test_a_rule_of_ones_own() -> None:
    def alternating(weight: init.Weight, generator: torch.Generator) -> Tensor:
        values = torch.ones(weight.shape)
        values[..., ::2] = -1
        return values / weight.fan_in

    net = nn.Linear(4, 3)
    report = initialize_(net, alternating, seed=0)
    assert net.weight.tolist() == [[-0.25, 0.25, -0.25, 0.25]] * 3
    assert report["weight"].rule == "alternating"


def test_the_user_knows_the_nonlinearity_best() -> None:
    net = nn.Sequential(nn.Linear(100, 100), nn.ReLU())
    rule = init.auto(activation="selu")
    report = initialize_(net, seed=0, example_input=torch.ones(1, 100), overrides={"0": rule})
    assert (report["0.weight"].rule, report["0.weight"].activation) == ("lecun", "selu")
    assert rms(net[0].weight) == pytest.approx(0.1, rel=0.03)


def test_fans_count_surviving_weights() -> None:
    net = nn.Sequential(nn.Linear(400, 400, bias=False), nn.ReLU())
    prune.random_unstructured(net[0], "weight", amount=0.9)
    inputs = torch.randn(100, 400)
    masks = init.pruning_masks(net)
    report = initialize_(net, "lecun", seed=0, masks=masks)
    assert rms(net[0](inputs)) == pytest.approx(1, rel=0.05)
    assert report["0.weight"].note == "density 0.1"
    initialize_(net, "lecun", seed=0)  # not asked for
    assert rms(net[0](inputs)) == pytest.approx(math.sqrt(0.1), rel=0.05)


def test_masks_of_a_ticket_leave_zeros() -> None:
    net = nn.Linear(40, 40)
    mask = torch.rand(40, 40) < 0.25
    initialize_(net, "he", seed=0, masks={"weight": mask})
    assert torch.equal(net.weight != 0, mask)


# Reproducibility ---------------------------------------------------------------------------------


def test_values_depend_on_seed_name_and_shape_alone() -> None:
    small = nn.ModuleDict({"head": nn.Linear(6, 2), "body": nn.Linear(4, 6)})
    large = nn.ModuleDict(
        {"body": nn.Linear(4, 6), "more": nn.Conv2d(3, 4, 3), "head": nn.Linear(6, 2)}
    )
    torch.manual_seed(1)
    initialize_(small, "he", seed=5)
    torch.manual_seed(2)
    initialize_(large, "he", seed=5)
    for name in ("head", "body"):
        assert torch.equal(small[name].weight, large[name].weight)
    assert not torch.equal(small["head"].weight[:, :2], small["body"].weight[:2, :2])
    initialize_(small, "he", seed=6)
    assert not torch.equal(small["head"].weight, large["head"].weight)


def test_the_seed_is_that_of_torch_unless_given() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    torch.manual_seed(11)
    torch.rand(100)  # what has been drawn since does not matter
    assert initialize_(first, "xavier").seed == 11
    initialize_(second, "xavier", seed=11)
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda **kwargs: nn.Linear(40, 30, **kwargs),
        lambda **kwargs: nn.Conv2d(4, 6, 3, groups=2, **kwargs),
        lambda **kwargs: nn.ConvTranspose2d(4, 6, 3, **kwargs),
        lambda **kwargs: nn.ConvTranspose2d(4, 6, 3, groups=2, **kwargs),
        lambda **kwargs: nn.Bilinear(4, 5, 6, **kwargs),
    ],
)
@pytest.mark.parametrize("rule", [init.he(), init.orthogonal(gain=1), init.lecun("uniform")])
def test_dtype_and_memory_layout_change_no_value(
    make: Callable[..., nn.Module], rule: init.Rule
) -> None:
    exact, rounded = make(), make(dtype=torch.bfloat16)
    initialize_(exact, rule, seed=0)
    initialize_(rounded, rule, seed=0)
    assert torch.equal(exact.weight.bfloat16(), rounded.weight)  # type: ignore[operator]
    if exact.weight.dim() == 4:  # type: ignore[operator]
        other = make().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        initialize_(other, rule, seed=0)
        assert torch.equal(exact.weight, other.weight)  # type: ignore[arg-type]
        assert other.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]


def test_the_defaults_of_torch_change_no_value() -> None:
    net = nn.Sequential(nn.LSTM(8, 6), nn.Linear(6, 4)).double()
    for rule in (init.auto(activation="relu"), init.orthogonal(gain=1.0), init.torch_default()):
        initialize_(net, rule, seed=0)
        before = state(net)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                initialize_(net, rule, seed=0)
        finally:
            torch.set_default_dtype(torch.float32)
        assert_same_state(net, before)


def test_the_seed_decides_dropout_in_data_driven_schemes() -> None:
    net, inputs = nn.Sequential(nn.Dropout(), nn.Linear(6, 4)), torch.randn(8, 6)
    for scheme in ("lsuv", "data_dependent"):
        initialize_(net, scheme, seed=0, example_input=inputs)
        before = state(net)
        torch.rand(1)  # the global generator has gone on
        initialize_(net, scheme, seed=0, example_input=inputs)
        assert_same_state(net, before)


def test_compilation_changes_no_name() -> None:
    plain, compiled = perceptron(2, 8, nn.ReLU), perceptron(2, 8, nn.ReLU)
    wrapped = torch.compile(nn.Sequential(torch.compile(compiled)))
    report = initialize_(wrapped, seed=0, example_input=torch.ones(1, 8))
    expected = initialize_(nn.Sequential(plain), seed=0, example_input=torch.ones(1, 8))
    assert [row.name for row in report] == [row.name for row in expected]
    assert [row.activation for row in report] == [row.activation for row in expected]
    for first, second in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(first, second)


# Schemes -----------------------------------------------------------------------------------------


def test_torch_default_is_that_of_torch() -> None:
    net = nn.Sequential(nn.Linear(300, 200), nn.Conv2d(8, 16, 3), nn.LayerNorm(5))
    initialize_(net, "torch_default", seed=0)
    net.requires_grad_(False)  # only for `float` below
    assert float(net[0].weight.abs().max()) == pytest.approx(1 / math.sqrt(300), rel=1e-3)
    assert float(net[0].bias.abs().max()) == pytest.approx(1 / math.sqrt(300), rel=0.05)
    assert float(net[1].weight.abs().max()) == pytest.approx(1 / math.sqrt(72), rel=0.01)
    assert net[2].weight.tolist() == [1] * 5


def test_fixup_logits_are_zero_and_the_loss_is_the_log_of_the_classes() -> None:
    net = residual(blocks=9)
    inputs, labels = torch.randn(16, 64), torch.randint(10, (16,))
    report = initialize_(net, "fixup", seed=0, example_input=inputs)
    assert not net(inputs).any()
    loss = functional.cross_entropy(net(inputs), labels).detach()
    assert float(loss) == pytest.approx(math.log(10))
    # 9 branches of 2 layers: 9 ** (-1 / 2) = 1/3 of He.
    assert rms(net[4].first.weight) == pytest.approx(math.sqrt(2 / 64) / 3, rel=0.05)
    assert not net[4].second.weight.any()
    assert report["4.second.weight"].note == "end of a residual branch"
    initialize_(net, init.fixup(init.torch_default()), seed=0, example_input=inputs)
    assert not net(inputs).any()  # torch draws biases as well, but not there
    assert net[4].first.bias.any()


def test_overrides_are_not_scaled_by_fixup() -> None:
    rule = init.constant(0.5)
    net = residual(blocks=9)
    initialize_(net, "fixup", seed=0, example_input=torch.randn(2, 64), overrides={"4.first": rule})
    assert bool((net[4].first.weight == 0.5).all())


@pytest.mark.parametrize("scheme", ["auto", "fixup"])
def test_branch_ends_that_cannot_be_zero_are_named(scheme: str) -> None:
    class Plain(Block):
        def __init__(self) -> None:
            super().__init__(8)
            self.norm = nn.BatchNorm1d(8, affine=False)
            self.second.requires_grad_(False)

    net, inputs = nn.Sequential(Plain(), nn.Linear(8, 2)), torch.randn(4, 8)
    name = "0.norm" if scheme == "auto" else "0.second"
    with pytest.warns(UserWarning, match=f"^'{name}' should start at 0 and cannot"):
        initialize_(net, scheme, seed=0, example_input=inputs, zero_branch_ends=scheme == "auto")


@pytest.mark.parametrize("norm", [True, False])
def test_branch_ends_start_at_zero_if_asked(norm: bool) -> None:
    net = residual(blocks=3, norm=norm)
    inputs = torch.rand(16, 64)
    for scheme in ("torch_default", "auto"):
        initialize_(net, scheme, seed=0, example_input=inputs, zero_branch_ends=True)
        torch.testing.assert_close(net[:3](inputs), inputs)  # every block is the identity
    assert bool(net[1].second.weight.any()) == norm
    initialize_(net, seed=0, example_input=inputs)
    assert net[1].second.weight.any()


def test_lsuv_makes_every_output_unit_variance() -> None:
    net = perceptron(6, 64, nn.GELU)
    inputs = torch.randn(256, 64)
    report = initialize_(net, "lsuv", seed=0, example_input=inputs)
    for position in range(0, 12, 2):
        assert float(net[: position + 1](inputs).detach().std(correction=0)) == pytest.approx(
            1, abs=1e-4
        )
    assert report["0.weight"].rule == "lsuv of orthogonal"
    scaled = float(net[0].weight.detach().std(correction=0))
    assert report["0.weight"].std_after == pytest.approx(scaled)
    ratio = net[0].weight @ net[0].weight.T
    torch.testing.assert_close(ratio, ratio[0, 0] * torch.eye(64), rtol=1e-4, atol=1e-4)


def test_data_driven_schemes_leave_overridden_layers_alone() -> None:
    net = perceptron(3, 16, nn.ReLU)
    rule = init.constant_std(0.3)
    initialize_(net, "lsuv", seed=0, example_input=torch.randn(32, 16), overrides={"2": rule})
    expected = perceptron(3, 16, nn.ReLU)
    initialize_(expected, rule, seed=0)
    assert torch.equal(net[2].weight, expected[2].weight)


def test_data_dependent_leaves_overridden_biases_alone() -> None:
    net = perceptron(2, 16, nn.ReLU)
    overrides = {"0.bias": init.constant(3.0)}
    inputs = torch.randn(32, 16)
    report = initialize_(net, "data_dependent", seed=0, example_input=inputs, overrides=overrides)
    assert net[0].bias.tolist() == [3.0] * 16
    rules = [report[name].rule for name in ("0.bias", "2.weight", "2.bias")]
    assert rules == ["constant(3)", "data_dependent of he", "data_dependent"]


@pytest.mark.parametrize("seed", [2**64, -(2**70)])
def test_any_integer_is_a_seed(seed: int) -> None:
    net = perceptron(2, 4, nn.ReLU)
    report = initialize_(net, "data_dependent", seed=seed, example_input=torch.randn(8, 4))
    assert report.seed == seed


def test_data_dependent_normalizes_every_unit() -> None:
    net = perceptron(4, 32, nn.ReLU)
    inputs = torch.randn(512, 32)
    scheme = init.data_dependent(iterations=0)
    initialize_(net, scheme, seed=0, example_input=inputs)
    for position in range(0, 8, 2):
        output = net[: position + 1](inputs)
        torch.testing.assert_close(output.mean(0), torch.zeros(32), rtol=0, atol=1e-4)
        torch.testing.assert_close(output.std(0, correction=0), torch.ones(32), rtol=1e-3, atol=0)


def test_fifty_orthogonal_layers_are_an_isometry() -> None:
    net = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(50)))
    initialize_(net, "orthogonal", seed=0, example_input=torch.ones(1, 32))
    product = net(torch.eye(32))
    assert bool(((torch.linalg.svdvals(product) - 1).abs() < 1e-5).all())
    initialize_(net, "lecun", seed=0)
    assert (
        float(torch.linalg.cond(net(torch.eye(32)).detach())) > 1e5
    )  # Saxe et al.: the spread grows


def test_thirty_relu_layers_learn_with_he_and_stall_with_xavier() -> None:
    """He et al. 2015, figure 3."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 32, generator=generator)
    labels = (inputs[:, :4]).argmax(1)
    losses = {}
    for scheme in ("he", "xavier"):
        net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), *perceptron(29, 64, nn.ReLU))
        net.append(nn.Linear(64, 4))
        initialize_(net, scheme, seed=0, example_input=inputs)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
        losses[scheme] = float(loss.detach())
    assert losses["he"] < 1.0
    assert losses["xavier"] > 0.98 * math.log(4)


@pytest.mark.parametrize("scheme", ["xavier", "he", "lecun", "orthogonal", "random_walk"])
def test_depth_with_relu(scheme: str) -> None:
    """20 layers: only a gain of the square root of 2 keeps the scale; 2^-10 is left without."""
    net = perceptron(20, 256, nn.ReLU)
    inputs = torch.randn(128, 256)
    initialize_(net, scheme, seed=0, example_input=inputs)
    expected = 2.0**-10 if scheme in ("xavier", "lecun") else 1.0
    assert math.log(rms(net(inputs)) / expected) == pytest.approx(0, abs=0.35)


# Without a forward pass, and with a bad one ------------------------------------------------------


def test_one_warning_names_the_layers_for_which_relu_is_assumed() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    with pytest.warns(
        UserWarning, match="follows '0', '2' is not known; there is no `example_"
    ) as all_:
        report = initialize_(net, seed=0)
    assert len(all_) == 1
    assert report["0.weight"].activation == "(relu assumed)"
    assert report["0.weight"].gain == pytest.approx(math.sqrt(2))


def test_layers_that_the_forward_pass_does_not_reach_are_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.wave = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.sin(self.wave(torch.relu(self.used(inputs))))

    with pytest.warns(UserWarning, match="follows 'spare', 'wave' is not known from the forward"):
        report = initialize_(Unused(), seed=0, example_input=torch.ones(1, 4))
    assert report["wave.weight"].activation == "unknown: sin (relu assumed)"


@pytest.mark.parametrize(
    "scheme", ["xavier", "lecun", "zeros", "torch_default", init.constant_std(0.1)]
)
def test_no_warning_where_the_nonlinearity_does_not_matter(scheme: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialize_(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), scheme, seed=0)


def test_lazy_layers_get_their_shapes_from_the_example() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(4, 1))
    random_state = torch.get_rng_state()
    report = initialize_(net, seed=0, example_input=torch.ones(1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert type(net[0]) is nn.Conv2d
    assert report["0.weight"].fan == 27
    assert rms(net[0].weight) == pytest.approx(math.sqrt(2 / 27), rel=0.1)


def test_one_example_is_enough_for_lazy_batch_norm() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    initialize_(net, seed=0, example_input=torch.ones(1, 3))
    assert net[1].weight.tolist() == [1] * 4
    assert net.training


def test_lazy_layers_without_an_example_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2))
    before = net[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"Lazy and without a shape yet: '1'\. Pass an `exampl"):
        initialize_(net, seed=0)
    assert torch.equal(net[0].weight, before)


def test_lazy_layers_stay_lazy_unless_all_are_reached() -> None:
    net = nn.ModuleDict({"used": nn.LazyLinear(4), "spare": nn.LazyLinear(4)})
    with pytest.raises(RuntimeError, match=r"without a shape yet: 'spare'\."):
        initialize_(net, seed=0, example_input=torch.ones(1, 3), forward=lambda m, x: m["used"](x))
    assert type(net["used"]) is nn.LazyLinear


def test_every_pass_gets_its_own_input() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
    inputs = torch.randn(8, 4)
    before = inputs.clone()
    initialize_(net, "data_dependent", seed=0, example_input=inputs)
    assert torch.equal(inputs, before)


class Failing(nn.Module):
    """Fails in its forward pass number ``when``, behind a layer that has been run."""

    def __init__(self, when: int) -> None:
        super().__init__()
        self.norm, self.layer, self.when = nn.BatchNorm1d(4), nn.Linear(4, 4), when

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(self.norm(inputs))
        self.when -= 1
        if self.when < 0:
            raise KeyError("forward")
        return outputs


@pytest.mark.parametrize("when", [0, 1])
def test_a_forward_that_raises_leaves_the_module_as_it_was(when: int) -> None:
    net = Failing(when).train()
    before = state(net)
    with pytest.raises(KeyError, match="forward"):
        initialize_(net, "lsuv", seed=0, example_input=torch.randn(8, 4))
    assert_same_state(net, before)
    assert net.training
    assert not net.layer._forward_hooks


def test_a_forward_that_raises_leaves_lazy_layers_lazy() -> None:
    net = nn.Sequential(nn.LazyLinear(4), Failing(0))
    with pytest.raises(KeyError):
        initialize_(net, seed=0, example_input=torch.randn(8, 4))
    assert type(net[0]) is nn.LazyLinear


def test_a_rule_that_fails_leaves_the_module_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = state(net)
    overrides = {"1": lambda weight, generator: torch.zeros(4, 4)}
    with pytest.raises(
        ValueError, match=r"rule for '1.weight' must return a tensor of \(1, 4, 4\)"
    ):
        initialize_(net, "xavier", seed=0, overrides=overrides)
    assert_same_state(net, before)
    with pytest.raises(ValueError, match="got list"):
        initialize_(net, lambda weight, generator: [1.0], seed=0)  # type: ignore[arg-type]
    assert_same_state(net, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "kaiming"}, ValueError, r"No scheme is called 'kaiming'\. .*'he', 'lecun'"),
        ({"scheme": "fixup"}, ValueError, "Fixup needs a forward pass"),
        ({"scheme": "lsuv"}, ValueError, "LSUV needs a forward pass"),
        ({"zero_branch_ends": True}, ValueError, "`zero_branch_ends` needs a forward pass"),
        ({"seed": "a"}, TypeError, "`seed` must be an integer or None, got str"),
        ({"seed": True}, TypeError, "`seed` must be an integer or None, got bool"),
        ({"seed": torch.Generator()}, TypeError, r"got Generator\. Use its `initial_seed\(\)`"),
        ({"example_input": torch.full((1, 4), math.nan)}, ValueError, "must be finite"),
        ({"overrides": {"0.wieght": init.he()}}, ValueError, "Did you mean '0.weight'"),
        ({"overrides": {nn.Conv2d: init.he()}}, ValueError, "a Conv2d, .*: Linear, LayerNorm"),
        ({"overrides": {nn.LayerNorm: init.he()}}, ValueError, "^LayerNorm .* as '2.weight'"),
        (
            {"overrides": {"2": init.he()}},
            ValueError,
            "^'2' .* matches no weight, .* as '2.weight'",
        ),
        (
            {"overrides": {"*": init.he(), "0": init.zeros()}},
            ValueError,
            "^'0' in `overrides` never counts, .* Put it before them",
        ),
        ({"overrides": {"0": "he"}}, TypeError, r"`overrides\['0'\]` must be a rule, got 'he'"),
        ({"overrides": {"0": init.he}}, TypeError, "must be a rule"),
        ({"overrides": {3: init.he()}}, TypeError, "name patterns or types of layers"),
        ({"masks": {"0.bias": torch.ones(4)}}, ValueError, "No weight is called '0.bias'"),
        ({"masks": {"0.weight": torch.ones(3, 3)}}, ValueError, r"its shape \(4, 4\), got \(3, 3"),
        ({"masks": {"0.weight": torch.zeros(4, 4)}}, ValueError, "keeps no weight"),
        (
            {"scheme": "fixup", "example_input": torch.ones(1, 4)},
            ValueError,
            "No residual branch was found",
        ),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4))
    before = state(net)
    with pytest.raises(error, match=message):
        initialize_(net, **arguments)
    assert_same_state(net, before)


def test_modules_without_values_are_refused() -> None:
    with pytest.raises(RuntimeError, match="meta device"):
        initialize_(nn.Linear(4, 3, device="meta"), "xavier")


# The report --------------------------------------------------------------------------------------


def test_the_report_prints_as_a_table() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2).requires_grad_(False))
    nn.init.constant_(net[0].weight, 0.5)
    report = initialize_(net, seed=3, example_input=torch.ones(1, 4))
    lines = str(report).splitlines()
    assert lines[0].split("  ")[0] == "name"
    assert lines[1].split()[:6] == [
        "0.weight", "Linear", "he", "4", "1.414", "relu",
    ]  # fmt: skip
    assert lines[-1] == "2 parameters initialized, 2 skipped; seed 3"
    assert report["0.weight"].std_before == 0
    assert report["0.weight"].std_after == pytest.approx(
        float(net[0].weight.detach().std(correction=0))
    )
    assert report.to_markdown().splitlines()[2].startswith("| 0.weight | Linear | he | 4 | 1.414 ")
    assert report.to_dicts()[2]["note"] == "frozen"
    assert len(report) == 4
    with pytest.raises(KeyError, match="nothing"):
        report["nothing"]


def test_parametrized_layers_are_reported_by_the_weight_they_compute_with() -> None:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(100, 100)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(100, 10)),
    )
    report = initialize_(net, seed=0, example_input=torch.ones(1, 100))
    assert [row.name for row in report] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert report["0.weight"].type == "Linear"
    assert rms(net[0].weight) == pytest.approx(math.sqrt(2 / 100), rel=0.03)
    assert report["2.weight"].note == "spectral_norm divides the scale away"
    twin = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    initialize_(twin, seed=0, example_input=torch.ones(1, 100))
    torch.testing.assert_close(net[0].weight, twin[0].weight)


@pytest.mark.parametrize("scheme", ["lsuv", init.orthogonal(gain=1.0), lambda *a: init.he()(*a)])
def test_an_orthogonal_parametrization_is_drawn(scheme: Any) -> None:
    net = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    before = net[0].weight.detach().clone()
    initialize_(net, scheme, seed=0, example_input=torch.randn(16, 8))
    assert not torch.allclose(net[0].weight, before, atol=0.01)
    torch.testing.assert_close(net[0].weight @ net[0].weight.T, torch.eye(8))


def test_a_parametrization_that_cannot_be_assigned_is_skipped() -> None:
    impossible = parametrizations.orthogonal(
        nn.Linear(4, 4), use_trivialization=False, orthogonal_map="matrix_exp"
    )
    net = nn.Sequential(nn.Linear(4, 4), impossible)
    before = net[1].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"^'1.weight' \(It is not possible .* keep their values"):
        row = initialize_(net, "xavier", seed=0)["1.weight"]
    assert (row.rule, row.note.partition(" to ")[0]) == (None, "It is not possible")
    assert torch.equal(net[1].weight, before)


def test_an_error_of_a_parametrization_leaves_the_module_as_it_was() -> None:
    class Picky(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value

        def right_inverse(self, value: Tensor) -> Tensor:
            if value.std() > 0.1:
                raise KeyError("value")
            return value

    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(net[1].weight)
    nn.utils.parametrize.register_parametrization(net[1], "weight", Picky())
    before = state(net)
    with pytest.raises(KeyError):
        initialize_(net, "xavier", seed=0)
    assert_same_state(net, before)


def test_deep_copies_get_the_same_values() -> None:
    net = residual(blocks=2)
    twin = copy.deepcopy(net)
    for module in (net, twin):
        initialize_(module, "data_dependent", seed=0, example_input=torch.ones(3, 64).cumsum(0))
    assert_same_state(net, state(twin))
