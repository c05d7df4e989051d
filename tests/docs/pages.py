"""What stands in the README and the pages: blocks of code, commands, pictures."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "pages"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]

LANGUAGES = ("python", "bash", "sh", "yaml", "text", "")  # the last two are outputs
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\S*).*\n(?P<code>(?:.*\n)*?)(?P=indent)```\s*$",
    re.MULTILINE,
)
_SPAN = re.compile(r"`((?:python|pip|lightning-lth|torchrun|tensorboard) [^`]+)`")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: Where it stands.
        line: Of its first line of code, from 1.
        language: What is behind the three backticks.
        code: Without indentation.
        reason: Why it is not run; None if it is.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str | None = None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in some languages, from top to bottom; all of them if none is given."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page,
            text.count("\n", 0, match.start("code")) + 1,
            match["language"],
            textwrap.dedent(match["code"]),
            match["reason"],
        )
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def commands(page: Path) -> list[str]:
    """The command lines of a page, in blocks and within sentences."""
    text = page.read_text(encoding="utf-8")
    lines: list[str] = []
    for block in blocks(page, "bash", "sh"):
        lines += block.code.replace("\\\n", " ").splitlines()
    lines += _SPAN.findall(_BLOCK.sub("", text))
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def pictures(page: Path) -> list[Path]:
    """The files that a page shows."""
    found = _PICTURE.findall(page.read_text(encoding="utf-8"))
    return [page.parent / (first or second) for first, second in found]
