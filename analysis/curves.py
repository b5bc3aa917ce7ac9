"""Learning curves: return against frames and against wall-clock time, one row of panels per environment.

    python -m analysis.curves runs/demo
    python -m analysis.curves runs/before runs/after --x wall_clock --out figures

Writes curves.png, curves.pdf and curves.csv (the same curves as numbers).
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

from analysis import aggregate, caption, cli, figure, published, style
from analysis.aggregate import Floats
from analysis.groups import Band, SeedGroup, group_traces, make_band
from analysis.load import Run
from analysis.summary import starts_of

log = logging.getLogger(__name__)

AXES = {"frames": "frames", "wall_clock": "wall_seconds"}  # --x, and the column it stands for
CSV_COLUMNS = ("env", "algo", "label", "n_seeds", "x_axis", "x", "mean_return", "low_return", "high_return")


@dataclass(frozen=True)
class Trace:
    """Training of one run."""

    run: Run
    x: Mapping[str, Floats]  # by column of AXES: where each training game ended, [N]
    returns: Floats  # rolling mean over the last `window` training games, [N]
    evaluation: Mapping[str, float]  # of the final one: frames, wall_seconds, mean_return, games; empty without one

    def curve(self, column: str) -> tuple[Floats, Floats]:
        """Increasing x and the rolling mean there."""
        return aggregate.last_of_each(self.x[column], self.returns)


@dataclass(frozen=True)
class Group(SeedGroup[Trace]):
    """The seeds of one algorithm with one configuration in one environment."""

    bands: Mapping[str, Band]  # by column of AXES

    def final_evaluation(self, quantity: str) -> float:
        """Mean over seeds of a figure of their final evaluations; NaN without any."""
        known = [trace.evaluation[quantity] for trace in self.traces if trace.evaluation]
        return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Reference:
    """A published score of the same game, from the same kind of starts as our evaluations."""

    family: str
    score: float
    text: str


# --- from runs to curves ----------------------------------------------------------------------------------------------


def make_trace(run: Run, window: int) -> Trace | None:
    """The learning curve of one run; None if it has not finished a training game."""
    table = run.training_returns(window)
    if table.empty:
        return None
    return Trace(
        run=run,
        x={column: np.maximum.accumulate(table[column].to_numpy(dtype=np.float64)) for column in AXES.values()},
        returns=table["mean_return"].to_numpy(dtype=np.float64),
        evaluation=_final_evaluation(run.evaluations()),
    )


def make_groups(runs: Iterable[Run], window: int) -> list[Group]:
    """Groups runs that differ in their seed alone; runs without a training game and repeated seeds are left out."""
    traces = []
    for run in runs:
        trace = make_trace(run, window)
        if trace is None:
            log.warning("%s has no finished training game yet: it is not in the figure.", run.path)
        else:
            traces.append(trace)
    return [_with_bands(group) for group in group_traces(traces)]


def _with_bands(group: SeedGroup[Trace]) -> Group:
    bands = {column: make_band([trace.curve(column) for trace in group.traces]) for column in AXES.values()}
    if not all(len(band.x) for band in bands.values()):
        key = (group.env, group.algo, group.label)
        log.warning("%s has no mean curve: one seed ends before another's first game.", " ".join(filter(None, key)))
    return Group(group.env, group.algo, group.label, group.traces, bands)


def make_table(groups: Sequence[Group], axes: Sequence[str]) -> pd.DataFrame:
    """The mean curves as numbers, one row per grid point; x is in frames or seconds, as x_axis says."""
    parts = []
    for group in groups:
        for axis in axes:
            band = group.bands[AXES[axis]]
            part = pd.DataFrame(
                {"x": band.x, "mean_return": band.mean, "low_return": band.low, "high_return": band.high}
            )
            fixed = {"env": group.env, "algo": group.algo, "label": group.label, "n_seeds": len(group.traces)}
            parts.append(part.assign(**fixed, x_axis=AXES[axis]))
    return pd.concat(parts, ignore_index=True)[list(CSV_COLUMNS)]


def find_references(groups: Sequence[Group]) -> list[Reference]:
    """Published scores for an environment's groups; none beside Atari, or where runs start games in several ways."""
    runs = [run for group in groups for run in group.runs]
    starts = {starts_of(run, run.evaluations()) for run in runs}
    if len(starts) > 1:
        return []
    rows = published.references(runs[0].config["env"].get("game"), starts.pop())
    return [
        Reference(
            published.family(row.method), row.score, f"published: {row.method}, {row.score:g}{_doubt(row.checked)}"
        )
        for row in rows.itertuples()
    ]


def _doubt(checked: bool) -> str:
    return "" if checked else " ?"


