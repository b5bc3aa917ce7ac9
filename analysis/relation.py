"""One quantity of each run against another one, or against a setting.

    python -m analysis.relation runs/lag_vs_agents --x n_agents --y lag_updates lag_frames
    python -m analysis.relation runs/lr_sensitivity --x learning_rate --y score
    python -m analysis.relation runs/headline --x lag_updates --y score area
    python -m analysis.relation runs/advantages --x advantage.kind --y score gradient_norm

Against a setting, a line joins the means over seeds; against something measured there are points alone. Lag gets
an axis that is logarithmic and shows 0. Writes relation.png, relation.pdf and relation.csv (a row per run).
"""

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from analysis import caption, cli, figure, statistics, style
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.groups import Band, SeedGroup, by_env, in_legend_order
from analysis.outcome import FAILED, RULE, counting, tally
from analysis.run import Run
from analysis.settings import labelled, setting
from analysis.summary import LABELS, LAG_UNITS, SHARES, about_areas, summarise, value_of

log = logging.getLogger(__name__)

CSV_COLUMNS = ("env", "algo", "label", "seed", "state")
_RATIO_FOR_A_LOG_AXIS = 4.0
_RATIO_FOR_A_LOG_VARIANCE = 20.0  # of squares, whose small ones would all lie on the axis
_TICKS_AT_MOST = 8  # at the values of a setting themselves
_TICKS_APART = 0.08  # at least, as a share of the axis

_REFERENCE: Mapping[str, Any] = {
    "color": "0.35", "linestyle": (0, (1.0, 1.0)), "marker": "x", "markersize": 4.0, "linewidth": 1.0
}  # fmt: skip


@dataclass(frozen=True)
class RunPoint:
    """One run."""

    run: Run
    x: float | str  # a word of a setting without numbers, as advantage.kind has
    y: Mapping[str, float]  # by name; NaN where the run does not have it


@dataclass(frozen=True)
class PublishedCurve:
    """A published curve beside ours."""

    text: str
    x: Floats
    y: Floats
    algo: str | None = None  # whose colour it has; None: grey
    env: str | None = None  # where it is drawn; None: everywhere


@dataclass(frozen=True)
class Axis:
    """What is drawn upwards in one panel."""

    name: str  # of RunPoint.y
    label: str
    references: Sequence[PublishedCurve] = ()


# --- from runs to points ----------------------------------------------------------------------------------------------


def make_points(runs: Sequence[Run], x: str, ys: Sequence[str]) -> list[RunPoint]:
    """The points of runs that have an x and at least one y, or failed before that; others are named and left out."""
    points = []
    relabelled = _relabelled(runs, x)
    for run, (_, row) in zip(relabelled, summarise(relabelled).iterrows(), strict=True):
        values = {name: value_of(run, row.to_dict(), name) for name in ys}
        place = _place(run, row.to_dict(), x)
        reached = np.isfinite(list(values.values())).any() or (run.ending in FAILED and _is_reached(ys))
        if place is None or not reached:
            log.warning("%s has no %s: it is not in the figure.", run.path, x if place is None else " or ".join(ys))
        else:
            points.append(RunPoint(run, place, values))
    return points


def _is_reached(ys: Sequence[str]) -> bool:
    """Whether a quantity says what a run reached: the place of one that failed before it reached anything is told."""
    return any(name in ("score", "training_score", "area") for name in ys)


def group_points(points: Sequence[RunPoint], missing: Sequence[Run] = ()) -> list[SeedGroup[RunPoint]]:
    """Points of one environment, algorithm and label, in the order of a legend, and the runs there that have none."""
    found: dict[tuple[str, str, str], list[RunPoint]] = defaultdict(list)
    lacking: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for point in points:
        found[point.run.env, point.run.algo, point.run.label].append(point)
    for run in missing:
        lacking[run.env, run.algo, run.label].append(run)
    return [SeedGroup(*key, found[key], missing=lacking[key]) for key in in_legend_order(found)]


