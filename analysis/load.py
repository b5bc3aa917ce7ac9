"""Run directories in, runs out: the contract between training and analysis, from the reader's side.

A run directory is any directory that holds config.yaml and status.json. Whatever is broken is named by a warning and
left out: one bad run never costs the figure of the others.
"""

import io
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis import aggregate, walk

log = logging.getLogger(__name__)

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML has it: ten times as fast

EPISODE_COLUMNS = ("frames", "agent_steps", "wall_seconds", "episode_return", "episode_length")
METRIC_COLUMNS = ("frames", "agent_steps", "updates", "wall_seconds", "frames_per_second", "pps", "tps")
LAG_COLUMNS = ("frames", "agent_steps", "updates", "wall_seconds")
HISTOGRAM_COLUMNS = ("unit", "lower", "upper", "samples")
ADJUSTMENT_COLUMNS = ("frames", "wall_seconds", "n_agents", "n_predictors", "n_trainers", "tps")
EVALUATION_COLUMNS = ("frames", "wall_seconds", "final", "episode_return", "episode_length")
_DTYPES = {"final": "bool", "unit": "object"}  # of the columns that hold no numbers
# Keys that tell no curves apart: the seed is averaged over, and the others change no result.
_NEVER_IN_LABEL = (
    *("seed", "name", "root", "progress", "logger", "calibrate", "checkpoint_interval_seconds"),
    *("worker_silence_seconds", "metrics_interval_frames", "retry_diverged", "tuned_for"),
)
_DIVERGED = "the run diverged"  # in the error of such a run
_SAY_LITTLE = ("kind", "enabled", "mode", "frames")  # without the word before them
_LONGEST_LABEL = 100  # letters, beyond which a sweep's name is the better one


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
        return _read_table(self.path / "episodes.csv", EPISODE_COLUMNS).sort_values("frames", kind="stable")

    def training_returns(self, window: int) -> pd.DataFrame:
        """At the end of each training game: frames and wall_seconds, and mean_return of the last `window` games."""
        episodes = self.episodes()
        means = aggregate.rolling_mean(episodes["episode_return"].to_numpy(dtype="float64"), window)
        seconds = episodes["wall_seconds"].cummax()  # workers read the frames and the clock one after the other
        return episodes[["frames"]].assign(wall_seconds=seconds, mean_return=means)

    def metrics(self) -> pd.DataFrame:
        """One row per interval of training."""
        return _read_table(self.path / "metrics.csv", METRIC_COLUMNS)

    def lag(self) -> pd.DataFrame:
        """Policy lag, one row per interval of training, by `frames`; NaN where an interval has no sample of a unit."""
        table = _read_table(self.path / "lag.csv", LAG_COLUMNS).sort_values("frames", kind="stable")
        return table.apply(pd.to_numeric, errors="coerce")

    def lag_histogram(self) -> pd.DataFrame:
        """Bins of policy lag over the whole run: samples with lower <= lag < upper, by `unit`."""
        return _read_table(self.path / "lag_histogram.csv", HISTOGRAM_COLUMNS)

    def adjustments(self) -> pd.DataFrame:
        """GA3C's dynamic adjustment, one row per window; empty if it is off."""
        return _read_table(self.path / "adjustments.csv", ADJUSTMENT_COLUMNS)

    def evaluations(self) -> pd.DataFrame:
        """Evaluation games, one a row; `final` is True for those of the evaluation after training.

        Where a run was finished and went on with a larger budget, those of its earlier end are no final ones any more.
        """
        games = _read_table(self.path / "eval.csv", EVALUATION_COLUMNS)
        end = games["frames"][games["final"]].max()
        starts = self.status.get("history")
        began = (
            [start.get("frames", 0) for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
        )
        if self.state != "finished" and any(frames >= end for frames in began):
            return games.assign(final=False)
        return games.assign(final=games["final"] & (games["frames"] >= end))


def load_runs(*roots: str | Path) -> list[Run]:
    """Finds the runs below some directories, each once, in the order of their paths.

    Args:
        roots: directories at any height: `runs`, `runs/demo` or a single run directory; also those in which wandb keeps
            offline runs, where there is no run directory around them, and `wandb:entity/project`.

    Returns:
        the runs; empty if there are none. Broken ones are named by a warning and left out.

    Raises:
        FileNotFoundError: a root is not a directory.
        wandb_runs.WandbError: an online project cannot be read.
    """
    return load_and_count(roots)[0]


def load_and_count(roots: Sequence[str | Path]) -> tuple[list[Run], list[int]]:
    """As `load_runs`, and how many runs each root holds: roots may overlap, or be links to each other."""
    from analysis import wandb_runs  # which needs Run

    found: dict[Path, Run | None] = {}  # by resolved path; None: broken, and named already
    counts = []
    for root in roots:
        if str(root).startswith(wandb_runs.PREFIX):
            here: dict[Path, Run | None] = {run.path: run for run in wandb_runs.read_online(str(root))}
        else:
            if not Path(root).is_dir():
                raise FileNotFoundError(f"{root} is not a directory: give one that holds runs, for instance runs/demo.")
            offline: list[Path] = []
            paths = {directory.resolve(): directory for directory in _run_directories(Path(root), offline)}
            here = {key: found[key] if key in found else _load_run(path) for key, path in paths.items()}
            here |= {run.path.resolve(): run for run in wandb_runs.read_offline(offline)}
        counts.append(sum(run is not None for run in here.values()))
        found |= here
    return labelled([run for run in found.values() if run is not None]), counts


def _run_directories(root: Path, offline: list[Path]) -> Iterator[Path]:
    """The run directories, and into `offline` the files of wandb that lie in none."""
    for directory, children, files in walk.below(root):
        offline += [directory / file for file in sorted(files) if file.endswith(".wandb")]
        if "status.json" in files and "config.yaml" in files:
            children.clear()  # runs do not nest; their wandb/ and video/ hold many files
            yield directory
        elif "status.json" in files:
            log.warning("%s is left out: it holds no config.yaml.", directory)
        elif "config.yaml" in files and "episodes.csv" in files:
            log.warning("%s is left out: it holds no status.json.", directory)


def _load_run(directory: Path) -> Run | None:
    try:
        config = _mapping(yaml.load((directory / "config.yaml").read_text(), Loader=_Loader), "config.yaml")
        status = _mapping(json.loads((directory / "status.json").read_text()), "status.json")
        return Run(directory, config, status, *identity(config))
    except KeyError as error:
        reason = f"config.yaml has no key {error}"
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    log.warning("%s is left out: %s.", directory, reason)
    return None


def identity(config: Mapping[str, Any]) -> tuple[str, str, int]:
    """Algorithm, environment and seed; raises KeyError, TypeError, ValueError or AttributeError without them."""
    env = config["env"]
    key = [env["observed_key"]] if env.get("observed_key") else []
    seen = "".join(f"-{part}" for part in [*key, *(env.get("observed") or ())])
    name = str(env.get("game") or env["id"]) + (f"-sees{seen}" if seen else "")  # as in the paths of runs
    return str(config["algo"]["name"]), name, int(config["seed"])


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} does not hold keys and values")
    return value


