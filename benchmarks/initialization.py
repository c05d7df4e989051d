"""What initializing a whole module costs, against drawing as many normal values once.

    python benchmarks/initialization.py            # a table of ratios, under a minute
    python benchmarks/initialization.py --check    # ... and exit status 1 if a target is missed
    python benchmarks/initialization.py --quick    # fewer repetitions

All are measured in this run, by turns; a ratio is of the medians. ``reset_parameters`` over the
tree is what torch offers; it draws uniform values and knows no nonlinearity. The forward pass that
finds the nonlinearities is not part of the drawing and has a row of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torchvision
from torch import Tensor, nn

from lightning_lth import initialize_

TARGET = 1.2
REPETITIONS, QUICK_REPETITIONS = 7, 3
LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT = 12, 768, 12, 50257, 1024


class GPT2(nn.Module):
    """As many parameters as the small GPT-2 in the same shapes: 124 million, the head tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(LAYERS)
            )
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(positions))))


@dataclass(frozen=True)
class Row:
    """One line of the table: a ratio, and whether it has a target."""

    name: str
    ratio: float
    checked: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the ratio meets the target, or need not."""
        return not self.checked or self.ratio <= TARGET

    def __str__(self) -> str:
        target = f"  target <= {TARGET}" if self.checked else ""
        return f"{self.name:<52} {self.ratio:8.3f}{target}" + ("" if self.is_met else "  MISSED")


def seconds(function: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def reset(module: nn.Module) -> None:
    """What torch offers: every layer draws its own default."""
    for layer in module.modules():
        for name in ("reset_parameters", "_reset_parameters"):
            if hasattr(layer, name) and not isinstance(layer, nn.Transformer):
                getattr(layer, name)()


def rows(name: str, module: nn.Module, example: Tensor, repetitions: int) -> list[Row]:
    """Measure one module."""
    module.eval()
    size = sum(parameter.numel() for parameter in module.parameters())
    flat = torch.empty(size)
    timed: dict[str, Callable[[], object]] = {
        "normal": flat.normal_,
        "he": lambda: initialize_(module, "he", seed=0),
        "auto": lambda: initialize_(module, seed=0),
        "example": lambda: initialize_(module, seed=0, example_input=example),
        "forward": lambda: module(example),
        "reset": lambda: reset(module),
    }
    times: dict[str, list[float]] = {key: [] for key in timed}
    for repetition in range(repetitions + 1):
        for key, function in timed.items():
            taken = seconds(function)
            if repetition:  # the first is for warming up
                times[key].append(taken)
    once = {key: median(values) for key, values in times.items()}
    millions = f"{name}, {size / 1e6:.0f} million"
    return [
        Row(f"{millions}: initialize_, he", once["he"] / once["normal"], checked=True),
        Row(f"{millions}: initialize_, auto", once["auto"] / once["normal"], checked=True),
        Row(f"{millions}: with an example", once["example"] / once["normal"]),
        Row(f"{millions}: one forward pass alone", once["forward"] / once["normal"]),
        Row(f"{millions}: torch's reset_parameters", once["reset"] / once["normal"]),
    ]


@torch.no_grad()
def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Which nonlinearity follows")
    repetitions = QUICK_REPETITIONS if arguments.quick else REPETITIONS
    table = [
        *rows("ResNet-50", torchvision.models.resnet50(), torch.randn(1, 3, 64, 64), repetitions),
        *rows("GPT-2", GPT2(), torch.zeros(1, 16, dtype=torch.long), repetitions),
    ]
    print(f"{'time, as a multiple of drawing normal values once':<52}    ratio")
    print(*table, sep="\n")
    missed = [row.name for row in table if not row.is_met]
    if missed and arguments.check:
        print(f"Missed: {'; '.join(missed)}", file=sys.stderr)
    return int(bool(missed) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
