"""Speed: what runs reach of what the machine could do, what they spend their time on, and what more of them bring.

    python -m analysis.speed runs/throughput
    python -m analysis.speed runs/speedup_vs_workers --threshold 475
    python -m analysis.speed runs/speedup_q_methods --threshold 0.8

Writes, each as PNG, PDF and CSV, what the runs allow: throughput; speed_up, where runs of one algorithm differ in their
number of workers (seconds and frames to a score, predictions per second), beside table 2 of Mnih et al. (2016);
scaling, where they differ in their number of ranks (agent steps per second, beside as many times those of the fewest);
adjustments, where GA3C changed its own sizes.
"""

import argparse
import logging
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import caption, cli, course, crossings, figure, published, relation, statistics, style
from analysis.groups import Member, SeedGroup, in_legend_order
from analysis.outcome import TRAINING_GAMES, counting
from analysis.relation import Axis, PublishedCurve, RunPoint
from analysis.run import Run
from analysis.settings import as_number, labelled, setting
from analysis.statistics import Crossing
from analysis.summary import SHARES, counted_rows, is_plain, summarise, tally_of, unique_seeds

log = logging.getLogger(__name__)

WORKERS = ("algo.n_workers", "algo.n_learners", "algo.n_agents")  # the setting that means it, by algorithm
BARS = {"frames_per_second": "frames/s", "pps": "PPS, agent steps/s", "tps": "TPS, updates/s"}
# Grey levels that differ in print, with a hatch each: colours belong to algorithms.
SHARE_LOOKS = {
    "share_simulate": ("simulate", "0.85", ""),
    "share_predict": ("predict", "0.65", "//"),
    "share_train": ("train", "0.4", ""),
    "share_wait": ("wait", "1.0", "...."),
    "share_communicate": ("communicate", "0.75", "xx"),
}
ADJUSTMENTS = (
    course.Panel("agents", "agents", ["n_agents"]),
    course.Panel("predictors (strong) and trainers (faint)", "threads", ["n_predictors", "n_trainers"]),
    course.Panel("updates per second in a window", "TPS, updates/s", ["tps"]),
)


# --- throughput -------------------------------------------------------------------------------------------------------


def throughput(runs: Sequence[Run]) -> tuple[Figure, pd.DataFrame]:
    """Frames, predictions and trainings per second, share of the machine's bound, and shares of time.

    Raises:
        NothingToDrawError: no run has trained for a measurable time.
    """
    everyone = unique_seeds(summarise(runs))
    summary = everyone[np.isfinite(everyone["frames_per_second"]) & (everyone["frames_per_second"] > 0)]
    if summary.empty:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has trained for a measurable time.")
    keys = in_legend_order(set(zip(summary["env"], summary["algo"], summary["label"], strict=True)))
    looks = style.looks([key[1:] for key in keys])
    sections = []
    for env in dict.fromkeys(key[0] for key in keys):
        here = summary[summary["env"] == env]
        here = here.assign(name=[_with_endings(one, everyone, here) for _, one in here.iterrows()])
        rows = [key[1:] for key in keys if key[0] == env]
        bounded, shared = here["bound_pps"].notna().any(), here[list(SHARES)].notna().any(axis=None)
        legend = ["a run"] + (["serial bound of the machine"] if bounded else [])
        legend += [name for name, _, _ in _share_looks(here).values()] if shared else []
        fill = partial(_fill, here=here, rows=rows, looks=looks, bounded=bounded, shared=shared)
        n_lines = max(_row_name(name).count("\n") + 1 for name in here["name"])
        height = max(1.0, 0.35 + max(0.13, 0.04 + 0.058 * n_lines) * len(rows))
        sections.append(figure.Section(env, height * (1 + bool(bounded or shared)), legend, fill))
    by_path = {str(run.path): run for run in runs}
    groups = [
        SeedGroup(env, algo, label, [Member(by_path[path]) for path in here["path"]])
        for (env, algo, label), here in summary.groupby(["env", "algo", "label"])
    ]
    over = " that are over" if len(counted_rows(summary, "frames_per_second")) < len(summary) else ""
    how = (
        f"Bars: means over the runs of a method{over}, whole run, checkpoints included. PPS: agent steps acted on per "
        "second; TPS: updates per second, of samples that differ in number. Shares: of the loop's time, summed over "
        "workers or threads. "
        + (_BOUND_MEANS if summary["bound_pps"].notna().any() else "")
        + "Speeds hold for the load that the machine had."
    )
    columns = ["env", "algo", "label", "seed", "state", *BARS, "bound_pps", "share_of_bound", *SHARES, "hardware"]
    return figure.compose(sections, caption.complete(how, groups, "bar"), style.TWO_COLUMNS), summary[columns]


