"""Tables: final scores beside published ones, human-normalised aggregates, who beats whom, time to a score, and cost.

    python -m analysis.table runs/atari_paac_games
    python -m analysis.table runs/headline --threshold 475 --published all

Writes each table as CSV (plain numbers), Markdown and LaTeX (booktabs). Scores are final evaluations; where a run has
none its mean training return stands in a table of its own, as scores from different starts are never mixed.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import cli, published, statistics
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.curves import AXES, Trace, make_trace
from analysis.groups import SeedGroup, group_traces
from analysis.load import Run
from analysis.outcome import FAILED, RULE, TRAINING_GAMES
from analysis.statistics import Crossing, Estimate
from analysis.summary import counted_rows, is_plain, summarise, tally_of

log = logging.getLogger(__name__)

AGGREGATES = {"mean": statistics.mean, "median": statistics.median, "iqm": statistics.iqm}
SCORE_COLUMNS = (
    *("starts", "env", "game", "method", "ours", "algo", "label", "score", "low", "high", "human_normalised_percent"),
    *("n_seeds", "games", "budget", "source", "checked", "n_runs", "runs"),
)
_NEVER = Crossing(float("inf"), False)
_UNKNOWN = Estimate(*[np.asarray(np.nan)] * 3)
_NOT_OVER = "Runs that are not over are in no mean beside runs that are."
_NO_INTERVAL = f"No interval: fewer than {SEEDS_FOR_BAND} seeds."
_INTERVAL = "In brackets: 95% percentile bootstrap over seeds."


@dataclass(frozen=True)
class Table:
    """A table twice: numbers for programs, and text for people."""

    name: str  # of its files
    title: str
    numbers: pd.DataFrame
    text: pd.DataFrame  # strings
    notes: Sequence[str]  # sentences below it

    def write(self, folder: Path) -> list[Path]:
        """Writes <name>.csv, <name>.md and <name>.tex, and gives their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.name}.{suffix}" for suffix in ("csv", "md", "tex")]
        self.numbers.to_csv(files[0], index=False, float_format="%.6g")
        files[1].write_text(self.markdown(), encoding="utf-8")
        files[2].write_text(self.latex(), encoding="utf-8")
        return files

    def markdown(self) -> str:
        """With title and notes."""
        rows = [list(self.text.columns), ["---"] * len(self.text.columns), *self.text.to_numpy().tolist()]
        lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([f"### {self.title}", "", *lines, "", *(f"{note}  " for note in self.notes), ""])

    def latex(self) -> str:
        """A float with booktabs rules; title and notes are its caption."""
        rows = [" & ".join(map(_escaped, row)) + r" \\" for row in self.text.to_numpy().tolist()]
        head = " & ".join(map(_escaped, self.text.columns)) + r" \\"
        caption = _escaped(" ".join([f"{self.title}.", *self.notes]))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{caption}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.text.columns) - 1)}}}",
                *(r"\toprule", head, r"\midrule", *rows, r"\bottomrule"),
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


# --- scores -----------------------------------------------------------------------------------------------------------


def score_rows(summary: pd.DataFrame, which: Callable[[str], bool] = lambda method: True) -> pd.DataFrame:
    """Final scores of ours, a row per environment, algorithm and label, and the published ones of the same games.

    Args:
        summary: of the runs.
        which: published methods to take.

    Returns:
        SCORE_COLUMNS; `starts` tells which rows may be compared; a score is of `n_seeds` out of `n_runs`, and `runs`
        says what became of them. A configuration of which no run has a score has a row with NaN.
    """
    runs = unique_seeds(summary)
    runs = runs.assign(score=runs["score"].fillna(runs["training_score"]))
    rows = [
        _score_row(starts, env, algo, label, group)
        for (env, algo, label, starts), group in runs.groupby(["env", "algo", "label", "starts"], sort=False)
    ]
    ours = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    theirs = published.scores()
    theirs = theirs[theirs["game"].isin(ours["game"].dropna()) & theirs["method"].map(which)]
    theirs = theirs.assign(env=theirs["game"], ours=False, human_normalised_percent=np.nan)
    both = pd.concat([ours.astype(object), theirs.reindex(columns=list(SCORE_COLUMNS)).astype(object)])
    both = both.reset_index(drop=True)
    with_all = pd.concat([both, published.scores()])  # which games a method has decides on Video Pinball
    both["human_normalised_percent"] = published.normalise(with_all.reset_index(drop=True)).iloc[: len(both)]
    numeric = ["score", "low", "high", "n_seeds", "games", "human_normalised_percent"]
    return both.assign(**{column: pd.to_numeric(both[column]) for column in numeric})


