"""The charts, as a person sees them: a real TensorBoard in a real browser.

Run:
    python -m pytest -m browser tests/browser
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_lth.callbacks._tensorboard import Band, Lines, add_charts, log_scalars, tag_pattern
from tests.browser.chromium import chromium
from tests.callbacks.modules import trainer
from tests.test_examples import run_example

pytestmark = pytest.mark.browser

SECONDS = 60  # until the page must be complete; usually 5
PAGE = "#custom_scalars&_smoothingWeight=0"
# The page is made of web components, whose contents ordinary selectors do not see.
FIND_CHARTS = """
function find(root, selector) {
    const inside = [...root.querySelectorAll("*")].filter(one => one.shadowRoot);
    const deeper = inside.flatMap(one => find(one.shadowRoot, selector));
    return [...root.querySelectorAll(selector), ...deeper];
}
const cards = "tf-custom-scalar-multi-line-chart-card, tf-custom-scalar-margin-chart-card";
return find(document, cards).map(card => ({
    title: card.title,
    text: card.shadowRoot.textContent,
    lines: find(card.shadowRoot, "path.line")
        .map(path => path.getAttribute("d") || "")
        .filter(points => points.includes("L") && !points.includes("NaN")).length,
}));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """It has room for all charts."""
    with chromium("--window-size=1500,930") as browser:
        yield browser


@contextlib.contextmanager
def tensorboard(folder: Path, runs: str) -> Iterator[str]:
    """A server, as a person would start it; its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--port=0", "--load_fast=false"]
    log = folder / "tensorboard.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, f"--logdir={runs}"], cwd=folder, stdout=file, stderr=file
        )
    try:
        yield wait_for(lambda: re.search(r"at (http://\S+)", log.read_text()), log.read_text)[1]
    finally:
        server.kill()
        server.wait()


def wait_for(find: Callable[[], Any], describe: Callable[[], Any]) -> Any:
    """What ``find`` returns as soon as it returns something."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := find():
            return found
        time.sleep(0.2)
    return pytest.fail(f"nothing in {SECONDS} s; last: {describe()}")


def charts(browser: Any, address: str, expected: int) -> dict[str, tuple[int, int]]:
    """Title to the number of series and of lines drawn, when all have been drawn."""
    browser.get(address)
    browser.execute_script("localStorage.setItem('_ignoreYOutliers', 'false')")
    browser.get("about:blank")  # as a change after the # would not load the page again
    browser.get(f"{address}{PAGE}")

    def find() -> Any:
        found = browser.execute_script(FIND_CHARTS)
        is_complete = len(found) == expected and all(one["lines"] for one in found)
        return found if is_complete else None

    found = wait_for(find, lambda: browser.execute_script(FIND_CHARTS))
    matches = [re.search(r"Matches \((\d+)\)", one["text"]) for one in found]
    return {
        one["title"]: (int(match[1]) if match else 0, one["lines"])
        for one, match in zip(found, matches, strict=True)
    }


def errors(browser: Any) -> list[str]:
    """What the page complained of."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_the_charts_of_the_example(browser: Any, tmp_path: Path) -> None:
    run_example(tmp_path, "digits_ticket", MAX_STEPS=20)
    with tensorboard(tmp_path, "results/digits_ticket") as address:
        found = charts(browser, address, 6)
        assert {title: series for title, (series, _) in found.items()} == {
            "Density of the network": 1,
            "Density by layer": 3,
            "Density by round": 1,
            "Best val_loss by round": 1,
            "Other metrics at the best step, by round": 3,  # val_acc, test_loss and test_acc
            "Best step by round": 1,
        }
        assert all(lines >= series for series, lines in found.values())
        assert errors(browser) == []


def test_a_band_and_a_name_that_begins_like_another(browser: Any, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "runs", "", "a run", prefix="p", default_hp_metric=False)
    fitter = trainer(logger=logger)
    for step in range(3):
        layers = {f"bn/model.{name}/drift": step + 1.0 for name in ("layer1", "layer10")}
        band = {"s/median": step + 1.0, "s/p05": step / 2, "s/p95": step + 2.0}
        log_scalars(fitter, layers | band | {"s/median_of": 1.0}, step)
    add_charts(fitter, "BatchNorm", [Lines("One", ("bn/model\\.layer1/drift",))])
    add_charts(fitter, "BatchNorm", [Lines("Both", (tag_pattern("bn", "drift"),))])
    add_charts(fitter, "Summary", [Band("Band", "s")])
    logger.finalize("success")
    with tensorboard(tmp_path, "runs") as address:
        found = charts(browser, address, 3)
        assert list(found) == ["Band", "One", "Both"]  # in the order of the categories
        assert [series for series, _ in found.values()] == [1, 1, 2]
        assert errors(browser) == []
