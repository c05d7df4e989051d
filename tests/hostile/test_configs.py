"""Configs from anywhere: a study that stays in its folder, or refused before anything is done."""

from __future__ import annotations

import copy
import datetime
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_lth.cli import main
from lightning_lth.study import load_study, run_study, settings
from lightning_lth.study.design import Study
from lightning_lth.study.jobs import all_jobs, fingerprint
from lightning_lth.study.reading import read_config
from tests.hostile.damage import TEXTS, VALUES, attacks, damaged, read_or_refuse
from tests.study import tiny

CONFIG = tiny.config(measures={"monitor": "val_loss"}, threads=1, claims=[])
TEXT = yaml.safe_dump(CONFIG).encode()


one_parser = functools.cache(settings.study_parser)
"""Each study makes one, 0.1 s long; they are all the same."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "study.yaml"


@given(damaged(TEXT) | st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
def test_a_damaged_file_is_keys_and_values_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert isinstance(read_or_refuse(read_config, path), dict | None)


tags = st.sampled_from(
    [
        "!!bool",
        "!!int",
        "!!float",
        "!!timestamp",
        "!!binary",
        "!!set",
        "!!omap",
        "!!pairs",
        "!!null",
        "!!merge",
        "!!value",
        "!!python/name:os.system",
        "!!python/tuple",
        "!x",
        "!",
    ]
)
scalars = st.sampled_from(["", "x", "{}", "[1]", "*a", "&a [*a]", "<<", "2001-99-99", "0x", "1:1"])


@given(st.lists(st.tuples(tags, scalars).map(" ".join), min_size=1, max_size=4))
def test_values_with_tags_are_keys_and_values_or_refused(path: Path, values: list[str]) -> None:
    path.write_text("\n".join(f"key{i}: {value}" for i, value in enumerate(values)))
    assert isinstance(read_or_refuse(read_config, path), dict | None)


def places(value: Any, *above: Any) -> list[tuple[Any, ...]]:
    """Where something can be replaced."""
    inner = value.items() if isinstance(value, dict) else []
    return [above, *(place for key, one in inner for place in places(one, *above, key))][
        not above :
    ]


PLACES = st.sampled_from(places(CONFIG))
CLASSES = st.sampled_from(
    ["os.system", "subprocess.Popen", "tests.study.tiny.Net", "builtins.eval", "os", "a..b", ""]
)
ODD = (
    st.fixed_dictionaries({"class_path": CLASSES | VALUES, "init_args": VALUES})
    | st.sampled_from([datetime.date(2001, 1, 1), b"x", {1: 2, "a": 3}, {None: 1}, {1, 2}])
    | st.dictionaries(TEXTS, st.just(tiny.iterative()), max_size=2)
)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of jsonargparse, on functions as classes
@given(st.lists(st.tuples(PLACES, VALUES | ODD), min_size=1, max_size=2))
def test_a_config_of_anything_stays_in_its_folder_or_is_refused(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(settings, "study_parser", one_parser)
            study = load_study(changed(changes))
    except ValueError as error:
        if type(error) is not ValueError or "The config is not valid" not in str(error):
            raise
        return
    check(study, Path("/folder"))


def changed(changes: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    for (*above, last), value in changes:
        inner: Any = config
        for key in above:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[last] = value
    return config


def check(study: Study, folder: Path) -> None:
    assert isinstance(study.name, str)
    for job in all_jobs(study):
        assert (folder / job.path).resolve().parent.parent == folder / "trials"
        assert len(fingerprint(study, job.arm)) == 16


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "/etc", "..", ".", "", "a\\b", "a\0b", "x" * 201]
)
def test_arms_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="The name of an arm must be the name of a folder"):
        load_study(tiny.config(arms={name: tiny.iterative()}))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 10**400])
def test_seeds_that_no_generator_takes_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"`seeds` must be in \[0, 2\*\*32\), as NumPy's are, got"):
        load_study(tiny.config(seeds=[0, seed]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning": {"rounds": 10**9}}, "`rounds` must be at most 1000, got 1000000000"),
        ({"arms": {"a": tiny.iterative(rounds=10**9)}}, None),
        ({"name": None}, "`name` must be a text, got None"),
        ({"threads": 0}, r"`threads` must be in \[1, 1024\], got 0"),
        ({"threads": 10**30}, r"`threads` must be in \[1, 1024\]"),
        ({"config": "/etc/passwd"}, "cannot name another `config`"),
        ({"name": "\ud800"}, "made of lists, texts, numbers"),
        (
            {"arms": {"a": tiny.iterative(changes={"model": {"key": b"x"}})}},
            "Object of type bytes is not JSON serializable",
        ),
    ],
)
def test_what_could_only_fail_later_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    if message is None:  # an arm's own rounds are known with the ladder
        with pytest.raises(ValueError, match="`rounds` must be at most 1000"):
            run_study(load_study(tiny.config(**changes)), tmp_path / "study")
        return
    with pytest.raises(ValueError, match=f"(?s)The config is not valid.*{message}"):
        load_study(tiny.config(**changes))


def test_a_study_without_arms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`arms` must have at least one arm, got none"):
        run_study(load_study(tiny.config(arms={})), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_no_claims_may_be_written_as_null() -> None:
    assert load_study(tiny.config(claims=None)).claims == []


def test_the_file_of_a_config_that_is_not_valid_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("seeds: [0]")
    with pytest.raises(ValueError, match=r"The config '.*study.yaml' is not valid"):
        load_study(path)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of jsonargparse, on functions as classes
def test_attacks_in_a_config_are_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "study.yaml", tmp_path / "marker"
    command = {"class_path": "os.mkdir", "init_args": {"path": str(marker)}}
    inside = [yaml.safe_dump(tiny.config(**{key: command})) for key in ("model", "data")]
    inside.append(yaml.safe_dump(tiny.config(arms={"a": command})))
    for content in [*attacks(marker), *map(str.encode, inside)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"study.yaml"):
            load_study(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"\xff", b"a: [", b"- 1", b"a: &a [*a]", *attacks(Path("m"))])
def test_the_command_line_refuses_files_that_are_no_configs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["study", "run", str(tmp_path / "study.yaml")])
    assert str(ended.value.code).startswith(f"error: '{tmp_path}/study.yaml' must hold")


def test_the_name_of_a_study_leads_to_no_folder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny.config(name="../../x")))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match=r"Without `--dir`, the `name` of the study must be the na"
    ):
        main(["study", "run", "study.yaml"])
    assert [one.name for one in tmp_path.iterdir()] == ["study.yaml"]
