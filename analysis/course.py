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
from analysis.figure import AXES
from analysis.groups import Band, SeedGroup, by_env, collect, make_band, table_of_bands
from analysis.run import Run
from analysis.summary import LABELS

log = logging.getLogger(__name__)

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
class CourseTrace:
    """Curves of one run, by name; a curve that it does not have is missing."""

    run: Run
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class CourseGroup(SeedGroup[CourseTrace]):
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


def make_groups(runs: Iterable[Run], read: Callable[[Run], Mapping[str, Curve]], lacking: str) -> list[CourseGroup]:
    """Groups runs that differ in their seed alone.

    Args:
        runs: to draw; repeated seeds are named and left out, and so are runs without any curve.
        read: from a run to its curves.
        lacking: why a run has none, for the warning.
    """

    def trace(run: Run) -> CourseTrace | None:
        curves = read(run)
        return CourseTrace(run, curves) if curves else None

    found = collect(runs, trace, lambda run: f"{lacking}: it is not in the figure.")
    return [_with_bands(group) for group in found]


def _with_bands(group: SeedGroup[CourseTrace]) -> CourseGroup:
    bands = {}
    for name in dict.fromkeys(name for trace in group.counted for name in trace.curves):
        curves = [trace.curves[name] for trace in group.counted if name in trace.curves]
        bands[name] = make_band(curves, to_the_end=group.is_uneven)
        if not len(bands[name].x):
            log.warning("%s in %s has no mean of %s: its seeds do not overlap.", group.name, group.env, name)
    return CourseGroup.of(group, bands=bands)


def make_table(groups: Sequence[CourseGroup], x_column: str) -> pd.DataFrame:
    """The mean curves as numbers, one row per grid point."""
    parts = [
        band.rows(**group.keys, curve=name, x_axis=x_column) for group in groups for name, band in group.bands.items()
    ]
    return table_of_bands(parts, CSV_COLUMNS)


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(groups: Sequence[CourseGroup], panels: Sequence[Panel], x_column: str, how: str) -> Figure:
    """The figure: per environment rows of two panels and a legend, and one caption under all.

    Args:
        groups: what to draw; not empty.
        panels: each is drawn for every environment.
        x_column: frames or wall_seconds.
        how: sentences on what is drawn, for the caption.
    """
    looks = figure.looks_of(groups)
    sections = []
    for env, here in by_env(groups).items():
        fill = partial(_fill, here=here, panels=panels, x_column=x_column, looks=looks)
        sections.append(figure.Section(env, -(-len(panels) // 2), [group.legend() for group in here], fill))
    text = caption.complete(" ".join([how, *caption.averaging(groups)]), groups)
    return figure.compose(sections, text, figure.width_of(len(panels)))


def _fill(
    part: SubFigure,
    here: Sequence[CourseGroup],
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
                band = group.bands.get(name) if group.has_band else None
                traces = group.others if group.has_band else group.traces
                alone = [trace.curves[name] for trace in traces if name in trace.curves]
                figure.draw_seeds(axes, scale, band, alone, looks[group.method], _FAINT if i else 1.0)
        if panel.zero_line:
            axes.axhline(0.0, color="0.4", linewidth=0.7)
        axes.set_title(panel.title, fontsize=7.5)
        axes.set(xlabel=unit, xlim=(0.0, None), ylabel=panel.y_label)
        axes.margins(y=0.08)
        if panel.from_zero:
            axes.set_ylim(bottom=0.0)
    return [figure.handle(looks[group.method], thin=not group.has_band) for group in here]


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
