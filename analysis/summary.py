"""One row per run: what it reached, what it cost, how old its samples were.

Tables, scatter plots and the report draw from it. A quantity that a run does not have is NaN.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import aggregate, caption, style
from analysis.outcome import AS_LONG, FAILED, TRAINING_GAMES, counting, outcome, tally
from analysis.run import Run
from analysis.settings import as_number, setting
from analysis.statistics import area_under_curve

log = logging.getLogger(__name__)

NO_OP_MAX = 30  # of DeepMind's no-op starts
SHARES = ("share_simulate", "share_predict", "share_train", "share_wait", "share_communicate")
LABELS = {  # of columns, for axes: with unit
    "score": "final evaluation, mean return",
    "training_score": f"training return, last {TRAINING_GAMES} games",
    "area": "return, mean over training",
    "frames": "frames",
    "hours": "hours of training",
    "wall_seconds": "seconds of training",
    "frames_per_second": "frames per second",
    "pps": "predictions (agent steps) per second",
    "tps": "trainings (updates) per second",
    "bound_pps": "serial bound, agent steps per second",
    "share_of_bound": "share of the machine's serial bound",
    "learning_rate": "initial learning rate",
    "gradient_norm": "gradient norm",
    "gradient_variance": "variance of the gradient",
    "lag_updates": "mean lag in updates",
    "lag_updates_p95": "95th percentile of lag in updates",
    "lag_updates_predicted": "lag in updates by Little's law",
    "samples_per_second": "samples learnt from per second",
    "samples_on_their_way": "samples on their way",
    "samples_per_update": "samples per update",
    "lag_rollout_updates": "mean lag until the rollout was complete, in updates",
    "lag_queue_updates": "mean lag until a learner took it, in updates",
    "lag_gradient_updates": "mean lag until it was applied, in updates",
    "lag_frames": "mean lag in frames",
    "lag_seconds": "mean lag in seconds",
    "lag_kl_nats": "mean KL in nats",
    "importance_ratio": "mean importance ratio",
    "value_lag": "mean change of the value",
    "gradient_staleness_updates": "mean gradient staleness in updates",
    "replay_age_frames": "mean replay age in frames",
    "effective_sample_size": "effective share of the samples",
    "entropy_nats": "mean entropy of the policy, nats",
    "gradient_cosine": "cosine of the gradient and a fresh one",
    "clip_share": "share of the samples whose ratio is cut",
}
LAG_UNITS = {  # quantities that may be 0 and span decades, and up to where their axis is linear
    "lag_updates": 1.0,
    "lag_updates_p95": 1.0,
    "lag_updates_predicted": 1.0,
    "lag_rollout_updates": 1.0,
    "lag_queue_updates": 1.0,
    "lag_gradient_updates": 1.0,
    "lag_frames": 1.0,
    "lag_seconds": 1e-2,
    "lag_kl_nats": 1e-5,
    "value_lag": 1e-3,
    "gradient_staleness_updates": 1.0,
    "replay_age_frames": 1.0,
}
_OF_LAG = (*(name for name in LAG_UNITS if name != "lag_updates_predicted"), "importance_ratio")
_OF_METRICS = (
    *("gradient_norm", "gradient_variance", "gradient_cosine", "effective_sample_size", "clip_share", "entropy_nats"),
    *("share_predictors_wait", "share_trainers_wait", *SHARES),
)


def summarise(runs: Iterable[Run]) -> pd.DataFrame:
    """A row per run; empty (with its columns) without any.

    Columns: path, env, game (None beside Atari), algo, label, name (for legends), seed, state, ending (state, or
    "diverged"), library (empty for ours); counters; LABELS and SHARES; games (of the evaluation) and starts; hardware.
    `score` is what a run reached by the rule of `outcome`, and score_is says what that was. Areas in one environment
    end at the same frame (`common_ends`). Speeds are those of the whole run; lag and shares of time are means over its
    intervals, the latter weighted by their length.
    """
    runs = list(runs)
    ends = common_ends(runs)
    return _with_starts(pd.DataFrame([_row(run, ends.get(run.env)) for run in runs], columns=_COLUMNS))


def common_ends(runs: Sequence[Run]) -> dict[str, float]:
    """By environment, the frames of the shortest run that finished; without one, of the shortest run."""
    of_env: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for run in runs:
        of_env[run.env].append((run.state != "finished", as_number(run.status.get("frames"))))
    return {env: min(known)[1] for env, all_ in of_env.items() if (known := [one for one in all_ if one[1] > 0.0])}


def about_areas(runs: Sequence[Run]) -> str:
    """A sentence on runs of different length, whose areas are cut or carried on; empty if all are as long."""
    ends = common_ends(runs)
    lengths = [(run, as_number(run.status.get("frames")), ends.get(run.env)) for run in runs]
    uneven = sorted(
        {run.env for run, frames, end in lengths if end and (_is_longer(frames, end) or frames < AS_LONG * end)}
    )
    if not uneven:
        return ""
    cut = ", ".join(f"{ends[env]:,.0f} frames in {env}" for env in uneven)
    return (
        f"Mean over training: up to {cut}, where the shortest finished run ends; a failed run counts on with the "
        "return it had, one that is not there yet has none."
    )


def unique_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """Without repeats of a seed: the first finished one counts, else the first."""
    ranked = summary.assign(_unfinished=summary["state"] != "finished").sort_values("_unfinished", kind="stable")
    once = ranked.drop_duplicates(["env", "algo", "label", "seed"])
    return summary.loc[sorted(once.index)]


def counted_rows(summary: pd.DataFrame, column: str = "score") -> pd.DataFrame:
    """Of each configuration in an environment the rows of which its mean is: see `outcome`."""
    known = summary.dropna(subset=[column])
    if known.empty:
        return known
    keys = [known[key] for key in ("env", "algo", "label")]
    return known[known["ending"].groupby(keys).transform(lambda endings: counting(endings)).astype(bool)]


def tally_of(rows: pd.DataFrame, counted: pd.DataFrame, noun: str = "seed") -> str:
    """How many runs a number is of: see `outcome.tally`."""
    return tally(list(rows["ending"]), len(counted), noun)


def is_plain(rows: pd.DataFrame, counted: pd.DataFrame) -> bool:
    """Whether all finished and count, so that there is nothing to be said."""
    return len(rows) == len(counted) and bool((rows["ending"] == "finished").all())


def value_of(run: Run, row: Mapping[str, Any], name: str) -> float:
    """A quantity of a run: a column of its row in the summary, or a setting by the end of its key: `algo.n_agents`,
    `n_agents`. NaN where there is no such number."""
    if name in LABELS or name in SHARES:
        return float(row[name])
    return as_number(setting(run, name))


_COLUMNS = [
    *(
        "path",
        "env",
        "game",
        "algo",
        "label",
        "name",
        "seed",
        "state",
        "ending",
        "score_is",
        "agent_steps",
        "updates",
        "games",
        "starts",
        "library",
    ),
    *("hardware", "share_predictors_wait", "share_trainers_wait", *LABELS, *SHARES),
]


def _row(run: Run, end: float | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_COLUMNS, float("nan"))
    row |= {"path": str(run.path), "env": run.env, "game": run.config["env"].get("game"), "algo": run.algo}
    row |= {
        "label": run.label,
        "seed": run.seed,
        "state": run.state,
        "ending": run.ending,
        "hardware": caption.machine(run),
        "library": run.library,
    }
    row["name"] = " ".join(filter(None, [style.display_name(run.algo), run.label]))
    row |= _counters(run) | _scores(run, end) | _of_metrics(run) | _lag(run)
    return row | _by_littles_law(row, run)


def _counters(run: Run) -> dict[str, float]:
    frames, agent_steps, updates, seconds = (
        as_number(run.status.get(key)) for key in ("frames", "agent_steps", "updates", "wall_seconds")
    )
    per_second = 1.0 / seconds if seconds > 0.0 else float("nan")
    calibration = run.status.get("calibration")
    bound = as_number(calibration.get("serial_bound_agent_steps_per_second") if isinstance(calibration, dict) else None)
    return {
        "frames": frames,
        "agent_steps": agent_steps,
        "updates": updates,
        "wall_seconds": seconds,
        "hours": seconds / 3600.0,
        "frames_per_second": frames * per_second,
        "pps": agent_steps * per_second,
        "tps": updates * per_second,
        "bound_pps": bound,
        "share_of_bound": agent_steps * per_second / bound if bound > 0.0 else float("nan"),
    }


def _scores(run: Run, end: float | None) -> dict[str, Any]:
    scores: dict[str, Any] = {"starts": "training"}
    table = run.training_returns(TRAINING_GAMES)
    if len(table):
        frames, returns = table[["frames", "mean_return"]].to_numpy(dtype=np.float64).T
        area = _area(run, *aggregate.last_of_each(frames, returns), end)
        scores |= {"training_score": returns[-1], "area": area}
    games = run.evaluations()
    reached = outcome(run, games)
    scores["score_is"] = reached.kind
    if reached.is_evaluation:
        scores |= {"score": reached.value, "games": reached.n_games, "starts": starts_of(run, games)}
    return scores


def _area(run: Run, x: aggregate.Floats, y: aggregate.Floats, end: float | None) -> float:
    """Mean return over training up to the common end; NaN for a run that may still get there."""
    frames = as_number(run.status.get("frames"))
    if end is None or np.isnan(frames):
        return area_under_curve(x, y)
    if _is_longer(frames, end):
        return area_under_curve(x, y, min(end, float(x[-1])))
    if frames >= AS_LONG * end:
        return area_under_curve(x, y)
    if run.ending not in FAILED:
        return float("nan")
    return area_under_curve(np.append(x, end), np.append(y, y[-1]))


def _is_longer(frames: float, end: float) -> bool:
    return end < AS_LONG * frames


def _with_starts(table: pd.DataFrame) -> pd.DataFrame:
    """Runs that ended before their first evaluation belong to the others of their environment, if those have any.

    Their score is that of their training games then.
    """
    early = (table["state"] != "finished") & (table["starts"] == "training") & (table["library"] == "")
    evaluated = table[table["starts"] != "training"]
    for i, row in table[early].iterrows():
        here = evaluated[evaluated["env"] == row["env"]]
        own = here[(here["algo"] == row["algo"]) & (here["label"] == row["label"])]
        known = (own if len(own) else here)["starts"].mode()
        if len(known):
            table.loc[i, ["starts", "score"]] = [known.iloc[0], row["training_score"]]
    return table


def starts_of(run: Run, games: pd.DataFrame) -> str:
    """How the games of an evaluation began: a score means little without it. Without games: how they will."""
    if run.config["env"].get("game") is None:
        return "as the environment has them"
    of_games = pd.to_numeric(games.get("noop_max", pd.Series(dtype="float64")), errors="coerce").dropna()
    noop_max = float(of_games.iloc[0]) if len(of_games) else as_number(run.config["env"].get("noop_max"))
    return "no-op" if noop_max == NO_OP_MAX else f"up to {noop_max:g} no-op frames"


def _of_metrics(run: Run) -> dict[str, float]:
    table = run.metrics()
    values: dict[str, float] = {}
    seconds = np.diff(table["wall_seconds"].to_numpy(dtype=np.float64), prepend=0.0)
    for column in (name for name in _OF_METRICS if name in table):
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
        known = np.isfinite(numbers) & (seconds > 0.0)
        if known.any():
            values[column] = float(np.average(numbers[known], weights=seconds[known]))
    return values | {"learning_rate": _learning_rate(run, table)}


def _learning_rate(run: Run, table: pd.DataFrame) -> float:
    """The one that was set; where the seed drew it (lr_range), that of the first interval, or NaN before its end."""
    set_rate = as_number(setting(run, "algo.optimizer.lr"))
    if setting(run, "algo.optimizer.lr_range") is None and np.isfinite(set_rate):
        return set_rate
    rates = pd.to_numeric(table.get("learning_rate", pd.Series(dtype="float64")), errors="coerce").dropna()
    return float(rates.iloc[0]) if len(rates) else float("nan")


def _lag(run: Run) -> dict[str, float]:
    table = run.lag()
    values = {}
    for name in _OF_LAG:
        column = name if name.endswith("_p95") else f"{name}_mean"
        if column in table and table[column].notna().any():
            values[name] = float(table[column].mean())
    histogram = run.lag_histogram()  # of all samples, each as much as another: intervals hold more or fewer of them
    for unit, bins in histogram.groupby("unit"):
        mean, p95 = mean_and_p95(bins)
        values |= {name: x for name, x in ((str(unit), mean), (f"{unit}_p95", p95)) if name in _OF_LAG}
    return values


def _by_littles_law(row: Mapping[str, Any], run: Run) -> dict[str, float]:
    """The lag that speed and age predict: see `analysis.little`."""
    bins = run.lag_histogram()
    n_samples = float(bins.loc[bins["unit"] == "lag_seconds", "samples"].sum())
    if not (n_samples > 0.0 and row["updates"] > 0.0 and row["wall_seconds"] > 0.0):
        return {}
    per_second, per_update = n_samples / row["wall_seconds"], n_samples / row["updates"]
    on_their_way = per_second * row["lag_seconds"]
    return {
        "samples_per_second": per_second,
        "samples_on_their_way": on_their_way,
        "samples_per_update": per_update,
        "lag_updates_predicted": on_their_way / per_update,
    }


def mean_and_p95(bins: pd.DataFrame) -> tuple[float, float]:
    """Of the samples in some bins of one unit, as in lag_histogram.csv; exact where a bin holds one whole number."""
    bins = bins.sort_values("lower")
    low, high, n = bins[["lower", "upper", "samples"]].to_numpy(dtype=np.float64).T
    if str(bins["unit"].iloc[0]).endswith(("_updates", "_frames")):
        high = np.maximum(high - 1.0, low)  # the largest whole number below
    middle = np.where(low == 0.0, 0.0, np.where(np.isfinite(high), (low + high) / 2.0, low))
    reaches = np.searchsorted(np.cumsum(n), 0.95 * n.sum())
    return float(np.average(middle, weights=n)), float(middle[reaches])
