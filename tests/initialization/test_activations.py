"""Which nonlinearity follows each layer: awkward models, with the answer reasoned by hand."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from lightning_lth.initialization.activations import Branch, DataFlow, data_flow

X = torch.linspace(-2, 2, 12).reshape(3, 4)  # for layers of width 4
IMAGE = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
RELU, LINEAR = ("relu",), ("linear",)


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self._run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self, *args, **kwargs)


def fc(width: int = 4, outputs: int = 4) -> nn.Linear:
    return nn.Linear(width, outputs)


def flow(model: nn.Module, *inputs: Any) -> DataFlow:
    return data_flow(model, lambda: model(*inputs))


def following(model: nn.Module, *inputs: Any) -> dict[str, tuple[str, ...]]:
    return dict(flow(model, *inputs).following)


def one_layer(forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> tuple[str, ...]:
    """What follows layer ``a``, of width 4."""
    return following(Net(forward, a=fc(), **layers), X)["a"]


# The 23 models of which the design measured other ways to find the nonlinearity.


def test_sequential() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.Tanh(),
        nn.Linear(5, 2),
    )
    result = flow(model, IMAGE)
    assert result.following == {"0": RELU, "5": ("tanh",), "7": LINEAR}
    assert result.order == ("0", "5", "7")
    assert not result.gated_by
    assert not result.branches


def test_functions_and_methods() -> None:
    model = Net(
        lambda self, x: self.d(F.gelu(self.c(self.b(torch.relu(self.a(x))).relu()))),
        **{name: fc() for name in "abcd"},
    )
    assert following(model, X) == {"a": RELU, "b": RELU, "c": ("gelu",), "d": LINEAR}


def test_one_module_used_three_times() -> None:
    model = Net(
        lambda self, x: self.act(self.c(self.act(self.b(self.act(self.a(x)))))),
        **{name: fc() for name in "abc"},
        act=nn.ReLU(),
    )
    assert following(model, X) == {"a": RELU, "b": RELU, "c": RELU}


def test_execution_order_is_not_definition_order() -> None:
    model = Net(
        lambda self, x: self.first(torch.tanh(self.second(torch.relu(self.third(x))))),
        **{name: fc() for name in ("first", "second", "third")},
    )
    result = flow(model, X)
    assert result.following == {"third": RELU, "second": ("tanh",), "first": LINEAR}
    assert result.order == ("third", "second", "first")


def preactivation(self: Any, x: Tensor) -> Tensor:
    x = x + self.b(F.relu(self.norm2(self.a(F.relu(self.norm1(x))))))
    return self.head(F.relu(self.norm3(x)))


def test_preactivation_residual_block() -> None:
    model = Net(
        lambda self, x: preactivation(self, self.stem(x)),
        **{name: fc() for name in ("stem", "a", "b", "head")},
        **{f"norm{i}": nn.BatchNorm1d(4) for i in (1, 2, 3)},
    )
    result = flow(model, X)
    # The stem goes through norm1 and relu to a, and along the skip connection to the last relu.
    assert result.following == {"stem": RELU, "a": RELU, "b": RELU, "head": LINEAR}
    assert result.branches == (Branch(("a", "b"), end_norm=None),)


def test_postactivation_block_with_projection() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.norm2(self.b(F.relu(self.norm1(self.a(x)))))
        y += self.skip_norm(self.skip(x))
        return F.relu(y)

    model = Net(
        forward,
        **{name: fc() for name in ("a", "b", "skip")},
        **{name: nn.BatchNorm1d(4) for name in ("norm1", "norm2", "skip_norm")},
    )
    result = flow(model, X)
    assert result.following == {"a": RELU, "b": RELU, "skip": RELU}
    assert result.branches == (Branch(("a", "b"), end_norm="norm2"),)
    assert result.branches[0].end == "b"


def test_two_consumers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(torch.tanh(y)) + self.c(torch.relu(y))

    model = Net(forward, a=fc(), b=fc(), c=fc())
    assert following(model, X) == {"a": ("tanh", "relu"), "b": LINEAR, "c": LINEAR}


def test_branching_on_data() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(torch.relu(y)) if y.abs().sum() >= 0 else self.c(torch.tanh(y))

    model = Net(forward, a=fc(), b=fc(), c=fc())
    assert following(model, X) == {"a": RELU, "b": LINEAR}  # c was not run


@pytest.mark.parametrize(
    "activate",
    [Tensor.relu_, torch.relu_, lambda y: F.relu(y, inplace=True), nn.ReLU(inplace=True)],
)
def test_inplace_activation(activate: Callable[[Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        activate(y)  # the same tensor from here on
        return self.b(y)

    assert following(Net(forward, a=fc(), b=fc()), X) == {"a": RELU, "b": LINEAR}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
def test_transformer_encoder_layer(norm_first: bool, is_training: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=norm_first)
    result = flow(layer.train(is_training), X[None])
    # Projections of queries, keys and values go into attention products; their sum over values
    # into the output projection, and that along the residual stream into the MLP or the output.
    assert result.following == {
        "self_attn": LINEAR,
        "self_attn.out_proj": LINEAR,
        "linear1": RELU,
        "linear2": LINEAR,
    }
    assert result.order == ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    assert [branch.layers for branch in result.branches] == [
        ("self_attn", "self_attn.out_proj"),
        ("linear1", "linear2"),
    ]
    assert {branch.end_norm for branch in result.branches} == {None}


def test_weight_of_a_module_that_is_not_called() -> None:
    model = Net(lambda self, x: self.b(F.linear(x, self.a.weight).relu()), a=fc(), b=fc())
    assert following(model, X) == {"a": RELU, "b": LINEAR}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_module(backend: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    compiled = torch.compile(model, backend=backend)
    assert following(compiled, X) == {"0": ("gelu",), "2": LINEAR}


def test_compiled_in_place_and_inside() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model.compile(backend="eager")
    outer = Net(lambda self, x: self.inner(x).tanh(), inner=torch.compile(model, backend="eager"))
    assert following(outer, X) == {"inner.0": RELU, "inner.2": ("tanh",)}


SELF_GATES: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "silu": [
        lambda x: x * torch.sigmoid(x),
        lambda x: x.sigmoid().mul_(x),
        lambda x: torch.sigmoid(x) * x * 2,
        lambda x: x.mul_(x.sigmoid()),
    ],
    "gelu": [
        lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))),
        lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        lambda x: 0.5 * x * (1.0 + torch.special.erf(x * 0.5**0.5)),
        lambda x: x * torch.sigmoid(1.702 * x),
    ],
    "mish": [lambda x: x * torch.tanh(F.softplus(x))],
    "hardswish": [
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x / 6 * F.relu6(x + 3),
        lambda x: x * F.hardsigmoid(x),
        lambda x: x * (x + 3).clamp(0, 6) / 6,
        lambda x: x * (x / 6 + 0.5).clamp(0, 1),
    ],
    # Near, but not the same: a user must say what it is.
    "unknown: x * sigmoid": [
        lambda x: x * torch.sigmoid(2 * x),
        lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
        lambda x: x * torch.sigmoid(x.flip(-1)),
    ],
    "unknown: x * tanh": [lambda x: x * torch.tanh(x)],
    "unknown: x * relu": [lambda x: x * torch.relu(x)],
    "unknown: x * erf": [lambda x: x * torch.erf(x)],
    "unknown: mul": [lambda x: x * x],
}


@pytest.mark.parametrize(
    ("kind", "function"),
    [(kind, function) for kind, functions in SELF_GATES.items() for function in functions],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_by_hand(kind: str, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    model = Net(lambda self, x: self.b(function(self.a(x))), a=fc(), b=fc()).to(dtype)
    inputs = torch.randn(64, 4).to(dtype)
    assert following(model, inputs) == {"a": (kind,), "b": LINEAR}


def test_gate_by_hand_at_low_precision() -> None:
    silu = SELF_GATES["silu"][0]
    # 0.5 + x / 4 for x near 0.001, where bfloat16 has steps of 0.002.
    model = Net(lambda self, x: silu(self.a(x) / 1000), a=fc()).to(torch.bfloat16)
    assert following(model, torch.randn(64, 4).to(torch.bfloat16)) == {"a": ("silu",)}


@pytest.mark.parametrize("kind", ["silu", "gelu", "mish", "hardswish"])
def test_gate_by_hand_without_values(kind: str) -> None:
    function = SELF_GATES[kind][0]
    model = Net(lambda self, x: function(self.a(x)), a=fc())
    assert following(model.to("meta"), X.to("meta")) == {"a": (kind,)}
    nn.init.zeros_(model.to_empty(device="cpu").a.weight)
    nn.init.zeros_(model.a.bias)
    assert following(model, X) == {"a": (kind,)}  # 0 is 0 for any of them


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda y: self.a(y).tanh(), x, use_reentrant=use_reentrant))

    assert following(Net(forward, a=fc(), b=fc()), X) == {"a": ("tanh",), "b": LINEAR}


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "transform",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        old_weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    ],
)
def test_computed_weights(transform: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(transform(fc()), nn.ReLU(), transform(fc()))
    assert following(model, X) == {"0": RELU, "2": LINEAR}


def test_weights_computed_before() -> None:
    model = nn.Sequential(parametrizations.weight_norm(fc()), nn.ReLU(), fc())
    with torch.nn.utils.parametrize.cached():
        model(X)
        assert following(model, X) == {"0": RELU, "2": LINEAR}


def test_weights_swapped() -> None:
    model = nn.Sequential(fc(), nn.ReLU(), fc())
    others = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    result = data_flow(model, lambda: torch.func.functional_call(model, others, (X,)))
    assert result.following == {"0": RELU, "2": LINEAR}


def test_dictionaries() -> None:
    model = Net(
        lambda self, batch: {"y": [self.b(self.a(batch["x"]).relu())], "n": 3}, a=fc(), b=fc()
    )
    assert following(model, {"x": X}) == {"a": RELU, "b": LINEAR}


def test_frozen_layers() -> None:
    model = nn.Sequential(fc(), nn.ReLU(), fc()).requires_grad_(False)
    assert following(model, X) == {"0": RELU, "2": LINEAR}


def test_lightning_module() -> None:
    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(fc(), nn.SELU(), fc())

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch), torch.zeros(3, dtype=torch.long))

    model = Classifier()
    result = data_flow(model, lambda: model.training_step(X, 0))
    assert result.following == {"net.0": ("selu",), "net.2": LINEAR}


@pytest.mark.parametrize("is_functional", [True, False])
def test_resnet18(is_functional: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=2)
    for module in list(model.modules()) if is_functional else []:
        if hasattr(module, "relu"):
            del module.relu
            module.relu = torch.relu
    result = flow(model, torch.randn(1, 3, 32, 32))
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 20
    assert result.following == {**dict.fromkeys(convolutions, RELU), "fc": LINEAR}
    assert result.branches == tuple(
        Branch((f"{block}.conv1", f"{block}.conv2"), end_norm=f"{block}.bn2")
        for block in (f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))
    )


GATES: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("glu", torch.sigmoid),
    ("swiglu", F.silu),
    ("swiglu", lambda x: x * torch.sigmoid(x)),
    ("geglu", F.gelu),
    ("reglu", F.relu),
    ("bilinear", nn.Identity()),
    ("gated tanh", torch.tanh),
    ("gated leaky_relu(0.1)", lambda x: F.leaky_relu(x, 0.1)),
    ("unknown: gated clamp", lambda x: x.clamp(max=3)),
    ("unknown: gated square(relu)", lambda x: x.relu().square()),
]


@pytest.mark.parametrize(("kind", "activation"), GATES)
def test_gated_by_a_sibling(kind: str, activation: Callable[[Tensor], Tensor]) -> None:
    model = Net(  # the MLP of Llama
        lambda self, x: self.down(activation(self.gate(x)) * self.up(x)),
        **{name: fc() for name in ("up", "gate", "down")},
    )
    result = flow(model, X)
    assert result.following == {"gate": (kind,), "up": (kind,), "down": LINEAR}
    assert result.gated_by == {"down": kind}


@pytest.mark.parametrize(("kind", "activation"), GATES)
@pytest.mark.parametrize(
    "halves",
    [
        lambda x: x.chunk(2, dim=-1),
        lambda x: x.split([2, 2], dim=-1),
        lambda x: x.reshape(3, 2, 2).unbind(1),
        lambda x: (x[:, :2], x[:, 2:]),
        lambda x: (x.narrow(1, 0, 2), x.narrow(1, 2, 2)),
    ],
)
def test_gated_by_a_half(
    kind: str, activation: Callable[[Tensor], Tensor], halves: Callable[[Tensor], Any]
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        value, gate = halves(self.up(x))
        product = value * activation(gate)
        return self.down(self.dropout(product).reshape(3, 2))

    result = flow(Net(forward, up=fc(), down=fc(2, 4), dropout=nn.Dropout(0.5)), X)
    assert result.following == {"up": (kind,), "down": LINEAR}
    assert result.gated_by == {"down": kind}


@pytest.mark.parametrize("glu", [nn.GLU(), F.glu])
def test_glu_of_torch(glu: Callable[[Tensor], Tensor]) -> None:
    result = flow(Net(lambda self, x: self.b(glu(self.a(x))), a=fc(), b=fc(2)), X)
    assert result.following == {"a": ("glu",), "b": LINEAR}
    assert result.gated_by == {"b": "glu"}


def test_norm_after_a_gate() -> None:
    model = nn.Sequential(fc(), nn.GLU(), nn.LayerNorm(2), fc(2))
    assert not flow(model, X).gated_by  # the norm makes up for the gate


def test_exponential_after_a_gate() -> None:
    assert not flow(Net(lambda self, x: self.a(F.glu(x).exp()), a=fc(2)), X).gated_by


def test_product_of_layers_with_different_inputs_is_no_gate() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return self.c(self.a(left) * self.b(right))

    result = flow(Net(forward, a=fc(2), b=fc(2), c=fc()), X)
    assert result.following == {"a": LINEAR, "b": LINEAR, "c": LINEAR}
    assert not result.gated_by


def test_recurrent_layer() -> None:
    model = Net(lambda self, x: self.head(self.rnn(x)[0]), rnn=nn.LSTM(4, 5, 2), head=fc(5, 2))
    assert following(model, X[None]) == {"rnn": LINEAR, "head": LINEAR}


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_recurrent_layers_and_cells(cell: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.start + torch.zeros(3, 5)  # learned, and no weight of a layer
        state = (hidden, hidden) if "LSTM" in cell.__name__ else hidden
        output = self.rnn(self.embed(x), state)
        return self.head(output[0] if isinstance(output, tuple) else output).relu()

    layer = cell(4, 5) if "Cell" in cell.__name__ else cell(4, 5, batch_first=True)
    model = Net(forward, embed=fc(), rnn=layer, head=fc(5, 2))
    model.start = nn.Parameter(torch.zeros(5) if "Cell" in cell.__name__ else torch.zeros(1, 3, 5))
    inputs = X if "Cell" in cell.__name__ else X[:, None].expand(3, 2, 4)
    assert following(model, inputs) == {"embed": LINEAR, "rnn": LINEAR, "head": RELU}


def test_packed_sequence() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_sequence([self.a(x), self.a(x[:2])])
        return self.b(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0]).sigmoid()

    model = Net(forward, a=fc(), rnn=nn.GRU(4, 4), b=fc())
    assert following(model, X) == {"a": LINEAR, "rnn": LINEAR, "b": ("sigmoid",)}


def test_decoder() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, stride=2),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 3, 4, stride=2),
        nn.Sigmoid(),
    )
    assert following(model, IMAGE) == {"0": ("leaky_relu(0.2)",), "2": ("sigmoid",)}


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv1d(3, 4, 1), IMAGE[0, :, 0]),
        (nn.Conv3d(2, 4, 1), IMAGE),
        (nn.ConvTranspose1d(3, 4, 1), IMAGE[0, :, 0]),
        (nn.ConvTranspose3d(2, 4, 1), IMAGE),
        (nn.Conv2d(3, 3, 3, groups=3, padding="same", padding_mode="circular"), IMAGE),
        (nn.Embedding(3, 4), torch.tensor([0, 2])),
        (nn.EmbeddingBag(3, 4), torch.tensor([[0, 2]])),
    ],
)
def test_layer_types(layer: nn.Module, inputs: Tensor) -> None:
    assert following(nn.Sequential(layer, nn.Tanh()), inputs) == {"0": ("tanh",)}


def test_bilinear() -> None:
    model = Net(
        lambda self, x: self.c(self.a(x).relu(), self.b(x)).tanh(),
        a=fc(),
        b=fc(),
        c=nn.Bilinear(4, 4, 2),
    )
    assert following(model, X) == {"a": RELU, "b": LINEAR, "c": ("tanh",)}


class Block(nn.Module):
    """A block of GPT-2, with attention by hand."""

    def __init__(self, *, is_parallel: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.proj = fc(4, 12), fc()
        self.up, self.down = fc(4, 16), fc(16, 4)
        self.drop = nn.Dropout(0.1)
        self.is_parallel = is_parallel

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.drop(self.proj(y.transpose(1, 2).reshape(x.shape)))

    def mlp(self, x: Tensor) -> Tensor:
        return self.drop(self.down(F.gelu(self.up(x), approximate="tanh")))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_parallel:
            return x + self.attention(self.norm1(x)) + self.mlp(self.norm1(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def gpt(**settings: Any) -> nn.Module:
    def forward(self: Any, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]).expand_as(ids))
        return self.head(self.norm(self.blocks(x)))

    return Net(
        forward,
        tokens=nn.Embedding(7, 4),
        positions=nn.Embedding(5, 4),
        blocks=nn.Sequential(Block(**settings), Block(**settings)),
        norm=nn.LayerNorm(4),
        head=nn.Linear(4, 7, bias=False),
    )


@pytest.mark.parametrize("is_parallel", [False, True])
def test_gpt(is_parallel: bool) -> None:
    model = gpt(is_parallel=is_parallel)
    result = flow(model, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    ups = {f"blocks.{i}.up" for i in (0, 1)}
    assert result.following == {name: ("gelu",) if name in ups else LINEAR for name in result.order}
    assert result.order == (
        *("tokens", "positions"),
        *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("qkv", "proj", "up", "down")),
        "head",
    )
    assert [branch.layers for branch in result.branches] == [  # but not tokens + positions
        ("blocks.0.qkv", "blocks.0.proj"),
        ("blocks.0.up", "blocks.0.down"),
        ("blocks.1.qkv", "blocks.1.proj"),
        ("blocks.1.up", "blocks.1.down"),
    ]
    assert all(branch.end_norm is None for branch in result.branches)


def test_tied_head() -> None:
    model = gpt()
    model.head.weight = model.tokens.weight
    result = flow(model, torch.tensor([[0, 1, 2]]))
    assert result.order[0] == "tokens"
    assert result.order[-1] == "head"  # the running module that has the weight

    model = Net(
        lambda self, ids: F.linear(self.a(self.tokens(ids)).relu(), self.tokens.weight),
        tokens=nn.Embedding(7, 4),
        a=fc(),
    )
    result = flow(model, torch.tensor([0, 1]))
    assert result.following == {"tokens": LINEAR, "a": RELU}
    assert result.order == ("tokens", "a")


# Attention and multiplication by hand


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v: torch.softmax(q @ k.transpose(-2, -1), -1) @ v,
        lambda q, k, v: torch.bmm(torch.softmax(torch.bmm(q, k.mT), -1), v),
        lambda q, k, v: torch.einsum(
            "bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).sigmoid(), v
        ),
    ],
)
def test_attention_by_hand(attend: Callable[..., Tensor]) -> None:
    model = Net(
        lambda self, x: self.out(attend(self.q(x), self.k(x), self.v(x))).relu(),
        **{name: fc() for name in ("q", "k", "v", "out")},
    )
    expected = {"q": LINEAR, "k": LINEAR, "v": LINEAR, "out": RELU}
    assert following(model, X[None]) == expected


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.softmax(-1),
        lambda x: F.log_softmax(x, -1),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: F.cross_entropy(x, torch.zeros(3, dtype=torch.long)),
        lambda x: F.mse_loss(x, X),
    ],
)
def test_what_comes_after_an_end_does_not_count(end: Callable[[Tensor], Tensor]) -> None:
    assert one_layer(lambda self, x: end(self.a(x)).tanh()) == LINEAR


@pytest.mark.parametrize("kdim", [None, 3])
def test_cross_attention(kdim: int | None) -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True, kdim=kdim, vdim=kdim)

    def forward(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        memory = self.encoder(memory)
        y = self.attention(self.a(x), memory, memory, need_weights=False)[0]
        return self.b((x + y).relu())

    layers = {"encoder": fc(2, kdim or 4), "attention": attention, "a": fc(), "b": fc()}
    result = flow(Net(forward, **layers), X[None], torch.ones(1, 5, 2))
    assert result.following == {
        "encoder": LINEAR,
        "a": LINEAR,
        "attention": LINEAR,
        "attention.out_proj": RELU,
        "b": LINEAR,
    }
    # The encoder is not on the branch: what it gets does not come from the skip connection.
    assert result.branches == (Branch(("a", "attention", "attention.out_proj"), None),)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda x, w: x @ w,
        lambda x, w: x @ w.t(),
        lambda x, w: torch.einsum("bi,ij->bj", x, w),
        lambda x, w: torch.addmm(torch.zeros(4), x, w),
        lambda x, w: torch.tensordot(x, w.mT, 1),
        lambda x, w: torch.bmm(x[None], w.expand(1, 4, 4))[0],
        lambda x, w: F.linear(x, F.softplus(w) * 2),
    ],
)
def test_plain_parameters(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    inner = Net(lambda self, x: multiply(x, self.w).tanh())
    inner.w = nn.Parameter(torch.ones(4, 4))
    model = Net(lambda self, x: self.inner(self.a(x)), a=fc(), inner=inner)
    assert following(model, X) == {"a": LINEAR, "inner": ("tanh",)}


def test_bias_of_another_module() -> None:
    model = Net(
        lambda self, x: torch.addmm(self.a.bias, x, self.b.weight.t()).relu(), a=fc(), b=fc()
    )
    assert following(model, X) == {"b": RELU}


def test_product_with_an_input() -> None:
    model = Net(lambda self, x, graph: (graph @ self.a(x)).relu(), a=fc())
    assert following(model, X, torch.ones(3, 3)) == {"a": RELU}  # a graph convolution


def test_filter_without_weights() -> None:
    blur = Net(lambda self, x: F.conv2d(x, self.kernel, groups=3))
    blur.register_buffer("kernel", torch.ones(3, 1, 2, 2))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), blur, nn.ReLU())
    assert following(model, IMAGE) == {"0": RELU}


def test_modulated_convolution() -> None:
    """StyleGAN 2: the weight depends on another layer."""

    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3, 1, 1))

        def forward(self, x: Tensor, style: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * style)

    model = Net(
        lambda self, x, z: self.conv(x, self.style(z)[:, None, None]).relu(),
        style=fc(4, 3),
        conv=Modulated(),
    )
    assert following(model, IMAGE, X[0]) == {"style": LINEAR, "conv": RELU}


# Squeeze-and-excitation and normalization by hand


def test_squeeze_and_excitation_is_no_gated_linear_unit() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return self.head(F.relu(x * torch.sigmoid(scale)))

    model = Net(
        forward,
        conv=nn.Conv2d(3, 4, 3),
        **{name: nn.Conv2d(4, 4, 1) for name in ("fc1", "fc2", "head")},
    )
    result = flow(model, IMAGE)
    # The convolution goes to fc1 through the average, and through the product to the last relu.
    assert result.following == {
        "conv": ("linear", "relu"),
        "fc1": RELU,
        "fc2": ("sigmoid",),
        "head": LINEAR,
    }
    assert not result.gated_by


NORMS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    lambda x: x / (x * x).mean(-1, keepdim=True).sqrt(),
    lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6),
    lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6),
    lambda x: F.normalize(x),
    lambda x: F.rms_norm(x, (4,)),
    lambda x: F.layer_norm(x, (4,)),
    lambda x: F.group_norm(x, 2),
]


@pytest.mark.parametrize("norm", NORMS)
def test_norm_by_hand(norm: Callable[[Tensor], Tensor]) -> None:
    assert one_layer(lambda self, x: norm(self.a(x)).relu()) == RELU
    assert one_layer(lambda self, x: self.b(norm(self.a(x))), b=fc()) == LINEAR
    assert one_layer(lambda self, x: self.b(norm(self.a(x).relu())), b=fc()) == RELU


# Names


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("relu", nn.Threshold(0, 0)),
        ("relu", lambda x: x.clamp(min=0)),
        ("relu", lambda x: torch.clamp(x, 0)),
        ("relu", lambda x: x.clamp_min_(0)),
        ("relu", lambda x: torch.clip(x, min=0.0)),
        ("relu6", nn.ReLU6()),
        ("relu6", lambda x: x.clamp(0, 6)),
        ("hardtanh", nn.Hardtanh()),
        ("hardtanh", lambda x: x.clamp_(-1, 1)),
        ("hardtanh(-2, 2)", nn.Hardtanh(-2, 2)),
        ("hardtanh(0, 1)", lambda x: x.clamp(0, 1)),
        ("leaky_relu(0.01)", nn.LeakyReLU()),
        ("leaky_relu(0.2)", lambda x: F.leaky_relu_(x, 0.2)),
        ("leaky_relu(0.229167)", nn.RReLU()),  # (1/8 + 1/3) / 2
        ("leaky_relu(0.229167)", F.rrelu),
        ("prelu(0.25)", nn.PReLU()),
        ("prelu(0.25)", nn.PReLU(4)),
        ("elu", nn.ELU()),
        ("elu(2)", nn.ELU(alpha=2)),
        ("celu", nn.CELU()),
        ("celu(2)", lambda x: torch.celu(x, 2.0)),
        ("selu", nn.SELU()),
        ("gelu", nn.GELU("tanh")),
        ("silu", nn.SiLU(inplace=True)),
        ("mish", nn.Mish()),
        ("hardswish", nn.Hardswish()),
        ("tanh", nn.Tanh()),
        ("sigmoid", torch.special.expit),
        ("sigmoid", Tensor.sigmoid_),
        ("hardsigmoid", nn.Hardsigmoid()),
        ("logsigmoid", nn.LogSigmoid()),
        ("softplus", nn.Softplus()),
        ("softsign", nn.Softsign()),
        ("tanhshrink", nn.Tanhshrink()),
        ("softshrink(0.5)", nn.Softshrink()),
        ("hardshrink(0.5)", nn.Hardshrink()),
        ("hardshrink(0.1)", lambda x: F.hardshrink(x, 0.1)),
        ("linear", nn.Softmax(-1)),
        ("linear", nn.Identity()),
        ("linear", lambda x: x.detach().clone().float().contiguous() * 2 - 1),
        ("linear", lambda x: (x.unsqueeze(0).mT, x)[1].pow(1)),
        ("linear", lambda x: x * torch.ones(4) / 3),
        ("linear", lambda x: F.interpolate(x[None], scale_factor=2.0)[0, :, :4]),
        ("unknown: clamp", lambda x: x.clamp(min=-1)),
        ("unknown: clamp", lambda x: x.clamp(max=torch.ones(4))),
        ("unknown: threshold", nn.Threshold(0.1, 0)),
        ("unknown: softplus", nn.Softplus(beta=2)),
        ("unknown: sin", torch.sin),
        ("unknown: exp", lambda x: x.exp() + 1),
        ("unknown: square", lambda x: torch.log(1 + torch.square(x))),  # the first on the way
        ("unknown: pow", lambda x: x**2),
        ("unknown: pow", lambda x: 2**x),
        ("unknown: reciprocal", lambda x: 1 / x),
        ("unknown: div", lambda x: torch.ones(3, 4) / x),
        ("unknown: abs", lambda x: x / (1 + x.abs())),
        ("unknown: erf", torch.erf),
        ("unknown: maximum", lambda x: torch.maximum(x, torch.zeros(4))),
        ("unknown: max", lambda x: torch.max(x, torch.zeros(4))),
        ("unknown: mul", lambda x: x * (x > 0)),
        ("unknown: gt", lambda x: torch.where(x > 0, x, 0.1 * x)),
        ("unknown: pow(relu)", lambda x: x.relu() ** 2),
    ],
)
def test_names(name: str, activation: Callable[[Tensor], Tensor]) -> None:
    assert one_layer(lambda self, x: self.b(activation(self.a(x))), b=fc()) == (name,)
    assert one_layer(lambda self, x: activation(self.a(x))) == (name,)


def test_unknown_then_known() -> None:
    assert one_layer(lambda self, x: torch.sin(self.a(x)).relu()) == RELU


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.:FutureWarning", "ignore:`torch.jit.:DeprecationWarning"
)
def test_what_cannot_be_looked_into_is_unknown() -> None:
    hidden: list[Callable[[Tensor], Tensor]] = [
        torch.jit.script(nn.ReLU()),
        torch.jit.trace(nn.ReLU(), torch.ones(1, 4)),
        torch.vmap(torch.relu),
    ]
    for function in hidden:
        found = one_layer(lambda self, x, function=function: function(self.a(x)))
        assert found == ("unknown: not seen",)
    assert one_layer(lambda self, x: torch.ops.aten.relu.default(self.a(x))) == ("relu",)


def test_unknown_in_a_loss() -> None:
    # An average of squares is a measure of the output, and no nonlinearity in the network.
    assert one_layer(lambda self, x: (self.a(x) - x).pow(2).mean()) == LINEAR
    assert one_layer(lambda self, x: F.mse_loss(self.a(x), x)) == LINEAR


# Paths


def test_what_does_not_matter_in_between() -> None:
    def between(x: Tensor) -> Tensor:
        x = F.dropout(torch.cat([x, x], dim=-1).reshape(3, 2, 4), training=True)
        return F.avg_pool1d(torch.stack([x, x])[0] + 1, 2)

    assert one_layer(lambda self, x: between(self.a(x)).relu()) == RELU


def test_sum_of_two_layers() -> None:
    model = Net(lambda self, x: (self.a(x) + self.b(x)).relu(), a=fc(), b=fc())
    result = flow(model, X)
    assert result.following == {"a": RELU, "b": RELU}
    assert not result.branches


def test_loop_over_time_and_slice_assignment() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden, outputs = torch.zeros(1), torch.zeros(3, 4)
        for step, row in enumerate(x):
            hidden = torch.tanh(self.a(row) + self.b(hidden.expand(4)))
            outputs[step] = self.c(hidden)
        return F.relu(outputs)

    model = Net(forward, a=fc(), b=fc(), c=fc())
    result = flow(model, X)
    assert result.following == {"a": ("tanh",), "b": ("tanh",), "c": RELU}
    assert not result.branches  # a recurrent sum, and no skip connection


def test_heads_with_different_activations() -> None:
    heads = nn.ModuleList([fc(), fc(), fc()])
    activations = [torch.tanh, torch.sigmoid, nn.Identity()]
    model = Net(
        lambda self, x: [f(head(x)) for head, f in zip(self.heads, activations, strict=True)],
        heads=heads,
    )
    expected = {"heads.0": ("tanh",), "heads.1": ("sigmoid",), "heads.2": LINEAR}
    assert following(model, X) == expected


def test_output_and_feature() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.a(x)
        return self.b(feature.relu()), feature

    assert following(Net(forward, a=fc(), b=fc()), X) == {"a": ("relu", "linear"), "b": LINEAR}


def test_activation_used_in_two_ways() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = self.a(x).relu()
        return self.b(y), self.c(y.square()), y > 0  # the last is no signal

    model = Net(forward, a=fc(), b=fc(), c=fc())
    expected = {"a": ("relu", "unknown: square(relu)"), "b": LINEAR, "c": LINEAR}
    assert following(model, X) == expected


def test_layer_called_twice() -> None:
    model = Net(lambda self, x: torch.relu(self.a(torch.tanh(self.a(x)))), a=fc())
    result = flow(model, X)
    assert result.following == {"a": ("tanh", "relu")}
    assert result.order == ("a",)


def test_shared_module_has_its_first_name() -> None:
    layer = fc()
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert following(model, X) == {"0": ("relu", "linear")}


def test_cell_by_hand() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        i, f, g, o = (self.a(x) + self.b(x)).chunk(4, -1)
        state = torch.sigmoid(f) * x + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(state)

    result = flow(Net(forward, a=fc(4, 16), b=fc(4, 16)), X)
    assert result.following == {"a": ("sigmoid", "tanh"), "b": ("sigmoid", "tanh")}
    assert not result.gated_by


def test_rotary_position_embedding() -> None:
    def rotated(x: Tensor) -> Tensor:
        angles = torch.arange(3.0)[:, None]
        left, right = x.chunk(2, dim=-1)
        return x * torch.cos(angles) + torch.cat([-right, left], dim=-1) * torch.sin(angles)

    model = Net(lambda self, x: rotated(self.q(x)) @ rotated(self.k(x)).t(), q=fc(), k=fc())
    assert following(model, X) == {"q": LINEAR, "k": LINEAR}


# Residual branches


def drop_path(x: Tensor) -> Tensor:
    """As timm has it in training."""
    mask = x.new_empty(x.shape[0], 1).bernoulli_(0.9)
    return x * mask.div_(0.9)


@pytest.mark.parametrize("add", [Tensor.add_, torch.add, lambda y, x: x + y])
def test_end_norm_through_drop_path(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.b(self.a(x).relu()))
        return add(drop_path(y.reshape(3, 4) * self.scale), x)

    model = Net(forward, **{n: fc() for n in ("stem", "a", "b")}, norm=nn.LayerNorm(4))
    model.scale = nn.Parameter(torch.ones(4))
    result = flow(model, X)
    assert result.branches == (Branch(("a", "b"), end_norm="norm"),)
    assert result.following == {"stem": LINEAR, "a": RELU, "b": LINEAR}


def test_norm_before_the_end_is_no_end_norm() -> None:
    model = Net(lambda self, x: x + self.a(self.norm(x)).relu(), a=fc(), norm=nn.LayerNorm(4))
    assert flow(model, X).branches == (Branch(("a",), end_norm=None),)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.a(x) + self.scale,  # a bias
        lambda self, x: self.a(x) + torch.zeros(3, 4),
        lambda self, x: torch.zeros_like(x) + self.a(x),
        lambda self, x: self.a(x) + self.b(x),
        lambda self, x: self.a(x) + self.b(x.relu()),
        lambda self, x: self.a(x)[:, :1] + x,  # of another shape
        lambda self, x: x + x.relu(),
    ],
)
def test_no_branch(forward: Callable[[Any, Tensor], Tensor]) -> None:
    model = Net(forward, a=fc(), b=fc())
    model.scale = nn.Parameter(torch.ones(4))
    assert not flow(model, X).branches


def test_sum_of_embeddings_is_no_branch() -> None:
    def forward(self: Any, ids: Tensor) -> Tensor:
        return self.a(self.segments(ids)) + self.tokens(ids)

    model = Net(forward, a=fc(), segments=nn.Embedding(7, 4), tokens=nn.Embedding(7, 4))
    assert not flow(model, torch.tensor([1, 2])).branches


def test_end_norm_through_a_mask() -> None:
    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.norm(self.a(x)) * mask

    model = Net(forward, a=fc(), norm=nn.LayerNorm(4))
    assert flow(model, X, torch.ones(3, 1)).branches == (Branch(("a",), end_norm="norm"),)


def test_branch_with_shared_weights_comes_once() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.b(self.a(x).relu())
        return x

    assert flow(Net(forward, a=fc(), b=fc()), X).branches == (Branch(("a", "b"), None),)


# What stays as it was


class Fragile(nn.Module):
    """Raises after its layers ran, if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.drop = nn.BatchNorm1d(4), fc(), nn.Dropout(0.5)
        self.is_broken = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.a(self.norm(x))) + torch.rand(4)
        if self.is_broken:
            raise RuntimeError("broken")
        return x


