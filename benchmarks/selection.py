"""One global magnitude decision over the weights of VGG-16: time, memory, and peers.

    python benchmarks/selection.py            # a table of ratios, about two minutes
    python benchmarks/selection.py --check    # ... and exit status 1 if a target is missed
    python benchmarks/selection.py --quick    # a 1/8 of the weights, under a minute

Every time is measured in this run, ours and theirs by turns; a ratio is of the fastest of each.
Memory is measured in a process of its own: its peak, less what it held before and less the masks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from lightning_lth.pruning import scoring
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.selection import prune

FRACTION = 0.2
CHUNK = 1 << 18  # elements of the read pass; stays in the cache
SPAN = 1 << 22  # elements that a thread takes at a time
SMALL = 1_000_000
QUICK_SHARE = 8
REPETITIONS, PEER_REPETITIONS = 9, 3
CONVOLUTIONS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
LINEAR = ((4096, 512 * 7 * 7), (4096, 4096), (1000, 4096))

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure and the target that it must meet."""

    name: str
    value: float
    target: float
    at_most: bool = True
    checked: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the figure meets its target, or need not."""
        return not self.checked or (self.value <= self.target) == self.at_most

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = ("ok" if self.is_met else "MISSED") if self.checked else "not checked"
        return f"{self.name:<58}{self.value:>10.3f}   {sign} {self.target:<7.3f} {verdict}"


def vgg16_weights(divisor: float = 1) -> Weights:
    """The 138,344,128 weights of VGG-16, drawn as torch draws them; or the first part of each."""
    generator = torch.Generator().manual_seed(0)
    inputs = (3, *CONVOLUTIONS)
    shapes = [(out, inputs[i], 3, 3) for i, out in enumerate(CONVOLUTIONS)] + list(LINEAR)
    weights = {}
    for index, shape in enumerate(shapes):
        size = torch.Size(shape).numel()
        bound = (size // shape[0]) ** -0.5  # kaiming_uniform_(a=sqrt(5)), torch's default
        weight = torch.empty(shape if divisor == 1 else round(size / divisor))
        weights[f"layers.{index}.weight"] = weight.uniform_(-bound, bound, generator=generator)
    return weights


def read_pass(weights: Mapping[str, Tensor]) -> float:
    """The sum of all magnitudes, in pieces: the least that any magnitude decision must do."""
    buffer = torch.empty(CHUNK)
    total = 0.0
    for weight in weights.values():
        flat = weight.view(-1)
        for start in range(0, len(flat), CHUNK):
            chunk = flat[start : start + CHUNK]
            total += float(torch.abs(chunk, out=buffer[: len(chunk)]).sum())
    return total


def read_pass_in_threads(weights: Mapping[str, Tensor]) -> float:
    """The same with numpy in as many threads; other work on the machine upsets it less."""
    spans = [
        weight.view(-1).numpy()[start : start + SPAN]
        for weight in weights.values()
        for start in range(0, weight.numel(), SPAN)
    ]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(_sum_span, spans))


def _sum_span(span: np.ndarray) -> float:
    buffer = np.empty(min(CHUNK, len(span)), dtype=span.dtype)
    chunks = (span[start : start + CHUNK] for start in range(0, len(span), CHUNK))
    return float(sum(np.absolute(chunk, out=buffer[: len(chunk)]).sum() for chunk in chunks))


def decide(weights: Mapping[str, Tensor], masks: Masks) -> Masks:
    """Our decision, masks included."""
    return prune(scoring.magnitude(weights), masks, fraction=FRACTION)


def decide_torch(weights: Mapping[str, Tensor]) -> None:
    """The decision of `torch.nn.utils.prune` over modules that hold these weights."""
    modules = []
    for weight in weights.values():
        module = nn.Module()
        module.weight = nn.Parameter(weight)
        modules.append((module, "weight"))
    torch_prune.global_unstructured(modules, torch_prune.L1Unstructured, amount=FRACTION)


def time_by_turns(repetitions: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Seconds that each function takes, each time; they run by turns, after one warm-up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(repetitions + 1):
        for function, measured in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if turn or repetitions == 1:
                measured.append(time.perf_counter() - start)
    return seconds


def peak_extra_memory(divisor: float) -> float:
    """Peak memory of a decision beyond the masks, as a share of the weights; in a fresh process."""
    command = [sys.executable, __file__, "--memory", str(divisor)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_own_memory(divisor: float) -> float:
    """What ``peak_extra_memory`` runs in the fresh process."""
    weights = vgg16_weights(divisor)
    masks = Masks.dense(weights)
    masks_bytes = masks.num_weights
    small = {"weight": torch.ones(100_000)}
    decide(small, Masks.dense(small))  # threads and code are no memory of the decision
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_bytes("VmRSS")
    decided = decide(weights, masks)
    peak = _status_bytes("VmHWM")
    assert decided.num_weights == masks_bytes
    return (peak - before - masks_bytes) / (4 * masks_bytes)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def _report(name: str, seconds: list[float]) -> None:
    milliseconds = 1000 * np.asarray(seconds)
    print(f"{name:<58}{milliseconds.min():>10.1f}{median(milliseconds):>10.1f}   ({len(seconds)})")


def measure(*, quick: bool) -> list[Row]:
    """Measure everything, print the times, return the ratios."""
    weights = vgg16_weights(QUICK_SHARE if quick else 1)
    total = sum(weight.numel() for weight in weights.values())
    dense = Masks.dense(weights)
    sparse = decide(weights, dense)
    few = vgg16_weights(138_344_128 / SMALL)
    few_total = sum(weight.numel() for weight in few.values())
    few_dense = Masks.dense(few)

    torch_passes, numpy_passes, ours, again, small = time_by_turns(
        REPETITIONS,
        lambda: read_pass(weights),
        lambda: read_pass_in_threads(weights),
        lambda: decide(weights, dense),
        lambda: decide(weights, sparse),
        lambda: decide(few, few_dense),
    )
    theirs, beside = time_by_turns(
        1 if quick else PEER_REPETITIONS,
        lambda: decide_torch(weights),
        lambda: decide(weights, dense),
    )
    print(f"{total:,} float32 weights, {FRACTION:.0%}, {torch.get_num_threads()} threads")
    print(f"{'milliseconds':<58}{'min':>10}{'median':>10}   (runs)")
    _report("one chunked read pass: abs(out=buffer).sum(), torch", torch_passes)
    _report("the same, numpy in threads", numpy_passes)
    _report("lightning_lth: prune(), masks included", ours)
    _report("lightning_lth: round 2, density 0.8", again)
    _report(f"lightning_lth: {few_total:,} weights", small)
    _report("torch.nn.utils.prune.global_unstructured", theirs)
    _report("lightning_lth: by turns with that", beside)
    passes = torch_passes + numpy_passes  # the faster of the two is the bound
    growth = (min(ours) / total) / (min(small) / few_total)
    full = not quick  # fixed costs and noise weigh too much on few weights
    return [
        Row("time / one read pass", min(ours) / min(passes), 5, checked=full),
        Row("time of round 2 / one read pass", min(again) / min(passes), 5, checked=full),
        Row("peak memory beyond masks / weights", peak_extra_memory(_divisor(quick)), 1 / 8),
        Row("times as fast as global_unstructured", min(theirs) / min(beside), 100, False, full),
        Row(f"time per weight / that of {few_total:,} weights", growth, 1.5),
    ]


def _divisor(quick: bool) -> float:
    return QUICK_SHARE if quick else 1


def main() -> int:
    """Print the table; the exit status is 1 if a target is missed and --check was given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="fewer weights, under a minute")
    parser.add_argument("--memory", type=float, metavar="DIVISOR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(measure_own_memory(arguments.memory))
        return 0
    rows = measure(quick=arguments.quick)
    print(f"\n{'ratio':<58}{'measured':>10}   target")
    print(*rows, sep="\n")
    missed = [row.name for row in rows if not row.is_met]
    if missed and arguments.check:
        print(f"Missed: {'; '.join(missed)}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
