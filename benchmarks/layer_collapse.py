"""How far an untrained VGG-16 can be pruned before a layer is empty, by five methods.

    python benchmarks/layer_collapse.py            # a table, a few minutes on 2 cores
    python benchmarks/layer_collapse.py --check    # ... and exit status 1 if a target is missed
    python benchmarks/layer_collapse.py --quick    # a quarter of the width, under a minute

Compression is the number of weights over the number of those that survive, in powers of ten and
steps of a quarter power; in the table is the highest at which every layer still has a weight, the
median over trials. Nothing is trained, and the one batch of SNIP and GraSP is noise: layers empty
because of their sizes and of the scale of their scores, not because of the data.

Source: Tanaka et al. 2020, arXiv:2006.05467, figure 1, VGG-16 with BatchNorm and CIFAR-100. The
initialization and the eval mode are those of the authors' code. They have 2.75 for magnitude, 3.25
for random, 3.5 for SNIP and GraSP, 6.0 for SynFlow; only the order is a target here. That GraSP
is not below random is not checked: pruned at once, as here, it is (2.75 with 100 examples, 3.0 with
200). The arguments stored with their figure give every method 100 iterations, and in 20 iterations
GraSP goes beyond random here too, by three steps or more (one trial, a quarter of the width).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log10
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_lth.pruning import scoring
from lightning_lth.pruning.at_initialization import grasp, snip, synflow
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import prunable_parameters
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.selection import emptied, keep

STEP = 0.25
NUM_CLASSES = 100
PLAN = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8)  # times the width; 0 halves the image
NUM_EXAMPLES = 100  # one of each class
NUM_TRIALS = {"magnitude": 3, "random": 3, "SNIP": 3, "GraSP": 3, "SynFlow": 1}  # it takes longest


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure and what it must not be below, or must reach."""

    name: str
    value: float
    target: float
    sign: str
    checked: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the figure meets its target, or need not."""
        return (
            not self.checked
            or {
                "<": self.value < self.target,
                "<=": self.value <= self.target,
                "==": self.value == self.target,
            }[self.sign]
        )

    def __str__(self) -> str:
        verdict = ("ok" if self.is_met else "MISSED") if self.checked else "not checked"
        return f"{self.name:<46}{self.value:>8.2f}   {self.sign:<2} {self.target:<6.2f} {verdict}"


def vgg16(width: int) -> nn.Module:
    """VGG-16 with BatchNorm for 32 x 32 images, initialized as in the authors' code."""
    layers: list[nn.Module] = []
    channels = 3
    for factor in PLAN:
        if factor == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, factor * width, 3, padding=1))
        channels = factor * width
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    network = nn.Sequential(
        *layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels, NUM_CLASSES)
    )
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network.eval()


def noise() -> tuple[Tensor, Tensor]:
    """A batch of noise, as many of each class."""
    return torch.randn(NUM_EXAMPLES, 3, 32, 32), torch.arange(NUM_EXAMPLES) % NUM_CLASSES


def one_shot(method: str, network: nn.Module, seed: int) -> Scores:
    """The scores of a method that prunes once."""
    weights = prunable_parameters(network)
    if method == "magnitude":
        return scoring.magnitude(weights)
    if method == "random":
        return scoring.random(seed)(weights, weights)
    score = {"SNIP": snip, "GraSP": grasp}[method]
    return score(network, [noise()], functional.cross_entropy)


def highest(powers: list[float], is_whole: Callable[[float], bool]) -> float:
    """The last power before the first at which a layer is empty."""
    for lower, power in zip([0.0, *powers], powers, strict=False):
        if not is_whole(power):
            return lower
    return powers[-1]


def highest_compression(method: str, network: nn.Module, seed: int) -> float:
    """The power of ten of the highest compression without an empty layer."""
    dense = Masks.dense(prunable_parameters(network))
    top = log10(dense.num_weights / len(dense))
    powers = [STEP * index for index in range(1, floor(top / STEP) + 1)]
    if method == "SynFlow":  # each compression is a pruning of its own, so the highest first
        example = torch.zeros(1, 3, 32, 32)
        return next(
            (p for p in reversed(powers) if not emptied(synflow(network, example, 10**-p))), 0.0
        )
    scores = Scores.of(one_shot(method, network, seed).materialize())
    return highest(
        powers,
        lambda p: not emptied(keep(scores, dense, num_remaining=round(dense.num_weights / 10**p))),
    )


def measure(width: int) -> list[Row]:
    """Measure and print every method; return what was promised of them."""
    medians = {}
    torch.manual_seed(0)
    dense = Masks.dense(prunable_parameters(vgg16(width)))
    top = log10(dense.num_weights / len(dense))
    print(
        f"VGG-16 of width {width}: {dense.num_weights:,} weights in {len(dense)} layers, ", end=""
    )
    print(f"at most 10^{top:.3f}")
    print(f"{'highest compression, log10':<30}{'median':>8}{'seconds':>10}   trials")
    for method, num_trials in NUM_TRIALS.items():
        start, found = time.perf_counter(), []
        for seed in range(num_trials):
            torch.manual_seed(seed)
            found.append(highest_compression(method, vgg16(width), seed))
        medians[method] = median(found)
        seconds = (time.perf_counter() - start) / num_trials
        values = ", ".join(f"{value:.2f}" for value in found)
        print(f"{method:<30}{medians[method]:>8.2f}{seconds:>10.1f}   {values}", flush=True)
    return rows(medians, floor(top / STEP) * STEP)


def rows(medians: dict[str, float], top: float) -> list[Row]:
    """The order of the methods, as the paper has it."""
    return [
        Row("magnitude, below random", medians["magnitude"], medians["random"], "<"),
        Row("random, at most SNIP", medians["random"], medians["SNIP"], "<="),
        Row("random, at most GraSP", medians["random"], medians["GraSP"], "<=", checked=False),
        Row("SNIP, below SynFlow", medians["SNIP"], medians["SynFlow"], "<"),
        Row("GraSP, below SynFlow", medians["GraSP"], medians["SynFlow"], "<"),
        Row("SynFlow, the highest possible", medians["SynFlow"], top, "=="),
    ]


def main() -> int:
    """Print the table; the exit status is 1 if a target is missed and --check was given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="a narrow network, under a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        torch.set_num_threads(1)  # small tensors gain nothing from more
    found = measure(16 if arguments.quick else 64)
    print(f"\n{'order':<46}{'measured':>8}   target")
    print(*found, sep="\n")
    missed = [row.name for row in found if not row.is_met]
    if missed and arguments.check:
        print(f"Missed: {'; '.join(missed)}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
