"""Signals of small networks against numbers worked by hand, and modules left as they were."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_lth.initialization.signal import LayerSignal, SignalReport, signal_propagation


def linear(*rows: list[float]) -> nn.Linear:
    """A linear layer with these weights, and no bias."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


class Function(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def names(report: SignalReport) -> list[str]:
    return [row.name for row in report]


# ------------------------------------------------------------------ activations and gradients


def test_activations_by_hand() -> None:
    # Weights 0..5, an input of ones: sums 0+1, 2+3, 4+5; mean 5, squared deviations 16, 0, 16.
    module = linear([0.0, 1.0], [2.0, 3.0], [4.0, 5.0])
    row = signal_propagation(module, torch.ones(1, 2)).rows[0]
    assert (row.name, row.type) == ("Linear", "Linear")
    assert row.activation_mean == 5
    assert row.activation_std == pytest.approx(math.sqrt(32 / 3))
    assert row.activation_rms == pytest.approx(math.sqrt((1 + 25 + 81) / 3))
    assert (row.dead, row.saturated, row.smallest_singular_value) == (None, None, None)


def test_gradients_by_explicit_products() -> None:
    first, second = torch.arange(6.0).reshape(3, 2) - 2, torch.arange(12.0).reshape(4, 3) - 5
    module = nn.Sequential(linear(*first.tolist()), nn.ReLU(), linear(*second.tolist()))
    inputs = torch.tensor([[1.0, 1.0], [-1.0, 0.5]])
    report = signal_propagation(module, inputs, seed=3)
    cotangent = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    after_relu = cotangent @ second
    before_relu = after_relu * (inputs @ first.T > 0)
    for row, gradient in zip(report, (before_relu, after_relu, cotangent), strict=True):
        assert row.gradient_mean == pytest.approx(float(gradient.mean()), rel=1e-5)
        assert row.gradient_std == pytest.approx(float(gradient.std(correction=0)), rel=1e-5)


def test_the_seed_sets_the_cotangent() -> None:
    reports = [signal_propagation(linear([1.0, 2.0]), torch.ones(5, 2), seed=s) for s in (1, 1, 2)]
    assert reports[0] == reports[1]
    assert reports[0].rows[0].gradient_std != reports[2].rows[0].gradient_std


def test_a_scalar_output_is_the_loss() -> None:
    module = linear([1.0, 2.0], [3.0, 4.0])
    report = signal_propagation(module, torch.ones(1, 2), forward=lambda m, x: m(x).square().sum())
    # The outputs are 3 and 7; the gradient of their squares is 6 and 14.
    assert (report["Linear"].gradient_mean, report["Linear"].gradient_std) == (10, 4)


def test_every_floating_output_gets_a_gradient() -> None:
    def forward(self: Any, x: Tensor) -> dict[str, Any]:
        return {"a": self.a(x), "more": [self.b(x), x.argmax()], "text": "no tensor"}

    module = Function(forward, a=linear([1.0, 0.0]), b=linear([0.0, 1.0]))
    report = signal_propagation(module, torch.ones(3, 2))
    cotangents = torch.Generator().manual_seed(0)
    for name in "ab":
        expected = torch.randn(3, 1, generator=cotangents).mean()
        assert report[name].gradient_mean == pytest.approx(float(expected), rel=1e-6)


def test_several_inputs() -> None:
    module = Function(lambda self, x, y: self.b(x, y), b=nn.Bilinear(1, 1, 1, bias=False))
    nn.init.ones_(module.b.weight)  # type: ignore[union-attr, arg-type]
    inputs = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    assert signal_propagation(module, inputs)["b"].activation_mean == 6
    assert (
        signal_propagation(module, dict(zip("xy", inputs, strict=True)))["b"].activation_mean == 6
    )


def test_frozen_layers_and_what_is_below_them() -> None:
    module = nn.Sequential(linear([1.0]), nn.ReLU(), linear([1.0]), linear([1.0]))
    module[0].requires_grad_(False)
    rows = signal_propagation(module, torch.ones(2, 1)).rows
    assert [row.gradient_std is None for row in rows] == [True, True, False, False]
    rows = signal_propagation(module, torch.ones(2, 1, requires_grad=True)).rows
    assert [row.gradient_std is None for row in rows] == [False] * 4


def test_a_frozen_network_has_no_gradients() -> None:
    module = linear([1.0]).requires_grad_(False)
    assert signal_propagation(module, torch.ones(2, 1)).rows[0].gradient_mean is None


def test_a_detached_branch_has_no_gradient() -> None:
    module = Function(
        lambda self, x: self.a(x).detach() + self.b(x), a=linear([1.0]), b=linear([1.0])
    )
    report = signal_propagation(module, torch.ones(2, 1))
    assert report["a"].gradient_std is None
    assert report["b"].gradient_std is not None


def test_an_output_without_gradient_beside_one_with() -> None:
    module = Function(lambda self, x: (self.a(x), self.b(x)), a=linear([1.0]), b=linear([1.0]))
    module.a.requires_grad_(False)
    report = signal_propagation(module, torch.ones(2, 1))
    assert report["a"].gradient_std is None
    assert report["b"].gradient_std is not None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_also_where_they_are_off(context: Callable[[], Any]) -> None:
    module = linear([1.0, 1.0])
    with context():
        inputs = torch.ones(3, 2)
        assert signal_propagation(module, inputs).rows[0].gradient_std is not None


def test_half_precision_does_not_overflow() -> None:
    module = linear([300.0]).half()  # 300 ** 2 is beyond float16
    inputs = torch.tensor([[1.0], [-1.0]]).half()
    assert signal_propagation(module, inputs).rows[0].activation_std == 300


# ------------------------------------------------------------------------------ which rows


def test_a_shared_module_has_a_row_for_each_call() -> None:
    relu = nn.ReLU()
    module = nn.Sequential(linear([2.0]), relu, linear([-1.0]), relu)
    report = signal_propagation(module, torch.ones(1, 1))
    assert names(report) == ["0", "1", "2", "1 (2)"]
    assert [row.activation_mean for row in report] == [2, 2, -2, 0]


ACTIVATION_CALLS = {
    "F.relu": ("relu", F.relu),
    "torch.relu": ("relu", torch.relu),
    "method": ("relu", Tensor.relu),
    "in place": ("relu", Tensor.relu_),
    "F.relu_": ("relu", F.relu_),
    "inplace=True": ("relu", lambda x: F.relu(x, inplace=True)),
    "keyword": ("relu", lambda x: F.relu(input=x)),
    "keyword of torch": ("relu", lambda x: torch.relu(input=x)),
    "relu6": ("relu6", F.relu6),
    "gelu": ("gelu", F.gelu),
    "silu": ("silu", F.silu),
    "threshold": ("threshold", lambda x: F.threshold(x, 0.5, 0.0)),
    "logsigmoid": ("log_sigmoid", F.logsigmoid),
    "tanh": ("tanh", torch.tanh),
    "sigmoid": ("sigmoid", Tensor.sigmoid),
}


@pytest.mark.parametrize("call", ACTIVATION_CALLS)
def test_functional_activations(call: str) -> None:
    name, function = ACTIVATION_CALLS[call]
    block = Function(lambda self, x: function(self.fc(x)), fc=linear([2.0]))
    inputs = torch.tensor([[1.0], [-1.0], [0.1]])
    expected = float(function(2 * inputs).mean())
    report = signal_propagation(nn.Sequential(block), inputs)
    assert names(report) == ["0.fc", f"0.{name}"]
    assert report[f"0.{name}"].type == name
    assert report[f"0.{name}"].activation_mean == pytest.approx(expected, rel=1e-6)
    assert report["0.fc"].activation_mean == pytest.approx(2 * 0.1 / 3)  # before it is overwritten
    assert report["0.fc"].gradient_std is not None
    assert signal_propagation(block, inputs)[name].activation_mean == pytest.approx(expected)


def test_a_functional_activation_called_twice() -> None:
    module = Function(lambda self, x: F.relu(self.fc(F.relu(x))), fc=linear([-1.0]))
    assert names(signal_propagation(module, torch.ones(1, 1))) == ["relu", "fc", "relu (2)"]


def test_functional_and_module_form_are_the_same() -> None:
    layers = linear([1.0, -2.0], [3.0, 4.0]), linear([1.0, 1.0])
    modules = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    functions = Function(lambda self, x: self.b(F.relu(self.a(x))), a=layers[0], b=layers[1])
    inputs = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    for one, other in zip(
        signal_propagation(modules, inputs, singular_values=True),
        signal_propagation(functions, inputs, singular_values=True),
        strict=True,
    ):
        assert [*vars(one).values()][2:] == [*vars(other).values()][2:]


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ELU(inplace=True)])
def test_in_place_activations_do_not_hide_the_layer_before(activation: nn.Module) -> None:
    inputs = torch.tensor([[1.0], [-1.0]])
    out_of_place = type(activation)()
    reports = [
        signal_propagation(nn.Sequential(linear([2.0]), a), inputs, singular_values=True)
        for a in (activation, out_of_place)
    ]
    assert reports[0] == reports[1]
    assert reports[0]["0"].activation_std == 2