def picture(model: nn.Module) -> list[Any]:
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    modules = torch.nn.modules.module
    hooks += [*modules._global_forward_hooks, *modules._global_forward_pre_hooks]
    hooks += [*modules._global_forward_hooks_always_called]
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    attributes = [sorted(vars(tensor)) for tensor in model.state_dict(keep_vars=True).values()]
    modes = [module.training for module in model.modules()]
    grads = [parameter.grad for parameter in model.parameters()]
    random = torch.get_rng_state().tolist()
    return [hooks, state, attributes, modes, grads, random, torch.is_grad_enabled()]


@pytest.mark.parametrize("is_broken", [False, True])
def test_everything_stays_as_it_was(is_broken: bool) -> None:
    model = Fragile().train()
    model.norm.eval()
    before = picture(model)
    model.is_broken = is_broken
    if is_broken:
        with pytest.raises(RuntimeError, match=r"^broken$"):
            flow(model, X)
    else:
        assert flow(model, X).following == {"a": LINEAR}
    assert picture(model) == before
    with torch.no_grad():
        assert torch.relu(X).grad_fn is None
    assert not torch.overrides._get_current_function_mode_stack()


def test_error_that_the_module_catches() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    def forward(self: Any, x: Tensor) -> Tensor:
        try:
            return self.broken(x)
        except RuntimeError:
            return F.linear(self.a(x), torch.ones(4, 4)).relu()  # ones are no weight of a layer

    result = flow(Net(forward, a=fc(), broken=Broken(4, 4)), X)
    assert result.following == {"a": RELU}