def _fill(
    part: SubFigure,
    here: pd.DataFrame,
    rows: Sequence[tuple[str, str]],
    looks: Mapping[tuple[str, str], style.Look],
    bounded: bool,
    shared: bool,
) -> list[Artist]:
    groups = [here[(here["algo"] == algo) & (here["label"] == label)] for algo, label in rows]
    grid = part.add_gridspec(1 + bool(bounded or shared), 6)
    first = part.add_subplot(grid[0, :2])
    top = [first, *(part.add_subplot(grid[0, 2 * i : 2 * i + 2], sharey=first) for i in (1, 2))]
    for panel, (column, label) in zip(top, BARS.items(), strict=True):
        _draw_bars(panel, groups, rows, looks, column)
        panel.set_xlabel(label)
    handles: list[Artist] = [Line2D([], [], **_RUN)]
    if bounded:
        for scale, panel in ((_frames_per_step(groups), top[0]), ([1.0] * len(groups), top[1])):
            bounds = [scale[y] * group["bound_pps"].mean() for y, group in enumerate(groups)]
            panel.plot(bounds, range(len(groups)), **_BOUND)
            panel.set_xlim(right=max(panel.get_xlim()[1], 1.08 * float(np.nanmax(bounds))))
        panel = part.add_subplot(grid[1, : 6 if not shared else 3])
        _draw_bars(panel, groups, rows, looks, "share_of_bound")
        panel.axvline(1.0, color="0.2", linewidth=0.8)
        panel.set_xlabel("PPS as a share of the serial bound")
        _name_rows(panel, groups)
        handles.append(Line2D([], [], **_BOUND))
    if shared:
        panel = part.add_subplot(grid[1, 3 if bounded else 0 :])
        _draw_shares(panel, groups, _share_looks(here))
        _name_rows(panel, groups)
        panel.tick_params(labelleft=not bounded)
        handles += [
            Patch(facecolor=grey, hatch=hatch, edgecolor="0.2") for _, grey, hatch in _share_looks(here).values()
        ]
    _name_rows(first, groups)
    for panel in top[1:]:
        panel.tick_params(labelleft=False)
    return handles


_BOUND_MEANS = "Serial bound: what simulation, forward and backward would reach, done one after the other. "
_RUN: Mapping[str, Any] = {
    "marker": "o", "markersize": 3.0, "color": "white", "markeredgecolor": "0.1", "linestyle": "none"
}  # fmt: skip
_BOUND: Mapping[str, Any] = {"marker": "|", "markersize": 11.0, "color": "0.1", "linestyle": "none"}


def _draw_bars(
    panel: Axes,
    groups: Sequence[pd.DataFrame],
    rows: Sequence[tuple[str, str]],
    looks: Mapping[tuple[str, str], style.Look],
    column: str,
) -> None:
    colours = [looks[row].colour for row in rows]
    means = [counted_rows(group, column)[column].mean() for group in groups]
    panel.barh(range(len(groups)), means, color=colours, height=0.65)
    for y, group in enumerate(groups):
        panel.plot(group[column], [y] * len(group), **_RUN)
    panel.set_xlim(left=0.0)
    panel.grid(axis="y", visible=False)
    panel.margins(x=0.08)


def _share_looks(here: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Those of the shares that there are: where no run has several ranks, none communicates."""
    alone = not (here["share_communicate"] > 0.0).any()
    return {column: look for column, look in SHARE_LOOKS.items() if column != "share_communicate" or not alone}


def _draw_shares(panel: Axes, groups: Sequence[pd.DataFrame], looks: Mapping[str, tuple[str, str, str]]) -> None:
    left = np.zeros(len(groups))
    for column, (_, grey, hatch) in looks.items():
        widths = np.nan_to_num([counted_rows(group, column)[column].mean() for group in groups])
        panel.barh(range(len(groups)), widths, left=left, color=grey, hatch=hatch, edgecolor="0.2", height=0.65, lw=0.5)
        left += widths
    panel.set(xlim=(0.0, 1.0), xlabel="share of the loop's time")
    panel.grid(axis="y", visible=False)


def _name_rows(panel: Axes, groups: Sequence[pd.DataFrame]) -> None:
    panel.set_yticks(range(len(groups)), [_row_name(group["name"].iloc[0]) for group in groups])
    panel.set_ylim(len(groups) - 0.4, -0.6)


def _with_endings(row: pd.Series, everyone: pd.DataFrame, known: pd.DataFrame) -> str:
    """A method's name, and of how many of its runs its bars are where not all have finished."""
    own, counted = (rows[(rows[["env", "algo", "label"]] == row[["env", "algo", "label"]]).all(axis=1)]
                    for rows in (everyone, counted_rows(known, "frames_per_second")))  # fmt: skip
    return str(row["name"]) if is_plain(own, counted) else f"{row['name']} ({tally_of(own, counted, 'run')})"


def _row_name(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 28))


