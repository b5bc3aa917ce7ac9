"""What other libraries write of a run, read as it stands: TensorBoard events, SB3's monitor.csv, openrlbenchmark's CSV.

A file tells its kind by its content. None of them says what a step is, nor how fast time went before its first line:
`analysis.others` makes a run of it.

- CleanRL writes the return of each training game (`charts/episodic_return`) at its `global_step`, and its
  hyperparameters as a table in Markdown. Where environments are compiled, a mean alone (`charts/avg_episodic_return`).
- Stable-Baselines3 writes the mean of the last 100 training games (`rollout/ep_rew_mean`) at each of its dumps; its
  Monitor writes each game: return, length and seconds (r, l, t) below a line of JSON, a file per environment.
- openrlbenchmark keeps wandb's history of such runs: run_df.csv, and run.json with the configuration beside it.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

Kind = Literal["events", "monitor", "history"]

_GAMES = ("charts/episodic_return",)
_MEANS = ("rollout/ep_rew_mean", "charts/avg_episodic_return")
_SPEEDS = ("charts/SPS", "time/fps")
_TAGS = (*_GAMES, *_MEANS, *_SPEEDS)
_LIBRARIES = {"charts": "CleanRL", "rollout": "SB3", "time": "SB3"}  # by the first part of a tag
_PROJECTS = {"cleanrl": "CleanRL", "sb3": "SB3", "baselines": "Baselines"}  # of openrlbenchmark, as one writes them
_STATES = {"finished": "finished", "running": "running"}  # of wandb; whatever else was cut short
_HYPERPARAMETERS = "hyperparameters/text_summary"


class OtherError(Exception):
    """A file that cannot be read as a run; the message is a clause that says why."""


@dataclass(frozen=True)
class Log:
    """What the files of one run tell. Tables have `steps` and `wall_seconds`, both not decreasing."""

    library: str
    told: Mapping[str, Any]  # env_id, exp_name, seed and hyperparameters, as far as they say
    games: pd.DataFrame  # `value`: return of each training game; `length` where it is known, in steps
    means: pd.DataFrame  # `value`: mean return of the last games, of a number that is theirs
    speeds: pd.DataFrame  # `value`: steps per second since the start
    counts_frames: bool = False  # steps are those below a wrapper that skips frames, if there is one
    state: str = "finished"  # a log does not say whether its run was cut short


def kind_of(file: Path) -> Kind | None:
    """How a file can be read: by its name where that is TensorBoard's, else by its first line; None if it cannot."""
    if "tfevents" in file.name:
        return "events"
    if file.suffix != ".csv":
        return None
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            first = lines.readline()
    except OSError:
        return None
    if first.startswith("#{") and '"t_start"' in first:
        return "monitor"
    columns = {name.strip().strip('"') for name in first.split(",")}
    return "history" if "global_step" in columns and columns & {*_GAMES, *_MEANS} else None


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def read_events(place: Path) -> Log:
    """The event files of a directory, or one of them.

    Raises:
        OtherError: tensorboard is not installed, or none of the tags is there.
    """
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError:
        raise OtherError(
            "reading TensorBoard's files takes tensorboard, which is not installed: "
            "pip install 'a3c-bench[tensorboard]' brings it"
        ) from None
    keep_all = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 1}
    events = event_accumulator.EventAccumulator(str(place), size_guidance=keep_all)
    events.Reload()
    series = {
        tag: pd.DataFrame([(one.step, one.wall_time, one.value) for one in events.Scalars(tag)],
                          columns=["steps", "wall_seconds", "value"])
        for tag in events.Tags()["scalars"] if tag in _TAGS
    }  # fmt: skip
    if not series:
        raise OtherError(
            "it has no tag of CleanRL (charts/episodic_return) or Stable-Baselines3 (rollout/ep_rew_mean), "
            "or no whole event"
        )
    began = events.FirstEventTimestamp()
    series = {tag: table.assign(wall_seconds=table["wall_seconds"] - began) for tag, table in series.items()}
    told: dict[str, Any] = {}
    if _HYPERPARAMETERS in events.Tags()["tensors"]:
        (text,) = events.Tensors(_HYPERPARAMETERS)[0].tensor_proto.string_val
        told = _hyperparameters(text.decode("utf-8", "replace"))
    return _log(_library_of(series), told, series)


def _hyperparameters(markdown: str) -> dict[str, str]:
    """The rows of `|key|value|` below a head of two lines."""
    rows = (line.strip().strip("|").split("|", 1) for line in markdown.splitlines()[2:])
    return {row[0]: row[1] for row in rows if len(row) == 2}


def _library_of(tags: Mapping[str, Any]) -> str:
    return next(_LIBRARIES[tag.split("/")[0]] for tag in _TAGS if tag in tags)


def _log(library: str, told: Mapping[str, Any], series: Mapping[str, pd.DataFrame], state: str = "finished") -> Log:
    games, means, speeds = (
        next((_in_order(series[tag]) for tag in tags if tag in series and len(series[tag])), _NOTHING)
        for tags in (_GAMES, _MEANS, _SPEEDS)
    )
    return Log(library, told, games, means, speeds, state=state)