def test_batch_of_one() -> None:
    model = nn.Sequential(fc(), nn.BatchNorm1d(4), nn.ReLU())
    assert following(model, X[:1]) == {"0": RELU}


def test_activations_are_not_kept() -> None:
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
            kept.append(weakref.ref(x))
        gc.collect()
        alive.append(sum(reference() is not None for reference in kept))
        return x

    flow(Net(forward, a=fc(), b=nn.ReLU(), c=fc()), X)
    assert alive == [1]  # x itself


def test_lazy_layers() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    assert following(model, X) == {"0": RELU, "2": LINEAR}


def test_parameter_of_the_module_itself() -> None:
    model = Net(lambda self, x: (x @ self.w).relu())
    model.w = nn.Parameter(torch.ones(4, 4))
    assert following(model, X) == {"": RELU}


# Outputs -----------------------------------------------------------------------------------------


class Heads(nn.Module):
    """A trunk that only adds, a head on top, and a second head with a nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head, self.gate = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, inputs: Tensor, *, with_head: bool) -> tuple[Tensor, ...]:
        hidden = self.stem(inputs)
        hidden = hidden + self.branch(torch.relu(hidden))
        if not with_head:
            return (hidden,)
        return self.head(hidden), torch.sigmoid(self.gate(hidden))


def test_outputs_are_the_last_layers_before_the_end() -> None:
    net = Heads()
    # The stem reaches the output through additions only, but `branch` comes later.
    assert data_flow(net, lambda: net(torch.ones(1, 4), with_head=False)).outputs == ("branch",)
    # What goes through a sigmoid is no output that may be 0 at will.
    assert data_flow(net, lambda: net(torch.ones(1, 4), with_head=True)).outputs == ("head",)


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, labels: F.cross_entropy(logits, labels),
        lambda logits, labels: F.nll_loss(F.log_softmax(logits, 1), labels),
        lambda logits, labels: F.mse_loss(logits, torch.zeros_like(logits)),
    ],
)
def test_outputs_are_found_behind_a_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    labels = torch.zeros(2, dtype=torch.long)
    assert data_flow(net, lambda: loss(net(torch.ones(2, 4)), labels)).outputs == ("2",)
