"""Every picture is there, is shown, and was made by the script as it is now."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from tests.docs import pages


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, pages.ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


PICTURES = script("pictures")
SCREENSHOTS = script("screenshots")
NAMES = [make.__name__ for make in PICTURES.PICTURES]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_was_made_by_the_present_source(name: str) -> None:
    assert PICTURES.recorded_origin(name) == PICTURES.origin(name), (
        f"run `python docs/pictures.py {name}`"
    )


@pytest.mark.parametrize("name", SCREENSHOTS.SHOTS)
def test_a_screenshot_is_of_the_present_example(name: str) -> None:
    assert SCREENSHOTS.recorded_origin(name) == SCREENSHOTS.origin(name), (
        f"run `python docs/screenshots.py {name}`"
    )


def test_every_picture_that_a_page_shows_exists() -> None:
    shown = [picture for page in pages.PAGES for picture in pages.pictures(page)]
    assert [str(picture) for picture in shown if not picture.is_file()] == []


def test_every_picture_is_shown_and_made_by_a_script() -> None:
    shown = {picture.name for page in pages.PAGES for picture in pages.pictures(page)}
    figures = script("replication_tables").shown_figures()
    made = {f"{name}.svg" for name in NAMES}
    made |= {f"{name}.png" for name in SCREENSHOTS.SHOTS}
    made |= {f"{study}_{measure}.svg" for study, measure in figures}
    there = {path.name for path in PICTURES.IMAGES.iterdir()}
    assert there - shown == set()
    assert there - made == set()
