"""Parts of an HTML page that needs nothing but itself: no scripts, no network.

Arguments that are called ``html`` are taken as they are; all others are text, and escaped.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final
from urllib.parse import quote

_STYLE: Final = """
:root { color-scheme: light; }
body { margin: 2.5rem auto; padding: 0 1.5rem; max-width: 62rem; background: #fff; color: #1a1a1a;
  font: 15px/1.5 "Helvetica Neue", Arial, "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .8rem; padding-bottom: .25rem; border-bottom: 1px solid #ccc;
  font-size: 1.25rem; break-after: avoid; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1rem; break-after: avoid; }
p { margin: .5rem 0; max-width: 48rem; }
.counts, figcaption, caption, .range { color: #595959; }
.warning { padding: .6rem .9rem; border-left: 4px solid #b34700; background: #fdf3ea; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; text-align: left; font-size: .9rem; }
th, td { padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid #e2e2e2; text-align: left;
  vertical-align: top; overflow-wrap: break-word; }
thead th, thead td { border-bottom: 1.5px solid #555; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
tr { break-inside: avoid; }
.numbers th, .numbers td { text-align: right; white-space: nowrap; }
.numbers thead th { white-space: normal; }
.range { display: block; font-size: .8rem; line-height: 1.35; }
.verdict, .files { white-space: nowrap; }
.verdict { font-weight: 600; }
.holds { color: #00603f; }
.does-not-hold { color: #a13600; }
.not-enough-trials { color: #595959; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.8rem 2rem; }
figure { margin: 0; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .4rem; font-size: .87rem; line-height: 1.45; }
pre { padding: .8rem 1rem; background: #f6f6f6; font-size: .8rem; line-height: 1.45;
  white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: #00548a; }
@media (max-width: 45rem) { .figures { grid-template-columns: minmax(0, 1fr); } }
@media print {
  @page { margin: 15mm; }
  body { margin: 0; padding: 0; max-width: none; font-size: 9.5pt; }
  pre { border: 1px solid #ccc; }
  a { color: inherit; text-decoration: none; }
  .scroll { overflow: visible; }
  th, td { padding-right: .7rem; }
}
"""
# Whatever texts a study brings along, a browser loads nothing.
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body_html: Sequence[str]) -> str:
    """A whole page."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *body_html,
            "</body>",
            "</html>",
            "",
        ]
    )


def text(text: str) -> str:
    """Text as HTML."""
    return escape(text)


def element(tag: str, text: str, *, css: str = "") -> str:
    """An element with nothing but text.

    Examples:
        >>> element("p", "a < b", css="warning")
        '<p class="warning">a &lt; b</p>'
    """
    return f"<{tag}{_class(css)}>{escape(text)}</{tag}>"


def link(path: str, text: str) -> str:
    """A link to a file, relative to the page."""
    return f'<a href="{escape(quote(path))}">{escape(text)}</a>'


def table(
    header: Sequence[str], rows_html: Sequence[Sequence[str]], *, caption: str = "", css: str = ""
) -> str:
    """A table; the first cell of each row is its header.

    Args:
        header: One text by column.
        rows_html: One HTML text by cell.
        caption: Above the table.
        css: Classes of the table.
    """
    lines = [f'<div class="scroll"><table{_class(css)}>']
    if caption:
        lines.append(element("caption", caption))
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    lines += [f"<thead><tr>{cells}</tr></thead>", "<tbody>"]
    for first, *others in rows_html:
        data = "".join(f"<td>{html}</td>" for html in others)
        lines.append(f'<tr><th scope="row">{first}</th>{data}</tr>')
    return "\n".join([*lines, "</tbody>", "</table></div>"])


def figure(number: int, svg: bytes, caption: str, paths: Sequence[str], *, is_wide: bool) -> str:
    """A picture inside the page, its caption, and links to its files.

    Args:
        number: Of the figure.
        svg: The picture.
        caption: What it shows.
        paths: Files with the same picture.
        is_wide: Whether it takes the width of the page.
    """
    data = b64encode(svg).decode()
    files = ", ".join(link(path, path.rpartition(".")[2].upper()) for path in paths)
    return "\n".join(
        [
            f"<figure{_class('wide' if is_wide else '')}>",
            f'<img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}">',
            f"<figcaption><b>Figure {number}.</b> {escape(caption)} "
            f'<span class="files">{files}</span></figcaption>',
            "</figure>",
        ]
    )


def sessions(columns: Sequence[Mapping[str, str]]) -> str:
    """A table with one column by session; what is the same in all spans them.

    Args:
        columns: Name to text, for each session.
    """
    names = list(dict.fromkeys(name for column in columns for name in column))
    header = "".join(f'<th scope="col">Session {i + 1}</th>' for i in range(len(columns)))
    lines = ['<div class="scroll"><table>', f"<thead><tr><td></td>{header}</tr></thead>", "<tbody>"]
    for name in names:
        texts = [column.get(name, "") for column in columns]
        if len(set(texts)) == 1:
            note = element("span", " in all sessions", css="counts") if len(texts) > 1 else ""
            data = f'<td colspan="{len(texts)}">{escape(texts[0])}{note}</td>'
        else:
            data = "".join(element("td", text) for text in texts)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{data}</tr>')
    return "\n".join([*lines, "</tbody>", "</table></div>"])


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""
