"""The report of a study: verdicts, figures, tables, and how to repeat it, in one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from matplotlib import rc_context

from lightning_lth._files import write_whole
from lightning_lth.study import page
from lightning_lth.study.drawings import (
    SHOWN,
    Drawing,
    drawings_of,
    is_measured,
    plural,
    sentence_case,
)
from lightning_lth.study.figure_parts import COLUMN_INCHES, listed
from lightning_lth.study.judgments import Judgment, to_frame
from lightning_lth.study.plots import MEASURES, STABILITY, STEPS, arm_names, summary_of
from lightning_lth.study.results import Results

DOTS_PER_INCH: Final = 300  # of PNG files, as printers of journals ask for

_TABLES = {
    "rounds": "one row for each training",
    "curves": "one row for each validation",
    "layers": "one row for each training and layer",
    "stability": "one row for each pair of trainings with two data orders",
}
_RESULT_FILES: Final = {
    "study.yaml": "the resolved configuration",
    "sessions.json": "time, versions, machine and git state of each session",
    **{f"{name}{kind}": what for name, what in _TABLES.items() for kind in (".csv", ".parquet")},
    "trials/": "the same tables for one job each, tickets, TensorBoard events",
}
_REPORT_FILES: Final = {
    "claims.csv": "the claims with all numbers behind the verdicts",
    "summary.csv": "all measures by arm and round, as in the tables",
    "figures/": "the figures as PNG and SVG",
}
_DECIDE_NUMBERS: Final = ("cpu", "gpus", "torch", "lightning", "lightning-lth", "numpy")


def write_report(results: Results, judgments: Sequence[Judgment], folder: Path) -> Path:
    """Write the report of a study.

    Args:
        results: Of the study; what was not measured is left out.
        judgments: Of its claims.
        folder: Gets ``report.html``, which needs no other file and no network, ``claims.csv``,
            ``summary.csv``, and each figure as PNG and SVG. The same results give the same files.
            The page links the tables of the study, if the folder above has them.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: If no training has finished.

    Examples:
        >>> write_report(results, judge(claims, results.rounds), Path("report"))  # doctest: +SKIP
        PosixPath('report/report.html')
    """
    if len(results.rounds) == 0:
        raise ValueError("A report needs at least one finished training, got none. Run the study.")
    drawings = list(drawings_of(results))
    pictures = [_write_figure(drawing, folder) for drawing in drawings]
    _write_csv(to_frame(judgments), folder / "claims.csv")
    _write_csv(_whole_summary(results), folder / "summary.csv")
    body = [
        *_headline(results),
        *_claims(judgments),
        "<h2>Figures</h2>",
        *_figures(drawings, pictures),
        *_tables(results),
        *_reproduction(results),
        *_files(folder),
    ]
    html = page.document(f"{results.name}: report", body)
    write_whole(folder / "report.html", html.encode(errors="xmlcharrefreplace"))
    return folder / "report.html"


def _write_figure(drawing: Drawing, folder: Path) -> tuple[bytes, list[str]]:
    """The picture as SVG, and the paths of its files within the folder."""
    svg, png = BytesIO(), BytesIO()
    with rc_context({"svg.hashsalt": "lightning_lth", "svg.fonttype": "path"}):
        drawing.figure.savefig(svg, format="svg", metadata={"Date": None})
    drawing.figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
    paths = [f"figures/{drawing.name}.svg", f"figures/{drawing.name}.png"]
    for path, content in zip(paths, (svg, png), strict=True):
        write_whole(folder / path, content.getvalue())
    return svg.getvalue(), paths


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    write_whole(path, frame.to_csv(index=False, lineterminator="\n").encode())


def _whole_summary(results: Results) -> pd.DataFrame:
    measures = [measure for measure in MEASURES if is_measured(results, measure)]
    frames = {measure: _ordered(results, measure) for measure in measures}
    if not frames:
        return pd.DataFrame(columns=["measure", "arm", "round"])
    return pd.concat(frames, names=["measure"]).reset_index(level=0)


def _ordered(results: Results, measure: str) -> pd.DataFrame:
    """The summary with the arms in the order of the study."""
    summary = summary_of(results, measure)
    places = {arm: place for place, arm in enumerate(arm_names(results))}
    order = summary.assign(place=summary["arm"].map(places)).sort_values(["place", "round"])
    return order.drop(columns="place")


def _headline(results: Results) -> Iterator[str]:
    rounds = results.rounds
    seeds = sorted(rounds["seed"].unique())
    numbers = (
        f"{plural(len(seeds), 'trial')} (seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))})",
        plural(rounds["arm"].nunique(), "arm"),
        plural(rounds["round"].nunique(), "round"),
        plural(len(rounds), "training"),
    )
    yield page.element("h1", results.name)
    yield page.element("p", " · ".join(numbers), css="counts")
    if len(seeds) == 1:
        text = (
            "One trial: nothing can be claimed. How much the results vary from seed to seed is "
            "not known; run the study with more seeds."
        )
        yield page.element("p", text, css="warning")


def _claims(judgments: Sequence[Judgment]) -> Iterator[str]:
    yield page.element("h2", "Claims")
    if not judgments:
        yield page.element("p", "The study makes no claims.")
        return
    rows = []
    for judgment in judgments:
        verdict = judgment.verdict.value
        cells = (judgment.claim.text, judgment.sentence)
        css = f"verdict {verdict.replace(' ', '-')}"
        rows.append([page.element("span", verdict, css=css), *map(page.text, cells)])
    yield page.table(["Verdict", "Claim", "Result"], rows, css="claims")


def _figures(
    drawings: Sequence[Drawing], pictures: Sequence[tuple[bytes, Sequence[str]]]
) -> Iterator[str]:
    yield '<div class="figures">'
    for i, (drawing, (svg, paths)) in enumerate(zip(drawings, pictures, strict=True)):
        is_wide = drawing.figure.get_figwidth() > COLUMN_INCHES
        yield page.figure(i + 1, svg, drawing.caption, paths, is_wide=is_wide)
    yield "</div>"


def _tables(results: Results) -> Iterator[str]:
    yield page.element("h2", "Tables")
    text = (
        "Mean over trials; below it the least and the largest training, then Student's 95 % "
        "confidence interval of the mean. Draws of a seed are averaged first. Density is the share "
        "of prunable weights that are left. All measures are in summary.csv."
    )
    yield page.element("p", text)
    for measure in filter(lambda one: is_measured(results, one), (*SHOWN, *STABILITY)):
        yield page.element("h3", sentence_case(MEASURES[measure]))
        yield _table(results, measure)


def _table(results: Results, measure: str) -> str:
    """One row by round, one column by arm."""
    summary = summary_of(results, measure)
    arms = [arm for arm in arm_names(results) if arm in set(summary["arm"])]
    rows = []
    for round, there in summary.groupby("round"):
        by_arm = there.set_index("arm")
        most = summary["num_trials"].max()
        cells = [
            _cell(by_arm.loc[arm], measure, most) if arm in by_arm.index else "" for arm in arms
        ]
        rows.append([str(round), listed(there["density"], digits=4), *cells])
    return page.table(["Round", "Density", *arms], rows, css="numbers")


def _cell(row: pd.Series, measure: str, most_trials: int) -> str:
    mean, low, high, least, largest = (
        page.text(_number(measure, row[name]))
        for name in ("mean", "ci_low", "ci_high", "min", "max")
    )
    lines = [f"{least} to {largest}"]
    if np.isfinite(row["ci_low"]):
        lines.append(f"[{low}, {high}]")
    if row["num_trials"] < most_trials:
        lines.append(plural(int(row["num_trials"]), "trial"))
    return mean + "".join(page.element("span", line, css="range") for line in lines)


def _reproduction(results: Results) -> Iterator[str]:
    yield page.element("h2", "How to reproduce")
    yield page.element("pre", results.command)
    sessions = results.environments
    if any(session.get("git_is_clean") == "False" for session in sessions):
        text = (
            "The working tree had changes that are in no commit: "
            "the commit alone does not give the code that ran."
        )
        yield page.element("p", text, css="warning")
    if differing := _differences_that_count(sessions):
        text = (
            f"The sessions differ in: {', '.join(differing)}. One training may have other numbers "
            "in each of them; for a strict comparison of arms, run all of them in one place."
        )
        yield page.element("p", text, css="warning")
    if sessions:
        yield page.element("h3", "Where it ran")
        columns = [{k.replace("_", " "): v for k, v in one.items()} for one in sessions]
        yield page.sessions(columns)
    yield page.element("h3", "Configuration")
    yield page.element("pre", results.config)


def _differences_that_count(sessions: Sequence[Mapping[str, str]]) -> list[str]:
    """What sums of floats depend on, and is not the same in all sessions."""
    return [
        name for name in _DECIDE_NUMBERS if len({one[name] for one in sessions if name in one}) > 1
    ]


def _files(folder: Path) -> Iterator[str]:
    """The tables of the study, then those of the report."""
    yield page.element("h2", "Result files")
    rows = []
    for name, what in _RESULT_FILES.items():
        path = folder.parent / name
        if path.is_dir():
            what = f"{what}; {plural(sum(one.is_file() for one in path.rglob('*')), 'file')}"
        if path.exists():
            rows.append([page.link(f"../{name}", name), page.text(what)])
    for name, what in _REPORT_FILES.items():
        rows.append([page.link(name, f"{folder.name}/{name}"), page.text(what)])
    yield page.table(["File", "What it holds"], rows)


def _number(measure: str, value: float) -> str:
    if measure in STEPS:
        return f"{value:,.0f}"
    return f"{value:.4f}" if measure.endswith("accuracy") else f"{value:.4g}"
