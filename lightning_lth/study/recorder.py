"""What a training shows while it runs: its curve, its best validation, and the accuracies then."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from lightning.pytorch import Callback
from typing_extensions import override

from lightning_lth.pruning.history import BestValue
from lightning_lth.stopping.best_weights import BestWeights
from lightning_lth.study.reading import TEXTS

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_lth.pruning.masks import Masks
    from lightning_lth.study.design import Measures

Row = dict[str, Any]

_ACCURACIES = ("train_accuracy", "validation_accuracy", "test_accuracy")
MEASURES: Final = (
    *("density", "num_remaining", "steps", "early_stop_step", "early_stop_value"),
    *(f"{when}_{name}" for when in ("early_stop", "end") for name in _ACCURACIES),
)
"""The columns of ``rounds`` that a claim can be about."""


class Progress(Protocol):
    """Is told how far a training is."""

    def __call__(self, round: int, fraction: float) -> None:
        """Take notice.

        Args:
            round: The present round.
            fraction: Share of the round's steps that are done, in [0, 1]; 0 where unknown.
        """


@final
class Recorder(Callback):
    """Records one row for each validation, and one for each round.

    The early-stop iteration is that of the best validation. The accuracies are measured with the
    weights of that moment, and with those at the end, on a module of its own, so that the training
    does not notice.

    Args:
        key: Columns that all rows get, e.g. arm and seed.
        measures: Which metrics count.
        round: The present round.
        masks: The present masks.
        accuracies: Given weights, the accuracies by name.
        progress: Told after each validation.
        at_round_end: Called with the end weights when all of a round is recorded.
    """

    def __init__(
        self,
        *,
        key: Mapping[str, Any],
        measures: Measures,
        round: Callable[[], int],
        masks: Callable[[], Masks],
        accuracies: Callable[[Trainer, BestWeights], dict[str, float]],
        progress: Progress,
        at_round_end: Callable[[Trainer, int], None],
    ) -> None:
        self._key = dict(key)
        self._measures = measures
        self._round = round
        self._masks = masks
        self._accuracies = accuracies
        self._progress = progress
        self._at_round_end = at_round_end
        self._best: BestWeights | None = None
        self.curves: list[Row] = []
        self.rounds: list[Row] = []
        self.layers: list[Row] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the best validation of the round before."""
        self._best = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics, and keep the weights if they are the best so far."""
        if trainer.sanity_checking:
            return
        step = trainer.global_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        numbers = {name: value for name, value in metrics.items() if name not in TEXTS}
        own = {**self._row(), "step": step}
        self.curves.append({**own, **numbers, **own})  # first, whatever a metric is called
        value = metrics.get(self._measures.monitor, math.nan)
        best = self._best and BestValue("", self._best.value, self._best.step, {})
        if BestValue.is_better(value, best, self._measures.mode):
            self._best = BestWeights.of(pl_module, step=step, value=value)
        budget = trainer.max_steps
        self._progress(self._round(), step / budget if budget > 0 else 0.0)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the round."""
        end = BestWeights.of(pl_module, step=trainer.global_step, value=math.nan)
        best = self._best
        self.rounds.append(
            {
                **self._row(),
                "num_remaining": self._masks().num_remaining,
                "steps": trainer.global_step,
                "stop_reason": _stop_reason(trainer),
                "early_stop_step": best.step if best else math.nan,
                "early_stop_value": best.value if best else math.nan,
                **_prefixed("early_stop", self._accuracies(trainer, best) if best else {}),
                **_prefixed("end", self._accuracies(trainer, end)),
            }
        )
        self._record_layers()
        self._at_round_end(trainer, self._round())

    @override
    def state_dict(self) -> dict[str, Any]:
        """All rows."""
        return {"curves": self.curves, "rounds": self.rounds, "layers": self.layers}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the rounds that are recorded."""
        self.curves = state_dict["curves"]
        self.rounds = state_dict["rounds"]
        self.layers = state_dict["layers"]

    def _row(self) -> Row:
        return {**self._key, "round": self._round(), "density": self._masks().density}

    def _record_layers(self) -> None:
        masks = self._masks()
        for name, density in masks.densities().items():
            row = self._row() | {"layer": name, "density": density}
            self.layers.append({**row, "num_weights": masks[name].numel()})


def _prefixed(prefix: str, accuracies: Mapping[str, float]) -> Row:
    return {f"{prefix}_{name}": accuracies.get(name, math.nan) for name in _ACCURACIES}


def _stop_reason(trainer: Trainer) -> str:
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "max_steps"
    return "should_stop" if trainer.should_stop else "max_epochs"
