"""The page that every figure shares: a section of panels with a legend per environment, and one caption under all."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import style

PANEL_HEIGHT = 2.15  # inches, of one row of panels
THIN = 0.7  # points, of the line of a single run
_CAPTION_POINTS = 6.5
_LEGEND_POINTS = 7.0
_LEGEND_HANDLE = 0.65  # inches, with the gaps around it


@dataclass(frozen=True)
class Section:
    """One environment: rows of panels, and a legend below them."""

    title: str
    n_rows: int
    legend: Sequence[str]  # a text per curve
    fill: Callable[[SubFigure], Sequence[Line2D]]  # draws the panels and gives a handle for each text of the legend


def compose(sections: Sequence[Section], caption: str, width: float) -> Figure:
    """The figure, as high as its sections and its caption need; `width` in inches."""
    text = _wrapped(caption, width - 0.2, _CAPTION_POINTS)
    legends = [[_wrapped(line, width - _LEGEND_HANDLE, _LEGEND_POINTS) for line in one.legend] for one in sections]
    columns = [_legend_columns(texts, width) for texts in legends]
    heights = [
        PANEL_HEIGHT * section.n_rows + _legend_height(texts, n_columns)
        for section, texts, n_columns in zip(sections, legends, columns, strict=True)
    ]
    heights.append(_caption_height(text))
    with style.context():
        figure = style.new_figure(width, sum(heights))
        *parts, foot = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, section, texts, n_columns in zip(parts, sections, legends, columns, strict=True):
            handles = section.fill(part)
            part.suptitle(section.title, fontsize=9.0, fontweight="bold")
            part.legend(handles, texts, loc="outside lower center", ncols=n_columns, handlelength=3.2)
        foot.text(0.012, 0.95, text, fontsize=_CAPTION_POINTS, va="top", linespacing=1.3, color="0.25")
    return figure


def marker(look: style.Look) -> dict[str, Any]:
    """A curve's marker, as arguments of `plot`."""
    return {
        "color": look.colour,
        "marker": look.marker,
        "markersize": 5.0,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def counted_seeds(count: int) -> str:
    """For a legend: "1 seed", "3 seeds"."""
    return f"{count} seed{'' if count == 1 else 's'}"


def axis_unit(column: str, largest: float) -> tuple[str, float]:
    """The axis label for `frames` or `wall_seconds`, and what its values are divided by."""
    if column == "frames":
        return ("million frames", 1e6) if largest >= 1e6 else ("thousand frames", 1e3)
    if largest >= 2 * 3600:
        return "hours of training", 3600.0
    return ("minutes of training", 60.0) if largest >= 120 else ("seconds of training", 1.0)


def _legend_columns(texts: Sequence[str], width: float) -> int:
    """As many as fit beside each other; `width` in inches."""
    longest = max(len(line) for text in texts for line in text.splitlines())
    return max(1, min(len(texts), int(width / (longest * _letter_width(_LEGEND_POINTS) + _LEGEND_HANDLE))))


def _legend_height(texts: Sequence[str], n_columns: int) -> float:
    lines = sum(text.count("\n") + 1 for text in texts)
    return -(-lines // n_columns) * _LEGEND_POINTS * 1.5 / 72.0


def _caption_height(text: str) -> float:
    """With 5% free above, where `compose` begins, and as much below."""
    n_lines = text.count("\n") + 1
    return max(n_lines + 1, 1.12 * n_lines) * _CAPTION_POINTS * 1.3 / 72.0


def _wrapped(text: str, width: float, points: float) -> str:
    """Lines no longer than `width` inches at that font size."""
    letters = int(width / _letter_width(points))
    return "\n".join(textwrap.fill(line, letters, break_on_hyphens=False) for line in text.splitlines())


def _letter_width(points: float) -> float:
    return points / 72.0 * 0.53  # a letter of running text in DejaVu Sans is about 0.5 em wide
