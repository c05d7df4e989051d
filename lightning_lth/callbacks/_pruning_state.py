"""What iterative pruning knows in the middle of a fit, and how it goes into a checkpoint."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_lth.callbacks._rounds import Position
from lightning_lth.pruning.history import BestValue, History
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.rewind import RewindPoint
from lightning_lth.pruning.tickets import Ticket


@dataclass
class PruningState:
    """All that training changes; what a checkpoint keeps."""

    round: int = 0
    masks: Masks | None = None
    point: RewindPoint | None = None
    position: Position = field(default_factory=Position)
    early_stopping: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_epochs_before: int = 0
    is_round_over: bool = False
    best: BestValue | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)

    def start_next_round(self, masks: Masks, num_epochs: int) -> None:
        """Go on to the next round, after one of ``num_epochs`` epochs."""
        self.round += 1
        self.masks = masks
        self.num_epochs_before += num_epochs
        self.is_round_over, self.best, self.metrics = False, None, {}

    def ticket(self) -> Ticket:
        """The present masks with the weights of the rewind point."""
        if self.point is None or self.masks is None:
            raise RuntimeError("There is no ticket before training has come to the rewind point.")
        point = self.point.state_dict()
        seed = os.environ.get("PL_GLOBAL_SEED")  # where `seed_everything` leaves it
        return Ticket(
            masks=self.masks,
            weights={**point["weights"], **point["buffers"]},
            round=self.round,
            step=self.position.step,
            seed=int(seed) if seed is not None else None,
            metrics=self.best.metrics if self.best is not None else self.metrics,
        )

    def state_dict(self) -> dict[str, Any]:
        masks = self.masks
        return {
            "round": self.round,
            "masks": masks.pack() if masks is not None else None,
            "shapes": {n: list(m.shape) for n, m in masks.items()} if masks is not None else None,
            "point": self.point.state_dict() if self.point is not None else None,
            "position": self.position.state_dict(),
            "early_stopping": self.early_stopping,
            "num_epochs_before": self.num_epochs_before,
            "is_round_over": self.is_round_over,
            "history": self.history.state_dict(),
            **self.observations(),
        }

    def observations(self) -> dict[str, Any]:
        """What of the state changes whenever metrics are recorded."""
        best = self.best.state_dict() if self.best is not None else None
        return {"best": best, "metrics": self.metrics}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PruningState:
        shapes = {name: torch.Size(shape) for name, shape in (state["shapes"] or {}).items()}
        return cls(
            round=state["round"],
            masks=Masks.unpack(state["masks"], shapes) if state["masks"] is not None else None,
            point=RewindPoint.from_state_dict(state["point"]) if state["point"] else None,
            position=Position(**state["position"]),
            early_stopping=copy.deepcopy(state["early_stopping"]),
            num_epochs_before=state["num_epochs_before"],
            is_round_over=state["is_round_over"],
            best=BestValue(**state["best"]) if state["best"] else None,
            metrics=dict(state["metrics"]),
            history=History.from_state_dict(state["history"]),
        )
