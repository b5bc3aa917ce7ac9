"""When runs first reached a score, and the table of it: frames and seconds, runs that never got there censored."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.aggregate import Floats
from analysis.curves import ReturnTrace, make_trace
from analysis.figure import AXES
from analysis.groups import SeedGroup, by_env, group_traces
from analysis.outcome import FAILED, TRAINING_GAMES
from analysis.run import Run
from analysis.statistics import Crossing
from analysis.writing import Table, number

NEVER = Crossing(float("inf"), False)


def threshold_table(runs: Sequence[Run], threshold: float | None = None, window: int = TRAINING_GAMES) -> Table | None:
    """Frames and seconds until the rolling mean of training returns first reaches a threshold; None without a game.

    Args:
        runs: to compare.
        threshold: return; if None that of `budget.target_return`, where it is set, else 90% of the way from the lowest
            first to the highest last mean of an environment.
        window: games in the rolling mean; the first tenth of them only fill it.
    """
    traces = {run.path: trace for run in runs if (trace := make_trace(run, window)) is not None and not trace.evaluated}
    groups = group_traces(traces.values(), [run for run in runs if run.path not in traces])
    lines, reasons = [], {}
    for env, here in by_env(groups).items():
        goal, reasons[env] = goal_of([run for group in here for run in group.runs], window)
        if threshold is not None:
            goal, reasons[env] = threshold, "as it was asked for"
        for group in here:
            lines.append(
                (env, group, goal, {column: _crossings(group, column, window, goal) for column in AXES.values()})
            )
    if not lines:
        return None
    numbers = pd.DataFrame([_crossing_numbers(*line) for line in lines])
    text = pd.DataFrame(
        [
            [env, _named(group), f"{goal:,.4g}", f"{_n_reached(crossings['frames'])} of {len(crossings['frames'])}"]
            + [_crossing_text(crossings[column]) for column in AXES.values()]
            for env, group, goal, crossings in lines
        ],
        columns=["environment", "method", "threshold", "reached", "frames, median", "seconds, median"],
    )
    notes = [
        f"When the mean return of the last {window} training games is first at least the threshold: the median over "
        "seeds after Kaplan and Meier, in which runs that ended below it are censored where they ended, neither left "
        "out nor counted as crossings; failed ones never get there. never: fewer than half were seen to get there.",
        *(f"Threshold in {', '.join(envs)}: {reason}." for reason, envs in _by_value(reasons).items()),
    ]
    return Table("time_to_threshold", "Frames and time to a score", numbers, text, notes)


def goal_of(runs: Sequence[Run], window: int) -> tuple[float, str]:
    """A return to be reached, and in words where it comes from.

    `budget.target_return`, where all runs have the same; else 90% of the way from the lowest start to the best end. NaN
    if no run has finished a game.
    """
    if (target := _common_target(runs)) is not None:
        return target
    return goal_of_traces([trace for run in runs if (trace := make_trace(run, window)) is not None], window)


def goal_of_traces(traces: Sequence[ReturnTrace], window: int) -> tuple[float, str]:
    """The same from curves that have been read already."""
    if (target := _common_target([trace.run for trace in traces])) is not None:
        return target
    traces = [trace for trace in traces if not trace.evaluated]
    if not traces:
        return float("nan"), "no run has finished a game"
    curves = [past_start(*trace.curve("frames"), window)[1] for trace in traces]
    low, high = min(curve[0] for curve in curves), max(curve[-1] for curve in curves)
    reason = (
        f"90% of the way from the lowest first mean of these runs, {low:,.4g}, to their highest last one, {high:,.4g}"
    )
    return float(low + 0.9 * (high - low)), reason


def _common_target(runs: Sequence[Run]) -> tuple[float, str] | None:
    ours = [run for run in runs if not run.library]  # others have no such setting
    targets = {(run.config.get("budget") or {}).get("target_return") for run in ours}
    target = targets.pop() if len(targets) == 1 else None
    return None if target is None else (float(target), "budget.target_return of the runs")


def crossing(run: Run, column: str, goal: float, window: int) -> Crossing | None:
    """When a run's mean return over `window` games first reached the goal; None if it has not finished a game."""
    trace = make_trace(run, window)
    return None if trace is None or trace.evaluated else crossing_of(trace, column, window, goal)


def _crossings(group: SeedGroup[ReturnTrace], column: str, window: int, goal: float) -> list[Crossing]:
    """One per seed that has finished a game or failed."""
    known = [crossing_of(trace, column, window, goal) for trace in group.traces]
    return known + [NEVER for run in group.missing if run.ending in FAILED]


def _named(group: SeedGroup[ReturnTrace]) -> str:
    plain = all(run.state == "finished" for run in group.all_runs)
    return group.name if plain else group.legend(len(group.traces))


def _by_value(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for env, reason in reasons.items():
        found.setdefault(reason, []).append(env)
    return found


def crossing_of(trace: ReturnTrace, column: str, window: int, goal: float) -> Crossing:
    """A run that failed below the goal was not cut short on its way: it never gets there."""
    found = statistics.first_crossing(*past_start(*trace.curve(column), window), goal)
    return NEVER if not found.reached and trace.run.ending in FAILED else found


def past_start(x: Floats, y: Floats, window: int) -> tuple[Floats, Floats]:
    """Without the first tenth of a window, whose means are of few games; the last point always stays."""
    start = min(window // 10, len(x) - 1)
    return x[start:], y[start:]


def _crossing_numbers(
    env: str, group: SeedGroup[ReturnTrace], goal: float, crossings: dict[str, list[Crossing]]
) -> dict[str, object]:
    return {
        "env": env,
        "method": group.name,
        "threshold": goal,
        "n_seeds": len(crossings["frames"]),
        "n_reached": _n_reached(crossings["frames"]),
        "median_frames": statistics.median_crossing(crossings["frames"]),
        "median_seconds": statistics.median_crossing(crossings["wall_seconds"]),
    }


def _n_reached(crossings: Iterable[Crossing]) -> int:
    return sum(crossing.reached for crossing in crossings)


def _crossing_text(crossings: Sequence[Crossing]) -> str:
    middle = statistics.median_crossing(crossings)
    seen = max((one.x for one in crossings if np.isfinite(one.x)), default=float("nan"))
    return number(middle) if np.isfinite(middle) else f"never (to {number(seen)})" if np.isfinite(seen) else "never"