def unique_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """Without repeats of a seed: the first finished one counts, else the first."""
    ranked = summary.assign(_unfinished=summary["state"] != "finished").sort_values("_unfinished", kind="stable")
    once = ranked.drop_duplicates(["env", "algo", "label", "seed"])
    return summary.loc[sorted(once.index)]


def score_tables(rows: pd.DataFrame) -> list[Table]:
    """One table per kind of starts, ours first."""
    kinds = rows.groupby("starts")["ours"].any().sort_values(ascending=False, kind="stable").index
    return [_score_table(starts, rows[rows["starts"] == starts]) for starts in kinds]


def _score_row(starts: str, env: str, algo: str, label: str, group: pd.DataFrame) -> dict[str, object]:
    counted = counted_rows(group)
    scores = counted["score"].to_numpy(dtype=np.float64)
    estimate = statistics.bootstrap(statistics.mean, [scores]) if len(scores) else _UNKNOWN
    trained = counted if len(counted) else group
    return {
        "starts": starts,
        "env": env,
        "game": group["game"].iloc[0],
        "method": group["name"].iloc[0],
        "ours": True,
        "algo": algo,
        "label": label,
        "score": float(estimate.value),
        "low": float(estimate.low),
        "high": float(estimate.high),
        "n_seeds": len(counted),
        "games": counted["games"].min(),
        "budget": f"{trained['frames'].mean():.4g} frames, {trained['hours'].mean():.3g} h",
        "source": "this sweep",
        "checked": True,
        "n_runs": len(group),
        "runs": "" if is_plain(group, counted) else tally_of(group, counted),
    }


def _score_table(starts: str, rows: pd.DataFrame) -> Table:
    order = list(dict.fromkeys(zip(rows["ours"], rows["method"], strict=True)))
    envs = list(dict.fromkeys(rows["env"]))
    cells = {(row.env, row.ours, row.method): _score_cell(row) for row in rows.itertuples()}
    text = pd.DataFrame([[cells.get((env, *key), "") for key in order] for env in envs])
    methods = [method if ours else f"{method} (published)" for ours, method in order]
    if len(methods) > len(envs):  # the longer side goes down
        text, heads, sides = text.T, envs, pd.Series(methods, name="method")
    else:
        heads, sides = methods, pd.Series(envs, name="environment")
    text = text.set_axis(heads, axis="columns").reset_index(drop=True)
    text.insert(0, sides.name, sides)
    notes = []
    if rows["ours"].any():
        notes.append(_kind_of_score(starts, rows[rows["ours"]]))
        notes += _about_intervals(rows[rows["ours"]].dropna(subset=["score"]))
        notes += _about_endings("; ".join(rows[rows["ours"]]["runs"].fillna("")))
    else:
        notes.append("Published only: no run here was scored like this, so nothing of ours stands beside it.")
    if not rows["checked"].astype(bool).all():
        notes.append("? : not checked against its source.")
    sources = rows[~rows["ours"].astype(bool)].groupby("method", sort=False)[["source", "budget"]].first()
    notes += [f"{method}: {one.source}{f', {one.budget}' if one.budget else ''}." for method, one in
              sources.fillna("").iterrows()]  # fmt: skip
    name = "scores_" + "_".join(starts.replace("-", " ").split())
    titles = {"training": f"Training return, mean of the last {TRAINING_GAMES} games"}
    return Table(name, titles.get(starts, f"Final score, starts: {starts}"), rows, text, notes)


def _kind_of_score(starts: str, ours: pd.DataFrame) -> str:
    if starts == "training":
        return "These runs have no final evaluation; a training score is no evaluation score."
    counts = sorted({int(games) for games in ours["games"].dropna()})
    return f"Mean unclipped return of {' or '.join(map(str, counts))} evaluation games per run, then over seeds."


def _score_cell(row: object) -> str:
    estimate = Estimate(*(np.asarray(getattr(row, name)) for name in ("score", "low", "high")))
    runs = f" ({row.runs})" if row.ours and row.runs else ""  # type: ignore[attr-defined]
    return written(estimate) + runs + ("" if row.checked else " ?")  # type: ignore[attr-defined]


def _about_endings(tallies: str) -> list[str]:
    """What is to be said of runs that did not finish, from the words on their number."""
    failed = [RULE] if any(ending in tallies for ending in FAILED) else []
    return failed + ([_NOT_OVER] if "running" in tallies or "preempted" in tallies else [])


