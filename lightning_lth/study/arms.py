"""Arms: ways to come by sparse networks. Each is small; a config names and combines them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, final

from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from lightning_lth.pruning import at_initialization, controls
from lightning_lth.pruning.masks import Masks
from lightning_lth.pruning.parameters import prunable_parameters
from lightning_lth.pruning.scoring import Scores, magnitude, random
from lightning_lth.pruning.selection import keep
from lightning_lth.pruning.structured import prune_units
from lightning_lth.pruning.tickets import Ticket
from lightning_lth.study.arm import Arm, Part, chosen_rounds

if TYPE_CHECKING:
    from lightning_lth.study.design import Ladder
    from lightning_lth.study.trial import Trial

CriterionFunction = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Scores]
_MOST_DRAWS = 1000


@final
@dataclass(frozen=True, kw_only=True)
class IterativePruning(Arm):
    """Train, prune, rewind, repeat: winning tickets, and what is compared with rewinding.

    Args:
        rewind: "weights" (winning tickets), "learning_rate" or "none" (fine-tuning).
        rewind_step: Optimizer step to rewind to. Default: that of ``pruning``.
        rounds: How often to prune. Default: that of ``pruning``.
        fraction: Share to prune in each round. Default: that of ``pruning``.
        scope: "global" or "layer". Default: that of ``pruning``.
        criterion: Import path of a function that scores weights by both ends of training, as
            those in ``lightning_lth.pruning.criteria``.

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635; Frankle et al. 2019, arXiv:1903.01611; Renda et
        al. 2020, arXiv:2003.02389; Zhou et al. 2019, arXiv:1905.01067 (``criterion``).
    """

    rewind: Literal["weights", "learning_rate", "none"] = "weights"
    rewind_step: int | None = None
    rounds: int | None = None
    fraction: float | None = None
    scope: Literal["global", "layer"] | None = None
    criterion: CriterionFunction = magnitude

    def rounds_run(self, ladder: Ladder) -> list[int]:
        """Dense and every round."""
        return list(range(self.own_ladder(ladder).rounds + 1))

    def parts(self, ladder: Ladder) -> list[Part]:
        """All rounds of a seed are one job."""
        return [Part()]

    def run(self, trial: Trial, part: Part) -> None:
        """Train all rounds in one fit."""
        ladder = self.own_ladder(trial.ladder)
        trial.train_rounds(ladder, rewind=self.rewind, criterion=self.criterion)

    def own_ladder(self, ladder: Ladder) -> Ladder:
        """The ladder of the study with what this arm has of its own."""
        names = ("rewind_step", "rounds", "fraction", "scope")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(ladder, **own)


@final
@dataclass(frozen=True, kw_only=True)
class Control(Arm):
    """Train tickets of another arm with one thing changed, to see whether it mattered.

    Training starts with fresh optimizers at step 0. Tickets of an arm with other ``data`` or
    ``model`` are loaded as far as they fit, so this is the arm for transfer as well.

    Args:
        of: The arm whose tickets are taken.
        masks: "same"; "shuffled" within each layer, which keeps the layer densities; or "random"
            over the whole network, which keeps the overall density.
        weights: "same" as in the ticket; "reinitialized", drawn anew as the model does;
            "same_signs", drawn anew with the signs of the ticket; or "signed_constant", one
            magnitude for each layer with the signs of the ticket.
        rounds: Rounds whose tickets are taken. Default: all but the dense one.
        draws: How often each is drawn; for each seed and round one training for each draw.

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635 (random reinitialization; appendix E: random
        sparsity); Frankle et al. 2021, arXiv:2009.08576 (shuffling); Zhou et al. 2019,
        arXiv:1905.01067 (signs); Morcos et al. 2019, arXiv:1906.02773 (transfer).
    """

    of: str
    masks: Literal["same", "shuffled", "random"] = "same"
    weights: Literal["same", "reinitialized", "same_signs", "signed_constant"] = "same"
    rounds: list[int] | None = None
    draws: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no number of trainings."""
        if not 1 <= self.draws <= _MOST_DRAWS:
            raise ValueError(f"`draws` must be in [1, {_MOST_DRAWS}], got {self.draws}.")
        if self.draws > 1 and self.masks == "same" and self.weights in ("same", "signed_constant"):
            raise ValueError(f"`draws` must be 1 if nothing is drawn anew, got {self.draws}.")

    @property
    def source(self) -> str:
        """The arm whose tickets are taken."""
        return self.of

    def rounds_run(self, ladder: Ladder) -> list[int]:
        """The given rounds, or all but the dense one."""
        return chosen_rounds(self.rounds, ladder)

    def parts(self, ladder: Ladder) -> list[Part]:
        """One job for each training."""
        return [
            Part(round, draw) for round in self.rounds_run(ladder) for draw in range(self.draws)
        ]

    def run(self, trial: Trial, part: Part) -> None:
        """Train one changed ticket."""
        assert part.round is not None
        ticket = trial.fit_ticket(trial.source_ticket(part.round))
        masks = self._new_masks(ticket.masks, trial.seed_for("masks", part.round, part.draw))
        weights = self._new_weights(ticket, trial, part)
        trial.train(replace(ticket, masks=masks, weights=weights), draw=part.draw)

    def _new_masks(self, masks: Masks, seed: int) -> Masks:
        if self.masks == "shuffled":
            return controls.shuffled_masks(masks, seed=seed)
        if self.masks == "random":
            return controls.random_masks(masks, seed=seed)
        return masks

    def _new_weights(self, ticket: Ticket, trial: Trial, part: Part) -> Mapping[str, Tensor]:
        if self.weights == "same":
            return ticket.weights
        if self.weights == "signed_constant":
            constants = controls.signed_constants(ticket.weights, list(ticket.masks))
            return {**ticket.weights, **constants}
        fresh = trial.weights_of(trial.model("reinitialization", part.round or 0, part.draw))
        if self.weights == "reinitialized":
            return fresh
        return controls.keep_signs(fresh, ticket.weights, list(ticket.masks))


