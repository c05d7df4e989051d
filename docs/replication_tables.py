"""Writes what our studies found into ``docs/pages/replication.md``.

Run:
    python docs/replication_tables.py                     # tables and figures anew from docs/data
    python docs/replication_tables.py results/lenet_mnist # first copy the tables of that study
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
from matplotlib import rc_context

from lightning_lth.study import load_study, plots
from lightning_lth.study.conclusion import conclude
from lightning_lth.study.judgments import judge
from lightning_lth.study.results import Results

DOCS = Path(__file__).parent
DATA, PAGES = DOCS / "data", DOCS / "pages"
FIGURE = re.compile(r"\(images/(lenet_\w+?)_(early_stop_\w+)\.svg\)")
BLOCK = re.compile(r"(<!-- (claims|trainings): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "early_stop_step": ("early-stop iteration", "{:,.0f}"),
    "early_stop_test_accuracy": ("test accuracy then, %", "{:.2f}"),
    "end_test_accuracy": ("test accuracy at the end, %", "{:.2f}"),
}


def copy_results(folder: Path) -> None:
    """Keep the table of trainings and the config."""
    conclude(folder)
    target = DATA / folder.name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "rounds.csv", target)
    shutil.copy(folder / "study.yaml", target)


def shown_figures() -> list[tuple[str, str]]:
    """Study and measure of each figure on the page."""
    return FIGURE.findall((PAGES / "replication.md").read_text())


def draw_figures() -> None:
    """Draw those that the page shows, as they are in the reports."""
    none = pd.DataFrame()
    for name, measure in shown_figures():
        rounds = pd.read_csv(DATA / name / "rounds.csv")
        results = Results(name, rounds, none, none, none, config="", environments=(), command="")
        with rc_context({"svg.hashsalt": "lightning_lth", "svg.fonttype": "path"}):
            plots.against_density(results, measure).savefig(
                PAGES / "images" / f"{name}_{measure}.svg", metadata={"Date": None}
            )


def page() -> str:
    """The page, with each marked block made anew from ``docs/data``."""
    return BLOCK.sub(
        lambda found: found[1] + _block(found[2], found[3]) + found[4],
        (PAGES / "replication.md").read_text(),
    )


def _block(kind: str, name: str) -> str:
    rounds = pd.read_csv(DATA / name / "rounds.csv")
    lines = _claims(name, rounds) if kind == "claims" else _trainings(rounds)
    return "".join(f"{line}\n" for line in lines)


def _claims(name: str, rounds: pd.DataFrame) -> list[str]:
    judgments = judge(load_study(DATA / name / "study.yaml").claims, rounds)
    rows = [f"| {one.claim.text} | {one.sentence} |" for one in judgments]
    return ["| claim | what came out |", "|---|---|", *rows]


def _trainings(rounds: pd.DataFrame) -> list[str]:
    """A row for each arm and density: mean over the trials, and the least and the largest."""
    titles = [title for title, _ in COLUMNS.values()]
    lines = [f"| arm | weights left | trials | {' | '.join(titles)} |", "|---" * 6 + "|"]
    per_trial = rounds.groupby(["arm", "round", "seed"], sort=False).mean(numeric_only=True)
    for (arm, _), rows in per_trial.groupby(level=["arm", "round"], sort=False):
        cells = [_cell(rows[measure], text) for measure, (_, text) in COLUMNS.items()]
        density = f"{rows['density'].iloc[0]:.2%}"
        lines.append(f"| {arm} | {density} | {len(rows)} | {' | '.join(cells)} |")
    return lines


def _cell(values: pd.Series, text: str) -> str:
    factor = 100 if "accuracy" in str(values.name) else 1
    mean, least, most = (
        text.format(factor * one) for one in (values.mean(), *values.agg(["min", "max"]))
    )
    return f"{mean} ({least} to {most})"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        copy_results(Path(argument))
    draw_figures()
    (PAGES / "replication.md").write_text(page())