# --- aggregates over games --------------------------------------------------------------------------------------------


def aggregate_table(summary: pd.DataFrame, rows: pd.DataFrame) -> Table | None:
    """Human-normalised mean, median and interquartile mean over the games that all of our methods have; None if none.

    Args:
        summary: of the runs.
        rows: what `score_rows` gave.
    """
    known = rows.dropna(subset=["human_normalised_percent", "score"])
    ours = known[known["ours"].astype(bool) & (known["starts"] != "training")]
    if ours.empty:
        return None
    (starts, _), *others = ours.groupby("starts")["game"].nunique().sort_values(ascending=False).items()
    ours = ours[ours["starts"] == starts]
    games = sorted(set.intersection(*(set(group["game"]) for _, group in ours.groupby("method"))))
    if not games:
        return None
    missing = sorted(set(ours["game"]) - set(games))
    everyone = unique_seeds(summary[summary["starts"] == starts])
    everyone = everyone[everyone["game"].isin(games)]
    runs = _normalised_runs(everyone)
    lines = []
    for method, group in known[(known["starts"] == starts) & known["game"].isin(games)].groupby("method", sort=False):
        here = bool(group["ours"].iloc[0])
        tasks = runs(method, games) if here else [np.array([value]) for value in group["human_normalised_percent"]]
        estimates = {name: statistics.bootstrap(statistic, tasks) for name, statistic in AGGREGATES.items()}
        seeds = min(map(len, tasks))
        own = everyone[everyone["name"] == method]
        counted = counted_rows(own)
        words = str(seeds) if not here or is_plain(own, counted) else tally_of(own, counted, "run")
        lines.append((method, here, len(tasks), seeds, words, bool(group["checked"].all()), estimates))
    numbers = pd.DataFrame(
        [
            {"method": method, "ours": here, "starts": starts, "n_games": n_games, "min_seeds": seeds, "runs": words}
            | {"checked": checked}
            | {f"{name}{end}": float(getattr(estimate, part)) for name, estimate in estimates.items()
               for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))}
            for method, here, n_games, seeds, words, checked, estimates in lines
        ]
    )  # fmt: skip
    text = pd.DataFrame(
        [
            [method + ("" if here else " (published)") + ("" if checked else " ?"), str(n_games), words]
            + [written(estimates[name]) for name in AGGREGATES]
            for method, here, n_games, seeds, words, checked, estimates in lines
        ],
        columns=["method", "games", "seeds", "mean %", "median %", "IQM %"],
    )
    notes = [
        f"100 (score - random) / (human - random), starts: {starts}; games: {', '.join(games)}.",
        "IQM: mean of the middle half of all runs of all games; a published method counts as one run per game.",
        *([_INTERVAL] if numbers["mean_low"].notna().any() else []),
    ]
    if not numbers["mean_low"].notna().all():
        notes.append(_NO_INTERVAL)
    notes += _about_endings("; ".join(numbers["runs"]))
    if missing:
        notes.append(f"Left out, as not every method has a score there: {', '.join(missing)}.")
    if others:
        notes.append(f"Left out, being scored otherwise: {', '.join(str(kind) for kind, _ in others)}.")
    return Table("human_normalised", "Human-normalised score over games", numbers, text, notes)


def _normalised_runs(summary: pd.DataFrame) -> Callable[[str, Sequence[str]], list[Floats]]:
    runs = counted_rows(summary).reset_index(drop=True)
    percent = published.normalise(runs.assign(method=runs["name"])).to_numpy(dtype=np.float64)

    def of(method: str, games: Sequence[str]) -> list[Floats]:
        return [percent[(runs["name"] == method) & (runs["game"] == game)] for game in games]

    return of


