"""From the folder of a study to its judgments and its report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_lth.study import records
from lightning_lth.study.jobs import all_jobs
from lightning_lth.study.judgments import Judgment, judge
from lightning_lth.study.report import write_report
from lightning_lth.study.results import Results
from lightning_lth.study.settings import parse_study


class Conclusion(NamedTuple):
    """What came out of a study."""

    results: Results
    judgments: Sequence[Judgment]
    report: Path


def conclude(folder: str | os.PathLike[str]) -> Conclusion:
    """Judge the claims of a study by what its folder holds, and write the report.

    It may be called at any time, while the study runs, too.

    Args:
        folder: Of the study.

    Returns:
        The tables, a judgment for each claim, and the path of the page.

    Raises:
        FileNotFoundError: If the folder is not that of a study.
        ValueError: If it holds no finished training yet, or a file that is damaged.
    """
    folder = Path(folder)
    settings = records.read_settings(folder)
    study = parse_study(settings, source=folder / "study.yaml")
    tables = records.merge(folder, [job.path for job in all_jobs(study)])
    if tables["rounds"].empty:
        raise ValueError(f"'{folder}' holds no finished training yet; there is nothing to report.")
    command = ("lightning-lth", "study", "run", str(folder / "study.yaml"), "--dir", "NEW_FOLDER")
    results = Results(
        name=study.name,
        **tables,
        config=(folder / "study.yaml").read_text(encoding="utf-8"),
        environments=records.read_sessions(folder),
        command=shlex.join(command),
    )
    judgments = judge(study.claims, results.rounds)
    return Conclusion(results, judgments, write_report(results, judgments, folder / "report"))
