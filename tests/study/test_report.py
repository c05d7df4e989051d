from __future__ import annotations

import base64
import math
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lightning_lth.study.claims import Claim
from lightning_lth.study.judgments import Judgment, judge
from lightning_lth.study.report import write_report
from lightning_lth.study.results import Results
from tests.study.test_plots import STEPS, curve, frame, layer, pair, results

HOSTILE = """<script>alert("1")</script> & 'x' <b>$_"""
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would find: text by element, tables, and whatever points elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []  # innermost element, text
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(self.source)
        assert self.open == []  # all that was opened is closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))
            if "td" in self.open or "th" in self.open:
                self.tables[-1][-1][-1] += f"{data}|"

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]

    def text(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]

    def table(self, *header: str) -> list[list[str]]:
        """Rows of the first table whose header begins so."""
        begin = [f"{text}|" for text in header]
        found = next(table for table in self.tables if table[0][: len(begin)] == begin)
        return [[cell.removesuffix("|") for cell in row] for row in found[1:]]


def report(one: Results, folder: Path, judgments: list[Judgment] | None = None) -> Page:
    return Page(write_report(one, judgments or [], folder / "report"))


def full() -> Results:
    """Everything that a study can have, small."""
    rounds = frame(
        {
            key: {"early_stop_step": value, "early_stop_test_accuracy": value / 500}
            | {"end_test_accuracy": math.nan, "early_stop_value": 0.5}
            for key, value in STEPS.items()
        }
    )
    one = results(
        curves=[curve(key, [0.1, 0.4, 0.5]) for key in STEPS],
        layers=[layer(key, {"a": 0.5, "b": 0.25}) for key in STEPS],
        stability=[pair("ticket", seed, r, 0, -0.001 * seed) for seed in (1, 2) for r in (0, 1)],
        name="a study",
        command="lightning-lth study run a.yaml",
        config="seeds: [1, 2]\narms: {}\n",
        environments=[
            {"time": "monday", "torch": "2.15.0", "git_is_clean": "True"},
            {"time": "friday", "torch": "2.15.0", "git_is_clean": "False"},
        ],
    )
    return replace(one, rounds=rounds)