_NOTHING = pd.DataFrame({name: pd.Series(dtype="float64") for name in ("steps", "wall_seconds", "value")})


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """By steps, without what has no value; the clock never runs back, as that of a run that went on may."""
    table = table.apply(pd.to_numeric, errors="coerce").astype("float64").dropna()
    table = table.sort_values("steps", kind="stable").reset_index(drop=True)
    return table.assign(wall_seconds=table["wall_seconds"].cummax())


# --- Stable-Baselines3's Monitor --------------------------------------------------------------------------------------


def read_monitors(files: Sequence[Path]) -> Log:
    """The games of one run, which has a file for each of its environments.

    A game's steps are all that ended up to it, as in SB3's own figures: its files know no other clock.

    Raises:
        OtherError: a file is damaged, or the files are of several environments.
    """
    parts, starts, envs = [], [], set()
    for file in files:
        head, _, body = file.read_text(encoding="utf-8", errors="replace").partition("\n")
        try:
            header = json.loads(head.removeprefix("#"))
            start, env = float(header["t_start"]), header.get("env_id")
            table = pd.read_csv(io.StringIO(body[: body.rfind("\n") + 1] or "r,l,t\n"), on_bad_lines="skip")
            table = table[["r", "l", "t"]].apply(pd.to_numeric, errors="coerce").dropna()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OtherError(f"{file.name} is damaged ({' '.join(str(error).split())})") from error
        parts.append(table.assign(t=table["t"] + start))
        starts.append(start)
        envs.add(env)
    if len(envs) > 1:
        raise OtherError(f"its monitors are of several environments: {', '.join(sorted(map(str, envs)))}")
    env = envs.pop()
    rows = pd.concat(parts).sort_values("t", kind="stable").reset_index(drop=True).astype("float64")
    games = pd.DataFrame(
        {"steps": rows["l"].cumsum(), "wall_seconds": rows["t"] - min(starts), "value": rows["r"], "length": rows["l"]}
    )
    told = {} if env in (None, "None") else {"env_id": env}
    # Monitor stands below the wrapper that skips frames: `make_vec_env` puts it there, and so it counts them all.
    return Log("SB3", told, games, _NOTHING, _NOTHING, counts_frames=True)


# --- openrlbenchmark --------------------------------------------------------------------------------------------------


def read_history(file: Path) -> Log:
    """wandb's history of a run, as openrlbenchmark keeps it, and run.json beside it where there is one.

    Raises:
        OtherError: one of the two is damaged.
    """
    try:
        rows = pd.read_csv(file, low_memory=False)
        meta = _meta(file.with_name("run.json"))
    except (OSError, ValueError) as error:
        raise OtherError(" ".join(str(error).split())) from error
    if "_runtime" in rows:
        seconds = rows["_runtime"]
    elif "_timestamp" in rows:
        seconds = rows["_timestamp"] - rows["_timestamp"].min()
    else:
        raise OtherError("it has no column _runtime or _timestamp, and so no time")
    clock = {"steps": rows["global_step"].ffill(), "wall_seconds": seconds}
    series = {tag: pd.DataFrame(clock | {"value": rows[tag]}).dropna() for tag in _TAGS if tag in rows}
    config = {key: _unpacked(value) for key, value in (meta.get("config") or {}).items()}
    project = str(meta.get("project") or "")
    library = _PROJECTS.get(project.lower(), project) or _library_of(series)
    state = _STATES.get(str(meta.get("state", "finished")), "preempted")
    return _log(library, config, series, state)


def _meta(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    read = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise ValueError("run.json does not hold keys and values")
    attributes = read.get("_attrs")  # of its older form
    return attributes if isinstance(attributes, dict) else read


def _unpacked(value: Any) -> Any:
    """wandb keeps a setting as {"desc": ..., "value": ...}."""
    return value["value"] if isinstance(value, dict) and "value" in value else value


def read_means(file: Path) -> pd.DataFrame:
    """A table that openrlbenchmark made of many runs: env, method and score, the mean over runs that it does not count.

    Raises:
        OtherError: it is none: environments down, methods across, and "mean ± standard deviation" in each cell.
    """
    try:
        cells = pd.read_csv(file, index_col=0, dtype=str).stack()
    except (OSError, ValueError) as error:
        raise OtherError(" ".join(str(error).split())) from error
    parts = cells.str.extract(r"^\s*([-+\d.e]+)\s*±")[0]
    scores = pd.to_numeric(parts, errors="coerce").dropna()
    if scores.empty:
        raise OtherError('none of its cells is "mean ± standard deviation", as openrlbenchmark writes them')
    names = [str(name).split(" ({")[0].split("/")[-1] for _, name in scores.index]
    return pd.DataFrame({"env": [str(env) for env, _ in scores.index], "method": names, "score": scores.to_numpy()})
