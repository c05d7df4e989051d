import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_lth.pruning import scoring
from lightning_lth.pruning.at_initialization import grasp, snip, synflow, synflow_scores
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.selection import emptied, keep


def linear(weight):
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def half_squares(outputs, targets):
    return (outputs - targets).square().sum() / 2


def batch_of(*inputs):
    return torch.tensor(inputs, dtype=torch.float64), torch.zeros((), dtype=torch.float64)


def mlp(*widths, bias=True, dtype=torch.float32):
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vgg16(width, num_classes=100):
    """VGG-16 with BatchNorm for 32 x 32 images, as many channels as ``width`` in the first."""
    layers, channels = [], 3
    for factor in [1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8]:
        if factor == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, factor * width, 3, padding=1)
        channels = factor * width
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels, num_classes))


# W = ((1, -2), (3, 0.5)); half the squared error to 0 has the gradient y x^T.
WEIGHT = [[1.0, -2.0], [3.0, 0.5]]


def test_snip_of_a_linear_layer_by_hand():
    # x = (1, 2): y = (-3, 4), y x^T = ((-3, -6), (4, 8)), times W
    scores = snip(linear(WEIGHT), [batch_of([1, 2])], half_squares).materialize()
    assert scores["weight"].tolist() == [[3, 12], [12, 4]]


def test_snip_averages_the_gradient_over_the_batches():
    # x = (0, 1): y = (-2, 0.5), y x^T = ((0, -2), (0, 0.5)); the mean with the one above is
    # ((-1.5, -4), (2, 4.25)). Magnitudes are taken of the mean: of (1, 2) and (-1, 2), whose
    # gradients are ((-3, -6), (4, 8)) and ((5, -10), (2, -4)), it is ((1, -8), (3, 2)).
    def scores(*inputs):
        batches = [batch_of(one) for one in inputs]
        return snip(linear(WEIGHT), batches, half_squares).materialize()["weight"].tolist()

    assert scores([1, 2], [0, 1]) == [[1.5, 8], [6, 2.125]]
    assert scores([1, 2], [-1, 2]) == [[1, 16], [9, 1]]


def test_grasp_of_a_linear_layer_by_hand():
    # With half the squares of y / 2: g = y x^T / 4 and H v = (v x) x^T / 4, so that
    # H g = y (x . x) x^T / 16, where x . x = 5; times W, without a magnitude.
    scores = grasp(linear(WEIGHT), [batch_of([1, 2])], half_squares, temperature=2).materialize()
    assert scores["weight"].tolist() == [[-15 / 16, 60 / 16], [60 / 16, 20 / 16]]


def test_grasp_over_batches_by_the_formula_of_a_linear_layer():
    # With A the mean over the batches of the sums of x x^T, g = W A / T^2 and H v = v A / T^2.
    inputs = torch.randn(3, 4, 2, dtype=torch.float64)
    batches = [(one, torch.zeros((), dtype=torch.float64)) for one in inputs]
    scores = grasp(linear(WEIGHT), batches, half_squares).materialize()["weight"]
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    mean = torch.einsum("bni,bnj->ij", inputs, inputs) / 3
    torch.testing.assert_close(scores, weight * (weight @ mean @ mean) / 200**4)


def test_grasp_of_a_deep_network_by_differences_of_gradients():
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    inputs, targets = torch.randn(6, 3, dtype=torch.float64), torch.randint(4, (6,))
    scores = grasp(network, [(inputs, targets)], functional.cross_entropy, temperature=3.0)
    weights = [network[0].weight, network[2].weight]

    def gradient():
        return torch.autograd.grad(functional.cross_entropy(network(inputs) / 3, targets), weights)

    first, step, ends = gradient(), 1e-5, []
    values = [weight.detach().clone() for weight in weights]
    for sign in (1, -1):  # H g is the derivative of the gradient along g
        for weight, value, direction in zip(weights, values, first, strict=True):
            weight.data = value + sign * step * direction
        ends.append(gradient())
    products = [(plus - minus) / (2 * step) for plus, minus in zip(*ends, strict=True)]
    for score, value, product in zip(scores.materialize().values(), values, products, strict=True):
        torch.testing.assert_close(score, value * product, rtol=1e-6, atol=1e-12)


