"""Tickets of one task for the model of another."""

from __future__ import annotations

import os

from lightning.pytorch import LightningModule, seed_everything

from lightning_lth.pruning.controls import derive_seed
from lightning_lth.pruning.tickets import Ticket, TicketReport
from lightning_lth.study.design import Study
from lightning_lth.study.settings import build
from lightning_lth.study.surroundings import seeds


def transfer(
    path: str | os.PathLike[str], study: Study, *, seed: int = 0
) -> tuple[Ticket, TicketReport]:
    """A ticket for the model of a study, from one of another task.

    Tensors whose names and shapes fit are taken from the ticket; the others, such as an output
    layer for another number of classes, are as the model initializes them, and dense.

    Args:
        path: File of the ticket.
        study: Whose model gets it.
        seed: For what does not fit; the weights are those of the study's trial with that seed.

    Returns:
        The new ticket, and what fitted.

    Raises:
        ValueError: If nothing fits, or the file is no ticket.

    Source:
        Morcos et al. 2019, arXiv:1906.02773: section 3.
    """
    ticket = Ticket.load(path)
    with seeds():
        seed_everything(derive_seed(seed, "initialization"), verbose=False)
        model: LightningModule = build(LightningModule, study.settings["model"])
    report = ticket.apply_(model, strict=False)
    moved = Ticket(
        report.masks,
        model.state_dict(),
        round=ticket.round,
        step=ticket.step,
        seed=ticket.seed,
        metrics=ticket.metrics,
    )
    return moved, report
