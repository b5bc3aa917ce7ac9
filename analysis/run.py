"""One run: its configuration, its status and its tables, read from its directory. The reader's side of the contract.

A table never raises: what is not there is empty, and what is damaged is named by a warning and left out.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import aggregate

log = logging.getLogger(__name__)

EPISODE_COLUMNS = ("frames", "agent_steps", "wall_seconds", "episode_return", "episode_length")
METRIC_COLUMNS = ("frames", "agent_steps", "updates", "wall_seconds", "frames_per_second", "pps", "tps")
LAG_COLUMNS = ("frames", "agent_steps", "updates", "wall_seconds")
HISTOGRAM_COLUMNS = ("unit", "lower", "upper", "samples")
ADJUSTMENT_COLUMNS = ("frames", "wall_seconds", "n_agents", "n_predictors", "n_trainers", "tps")
EVALUATION_COLUMNS = ("frames", "wall_seconds", "final", "episode_return", "episode_length")
_DTYPES = {"final": "bool", "unit": "object"}  # of the columns that hold no numbers
_DIVERGED = "the run diverged"  # in the error of such a run


@dataclass(frozen=True)
class Run:
    """One run. Its tables are read from disk at each call and never raise: a missing file is an empty table.

    Runs with equal `env`, `algo` and `label` differ in their seed alone.
    """

    path: Path
    config: Mapping[str, Any]  # config.yaml
    status: Mapping[str, Any]  # status.json
    algo: str
    env: str  # the Atari game, else the environment's id
    seed: int
    label: str = ""  # the settings in which it differs from the other loaded runs of its algorithm: "n_envs=64"
    library: str = ""  # that trained it, where it is not this suite

    @property
    def state(self) -> str:
        """running, finished, failed or preempted."""
        return str(self.status.get("state", "unknown"))

    @property
    def ending(self) -> str:
        """The state, or "diverged" of a run that failed since a number of its training became infinite or NaN."""
        diverged = self.status.get("diverged") is True or _DIVERGED in str(self.status.get("error"))
        return "diverged" if self.state == "failed" and diverged else self.state

    @property
    def attempts(self) -> Sequence[str]:
        """How each start of training ended; "unknown" where an older version did not note it."""
        history, known = self.status.get("history"), self.status.get("attempts")
        noted = [one for one in history if isinstance(one, Mapping)] if isinstance(history, list) else []
        ends = [str(one.get("ended", "unknown")) for one in noted[:-1]] + [self.ending]
        return ["unknown"] * ((known if isinstance(known, int) else 1) - len(ends)) + ends

    def episodes(self) -> pd.DataFrame:
        """Finished training games, one a row, by `frames` (several may share a value)."""
        return self._table("episodes.csv", EPISODE_COLUMNS).sort_values("frames", kind="stable")

    def training_returns(self, window: int) -> pd.DataFrame:
        """At the end of each training game: frames and wall_seconds, and mean_return of the last `window` games."""
        episodes = self.episodes()
        means = aggregate.rolling_mean(episodes["episode_return"].to_numpy(dtype="float64"), window)
        seconds = episodes["wall_seconds"].cummax()  # workers read the frames and the clock one after the other
        return episodes[["frames"]].assign(wall_seconds=seconds, mean_return=means)

    def metrics(self) -> pd.DataFrame:
        """One row per interval of training."""
        return self._table("metrics.csv", METRIC_COLUMNS)

    def lag(self) -> pd.DataFrame:
        """Policy lag, one row per interval of training, by `frames`; NaN where an interval has no sample of a unit."""
        table = self._table("lag.csv", LAG_COLUMNS).sort_values("frames", kind="stable")
        return table.apply(pd.to_numeric, errors="coerce")

    def lag_histogram(self) -> pd.DataFrame:
        """Bins of policy lag over the whole run: samples with lower <= lag < upper, by `unit`."""
        return self._table("lag_histogram.csv", HISTOGRAM_COLUMNS)

    def adjustments(self) -> pd.DataFrame:
        """GA3C's dynamic adjustment, one row per window; empty if it is off."""
        return self._table("adjustments.csv", ADJUSTMENT_COLUMNS)

    def evaluations(self) -> pd.DataFrame:
        """Evaluation games, one a row; `final` is True for those of the evaluation after training.

        Where a run was finished and went on with a larger budget, those of its earlier end are no final ones any more.
        """
        games = self._table("eval.csv", EVALUATION_COLUMNS)
        end = games["frames"][games["final"]].max()
        starts = self.status.get("history")
        began = (
            [start.get("frames", 0) for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
        )
        if self.state != "finished" and any(frames >= end for frames in began):
            return games.assign(final=False)
        return games.assign(final=games["final"] & (games["frames"] >= end))

    def _table(self, file: str, required: Sequence[str]) -> pd.DataFrame:
        return _read_table(self.path / file, required)


def identity(config: Mapping[str, Any]) -> tuple[str, str, int]:
    """Algorithm, environment and seed; raises KeyError, TypeError, ValueError or AttributeError without them."""
    env = config["env"]
    key = [env["observed_key"]] if env.get("observed_key") else []
    seen = "".join(f"-{part}" for part in [*key, *(env.get("observed") or ())])
    name = str(env.get("game") or env["id"]) + (f"-sees{seen}" if seen else "")  # as in the paths of runs
    return str(config["algo"]["name"]), name, int(config["seed"])


# --- tables ---------------------------------------------------------------------------------------------------------


def empty_table(columns: Sequence[str]) -> pd.DataFrame:
    """No row of some columns."""
    return pd.DataFrame({column: pd.Series(dtype=_DTYPES.get(column, "float64")) for column in columns})


def _read_table(file: Path, required: Sequence[str]) -> pd.DataFrame:
    """A table whose `required` columns are there and hold numbers (or what _DTYPES says) in every row."""
    empty = empty_table(required)
    try:
        whole_rows = file.read_bytes().rpartition(b"\n")[0]  # a killed writer may leave half a row at the end
        if not whole_rows:
            return empty
        table = pd.read_csv(io.BytesIO(whole_rows), on_bad_lines="skip", encoding_errors="replace", low_memory=False)
    except FileNotFoundError:
        return empty
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        log.warning("%s is left out: %s.", file, " ".join(str(error).split()))
        return empty
    missing = [column for column in required if column not in table]
    if missing:
        log.warning("%s is left out: it has no column %s.", file, ", ".join(missing))
        return empty
    return _clean(table, file, required)


def _clean(table: pd.DataFrame, file: Path, required: Sequence[str]) -> pd.DataFrame:
    for column in required:
        if column == "final":
            table[column] = table[column].astype(str).str.lower().isin(("true", "1"))
        elif column not in _DTYPES:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype("float64")
    whole = table.dropna(subset=list(required)).reset_index(drop=True)
    if len(whole) < len(table):
        log.warning("%s: %d damaged rows are left out.", file, len(table) - len(whole))
    return whole