def test_pruning_what_grasp_scores_lowest_keeps_most_of_the_gradient():
    # Half of w1^2 + (10 w2)^2: the gradient is (w1, 100 w2), nearly all of it by the second weight.
    layer = linear([[1.0, 1.0]])
    batch = (torch.tensor([[1.0, 0.0], [0.0, 10.0]], dtype=torch.float64), torch.zeros(2, 1))
    scores = grasp(layer, [batch], half_squares, temperature=1)
    masks = keep(scores, Masks.dense({"weight": layer.weight}), num_remaining=1)
    assert masks["weight"].tolist() == [[False, True]]


@pytest.mark.parametrize("training", [True, False])
def test_modules_run_in_their_present_mode(training):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train(training)
    network[1].running_mean.fill_(0.7)
    inputs, targets = torch.randn(8, 3), torch.randint(2, (8,))
    scores = snip(network, [(inputs, targets)], functional.cross_entropy).materialize()
    other = copy.deepcopy(network)
    functional.cross_entropy(other(inputs), targets).backward()
    for name in ("0", "2"):
        weight = other.get_submodule(name).weight
        torch.testing.assert_close(scores[f"{name}.weight"], (weight * weight.grad).abs().detach())


class Rough(nn.Module):
    """Changes all that a forward pass can change, and can fail at its end."""

    def __init__(self, fails=False):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(1))
        self.fails = fails

    def forward(self, inputs):
        self.calls += random.random() + np.random.rand()
        self.last.weight.data.mul_(1.5)
        hidden = self.last(self.drop(self.frozen(self.norm(self.first(inputs)))))
        self.calls = self.calls + 1
        if self.fails:
            raise RuntimeError("on purpose")
        return hidden


