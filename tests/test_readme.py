"""What the README shows works."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from lightning_lth import Ticket

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_finds_and_saves_a_ticket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    quick = "max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False"
    code = code.replace("max_epochs=5", quick)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    # 64*100 + 100*10 = 7400 weights; each round prunes 20 % of the rest, rounded:
    # 7400 - 1480 = 5920, - 1184 = 4736, - 947 = 3789, - 758 = 3031.
    assert Ticket.load("digits.safetensors").masks.num_remaining == 3031
    assert "0.4096" in printed.getvalue()  # 3031 / 7400, in the last line of the history


def test_every_relative_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_two_commands_are_marked_for_ci() -> None:
    marked = re.findall(
        r"^<!-- \.ci/run executes the next block word for word -->\n```bash\n(.*?)\n```$",
        README,
        flags=re.MULTILINE | re.DOTALL,
    )
    assert len(marked) == 2
    assert all("\n" not in command for command in marked)