def _final_evaluation(games: pd.DataFrame) -> dict[str, float]:
    final = games[games["final"]]
    if final.empty:
        return {}
    return {
        "frames": float(final["frames"].max()),
        "wall_seconds": float(final["wall_seconds"].max()),
        "mean_return": float(final["episode_return"].mean()),
        "games": float(len(final)),
    }


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(groups: Sequence[Group], axes: Sequence[str], window: int) -> Figure:
    """The figure: per environment a row with a panel per x axis and a legend, and one caption under all.

    Args:
        groups: what to draw; not empty.
        axes: keys of AXES, a panel each.
        window: training games in the rolling mean, for axis and caption.
    """
    looks = style.looks([(group.algo, group.label) for group in groups])
    sections = []
    for env in dict.fromkeys(group.env for group in groups):
        row = [group for group in groups if group.env == env]
        references = find_references(row)
        fill = partial(_fill, row=row, references=references, axes=axes, window=window, looks=looks)
        legend = [*(_legend_text(group) for group in row), *(reference.text for reference in references)]
        sections.append(figure.Section(env, n_rows=1, legend=legend, fill=fill))
    width = style.TWO_COLUMNS if len(axes) > 1 else style.ONE_COLUMN
    return figure.compose(sections, make_caption(groups, axes, window), width)


def _fill(
    part: SubFigure,
    row: Sequence[Group],
    references: Sequence[Reference],
    axes: Sequence[str],
    window: int,
    looks: Mapping[tuple[str, str], style.Look],
) -> list[Line2D]:
    panels = part.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    lines = [_look_of_reference(reference) for reference in references]
    for panel, axis in zip(panels, axes, strict=True):
        unit, scale = figure.axis_unit(AXES[axis], _largest_x(row, AXES[axis]))
        for group in row:
            _draw_group(panel, group, AXES[axis], scale, looks[group.algo, group.label])
        for reference, line in zip(references, lines, strict=True):
            panel.axhline(reference.score, **line)
        panel.set_xlabel(unit)
        panel.set_xlim(left=0.0)
        panel.margins(y=0.08)
    panels[0].set_ylabel(f"training return,\nmean of last {window} games" if window > 1 else "training return")
    return [_handle(group, looks[group.algo, group.label]) for group in row] + [
        Line2D([], [], **line) for line in lines
    ]


def _look_of_reference(reference: Reference) -> dict[str, Any]:
    look = style.looks([(reference.family.lower(), "")])[reference.family.lower(), ""]
    return {"color": look.colour, "linestyle": (0, (1.0, 2.5)), "linewidth": 1.0, "zorder": 1}


def _draw_group(panel: Axes, group: Group, column: str, scale: float, look: style.Look) -> None:
    if group.has_band:
        figure.draw_band(panel, group.bands[column].x / scale, group.bands[column], look)
        points = [(group.final_evaluation(column), group.final_evaluation("mean_return"))]
    else:
        for trace in group.traces:
            alone = make_band([trace.curve(column)])
            figure.draw_band(panel, alone.x / scale, alone, look, thin=True)
        known = [trace.evaluation for trace in group.traces if trace.evaluation]
        points = [(evaluation[column], evaluation["mean_return"]) for evaluation in known]
    for x_end, mean_return in points:
        panel.plot(x_end / scale, mean_return, **figure.marker(look), clip_on=False, zorder=5)


def _handle(group: Group, look: style.Look) -> Line2D:
    return figure.handle(look, not group.has_band, any(trace.evaluation for trace in group.traces))


def _legend_text(group: Group) -> str:
    value = group.final_evaluation("mean_return")
    text = f"{group.name} ({figure.counted_seeds(len(group.traces))})"
    return text + (f", final evaluation {value:,.1f}" if np.isfinite(value) else "")


def _largest_x(groups: Iterable[Group], column: str) -> float:
    traces = [trace for group in groups for trace in group.traces]
    return max(max(trace.x[column][-1], trace.evaluation.get(column, 0.0)) for trace in traces)


# --- the caption and the command line ---------------------------------------------------------------------------------


def make_caption(groups: Sequence[Group], axes: Sequence[str], window: int) -> str:
    """How the figure was made: a line on what is drawn, then one per environment, then the machines."""
    sentences = [
        f"Training return: mean of a run's last {window} training games, or of those so far.",
        *caption.averaging(groups),
    ]
    games = sorted({trace.evaluation["games"] for group in groups for trace in group.traces if trace.evaluation})
    if games:
        counts = " or ".join(f"{count:.0f}" for count in games)
        sentences.append(f"Marker: final evaluation, mean of {counts} games per run.")
    envs = {group.env for group in groups}
    if any(find_references([group for group in groups if group.env == env]) for env in envs):
        sentences.append(
            "Wide dots: published evaluation scores from no-op starts, after the training that their papers had; "
            "? : not checked against its source."
        )
    if "wall_clock" in axes:
        sentences.append("Time is training time, without evaluation.")
    return caption.complete(" ".join(sentences), groups)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    axes = list(AXES) if chosen.x == "both" else [chosen.x]
    make = partial(figure_and_table, axes=axes, window=chosen.window)
    return cli.write_figure("curves", chosen.roots, chosen.out, make)


def figure_and_table(runs: list[Run], axes: Sequence[str], window: int) -> tuple[Figure, pd.DataFrame]:
    groups = make_groups(runs, window)
    if not groups:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has finished a training game yet.")
    return draw(groups, axes, window), make_table(groups, axes)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.curves", "Draws return against frames and against wall-clock time.")
    parser.add_argument("--x", choices=(*AXES, "both"), default="both", help="horizontal axis (default both)")
    parser.add_argument(
        "--window", type=cli.positive, default=100, metavar="GAMES", help="training games in the mean (default 100)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
