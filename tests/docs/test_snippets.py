"""Every block of code in the README and the pages works."""

from __future__ import annotations

import sys
from functools import partialmethod
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer
from torch.utils.tensorboard import SummaryWriter

from lightning_lth.study import load_study
from lightning_lth.study.checks import check_design
from lightning_lth.study.settings import find_config
from tests.docs import commands, pages, reader


def with_blocks(*languages: str) -> list[Path]:
    return [page for page in pages.PAGES if pages.blocks(page, *languages)]


def name(page: Path) -> str:
    return page.name


# Some snippets give no validation data. Of the few that the reader has, LayerStatsMonitor warns.
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:BatchNorm 'net.1'")
@pytest.mark.parametrize("page", [p for p in with_blocks("python") if p != pages.README], ids=name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's is in ``test_readme.py``."""
    monkeypatch.chdir(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    with_settings = partialmethod(Trainer.__init__, accelerator="cpu", **quiet)
    monkeypatch.setattr(Trainer, "__init__", with_settings)
    monkeypatch.setattr(SummaryWriter, "add_figure", lambda *_: None)  # most of the time, if drawn
    names = reader.names()
    for block in pages.blocks(page, "python"):
        if block.reason is not None:
            continue
        code = "\n" * (block.line - 1) + block.code  # so that errors name the line of the page
        exec(compile(code, str(page), "exec"), names)


def test_nothing_but_the_address_of_a_cluster_keeps_a_block_from_being_run() -> None:
    left_out = [b for page in pages.PAGES for b in pages.blocks(page) if b.reason is not None]
    assert [(b.page.name, "scheduler:8786" in b.code) for b in left_out] == [("study.md", True)]


def test_every_block_is_in_a_language_that_is_tested_or_an_output() -> None:
    found = {b.language for page in pages.PAGES for b in pages.blocks(page)}
    assert found <= set(pages.LANGUAGES)
    for page in pages.PAGES:  # none is overlooked
        fences = [line for line in page.read_text().splitlines() if line.lstrip()[:3] == "```"]
        assert len(fences) == 2 * len(pages.blocks(page)), page


@pytest.mark.parametrize("line", sorted({c for page in pages.PAGES for c in pages.commands(page)}))
def test_a_command_line_could_be_run(line: str) -> None:
    commands.check(line)


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=name)
def test_a_config_loads_and_its_parts_fit_into_one(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_project.py").write_text("from tests.docs.reader import Data, Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    shipped = yaml.safe_load(find_config("lenet_mnist").read_text())
    for block in pages.blocks(page, "yaml"):
        config = yaml.safe_load(block.code)
        is_whole = {"seeds", "model", "arms"} <= config.keys()
        check_design(load_study(config if is_whole else {**shipped, "claims": [], **config}))
