import gc
import operator
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from lightning_lth.layer_stats.facts import FunctionalDropout
from lightning_lth.layer_stats.survey import Survey, fallback, is_compiled


class Net(nn.Module):
    """Calls layers by functions given, whose names are those of its attributes."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, values):
        return self._forward(self, values)


def survey(module, values=None):
    with Survey(module) as found:
        module(torch.randn(4, 3) if values is None else values)
    return found.facts


def test_order_is_that_of_the_first_calls():
    net = Net(
        lambda m, x: m.late(m.norm(m.drop(m.norm(m.early(x))))),
        norm=nn.BatchNorm1d(3),
        drop=nn.Dropout(),
        late=nn.LayerNorm(3),
        early=nn.Dropout(0.1),
        unused=nn.GroupNorm(1, 3),
    )
    facts = survey(net)
    assert facts.order == ["early", "norm", "drop", "late"]
    assert facts.dropout_before == {"norm": ["early"]}
    assert facts.is_observed


def test_dropout_before_has_only_what_drops():
    net = nn.Sequential(nn.Dropout(0.0), nn.Dropout().eval(), nn.Dropout(), nn.BatchNorm1d(3))
    assert survey(net).dropout_before == {"3": ["2"]}


@pytest.mark.parametrize(
    "relu",
    [
        functional.relu,
        torch.relu,
        torch.relu_,
        torch.Tensor.relu,
        functional.relu6,
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        lambda values: functional.relu(input=values),
        lambda values: torch.relu(values.contiguous()),
    ],
)
def test_relu_directly_behind(relu):
    net = Net(lambda m, x: relu(m.norm(x)), norm=nn.BatchNorm1d(3))
    assert survey(net).before_relu == {"norm"}


@pytest.mark.parametrize(
    "behind",
    [
        lambda values: torch.relu(values + 1),
        lambda values: torch.relu(values.add_(1)),
        lambda values: torch.relu(operator.iadd(values, 1)),
        functional.gelu,
        functional.hardtanh,
        lambda values: (values, torch.relu(torch.ones(2)))[0],
    ],
)
def test_relu_elsewhere(behind):
    net = Net(lambda m, x: behind(m.norm(x)), norm=nn.BatchNorm1d(3))
    assert survey(net).before_relu == set()


def test_relu_behind_layer_normalization_does_not_count():
    assert survey(nn.Sequential(nn.LayerNorm(3), nn.ReLU())).before_relu == set()


def once(owner, function, p, is_training=True, is_left_on=False):
    return [FunctionalDropout(owner, function, p, is_training, is_left_on)]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: functional.dropout(x), ("dropout", 0.5)),
        (lambda x: functional.dropout(x, 0.2), ("dropout", 0.2)),
        (lambda x: functional.dropout(x, p=0.2, training=True), ("dropout", 0.2)),
        (lambda x: torch.dropout(x, 0.2, True), ("dropout", 0.2)),
        (lambda x: torch.dropout_(x.clone(), p=0.2, train=True), ("dropout", 0.2)),
        (lambda x: functional.dropout1d(x, 0.2), ("dropout1d", 0.2)),
        (lambda x: functional.alpha_dropout(x, 0.2, True), ("alpha_dropout", 0.2)),
        (lambda x: functional.alpha_dropout(x, 0.2), ("alpha_dropout", 0.2, False)),
        (lambda x: functional.dropout(x, 0.2, False), ("dropout", 0.2, False)),
        (
            lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.2),
            ("scaled_dot_product_attention", 0.2),
        ),
        (
            lambda x: functional.scaled_dot_product_attention(x, x, x, None, 0.2),
            ("scaled_dot_product_attention", 0.2),
        ),
    ],
)
def test_functional_dropout(call, expected):
    net = nn.Sequential(Net(lambda m, x: call(call(x))))
    assert survey(net).functional_dropout == once("0", *expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: functional.dropout(x, 0.0),
        lambda x: functional.scaled_dot_product_attention(x, x, x),
    ],
)
def test_what_cannot_drop_is_not_noted(call):
    assert survey(Net(lambda m, x: call(x))).functional_dropout == []
    assert survey(nn.Sequential(nn.Dropout())).functional_dropout == []


def test_attention_and_recurrent_layers():
    attention = nn.MultiheadAttention(4, 2, dropout=0.3)
    net = Net(
        lambda m, x: m.lstm(m.gru(m.attention(x, x, x)[0])[0]),
        attention=attention,
        gru=nn.GRU(4, 4, 2, dropout=0.2),
        lstm=nn.LSTM(4, 4, 2),
    )
    expected = [
        *once("attention", "multi_head_attention_forward", 0.3),
        *once("gru", "gru", 0.2),
    ]
    assert survey(net, torch.randn(3, 2, 4)).functional_dropout == expected
    assert fallback(net).functional_dropout == expected


def test_dropout_left_on_in_evaluation():
    net = Net(lambda m, x: functional.dropout(functional.dropout1d(x, 0.5, m.training))).eval()
    assert survey(net).functional_dropout == [
        *once("", "dropout1d", 0.5, is_training=False),
        *once("", "dropout", 0.5, is_left_on=True),
    ]


def test_outputs_and_random_numbers_are_as_without():
    net, values = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3)), torch.randn(4, 3)
    torch.manual_seed(1)
    expected, after = net(values), torch.rand(2)
    torch.manual_seed(1)
    with Survey(net):
        output = net(values)
    assert output.equal(expected)
    assert torch.rand(2).equal(after)


def test_no_tensor_is_kept():
    kept = []
    net = Net(lambda m, x: m.norm(x), norm=nn.BatchNorm1d(3))
    net.norm.register_forward_hook(lambda *call: kept.append(weakref.ref(call[2])))
    with Survey(net):
        net(torch.randn(4, 3))
        gc.collect()
        assert kept[0]() is None


def test_an_exception_ends_the_survey():
    with pytest.raises(ValueError, match="here"), Survey(nn.ReLU()) as found:
        raise ValueError("here")
    nn.BatchNorm1d(3)(torch.randn(4, 3))
    assert found.facts.order == []


def test_fallback_goes_by_registration():
    net = nn.Sequential(
        nn.Dropout(), nn.BatchNorm1d(3), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(3)), nn.ReLU6(),
        nn.BatchNorm1d(3), nn.Dropout(), nn.LayerNorm(3), nn.ReLU(),
    )  # fmt: skip
    facts = fallback(net)
    assert facts.order == ["0", "1", "3.0", "5", "6", "7"]
    assert facts.before_relu == {"1", "3.0"}
    assert facts.dropout_before == {"1": ["0"], "3.0": ["0"], "5": ["0"]}
    assert not facts.is_observed


def test_compiled_modules_are_recognised():
    def plain():
        return nn.Sequential(nn.Linear(2, 2))

    assert not is_compiled(plain())
    assert is_compiled(torch.compile(plain()))
    assert is_compiled(nn.Sequential(torch.compile(plain())))
    in_place = plain()
    in_place[0].compile()
    assert is_compiled(in_place)
    by_forward = plain()
    by_forward[0].forward = torch.compile(by_forward[0].forward)
    assert is_compiled(by_forward)
    by_lightning = plain()
    by_lightning._compiler_ctx = {"compiler": "dynamo"}
    assert is_compiled(by_lightning)


def test_compiled_functions_are_surveyed_without_another_compilation():
    torch._dynamo.reset()
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3), nn.ReLU())
    counter = CompileCounterWithBackend("aot_eager")
    function, values = torch.compile(lambda x: net(x), backend=counter), torch.randn(8, 3)

    def output():
        torch.manual_seed(1)
        return function(values)

    expected = output()
    with Survey(net) as found:
        assert output().equal(expected)
    assert output().equal(expected)
    assert counter.frame_count == 1
    assert found.facts.before_relu == {"1"}
    torch._dynamo.reset()
