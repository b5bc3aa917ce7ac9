"""Learning curves: return against frames and against wall-clock time, one row of panels per environment.

    python -m analysis.curves runs/demo
    python -m analysis.curves runs/before runs/after --x wall_clock --out figures

Writes curves.png, curves.pdf and curves.csv (the same curves as numbers).
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import aggregate, caption, cli, figure, published, style
from analysis.aggregate import Floats
from analysis.figure import AXES
from analysis.groups import NO_BAND, Band, SeedGroup, by_env, collect, make_band, table_of_bands
from analysis.outcome import FAILED, RULE, Outcome, counting, mean_of, outcome
from analysis.run import Run
from analysis.summary import starts_of

log = logging.getLogger(__name__)

CSV_COLUMNS = ("env", "algo", "label", "n_seeds", "x_axis", "x", "mean_return", "low_return", "high_return")


@dataclass(frozen=True)
class ReturnTrace:
    """Training of one run."""

    run: Run
    x: Mapping[str, Floats]  # by column of AXES: where each training game ended, [N]
    returns: Floats  # rolling mean over the last `window` training games, [N]
    outcome: Outcome
    evaluated: bool = False  # no training game has ended: x and returns are those of its evaluations

    def curve(self, column: str) -> tuple[Floats, Floats]:
        """Increasing x and the rolling mean there."""
        return aggregate.last_of_each(self.x[column], self.returns)


@dataclass(frozen=True)
class ReturnGroup(SeedGroup[ReturnTrace]):
    """The seeds of one algorithm with one configuration in one environment."""

    bands: Mapping[str, Band]  # by column of AXES

    def reached(self) -> list[Outcome]:
        """What the seeds reached that count, those without a curve included."""
        outcomes = [*(trace.outcome for trace in self.traces), *(outcome(run) for run in self.missing)]
        known = [(run, one) for run, one in zip(self.all_runs, outcomes, strict=True) if np.isfinite(one.value)]
        which = counting(run.ending for run, _ in known)
        return [one for (_, one), counts in zip(known, which, strict=True) if counts]

    def lines(self, counted: bool) -> list[ReturnTrace]:
        """The seeds with a line: those in the mean, or those beside it."""
        drawn = self.counted if counted else self.others
        return [trace for trace in drawn if not trace.evaluated or all(one.evaluated for one in self.traces)]


@dataclass(frozen=True)
class PublishedScore:
    """A published score of the same game, from the same kind of starts as our evaluations."""

    family: str
    score: float
    text: str


# --- from runs to curves ----------------------------------------------------------------------------------------------


def make_trace(run: Run, window: int) -> ReturnTrace | None:
    """The learning curve of one run; its evaluations where no training game has ended; None where there is neither."""
    table, evaluations = run.training_returns(window), run.evaluations()
    evaluated = table.empty
    if evaluated:
        means = evaluations.groupby("frames").agg({"wall_seconds": "max", "episode_return": "mean"}).reset_index()
        table = means.rename(columns={"episode_return": "mean_return"})
    if table.empty:
        return None
    return ReturnTrace(
        run=run,
        x={column: np.maximum.accumulate(table[column].to_numpy(dtype=np.float64)) for column in AXES.values()},
        returns=table["mean_return"].to_numpy(dtype=np.float64),
        outcome=outcome(run, evaluations),
        evaluated=evaluated,
    )


def make_groups(runs: Iterable[Run], window: int) -> list[ReturnGroup]:
    """Groups runs that differ in their seed alone; runs without a game and repeated seeds are named and not drawn."""
    lacking = "has no finished training game yet: it is not in the figure."
    groups = [_with_bands(group) for group in collect(runs, partial(make_trace, window=window), lambda run: lacking)]
    for group in groups:
        drawn = {trace.run.path for counted in (True, False) for trace in group.lines(counted)}
        for run in (run for run in group.runs if run.path not in drawn):
            log.warning("%s has no finished training game: it has no line, but its evaluation counts.", run.path)
    return groups


def _with_bands(group: SeedGroup[ReturnTrace]) -> ReturnGroup:
    whole = ReturnGroup.of(group, bands={})
    lines = whole.lines(counted=True)
    bands = {
        column: make_band([trace.curve(column) for trace in lines], to_the_end=group.is_uneven) if lines else NO_BAND
        for column in AXES.values()
    }
    if not all(len(band.x) for band in bands.values()):
        key = " ".join(filter(None, group.keys.values()))
        log.warning("%s has no mean curve: one seed ends before another's first game.", key)
    return replace(whole, bands=bands)


def make_table(groups: Sequence[ReturnGroup], axes: Sequence[str]) -> pd.DataFrame:
    """The mean curves as numbers, one row per grid point; x is in frames or seconds, as x_axis says."""
    columns = [AXES[axis] for axis in axes]
    parts = [group.bands[column].rows(**group.keys, x_axis=column) for group in groups for column in columns]
    names = {"value": "mean_return", "low": "low_return", "high": "high_return"}
    return table_of_bands([part.rename(columns=names) for part in parts], CSV_COLUMNS)


def find_references(groups: Sequence[ReturnGroup]) -> list[PublishedScore]:
    """Published scores for an environment's groups; none beside Atari, or where runs start games in several ways."""
    runs = [run for group in groups for run in group.runs]
    starts = {starts_of(run, run.evaluations()) for run in runs}
    if len(starts) > 1:
        return []
    rows = published.references(runs[0].config["env"].get("game"), starts.pop())
    return [
        PublishedScore(
            published.family(row.method), row.score, f"published: {row.method}, {row.score:g}{_doubt(row.checked)}"
        )
        for row in rows.itertuples()
    ]


