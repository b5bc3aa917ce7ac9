"""Runs as Weights & Biases keeps them: offline run files (*.wandb), or an online project.

    load_runs("wandb/offline-run-20261123_191322-d4d40d64")     also any directory above it
    load_runs("wandb:entity/project")

They hold what the logger was told: the rows of metrics.csv and lag.csv, and the mean of each evaluation. Single games,
histograms and adjustments are not among them, so those tables are empty, and curves are the logged means of 100 games.
"""

import inspect
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.run import EVALUATION_COLUMNS, LAG_COLUMNS, METRIC_COLUMNS, Run, identity

log = logging.getLogger(__name__)

PREFIX = "wandb:"  # of a root that is an online project
_BLOCK = 32_768  # bytes; records of LevelDB's log format do not cross its ends
_FILE_HEADER = 7  # bytes
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds of a record's parts
_MEAN_RETURN = "mean_return_100_games"  # column of metrics.csv
_EVALUATION = "evaluation_mean_return"


class WandbError(Exception):
    """An online project that cannot be read; the message says why in one sentence."""


@dataclass(frozen=True)
class WandbRun(Run):
    """A run whose tables come from Weights & Biases."""

    rows: pd.DataFrame = field(default_factory=pd.DataFrame)  # all that was logged, by frames

    def training_returns(self, window: int) -> pd.DataFrame:
        """At the end of each interval; the window is always that of the logged means, 100 games."""
        table = self._with(_MEAN_RETURN, ["frames", "wall_seconds", _MEAN_RETURN])
        return table.rename(columns={_MEAN_RETURN: "mean_return"}).astype("float64")

    def episodes(self) -> pd.DataFrame:
        """Empty: games are not logged one by one."""
        return super().episodes().iloc[:0]

    def metrics(self) -> pd.DataFrame:
        """One row per interval of training."""
        return self._with(
            "pps", [name for name in self.rows if not name.startswith(("lag_", "evaluation_"))], METRIC_COLUMNS
        )

    def lag(self) -> pd.DataFrame:
        """One row per interval of training, by `frames`."""
        other = {*METRIC_COLUMNS} - {*LAG_COLUMNS}
        return self._with("pps", [name for name in self.rows if name not in other], LAG_COLUMNS)

    def evaluations(self) -> pd.DataFrame:
        """A row per game, each of which holds the mean of its evaluation: more is not logged."""
        table = self._with(_EVALUATION, ["frames", "wall_seconds", _EVALUATION, "evaluation_games"])
        final = (table["frames"] == self.rows["frames"].max()) & (self.state == "finished")
        table = table.assign(final=final, episode_return=table[_EVALUATION], episode_length=np.nan)
        games = table["evaluation_games"].fillna(1).astype(int)
        return table.loc[table.index.repeat(games), list(EVALUATION_COLUMNS)].reset_index(drop=True)

    def _with(self, known: str, columns: Sequence[str], required: Sequence[str] = ()) -> pd.DataFrame:
        """The rows that have a value in a column."""
        names = list(dict.fromkeys([*required, *columns]))
        table = self.rows.reindex(columns=[*dict.fromkeys([*names, known])])
        return table[table[known].notna()].reset_index(drop=True)[names]


# --- offline run files ------------------------------------------------------------------------------------------------


def read_offline(files: Iterable[Path]) -> list[WandbRun]:
    """The runs in some *.wandb files; several of one id are one run that went on. Broken ones are named."""
    by_id: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_id[file.stem].append(file)
    runs = [_read_attempts(sorted(attempts, key=lambda file: file.parent.name)) for attempts in by_id.values()]
    return [run for run in runs if run is not None]


def _read_attempts(files: Sequence[Path]) -> WandbRun | None:
    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    exit_code: int | None = None
    for file in files:
        exit_code = None
        fresh: list[dict[str, Any]] = []
        try:
            for record in _records(file):
                kind = record.WhichOneof("record_type")
                if kind == "run":
                    config |= _values(record.run.config.update)
                elif kind == "history":
                    fresh.append(_values(record.history.item))
                elif kind == "environment":
                    machine |= _machine(record.environment)
                elif kind == "exit":
                    exit_code = record.exit.exit_code
        except (OSError, ValueError) as error:
            log.warning("%s is left out: %s.", file, " ".join(str(error).split()))
            continue
        except ImportError:
            log.warning("%s is left out: reading it takes wandb, which is not installed.", file)
            continue
        start = min((row["frames"] for row in fresh if "frames" in row), default=float("inf"))
        rows = [row for row in rows if row.get("frames", 0) < start] + fresh  # what was done again counts once
    return _make(files[-1].parent, config, rows, machine, None if exit_code is None else exit_code == 0)