def test_an_in_place_module_does_not_write_into_the_input() -> None:
    inputs = torch.tensor([[1.0, -1.0]])
    signal_propagation(nn.ReLU(inplace=True), inputs, singular_values=True)
    assert inputs.tolist() == [[1, -1]]


def test_reshapes_and_integers_have_no_row() -> None:
    ids = Function(lambda self, x: x.long())
    module = nn.Sequential(ids, nn.Embedding(3, 2), nn.Identity(), nn.Flatten(), nn.Linear(4, 1))
    assert names(signal_propagation(module, torch.ones(5, 2))) == ["1", "4"]


def test_rows_in_order_of_execution() -> None:
    module = Function(lambda self, x: self.a(self.b(x)), a=linear([1.0]), b=linear([1.0]))
    assert names(signal_propagation(module, torch.ones(1, 1))) == ["b", "a"]


def test_a_transformer_layer() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    report = signal_propagation(nn.Sequential(layer), torch.randn(2, 3, 4))
    assert names(report)[:4] == ["0.self_attn", "0.dropout1", "0.norm1", "0.linear1"]
    assert report["0.relu"].type == "relu"


def test_a_parametrized_layer_is_one_row() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert names(signal_propagation(module, torch.ones(1, 2))) == ["0"]


# ------------------------------------------------------------------------ dead and saturated


