"""One job at work: builds models and data from the config, trains, and keeps what comes out."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, final

from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_lth.callbacks import FixedMasks, IterativeMagnitudePruning
from lightning_lth.pruning.controls import derive_seed
from lightning_lth.pruning.scoring import Scores
from lightning_lth.pruning.tickets import Ticket
from lightning_lth.stopping.best_weights import BestWeights
from lightning_lth.study import jobs as _jobs
from lightning_lth.study import processes
from lightning_lth.study.accuracy import accuracies
from lightning_lth.study.arms import CriterionFunction
from lightning_lth.study.design import Ladder, Study
from lightning_lth.study.recorder import Recorder, Row
from lightning_lth.study.records import JobFolder, write_whole
from lightning_lth.study.settings import build, trainer_arguments
from lightning_lth.study.surroundings import NoProfiler

Weights = Mapping[str, Tensor]
_SECONDS_BETWEEN_NOTES = 2.0


@final
class Trial:
    """What an arm works with in one of its jobs.

    Args:
        study: Of which this is a job.
        job: Which one.
        root: Folder of the study.
    """

    def __init__(self, study: Study, job: _jobs.Job, root: Path) -> None:
        self.study = study
        self.job = job
        self.root = root
        self.folder = JobFolder(root / job.path)
        self.tables: dict[str, list[Row]] = {"rounds": [], "curves": [], "layers": []}
        self._settings = _jobs.settings_of(study, job.arm)
        self._noted = 0.0
        self._resumes = False
        self._trainer: Trainer | None = None

    @property
    def ladder(self) -> Ladder:
        """How sparse the networks of each round are."""
        return self.study.pruning

    @property
    def seed(self) -> int:
        """The seed of the trial."""
        return self.job.seed

    def seed_for(self, *names: str | int) -> int:
        """A seed for one purpose; the same in all arms of the trial."""
        return derive_seed(self.seed, *names)

    def model(self, *names: str | int) -> LightningModule:
        """A model with fresh weights; without names, those that the trial starts from."""
        self._seed_everything("initialization", *names)
        model: LightningModule = build(LightningModule, self._settings["model"])
        return model

    def weights_of(self, model: LightningModule) -> dict[str, Tensor]:
        """All that a ticket holds of a model."""
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first batches of the training data, as pairs of inputs and targets.

        Raises:
            TypeError: If a batch is not such a pair.
        """
        with isolate_rng():
            self._seed_everything("order", 0)
            data = self._data()
            source: Any = self.model() if data is None else data
            source.prepare_data()
            source.setup("fit")
            found = list(islice(iter(source.train_dataloader()), count))
        for batch in found:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise TypeError(
                    "Pruning by gradients needs batches that are pairs of inputs and targets, got "
                    f"{type(batch).__name__}. Use another method in the arm {self.job.arm!r}."
                )
        return [(inputs, targets) for inputs, targets in found]

    def source_ticket(self, round: int) -> Ticket:
        """The ticket of a round of the arm that this one starts from."""
        return Ticket.load(self._source(round).tickets / f"round_{round:02d}.safetensors")

    def source_trained(self, round: int) -> Mapping[str, Tensor]:
        """The weights at the end of a round of the arm that this one starts from."""
        return BestWeights.load(self._source(round).trained(round)).tensors

    def dense_trained(self) -> Mapping[str, Tensor] | None:
        """The weights at the end of the dense training that the tickets go back to, if any."""
        arms, name = self.study.arms, self.job.arm
        while (source := arms[name].source) is not None:
            name = source
        first = _jobs.Job(name, self.seed, arms[name].parts(self.ladder)[0])
        path = JobFolder(self.root / first.path).trained(0)
        return BestWeights.load(path).tensors if path.is_file() else None

    def fit_ticket(self, ticket: Ticket) -> Ticket:
        """A ticket of the source for this arm's model, which may have another output layer.

        What does not fit is dense and as this model draws it. Pruned weights keep their values, for
        controls that prune others.
        """
        model = self.model()
        source = self.study.arms[self.job.arm].source or self.job.arm
        is_foreign = _jobs.settings_of(self.study, source)["model"] != self._settings["model"]
        fresh = self.weights_of(model)
        report = ticket.apply_(model, strict=not is_foreign)
        weights = {
            name: given if (given := ticket.weights.get(name, own)).shape == own.shape else own
            for name, own in fresh.items()
        }
        return replace(ticket, masks=report.masks, weights=weights)

    def train_rounds(
        self,
        ladder: Ladder,
        *,
        rewind: Literal["weights", "learning_rate", "none"],
        criterion: CriterionFunction,
    ) -> None:
        """Train, prune and rewind in one fit; goes on after the last round of a killed one.

        Each round starts from random states of its own, so that going on gives the same numbers.
        """

        def criterion_with_seed(final: Weights, initial: Weights) -> Scores:
            self._seed_everything("order", 0, pruning.round + 1)
            return criterion(final, initial)

        pruning = IterativeMagnitudePruning(
            ladder.rounds,
            fraction=ladder.fraction,
            scope=ladder.scope,
            fractions=ladder.fractions,
            parameters=ladder.parameters,
            rewind_step=ladder.rewind_step,
            rewind=rewind,
            criterion=criterion_with_seed,
            monitor=self.study.measures.monitor,
            mode=self.study.measures.mode,
            ticket_dir=self.folder.tickets,
        )
        if processes.is_writer() and not self.folder.checkpoint.is_file():
            shutil.rmtree(self.folder.tickets, ignore_errors=True)  # of the try before this one
        recorder = self._recorder(lambda: pruning.round, lambda: pruning.masks)
        self._fit(self.model(), [pruning, recorder], resumes=True)
        self._keep(recorder)

    def train(self, ticket: Ticket, *, draw: int = 0, order: int = 0) -> dict[str, Tensor]:
        """Train one ticket, from its weights, with fresh optimizers.

        Args:
            ticket: Masks, weights and round.
            draw: For the records.
            order: Which order of the data; 0 is that of the trial.

        Returns:
            The weights at the end.
        """
        # The metrics are of the network that the ticket is from.
        ticket = self._same_in_all_processes(replace(ticket, metrics={}))
        model = self.model()
        ticket.apply_(model)
        recorder = self._recorder(lambda: ticket.round, lambda: ticket.masks, draw=draw)
        self._fit(model, [FixedMasks(ticket.masks), recorder], order=order)
        self._keep(recorder)
        return BestWeights.of(model, step=0, value=0.0).tensors

    def error(self, weights: Mapping[str, Tensor]) -> float:
        """1 - accuracy of some weights on the test data, or without any on the validation data."""
        assert self._trainer is not None
        best = BestWeights(0, 0.0, weights)
        with isolate_rng():
            found = accuracies(
                self._trainer, self.model(), best, self.study.measures, training_data=False
            )
        return 1 - found.get("test_accuracy", found["validation_accuracy"])

    def finish(self, fingerprint: str) -> None:
        """Write the tables, and mark the job as done."""
        self.folder.finish(self.tables, fingerprint)

    def _same_in_all_processes(self, ticket: Ticket) -> Ticket:
        """Save the first one's, which may have come from other batches than the others'."""
        path = self.folder.tickets / f"round_{ticket.round:02d}.safetensors"
        if processes.is_writer():
            ticket.save(path)
        processes.wait_for_all()
        return ticket if processes.is_writer() else Ticket.load(path)

    def _seed_everything(self, *names: str | int) -> None:
        seed_everything(self.seed_for(*names), verbose=False)
        os.environ["PL_GLOBAL_SEED"] = str(self.seed)  # tickets say which seed they are of

    def _source(self, round: int) -> JobFolder:
        return JobFolder(self.root / _jobs.source_of(self.study, self.job, round).path)

    def _data(self) -> LightningDataModule | None:
        settings = self._settings["data"]
        return build(LightningDataModule, settings) if settings is not None else None

    def _recorder(self, round: Any, masks: Any, *, draw: int = 0) -> Recorder:
        return Recorder(
            key={"arm": self.job.arm, "seed": self.seed, "draw": draw},
            measures=self.study.measures,
            round=round,
            masks=masks,
            accuracies=self._accuracies,
            progress=self._note_progress,
            at_round_end=self._end_round,
        )

    def _fit(
        self,
        model: LightningModule,
        callbacks: list[Callback],
        *,
        order: int = 0,
        resumes: bool = False,
    ) -> None:
        self._seed_everything("order", order)
        if order > 0:  # Lightning's DistributedSampler shuffles by this
            os.environ["PL_GLOBAL_SEED"] = str(self.seed_for("order", order))
        data = self._data()
        arguments = trainer_arguments(self._settings["trainer"])
        arguments["callbacks"] += callbacks
        arguments["profiler"] = arguments["profiler"] or NoProfiler()
        trainer = Trainer(
            **arguments,
            default_root_dir=self.folder.path,
            logger=TensorBoardLogger(self.folder.path, name="", version="events"),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        self._trainer, self._resumes = trainer, resumes
        checkpoint = self.folder.checkpoint
        is_resumed = resumes and checkpoint.is_file()
        trainer.fit(
            model, datamodule=data, ckpt_path=checkpoint if is_resumed else None, weights_only=True
        )

    def _accuracies(self, trainer: Trainer, weights: BestWeights) -> dict[str, float]:
        with isolate_rng():
            return accuracies(trainer, self.model(), weights, self.study.measures)

    def _end_round(self, trainer: Trainer, round: int) -> None:
        if round == 0 and processes.is_writer():  # one-shot pruning starts from these weights
            end = BestWeights.of(trainer.lightning_module, step=trainer.global_step, value=0.0)
            end.save(self.folder.trained(round))
        if self._resumes:
            with self.folder.next_checkpoint() as path:
                trainer.save_checkpoint(path)

    def _keep(self, recorder: Recorder) -> None:
        self.tables["rounds"] += recorder.rounds
        self.tables["curves"] += recorder.curves
        self.tables["layers"] += recorder.layers

    def _note_progress(self, round: int, fraction: float) -> None:
        if (now := time.monotonic()) - self._noted < _SECONDS_BETWEEN_NOTES:
            return
        self._noted = now
        note = {"round": round, "fraction": fraction}
        write_whole(self.folder.progress, json.dumps(note).encode())
