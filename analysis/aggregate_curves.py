"""Aggregates over games, over training: human-normalised return against frames and wall-clock time.

    python -m analysis.aggregate_curves runs/atari_paac_games
    python -m analysis.aggregate_curves runs/atari57 cleanrl/runs --x frames

Writes aggregate_curves.png, aggregate_curves.pdf and aggregate_curves.csv: the interquartile mean and the optimality
gap of Agarwal et al. (2021) at each point, over all runs of all games that every method has.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import aggregate, caption, cli, figure, published, statistics, style
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.curves import ReturnTrace, make_trace
from analysis.figure import AXES
from analysis.groups import NO_BAND, Band, SeedGroup, group_traces, in_legend_order, table_of_bands
from analysis.outcome import FAILED, TRAINING_GAMES
from analysis.run import Run
from analysis.statistics import Places
from analysis.summary import starts_of

log = logging.getLogger(__name__)

CSV_COLUMNS = ("algo", "label", "n_games", "n_runs", "curve", "x_axis", "x", "value", "low", "high")
CURVES = {"iqm": "IQM of human-normalised\ntraining return, %", "optimality_gap": "optimality gap, %"}
GRID_POINTS = 50  # each is a bootstrap of its own

Group = SeedGroup[ReturnTrace]


@dataclass(frozen=True)
class Method:
    """One algorithm with one configuration, over all games."""

    groups: Mapping[str, Group]  # by game
    bands: Mapping[tuple[str, str], Band]  # by key of CURVES and column of AXES

    @property
    def first(self) -> Group:
        """Of one of its games."""
        return next(iter(self.groups.values()))

    @property
    def n_runs(self) -> int:
        """How many runs the curves are of."""
        return sum(len(group.counted) for group in self.groups.values())

    @property
    def legend(self) -> str:
        """Its name, and how many runs it is of."""
        counts = sorted({len(group.counted) for group in self.groups.values()})
        seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        return f"{self.first.name} ({seeds} seed{'' if counts[-1] == 1 else 's'} per game)"


# --- from runs to curves ----------------------------------------------------------------------------------------------


def make_methods(runs: Iterable[Run], window: int = TRAINING_GAMES) -> tuple[list[Method], list[str]]:
    """The curves of every method, and the games that some methods lack, which are left out.

    Runs in environments without human and random scores, and those without a training game, are left out.
    """
    traces, lacking = [], []
    for run in runs:
        if (scores := _random_and_human(run)) is None:
            continue
        trace = make_trace(run, window)
        if trace is None or trace.evaluated:
            lacking.append(run)
        else:
            percent = statistics.human_normalised(trace.returns, *map(np.asarray, scores))
            traces.append(replace(trace, returns=percent))
    groups = group_traces(traces, lacking)
    of_method: dict[tuple[str, str], dict[str, Group]] = {}
    for group in groups:
        of_method.setdefault(group.method, {})[group.env] = group
    games = sorted(set.intersection(*(set(own) for own in of_method.values()))) if of_method else []
    missing = sorted({game for own in of_method.values() for game in own} - set(games))
    methods = []
    for _, *method in in_legend_order(("", *key) for key in of_method):
        own = of_method[method[0], method[1]]
        methods.append(_make_method({game: own[game] for game in games}))
    return methods if games else [], missing


def _random_and_human(run: Run) -> tuple[float, float] | None:
    """Random and human score of a run's game, for how its games start."""
    game = run.config["env"].get("game")
    return None if game is None else published.random_and_human(str(game), starts_of(run, run.evaluations()))


def _make_method(groups: Mapping[str, Group]) -> Method:
    bands: dict[tuple[str, str], Band] = {}
    for column in AXES.values():
        bands |= {(curve, column): band for curve, band in _bands(list(groups.values()), column).items()}
    return Method(groups, bands)


def _bands(groups: Sequence[Group], column: str) -> dict[str, Band]:
    """IQM and optimality gap against one axis, where every run has a return; a failed one keeps the last it had."""
    curves = [[trace.curve(column) for trace in group.counted] for group in groups]
    failed = [[trace.run.ending in FAILED for trace in group.counted] for group in groups]
    ends = [(x[-1], over) for game, overs in zip(curves, failed, strict=True) for (x, _), over in
            zip(game, overs, strict=True)]  # fmt: skip
    goes_on = [end for end, over in ends if not over] or [max(end for end, _ in ends)]
    starts = np.array([x[0] for game in curves for x, _ in game])
    grid = aggregate.common_grid(starts, np.array(goes_on), GRID_POINTS)
    if not len(grid):
        log.warning("%s has no common part: one run ends before another's first game.", groups[0].name)
        return dict.fromkeys(CURVES, NO_BAND)
    values = [np.stack([np.interp(grid, x, y) for x, y in game]) for game in curves]  # [S, G] for each game
    estimate = statistics.bootstrap_seeds(partial(_aggregates, values), *map(len, values))
    return {
        curve: Band.of_estimate(grid, *(part[:, i] for part in (estimate.value, estimate.low, estimate.high)))
        for i, curve in enumerate(CURVES)
    }


