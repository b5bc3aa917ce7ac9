"""One HTML page that needs no other file: text, tables, and figures inside it.

`Text` in, a string out. What comes from runs is escaped; nothing is loaded from elsewhere, and there is no script.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from analysis import style

_CSS_PIXELS = 130 / style.PNG_DPI  # per pixel of a PNG: all figures in one scale, two columns as wide as the text

_WORDS = ("environment", "method", "hardware")  # columns without numbers
_SHORT = 24  # letters that stay on one line of a table

_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
main { max-width: 58rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #d5d5d5; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { font-size: 1.08rem; }
nav { font-size: .92rem; margin: 1rem 0; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
a { color: #0050a0; }
figure { margin: 1rem 0 2.2rem; }
figure img { max-width: 100%; height: auto; display: block; }
.small { color: #555; font-size: .85rem; margin: .3rem 0; }
ul.small { padding-left: 1.2rem; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 1.5px solid #555; font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.words td, .words th { text-align: left; }
.words td { max-width: 30rem; }
td.left, th.left { text-align: left; }
.short { white-space: nowrap; }
pre { background: #f5f5f5; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .92em; }
details { margin: .7rem 0; }
summary { cursor: pointer; }
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands below it, as HTML."""

    title: str
    parts: Sequence[str]


def write(file: Path, title: str, lead: Sequence[str], chapters: Sequence[Chapter]) -> None:
    """Writes the page; a chapter without parts is not there."""
    chapters = [chapter for chapter in chapters if chapter.parts]
    links = "".join(f'<a href="#{_anchor(one.title)}">{escape(one.title)}</a>' for one in chapters)
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="lead">{escape(line)}</p>' for line in lead),
        f"<nav>{links}</nav>",
    ]
    for chapter in chapters:
        body += [f'<h2 id="{_anchor(chapter.title)}">{escape(chapter.title)}</h2>', *chapter.parts]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_CSS}</style>'
    )
    text = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n' + "\n".join(body)
    file.write_text(f"{text}\n</main></body></html>\n", encoding="utf-8")


def heading(text: str) -> str:
    """Within a chapter."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def small(*lines: str) -> str:
    """Notes, a line each."""
    return "".join(f'<p class="small">{escape(line)}</p>' for line in lines)


def points(lines: Sequence[str], at_most: int = 12) -> str:
    """A list; what is too much is counted."""
    items = list(lines[:at_most]) + ([f"and {len(lines) - at_most} more"] if len(lines) > at_most else [])
    return '<ul class="small">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def picture(png: Path, description: str, links: bool = True) -> str:
    """A figure, and links to its files beside the page; the description is what a screen reader says."""
    data = png.read_bytes()
    width, height = (
        round(int.from_bytes(data[start : start + 4]) * _CSS_PIXELS) for start in (16, 20)
    )  # of its header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(description, quote=True)}">'
    if not links:
        return f"<figure>{image}</figure>"
    files = " ".join(f'<a href="{escape(png.stem)}.{suffix}">{suffix.upper()}</a>' for suffix in ("png", "pdf", "csv"))
    return f'<figure>{image}<figcaption class="small">Beside this page: {files}</figcaption></figure>'


def table(text: pd.DataFrame, words: bool = False) -> str:
    """A table of strings; `words` are aligned left."""
    left = [column in _WORDS for column in text.columns]
    head = "".join(
        f"<th{_kind(first)}>{escape(str(cell))}</th>" for cell, first in zip(text.columns, left, strict=True)
    )
    rows = "".join("<tr>" + "".join(map(_cell, row, left)) + "</tr>" for row in text.to_numpy().tolist())
    kind = ' class="words"' if words else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(cell: object, left: bool) -> str:
    text = str(cell)
    return f"<td{_kind(left, len(text) <= _SHORT)}>{escape(text)}</td>"


def _kind(left: bool, short: bool = False) -> str:
    names = " ".join(name for name, holds in (("left", left), ("short", short)) if holds)
    return f' class="{names}"' if names else ""


def settings(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Settings, a row each."""
    return table(
        pd.DataFrame([[key, *cells] for key, cells in rows.items()], columns=["setting", *columns]), words=True
    )


def folded(title: str, *parts: str) -> str:
    """Shown on a click."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def code(text: str) -> str:
    """As it stands."""
    return f"<pre><code>{escape(text)}</code></pre>"


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())