def improvement_table(summary: pd.DataFrame) -> Table | None:
    """How probable it is that a run of one method beats one of another; None with fewer than two methods to compare."""
    everyone = unique_seeds(summary)
    if everyone["score"].isna().all():  # nothing was evaluated: training scores, of all
        everyone = everyone.assign(score=everyone["training_score"])
    nothing = everyone["score"].isna() & everyone["ending"].isin(FAILED)
    runs = counted_rows(everyone.assign(score=everyone["score"].mask(nothing, -np.inf)))
    tasks = {
        method: {key: group["score"].to_numpy(dtype=np.float64) for key, group in own.groupby(["env", "starts"])}
        for method, own in runs.groupby("name", sort=False)
        if np.isfinite(own["score"]).any()
    }
    words = {method: _with_endings(method, everyone, runs) for method in tasks}
    lines = []
    for ours in tasks:
        for theirs in tasks:
            common = [key for key in tasks[ours] if key in tasks[theirs]]
            if ours != theirs and common:
                samples = [tasks[ours][key] for key in common], [tasks[theirs][key] for key in common]
                estimate = statistics.bootstrap(statistics.probability_of_improvement, *samples)
                lines.append((ours, theirs, len(common), estimate))
    if not lines:
        return None
    numbers = pd.DataFrame(
        [(*line[:3], float(line[3].value), float(line[3].low), float(line[3].high), words[line[0]], words[line[1]])
         for line in lines],
        columns=["method", "over", "n_environments", "probability", "low", "high", "runs", "over_runs"],
    )  # fmt: skip
    cells = {line[:2]: written(line[3], digits=2) for line in lines}
    text = pd.DataFrame(
        [[words[ours], *(cells.get((ours, theirs), "") for theirs in tasks)] for ours in tasks],
        columns=["a run of", *(f"beats {theirs}" for theirs in tasks)],
    )
    notes = [
        "Probability that a run of the row's method scores higher than one of the column's, in an environment drawn at "
        "random from those that both have; a tie is half a win.",
        *_about_intervals(numbers),
        *_about_endings("; ".join(words.values())),
        *(["A failed run that reached nothing loses to every run that reached something."] if nothing.any() else []),
    ]
    return Table("improvement", "Probability of improvement", numbers, text, notes)


def _with_endings(method: str, everyone: pd.DataFrame, counted: pd.DataFrame) -> str:
    """The method, and what its number is of where not all of its runs finished."""
    own, counts = (rows[rows["name"] == method] for rows in (everyone, counted))
    return method if is_plain(own, counts) else f"{method} ({tally_of(own, counts, 'run')})"


# --- time to a score, and cost ----------------------------------------------------------------------------------------


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
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env]
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


def cost_table(summary: pd.DataFrame) -> Table:
    """What runs took: hours, speeds and hardware, means over the runs of a method in an environment."""
    quantities = ["frames", "hours", "frames_per_second", "pps", "tps", "share_of_bound"]
    keys = ["env", "algo", "label", "name", "hardware"]
    groups = summary.groupby(keys, sort=False)
    counted = counted_rows(summary, "frames")
    words = groups.apply(lambda own: tally_of(own, counted.loc[counted.index.intersection(own.index)], "run"))
    means = counted.groupby(keys, sort=False)[quantities].mean().reindex(groups.size().index)
    numbers = means.assign(n_runs=groups.size(), total_hours=groups["hours"].sum(), runs=words).reset_index()
    text = pd.DataFrame(
        {
            "environment": numbers["env"],
            "method": numbers["name"],
            "runs": [re.sub(r" runs?\b", "", words) for words in numbers["runs"]],
            "frames per run": numbers["frames"].map(number),
            "hours per run": numbers["hours"].map(partial(number, digits=2)),
            "hours in all": numbers["total_hours"].map(partial(number, digits=2)),
            "frames/s": numbers["frames_per_second"].map(number),
            "PPS": numbers["pps"].map(number),
            "TPS": numbers["tps"].map(number),
            "of the bound": numbers["share_of_bound"].map(lambda share: f"{100 * share:.0f}%" if share > 0 else "-"),
            "hardware": numbers["hardware"],
        }
    )
    machines = list(dict.fromkeys(text["hardware"]))
    if len(machines) == 1:  # say it once
        text = text.drop(columns="hardware")
    notes = [
        "Hours of training, without evaluation and start-up. PPS: agent steps per second; TPS: updates per second. "
        "Of the bound: PPS over the machine's serial bound, where runs were calibrated.",
        "Speeds hold for the load that the machine had while it ran."
        + (f" Hardware: {machines[0]}." if len(machines) == 1 else ""),
        *([_NOT_OVER] if _about_endings("; ".join(numbers["runs"]))[-1:] == [_NOT_OVER] else []),
    ]
    return Table("cost", "Cost", numbers, text, notes)


