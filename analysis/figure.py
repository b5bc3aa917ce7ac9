"""The page that every figure shares: a section of panels with a legend per environment, and one caption under all."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import FuncFormatter

from analysis import style
from analysis.aggregate import Floats
from analysis.groups import AnyGroup, Band, make_band

AXES = {"frames": "frames", "wall_clock": "wall_seconds"}  # --x, and the column it stands for
PANEL_HEIGHT = 2.15  # inches, of one row of panels
THIN = 0.7  # points, of the line of a single run
SHADE = 0.18  # opacity of a band
FEWER = 0.4  # opacity of a mean where some of its seeds have ended
_SPAN_OF_A_LINEAR_AXIS = 20.0  # times `linear_below`
_TICKS_APART = 0.13  # of lags, at least, as a share of the axis
_CAPTION_POINTS = 6.5
_LEGEND_POINTS = 7.0
_LEGEND_HANDLE = 0.65  # inches, with the gaps around it


@dataclass(frozen=True)
class Section:
    """One environment: rows of panels, and a legend below them."""

    title: str
    n_rows: float  # in heights of a panel
    legend: Sequence[str]  # a text per curve; may be empty
    fill: Callable[[SubFigure], Sequence[Artist]]  # draws the panels and gives a handle for each text of the legend


def looks_of(groups: Iterable[AnyGroup]) -> dict[tuple[str, str], style.Look]:
    """The look of each method of a figure."""
    return style.looks([group.method for group in groups])


def width_of(n_panels: int) -> float:
    """Inches: of one column for a panel alone."""
    return style.TWO_COLUMNS if n_panels > 1 else style.ONE_COLUMN


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
            if texts:
                part.legend(handles, texts, loc="outside lower center", ncols=n_columns, handlelength=3.2)
        foot.text(0.012, 0.95, text, fontsize=_CAPTION_POINTS, va="top", linespacing=1.3, color="0.25")
    return figure


def grid(part: SubFigure, n_panels: int, n_columns: int) -> list[Axes]:
    """So many panels in rows, at most `n_columns` each; what the last row has too many is not there."""
    n_columns = min(n_columns, n_panels)
    panels = list(part.subplots(-(-n_panels // n_columns), n_columns, squeeze=False).flat)
    for panel in panels[n_panels:]:
        panel.remove()
    return panels[:n_panels]


def draw_band(
    panel: Axes,
    x: Floats,
    band: Band,
    look: style.Look,
    opacity: float = 1.0,
    thin: bool = False,
    staircase: bool = False,
    **line: Any,
) -> None:
    """A curve with its band; where the band is NaN, the curve alone. Faint where some seeds have ended.

    Args:
        panel: to draw in.
        x: [G], in the unit of the axis.
        band: the values at x.
        look: of the curve.
        opacity: of the curve; the band is fainter.
        thin: whether this is a single run.
        staircase: whether y changes at each x, from what it was up to there; else it is linear in between.
        line: more arguments of `plot`.
    """
    shape: dict[str, Any] = {"color": look.colour, "linestyle": look.line_style, "linewidth": THIN if thin else None}
    shape |= {"drawstyle": "steps-pre"} if staircase else {}
    step: Literal["pre"] | None = "pre" if staircase else None
    whole = band.n_complete
    parts = [(slice(0, whole), opacity)] if whole else []
    parts += [(slice(max(whole - 1, 0), len(x)), FEWER * opacity)] if whole < len(x) else []
    for part, strength in parts or [(slice(0, 0), opacity)]:
        alone = look.marker if len(x[part]) == 1 else None  # a single point makes no line
        panel.plot(x[part], band.mean[part], **{**shape, "alpha": strength, "marker": alone, **line})
        shade: dict[str, Any] = {"color": look.colour, "alpha": SHADE * strength, "linewidth": 0.0, "step": step}
        panel.fill_between(x[part], band.low[part], band.high[part], **shade)


def draw_seeds(
    panel: Axes,
    scale: float,
    band: Band | None,
    alone: Iterable[tuple[Floats, Floats]],
    look: style.Look,
    opacity: float = 1.0,
) -> None:
    """The mean of seeds with its band, if there is one, and some seeds alone, thin.

    Args:
        panel: to draw in.
        scale: of the axis: what x is divided by.
        band: of the mean.
        alone: increasing x [N] and y [N] of each other seed.
        look: of the method.
        opacity: of the curves.
    """
    if band is not None:
        draw_band(panel, band.x / scale, band, look, opacity)
    for one in (make_band([curve]) for curve in alone):
        draw_band(panel, one.x / scale, one, look, opacity, thin=True)


def draw_end(panel: Axes, x: float, y: float, look: style.Look) -> None:
    """Marks where a run failed."""
    panel.plot([x], [y], **cross(look), clip_on=False, zorder=5)


def cross(look: style.Look) -> dict[str, Any]:
    """The mark of a run that failed, as arguments of `plot`."""
    return {"color": look.colour, "marker": "x", "markersize": 4.5, "markeredgewidth": 1.2, "linestyle": "none"}


def scale_with_zero(panel: Axes, which: Literal["x", "y"], largest: float, linear_below: float) -> str:
    """Scale and limits of an axis from 0 to `largest`; gives what its label must say beside the quantity.

    A value of exactly 0 may be the very point of the figure: it lies inside the axis, a little off its end. The axis is
    linear where that shows everything; over more decades it is linear up to `linear_below`, and logarithmic from there.
    """
    largest = max(largest, linear_below)
    if largest <= _SPAN_OF_A_LINEAR_AXIS * linear_below:
        panel.set(**{f"{which}lim": (-0.04 * largest, 1.08 * largest)})
        return ""
    axis = panel.xaxis if which == "x" else panel.yaxis
    panel.set(**{f"{which}scale": SymmetricalLogScale(axis, linthresh=linear_below, subs=(2, 5))})
    axis.set_major_formatter(FuncFormatter(lambda value, _: _decade(value)))
    panel.set(**{f"{which}lim": (-0.2 * linear_below, 1.5 * largest)})
    return f"log above {_decade(linear_below)}"


def set_lags(panel: Axes, lags: Sequence[float], label: str, largest: float = 0.0) -> None:
    """The horizontal axis of forced lags: logarithmic above 1, 0 shown, ticks at the lags that were set.

    Args:
        panel: to draw in.
        lags: in updates, increasing.
        label: of the axis.
        largest: what else has to be in the panel.
    """
    scale_with_zero(panel, "x", max([largest, *lags]), 1.0)
    places = np.array([lag if lag <= 1.0 else 1.0 + np.log10(lag) for lag in lags])
    labelled: list[int] = []
    for i, place in enumerate(places):
        if not labelled or place - places[labelled[-1]] >= _TICKS_APART * (places[-1] - places[0]):
            labelled.append(i)
    panel.set_xticks([lags[i] for i in labelled], [f"{lags[i]:g}" for i in labelled])
    panel.set_xticks(lags, minor=True)
    panel.tick_params(which="minor", labelbottom=False)
    panel.set_xlabel(label)


def _decade(value: float) -> str:
    if value == 0.0 or 1e-3 <= value <= 1e4:
        return f"{value:g}"
    return f"$10^{{{np.log10(value):.0f}}}$"


def handle(look: style.Look, thin: bool = False, with_marker: bool = False) -> Line2D:
    """For a legend."""
    shape = marker(look) if with_marker else {"color": look.colour}
    return Line2D([], [], linestyle=look.line_style, linewidth=THIN if thin else None, **shape)


def marker(look: style.Look) -> dict[str, Any]:
    """A curve's marker, as arguments of `plot`."""
    return {
        "color": look.colour,
        "marker": look.marker,
        "markersize": 5.0,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def two_lines(text: str) -> str:
    """For an upright label of a panel, which is not high."""
    return "\n".join(textwrap.wrap(text, 24))


def axis_unit(column: str, largest: float) -> tuple[str, float]:
    """The axis label for `frames` or `wall_seconds`, and what its values are divided by."""
    if column == "frames":
        return ("million frames", 1e6) if largest >= 1e6 else ("thousand frames", 1e3)
    if largest >= 2 * 3600:
        return "hours of training", 3600.0
    return ("minutes of training", 60.0) if largest >= 120 else ("seconds of training", 1.0)


def _legend_columns(texts: Sequence[str], width: float) -> int:
    """As many as fit beside each other; `width` in inches."""
    if not texts:
        return 1
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