def test_dead_units_by_hand() -> None:
    # Two of eight units have negative weights only, and the inputs are positive.
    weights = [[1.0], [-1.0], [2.0], [-2.0], [3.0], [4.0], [5.0], [6.0]]
    inputs = torch.tensor([[1.0], [2.0]])
    report = signal_propagation(nn.Sequential(linear(*weights), nn.ReLU()), inputs)
    assert report["1"].dead == 2 / 8
    # With an input of the other sign as well, every unit is alive for one example.
    inputs = torch.tensor([[1.0], [-2.0]])
    assert signal_propagation(nn.Sequential(linear(*weights), nn.ReLU()), inputs)["1"].dead == 0


def test_dead_channels() -> None:
    conv = nn.Conv2d(1, 4, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0, 1.0, 1.0]).reshape(4, 1, 1, 1)
    report = signal_propagation(nn.Sequential(conv, nn.ReLU()), torch.ones(2, 1, 3, 5))
    assert report["1"].dead == 1 / 4


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
def test_dead_channels_without_a_batch(kind: Any) -> None:
    conv = kind(4, 4, 1, bias=False)
    nn.init.dirac_(conv.weight)  # the identity
    sizes = [5] if kind is nn.Conv1d else [3, 5]
    inputs = torch.ones(4, *sizes)
    inputs[1] = -1
    assert signal_propagation(nn.Sequential(conv, nn.ReLU()), inputs)["1"].dead == 1 / 4