# --- labels ---------------------------------------------------------------------------------------------------------


def labelled(runs: Sequence[Run], explained: Callable[[Run], Any] | None = None) -> list[Run]:
    """The same runs; those of one algorithm and environment are told apart by the settings in which they differ.

    Args:
        runs: to label.
        explained: what tells runs apart already, for instance their place on an axis: settings that it decides, as one
            value of it goes with one of theirs, are no part of the label.
    """
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.env, run.algo].append(run)
    labels: dict[Path, str] = {}
    for group in groups.values():
        labels |= _labels(group, explained)
    return [replace(run, label=labels[run.path]) for run in runs]


def _labels(group: Sequence[Run], explained: Callable[[Run], Any] | None) -> dict[Path, str]:
    settings = [printed(run.config) for run in group]
    keys = [key for key in dict.fromkeys(key for one in settings for key in one) if not changes_nothing(key)]
    differing = [key for key in keys if len({one.get(key, "unset") for one in settings}) > 1]
    if explained is not None:
        places = [explained(run) for run in group]
        differing = [key for key in differing if not _decided([one.get(key, "unset") for one in settings], places)]
        if not differing:
            return {run.path: "" for run in group}
    points = [
        (run.seed, *(one.get(key, "unset") for key in differing)) for run, one in zip(group, settings, strict=True)
    ]
    names = {one.get("name", "unset") for one in settings}
    if explained is None and len(set(points)) < len(points) and len(names) > 1:
        differing.append("name")  # the same point under two names, for instance before and after a change
    short = _short_names(differing)
    labels = {
        run.path: ", ".join(f"{short[key]}={one.get(key, 'unset')}" for key in differing)
        for run, one in zip(group, settings, strict=True)
    }
    named = {run.path: f"name={one.get('name', 'unset')}" for run, one in zip(group, settings, strict=True)}
    pairs = {(labels[path], named[path]) for path in labels}
    too_long = max(map(len, labels.values())) > _LONGEST_LABEL
    if too_long and len(pairs) == len({label for label, _ in pairs}) == len({name for _, name in pairs}):
        return named  # each name is one configuration, and that says it shorter
    return labels


def _decided(values: Sequence[str], places: Sequence[Any]) -> bool:
    """Whether all runs at one place have one value."""
    return len(set(zip(places, values, strict=True))) == len(set(places))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with dotted keys: `algo.optimizer.lr`."""
    pairs: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[f"{prefix}{key}"] = value
    return pairs


def printed(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys, and values as one would type them."""
    return {key: "null" if value is None else str(value) for key, value in flat(config).items()}


def changes_nothing(key: str) -> bool:
    """Whether a setting has no influence on what a run computes, or is the seed."""
    return key.split(".")[0] in _NEVER_IN_LABEL


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last part, or as many of its last parts as no other key ends in."""
    return {key: _shortest_ending(key, [f".{other}" for other in keys if other != key]) for key in keys}


def _shortest_ending(key: str, others: Sequence[str]) -> str:
    parts = key.split(".")
    shortest = 2 if parts[-1] in _SAY_LITTLE else 1
    endings = (".".join(parts[start:]) for start in reversed(range(len(parts) - shortest + 1)))
    return next((end for end in endings if not any(other.endswith(f".{end}") for other in others)), key)


# --- tables ---------------------------------------------------------------------------------------------------------


def _read_table(file: Path, required: Sequence[str]) -> pd.DataFrame:
    """A table whose `required` columns are there and hold numbers (or what _DTYPES says) in every row."""
    empty = pd.DataFrame({column: pd.Series(dtype=_DTYPES.get(column, "float64")) for column in required})
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
