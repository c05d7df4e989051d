"""Runs a study: every job that is not done yet, as many at once as asked for."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
from joblib import Parallel, delayed  # type: ignore[import-untyped]

from lightning_lth.study import processes, records
from lightning_lth.study.checks import check_design, check_processes, rehearse
from lightning_lth.study.design import Settings, Study
from lightning_lth.study.environment import describe_session
from lightning_lth.study.jobs import Job, all_jobs, fingerprint, settings_of, waves
from lightning_lth.study.progress import StudyProgress
from lightning_lth.study.records import JobFolder
from lightning_lth.study.settings import parse_study
from lightning_lth.study.surroundings import ended_with, quiet, seeds, threads, without_unused_gpus
from lightning_lth.study.trial import Trial


def run_study(
    study: Study, folder: str | os.PathLike[str], *, num_jobs: int | None = None
) -> dict[str, pd.DataFrame]:
    """Run all trials of a study that its folder does not hold yet.

    A killed study goes on where it was: finished jobs are not repeated, iterative pruning goes on
    after its last round, other trainings start again. Seeds, arms and claims may be added later.

    Args:
        study: What to run.
        folder: Where everything is kept; made if it does not exist.
        num_jobs: Jobs at once, each with ``study.threads`` threads. Default: what
            ``joblib.parallel_config`` says, or one after the other. Inside
            ``parallel_config("dask")`` or ``("ray")`` the jobs run on the cluster, whose machines
            must see the folder. Processes that train together, as ``torchrun`` starts them, run
            one after the other.

    Returns:
        The tables ``rounds``, ``curves``, ``layers`` and ``stability`` by name.

    Raises:
        ValueError: Before any training, if the study cannot run as it is, or the folder holds
            results of other settings.
        RuntimeError: If a trial fails; what was finished is kept.

    Examples:
        >>> from lightning_lth.study import load_study, run_study
        >>> tables = run_study(load_study("digits"), "results/digits")  # doctest: +SKIP
    """
    folder = Path(folder).absolute()
    jobs = all_jobs(study)
    check_design(study)
    _check_folder(study, folder, jobs)
    if not all(_is_done(folder, job) for job in jobs):
        rehearse(study)
        check_processes(num_jobs)
    records.write_settings(folder, study.settings)
    records.add_session(folder, describe_session())
    paths = [job.path for job in jobs]
    try:
        with StudyProgress(study, jobs, folder):
            for wave in waves(study):
                _run_wave(study, folder, wave, num_jobs)
    finally:
        tables = records.merge(folder, paths)
    processes.wait_for_all()
    return tables


def _run_wave(study: Study, folder: Path, wave: list[Job], num_jobs: int | None) -> None:
    processes.wait_for_all()
    pending = [job for job in wave if not _is_done(folder, job)]
    runner = os.getpid()
    if processes.count() > 1:
        for job in pending:
            run_job(study.settings, folder, job, runner)
        return
    run = delayed(run_job)
    Parallel(n_jobs=num_jobs)(run(study.settings, folder, job, runner) for job in pending)


def _is_done(folder: Path, job: Job) -> bool:
    return JobFolder(folder / job.path).fingerprint() is not None


def run_job(settings: Settings, folder: Path, job: Job, runner: int) -> None:
    """Run one job; in whichever process, it needs nothing but its arguments and the folder.

    Args:
        settings: Of the study.
        folder: Of the study.
        job: Which one.
        runner: Process that started it. If this is a child of it, the job ends when that does.

    Raises:
        RuntimeError: If it fails; says which job, from the error itself.
    """
    study = _study_of(json.dumps(settings))
    trial = Trial(study, job, folder)
    processes.wait_for_all()
    mark = fingerprint(study, job.arm)
    trial.folder.start(mark)
    try:
        accelerator = settings_of(study, job.arm)["trainer"]["accelerator"]
        hidden = without_unused_gpus(str(accelerator))
        with ended_with(runner), seeds(), quiet(), threads(study.threads), hidden:
            study.arms[job.arm].run(trial, job.part)
    except Exception as error:
        raise RuntimeError(
            f"The trial '{job}' failed: {error} What was finished before is kept in '{folder}'; "
            "the same command goes on from there."
        ) from error
    trial.finish(mark)


@lru_cache(maxsize=1)
def _study_of(settings: str) -> Study:
    """A process runs many jobs of one study, and reading its settings takes half a second."""
    return parse_study(json.loads(settings))


def _check_folder(study: Study, folder: Path, jobs: list[Job]) -> None:
    """Refuse a folder with results of other settings."""
    marks = {arm: fingerprint(study, arm) for arm in study.arms}
    for job in jobs:
        started = JobFolder(folder / job.path).started_with()
        if started is not None and started != marks[job.arm]:
            raise ValueError(
                f"'{folder / job.path}' holds results of the arm {job.arm!r} with other settings. "
                "Run the changed study in another folder, or remove that one first."
            )