def _doubt(checked: bool) -> str:
    return "" if checked else " ?"


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(groups: Sequence[ReturnGroup], axes: Sequence[str], window: int, without: Sequence[Run] = ()) -> Figure:
    """The figure: per environment a row with a panel per x axis and a legend, and one caption under all.

    Args:
        groups: what to draw; not empty.
        axes: keys of AXES, a panel each.
        window: training games in the rolling mean, for axis and caption.
        without: runs of methods of which nothing can be drawn.
    """
    looks = figure.looks_of(groups)
    sections = []
    for env, row in by_env(groups).items():
        references = find_references(row)
        fill = partial(_fill, row=row, references=references, axes=axes, window=window, looks=looks)
        legend = [*(_legend_text(group) for group in row), *(reference.text for reference in references)]
        sections.append(figure.Section(env, n_rows=1, legend=legend, fill=fill))
    return figure.compose(sections, make_caption(groups, axes, window, without), figure.width_of(len(axes)))


def _fill(
    part: SubFigure,
    row: Sequence[ReturnGroup],
    references: Sequence[PublishedScore],
    axes: Sequence[str],
    window: int,
    looks: Mapping[tuple[str, str], style.Look],
) -> list[Line2D]:
    panels = part.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    lines = [_look_of_reference(reference) for reference in references]
    for panel, axis in zip(panels, axes, strict=True):
        unit, scale = figure.axis_unit(AXES[axis], _largest_x(row, AXES[axis]))
        for group in row:
            _draw_group(panel, group, AXES[axis], scale, looks[group.method])
        for reference, line in zip(references, lines, strict=True):
            panel.axhline(reference.score, **line)
        panel.set_xlabel(unit)
        panel.set_xlim(left=0.0)
        panel.margins(y=0.08)
    panels[0].set_ylabel(f"training return,\nmean of last {window} games" if window > 1 else "training return")
    return [_handle(group, looks[group.method]) for group in row] + [Line2D([], [], **line) for line in lines]


def _look_of_reference(reference: PublishedScore) -> dict[str, Any]:
    look = style.looks([(reference.family.lower(), "")])[reference.family.lower(), ""]
    return {"color": look.colour, "linestyle": (0, (1.0, 2.5)), "linewidth": 1.0, "zorder": 1}


def _draw_group(panel: Axes, group: ReturnGroup, column: str, scale: float, look: style.Look) -> None:
    alone = group.lines(counted=False) + ([] if group.has_band else group.lines(counted=True))
    band = group.bands[column] if group.has_band else None
    figure.draw_seeds(panel, scale, band, [trace.curve(column) for trace in alone], look)
    for trace in group.traces:
        if trace.run.ending in FAILED:
            figure.draw_end(panel, trace.x[column][-1] / scale, trace.returns[-1], look)
    for x_end, mean_return in _evaluation_points(group, column):
        panel.plot(x_end / scale, mean_return, **figure.marker(look), clip_on=False, zorder=5)