def _frames_per_step(groups: Sequence[pd.DataFrame]) -> list[float]:
    return [float((group["frames"] / group["agent_steps"]).mean()) for group in groups]


# --- speed-up by workers ----------------------------------------------------------------------------------------------


def workers(run: Run) -> float:
    """How many workers (bundles, agents) a run has; NaN for an algorithm without."""
    numbers = (as_number(setting(run, key)) for key in WORKERS)
    return next((n for n in numbers if np.isfinite(n)), float("nan"))


def speed_up(
    runs: Sequence[Run], threshold: float | None = None, window: int = TRAINING_GAMES
) -> tuple[Figure, pd.DataFrame]:
    """How many times as fast more workers are than the fewest: to a score in seconds and frames, and in predictions.

    A run that never reached the score has no point there; the medians behind the ratios count it as censored.

    Raises:
        NothingToDrawError: no algorithm was run with different numbers of workers.
    """
    able = labelled([run for run in runs if np.isfinite(workers(run))], workers)
    points, threshold_used = [], {}
    for key in dict.fromkeys((run.env, run.algo, run.label) for run in able):
        group = [run for run in able if (run.env, run.algo, run.label) == key]
        if len({workers(run) for run in group}) > 1:
            goal, reason = crossings.goal_of(group, window) if threshold is None else (threshold, "as it was asked for")
            points += _speed_up_points(group, goal, window)
            threshold_used[key[0]] = f"{goal:.4g} in {key[0]} ({reason})"
    if not points:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found differ in their number of workers alone.")
    axes = [
        Axis("to_score", "times as fast to the score", _table_2(points)),
        Axis("frames_to_score", "times fewer frames to the score"),
        Axis("throughput", "times the predictions per second"),
    ]
    axes = [axis for axis in axes if any(np.isfinite(point.y[axis.name]) for point in points)]
    goals = ", ".join(threshold_used.values())
    score = f"mean return of the last {window} training games, {goals}"
    how = (
        f"Against the median run (censored ones counted) with the fewest workers. Score: {score}; {_censored(points)}."
        if axes[0].name == "to_score"
        else f"Against the median run with the fewest workers. Half of those never reached the score: {score}."
    )
    return relation.draw(points, "workers", axes, how), relation.make_table(points, "workers")


def _table_2(points: Sequence[RunPoint]) -> list[PublishedCurve]:
    """What the paper has of the algorithms that are drawn, as far as our workers go; of others A3C's."""
    most = max(point.x for point in points if isinstance(point.x, float))
    ours = {point.run.algo for point in points}
    curves = []
    for algo in [algo for algo in published.TABLE_2 if algo in ours] or ["a3c"]:
        at, ratios = published.speed_ups(published.TABLE_2[algo])
        text = f"{style.display_name(algo)} on Atari, Mnih et al. 2016, table 2"
        curves.append(PublishedCurve(text, at[at <= most], ratios[at <= most], algo))
    return curves if len(curves) > 1 else [replace(curve, algo=None) for curve in curves]


def _speed_up_points(runs: Sequence[Run], goal: float, window: int) -> list[RunPoint]:
    """Ratios to the fewest workers, of one algorithm in one environment."""
    fewest = min(map(workers, runs))
    speeds = dict(zip([run.path for run in runs], summarise(runs)["pps"], strict=True))
    base = [run for run in runs if workers(run) == fewest]
    base = [run for run, counts in zip(base, counting(run.ending for run in base), strict=True) if counts]
    speed = float(np.nanmedian([speeds[run.path] for run in base]))
    reached = {column: _reached(runs, column, goal, window) for column in ("wall_seconds", "frames")}
    seconds, frames = (_times_less(found, base) for found in reached.values())
    return [
        RunPoint(
            run,
            workers(run),
            {
                "to_score": seconds[run.path],
                "frames_to_score": frames[run.path],
                "throughput": speeds[run.path] / speed,
                **{f"{column}_needed": _place(found[run.path]) for column, found in reached.items()},
            },
        )
        for run in runs
    ]


def _reached(runs: Sequence[Run], column: str, goal: float, window: int) -> dict[Path, Crossing | None]:
    """When each run was at the goal, in a column."""
    return {run.path: crossings.crossing(run, column, goal, window) for run in runs}


def _place(crossing: Crossing | None) -> float:
    """Where that was; NaN if it did not get there."""
    return crossing.x if crossing is not None and crossing.reached else float("nan")