def goal_of(runs: Sequence[Run], window: int) -> tuple[float, str]:
    """A return to be reached, and in words where it comes from.

    `budget.target_return`, where all runs have the same; else 90% of the way from the lowest start to the best end. NaN
    if no run has finished a game.
    """
    targets = {(run.config.get("budget") or {}).get("target_return") for run in runs}
    if len(targets) == 1 and (target := targets.pop()) is not None:
        return float(target), "budget.target_return of the runs"
    traces = [trace for run in runs if (trace := make_trace(run, window)) is not None and not trace.evaluated]
    if not traces:
        return float("nan"), "no run has finished a game"
    curves = [_past_start(*trace.curve("frames"), window)[1] for trace in traces]
    low, high = min(curve[0] for curve in curves), max(curve[-1] for curve in curves)
    reason = (
        f"90% of the way from the lowest first mean of these runs, {low:,.4g}, to their highest last one, {high:,.4g}"
    )
    return float(low + 0.9 * (high - low)), reason


def crossing(run: Run, column: str, goal: float, window: int) -> Crossing | None:
    """When a run's mean return over `window` games first reached the goal; None if it has not finished a game."""
    trace = make_trace(run, window)
    return None if trace is None or trace.evaluated else _crossing(trace, column, window, goal)


def _crossings(group: SeedGroup[Trace], column: str, window: int, goal: float) -> list[Crossing]:
    """One per seed that has finished a game or failed."""
    known = [_crossing(trace, column, window, goal) for trace in group.traces]
    return known + [_NEVER for run in group.missing if run.ending in FAILED]


def _named(group: SeedGroup[Trace]) -> str:
    plain = all(run.state == "finished" for run in group.all_runs)
    return group.name if plain else f"{group.name} ({group.seeds(len(group.traces))})"


def _by_value(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for env, reason in reasons.items():
        found.setdefault(reason, []).append(env)
    return found


def _crossing(trace: Trace, column: str, window: int, goal: float) -> Crossing:
    """A run that failed below the goal was not cut short on its way: it never gets there."""
    found = statistics.first_crossing(*_past_start(*trace.curve(column), window), goal)
    return _NEVER if not found.reached and trace.run.ending in FAILED else found


def _past_start(x: Floats, y: Floats, window: int) -> tuple[Floats, Floats]:
    """Without the first tenth of a window, whose means are of few games; the last point always stays."""
    start = min(window // 10, len(x) - 1)
    return x[start:], y[start:]


def _crossing_numbers(
    env: str, group: SeedGroup[Trace], goal: float, crossings: dict[str, list[Crossing]]
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


# --- writing ----------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 1) -> str:
    """For people: 1,234.5, or 0.00123; a dash for what is not known."""
    if not np.isfinite(value):
        return "-"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:,.{digits}f}" if abs(value) >= 10.0**-digits or value == 0.0 else f"{value:.2g}"


def written(estimate: Estimate, digits: int = 1) -> str:
    """A value, with its interval in brackets if it has one."""
    if np.isnan(estimate.low):
        return number(float(estimate.value), digits)
    low, high = (number(float(end), digits) for end in (estimate.low, estimate.high))
    return f"{number(float(estimate.value), digits)} [{low}, {high}]"


def _about_intervals(rows: pd.DataFrame) -> list[str]:
    with_interval = rows["low"].notna()
    return ([_INTERVAL] if with_interval.any() else []) + ([] if with_interval.all() else [_NO_INTERVAL])


def _escaped(text: str) -> str:
    for mark in ("\\", "&", "%", "_", "#", "$", "{", "}"):
        text = text.replace(mark, r"\textbackslash " if mark == "\\" else f"\\{mark}")
    return text


# --- the command line -------------------------------------------------------------------------------------------------


def make_tables(runs: Sequence[Run], threshold: float | None = None, every_published: bool = False) -> list[Table]:
    """All tables that these runs allow."""
    summary = summarise(runs)
    rows = score_rows(summary, (lambda method: True) if every_published else published.of_the_families)
    found = [
        *score_tables(rows),
        aggregate_table(summary, rows),
        improvement_table(summary),
        threshold_table(runs, threshold),
        cost_table(summary),
    ]
    return [table for table in found if table is not None]


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    make = partial(make_tables, threshold=chosen.threshold, every_published=chosen.published == "all")

    def write(runs: list[Run], folder: Path) -> list[Path]:
        return [file for table in make(runs) for file in table.write(folder)]

    return cli.write_files("tables", chosen.roots, chosen.out, write)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.table", "Writes tables of scores, aggregates and cost.", "tables")
    parser.add_argument("--threshold", type=float, metavar="RETURN", help="for frames and time to a score")
    parser.add_argument(
        "--published", choices=("families", "all"), default="families",
        help=f"published methods: those of {', '.join(published.FAMILIES)} (default), or all",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