def test_units_of_sequences_are_in_the_last_dimension() -> None:
    weights = [[1.0], [-1.0], [2.0], [-2.0]]
    inputs = torch.ones(2, 3, 1)  # examples, positions, features
    report = signal_propagation(nn.Sequential(linear(*weights), nn.ReLU()), inputs)
    assert report["1"].dead == 2 / 4
    conv = nn.Conv1d(1, 4, 1, bias=False)
    conv.weight.data = torch.tensor(weights).unsqueeze(2)
    report = signal_propagation(nn.Sequential(conv, nn.ReLU()), inputs.mT)
    assert report["1"].dead == 2 / 4


@pytest.mark.parametrize(("value", "expected"), [(-1.0, 1), (1.0, 0)])
def test_a_scalar_is_one_unit(value: float, expected: int) -> None:
    module = Function(lambda _, x: F.relu(x.sum()))
    assert signal_propagation(module, torch.tensor([[value]]))["relu"].dead == expected


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), 0.5),
        (nn.ReLU6(), 0.5),
        (nn.Hardswish(), 0.5),
        (nn.Hardtanh(0.0, 2.0), 0.5),
        (nn.Hardtanh(), None),
        (nn.LeakyReLU(), None),
        (nn.Tanh(), None),
        (nn.Dropout(0.0), None),
    ],
)
def test_which_layers_can_be_dead(activation: nn.Module, expected: float | None) -> None:
    report = signal_propagation(activation, torch.tensor([[4.0, -4.0]]))
    assert report.rows[0].dead == expected


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.Tanh(), 3 / 8),  # tanh(2.6) = 0.989, tanh(2.7) = 0.991
        (nn.Sigmoid(), 2 / 8),  # sigmoid(4.5) = 0.989, sigmoid(4.7) = 0.991
        (nn.Hardtanh(), 7 / 8),  # all but 0
        (nn.Hardtanh(-3.0, 5.0), 2 / 8),  # -7 and 7
        (nn.ReLU6(), 1 / 8),  # the 7; the zeros are no limit
        (nn.Hardsigmoid(), 3 / 8),  # from 3 on
        (nn.ReLU(), None),
        (F.hardtanh, 7 / 8),
        (lambda x: F.hardtanh(x, -3.0, 5.0), 2 / 8),
        (lambda x: F.hardtanh(x, max_val=5.0, min_val=-3.0), 2 / 8),
        (F.relu6, 1 / 8),
        (torch.sigmoid, 2 / 8),
    ],
)
def test_saturated_by_hand(activation: Any, expected: float | None) -> None:
    inputs = torch.tensor([[-7.0, -2.6, -1.5, 0.0, 1.5, 2.5, 4.5, 7.0]])
    module = (
        activation if isinstance(activation, nn.Module) else Function(lambda _, x: activation(x))
    )
    assert signal_propagation(module, inputs).rows[0].saturated == expected


# ------------------------------------------------------------------------- singular values


def test_a_linear_layer_has_the_singular_values_of_its_weight() -> None:
    module = nn.Linear(5, 3)
    report = signal_propagation(module, torch.randn(4, 5), singular_values=True)
    largest, _, smallest = torch.linalg.svdvals(module.weight).tolist()
    row = report["Linear"]
    assert row.smallest_singular_value == pytest.approx(smallest, rel=1e-5)
    assert row.largest_singular_value == pytest.approx(largest, rel=1e-5)
    assert report.singular_values == pytest.approx((smallest, largest), rel=1e-5)
    assert (row.note, report.note) == (None, None)


