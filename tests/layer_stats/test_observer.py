"""All statistics of a network, batch by batch, in plain torch."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lth.layer_stats.findings import Finding, Thresholds
from lightning_lth.layer_stats.observer import LayerObserver


class Net(nn.Module):
    """Dropout before one of two batch norms; a function drops in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm1d(4)
        self.norm = nn.LayerNorm(4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.second(self.drop(self.first(inputs))).relu()
        return nn.functional.dropout(self.norm(hidden), 0.1)


def inputs(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, 4, generator=generator, dtype=torch.float32) * 2 + 3


def train(observer: LayerObserver, network: nn.Module, *batches: Tensor) -> dict[Any, float]:
    observer.start_training_batch()
    for batch in batches:
        network(batch)
    return observer.finish_training_batch()


def evaluate(observer: LayerObserver, network: nn.Module, *batches: Tensor) -> dict[Any, float]:
    network.eval()
    for batch in batches:
        observer.start_evaluation_batch()
        network(batch)
        observer.finish_evaluation_batch()
    network.train()
    return observer.finish_evaluation()


def is_mode_active() -> bool:
    return torch._C._len_torch_function_stack() > 0


def test_the_numbers_of_a_training_batch() -> None:
    network, batch = Net(), inputs()
    network.second.bias.data = torch.tensor([-5.0, -1.0, 1.0, 0.0])
    observer = LayerObserver(network, activations=True)
    numbers = train(observer, network, batch)
    # The running mean and variance start from 0 and 1.
    drift = batch.mean(0).square().mean().div(1 + 1e-5).sqrt()
    assert numbers["first", "drift_mean"] == pytest.approx(float(drift), rel=1e-5)
    logvar = ((batch.var(0) + 1e-5) / (1 + 1e-5)).log().abs().mean()
    assert numbers["first", "drift_logvar"] == pytest.approx(float(logvar), rel=1e-4)
    assert numbers["first", "values_per_channel"] == 64
    assert numbers["first", "batches_tracked"] == 1
    assert numbers["second", "neg_beta"] == 0.5
    assert numbers["second", "dead"] == 0.25  # -5 with scale 1, and a ReLU follows
    assert numbers["norm", "neg_beta"] == 0.0
    assert ("norm", "input_mean") in numbers
    assert numbers["drop", "keep"] == pytest.approx(0.5, abs=0.3)
    assert ("first", "step_shift") not in numbers  # nothing before it
    assert ("first", "step_shift") in train(observer, network, batch)
    observer.release()


def test_without_activations_inputs_are_not_read() -> None:
    network = Net()
    observer = LayerObserver(network)
    assert not [name for name in train(observer, network, inputs()) if "input" in name[1]]
    observer.release()


def test_the_numbers_of_an_evaluation_are_those_of_all_its_batches() -> None:
    network = Net()
    observer = LayerObserver(network)
    train(observer, network, inputs())
    batches = inputs(2), inputs(3)
    numbers = evaluate(observer, network, *batches)
    ratio = torch.cat(batches).var(0) / network.first.running_var
    expected = torch.maximum(ratio, 1 / ratio).mean()
    assert numbers["first", "train_eval_shift"] == pytest.approx(float(expected), rel=1e-3)
    assert evaluate(observer, network) == {}  # read once
    observer.release()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_number(dtype: torch.dtype) -> None:
    def numbers() -> dict[Any, float]:
        torch.manual_seed(0)
        network = Net().float()
        observer = LayerObserver(network, activations=True)
        seen = train(observer, network, inputs()) | train(observer, network, inputs(2))
        observer.release()
        return seen | evaluate(observer, network, inputs(3))

    expected = numbers()
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert numbers() == expected
    finally:
        torch.set_default_dtype(default)


def test_a_restart_forgets_all_batches_before() -> None:
    network = Net()
    observer, fresh = LayerObserver(network), LayerObserver(network)
    network.eval()
    observer.start_evaluation_batch()  # as in a sanity check
    network(inputs(7) * 9)
    observer.finish_evaluation_batch()
    network.train()
    train(observer, network, inputs())
    observer.restart()
    fresh.restart()
    assert ("first", "step_shift") not in train(observer, network, inputs())
    found = evaluate(observer, network, inputs(2))
    assert (
        found["first", "train_eval_shift"]
        == (evaluate(fresh, network, inputs(2))["first", "train_eval_shift"])
    )
    observer.start_training_batch()
    network(inputs()[:5])  # and an error
    observer.restart()
    assert train(observer, network, inputs())["first", "values_per_channel"] == 64
    observer.release()
    fresh.release()


def test_the_survey_is_of_the_first_batch_of_each_kind() -> None:
    network = Net()
    observer = LayerObserver(network)
    assert not is_mode_active()
    observer.start_training_batch()
    assert is_mode_active()
    network(inputs())
    observer.stop_survey()  # before the backward pass
    assert not is_mode_active()
    assert observer.is_in_batch
    observer.finish_training_batch()
    assert not observer.is_in_batch
    observer.start_training_batch()
    assert not is_mode_active()
    observer.finish_training_batch()
    observer.start_evaluation_batch()
    assert is_mode_active()
    assert observer.is_in_batch
    network.eval()(inputs())
    observer.finish_evaluation_batch()
    assert not is_mode_active()
    assert not observer.is_in_batch
    observer.start_evaluation_batch()
    assert not is_mode_active()
    observer.release()


def test_a_batch_that_was_not_run_is_not_surveyed() -> None:
    """As when ``on_train_batch_start`` gives -1."""
    network = Net()
    observer = LayerObserver(network)
    observer.start_training_batch()
    observer.finish_training_batch()
    observer.start_training_batch()
    observer.abandon_batch()
    assert not is_mode_active()
    assert not observer.is_in_batch
    observer.start_evaluation_batch()  # not finished
    numbers = train(observer, network, inputs())
    assert not is_mode_active()
    assert ("first", "drift_mean") in numbers
    numbers = {("second", "train_eval_ratio"): 0.1}
    for _ in range(40):
        network(inputs())
    evaluate(observer, network, inputs())
    found = [one.finding for one in observer.diagnose(numbers, Thresholds())]
    assert Finding.DROPOUT_BEFORE_BATCH_NORM in found  # the survey was done all the same
    observer.release()


def test_functions_alone_are_surveyed_once() -> None:
    class Idle(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.dropout(inputs, 0.1)

    observer = LayerObserver(network := Idle())
    numbers = train(observer, network, inputs())
    assert findings(observer, numbers) == [("UNWATCHED_DROPOUT", "")]
    observer.start_training_batch()
    assert not is_mode_active()
    observer.release()


def test_a_network_without_layers_is_surveyed_once() -> None:
    observer = LayerObserver(network := nn.Linear(4, 4))
    assert train(observer, network, inputs()) == {}
    observer.start_training_batch()
    assert not is_mode_active()
    observer.finish_training_batch()
    assert observer.finish_evaluation() == {}
    assert observer.layers() == []
    assert observer.diagnose({}, Thresholds()) == []
    observer.release()


def test_release_leaves_no_hook_and_no_mode() -> None:
    network = Net()
    observer = LayerObserver(network)
    assert any(m._forward_pre_hooks for m in network.modules())
    observer.start_training_batch()
    observer.release()
    observer.release()
    assert not is_mode_active()
    assert not observer.is_in_batch
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    assert network(inputs()).shape == (64, 4)


def test_nothing_changes() -> None:
    network, plain = Net(), Net()
    observer = LayerObserver(network, activations=True)
    outputs = []
    for one in (network, plain):
        torch.manual_seed(0)
        for seed in range(3):
            if one is network:
                observer.start_training_batch()
            outputs.append(one(inputs(seed)))
            if one is network:
                observer.finish_training_batch()
        outputs.append(torch.get_rng_state())
    for first, second in zip(outputs[:4], outputs[4:], strict=True):
        assert torch.equal(first, second)
    for name, value in network.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    observer.release()


# Diagnoses ---------------------------------------------------------------------------------------


def findings(observer: LayerObserver, numbers: Any, **thresholds: Any) -> list[tuple[str, str]]:
    diagnoses = observer.diagnose(numbers, Thresholds(**thresholds))
    return [(one.finding.name, one.layer) for one in diagnoses]


def test_dropout_before_batch_norm_once_it_is_warmed_up() -> None:
    network = Net()
    observer = LayerObserver(network)
    for count, expected in ((29, False), (1, False), (1, True)):  # more than 3 / momentum
        for _ in range(count):
            train(observer, network, inputs())
        numbers = evaluate(observer, network, inputs())
        assert numbers["second", "train_eval_shift"] > 1.5
        found = findings(observer, numbers)
        assert (("DROPOUT_BEFORE_BATCH_NORM", "second") in found) is expected
        assert (("NOT_WARMED_UP", "second") in found) is not expected
        assert ("DROPOUT_BEFORE_BATCH_NORM", "first") not in found
    observer.release()


def test_how_much_of_the_start_is_left() -> None:
    network = Net()
    observer = LayerObserver(network)
    for _ in range(10):
        train(observer, network, inputs())
    numbers = evaluate(observer, network, inputs())
    (text,) = [
        one.message
        for one in observer.diagnose(numbers, Thresholds())
        if one.finding is Finding.NOT_WARMED_UP and one.layer == "first"
    ]
    assert "after 10 batches" in text
    assert "35%" in text  # 0.9 ** 10 = 0.349
    observer.release()


@pytest.mark.parametrize(("count", "text"), [(1, "1 batch,"), (3, "3 batches,")])
def test_what_is_cumulative_holds_nothing_of_its_start(count: int, text: str) -> None:
    network = nn.Sequential(nn.BatchNorm1d(4, momentum=None))
    observer = LayerObserver(network)
    for _ in range(count):
        train(observer, network, inputs())
    numbers = evaluate(observer, network, inputs())
    (one,) = observer.diagnose(numbers, Thresholds())
    assert f"after {text} when its running statistics are the mean of no more" in one.message
    assert "momentum" not in one.message
    assert observer.layers()[0]["momentum_horizon"] == count
    observer.release()


def test_batches_between_the_observed_ones_count_for_warming_up() -> None:
    network = Net()
    observer = LayerObserver(network)
    train(observer, network, inputs())
    for _ in range(30):
        network(inputs())
    found = findings(observer, evaluate(observer, network, inputs()))
    assert ("DROPOUT_BEFORE_BATCH_NORM", "second") in found
    observer.release()


def test_functional_dropout_in_training_and_in_evaluation() -> None:
    network = Net()
    observer = LayerObserver(network)
    assert findings(observer, {}) == []
    numbers = train(observer, network, inputs())
    assert findings(observer, numbers) == [("UNWATCHED_DROPOUT", "")]
    numbers = evaluate(observer, network, inputs())
    assert ("DROPOUT_IN_EVALUATION", "") in findings(observer, numbers)
    observer.release()


def test_findings_of_batch_norm_and_of_dropout() -> None:
    network = Net()
    network.drop.register_forward_hook(lambda layer, args, output: output * (output > 1))
    observer = LayerObserver(network)
    batch = inputs()[:8].repeat(400, 1)
    numbers = train(observer, network, batch)
    assert ("KEEP_RATE", "drop") in findings(observer, numbers)
    assert ("FEW_VALUES", "first") in findings(observer, train(observer, network, inputs()[:15]))
    assert ("DEAD_CHANNELS", "first") in findings(observer, numbers, dead_channels=-1.0)
    observer.release()


# Layers ------------------------------------------------------------------------------------------


def test_a_row_for_each_layer() -> None:
    network = Net()
    observer = LayerObserver(network)
    assert observer.layers() == [
        {
            "layer": "first",
            "kind": "batch_norm",
            "class": "BatchNorm1d",
            "state": "tracking",
            "momentum_horizon": 10.0,
        },
        {
            "layer": "second",
            "kind": "batch_norm",
            "class": "BatchNorm1d",
            "state": "tracking",
            "momentum_horizon": 10.0,
        },
        {"layer": "norm", "kind": "layer_norm", "class": "LayerNorm"},
        {"layer": "drop", "kind": "dropout", "class": "Dropout", "p": 0.5},
    ]
    observer.release()


def test_states_are_those_of_training() -> None:
    network = Net()
    observer = LayerObserver(network)
    network.eval()
    evaluate(observer, network, inputs())
    network.eval()
    assert observer.layers()[0]["state"] == "tracking"
    network.train()
    network.first.eval()
    assert observer.layers()[0]["state"] == "tracking"
    train(observer, network, inputs())
    assert observer.layers()[0]["state"] == "evaluation"
    network.first.train()
    network.first.momentum = 0.0
    observer.restart()
    row = observer.layers()[0]
    assert (row["state"], row["momentum_horizon"]) == ("pinned", math.inf)
    observer.release()


def test_parameters_by_tag() -> None:
    network = Net()
    network.norm = nn.LayerNorm(4, bias=False)
    network.second = nn.BatchNorm1d(4, affine=False)
    observer = LayerObserver(network)
    tensors = observer.affine_parameters()
    assert list(tensors) == [
        "batch_norm/first/gamma",
        "batch_norm/first/beta",
        "layer_norm/norm/gamma",
    ]
    assert tensors["batch_norm/first/gamma"] is network.first.weight
    observer.release()


class Calls(TorchDispatchMode):
    """Counts what runs, below torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.of = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_the_fast_path_of_transformers_is_taken_as_without() -> None:
    # It gives zeros at the padding, and is refused where hooks or torch-function modes are.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.ModuleList([nn.TransformerEncoder(layer, 1).eval(), nn.BatchNorm1d(8)])
    batch, padding = torch.randn(2, 4, 8), torch.tensor([[False] * 3 + [True]] * 2)

    def run() -> tuple[Tensor, int]:
        with torch.no_grad(), Calls() as calls:
            hidden = network[0](batch, src_key_padding_mask=padding)
        network[1](hidden.flatten(0, 1))
        return hidden, calls.of["aten::_transformer_encoder_layer_fwd"]

    expected, count = run()
    assert (count, float(expected[:, 3].abs().max())) == (1, 0.0)
    observer = LayerObserver(network, activations=True)
    outputs = [run()]
    for start in (observer.start_training_batch, observer.start_evaluation_batch):
        start()
        outputs.append(run())
    assert all(torch.equal(output, expected) and n == count for output, n in outputs)
    network.train()
    observer.start_training_batch()
    network[0](batch, src_key_padding_mask=padding)
    numbers = observer.finish_training_batch()
    assert {("0.layers.0.dropout1", "keep"), ("0.layers.0.norm1", "input_std")} <= numbers.keys()
    observer.release()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_parameters_that_are_spread_over_processes_are_left_alone() -> None:
    class Sharded(Tensor):
        """Stands in for a DTensor, which needs a process group."""

    network = Net()
    network.norm.weight = nn.Parameter(torch.ones(4).as_subclass(Sharded))
    observer = LayerObserver(network)
    numbers = train(observer, network, inputs())
    assert ("second", "gamma_abs") in numbers
    assert ("norm", "gamma_abs") not in numbers
    assert "layer_norm/norm/beta" not in observer.affine_parameters()
    observer.release()


@pytest.mark.filterwarnings("ignore:FSDP is switching to use")  # alone there is nothing to shard
def test_parameters_that_fsdp_flattens_are_left_alone() -> None:
    network = Net()
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        wrapped = FullyShardedDataParallel(network, device_id=torch.device("cpu"))
        observer = LayerObserver(network)
        numbers = train(observer, wrapped, inputs())
        observer.release()
    finally:
        torch.distributed.destroy_process_group()
    assert {("first", "drift_mean"), ("first", "values_per_channel")} <= numbers.keys()
    assert not {statistic for _, statistic in numbers} & {"gamma_abs", "neg_beta", "dead"}
    assert observer.affine_parameters() == {}


def test_parameters_of_which_this_process_has_none_are_left_alone() -> None:
    network = Net()
    for layer in (network.second, network.norm):  # as DeepSpeed's third stage leaves them
        layer.weight = nn.Parameter(torch.empty(0))
    network.forward = lambda batch: network.first(batch).relu()
    observer = LayerObserver(network)
    numbers = train(observer, network, inputs())
    assert {name for name, statistic in numbers if statistic == "neg_beta"} == {"first"}
    observer.release()


def test_a_frozen_layer_of_another_library() -> None:
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_var", 1.0)):
                self.register_buffer(name, torch.full((4,), value))
            self.register_buffer("running_mean", torch.zeros(4))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

    network = nn.Sequential(FrozenBatchNorm2d())
    observer = LayerObserver(network)
    numbers = train(observer, network, inputs())
    assert numbers["0", "gamma_abs"] == 1.0
    assert observer.layers()[0]["state"] == "fixed"
    assert findings(observer, evaluate(observer, network, inputs())) == []
    assert findings(observer, {("0", "train_eval_shift"): 2.0}) == [("TRAIN_EVAL_GAP", "0")]
    observer.release()


def test_a_compiled_network_is_guessed_from_its_modules() -> None:
    network = Net()
    observer = LayerObserver(torch.compile(copy.deepcopy(network), backend="eager"))
    observer.start_training_batch()
    assert not is_mode_active()
    observer.finish_training_batch()
    observer.release()
