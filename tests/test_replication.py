"""The page about replications says what the data say, and the claims are those of the configs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lightning_lth.study import load_study

DOCS = Path(__file__).parents[1] / "docs"
STUDIES = sorted(folder.name for folder in (DOCS / "data").iterdir())


def script() -> Any:
    spec = importlib.util.spec_from_file_location("tables", DOCS / "replication_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_data() -> None:
    page = (DOCS / "pages" / "replication.md").read_text()
    assert script().page() == page
    assert all(f"<!-- claims: {name} -->\n| claim" in page for name in STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_the_study_is_the_one_that_we_ship(name: str) -> None:
    assert load_study(DOCS / "data" / name / "study.yaml").settings == load_study(name).settings
