"""A run directory: the contract between training and analysis (see docs/metrics.md for every file and column).

Everything that replaces a file writes beside it and renames; everything that appends writes whole rows. A kill at any
moment leaves whole files.
"""

import fcntl
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from a3c_bench.errors import RunDirectoryError, RunDirectoryInUseError
from a3c_bench.runtime import history
from a3c_bench.runtime.older import upgraded
from a3c_bench.schema import PRESENTATION_KEYS, WATCHING_KEYS, BudgetConfig

# libyaml, where PyYAML has it: ten times as fast, which a sweep of a thousand runs notices.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_HOLD_ATTEMPTS, _HOLD_SECONDS = 5, 0.05  # `in_use` holds a directory for a moment


class RunDirectory:
    """Opens (or makes) the directory of one run and holds it for this process alone.

    Args:
        path: the directory.
        config: the complete configuration as plain nested dicts.
        resolved: dotted keys whose value may take the place of a null there.

    Raises:
        RunDirectoryError: not writable, in use by another process, or holding a run with another configuration.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], resolved: Collection[str] = ()) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "checkpoint").mkdir(exist_ok=True)
            self._lock = _hold(self.path / ".lock")
            try:
                self._adopt(plain(config), resolved)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise RunDirectoryError(f"The run directory {path} cannot be written: {error.strerror}.") from error

    def _adopt(self, asked: Mapping[str, Any], resolved: Collection[str]) -> None:
        """Writes config.yaml, or makes sure that the one which is there says the same of all that a run computes."""
        file = self.path / "config.yaml"
        if not file.exists():
            if any(child.suffix == ".csv" for child in self.path.iterdir()):
                raise RunDirectoryError(f"{self.path} holds results but no config.yaml: choose another name=.")
            self._write_config(asked)
            return
        try:
            there = read_yaml(file)
        except (yaml.YAMLError, UnicodeDecodeError):
            there = None
        if not isinstance(there, dict):
            raise RunDirectoryError(f"{file} is not a configuration: remove the directory or choose another name=.")
        there_now = upgraded(there, asked)
        different = [row for row in differing_keys(there_now, asked) if row[1] is not None or row[0] not in resolved]
        if different:
            shown = "; ".join(f"{key}: {old!r} there, {new!r} asked" for key, old, new in different[:5])
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise RunDirectoryError(
                f"{self.path} holds a run with another configuration ({shown}{more}): "
                "choose another name= or remove it."
            )
        if there != asked:
            self._note_changes(there_now, asked)
            self._write_config(asked)

    def _note_changes(self, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Into status.json, what the attempts to come watch otherwise than those before; a longer budget reopens a run.

        Raises:
            RunDirectoryError: a budget is below what was run, or above it where the checkpoint to go on from is gone.
        """
        status = self.read_status()
        differing = [
            row for row in differing_keys(there, asked, but=PRESENTATION_KEYS) if is_one_of(row[0], WATCHING_KEYS)
        ]
        if not differing or "state" not in status:
            return
        contradicted = history.below_what_was_run(status, {key: (old, new) for key, old, new in differing})
        if contradicted:
            raise RunDirectoryError(f"{self.path} holds {contradicted}: choose another name= or remove it.")
        changes = history.with_changes(status.get("changed", {}), differing)
        more: dict[str, Any] = {}
        if status["state"] == "finished" and history.goes_on(status, BudgetConfig(**asked["budget"]), changes):
            if not self.latest_checkpoint.exists():
                raise RunDirectoryError(
                    f"{self.path} holds a finished run without its checkpoint, so it cannot go on to a larger budget: "
                    "choose another name= or remove it."
                )
            more = {"state": "preempted", "stop_signal": None, "stop_reason": "the budget was raised"}
        self.write_status(changed=changes, **more)

    def _write_config(self, config: Mapping[str, Any]) -> None:
        replace_file(self.path / "config.yaml", yaml.dump(config, Dumper=_Dumper, sort_keys=False))

    @property
    def latest_checkpoint(self) -> Path:
        """The checkpoint that a repeated command goes on from."""
        return self.path / "checkpoint" / "latest.pt"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the best periodic or final evaluation."""
        return self.path / "checkpoint" / "best.pt"

    def read_status(self) -> dict[str, Any]:
        """What status.json says; empty if there is none yet."""
        return read_status(self.path)

    def write_status(self, **changes: Any) -> None:
        """Changes these keys of status.json and leaves the others."""
        write_status(self.path, **changes)

    def close(self) -> None:
        """Lets other processes have the directory."""
        os.close(self._lock)


class CsvFile:
    """An append-only table whose rows are written whole, and which knows its length for checkpoints.

    Args:
        path: of the file; a header is written if it is new or empty.
        columns: in order; a table that goes on keeps those it was begun with, by an older version perhaps.
        size: bytes to keep of what is there, as `size` told a checkpoint; 0 starts anew.
    """

    def __init__(self, path: Path, columns: Sequence[str], size: int = 0) -> None:
        self.path = path
        self.columns = self._written = tuple(columns)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        there = self._file.seek(0, os.SEEK_END)
        if size > there:
            self._file.close()
            raise RunDirectoryError(
                f"{path} is shorter than its checkpoint says: rows were lost; remove the directory."
            )
        self._file.truncate(size)
        if size == 0:
            self._write((",".join(self.columns) + "\n").encode())
        else:
            with open(path) as before:
                self._written = tuple(before.readline().rstrip("\n").split(","))

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows at once; a key that is missing is an empty cell.

        Raises:
            KeyError: a key that is no column.
            OSError: the disk is full; no part of the rows is left in the file.
        """
        lines = []
        for row in rows:
            unknown = row.keys() - set(self.columns)
            if unknown:
                raise KeyError(f"{self.path.name} has no column {sorted(unknown)}")
            lines.append(",".join(_cell(row.get(column)) for column in self._written))
        if lines:
            self._write(("\n".join(lines) + "\n").encode())

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size  # the position may lie behind the end after a truncation

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(data)
            while written < len(data):  # a nearly full disk takes a part first, and refuses at the next call
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(start)
            raise