@final
@dataclass(frozen=True, kw_only=True)
class OneShot(Arm):
    """Train once, prune to the density of a round at once, rewind once, train again.

    Args:
        of: An arm of iterative pruning, whose dense training is taken. Its model may differ from
            that of this arm in nothing that changes names and shapes of weights.
        rounds: Rounds of ``pruning`` whose densities are wanted. Default: all but the dense one.
        units: Prune whole neurons and filters by their L1 norm, in place of single weights.
        criterion: Import path of a function that scores weights by both ends of training; not
            with ``units``.

    Source:
        Frankle & Carbin 2019, arXiv:1803.03635: section 1; Li et al. 2017, arXiv:1608.08710 and
        Liu et al. 2019, arXiv:1810.05270 (``units``).
    """

    of: str
    rounds: list[int] | None = None
    units: bool = False
    criterion: CriterionFunction = magnitude

    def __post_init__(self) -> None:
        """Refuse what cannot be combined."""
        if self.units and self.criterion is not magnitude:
            raise ValueError(
                "`units=True` ranks units by their L1 norm, got a `criterion` as well. "
                "Leave one of them out."
            )

    @property
    def source(self) -> str:
        """The arm whose dense training is taken."""
        return self.of

    @property
    def needs_dense_source(self) -> bool:
        """It is."""
        return True

    def check(self, ladder: Ladder) -> None:
        """Refuse to rank units of several layers together."""
        if self.units and ladder.scope == "global":
            raise ValueError(
                "`units=True` prunes each layer by itself, but `pruning.scope` is 'global'. "
                "Set `pruning.scope` to 'layer', or leave this arm out."
            )

    def rounds_run(self, ladder: Ladder) -> list[int]:
        """The given rounds, or all but the dense one."""
        return chosen_rounds(self.rounds, ladder)

    def run(self, trial: Trial, part: Part) -> None:
        """Train what one pruning of the dense network leaves."""
        assert part.round is not None
        ticket = trial.source_ticket(0)
        initial = {name: ticket.weights[name] for name in ticket.masks}
        trained = trial.source_trained(0)
        final = {name: trained[name] for name in ticket.masks}
        if self.units:
            masks = _without_units(final, trial.ladder, part.round)
        else:
            masks = trial.ladder.prune(self.criterion(final, initial), part.round)
        trial.train(replace(ticket, masks=masks, round=part.round))