def _times_less(reached: Mapping[Path, Crossing | None], base: Sequence[Run]) -> dict[Path, float]:
    """How many times less each run took to the goal than the median of some; NaN if it or they did not get there."""
    known = [crossing for run in base if (crossing := reached[run.path]) is not None]
    usual = statistics.median_crossing(known) if known else float("inf")
    places = {path: _place(crossing) for path, crossing in reached.items()}
    possible = np.isfinite(usual)
    return {path: usual / place if possible and place > 0.0 else float("nan") for path, place in places.items()}


def _censored(points: Sequence[RunPoint]) -> str:
    never = sum(not np.isfinite(point.y["to_score"]) for point in points)
    if never == 0:
        return "every run reached it"
    return f"{never} of {len(points)} runs have no point there: they, or the median compared to, never reached it"


# --- scaling by ranks -------------------------------------------------------------------------------------------------


def ranks(run: Run) -> float:
    """How many processes trained together in a run."""
    number = as_number(run.config.get("ranks"))
    return number if np.isfinite(number) else 1.0


def scaling(runs: Sequence[Run]) -> tuple[Figure, pd.DataFrame]:
    """Agent steps per second against ranks, and how much that is of what as many would reach without waiting.

    Raises:
        NothingToDrawError: no algorithm was run with different numbers of ranks.
    """
    able = labelled(runs, ranks)
    points: list[RunPoint] = []
    ideals: list[PublishedCurve] = []
    for env, algo, label in dict.fromkeys((run.env, run.algo, run.label) for run in able):
        group = [run for run in able if (run.env, run.algo, run.label) == (env, algo, label)]
        numbers = np.array(sorted({ranks(run) for run in group}))
        speed = _speed_of_a_rank(group, numbers[0])
        if len(numbers) == 1 or not speed > 0.0:
            continue
        text = f"{style.display_name(algo)}{f', {label}' if label else ''}: each as fast as one of the fewest"
        ideals.append(PublishedCurve(text, numbers, speed * numbers, algo, env))
        speeds = summarise(group)["pps"]
        points += [
            RunPoint(run, ranks(run), {"pps": pps, "efficiency": pps / (speed * ranks(run))})
            for run, pps in zip(group, speeds, strict=True)
        ]
    if not points:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found differ in their number of ranks alone.")
    axes = [Axis("pps", "agent steps per second", ideals), Axis("efficiency", "scaling efficiency")]
    how = (
        "Efficiency: agent steps per second of a run, as a share of its ranks times those of one rank in the median "
        "run with the fewest; each rank has environments of its own. Speeds hold for the load that the machines had."
    )
    return relation.draw(points, "ranks", axes, how), relation.make_table(points, "ranks")


def _speed_of_a_rank(runs: Sequence[Run], fewest: float) -> float:
    """Agent steps per second, in the median run with the fewest ranks; NaN if none has trained."""
    base = [run for run in runs if ranks(run) == fewest]
    base = [run for run, counts in zip(base, counting(run.ending for run in base), strict=True) if counts]
    speeds = summarise(base)["pps"].to_numpy(dtype="float64")
    return float(np.median(speeds[np.isfinite(speeds)]) / fewest) if np.isfinite(speeds).any() else float("nan")


# --- GA3C's adjustments -----------------------------------------------------------------------------------------------


def adjustments(runs: Sequence[Run]) -> tuple[Figure, pd.DataFrame]:
    """The sizes of GA3C over time, as its random walk changed them, and what they brought.

    Raises:
        NothingToDrawError: no run adjusted itself.
    """
    columns = [name for panel in ADJUSTMENTS for name in panel.curves]
    own = [run for run in runs if len(run.adjustments())]
    if not own:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has adjusted its own sizes.")
    groups = course.make_groups(
        own, lambda run: course.read_columns(run.adjustments(), "wall_seconds", columns), "has no adjustments"
    )
    how = "Each window of the random walk, at its end (tried sizes, those given up again included)."
    return course.draw(groups, ADJUSTMENTS, "wall_seconds", how), course.make_table(groups, "wall_seconds")


# --- the command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    return cli.write_files("figures", chosen.roots, chosen.out, partial(_write, threshold=chosen.threshold))


def _write(runs: list[Run], folder: Path, threshold: float | None) -> list[Path]:
    files = cli.save("throughput", *throughput(runs), folder)
    more: dict[str, Callable[[list[Run]], tuple[Figure, pd.DataFrame]]] = {
        "speed_up": partial(speed_up, threshold=threshold),
        "scaling": scaling,
        "adjustments": adjustments,
    }
    for name, make in more.items():
        try:
            files += cli.save(name, *make(runs), folder)
        except cli.NothingToDrawError as nothing:
            log.info("%s", nothing)
    return files


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.speed", "Draws throughput, speed-up by workers, scaling and adjustments.")
    parser.add_argument("--threshold", type=float, metavar="RETURN", help="the score for speed-up (default: chosen)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
