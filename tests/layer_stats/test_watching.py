import copy
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from lightning_lth.layer_stats.watching import Watch


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.3),
        nn.Dropout2d(0.2, inplace=True),
        nn.Flatten(),
        nn.AlphaDropout(0.1),
        nn.Linear(64, 3),
        nn.LayerNorm(3),
    )


def watched(watch, module, *inputs):
    watch.is_on = True
    outputs = [module(values) for values in inputs]
    watch.is_on = False
    return outputs


def evaluated(watch, module, *inputs):
    watch.is_evaluating = True
    with torch.inference_mode():
        for values in inputs:
            module(values)
    watch.is_evaluating = False


def keep_of_ones(output):
    return (output[: -(-len(output) // 8)] != 0).float().mean().item()


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_is_read(inplace):
    module = nn.Sequential(nn.Identity(), nn.Dropout(0.5, inplace=inplace))
    watch = Watch(module)
    (output,) = watched(watch, module, torch.ones(80, 50))
    numbers = watch.training_readings().to_numbers()
    keep = keep_of_ones(output)
    assert numbers["1", "keep"] == pytest.approx(keep)
    assert numbers["1", "keep_low"] < keep < numbers["1", "keep_high"]
    assert numbers["1", "keep_z"] == pytest.approx((keep - 0.5) / (0.25 / 500) ** 0.5, abs=1e-4)
    assert numbers["1", "var_shift"] == 0  # ones have no variance before
    assert watch.training_readings().to_numbers() == {}


def test_calls_of_one_layer_add_up():
    module = nn.Sequential(nn.Dropout(0.5))
    watch = Watch(module)
    first, second = watched(watch, module, torch.ones(8, 31), torch.ones(8, 11))
    kept = (first[0] != 0).sum() + (second[0] != 0).sum()
    assert watch.training_readings().to_numbers()["0", "keep"] == pytest.approx(kept.item() / 42)


def test_var_shift_is_the_mean_over_calls_that_have_one():
    module = nn.Sequential(nn.Dropout(0.5))
    watch = Watch(module)
    spread = torch.tensor([-1.0, 1.0]).repeat(8)[:, None]
    # 1/2 at mean 0, 1/3 at mean 1; zeros have none.
    watched(watch, module, spread, spread + 1, 0 * spread)
    shift = watch.training_readings().to_numbers()["0", "var_shift"]
    assert shift == pytest.approx((1 / 2 + 1 / 3) / 2, abs=1e-5)


def test_var_shift_of_sequences_is_by_feature():
    module = nn.Sequential(nn.Dropout(0.5))
    watch = Watch(module)
    # One feature is constantly 1 (ratio 0), one constantly 3 (ratio 0).
    watched(watch, module, torch.tensor([1.0, 3.0]).expand(8, 5, 2))
    assert watch.training_readings().to_numbers()["0", "var_shift"] == 0


def test_alpha_dropout_has_no_var_shift():
    module = nn.Sequential(nn.AlphaDropout(0.5))
    watch = Watch(module)
    watched(watch, module, torch.randn(80, 40))
    numbers = watch.training_readings().to_numbers()
    assert ("0", "var_shift") not in numbers
    assert numbers["0", "keep"] == pytest.approx(0.5, abs=0.1)  # 4 standard errors of 400 draws


@pytest.mark.parametrize("on", ["nothing", "evaluating", "on in evaluation mode"])
def test_nothing_is_read_unless_switched_on_in_training(on):
    module = network()
    watch = Watch(module)
    if on == "evaluating":
        watch.is_evaluating = True
    if on == "on in evaluation mode":
        watch.is_on = True
        module.eval()
    module(torch.randn(8, 2, 6, 6))
    assert watch.training_readings().to_numbers() == {}
    assert watch.evaluation_readings().to_numbers() == {}


def test_fewest_values_per_channel():
    module = network()
    watch = Watch(module)
    watched(
        watch, module, torch.randn(8, 2, 6, 6), torch.randn(4, 2, 6, 6), torch.randn(5, 2, 6, 6)
    )
    assert watch.training_readings().to_numbers()["1", "values_per_channel"] == 4 * 4 * 4
    watched(watch, module, torch.randn(8, 2, 6, 6))
    assert watch.training_readings().to_numbers()["1", "values_per_channel"] == 8 * 4 * 4


def test_activations_are_those_of_an_eighth_of_the_batch():
    module = nn.Sequential(nn.LayerNorm(5), nn.BatchNorm1d(5))
    watch = Watch(module, activations=True)
    first, second = 2 + 3 * torch.randn(16, 5), torch.randn(8, 5)
    watched(watch, module, first, second)
    numbers = watch.training_readings().to_numbers()
    mean = (first[:2].mean() + second[:1].mean()) / 2
    variance = (first[:2].var(correction=0) + second[:1].var(correction=0)) / 2
    assert numbers["0", "input_mean"] == pytest.approx(mean.item(), abs=1e-5)
    assert numbers["0", "input_std"] == pytest.approx(variance.sqrt().item(), abs=1e-5)
    assert numbers["1", "input_mean"] == pytest.approx(0, abs=1e-5)


def test_inputs_of_validation_against_the_running_statistics():
    module = nn.Sequential(nn.BatchNorm1d(2))
    module[0].running_mean.copy_(torch.tensor([1.0, 0.0]))
    module[0].running_var.copy_(torch.tensor([4.0, 4.0]))
    watch = Watch(module)
    module.eval()
    # Over both batches together: means 3 and 0, unbiased variances 16 and 1.
    column = torch.tensor([-1.0, 1.0]).repeat(3) * (5 / 6) ** 0.5
    values = torch.stack((3 + 4 * column, column), 1)
    evaluated(watch, module, values[:2], values[2:])
    numbers = watch.evaluation_readings().to_numbers()
    # Ratios 4 and 1/4; distances 2/2 and 0, of which the root mean square is sqrt(1/2).
    assert numbers["0", "train_eval_shift"] == pytest.approx(4, rel=1e-4)
    assert numbers["0", "train_eval_ratio"] == pytest.approx(1, rel=1e-4)  # sqrt(4 / 4)
    assert numbers["0", "train_eval_mean_shift"] == pytest.approx(0.5**0.5, rel=1e-4)
    assert watch.evaluation_readings().to_numbers() == {}


def test_one_value_of_validation_has_no_variance():
    module = nn.Sequential(nn.BatchNorm1d(2)).eval()
    watch = Watch(module)
    evaluated(watch, module, torch.ones(1, 2))
    numbers = watch.evaluation_readings().to_numbers()
    assert numbers == {("0", "train_eval_mean_shift"): pytest.approx(1, rel=1e-4)}


def test_validation_of_images_and_of_dead_channels():
    module = nn.Sequential(nn.BatchNorm2d(3))
    module[0].running_var.zero_()
    watch = Watch(module)
    module.eval()
    evaluated(watch, module, torch.zeros(2, 3, 4, 4))
    assert watch.evaluation_readings().to_numbers()["0", "train_eval_shift"] == pytest.approx(1)


def test_batch_normalization_without_running_statistics():
    module = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)).eval()
    watch = Watch(module)
    evaluated(watch, module, torch.randn(4, 2))
    assert watch.evaluation_readings().to_numbers() == {}


def test_outputs_and_random_numbers_are_as_without():
    plain, values = network(), torch.randn(16, 2, 6, 6)
    module = copy.deepcopy(plain)
    watch = Watch(module, activations=True)
    torch.manual_seed(1)
    expected = plain(values)
    next_numbers = torch.rand(3)
    torch.manual_seed(1)
    (output,) = watched(watch, module, values)
    assert output.equal(expected)
    assert torch.rand(3).equal(next_numbers)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_by_checkpointing_is_not_read_again(use_reentrant):
    module = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    watch = Watch(module)
    watch.is_on = True
    values = torch.randn(32, 5, requires_grad=True)
    checkpoint(module, values, use_reentrant=use_reentrant).sum().backward()
    interval = watch.training_readings().to_numbers()
    # Wilson's interval has this width only for 20 draws; that of 40 is narrower.
    keep, width = interval["1", "keep"], interval["1", "keep_high"] - interval["1", "keep_low"]
    z, n = 1.959964, 20
    expected = 2 * z / (n + z**2) * (n * keep * (1 - keep) + z**2 / 4) ** 0.5
    assert width == pytest.approx(expected, abs=1e-5)


def test_autocast():
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.LayerNorm(8))
    watch = Watch(module, activations=True)
    with torch.autocast("cpu", torch.bfloat16):
        watched(watch, module, torch.randn(800, 8))
        module.eval()
        evaluated(watch, module, torch.randn(800, 8))
    numbers = watch.training_readings().to_numbers()
    assert numbers["1", "keep"] == pytest.approx(0.5, abs=0.08)  # 4.5 standard errors
    assert numbers["2", "values_per_channel"] == 800
    assert watch.evaluation_readings().to_numbers()["2", "train_eval_shift"] > 1


