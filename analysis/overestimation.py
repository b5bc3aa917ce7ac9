r"""Over-estimation: max Q against the discounted return that was really obtained from the same states.

    python -m a3c_bench.run -m experiment=catch name=double algo=dqn algo.double=false,true seed=0,1,2,3,4 \
        metrics_interval_frames=1000
    python -m analysis.overestimation runs/double

Writes overestimation.png, overestimation.pdf and overestimation.csv (the same curves as numbers).
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import caption, cli, figure, style
from analysis.aggregate import Floats
from analysis.groups import Band, SeedGroup, group_traces, make_band
from analysis.load import Run

log = logging.getLogger(__name__)

COLUMNS = ("max_q", "discounted_return")  # of metrics.csv
CURVES = (*COLUMNS, "over_estimation")  # their difference
CSV_COLUMNS = ("env", "algo", "label", "n_seeds", "curve", "frames", "value", "low", "high")


@dataclass(frozen=True)
class Trace:
    """What one run estimated, and what it got."""

    run: Run
    frames: Floats  # where each interval in which a game ended does so, [N]
    curves: Mapping[str, Floats]  # by name in CURVES: means over the states of these games, [N]


@dataclass(frozen=True)
class Group(SeedGroup[Trace]):
    """The seeds of one algorithm with one configuration in one environment."""

    bands: Mapping[str, Band]  # by name in CURVES


# --- from runs to curves ----------------------------------------------------------------------------------------------


def make_trace(run: Run) -> Trace | None:
    """The values of one run; None if it has none."""
    table = run.metrics()
    if not set(COLUMNS) <= set(table):
        return None
    known = table[["frames", *COLUMNS]].apply(pd.to_numeric, errors="coerce").dropna()
    frames, max_q, obtained = known.to_numpy(dtype=np.float64).T
    if not len(frames):
        return None
    curves = {"max_q": max_q, "discounted_return": obtained, "over_estimation": max_q - obtained}
    return Trace(run, frames, curves)


def make_groups(runs: Iterable[Run]) -> list[Group]:
    """Groups runs that differ in their seed alone; runs without values and repeated seeds are named and left out."""
    traces = []
    for run in runs:
        trace = make_trace(run)
        if trace is None:
            log.warning("%s estimates no Q, or no game of it has ended: it is not in the figure.", run.path)
        else:
            traces.append(trace)
    return [_with_bands(group) for group in group_traces(traces)]


def _with_bands(group: SeedGroup[Trace]) -> Group:
    bands = {name: make_band([(trace.frames, trace.curves[name]) for trace in group.traces]) for name in CURVES}
    if not len(bands["max_q"].x):
        log.warning("%s in %s has no mean curve: its seeds have no frames in common.", group.name, group.env)
    return Group(group.env, group.algo, group.label, group.traces, bands)


def make_table(groups: Sequence[Group]) -> pd.DataFrame:
    """The mean curves as numbers, one row per grid point."""
    parts = []
    for group in groups:
        fixed = {"env": group.env, "algo": group.algo, "label": group.label, "n_seeds": len(group.traces)}
        for name, band in group.bands.items():
            part = pd.DataFrame({"frames": band.x, "value": band.mean, "low": band.low, "high": band.high})
            parts.append(part.assign(**fixed, curve=name))
    return pd.concat(parts, ignore_index=True)[list(CSV_COLUMNS)]


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(groups: Sequence[Group]) -> Figure:
    """The figure: per environment a row of two panels and a legend, and one caption under all."""
    looks = style.looks([(group.algo, group.label) for group in groups])
    sections = []
    for env in dict.fromkeys(group.env for group in groups):
        row = [group for group in groups if group.env == env]
        legend = [f"{group.name} ({figure.counted_seeds(len(group.traces))})" for group in row]
        sections.append(figure.Section(env, 1, legend, partial(_fill, row=row, looks=looks)))
    return figure.compose(sections, make_caption(groups), style.TWO_COLUMNS)


def _fill(part: SubFigure, row: Sequence[Group], looks: Mapping[tuple[str, str], style.Look]) -> list[Line2D]:
    left, right = part.subplots(1, 2)
    unit, scale = figure.axis_unit("frames", max(trace.frames[-1] for group in row for trace in group.traces))
    for group in row:
        look = looks[group.algo, group.label]
        _draw(left, group, "max_q", scale, look, faint=False)
        _draw(left, group, "discounted_return", scale, look, faint=True)
        _draw(right, group, "over_estimation", scale, look, faint=False)
    right.axhline(0.0, color="0.4", linewidth=0.7)
    left.set_ylabel("discounted return")
    right.set_ylabel("difference")
    left.set_title("max Q (strong) and what was obtained (faint)", fontsize=7.5)
    right.set_title("max Q minus what was obtained", fontsize=7.5)
    for panel in (left, right):
        panel.set(xlabel=unit, xlim=(0.0, None))
        panel.margins(y=0.08)
    return [_handle(group, looks[group.algo, group.label]) for group in row]


def _draw(panel: Axes, group: Group, name: str, scale: float, look: style.Look, faint: bool) -> None:
    line: dict[str, Any] = {"color": look.colour, "linestyle": look.line_style, "alpha": 0.45 if faint else 1.0}
    if group.has_band:
        band = group.bands[name]
        panel.plot(band.x / scale, band.mean, **line)
        shade = 0.08 if faint else 0.18
        panel.fill_between(band.x / scale, band.low, band.high, color=look.colour, alpha=shade, linewidth=0.0)
    else:
        for trace in group.traces:
            panel.plot(trace.frames / scale, trace.curves[name], linewidth=figure.THIN, **line)


def _handle(group: Group, look: style.Look) -> Line2D:
    width = None if group.has_band else figure.THIN
    return Line2D([], [], color=look.colour, linestyle=look.line_style, linewidth=width)


# --- the caption and the command line ---------------------------------------------------------------------------------


def make_caption(groups: Sequence[Group]) -> str:
    """How the figure was made: what is compared, then a line per environment, then the machines."""
    how = [
        "Max Q: mean over the states of the training games that ended in an interval, when they were visited. What was "
        "obtained: the discounted return from the same states to the end, exploration and clipped rewards included. "
        "States whose return a time limit may hide by more than 1% are left out.",
        *caption.averaging(groups),
    ]
    return caption.complete(" ".join(how), groups)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    return cli.write_figure("overestimation", chosen.roots, chosen.out, figure_and_table)


def figure_and_table(runs: list[Run]) -> tuple[Figure, pd.DataFrame]:
    groups = make_groups(runs)
    if not groups:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has estimated Q and finished a game.")
    return draw(groups), make_table(groups)


def _parser() -> argparse.ArgumentParser:
    return cli.parser("python -m analysis.overestimation", "Draws max Q against the return really obtained.")


if __name__ == "__main__":
    sys.exit(main())
