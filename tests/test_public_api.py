"""The public names are the documented ones."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lightning_lth
import lightning_lth.callbacks
from lightning_lth import study
from lightning_lth._version import __version__

ROOT = Path(__file__).parents[1]
CORE = ["initialization", "layer_stats", "learning_rate", "pruning", "stopping"]


def test_all_lists_the_public_names() -> None:
    names = {
        name
        for name, value in vars(lightning_lth).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert sorted(lightning_lth.__all__) == sorted(names)


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    page = (ROOT / "docs" / "pages" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: lightning_lth\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(lightning_lth.__all__)


def test_every_name_of_the_study_has_an_entry_in_the_reference() -> None:
    page = (ROOT / "docs" / "pages" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: lightning_lth\.study\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(study.__all__)


@pytest.mark.parametrize("name", lightning_lth.__all__)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    docstring = getattr(lightning_lth, name).__doc__ or ""
    assert "Examples:" in docstring


def test_every_callback_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in lightning_lth.callbacks.__all__:
        assert f"| [`{name}`](" in readme


def test_the_installed_version_is_the_one_of_the_code() -> None:
    try:
        installed = importlib.metadata.version("lightning-lth")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert installed == __version__


def test_the_core_does_not_import_lightning() -> None:
    core = [folder for folder in (ROOT / "lightning_lth").iterdir() if folder.name in CORE]
    assert len(core) == len(CORE)
    modules = [
        f"lightning_lth.{folder.name}.{path.stem}"
        for folder in core
        for path in sorted(folder.glob("[!_]*.py"))
    ]
    # The package's own __init__ imports the callbacks; an empty one stands in for it.
    code = (
        "import sys, types, importlib\n"
        "package = types.ModuleType('lightning_lth')\n"
        f"package.__path__ = [{str(ROOT / 'lightning_lth')!r}]\n"
        "sys.modules['lightning_lth'] = package\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(roots & {'lightning', 'pytorch_lightning'})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


# From above to below; files beside the packages are at the bottom, but for the command line.
LAYERS = [{"__main__"}, {"cli"}, {"study"}, {"callbacks"}, set(CORE)]


def layer(name: str) -> int:
    """How far down a package or file of ours is."""
    return next((depth for depth, names in enumerate(LAYERS) if name in names), len(LAYERS))


def imported(path: Path) -> set[str]:
    """Our packages and files that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    names |= {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    parts = [name.split(".") for name in names]
    return {rest[0] for first, *rest in parts if first == "lightning_lth" and rest}


def test_imports_run_downwards_and_rooms_of_the_core_do_not_know_each_other() -> None:
    package = ROOT / "lightning_lth"
    files = [path for path in package.rglob("*.py") if path != package / "__init__.py"]
    upwards = [
        f"{path.relative_to(package)} imports {name}"
        for path in files
        for own in [path.relative_to(package).with_suffix("").parts[0]]
        for name in imported(path)
        if name != own and layer(name) <= layer(own) and layer(name) < len(LAYERS)
    ]
    assert upwards == []
    assert len(files) > 100
