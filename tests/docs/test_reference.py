"""The reference has what the pages name and what packages export, and reads as Markdown."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

from lightning_lth import initialization, stopping
from tests.docs import pages

_ENTRIES = re.findall(
    r"^::: (\S+)$", (pages.DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE
)


def is_documented(name: str) -> bool:
    """Whether it has an entry, or is in a module that has one, or is a package of entries."""
    return any(f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.") for one in _ENTRIES)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists_and_is_in_the_reference(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/])lightning_lth(?:\.\w+)+", text))
    for name in names:
        pkgutil.resolve_name(name)
    assert [one for one in names if "._" not in one and not is_documented(one)] == []


@pytest.mark.parametrize("package", [initialization, stopping], ids=lambda one: one.__name__)
def test_what_a_package_exports_is_in_the_reference(package: ModuleType) -> None:
    for name in package.__all__:
        home = getattr(package, name).__module__
        assert f"lightning_lth.{name}" in _ENTRIES or is_documented(f"{home}.{name}"), name


def test_docstrings_have_no_roles_of_sphinx() -> None:
    sources = (pages.ROOT / "lightning_lth").rglob("*.py")
    role = re.compile(r":[a-z]+:`")
    assert [str(path) for path in sources if role.search(path.read_text(encoding="utf-8"))] == []