@final
@dataclass(frozen=True, kw_only=True)
class AtInitialization(Arm):
    """Prune before training, to the density of a round.

    Args:
        method: "snip", "grasp", "synflow", "magnitude" of the initial weights, or "random".
        scope: "global" ranks all weights together, as the sources do; "layer" prunes each layer
            as the ladder does. Not for "synflow", which is global.
        rounds: Rounds of ``pruning`` whose densities are wanted. Default: all but the dense one.
        num_batches: Batches of the training data for "snip" and "grasp", at least 1: pairs of
            inputs and labels as the loader gives them, for cross-entropy.

    Source:
        Lee et al. 2019, arXiv:1810.02340; Wang et al. 2020, arXiv:2002.07376; Tanaka et al. 2020,
        arXiv:2006.05467; compared by Frankle et al. 2021, arXiv:2009.08576.
    """

    method: Literal["snip", "grasp", "synflow", "magnitude", "random"]
    scope: Literal["global", "layer"] = "global"
    rounds: list[int] | None = None
    num_batches: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be combined."""
        if self.method == "synflow" and self.scope == "layer":
            raise ValueError(
                "`method='synflow'` ranks all layers together, got `scope='layer'`. "
                "Leave `scope` out, or choose another method."
            )
        if self.num_batches < 1:
            raise ValueError(f"`num_batches` must be at least 1, got {self.num_batches}.")
        if self.num_batches > 1 and self.method not in ("snip", "grasp"):
            raise ValueError(
                "`num_batches` is for the methods 'snip' and 'grasp', "
                f"got {self.num_batches} for {self.method!r}. Leave it out."
            )

    def rounds_run(self, ladder: Ladder) -> list[int]:
        """The given rounds, or all but the dense one."""
        return chosen_rounds(self.rounds, ladder)

    def run(self, trial: Trial, part: Part) -> None:
        """Prune the initial network, and train it."""
        assert part.round is not None
        model = trial.model()
        masks = self._masks(trial, model, part.round)
        weights = trial.weights_of(model)
        trial.train(Ticket(masks, weights, round=part.round, step=0, seed=trial.seed))

    def _masks(self, trial: Trial, model: Module, round: int) -> Masks:
        ladder, patterns = trial.ladder, trial.ladder.parameters
        weights = {name: p.detach() for name, p in prunable_parameters(model, patterns).items()}
        by_ladder = ladder.prune(magnitude(weights), round)
        if self.method == "synflow":
            example = trial.batches(1)[0][0][:1]
            return at_initialization.synflow(model, example, by_ladder.density, parameters=patterns)
        scores = self._scores(trial, model, weights)
        if self.scope == "layer":
            return replace(ladder, scope="layer").prune(scores, round)
        return keep(scores, Masks.dense(weights), num_remaining=by_ladder.num_remaining)

    def _scores(self, trial: Trial, model: Module, weights: Mapping[str, Tensor]) -> Scores:
        if self.method == "magnitude":
            return magnitude(weights)
        if self.method == "random":
            return random(trial.seed_for("random pruning"))(weights, weights)
        score = at_initialization.snip if self.method == "snip" else at_initialization.grasp
        batches = trial.batches(self.num_batches)
        model.train(self.method == "grasp")  # as in the authors' code; matters to BatchNorm
        return score(model, batches, cross_entropy, parameters=trial.ladder.parameters)


def _without_units(weights: Mapping[str, Tensor], ladder: Ladder, round: int) -> Masks:
    """Whole units pruned as often as the ladder prunes weights."""
    masks = Masks.dense(weights)
    for _ in range(round):
        masks = prune_units(weights, masks, fraction=ladder.fraction, fractions=ladder.fractions)
    return masks