def make_table(points: Sequence[RunPoint], x: str) -> pd.DataFrame:
    """A row per run."""
    return pd.DataFrame(
        [{name: getattr(point.run, name) for name in CSV_COLUMNS} | {x: point.x} | dict(point.y) for point in points]
    )


def counted_points(group: SeedGroup[RunPoint], name: str) -> list[RunPoint]:
    """Those of which the means are: at each x of runs that are over, where there are any."""
    known = [point for point in group.traces if np.isfinite(point.y[name])]
    at_each: dict[float | str, list[RunPoint]] = defaultdict(list)
    for point in known:
        at_each[point.x].append(point)
    return [
        point
        for points in at_each.values()
        for point, counts in zip(points, counting(point.run.ending for point in points), strict=True)
        if counts
    ]


def means(group: SeedGroup[RunPoint], name: str, positions: Mapping[float | str, float]) -> Band:
    """Mean over seeds at each x, with an interval where there are seeds enough."""
    values: dict[float, list[float]] = defaultdict(list)
    for point in counted_points(group, name):
        values[positions[point.x]].append(point.y[name])
    places = sorted(values)
    estimates = [statistics.bootstrap(statistics.mean, [np.array(values[place])]) for place in places]
    return Band.of_estimate(
        np.array(places),
        *(np.array([float(getattr(estimate, part)) for estimate in estimates]) for part in ("value", "low", "high")),
    )


def _relabelled(runs: Sequence[Run], x: str) -> list[Run]:
    if x == "learning_rate":
        return labelled(runs, partial(setting, name="algo.optimizer.lr"))
    return list(runs) if x in LABELS or x in SHARES else labelled(runs, partial(setting, name=x))


def _place(run: Run, row: Mapping[str, Any], x: str) -> float | str | None:
    number = value_of(run, row, x)
    if np.isfinite(number):
        return number
    word = None if x in LABELS or x in SHARES else setting(run, x)
    return None if word is None else str(word)


# --- from points to a figure ------------------------------------------------------------------------------------------


