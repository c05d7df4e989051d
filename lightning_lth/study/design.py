"""What a study is: a protocol, seeds, arms, and the claims that they are to decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

import torch

from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.selection import prune
from lightning_lth.study.claims import Claim

if TYPE_CHECKING:
    from lightning_lth.study.arm import Arm

Settings = dict[str, Any]
"""The plain form of a config: dictionaries, lists, numbers and strings alone."""

MOST_ROUNDS = 1000
"""Of a ladder. With a fifth pruned in each, no network keeps a weight for so long."""

_MOST_THREADS = 1024
_MOST_BYTES = 200  # file systems allow 255


@final
@dataclass(frozen=True)
class Ladder:
    """How sparse the networks of each round are; round 0 is dense.

    Args:
        rounds: How often to prune; from 1 to ``MOST_ROUNDS``.
        fraction: Share of the surviving weights to prune in each round, in (0, 1).
        scope: "global" ranks all weights together, "layer" each parameter by itself.
        fractions: Glob patterns on parameter names to a fraction of their own, in [0, 1); 0 never
            prunes.
        parameters: Glob patterns on parameter names that select what is pruned. Default: weights
            of linear, convolution, embedding, attention and recurrent layers, and of layers of
            other libraries, if they have two dimensions or more.
        rewind_step: Optimizer step to rewind to, from 0, which is initialization.

    Raises:
        ValueError: If a number is out of its range.
    """

    rounds: int
    fraction: float = 0.2
    scope: Literal["global", "layer"] = "global"
    fractions: dict[str, float] | None = None
    parameters: list[str] | None = None
    rewind_step: int = 0

    def __post_init__(self) -> None:
        """Refuse what no pruning could do."""
        if self.rounds < 1:
            raise ValueError(f"`rounds` must be at least 1, got {self.rounds}.")
        if self.rounds > MOST_ROUNDS:
            raise ValueError(
                f"`rounds` must be at most {MOST_ROUNDS}, got {self.rounds}. Prune more in each."
            )
        for name, share in {"fraction": self.fraction, **(self.fractions or {})}.items():
            if not 0 <= share < 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1), got {share}. "
                    "Percentages are written as fractions: 0.2."
                )
        if self.fraction == 0:
            raise ValueError(
                "`fraction` must be above 0, got 0. Name what is to be pruned in `parameters`."
            )
        if self.rewind_step < 0:
            raise ValueError(f"`rewind_step` must be at least 0, got {self.rewind_step}.")

    def prune(self, scores: Scores, round: int) -> Masks:
        """The masks after ``round`` rounds in which the scores stay as they are.

        Examples:
            >>> scores = Scores.of({"hidden": torch.rand(10, 10), "output": torch.rand(2, 10)})
            >>> Ladder(rounds=2, scope="layer", fractions={"output": 0.1}).prune(scores, 2)
            Masks(2 tensors, 80 of 120 weights)
        """
        shapes = {name: scores.shape(name) for name in scores.names}
        masks = Masks({name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})
        for _ in range(round):
            masks = prune(
                scores, masks, fraction=self.fraction, scope=self.scope, fractions=self.fractions
            )
        return masks


@final
@dataclass(frozen=True)
class Measures:
    """Which of the metrics that the model logs count.

    Args:
        monitor: Metric of the validation whose best value is the early-stop iteration.
        mode: Whether the smallest ("min") or the largest ("max") value of ``monitor`` is best.
        validation_accuracy: Metric that ``validation_step`` logs; higher is better. It is
            measured on the training data, too.
        test_accuracy: Metric that ``test_step`` logs; higher is better.
    """

    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    validation_accuracy: str = "val_accuracy"
    test_accuracy: str = "test_accuracy"


@final
@dataclass(frozen=True)
class Study:
    """A study as its config describes it; read one with ``lightning_lth.study.load_study``.

    Args:
        name: For headlines and file names.
        seeds: One trial for each; arms are paired by them.
        settings: The whole resolved config.
        pruning: How sparse the networks are in each round.
        arms: By name, in the order of the config.
        measures: Which metrics count.
        claims: What the study is to decide.
        threads: CPU threads of each trial. It is part of the protocol, since sums depend on it.

    Raises:
        ValueError: If a seed or ``threads`` is out of range, or a name could lead out of the
            study's folder, or to that of another arm.
    """

    name: str
    seeds: list[int]
    settings: Settings
    pruning: Ladder
    arms: Mapping[str, Arm]
    measures: Measures = field(default_factory=Measures)
    claims: list[Claim] = field(default_factory=list)
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what could not be written to a folder, or not be seeded with."""
        if not isinstance(self.name, str):
            raise ValueError(f"`name` must be a text, got {self.name!r}.")
        if not isinstance(self.threads, int) or not 1 <= self.threads <= _MOST_THREADS:
            raise ValueError(f"`threads` must be in [1, {_MOST_THREADS}], got {self.threads}.")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"`seeds` must be in [0, 2**32), as NumPy's are, got {seed}.")
        for name in self.arms:
            check_folder_name("The name of an arm", name)
        if len({name.casefold() for name in self.arms}) < len(self.arms):
            raise ValueError(
                "Names of arms must differ in more than capitals, as not all file systems tell "
                f"them apart, got {list(self.arms)}."
            )


def check_folder_name(what: str, name: str) -> None:
    """Refuse a name that is no folder directly below another.

    Raises:
        ValueError: With the name.
    """
    is_one = name not in ("", ".", "..") and not {"/", "\\"} & set(name) and name.isprintable()
    if not is_one or len(name.encode()) > _MOST_BYTES:
        raise ValueError(
            f"{what} must be the name of a folder, without '/', '\\' and control characters, not "
            f"'.' or '..', of 1 to {_MOST_BYTES} bytes, got {name!r}. Use letters, digits and '_'."
        )