def _evaluation_points(group: ReturnGroup, column: str) -> list[tuple[float, float]]:
    """Where the markers lie: at what all seeds together reached, or each of them where they are few."""
    if not group.has_band:
        known = [trace.outcome for trace in group.counted if trace.outcome.is_evaluation]
        return [(getattr(one, column), one.value) for one in known]
    reached = group.reached()
    places = [getattr(one, column) for one in reached if one.is_evaluation]
    ends = [getattr(one, column) for one in reached if one.kind == "final evaluation"] or places
    return [(float(np.mean(ends)), mean_of(reached))] if ends else []


def _handle(group: ReturnGroup, look: style.Look) -> Line2D:
    return figure.handle(look, not group.has_band, bool(_evaluation_points(group, "frames")))


def _legend_text(group: ReturnGroup) -> str:
    reached = group.reached()
    text = group.legend(len(reached))
    if all(one.kind == "final evaluation" for one in reached):
        return f"{text}, final evaluation {mean_of(reached):,.1f}"
    if group.library:
        return f"{text}, training games only"
    settled = all(trace.run.state == "finished" for trace in group.counted)  # they were never evaluated
    return text if settled else f"{text}, reached {mean_of(reached):,.1f}"


def _largest_x(groups: Iterable[ReturnGroup], column: str) -> float:
    traces = [trace for group in groups for trace in group.traces]
    return max(max(trace.x[column][-1], np.nan_to_num(getattr(trace.outcome, column))) for trace in traces)


# --- the caption and the command line ---------------------------------------------------------------------------------


def make_caption(groups: Sequence[ReturnGroup], axes: Sequence[str], window: int, without: Sequence[Run] = ()) -> str:
    """How the figure was made: a line on what is drawn, then one per environment, then the machines."""
    sentences = [
        f"Training return: mean of a run's last {window} training games, or of those so far.",
        *caption.averaging(groups),
    ]
    runs = [run for group in groups for run in group.all_runs]
    reached = [one for group in groups if not group.library for one in group.reached()]
    games = sorted({one.n_games for one in reached if one.is_evaluation})
    if games:
        counts = " or ".join(map(str, games))
        sentences.append(f"Marker: {_marked(reached)}, mean of {counts} games per run.")
    if any(run.ending in FAILED for run in runs):
        sentences.append(f"x: where a run failed. {RULE}")
    if any(trace.evaluated for group in groups for trace in group.traces):
        sentences.append("Where no training game has ended, the line is of the run's evaluations.")
    if any(find_references(row) for row in by_env(groups).values()):
        sentences.append(
            "Wide dots: published evaluation scores from no-op starts, after the training that their papers had; "
            "? : not checked against its source."
        )
    if without:
        sentences.append(f"Not drawn, as no game of theirs ended: {caption.named(without)}.")
    if "wall_clock" in axes:
        sentences.append("Time is training time, without evaluation.")
    return caption.complete(" ".join(sentences), groups)


def _marked(reached: Sequence[Outcome]) -> str:
    final = all(one.kind == "final evaluation" for one in reached)
    return "final evaluation" if final else "what was reached, by the final evaluation where there is one"


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    axes = list(AXES) if chosen.x == "both" else [chosen.x]
    make = partial(figure_and_table, axes=axes, window=chosen.window)
    return cli.write_figure("curves", chosen.roots, chosen.out, make)


def figure_and_table(runs: list[Run], axes: Sequence[str], window: int) -> tuple[Figure, pd.DataFrame]:
    groups = make_groups(runs, window)
    if not groups:
        raise cli.NothingToDrawError(
            f"None of the {len(runs)} runs found has finished a training game yet, or was evaluated."
        )
    shown = {run.path for group in groups for run in group.all_runs}
    return draw(groups, axes, window, [run for run in runs if run.path not in shown]), make_table(groups, axes)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.curves", "Draws return against frames and against wall-clock time.")
    parser.add_argument("--x", choices=(*AXES, "both"), default="both", help="horizontal axis (default both)")
    parser.add_argument(
        "--window", type=cli.positive, default=100, metavar="GAMES", help="training games in the mean (default 100)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