def draw(
    points: Sequence[RunPoint], x: str, axes: Sequence[Axis], how: str = "", missing: Sequence[Run] = ()
) -> Figure:
    """The figure: per environment a panel per axis and a legend, and one caption under all.

    Args:
        points: what to draw; not empty.
        x: name of the horizontal quantity.
        axes: what is drawn upwards, a panel each in the environments that have it.
        how: more sentences for the caption.
        missing: runs without a point, which are counted.
    """
    groups = group_points(points, missing)
    looks = figure.looks_of(groups)
    sections = []
    for env, here in by_env(groups).items():
        points = [point for group in here for point in group.traces]
        known = [axis for axis in axes if np.isfinite([point.y[axis.name] for point in points]).any()] or list(axes[:1])
        known = [replace(axis, references=[one for one in axis.references if one.env in (None, env)]) for axis in known]
        texts = [f"{group.name} ({_tally(group)})" for group in here]
        texts += [reference.text for axis in known for reference in axis.references]
        fill = partial(_fill, here=here, x=x, axes=known, looks=looks)
        sections.append(figure.Section(env, -(-len(known) // 2), texts, fill))
    return figure.compose(sections, make_caption(groups, x, how), figure.width_of(len(axes)))


def _tally(group: SeedGroup[RunPoint]) -> str:
    """How many runs there are, of how many the means are, and what became of the others."""
    counted = {point.run.path for name in group.traces[0].y for point in counted_points(group, name)}
    return tally([run.ending for run in group.all_runs], len(counted), "run")


def make_caption(groups: Sequence[SeedGroup[RunPoint]], x: str, how: str) -> str:
    """What a point is, then a line per environment, then the machines."""
    at_each: dict[tuple[str, str, str, float | str | None], list[RunPoint]] = defaultdict(list)
    for group in groups:
        for point in group.traces:
            at_each[group.env, *group.method, None if _is_measured(x) else point.x].append(point)
    places = [SeedGroup(env, algo, label, found) for (env, algo, label, _), found in at_each.items()]
    sentences = [how, "A point is a run.", *_about_endings(groups)]
    if not _is_measured(x):
        words = any(isinstance(point.x, str) for group in groups for point in group.traces)
        line, band = ("Dash", "Bar") if words else ("Line", "Band")
        sentences.append(f"{line}: mean over seeds.")
        if any(place.has_band for place in places):
            sentences.append(f"{band}: 95% percentile bootstrap over seeds, too narrow when they are few.")
        if not all(place.has_band for place in places):
            sentences.append(f"No {band.lower()} where there are fewer than {SEEDS_FOR_BAND} seeds.")
    return caption.complete(" ".join(filter(None, sentences)), places, "group" if _is_measured(x) else "point")


def _about_endings(groups: Sequence[SeedGroup[RunPoint]]) -> list[str]:
    points = [point for group in groups for point in group.traces]
    endings, ys = {point.run.ending for point in points}, {name for point in points for name in point.y}
    sentences = []
    if endings & {*FAILED}:
        sentences.append("x: a run that failed.")
        if _is_reached(list(ys)):
            sentences.append(f"{RULE} One below the axis failed before that.")
    if endings - {"finished", *FAILED}:
        sentences.append("Hollow: a run that is not over, in no mean beside runs that are.")
    if "area" in ys:
        sentences.append(about_areas([point.run for point in points]))
    return [sentence for sentence in sentences if sentence]


def _fill(
    part: SubFigure,
    here: Sequence[SeedGroup[RunPoint]],
    x: str,
    axes: Sequence[Axis],
    looks: Mapping[tuple[str, str], style.Look],
) -> list[Artist]:
    positions, words = _positions(here)
    handles: list[Artist] = [figure.handle(looks[group.method], with_marker=True) for group in here]
    if _is_measured(x) or words:
        handles = [Line2D([], [], linestyle="none", **figure.marker(looks[group.method])) for group in here]
    for panel, axis in zip(figure.grid(part, len(axes), 2), axes, strict=True):
        for group in here:
            look = looks[group.method]
            if not _is_measured(x) and not words:
                band = means(group, axis.name, positions)
                figure.draw_band(panel, band.x, band, look)
            known = [point for point in group.traces if np.isfinite(point.y[axis.name])]
            for mark, these in _by_mark(known, look):
                places = [positions[point.x] for point in these]
                panel.plot(places, [point.y[axis.name] for point in these], **mark)
            _draw_nothing_reached(panel, group.traces, positions, axis.name, look)
            if words:
                band = means(group, axis.name, positions)
                panel.errorbar(band.x, band.mean, np.nan_to_num([band.mean - band.low, band.high - band.mean]),
                               fmt="_", markersize=14, color=look.colour, linewidth=1.0)  # fmt: skip
        for reference in axis.references:
            colour = {} if reference.algo is None else {"color": style.COLOURS[reference.algo]}
            panel.plot(reference.x, reference.y, **{**_REFERENCE, **colour})
            handles.append(Line2D([], [], **{**_REFERENCE, **colour}))
        values = [point.y[axis.name] for group in here for point in group.traces]
        _set_axes(panel, x, axis, list(positions.values()), values, words)
    return handles


def _by_mark(points: Sequence[RunPoint], look: style.Look) -> list[tuple[dict[str, Any], list[RunPoint]]]:
    """Points by how they are marked: as the method is, hollow where the run is not over, x where it failed."""
    finished = [point for point in points if point.run.ending == "finished"]
    failed = [point for point in points if point.run.ending in FAILED]
    others = [point for point in points if point not in finished and point not in failed]
    hollow = figure.marker(look) | {"markerfacecolor": "none", "markeredgecolor": look.colour, "markeredgewidth": 1.0}
    marks = [(figure.marker(look), finished), (figure.cross(look), failed), (hollow, others)]
    return [({"linestyle": "none", "alpha": 0.75, **mark}, these) for mark, these in marks if these]


def _draw_nothing_reached(
    panel: Axes, points: Sequence[RunPoint], positions: Mapping[float | str, float], name: str, look: style.Look
) -> None:
    """Marks under the axis the runs that failed before they reached anything."""
    places = [positions[point.x] for point in points if point.run.ending in FAILED and not np.isfinite(point.y[name])]
    if places and _is_reached([name]):
        below = panel.get_xaxis_transform()
        panel.plot(places, [-0.03] * len(places), transform=below, clip_on=False, zorder=5, **figure.cross(look))


def _positions(groups: Sequence[SeedGroup[RunPoint]]) -> tuple[dict[float | str, float], list[str]]:
    """Where each x lies, and the words on the axis if any of them is no number."""
    found = {point.x for group in groups for point in group.traces}
    words = sorted(map(str, found), key=style.natural_order) if any(isinstance(x, str) for x in found) else []
    return {x: float(words.index(str(x))) if words else float(x) for x in found}, words


def _set_axes(
    panel: Axes, x: str, axis: Axis, places: Sequence[float], values: Sequence[float], words: list[str]
) -> None:
    notes = {"x": "", "y": ""}
    distinct = sorted(set(places))
    if words:
        panel.set_xticks(range(len(words)), words)
        panel.set_xlim(-0.5, len(words) - 0.5)
    elif x in LAG_UNITS:
        notes["x"] = figure.scale_with_zero(panel, "x", max(places), LAG_UNITS[x])
    else:
        _set_numbers(panel, distinct)
    if axis.name in LAG_UNITS:
        notes["y"] = figure.scale_with_zero(panel, "y", float(np.nanmax(values)), LAG_UNITS[axis.name])
    elif axis.name == "gradient_variance" and np.nanmax(values) >= _RATIO_FOR_A_LOG_VARIANCE * np.nanmin(values) > 0.0:
        panel.set_yscale("log")
    panel.set_xlabel(", ".join(filter(None, [LABELS.get(x, x.replace("_", " ")), notes["x"]])))
    panel.set_ylabel("\n".join(filter(None, [figure.two_lines(axis.label), notes["y"]])))


def _set_numbers(panel: Axes, distinct: Sequence[float]) -> None:
    """A logarithmic axis for values that span much; ticks at the values themselves where they are few."""
    logarithmic = distinct[0] > 0.0 and distinct[-1] / distinct[0] >= _RATIO_FOR_A_LOG_AXIS
    if logarithmic:
        panel.set_xscale("log")
    places = np.log(distinct) if logarithmic else np.array(distinct)
    if len(distinct) <= _TICKS_AT_MOST and _far_apart(places):
        panel.set_xticks(distinct, [f"{place:g}" for place in distinct])
        panel.xaxis.set_minor_locator(NullLocator())


def _far_apart(places: Floats) -> bool:
    """Whether ticks at increasing places have room for their labels."""
    return bool((np.diff(places) >= _TICKS_APART * (places[-1] - places[0])).all())


def _is_measured(x: str) -> bool:
    return x in LABELS or x in SHARES


# --- the command line -------------------------------------------------------------------------------------------------


def figure_and_table(runs: list[Run], x: str, ys: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """The figure and its numbers.

    Raises:
        NothingToDrawError: no run has x and a y.
    """
    points = make_points(runs, x, ys)
    axes = [Axis(name, LABELS.get(name, name.replace("_", " "))) for name in ys
            if any(np.isfinite(point.y[name]) for point in points)]  # fmt: skip
    for name in sorted({*ys} - {axis.name for axis in axes}) if points else []:
        log.warning("No run has recorded %s: there is no panel for it.", name)
    if not points:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has both {x} and {' or '.join(ys)}.")
    drawn = {point.run.path for point in points}
    missing = [run for run in _relabelled(runs, x) if run.path not in drawn]
    return draw(points, x, axes, missing=missing), make_table(points, x)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    make = partial(figure_and_table, x=chosen.x, ys=list(dict.fromkeys(chosen.y)))
    return cli.write_figure("relation", chosen.roots, chosen.out, make)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.relation", "Draws a quantity of each run against another or a setting.")
    quantities = f"{', '.join((*LABELS, *SHARES))}, or a setting such as n_envs".replace("%", "%%")
    parser.add_argument("--x", required=True, metavar="QUANTITY", help=quantities)
    parser.add_argument("--y", required=True, nargs="+", metavar="QUANTITY", help="a panel each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