@pytest.mark.parametrize("activation", [nn.Tanh(), Function(lambda _, x: torch.tanh(x))])
def test_the_network_is_the_product_at_the_first_example(activation: nn.Module) -> None:
    first, second = linear([1.0, 2.0], [-1.0, 0.5]), linear([1.0, 1.0], [0.0, 2.0])
    inputs = torch.tensor([[0.3, -0.2], [5.0, 5.0]])
    module = nn.Sequential(first, activation, second)
    report = signal_propagation(module, inputs, singular_values=True)
    # D = diag(tanh'(W x)); tanh' = 1 - tanh^2.
    slopes = 1 - torch.tanh(first.weight.detach() @ inputs[0]) ** 2
    row = report.rows[1]
    assert row.smallest_singular_value == pytest.approx(float(slopes.min()), rel=1e-5)
    assert row.largest_singular_value == pytest.approx(float(slopes.max()), rel=1e-5)
    product = second.weight @ slopes.diag() @ first.weight
    expected = torch.linalg.svdvals(product).tolist()[::-1]
    assert report.singular_values == pytest.approx(expected, rel=1e-5)


def test_singular_values_leave_the_rest_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.RReLU())
    reports = []
    for singular_values in (False, True):
        torch.manual_seed(1)
        report = signal_propagation(module, torch.ones(2, 4), singular_values=singular_values)
        reports.append([(row.activation_mean, row.gradient_std) for row in report])
    assert reports[0] == reports[1]


def test_self_attention_has_one_input() -> None:
    module = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    attend = Function(lambda self, x: self.attention(x, x, x)[0], attention=module)
    report = signal_propagation(attend, torch.randn(3, 2, 4), singular_values=True)
    row = report["attention"]
    assert report.singular_values == pytest.approx(
        (row.smallest_singular_value, row.largest_singular_value), rel=1e-4
    )


def test_inputs_that_do_not_matter_count_as_zero() -> None:
    module = Function(lambda self, x, y: self.fc(x), fc=linear([3.0, 4.0]))
    inputs = torch.ones(2, 2), torch.ones(2, 5)
    report = signal_propagation(module, inputs, singular_values=True)
    assert report.singular_values == pytest.approx((5, 5))  # the length of (3, 4, 0, 0, 0, 0, 0)


def test_fifty_orthogonal_layers_are_an_isometry_and_gaussian_ones_are_not() -> None:
    layers = [nn.Linear(32, 32, bias=False) for _ in range(50)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    report = signal_propagation(nn.Sequential(*layers), torch.randn(2, 32), singular_values=True)
    assert report.singular_values == pytest.approx((1, 1), abs=1e-5)
    for layer in layers:
        nn.init.normal_(layer.weight, std=32**-0.5)
    report = signal_propagation(nn.Sequential(*layers), torch.randn(2, 32), singular_values=True)
    assert report.singular_values is not None
    smallest, largest = report.singular_values
    assert largest / max(smallest, 1e-12) > 1e6


def test_batch_norm_has_singular_values_in_eval_mode_only() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    report = signal_propagation(module, torch.randn(4, 2), singular_values=True)
    assert report["0"].largest_singular_value is None
    assert report["0"].note == report.note == "batch norm on batch statistics mixes the examples"
    assert report.singular_values is None
    module[0].running_var.fill_(4.0)  # type: ignore[union-attr, operator]
    report = signal_propagation(module.eval(), torch.randn(4, 2), singular_values=True)
    assert report["0"].largest_singular_value == pytest.approx(0.5, rel=1e-4)
    assert report.singular_values == pytest.approx((0.5, 0.5), rel=1e-4)


def test_large_jacobians_are_left_out() -> None:
    report = signal_propagation(nn.ReLU(), torch.ones(1, 2049), singular_values=True)
    assert report["ReLU"].largest_singular_value is None
    assert report["ReLU"].note == report.note == "the Jacobian of 2049 x 2049 is too large"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_empty_jacobians_are_left_out() -> None:
    module = Function(lambda self, x: self.inner(x[:, :0]), inner=nn.Linear(0, 2))
    report = signal_propagation(module, torch.ones(1, 3), singular_values=True)
    assert report["inner"].note == "the Jacobian of 2 x 0 is empty"


def test_layers_that_have_no_jacobian_say_so() -> None:
    module = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    report = signal_propagation(module, torch.tensor([0, 1]), singular_values=True)
    assert report["0"].note == report.note == "there is no floating-point input"
    assert report["1"].largest_singular_value is not None
    fixed = Function(lambda self, x: self.view(x), view=Function(lambda _, x: x.reshape(4, 2) * 1))
    assert "shape '[4, 2]' is invalid" in str(
        signal_propagation(fixed, torch.ones(4, 2), singular_values=True).note
    )


# ---------------------------------------------------------------------- nothing is changed


def state(module: nn.Module) -> dict[str, Any]:
    hooks = [name for name in vars(module) if "hooks" in name]
    return {
        "tensors": {name: value.clone() for name, value in module.state_dict().items()},
        "modes": [layer.training for layer in module.modules()],
        "gradients": [parameter.grad for parameter in module.parameters()],
        "hooks": [len(getattr(layer, name)) for layer in module.modules() for name in hooks],
        "random": torch.get_rng_state(),
    }


def assert_same_state(module: nn.Module, before: dict[str, Any]) -> None:
    after = state(module)
    for name, value in before.pop("tensors").items():
        assert torch.equal(value, after["tensors"][name])
    for name in ("modes", "hooks"):
        assert after[name] == before[name]
    assert all(a is b for a, b in zip(after["gradients"], before["gradients"], strict=True))
    assert torch.equal(after["random"], before["random"])


def awkward() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))
    module[0].weight.grad = torch.ones(3, 3)
    module[2].eval()
    return module