def in_use(path: Path) -> bool | None:
    """Whether a process of this machine (or of another that shares its locks) is running in a run directory.

    It takes the permission to read alone: on NFS too, where flock becomes a lock of bytes, a shared one is for readers.

    Returns:
        None if it cannot be told: the lock may not be read, or the file system has no locks.
    """
    try:
        descriptor = os.open(path / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def runs_below(root: Path) -> list[Path]:
    """The run directories below a directory, by name; links are followed, and a run that several lead to comes once."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for directory, children, files in os.walk(root, followlinks=True):
        place = os.path.realpath(directory)
        children.sort()
        if place in seen or "config.yaml" in files:
            children.clear()
        if "config.yaml" in files:
            found.setdefault(place, Path(directory))
        seen.add(place)
    return list(found.values())


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError, yaml.YAMLError, UnicodeDecodeError: it cannot be read.
    """
    return yaml.load(path.read_text(), Loader=_Loader)


def read_status(path: Path) -> dict[str, Any]:
    """What a run directory's status.json says; empty if it is missing or broken."""
    return _read_json(path / "status.json")


def write_status(path: Path, **changes: Any) -> None:
    """Changes these keys of a run directory's status.json, for whoever holds it, or knows that nobody does."""
    status = read_status(path) | changes | {"updated_at": timestamp()}
    replace_file(path / "status.json", json.dumps(status, indent=2) + "\n")


def diverged(status: Mapping[str, Any]) -> bool:
    """Whether status.json tells of a run that failed because it diverged."""
    return status.get("state") == "failed" and status.get("diverged") is True


def read_job(path: Path) -> dict[str, Any]:
    """What a run directory's job.json says of the job that runs it or ran it last; empty if none did."""
    return _read_json(path / "job.json")


def write_job(path: Path, job: Mapping[str, Any]) -> None:
    """Notes the job that is to run a run directory."""
    replace_file(path / "job.json", json.dumps(job, indent=2) + "\n")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def replace_file(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Writes a file beside its place, then renames it there; who may read it, `mode` and the umask say."""
    aside = path.with_name(path.name + ".new")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def differing_keys(
    there: Mapping[str, Any],
    asked: Mapping[str, Any],
    path: str = "",
    but: Sequence[str] = (*PRESENTATION_KEYS, *WATCHING_KEYS),
) -> list[tuple[str, Any, Any]]:
    """Keys with other values, as (key, there, asked), leaving out some: those that change nothing that is computed."""
    rows: list[tuple[str, Any, Any]] = []
    for key in dict.fromkeys([*there, *asked]):
        full = f"{path}{key}"
        old, new = there.get(key), asked.get(key)
        if full in but or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            rows += differing_keys(old, new, f"{full}.", but)
        else:
            rows.append((full, old, new))
    return rows


def is_one_of(key: str, keys: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or inside one."""
    return any(f"{key}.".startswith(f"{known}.") for known in keys)


def timestamp() -> str:
    """The time now, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    for _ in range(_HOLD_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_HOLD_SECONDS)
        else:
            return descriptor
    os.close(descriptor)
    raise RunDirectoryInUseError(f"Another process is running in {path.parent}: wait for it or choose another name=.")


def plain(value: Any) -> Any:
    """The same as YAML gives it back: dicts with words for keys, and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.1f}"
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text
