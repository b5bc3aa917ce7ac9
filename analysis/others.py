"""Runs of other libraries beside ours: CleanRL, Stable-Baselines3 and what openrlbenchmark keeps of more.

    python -m analysis.curves runs/pong cleanrl/runs sb3_logs/PongNoFrameskip-v4
    load_runs("runs/pong", "cleanrl/runs/PongNoFrameskip-v4__ppo_atari__1__1700000000")

Their names begin with the library (`CleanRL: ppo_atari`), so that no figure takes them for ours. They hold returns of
training games only: an evaluation of ours never stands beside one of those without its name. Their steps are those of
the agent; frames are as many times more as the emulator skips.

What their files do not say (SB3's events name no environment and no seed) is looked for in the path, and in
`other_run.yaml` in their directory or one above it, which counts first:

    library: SB3
    algo: PPO
    env: CartPole-v1
    seed: 3
    frame_skip: 1
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis import other_formats, published
from analysis.other_formats import Log, OtherError
from analysis.run import EPISODE_COLUMNS, METRIC_COLUMNS, Run, empty_table

log = logging.getLogger(__name__)

NOTE = "other_run.yaml"
_KEYS = ("library", "algo", "env", "seed", "frame_skip")  # of the note
_CLEANRL = re.compile(r"(?P<env>.+)__(?P<algo>.+)__(?P<seed>\d+)__[^_]+")  # a run's name; what follows tells two starts
_ENV = re.compile(r"(?P<env>[A-Za-z][\w.]*(?:-[A-Za-z]\w*)*-v\d+)(?:_\d+)?")  # CartPole-v1, and rl-zoo's CartPole-v1_2
_SB3 = ("A2C", "ARS", "CrossQ", "DDPG", "DQN", "MaskablePPO", "PPO", "QRDQN", "RecurrentPPO", "SAC", "TD3", "TQC")
_ATARI = re.compile(r"(?:ALE/)?(?P<game>[A-Z]\w*?)(?P<skipping>NoFrameskip|Deterministic)?-v(?P<version>\d+)")
MEANS = "openrlbenchmark, means over runs: "  # source of a score
_UNKNOWN = "unknown algorithm"
_LEVELS = 4  # of the path that are looked at for a name: CartPole-v1/seed3/tb/PPO_1
# Settings that change nothing, or follow from others.
_NO_SETTINGS = (
    *("exp_name", "env_id", "env", "algo", "seed", "cuda", "torch_deterministic", "track", "wandb_project_name"),
    *("wandb_entity", "capture_video", "save_model", "upload_model", "hf_entity", "minibatch_size", "num_iterations"),
    *("num_updates", "gym_id", "prod_mode"),
)


@dataclass(frozen=True)
class OtherRun(Run):
    """A run of another library: training games, or means of them, and speeds. It has no evaluation and no lag."""

    games: pd.DataFrame = field(default_factory=pd.DataFrame)  # EPISODE_COLUMNS
    means: pd.DataFrame = field(default_factory=pd.DataFrame)  # frames, wall_seconds, mean_return
    speeds: pd.DataFrame = field(default_factory=pd.DataFrame)  # METRIC_COLUMNS
    knows_seed: bool = True

    def episodes(self) -> pd.DataFrame:
        """Training games, one a row; empty where only means were written."""
        return self.games

    def training_returns(self, window: int) -> pd.DataFrame:
        """As of ours; where only means were written those, whose window is theirs."""
        return super().training_returns(window) if len(self.games) else self.means

    def metrics(self) -> pd.DataFrame:
        """Agent steps per second since the start, as they report it."""
        return self.speeds

    def _table(self, file: str, required: Sequence[str]) -> pd.DataFrame:
        return empty_table(required)


@dataclass(frozen=True)
class Source:
    """Files of one run."""

    kind: other_formats.Kind
    path: Path  # of the run: a directory, or a file that is one run
    files: Sequence[Path]


# --- finding them -----------------------------------------------------------------------------------------------------


def sources(directory: Path, names: Iterable[str]) -> Iterator[Source]:
    """The runs that some files of one directory are, by their content.

    Event files of a directory are one run, and so are monitors that are numbered, one per environment; where both are
    there they are of the same, and the monitors say more.
    """
    by_kind: dict[str | None, list[Path]] = defaultdict(list)
    for name in sorted(names):
        by_kind[other_formats.kind_of(directory / name)].append(directory / name)
    of_one_run = [file for file in by_kind["monitor"] if _is_unnamed(file)]
    if of_one_run:
        yield Source("monitor", directory, of_one_run)
    elif by_kind["events"]:
        yield Source("events", directory, by_kind["events"])
    for file in by_kind["monitor"]:
        if file not in of_one_run:
            yield Source("monitor", file, [file])
    for file in by_kind["history"]:
        yield Source("history", directory if len(by_kind["history"]) == 1 else file, [file])


def _is_unnamed(monitor: Path) -> bool:
    """monitor.csv, or 3.monitor.csv of the fourth environment."""
    name = monitor.name.split(".")[0]
    return name in ("monitor", "") or name.isdigit()


def read(source: Source, root: Path) -> OtherRun | None:
    """One run; None, with a warning, where it cannot be read."""
    try:
        return _read(source, root)
    except OtherError as error:
        log.warning("%s is left out: %s.", source.path, error)
        return None


def read_file(file: Path) -> OtherRun:
    """A run from one file.

    Raises:
        OtherError: it cannot be read; the message is one sentence.
    """
    kind = other_formats.kind_of(file)
    if kind is None:
        raise OtherError(f"{file} {_not_a_run(file)}.")
    try:
        return _read(Source(kind, file, [file]), file.parent)
    except OtherError as error:
        raise OtherError(f"{file} cannot be read: {error}.") from error


def _not_a_run(file: Path) -> str:
    try:
        start = file.read_bytes()[:4096].decode("utf-8", "replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if file.suffix == ".csv" and "±" in start:
        return (
            "holds means over runs, as openrlbenchmark tabulates them, and no run: `analysis.table --beside` takes it"
        )
    return (
        "is no run: a file may be TensorBoard's (events.out.tfevents...) of CleanRL or Stable-Baselines3, SB3's "
        "monitor.csv or openrlbenchmark's run_df.csv"
    )


def read_means(files: Iterable[Path]) -> pd.DataFrame:
    """Tables of openrlbenchmark as published scores are: see `published.scores`; env is that of runs.

    Raises:
        OtherError: one cannot be read; the message is one sentence.
    """
    parts = []
    for file in files:
        try:
            table = other_formats.read_means(file)
        except OtherError as error:
            raise OtherError(f"{file} cannot be read: {error}.") from error
        games = [_game_and_skip(env, 1)[0] for env in table["env"]]
        parts.append(table.assign(game=games, env=[game or env for game, env in zip(games, table["env"], strict=True)],
                                  source=f"{MEANS}{file.name}"))  # fmt: skip
    columns = ["env", "method", "score", "game", "source"]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return rows.assign(starts="training", budget="", checked=True)


def joined(runs: Sequence[Run]) -> list[Run]:
    """The same runs; monitors without an algorithm are the games of the events that have their environment and seed.

    A run of SB3 may leave both, in directories of their own.
    """
    logs = [run for run in runs if isinstance(run, OtherRun) and run.library == "SB3" and run.knows_seed]
    found: dict[Path, Run | None] = {run.path: run for run in runs}
    for games in (run for run in logs if run.algo.endswith(_UNKNOWN) and len(run.games)):
        same = [run for run in logs if (run.env, run.seed) == (games.env, games.seed) and len(run.means)]
        if len(same) == 1:
            found[same[0].path] = replace(same[0], games=games.games)
            found[games.path] = None
    return [run for run in found.values() if run is not None]


def numbered(runs: Sequence[Run]) -> list[Run]:
    """The same runs; those that do not tell their seed get numbers that no other of their method has."""
    taken: dict[tuple[str, str], set[int]] = defaultdict(set)
    for run in runs:
        if not (isinstance(run, OtherRun) and not run.knows_seed):
            taken[run.env, run.algo].add(run.seed)
    found = []
    for run in runs:
        if isinstance(run, OtherRun) and not run.knows_seed:
            known = taken[run.env, run.algo]
            seed = next(number for number in range(len(known) + 1) if number not in known)
            known.add(seed)
            run = replace(run, seed=seed, config={**run.config, "seed": seed})
        found.append(run)
    return found


# --- from files to a run ----------------------------------------------------------------------------------------------


def _read(source: Source, root: Path) -> OtherRun:
    if source.kind == "events":
        found = other_formats.read_events(source.files[0] if source.path.is_file() else source.path)
    elif source.kind == "monitor":
        found = other_formats.read_monitors(source.files)
    else:
        found = other_formats.read_history(source.files[0])
    told = {**_from_path(source), **_renamed(found.told), **_notes(source.path, root)}
    library = str(told.get("library") or found.library)
    if not told.get("env"):
        raise OtherError(f"nothing says which environment it is of: `env: CartPole-v1` in {NOTE} beside it would")
    return _make(source.path, library, found, told)


def _renamed(told: Mapping[str, Any]) -> dict[str, Any]:
    """What files tell, in the words of the note."""
    words = {
        "env": ("env_id", "env", "gym_id"),
        "algo": ("exp_name", "algo"),
        "seed": ("seed",),
    }
    found = {
        word: next((told[key] for key in keys if told.get(key) not in (None, "")), None) for word, keys in words.items()
    }
    return {word: value for word, value in found.items() if value is not None} | {"settings": _settings(told)}


def _settings(told: Mapping[str, Any]) -> dict[str, Any]:
    derived = ("batch_size",) if "num_steps" in told else ()
    return {key: value for key, value in told.items() if key not in (*_NO_SETTINGS, *derived) and key[:1] != "_"}


def _from_path(source: Source) -> dict[str, Any]:
    """What the names of the nearest directories say: the nearest counts."""
    place = source.path if source.path.is_dir() else source.path.parent
    found: dict[str, Any] = {}
    for part in place.resolve().parts[-_LEVELS:]:
        if named := _CLEANRL.fullmatch(part):
            found |= named.groupdict()
            continue
        if env := _ENV.fullmatch(part):
            found["env"] = env["env"]
        if seed := re.search(r"seed[_=-]?(\d+)", part):
            found["seed"] = seed[1]
        if algo := next((name for name in _SB3 if re.fullmatch(rf"{name}(_\d+)?", part, re.IGNORECASE)), None):
            found["algo"] = algo
    name, _, number = place.name.rpartition("_")
    if source.kind == "events" and number.isdigit() and name not in ("", "seed") and not _ENV.fullmatch(place.name):
        return {"algo": name, "seed": number} | found  # of SB3: its tb_log_name, and how often that was used
    return found


def _notes(path: Path, root: Path) -> dict[str, Any]:
    """What other_run.yaml says, from the root down to the run's directory."""
    start = path if path.is_dir() else path.parent
    places = [start, *start.parents]
    inside = places[: places.index(root) + 1] if root in places else [start]
    found: dict[str, Any] = {}
    for place in reversed(inside):
        if not (place / NOTE).is_file():
            continue
        try:
            note = yaml.safe_load((place / NOTE).read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise OtherError(f"{place / NOTE} cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(note, dict) or set(note) - set(_KEYS):
            raise OtherError(f"{place / NOTE} may hold {', '.join(_KEYS)}, and nothing else")
        found |= note
    return found


def _make(path: Path, library: str, found: Log, told: Mapping[str, Any]) -> OtherRun:
    env = str(told["env"])
    game, skip = _game_and_skip(env, told.get("frame_skip"))
    algo = f"{library}: {told.get('algo') or _UNKNOWN}"
    try:
        seed = int(told.get("seed", -1))
    except (TypeError, ValueError):
        raise OtherError(f"its seed is no whole number: {told['seed']}") from None
    counts_frames = found.counts_frames and "NoFrameskip" in env  # of the others the environment itself skips
    tables = [_with_frames(table, skip, counts_frames) for table in (found.games, found.means, found.speeds)]
    games, means, speeds = tables
    last = pd.concat([table[["frames", "agent_steps", "wall_seconds"]] for table in tables]).max()
    status = {"state": found.state, "machine": None} | {key: float(value) for key, value in last.dropna().items()}
    # What their Atari wrappers do unless they are told otherwise; beside Atari there is nothing to be told.
    usual = {"reward_clip": 1.0, "life_loss_terminal": True, "noop_max": 30, "sticky_action_probability": 0.0}
    config = {
        "algo": {"name": algo, **dict(told.get("settings") or {})},
        "env": {"id": env, "game": game, "frame_skip": skip, **(usual if game else {})},
        "seed": seed,
    }
    return OtherRun(
        path, config, status, algo, game or env, seed, library=library, knows_seed="seed" in told,
        games=games.rename(columns={"value": "episode_return"}).assign(
            episode_length=games["length"] / (skip if counts_frames else 1) if "length" in games else np.nan
        )[list(EPISODE_COLUMNS)],
        means=means.rename(columns={"value": "mean_return"})[["frames", "wall_seconds", "mean_return"]],
        speeds=speeds.assign(
            updates=np.nan, tps=np.nan, pps=speeds["value"], frames_per_second=speeds["value"] * skip
        )[list(METRIC_COLUMNS)],
    )  # fmt: skip


def _with_frames(table: pd.DataFrame, skip: int, counts_frames: bool) -> pd.DataFrame:
    frames, agent_steps = (1, 1 / skip) if counts_frames else (skip, 1)
    return table.assign(frames=table["steps"] * frames, agent_steps=table["steps"] * agent_steps)


def _game_and_skip(env: str, frame_skip: Any) -> tuple[str | None, int]:
    """The Atari game as we write it, or None, and the frames of one agent step.

    CleanRL and SB3 skip 4 frames of a NoFrameskip-v4; EnvPool and ale-py do so themselves in Name-v5.

    Raises:
        OtherError: it is Atari's, and its frames per step are not known.
    """
    named = _ATARI.fullmatch(env)
    game = named["game"] if named and named["game"] in published.games() else None
    if frame_skip is not None:
        if not isinstance(frame_skip, int) or frame_skip < 1:
            raise OtherError(f"frame_skip: {frame_skip} in {NOTE} is no whole number from 1 on")
        return game, frame_skip
    if game is None or named is None:
        return None, 1
    if not named["skipping"] and int(named["version"]) < 5:
        raise OtherError(f"{env} skips 2 to 4 frames at random: `frame_skip: 3` in {NOTE} would take their mean")
    return game, 4