@pytest.mark.parametrize("singular_values", [False, True])
def test_the_module_is_as_before(singular_values: bool) -> None:
    module, inputs = awkward(), torch.randn(4, 3, requires_grad=True)
    before = state(module)
    signal_propagation(module, inputs, singular_values=singular_values)
    assert_same_state(module, before)
    assert inputs.grad is None
    assert module(inputs).grad_fn is not None


def test_the_module_is_as_before_when_its_forward_raises() -> None:
    def fail(self: Any, x: Tensor) -> Tensor:
        self.layers(x)
        raise OSError("no disk")

    module, inputs = Function(fail, layers=awkward()), torch.randn(4, 3)
    before = state(module)
    with pytest.raises(OSError, match="no disk"):
        signal_propagation(module, inputs)
    assert_same_state(module, before)
    assert F.relu(torch.ones(1)) == 1


def test_a_forward_may_survive_an_exception() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):
            self.wrong(x)
        return F.relu(self.right(x))

    module = Function(forward, wrong=linear([1.0, 1.0]), right=linear([1.0]))
    assert names(signal_propagation(nn.Sequential(module), torch.ones(1, 1))) == [
        "0.right",
        "0.relu",
    ]


def test_hooks_on_parameters_do_not_run() -> None:
    # E.g. an optimizer that steps within the backward pass.
    module = linear([1.0])
    calls = []
    module.weight.register_post_accumulate_grad_hook(lambda parameter: calls.append(parameter))
    module.weight.register_hook(lambda gradient: calls.append(gradient))
    assert signal_propagation(module, torch.ones(2, 1)).rows[0].gradient_std is not None
    assert calls == []


def test_buffers_stay_and_training_mode_is_measured() -> None:
    module = nn.Sequential(nn.BatchNorm1d(1))
    report = signal_propagation(module, torch.tensor([[10.0], [30.0]]))
    assert report["0"].activation_std == pytest.approx(1, abs=1e-5)  # of the batch
    assert module[0].num_batches_tracked == 0  # type: ignore[union-attr]
    report = signal_propagation(module.eval(), torch.tensor([[10.0], [30.0]]))
    assert report["0"].activation_std == pytest.approx(10, rel=1e-4)


def test_modules_whose_hash_varies() -> None:
    class Metric(nn.Linear):  # as in torchmetrics
        calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(inputs)

        def __hash__(self) -> int:
            return hash((id(self), self.calls))

    metric = Metric(2, 2)
    metric(torch.ones(1, 2))
    net = Function(lambda self, x: self.metric(self.metric(x)), metric=metric)
    assert names(signal_propagation(net, torch.ones(1, 2))) == ["metric", "metric (2)"]


