"""Cost of watching the layers: one training step with a monitor against the step without.

Run:
    python benchmarks/layer_monitor.py            # the table, 15 minutes on 2 cores
    python benchmarks/layer_monitor.py --check    # ... and exit 1 if a target is missed
    python benchmarks/layer_monitor.py --quick    # a quarter of the width, under a minute

ResNet-18 for 32 x 32 images, a Dropout in each block (20 BatchNorms, 8 Dropouts), batch 64, SGD,
trained by the Trainer with a TensorBoardLogger, one thread. Each repetition runs a few steps with
every monitor, in a shuffled order; the figure is the median over repetitions of (CPU time of a step
with it / of a step without it). The first step of a fit, which is surveyed, is left out. "Every 50
steps" is one step that logs and 49 that do not. Peers are their statistics, rebuilt as hooks.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from lightning_lth import LayerStatsMonitor

TARGETS = {
    "ours, every step": 1.05,
    "ours, every 50 steps": 1.005,
    "event MB per 1000 logged steps": 7.0,
    "memory growth, MB": 1.0,  # of 10,000 steps: what the allocator keeps anyway
}
NEVER = 10**9


class Network(LightningModule):
    """ResNet-18 with Dropout, or any other network that ends in classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


def resnet18(width: int) -> nn.Module:
    """For small images, with a Dropout in each block."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10, width_per_group=64)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for module in list(network.modules()):
        if isinstance(module, BasicBlock):
            module.conv2 = nn.Sequential(nn.Dropout(0.1), module.conv2)
    return narrowed(network, 64 // width)


def narrowed(network: nn.Module, factor: int) -> nn.Module:
    """The same network with fewer channels."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d):
                inputs = (
                    layer.in_channels if layer.in_channels == 3 else layer.in_channels // factor
                )
                size = layer.kernel_size, layer.stride, layer.padding
                new: nn.Module = nn.Conv2d(inputs, layer.out_channels // factor, *size, bias=False)
            elif isinstance(layer, nn.BatchNorm2d):
                new = nn.BatchNorm2d(layer.num_features // factor)
            elif isinstance(layer, nn.Linear):
                new = nn.Linear(layer.in_features // factor, layer.out_features)
            else:
                continue
            setattr(parent, name, new)
    return network


class Hooks(Callback):
    """Calls a function with each output of the watched layers, as peers do."""

    def __init__(self, look: Callable[[Any, str, Tensor, int], None]) -> None:
        self.look = look

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        kinds = (nn.BatchNorm2d, nn.Dropout)
        for name, layer in pl_module.named_modules():
            if isinstance(layer, kinds):
                layer.register_forward_hook(self.hook(trainer, name))

    def hook(self, trainer: Trainer, name: str) -> Callable[..., None]:
        """A forward hook."""
        writer = trainer.logger.experiment

        def see(module: nn.Module, inputs: Any, output: Tensor) -> None:
            with torch.no_grad():
                self.look(writer, name, output, trainer.global_step)

        return see


def activation_stats(writer: Any, name: str, output: Tensor, step: int) -> None:
    """What fastai's ActivationStats keeps of a layer."""
    output.mean().item(), output.std().item(), (output <= 0.05).long().sum().item()


def item_each(writer: Any, name: str, output: Tensor, step: int) -> None:
    """Three scalars of a layer, each transferred and written by itself."""
    for statistic in ("mean", "std", "max"):
        writer.add_scalar(f"{statistic}/{name}", getattr(output, statistic)().item(), step)


def histogram(writer: Any, name: str, output: Tensor, step: int) -> None:
    """What bolts' ModuleDataMonitor writes of a layer."""
    writer.add_histogram(name, output, step)


MONITORS: dict[str, Callable[[], list[Callback]]] = {
    "no monitor": list,
    "ours, every step": lambda: [LayerStatsMonitor(1)],
    "ours, attached": lambda: [LayerStatsMonitor(NEVER)],
    "as fastai's ActivationStats": lambda: [Hooks(activation_stats)],
    "three scalars, .item() each": lambda: [Hooks(item_each)],
    "activation histograms": lambda: [Hooks(histogram)],
}


class Clock(Callback):
    """CPU time of each step, and the size of the event files after it."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.bytes: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the time; a step is from here to here."""
        self.times.append(time.process_time())
        trainer.logger.experiment.flush()
        folder = Path(trainer.logger.log_dir)
        self.bytes.append(sum(path.stat().st_size for path in folder.glob("events*")))


def fit(
    network: nn.Module, batches: Iterable[Any], monitors: Sequence[Callback], steps: int
) -> Clock:
    """Train for some steps."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            callbacks=[*monitors, clock],
            logger=TensorBoardLogger(folder),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Network(network), batches)
    return clock


def step_times(width: int, repetitions: int, steps: int) -> tuple[dict[str, float], float]:
    """Time of a step with each monitor over the time without, and event bytes of a logged step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator)
    batches = DataLoader([(images, torch.arange(64) % 10)] * steps, batch_size=None)
    ratios: dict[str, list[float]] = {name: [] for name in MONITORS}
    sizes = []
    for _ in range(repetitions):
        times = {}
        for name in random.sample(list(MONITORS), len(MONITORS)):
            torch.manual_seed(0)
            clock = fit(resnet18(width), batches, MONITORS[name](), steps)
            spans = [b - a for a, b in zip(clock.times[:-1], clock.times[1:], strict=True)]
            times[name] = statistics.median(spans)
            if name == "ours, every step":
                sizes.append((clock.bytes[-1] - clock.bytes[0]) / (len(clock.bytes) - 1))
        for name, value in times.items():
            ratios[name].append(value / times["no monitor"])
    return {name: statistics.median(values) for name, values in ratios.items()}, sizes[0]


def memory_growth(steps: int) -> float:
    """Growth of the process in MB, from a fifth of the steps on, when every step is logged."""
    resident: list[int] = []

    class Meter(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step in (steps // 5, steps):
                gc.collect()
                resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)

    hidden = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1)] * 4
    batch = torch.randn(32, 8), torch.arange(32) % 8
    batches = DataLoader([batch] * steps, batch_size=None)
    fit(nn.Sequential(*hidden), batches, [LayerStatsMonitor(1), Meter()], steps)
    return (resident[1] - resident[0]) / 2**20


def main() -> None:
    """Measure, print, and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="a quarter of the width")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width, repetitions, steps = (16, 1, 8) if arguments.quick else (64, 5, 7)
    growth = memory_growth(1_000 if arguments.quick else 10_000)  # first, in a small process
    figures, event_bytes = step_times(width, repetitions, steps)
    attached = figures["ours, attached"]
    figures["ours, every 50 steps"] = attached + (figures["ours, every step"] - attached) / 50
    figures["event MB per 1000 logged steps"] = event_bytes * 1000 / 1e6
    figures["memory growth, MB"] = growth
    missed = []
    for name, value in figures.items():
        target = TARGETS.get(name)
        print(f"{name:34} {value:7.3f}" + (f"  target <= {target}" if target else ""))
        if target is not None and value > target:
            missed.append(name)
    if missed:
        print(f"Missed: {', '.join(missed)}")
    if arguments.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    main()
