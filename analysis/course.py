"""Any column of metrics.csv against frames or wall-clock time: one row of panels per environment.

    python -m analysis.course runs/demo --columns entropy_nats explained_variance
    python -m analysis.course runs/ga3c --columns training_queue_depth --x wall_clock

Writes course.png, course.pdf and course.csv (the same curves as numbers). docs/metrics.md defines the columns.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import caption, cli, figure, style
from analysis.aggregate import Floats, last_of_each
from analysis.groups import Band, SeedGroup, group_traces, make_band
from analysis.run import Run
from analysis.summary import LABELS

log = logging.getLogger(__name__)

AXES = {"frames": "frames", "wall_clock": "wall_seconds"}  # --x, and the column it stands for
CSV_COLUMNS = ("env", "algo", "label", "n_seeds", "curve", "x_axis", "x", "value", "low", "high")
_FAINT = 0.45  # opacity
_AXIS_LABELS = LABELS | {  # other columns by their names
    "entropy_nats": "entropy, nats",
    "learning_rate": "learning rate",
    "memory_mib": "memory, MiB",
}

Curve = tuple[Floats, Floats]  # increasing x and y, [N] each


@dataclass(frozen=True)
class Panel:
    """What is drawn together."""

    title: str
    y_label: str
    curves: Sequence[str]  # names: the first is drawn strong, others faint
    zero_line: bool = False
    from_zero: bool = False  # so that growth shows in proportion


@dataclass(frozen=True)
class Trace:
    """Curves of one run, by name; a curve that it does not have is missing."""

    run: Run
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class Group(SeedGroup[Trace]):
    """The seeds of one algorithm with one configuration in one environment."""

    bands: Mapping[str, Band]  # by curve, of the seeds that have it


# --- from runs to curves ----------------------------------------------------------------------------------------------


def read_columns(table: pd.DataFrame, x_column: str, columns: Iterable[str]) -> dict[str, Curve]:
    """The curves of a table, rows without a value left out; a column without any value is missing."""
    curves = {}
    for column in columns:
        if column in table and x_column in table:
            pair = table[[x_column, column]].apply(pd.to_numeric, errors="coerce").dropna()
            x, y = pair.sort_values(x_column, kind="stable").to_numpy(dtype=np.float64).T
            if len(x):
                curves[column] = last_of_each(x, y)
    return curves


def make_groups(runs: Iterable[Run], read: Callable[[Run], Mapping[str, Curve]], lacking: str) -> list[Group]:
    """Groups runs that differ in their seed alone.

    Args:
        runs: to draw; repeated seeds are named and left out, and so are runs without any curve.
        read: from a run to its curves.
        lacking: why a run has none, for the warning.
    """
    traces, missing = [], []
    for run in runs:
        curves = read(run)
        if curves:
            traces.append(Trace(run, curves))
        else:
            missing.append(run)
            log.warning("%s %s: it is not in the figure.", run.path, lacking)
    return [_with_bands(group) for group in group_traces(traces, missing)]


def _with_bands(group: SeedGroup[Trace]) -> Group:
    bands = {}
    for name in dict.fromkeys(name for trace in group.counted for name in trace.curves):
        curves = [trace.curves[name] for trace in group.counted if name in trace.curves]
        bands[name] = make_band(curves, to_the_end=group.is_uneven)
        if not len(bands[name].x):
            log.warning("%s in %s has no mean of %s: its seeds do not overlap.", group.name, group.env, name)
    return Group(group.env, group.algo, group.label, group.traces, bands, missing=group.missing)


def make_table(groups: Sequence[Group], x_column: str) -> pd.DataFrame:
    """The mean curves as numbers, one row per grid point."""
    parts = []
    for group in groups:
        fixed = {"env": group.env, "algo": group.algo, "label": group.label}
        for name, band in group.bands.items():
            part = pd.DataFrame({"x": band.x, "value": band.mean, "low": band.low, "high": band.high})
            parts.append(part.assign(**fixed, n_seeds=band.n.astype(int), curve=name, x_axis=x_column))
    return pd.concat(parts, ignore_index=True)[list(CSV_COLUMNS)]


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(groups: Sequence[Group], panels: Sequence[Panel], x_column: str, how: str) -> Figure:
    """The figure: per environment rows of two panels and a legend, and one caption under all.

    Args:
        groups: what to draw; not empty.
        panels: each is drawn for every environment.
        x_column: frames or wall_seconds.
        how: sentences on what is drawn, for the caption.
    """
    looks = style.looks([(group.algo, group.label) for group in groups])
    sections = []
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env]
        legend = [f"{group.name} ({group.seeds()})" for group in here]
        fill = partial(_fill, here=here, panels=panels, x_column=x_column, looks=looks)
        sections.append(figure.Section(env, -(-len(panels) // 2), legend, fill))
    width = style.TWO_COLUMNS if len(panels) > 1 else style.ONE_COLUMN
    return figure.compose(sections, caption.complete(" ".join([how, *caption.averaging(groups)]), groups), width)


def _fill(
    part: SubFigure,
    here: Sequence[Group],
    panels: Sequence[Panel],
    x_column: str,
    looks: Mapping[tuple[str, str], style.Look],
) -> list[Line2D]:
    largest = max(x[-1] for group in here for trace in group.traces for x, _ in trace.curves.values())
    unit, scale = figure.axis_unit(x_column, largest)
    for axes, panel in zip(figure.grid(part, len(panels), 2), panels, strict=True):
        for group in here:
            known = {name for trace in group.traces for name in trace.curves}
            for i, name in enumerate(name for name in panel.curves if name in known):
                look, opacity = looks[group.algo, group.label], _FAINT if i else 1.0
                if group.has_band and name in group.bands:
                    figure.draw_band(axes, group.bands[name].x / scale, group.bands[name], look, opacity)
                for trace in group.others if group.has_band else group.traces:
                    if name in trace.curves:
                        alone = make_band([trace.curves[name]])
                        figure.draw_band(axes, alone.x / scale, alone, look, opacity, thin=True)
        if panel.zero_line:
            axes.axhline(0.0, color="0.4", linewidth=0.7)
        axes.set_title(panel.title, fontsize=7.5)
        axes.set(xlabel=unit, xlim=(0.0, None), ylabel=panel.y_label)
        axes.margins(y=0.08)
        if panel.from_zero:
            axes.set_ylim(bottom=0.0)
    return [figure.handle(looks[group.algo, group.label], thin=not group.has_band) for group in here]


# --- the command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    make = partial(figure_and_table, columns=list(dict.fromkeys(chosen.columns)), x_column=AXES[chosen.x])
    return cli.write_figure("course", chosen.roots, chosen.out, make)


def figure_and_table(runs: list[Run], columns: Sequence[str], x_column: str) -> tuple[Figure, pd.DataFrame]:
    """Columns of metrics.csv, a panel each.

    Raises:
        NothingToDrawError: no run has any of them.
    """
    words = " or ".join(columns)
    groups = make_groups(
        runs, lambda run: read_columns(run.metrics(), x_column, columns), f"has no {words} in its metrics.csv"
    )
    if not groups:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has {words} in its metrics.csv.")
    panels = [
        Panel(column, _AXIS_LABELS.get(column, column.replace("_", " ")), [column], from_zero=column == "memory_mib")
        for column in columns
    ]
    how = f"{', '.join(columns)}: of each interval of training, at its end."
    return draw(groups, panels, x_column, how), make_table(groups, x_column)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.course", "Draws columns of metrics.csv against frames or time.")
    parser.add_argument("--columns", nargs="+", required=True, metavar="COLUMN", help="of metrics.csv, a panel each")
    parser.add_argument("--x", choices=AXES, default="frames", help="horizontal axis (default frames)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