def test_the_copy_of_a_measured_module_still_works() -> None:
    module = awkward()
    signal_propagation(module, torch.randn(4, 3))
    assert copy.deepcopy(module)(torch.randn(4, 3)).shape == (4, 3)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own imports
def test_compiled_modules_run_eagerly() -> None:
    plain = nn.Sequential(linear([2.0]), nn.ReLU())
    inputs = torch.ones(2, 1)
    expected = signal_propagation(plain, inputs)
    compiled = torch.compile(plain, backend="eager")
    assert signal_propagation(compiled, inputs) == expected
    compiled(inputs)
    assert signal_propagation(compiled, inputs) == expected
    plain.compile(backend="eager")
    plain(inputs)
    assert signal_propagation(plain, inputs) == expected


# ----------------------------------------------------------------------- errors and report


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_inputs_must_be_finite(bad: float) -> None:
    message = r"`example_input` must be finite, got 1 NaN or infinite values in a tensor of shape"
    with pytest.raises(ValueError, match=message):
        signal_propagation(nn.Linear(2, 1), {"input": torch.tensor([[1.0, bad]])})


def test_inputs_must_not_be_empty() -> None:
    message = r"must hold at least one example, got a tensor of shape \(0, 2\)\. Pass a batch"
    with pytest.raises(ValueError, match=message):
        signal_propagation(nn.Linear(2, 1), torch.ones(0, 2))


@pytest.mark.parametrize(
    ("output", "got"), [(lambda x: x.argmax(1), r"\['torch.int64'\]"), (lambda x: None, "NoneType")]
)
def test_the_output_must_hold_a_floating_tensor(output: Any, got: str) -> None:
    module = Function(lambda self, x: output(self.fc(x)), fc=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=f"must hold a floating-point tensor, got {got}"):
        signal_propagation(module, torch.ones(1, 2))


def test_the_report_is_a_table() -> None:
    rows = (
        LayerSignal("fc", "Linear", 0.5, 1.25, 1.346, 1e-7, 2e-5),
        LayerSignal("relu", "relu", 10.0, 2.0, 10.2, None, None, dead=0.25),
    )
    report = SignalReport(rows, singular_values=(0.5, 2.0))
    assert str(report).splitlines() == [
        "name  type    activation mean  activation std  activation rms  "
        "gradient mean  gradient std  dead",
        "fc    Linear  0.5              1.25            1.346           1e-07          2e-05",
        "relu  relu    10               2               10.2            "
        "                             0.25",
        "Singular values of the network: 0.5 to 2",
    ]
    assert len(report) == 2
    assert list(report) == list(report.rows)
    assert report["relu"] is rows[1]
    with pytest.raises(KeyError):
        report["nothing"]


def test_the_report_says_why_singular_values_are_missing() -> None:
    assert str(SignalReport((), note="no reason")) == (
        "No singular values of the network: no reason"
    )


def test_the_report_exports() -> None:
    report = signal_propagation(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(3, 2))
    dicts = json.loads(json.dumps(report.to_dicts()))
    assert [row["name"] for row in dicts] == ["0", "1"]
    assert dicts[1]["dead"] == report["1"].dead
    assert [LayerSignal(**row) for row in dicts] == list(report)


def test_resnet18() -> None:
    models = pytest.importorskip("torchvision.models")
    module, inputs = models.resnet18(num_classes=10), torch.randn(2, 3, 32, 32)
    before = state(module)
    report = signal_propagation(module, inputs)
    # 20 convolutions, 20 batch norms, 17 ReLUs, two poolings, one linear layer.
    assert len(report) == 20 + 20 + 17 + 2 + 1
    assert report["layer4.1.relu (2)"].dead is not None
    assert all(row.gradient_std and row.activation_std for row in report)
    assert_same_state(module, before)