CLAIMS = [
    Claim("Faster.", "ticket", 1, "early_stop_step", "lower", than="reinit"),
    Claim("About 200.", "ticket", 0, "early_stop_step", "within", between=(150, 250)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a study, with its report."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "rounds.csv").touch()
    (folder / "study.yaml").touch()
    (folder / "unrelated.txt").touch()
    for seed in range(3):
        (folder / "trials" / f"seed_{seed}").mkdir(parents=True)
        (folder / "trials" / f"seed_{seed}" / "done.json").touch()
    one = full()
    write_report(one, judge(CLAIMS, one.rounds), folder / "report")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "report" / "report.html")


FIGURES = [
    *("early_stop_step", "early_stop_test_accuracy"),
    *("early_stop_step_by_arm", "early_stop_test_accuracy_by_arm"),
    *("barrier", "l2_distance", "curves_val_acc", "layer_densities"),
]


def test_all_files_are_there_and_whole(folder: Path) -> None:
    names = [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
    names += ["claims.csv", "report.html", "summary.csv"]
    files = [path for path in (folder / "report").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(folder / "report")) for path in files) == sorted(names)
    png = (folder / "report/figures/early_stop_step.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert width == 3.5 * 300  # a column, as sharp as journals want
    assert height > 600
    assert b"<svg" in (folder / "report/figures/early_stop_step.svg").read_bytes()


def test_the_page_shows_the_files(folder: Path, page: Page) -> None:
    prefix = "data:image/svg+xml;base64,"
    sources = page.values("src")
    assert all(source.startswith(prefix) for source in sources)
    assert [base64.b64decode(source.removeprefix(prefix)) for source in sources] == [
        (folder / f"report/figures/{name}.svg").read_bytes() for name in FIGURES
    ]


def test_the_page_needs_no_network_and_no_script(folder: Path, page: Page) -> None:
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|url\(|@import|//", page.source.replace("base64,", ""))
    (policy,) = (text for text in page.values("content") if "default-src" in text)
    assert policy.startswith("default-src 'none'")
    links = page.values("href")
    assert len(links) == 2 * len(FIGURES) + 3 + 3  # of the study, of the report
    for link in links:
        assert (folder / "report" / link).exists(), link


def test_headline(page: Page) -> None:
    assert page.text("h1") == ["a study"]
    assert page.text("title") == ["a study: report"]
    assert page.text("p")[0] == "2 trials (seeds 1, 2) · 2 arms · 3 rounds · 9 trainings"
    assert "nothing can be claimed" not in page.source


def test_claims_come_first_with_a_word_for_the_verdict(page: Page) -> None:
    judgments = judge(CLAIMS, full().rounds)
    assert page.text("h2")[:2] == ["Claims", "Figures"]
    assert page.table("Verdict", "Claim") == [
        ["not enough trials", "Faster.", judgments[0].sentence],
        ["not enough trials", "About 200.", judgments[1].sentence],
    ]
    assert "verdict not-enough-trials" in page.values("class")


def test_verdicts_of_claims(tmp_path: Path) -> None:
    steps = {("a", seed, 0, 0): 100.0 + seed for seed in range(3)}
    one = results(steps | {("b", seed, 0, 0): 200.0 - seed for seed in range(3)})
    claims = [
        Claim("Less.", "a", 0, "early_stop_step", "lower", than="b"),
        Claim("More.", "a", 0, "early_stop_step", "higher", than="b"),
    ]
    judgments = judge(claims, one.rounds)
    page = report(one, tmp_path, judgments)
    rows = page.table("Verdict", "Claim")
    assert rows == [
        ["holds", "Less.", judgments[0].sentence],
        ["does not hold", "More.", judgments[1].sentence],
    ]
    assert {"verdict holds", "verdict does-not-hold"} <= set(page.values("class"))
    table = pd.read_csv(tmp_path / "report" / "claims.csv")
    assert list(table["verdict"]) == ["holds", "does not hold"]
    assert list(table["text"]) == ["Less.", "More."]


def test_captions_say_what_is_drawn(page: Page) -> None:
    captions = [text.strip() for text in page.text("figcaption") if text.strip(", ")]
    assert page.text("b") == [f"Figure {i + 1}." for i in range(len(FIGURES))]
    assert captions[0] == (
        "Early-stop iteration (steps) by share of weights remaining: mean of 2 trials; "
        "bars from the least to the largest training."
    )
    assert captions[2] == (
        "Early-stop iteration (steps) in round 1, with 50 % of the weights: "
        "a dot for each trial (2 trials), a bar at their mean."
    )
    assert captions[4].endswith("bars from the least to the largest pair of trainings.")
    assert captions[6].startswith("val_acc during training, by share of weights remaining: mean of")
    assert page.values("alt") == captions
    assert page.values("class").count("wide") == 2  # with a panel for each of two arms


def test_tables(page: Page) -> None:
    # The interval of two trials is mean -+ 12.706 * their distance / 2; with 150 and 400 of reinit
    # 275 -+ 12.706 * 125.
    assert page.table("Round", "Density", "ticket", "reinit") == [
        ["0", "1", "200|100 to 300|[-1,071, 1,471]", ""],
        ["1", "0.5", "80|60 to 100|[-174, 334]", "275|100 to 400|[-1,313, 1,863]"],
        ["2", "0.25", "50|40 to 60|[-77, 177]", ""],
    ]
    first_cells = [table[1][2] for table in page.tables if table[0][0] == "Round|"]
    assert [cell.split("|")[:2] for cell in first_cells] == [
        ["200", "100 to 300"],
        ["0.4000", "0.2000 to 0.6000"],
        ["-0.0015", "-0.002 to -0.001"],
        ["-0.015", "-0.02 to -0.01"],
    ]
    assert page.text("h3")[:4] == [
        "Early-stop iteration (steps)",
        "Test accuracy at early stop",
        "Error barrier (share of examples)",
        "L2 distance between the two ends",
    ]


def test_summary_has_all_measures_in_the_order_of_the_study(folder: Path) -> None:
    table = pd.read_csv(folder / "report" / "summary.csv")
    assert list(table["measure"].unique()) == [
        *("early_stop_step", "early_stop_value", "early_stop_test_accuracy"),
        *("barrier", "l2_distance"),
    ]
    steps = table[table["measure"] == "early_stop_step"]
    assert list(zip(steps["arm"], steps["round"], strict=True)) == [
        *(("ticket", 0), ("ticket", 1), ("ticket", 2), ("reinit", 1)),
    ]
    row = steps.iloc[3]
    assert row[["density", "num_trials", "mean", "min", "max"]].tolist() == [0.5, 2, 275, 100, 400]
    assert row["ci_high"] == pytest.approx(275 + 12.7062 * 125, rel=1e-5)


def test_how_to_reproduce(page: Page) -> None:
    assert page.text("pre") == ["lightning-lth study run a.yaml", "seeds: [1, 2]\narms: {}\n"]
    (table,) = (one for one in page.tables if "Session 1|" in one[0])
    assert table == [
        ["", "Session 1|", "Session 2|"],
        ["time|", "monday|", "friday|"],
        ["torch|", "2.15.0| in all sessions|"],
        ["git is clean|", "True|", "False|"],
    ]
    assert any("changes that are in no commit" in text for text in page.text("p"))


def test_result_files(page: Page, folder: Path) -> None:
    rows = page.table("File")
    assert [row[0] for row in rows] == [
        *("study.yaml", "rounds.csv", "trials/"),
        *("report/claims.csv", "report/summary.csv", "report/figures/"),
    ]
    assert rows[1][1] == "one row for each training"
    assert rows[2][1].endswith("; 3 files")
    assert "unrelated" not in page.source


def test_one_session_in_a_clean_tree(tmp_path: Path) -> None:
    one = results(environments=[{"git_is_clean": "True"}])
    page = report(one, tmp_path)
    assert "in no commit" not in page.source
    assert "in all sessions" not in page.source


def test_sessions_whose_numbers_may_differ_are_told(tmp_path: Path) -> None:
    zen4 = {"cpu": "AMD EPYC (family 25, model 17), AVX512", "torch": "2.14.1", "command": "first"}
    zen5 = {**zen4, "cpu": "AMD EPYC (family 26, model 2), AVX512", "command": "second"}
    warning = "The sessions differ in: {}. One training may have other numbers"
    page = report(results(environments=[zen4, {**zen5, "torch": "2.15.0"}]), tmp_path)
    assert any(text.startswith(warning.format("cpu, torch")) for text in page.text("p"))
    page = report(results(environments=[zen4, {**zen4, "command": "second"}]), tmp_path)
    assert "The sessions differ" not in page.source


def test_one_trial_claims_nothing(tmp_path: Path) -> None:
    page = report(results({("a", 7, 0, 0): 1200.0}), tmp_path)
    assert page.text("p")[0] == "1 trial (seed 7) · 1 arm · 1 round · 1 training"
    assert page.text("p")[1].startswith("One trial: nothing can be claimed.")
    assert page.table("Round") == [["0", "1", "1,200|1,200 to 1,200"]]  # without an interval
    assert "The study makes no claims." in page.text("p")


def test_fewer_trials_in_places_are_told(tmp_path: Path) -> None:
    steps = dict(STEPS)
    del steps["ticket", 2, 0, 2]
    page = report(results(steps), tmp_path)
    assert page.table("Round")[2][2] == "40|40 to 40|1 trial"
    assert "mean of 1 to 2 trials;" in page.source


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    accuracies = {("a", 1, 0, round): 0.5 for round in (0, 1)}
    page = report(results(accuracies, measure="end_train_accuracy"), tmp_path)
    names = sorted(path.name for path in (tmp_path / "report/figures").iterdir())
    assert names == [
        f"end_train_accuracy{by}.{kind}" for by in ("", "_by_arm") for kind in ("png", "svg")
    ]
    assert page.table("Round") == [
        ["0", "1", "0.5000|0.5000 to 0.5000"],
        ["1", "0.5", "0.5000|0.5000 to 0.5000"],
    ]
    assert "in round 1, with 50 % of the weights" in page.values("alt")[1]  # the sparsest


def test_nothing_at_all_was_measured(tmp_path: Path) -> None:
    page = report(results({("a", 1, 0, 0): math.nan}), tmp_path)
    assert page.values("src") == []
    assert (tmp_path / "report/summary.csv").read_text().startswith("measure,arm,round")


def test_no_training_has_finished(tmp_path: Path) -> None:
    one = replace(results(), rounds=pd.DataFrame())
    with pytest.raises(ValueError, match="at least one finished training, got none"):
        write_report(one, [], tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_stability_at_one_round_is_by_arm(tmp_path: Path) -> None:
    one = results(
        {("a", seed, 0, 2): 1.0 for seed in (1, 2)},
        measure="steps",
        stability=[pair("a", seed, 2, 0, 0.1) for seed in (1, 2)],
    )
    report(one, tmp_path)
    names = {path.stem for path in (tmp_path / "report/figures").iterdir()}
    assert names == {"barrier_by_arm", "l2_distance_by_arm"}


def test_metrics_whose_names_are_no_file_names(tmp_path: Path) -> None:
    metrics = ("val/acc", "val acc", "../x")
    one = results(
        {("a", 1, 0, 0): 1.0},
        measure="steps",
        curves=[curve(("a", 1, 0, 0), [1, 2], metric) for metric in metrics],
    )
    page = report(one, tmp_path)
    names = sorted(path.stem for path in (tmp_path / "report/figures").glob("*.svg"))
    assert names == ["curves_.._x", "curves_val_acc", "curves_val_acc_"]
    assert [text.split(" during")[0] for text in page.values("alt")] == list(metrics)


def test_everything_is_escaped(tmp_path: Path) -> None:
    steps = {(HOSTILE, seed, 0, 0): 1.0 for seed in range(3)}
    one = results(
        steps,
        curves=[curve((HOSTILE, 0, 0, 0), [1, 2], HOSTILE)],
        layers=[layer((HOSTILE, 0, 0, 0), {HOSTILE: 1.0})],
        **dict.fromkeys(("name", "config", "command"), HOSTILE),
        environments=[{HOSTILE: HOSTILE}, {}],
    )
    claims = [Claim(HOSTILE, HOSTILE, 0, "early_stop_step", "within", between=(0, 2))]
    page = report(one, tmp_path, judge(claims, one.rounds))
    assert "script" not in page.tags
    assert "<script" not in page.source
    assert page.text("h1") == [HOSTILE]
    assert page.text("pre") == [HOSTILE, HOSTILE]
    (row,) = page.table("Verdict")
    assert row[1] == HOSTILE
    assert HOSTILE in row[2]
    assert page.table("Round", "Density", HOSTILE) == [["0", "1", "1|1 to 1|[1, 1]"]]
    assert any(
        one[1:] == [[f"{HOSTILE.replace('_', ' ')}|", f"{HOSTILE}|", ""]] for one in page.tables
    )
    assert any(text.startswith(f"{HOSTILE} during") for text in page.values("alt"))


def test_the_same_results_give_the_same_files(folder: Path) -> None:
    files = [path for path in (folder / "report").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    write_report(full(), judge(CLAIMS, full().rounds), folder / "report")
    assert {path: path.read_bytes() for path in (folder / "report").rglob("*.*")} == before


def test_a_report_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    one: Any = results({("a", 1, 0, 0): 1.0})
    path = write_report(one, [], tmp_path / "report")
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_report(one, [None], tmp_path / "report")  # type: ignore[list-item]
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))
