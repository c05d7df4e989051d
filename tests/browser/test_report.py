"""The report of a study, as a person sees it: from a file, without a network, in a real browser.

Run:
    python -m pytest -m browser tests/browser

With LIGHTNING_LTH_REPORT_SCREENSHOT=PATH a picture of the whole page is written there.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_lth.study.judgments import judge
from lightning_lth.study.report import write_report
from tests.browser.chromium import chromium
from tests.study.test_report import CLAIMS, FIGURES, full

pytestmark = pytest.mark.browser

FIND_FIGURES = """
return [...document.images].map(image => ({
    complete: image.complete,
    natural: Math.min(image.naturalWidth, image.naturalHeight),
    width: image.getBoundingClientRect().width,
    left: image.getBoundingClientRect().left,
    right: image.getBoundingClientRect().right,
}));
"""
FIND_CLAIMS = """
const rows = document.querySelectorAll("table.claims tbody tr");
return [...rows].map(row => [...row.cells].map(cell => cell.innerText));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """It finds no server."""
    with chromium("--window-size=1200,900", "--host-resolver-rules=MAP * ~NOTFOUND") as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all there is."""
    one = full()
    folder = tmp_path_factory.mktemp("study") / "report"
    return write_report(one, judge(CLAIMS, one.rounds), folder)


def requests(browser: Any) -> list[str]:
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["request"]["url"] for event in sent]


def test_a_page_from_a_file(browser: Any, path: Path) -> None:
    requests(browser)
    browser.get(path.as_uri())
    page, *figures = requests(browser)
    assert page == path.as_uri()
    assert [address.split(",")[0] for address in figures] == ["data:image/svg+xml;base64"] * len(
        FIGURES
    )
    assert browser.get_log("browser") == []  # neither errors nor what the policy refused
    shown = browser.execute_script(FIND_FIGURES)
    assert len(shown) == len(FIGURES)
    for figure in shown:
        assert figure["complete"]
        assert figure["natural"] > 100
        assert figure["width"] > 350
        assert figure["left"] >= 0
        assert figure["right"] <= 1200
    assert browser.execute_script(FIND_CLAIMS) == [
        [judgment.verdict.value, judgment.claim.text, judgment.sentence]
        for judgment in judge(CLAIMS, full().rounds)
    ]
    assert browser.title == "a study: report"
    if screenshot := os.environ.get("LIGHTNING_LTH_REPORT_SCREENSHOT"):
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.set_window_size(1200, height + 100)
        browser.save_screenshot(screenshot)


@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_is_wider_than_the_window(browser: Any, path: Path, width: int) -> None:
    browser.set_window_size(width, 900)
    browser.get(path.as_uri())
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = browser.execute_script(widths)
    assert scroll <= client


def test_prints(browser: Any, path: Path) -> None:
    browser.get(path.as_uri())
    assert base64.b64decode(browser.print_page()).startswith(b"%PDF")


def test_whatever_a_text_brought_along_would_not_be_loaded(
    browser: Any, path: Path, tmp_path: Path
) -> None:
    leak = '<img src="https://example.org/a.png"><script>document.title = "taken"</script>'
    leaking = tmp_path / "leaking.html"
    leaking.write_text(path.read_text().replace("</h1>", f"</h1>{leak}"))
    browser.get(leaking.as_uri())
    assert browser.title == "a study: report"
    refused = [line["message"] for line in browser.get_log("browser")]
    assert len(refused) == 2
    assert all("Content Security Policy" in message for message in refused)