def test_no_graph_is_kept():
    module = network()
    watch = Watch(module, activations=True)
    (output,) = watched(watch, module, torch.randn(8, 2, 6, 6))
    output.sum().backward()
    assert not watch.training_readings().values.requires_grad
    module.eval()
    watch.is_evaluating = True
    module(torch.randn(8, 2, 6, 6))
    assert not watch.evaluation_readings().values.requires_grad


def test_watch_made_in_inference_mode():
    module = network()
    with torch.inference_mode():
        watch = Watch(module, activations=True)
    watched(watch, module, torch.randn(8, 2, 6, 6))
    assert watch.training_readings().to_numbers()["1", "values_per_channel"] == 128


def test_copies_do_not_write_into_the_original():
    module = network()
    watch = Watch(module)
    watch.is_on = True
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin(torch.randn(8, 2, 6, 6))
    assert watch.training_readings().to_numbers() == {}


def test_release_leaves_no_hooks():
    module = network()
    watch = Watch(module)
    watch.is_on = True
    watch.release()
    watch.release()
    assert not watch.is_on
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_keyword_arguments_and_other_inputs():
    module = nn.ModuleList([nn.Dropout(0.5), nn.LayerNorm(3), nn.BatchNorm1d(3)])
    watch = Watch(module, activations=True)
    watch.is_on = True
    module[0](input=torch.ones(8, 3))
    for layout in (torch.jagged, torch.strided):
        module[0](torch.nested.as_nested_tensor([torch.ones(3)], layout=layout))
    module[2](input=torch.randn(8, 3))
    torch.func.vmap(module[1])(torch.randn(4, 2, 3))
    numbers = watch.training_readings().to_numbers()
    assert numbers["0", "keep"] * 3 == pytest.approx(round(numbers["0", "keep"] * 3))
    assert numbers["2", "values_per_channel"] == 8
    assert ("1", "input_mean") not in numbers