BATCHES = [(torch.randn(8, 3), torch.arange(8) % 2) for _ in range(2)]
WAYS = {
    "snip": lambda network: snip(network, BATCHES, functional.cross_entropy),
    "grasp": lambda network: grasp(network, BATCHES, functional.cross_entropy),
    "synflow_scores": lambda network: synflow_scores(network, torch.zeros(1, 3)),
    "synflow": lambda network: synflow(network, torch.zeros(1, 3), 0.5, iterations=3),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_module_is_afterwards_as_before(way, fails):
    network = Rough(fails)
    network.norm.eval()  # the only part in this mode
    network.first.weight.grad = torch.full((4, 3), 7.0)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    modes = [layer.training for layer in network.modules()]
    trainable = {name: tensor.requires_grad for name, tensor in tensors.items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            WAYS[way](network)
    else:
        WAYS[way](network)
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert list(after) == list(tensors)
    for name, tensor in after.items():
        assert tensor is tensors[name]
        assert torch.equal(tensor, values[name])
        assert tensor.requires_grad == trainable[name]
        if name != "first.weight":
            assert tensor.grad is None
    assert network.first.weight.grad.unique().tolist() == [7.0]
    assert [layer.training for layer in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("way", WAYS)
def test_scores_are_of_prunable_weights_and_carry_no_graph(way):
    result = WAYS[way](Rough())
    tensors = result if isinstance(result, Masks) else result.materialize()
    assert list(tensors) == ["first.weight", "last.weight"]
    assert not any(tensor.requires_grad for tensor in tensors.values())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_taken_wherever_the_call_stands(way, context):
    network = mlp(3, 4, 2)
    with context():
        inside = WAYS[way](network)
    outside = WAYS[way](network)
    if isinstance(inside, Masks):
        assert inside == outside
    else:
        assert torch.equal(inside.materialize()["0.weight"], outside.materialize()["0.weight"])


def test_scores_stay_when_the_network_is_trained():
    network = linear(WEIGHT)
    scores = snip(network, [batch_of([1, 2])], half_squares)
    network.weight.data.zero_()
    assert scores.materialize()["weight"].tolist() == [[3, 12], [12, 4]]


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow_scores", "synflow"])
def test_parameters_select_what_is_scored(method):
    network, patterns = mlp(3, 4, 2), ["2.*"]
    results = {
        "snip": lambda: snip(network, BATCHES, functional.cross_entropy, parameters=patterns),
        "grasp": lambda: grasp(network, BATCHES, functional.cross_entropy, parameters=patterns),
        "synflow_scores": lambda: synflow_scores(network, BATCHES[0][0], parameters=patterns),
        "synflow": lambda: synflow(network, BATCHES[0][0], 0.5, parameters=patterns),
    }
    result = results[method]()
    assert list(result if isinstance(result, Masks) else result.names) == ["2.weight", "2.bias"]


def test_a_tied_weight_is_scored_once_for_all_its_uses():
    network = nn.Sequential(linear(WEIGHT), linear(WEIGHT))
    network[1].weight = network[0].weight
    scores = synflow_scores(network, torch.zeros(1, 2)).materialize()
    # |W| = ((1, 2), (3, 0.5)), of rows r = (3, 3.5) and columns c = (4, 2.5); R = c . r. The
    # derivative by entry (i, j) is c_i from the first use and r_j from the second.
    assert scores["0.weight"].tolist() == [[1 * (4 + 3), 2 * (4 + 3.5)], [16.5, 0.5 * 6]]


def test_weights_that_the_loss_does_not_depend_on_score_zero():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = linear(WEIGHT), linear(WEIGHT)

        def forward(self, inputs):
            return self.used(inputs)

    scores = snip(Branched(), [batch_of([1, 2])], half_squares).materialize()
    assert scores["unused.weight"].tolist() == [[0, 0], [0, 0]]
    assert scores["used.weight"].tolist() == [[3, 12], [12, 4]]


def paths(network):
    """The summed products of magnitudes along all paths, by multiplying matrices."""
    flow = torch.ones(network[0].in_features, dtype=torch.float64)
    for layer in network[::2]:
        flow = layer.weight.detach().double().abs() @ flow
    return float(flow.sum())


@pytest.mark.parametrize("bias", [True, False])
def test_every_layer_has_the_same_synaptic_flow(bias):
    network = mlp(20, 50, 7, 30, 10, bias=bias)
    scores = synflow_scores(network, torch.randn(4, 20)).materialize()
    sums = [float(score.sum()) for score in scores.values()]
    assert sums == pytest.approx([paths(network)] * 4, rel=1e-5)


def test_batch_norm_keeps_the_synaptic_flow():
    network = vgg16(4)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    scores = synflow_scores(network, torch.zeros(2, 3, 32, 32)).materialize()
    sums = [float(score.sum()) for score in scores.values()]
    assert len(sums) == 14
    assert sums[0] > 0
    assert sums == pytest.approx([sums[0]] * 14, rel=1e-5)


def test_synaptic_flow_is_beyond_float32():
    network = mlp(10, 10, 10, 10, 10, 10, bias=False)
    for layer in network[::2]:
        nn.init.constant_(layer.weight, -1e12)
    scores = synflow_scores(network, torch.zeros(1, 10)).materialize()["0.weight"]
    assert scores[0, 0].item() == pytest.approx(1e64)  # 10^4 paths through it, each of (10^12)^5


def test_biases_that_are_scored_have_their_magnitude():
    network = mlp(2, 3, 1)
    scores = synflow_scores(network, torch.zeros(1, 2), parameters=["*"]).materialize()
    expected = network[0].bias.detach().abs() * network[2].weight.detach().abs()[0]
    torch.testing.assert_close(scores["0.bias"], expected.double())


def synflow_by_matrices(network, density, iterations):
    """Algorithm 1 of the paper for a network of linear layers, with numpy."""
    weights = [np.abs(layer.weight.detach().double().numpy()) for layer in network[::2]]
    masks = [np.ones_like(weight) for weight in weights]
    total = sum(weight.size for weight in weights)
    for step in range(1, iterations + 1):
        left = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
        forward, backward = [np.ones(left[0].shape[1])], [np.ones(left[-1].shape[0])]
        for weight in left[:-1]:
            forward.append(weight @ forward[-1])
        for weight in left[:0:-1]:
            backward.insert(0, backward[0] @ weight)
        scores = [
            weight * b[:, None] * f for weight, f, b in zip(left, forward, backward, strict=True)
        ]
        count = round(total * density ** (step / iterations))
        threshold = np.sort(np.concatenate([score.ravel() for score in scores]))[-count]
        masks = [score >= threshold for score in scores]
    return [mask.tolist() for mask in masks]


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_synflow_follows_the_algorithm_of_the_paper(iterations):
    network = mlp(12, 20, 9, 5)
    masks = synflow(network, torch.zeros(1, 12), 0.05, iterations=iterations)
    expected = synflow_by_matrices(network, 0.05, iterations)
    assert [mask.tolist() for mask in masks.values()] == expected


def test_synflow_empties_no_layer_of_a_vgg_before_the_maximum_compression():
    network = vgg16(4)
    num_weights = sum(weight.numel() for weight in network.parameters() if weight.dim() > 1)
    masks = synflow(network, torch.zeros(1, 3, 32, 32), 14 / num_weights)
    assert masks.num_weights == num_weights
    assert list(masks.remaining().values()) == [1] * 14


@pytest.mark.parametrize("method", [scoring.magnitude, scoring.random(0), snip, grasp])
def test_other_methods_empty_layers_of_a_vgg(method):
    network = vgg16(4)
    batches = [(torch.randn(10, 3, 32, 32), torch.arange(10))]
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1}
    dense = Masks.dense(weights)
    if method in (snip, grasp):
        scores = method(network, batches, functional.cross_entropy)
    else:
        scores = method(weights, weights)
    assert emptied(keep(scores, dense, num_remaining=round(dense.num_weights / 10**3.25)))


def test_density_one_prunes_nothing():
    assert synflow(mlp(3, 4, 2), torch.zeros(1, 3), 1, iterations=2).density == 1


@pytest.mark.parametrize("method", [snip, grasp])
def test_bad_batches_and_losses_are_refused(method):
    with pytest.raises(ValueError, match=r"`batches` must hold at least one pair .* got none\."):
        method(mlp(3, 2), [], functional.cross_entropy)
    with pytest.raises(ValueError, match=r"`loss` must return a scalar, got .* shape \(8,\)\. Ave"):
        method(mlp(3, 2), BATCHES, lambda y, t: functional.cross_entropy(y, t, reduction="none"))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got"):
        grasp(mlp(3, 2), BATCHES, functional.cross_entropy, temperature=temperature)


@pytest.mark.parametrize("density", [0, 1.5, 20, math.nan])
def test_density_out_of_range_is_refused(density):
    with pytest.raises(ValueError, match=rf"`density` must be in \(0, 1\], got {density}\. Perce"):
        synflow(mlp(3, 2), torch.zeros(1, 3), density)


def test_a_density_that_leaves_no_weight_is_refused():
    with pytest.raises(
        ValueError, match=r"`density` must leave a weight, got 0\.05 of 6 weights\."
    ):
        synflow(mlp(3, 2), torch.zeros(1, 3), 0.05)  # 0.3


def test_bad_iterations_and_examples_are_refused():
    with pytest.raises(ValueError, match=r"`iterations` must be at least 1, got 0\."):
        synflow(mlp(3, 2), torch.zeros(1, 3), 0.5, iterations=0)
    for example, got in [(torch.zeros(1, 3, dtype=torch.long), "torch.int64"), ([1.0], "list")]:
        with pytest.raises(TypeError, match=rf"`example` must be a floating-point .* got {got}\."):
            synflow(mlp(3, 2), example, 0.5)
        with pytest.raises(TypeError, match=rf"`example` must be a floating-point .* got {got}\."):
            synflow_scores(mlp(3, 2), example)
