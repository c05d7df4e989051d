"""Folders of studies from anywhere: read as they were written, or refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from lightning_lth.cli import main
from lightning_lth.study import load_study
from lightning_lth.study.jobs import all_jobs
from lightning_lth.study.progress import StudyProgress
from lightning_lth.study.reading import read_table
from lightning_lth.study.records import JobFolder, read_sessions, read_settings
from tests.hostile.damage import NUMBERS, TEXTS, VALUES, attacks, damaged, read_or_refuse
from tests.study import tiny

ROUNDS = {
    "arm": ["winning_ticket", "winning_ticket"],
    "seed": [0, 0],
    "draw": [0, 0],
    "round": [0, 1],
    "density": [1.0, 0.5],
    "stop_reason": ["budget", "budget"],
    "end_test_accuracy": [0.5, 0.25],
}
SESSIONS = [{"time": "2026-01-01", "git_is_clean": "True"}]


def parquet(columns: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    pd.DataFrame(columns).to_parquet(content, index=False)
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For one damaged file after the other."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def display(folder: Path) -> StudyProgress:
    study = load_study(tiny.config(seeds=[0]))
    display = StudyProgress(study, all_jobs(study), folder)
    (folder / "trials" / "winning_ticket" / "seed_0").mkdir(parents=True)
    return display


jsons = VALUES.map(lambda value: json.dumps(value).encode())
deep = st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\xff", b""])


@given(
    damaged(b'{"fingerprint": "0123"}')
    | st.fixed_dictionaries({"fingerprint": VALUES}).map(lambda done: json.dumps(done).encode())
    | jsons
    | deep
)
def test_a_damaged_mark_is_a_text_or_none(folder: Path, content: bytes) -> None:
    (folder / "done.json").write_bytes(content)
    mark = JobFolder(folder).fingerprint()
    assert mark is None or (isinstance(mark, str) and mark)


@given(st.binary(max_size=20) | damaged(b"0123"))
def test_whatever_is_noted_at_the_start_is_a_text(folder: Path, content: bytes) -> None:
    (folder / "started").write_bytes(content)
    assert isinstance(JobFolder(folder).started_with(), str)


@given(
    damaged(json.dumps(SESSIONS).encode())
    | st.lists(st.dictionaries(TEXTS, VALUES, max_size=2), max_size=2).map(
        lambda sessions: json.dumps(sessions).encode()
    )
    | jsons
    | deep
)
def test_damaged_sessions_are_texts_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "sessions.json"
    path.write_bytes(content)
    sessions = read_or_refuse(lambda path: read_sessions(path.parent), path)
    texts = [text for session in sessions or [] for text in session.values()]
    assert all(isinstance(text, str) for text in texts)


@given(
    damaged(b'{"round": 1, "fraction": 0.5}')
    | st.fixed_dictionaries({"round": NUMBERS | VALUES, "fraction": NUMBERS | VALUES}).map(
        lambda note: json.dumps(note).encode()
    )
    | jsons
    | deep
)
@example(b'{"round": 1, "fraction": -Infinity}')
@example(b'{"round": 1, "fraction": NaN}')
@example(b'{"round": -1, "fraction": 0}')
def test_no_note_of_a_job_ends_the_progress_display(
    folder: Path, display: StudyProgress, content: bytes
) -> None:
    (folder / "trials" / "winning_ticket" / "seed_0" / "progress.json").write_bytes(content)
    trainings, running = display.done()
    assert 0 <= int(trainings) <= 3  # one dense and two sparse
    assert isinstance(running, str)


def test_brackets_in_names_are_no_markup_of_the_progress_display(tmp_path: Path) -> None:
    study = load_study(tiny.config(name="[/b] tiny", arms={"[bold]": tiny.iterative()}))
    folder = JobFolder(tmp_path / all_jobs(study)[0].path)
    folder.path.mkdir(parents=True)
    folder.progress.write_text('{"round": 1, "fraction": 0.5}')
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with StudyProgress(study, all_jobs(study), tmp_path, console):
        pass
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[/b] tiny" in shown
    assert "[bold]/0 round 1" in shown


@given(damaged(parquet(ROUNDS)))
def test_a_damaged_table_has_the_columns_of_trainings_or_is_refused(
    folder: Path, content: bytes
) -> None:
    """Parquet has no checksum, so numbers may be others than they were."""
    path = folder / "rounds.parquet"
    path.write_bytes(content)
    check_table(read_or_refuse(read_table, path))


columns = st.sampled_from([*ROUNDS, "layer", "step"])
cells = st.lists(
    st.none() | st.booleans() | st.floats() | st.text(max_size=2), min_size=2, max_size=2
)


@given(st.dictionaries(columns, cells, max_size=3), st.sets(columns, max_size=1))
def test_a_table_of_anything_has_the_columns_of_trainings_or_is_refused(
    folder: Path, changed: dict[str, Any], left_out: set[str]
) -> None:
    content = {name: cells for name, cells in {**ROUNDS, **changed}.items() if name not in left_out}
    path = folder / "rounds.parquet"
    try:
        path.write_bytes(parquet(content))
    except (TypeError, ValueError):  # mixed values have no place in Parquet
        return
    check_table(read_or_refuse(read_table, path))


def check_table(table: pd.DataFrame | None) -> None:
    if table is not None:
        assert all(isinstance(arm, str) for arm in table["arm"])
        assert table[["seed", "round"]].dtypes.map(pd.api.types.is_integer_dtype).all()
        assert table["density"].between(0, 1).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arm": [0, 1]}, r"\['arm'\]"),
        ({"seed": [0.5, 1]}, r"\['seed'\]"),
        ({"round": ["0", "1"]}, r"\['round'\]"),
        ({"density": [1, 7]}, r"\['density'\]"),
        ({"end_test_accuracy": ["high", "low"]}, r"\['end_test_accuracy'\]"),
        ({"stop_reason": [1, 2]}, r"\['stop_reason'\]"),
    ],
)
def test_columns_of_other_kinds_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    (tmp_path / "rounds.parquet").write_bytes(parquet({**ROUNDS, **changed}))
    with pytest.raises(
        ValueError, match=rf"rounds.parquet' is damaged: The columns {message} hold"
    ):
        JobFolder(tmp_path).table("rounds")


def test_a_table_without_a_needed_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rounds.parquet").write_bytes(parquet({"arm": ["a"]}))
    with pytest.raises(ValueError, match="must have the columns"):
        JobFolder(tmp_path).table("rounds")


def test_attacks_in_any_file_of_a_folder_are_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for content in attacks(marker):
        for name in ("sessions.json", "study.yaml", "rounds.parquet", "done.json"):
            (tmp_path / name).write_bytes(content)
        assert JobFolder(tmp_path).fingerprint() is None
        assert (
            read_or_refuse(lambda path: read_sessions(path.parent), tmp_path / "sessions.json")
            is None
        )
        assert (
            read_or_refuse(lambda path: read_settings(path.parent), tmp_path / "study.yaml") is None
        )
        assert read_or_refuse(read_table, tmp_path / "rounds.parquet") is None
    assert not marker.exists()


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As of a study with one training, which nobody ran."""
    folder = tmp_path_factory.mktemp("studied")
    config = tiny.config(seeds=[0])
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    (folder / "sessions.json").write_text(json.dumps(SESSIONS))
    job = folder / "trials" / "winning_ticket" / "seed_0"
    job.mkdir(parents=True)
    (job / "done.json").write_text('{"fingerprint": "0123"}')
    (job / "rounds.parquet").write_bytes(parquet(ROUNDS))
    return folder