def _records(file: Path) -> Iterator[Any]:
    """The records of a file, as far as they are whole: it may still be written to.

    wandb has no public reader for its files: they are LevelDB's log format, after a header of their own.

    Raises:
        ValueError: it is none of wandb's files.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data = file.read_bytes()
    if not data.startswith(b":W&B"):
        raise ValueError("it is no run file of wandb")
    at, parts = _FILE_HEADER, b""
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:  # too little for a record: filled with zeros
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        chunk = data[at + 7 : at + 7 + length]
        if kind == 0 or len(chunk) < length:
            return
        at += 7 + length
        parts = chunk if kind in (_FULL, _FIRST) else parts + chunk
        if kind in (_FULL, _LAST):
            record = Record()
            try:
                record.ParseFromString(parts)
            except DecodeError as error:
                raise ValueError("a record in it is damaged") from error
            yield record


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _machine(environment: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if environment.cpu.model:
        found |= {"cpu": environment.cpu.model, "cores": environment.cpu_count_logical or None}
    if environment.gpu_type:
        found["gpu"] = environment.gpu_type
    if environment.os:
        found["system"] = environment.os
    return found


# --- online projects --------------------------------------------------------------------------------------------------


def read_online(root: str) -> list[WandbRun]:
    """The runs of `wandb:entity/project`.

    Raises:
        WandbError: wandb is not installed, nobody is logged in, or the project cannot be read.
    """
    try:
        import wandb
    except ImportError:
        raise WandbError(f"{root} cannot be read: wandb is not installed.") from None
    if not _logged_in(wandb):  # asked before, as the API would prompt for a key
        raise WandbError(f"{root} cannot be read: nobody is logged in to wandb here; `wandb login` does that.")
    try:
        found = [
            _make(
                Path(root) / one.id,
                dict(one.config),
                [dict(row) for row in one.scan_history()],
                {"cpu": (one.metadata or {}).get("cpu"), "cores": (one.metadata or {}).get("cpu_count_logical")},
                {"finished": True, "running": None}.get(one.state, False),
            )
            for one in wandb.Api(timeout=30).runs(root.removeprefix(PREFIX))
        ]
    except Exception as error:  # of the network, the server or the project's name: wandb has no one class for them
        raise WandbError(f"{root} cannot be read: {' '.join(str(error).split())}") from error
    return [run for run in found if run is not None]


def _logged_in(wandb: Any) -> bool:
    """Without asking anybody; versions before 0.31 know no `prompt`."""
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)


def _once(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without what was done again: an online run holds the rows that a kill took back, before those that came instead.

    A row of an interval, or of an evaluation, counts no more once a later one of its kind is of its frame or below.
    """
    kept: list[Mapping[str, Any]] = []
    lowest, lowest_of = float("inf"), {True: float("inf"), False: float("inf")}
    for row in reversed(rows):
        frames, evaluation = row.get("frames"), row.get(_EVALUATION) is not None
        if frames is not None:
            if frames > lowest or frames >= lowest_of[evaluation]:
                continue
            lowest, lowest_of[evaluation] = min(lowest, frames), frames
        kept.append(row)
    return kept[::-1]


def _make(
    path: Path,
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    machine: Mapping[str, Any],
    ended_well: bool | None,
) -> WandbRun | None:
    """A run; None, with a warning, if this project did not log it. `ended_well` is None while it is running."""
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    table = pd.DataFrame(_once(rows))
    try:
        algo, env, seed = identity(config)
        if table.empty:
            table = pd.DataFrame(columns=["frames", "wall_seconds"], dtype="float64")
        table = table[[name for name in table if not name.startswith("_")]].apply(pd.to_numeric, errors="coerce")
        table = table.dropna(subset=["frames"]).sort_values("frames", kind="stable").reset_index(drop=True)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s is left out: it was not logged by a3c_bench (%s).", path, " ".join(str(error).split()))
        return None
    last = table.ffill().iloc[-1].dropna().to_dict() if len(table) else {}
    evaluated_last = bool(len(table)) and _EVALUATION in table and bool(pd.notna(table[_EVALUATION].iloc[-1]))
    state = (
        "running"
        if ended_well is None
        else "failed"
        if not ended_well
        else "finished"
        if evaluated_last
        else "preempted"
    )
    counters = {key: last[key] for key in ("frames", "agent_steps", "updates", "wall_seconds") if key in last}
    status = {"state": state, "machine": dict(machine), **counters}
    return WandbRun(path, config, status, algo, env, seed, rows=table)