def _aggregates(values: Sequence[Floats], *drawn: Places) -> Floats:
    """CURVES at each point, of the seeds [..., S] that were drawn for each game. [S, G] each -> [..., G, 2]"""
    points = []
    for g in range(values[0].shape[1]):
        tasks = [game[:, g][seeds] for game, seeds in zip(values, drawn, strict=True)]
        points.append(np.stack([statistics.iqm(tasks), statistics.optimality_gap(tasks)], axis=-1))
    return np.stack(points, axis=-2)


def make_table(methods: Sequence[Method], axes: Sequence[str]) -> pd.DataFrame:
    """The curves as numbers; x is in frames or seconds, as x_axis says."""
    parts = [
        method.bands[curve, AXES[axis]].rows(
            algo=method.first.algo, label=method.first.label, n_games=len(method.groups), n_runs=method.n_runs,
            curve=curve, x_axis=AXES[axis],
        )
        for method in methods for curve in CURVES for axis in axes
    ]  # fmt: skip
    return table_of_bands(parts, CSV_COLUMNS)


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(
    methods: Sequence[Method],
    missing: Sequence[str] = (),
    axes: Sequence[str] = tuple(AXES),
    window: int = TRAINING_GAMES,
) -> Figure:
    """The figure: interquartile mean above, optimality gap below, a column per axis."""
    looks = style.looks([method.first.method for method in methods])
    games = list(methods[0].groups)
    fill = partial(_fill, methods=methods, axes=axes, looks=looks)
    section = figure.Section(f"{len(games)} games", len(CURVES), [method.legend for method in methods], fill)
    groups = [group for method in methods for group in method.groups.values()]
    return figure.compose(
        [section], caption.complete(_how(methods, games, missing, window), groups, "game"), figure.width_of(len(axes))
    )


def _how(methods: Sequence[Method], games: Sequence[str], missing: Sequence[str], window: int) -> str:
    sentences = [
        f"Training return, mean of a run's last {window} training games (no evaluation), as 100 (return - random) / "
        "(human - random). IQM: mean of the middle half of all runs of all games. Optimality gap: how far runs are "
        "below 100 on average, those above counting 0.",
        f"Games: {', '.join(games)}."
        + (f" Left out, as not every method has them: {', '.join(missing)}." * bool(missing)),
        "As far as every run of a method goes; a failed one keeps the return that it had.",
    ]
    with_band = [np.isfinite(method.bands["iqm", "frames"].low).any() for method in methods]
    if any(with_band):
        sentences.append("Bands: 95% stratified bootstrap over the seeds of each game, too narrow when they are few.")
    if not all(with_band):
        sentences.append(f"No band where a game has fewer than {SEEDS_FOR_BAND} seeds.")
    return " ".join(sentences)


def _fill(
    part: SubFigure, methods: Sequence[Method], axes: Sequence[str], looks: Mapping[tuple[str, str], style.Look]
) -> list[Line2D]:
    panels = part.subplots(len(CURVES), len(axes), sharex="col", sharey="row", squeeze=False)
    for column, axis in enumerate(axes):
        ends = [
            band.x[-1] for method in methods for curve in CURVES if len((band := method.bands[curve, AXES[axis]]).x)
        ]
        unit, scale = figure.axis_unit(AXES[axis], max(ends, default=0.0))
        for row, curve in enumerate(CURVES):
            panel = panels[row, column]
            for method in methods:
                band = method.bands[curve, AXES[axis]]
                figure.draw_band(panel, band.x / scale, band, looks[method.first.method])
            panel.margins(y=0.08)
        panels[0, column].axhline(100.0, color="0.4", linewidth=0.7, linestyle=(0, (1.0, 2.0)), zorder=1)
        panels[-1, column].set(xlabel=unit, xlim=(0.0, None))
        panels[-1, column].set_ylim(bottom=0.0)
    for row, label in enumerate(CURVES.values()):
        panels[row, 0].set_ylabel(label)
    return [figure.handle(looks[method.first.method]) for method in methods]


# --- the command line -------------------------------------------------------------------------------------------------


def figure_and_table(
    runs: list[Run], axes: Sequence[str] = tuple(AXES), window: int = TRAINING_GAMES
) -> tuple[Figure, pd.DataFrame]:
    """The figure and its numbers.

    Raises:
        NothingToDrawError: there are no two games, with human and random scores, that every method has played.
    """
    methods, missing = make_methods(runs, window)
    if not methods or len(methods[0].groups) < 2:
        raise cli.NothingToDrawError(
            f"Among the {len(runs)} runs found there are no two Atari games that every method has played."
        )
    return draw(methods, missing, axes, window), make_table(methods, axes)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    make = partial(figure_and_table, axes=list(AXES) if chosen.x == "both" else [chosen.x], window=chosen.window)
    return cli.write_figure("aggregate_curves", chosen.roots, chosen.out, make)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.aggregate_curves", "Draws human-normalised return over games.")
    parser.add_argument("--x", choices=(*AXES, "both"), default="both", help="horizontal axis (default both)")
    parser.add_argument(
        "--window", type=cli.positive, default=TRAINING_GAMES, metavar="GAMES", help="training games in the mean"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