def test_networks_without_such_layers():
    watch = Watch(nn.Linear(2, 2), activations=True)
    assert watch.training_readings().to_numbers() == watch.evaluation_readings().to_numbers() == {}


def test_other_device_after_prepare():
    module = network()
    watch = Watch(module, activations=True)
    module.to("meta")
    watch.prepare()
    watched(watch, module, torch.randn(8, 2, 6, 6, device="meta"))
    assert watch.training_readings().values.is_meta


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_network_recompiles_once_for_each_switch():
    module = nn.Sequential(nn.Identity(), nn.BatchNorm2d(2), nn.Dropout(0.5))
    watch = Watch(module, activations=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    values = torch.randn(16, 2, 6, 6, requires_grad=True)
    for step in range(8):
        watch.is_on = step % 4 == 3
        compiled(values).sum().backward()
        watch.is_on = False
        numbers = watch.training_readings().to_numbers()
        assert (numbers.get(("1", "values_per_channel")) == 576) == (step % 4 == 3)
        assert (("2", "keep") in numbers) == (step % 4 == 3)
    assert counter.frame_count == 2
    compiled.eval()
    for step in range(4):
        watch.is_evaluating = step % 2 == 1
        with torch.inference_mode():
            compiled(values)
        watch.is_evaluating = False
        assert bool(watch.evaluation_readings().to_numbers()) == (step % 2 == 1)
    assert counter.frame_count == 4


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_network_reads_the_same_as_an_eager_one():
    torch.manual_seed(0)
    eager = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5, inplace=True), nn.LayerNorm(6))
    compiled, values = copy.deepcopy(eager), torch.randn(16, 2, 6, 6)
    readings = []
    for module in (eager, compiled):
        watch = Watch(module, activations=True)
        run = module if module is eager else torch.compile(module, backend="aot_eager")
        torch.manual_seed(1)
        watched(watch, run, values)
        run.eval()
        evaluated(watch, run, values)
        readings.append((watch.training_readings(), watch.evaluation_readings()))
    for expected, found in zip(*readings, strict=True):
        torch.testing.assert_close(found.values, expected.values, equal_nan=True)