ARM_ABOVE = yaml.safe_dump(tiny.config(arms={"../../../x": tiny.iterative()})).encode()
JOB = "trials/winning_ticket/seed_0"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.yaml", b""),
        ("study.yaml", b"- 1"),
        ("study.yaml", b"\xff\xfe\x00"),
        ("study.yaml", b"a: [1"),
        ("study.yaml", b"[" * 100_000),
        ("study.yaml", b"{name: {}}"),
        ("study.yaml", b"a: &a [*a]"),
        ("study.yaml", b"a: !!bool maybe"),
        ("study.yaml", ARM_ABOVE),
        ("study.yaml", b"model: {class_path: os.system, init_args: {command: 'mkdir marker'}}"),
        ("sessions.json", b"{}"),
        ("sessions.json", b"[[]]"),
        ("sessions.json", b'[{"git": 1}]'),
        (f"{JOB}/rounds.parquet", b"PAR1PAR1"),
        (f"{JOB}/rounds.parquet", parquet(ROUNDS)[:-9]),
        (f"{JOB}/rounds.parquet", parquet({"arm": ["a"]})),
    ],
)
def test_the_command_line_names_the_damaged_file(
    studied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    folder = shutil.copytree(studied, tmp_path / "study")
    (folder / name).write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["study", "report", str(folder)])
    assert str(ended.value.code).startswith("error: ")  # Python prints it, and exits with 1
    assert str(folder / name) in str(ended.value.code)
    assert str(ended.value.code).count("error: ") == 1
    assert capsys.readouterr().out == ""
    assert not (folder / "report").exists()
    assert not Path("marker").exists()
