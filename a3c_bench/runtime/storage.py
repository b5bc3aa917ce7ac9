"""Room for large arrays such as a replay: whether memory or disk has it, and arrays in files that outlive a run."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from a3c_bench.errors import ConfigError

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def mapped_files(directory: Path) -> Callable[[str, tuple[int, ...], np.dtype[Any]], NDArray[Any]]:
    """Gives arrays that live in the files <name>.npy of this directory: zeros, or what is there already.

    A process that is killed loses nothing of what it wrote to them.

    Raises:
        ValueError: (of the function) the file holds an array of another shape or type.
    """

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        path = directory / f"{name}.npy"
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".new")  # so that no half-made file is ever found
            np.lib.format.open_memmap(aside, mode="w+", dtype=dtype, shape=shape)
            os.replace(aside, path)
        array = np.lib.format.open_memmap(path, mode="r+")
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{path} holds {array.dtype} of shape {array.shape} and not {dtype} of shape {shape}: remove it"
            )
        return array

    return allocate


def check_memory(n_bytes: int, what: str, remedy: str) -> None:
    """Refuses what would have the system kill this process later.

    Args:
        n_bytes: needed.
        what: needs them, e.g. "the replay of 1,000,000 steps".
        remedy: what to say or to change, e.g. "lower algo.replay.capacity_agent_steps".

    Raises:
        ConfigError: less than that is available.
    """
    available = available_memory_bytes()
    if available is not None and n_bytes > available:
        raise ConfigError(
            f"{what} needs {n_bytes:,} bytes of memory, but only {available:,} are available here: {remedy}."
        )


def check_disk(n_bytes: int, directory: Path, what: str, remedy: str) -> None:
    """The same for files in a directory, which need not exist; those that are there already count as paid for.

    A mapped file takes disk space only as it is written, and a full disk then kills the process without a word.

    Raises:
        ConfigError: less than that is free.
    """
    paid = sum(file.stat().st_blocks * 512 for file in directory.glob("*.npy"))
    existing = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if n_bytes - paid > free:
        raise ConfigError(
            f"{what} needs {n_bytes - paid:,} bytes in {directory}, but only {free:,} are free there: {remedy}."
        )


def available_memory_bytes() -> int | None:
    """What this process may still use: of the machine's memory, and of its control groups'; None where nobody says."""
    return min((*_machine_available(), *_cgroups_available()), default=None)


def _machine_available() -> Iterator[int]:
    with suppress(OSError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _cgroups_available() -> Iterator[int]:
    """Limit minus use of each control group (version 2, else 1) that this process is in, from the innermost out."""
    try:
        groups = [line.split(":", 2) for line in (_PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, name in groups:
        if not controllers:
            root, limit, used = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / name.strip("/")
        while group.is_relative_to(root):
            with suppress(OSError, ValueError):  # a group that is not mounted here, or "max" for no limit
                yield max(0, int((group / limit).read_text()) - int((group / used).read_text()) + _page_cache(group))
            group = group.parent


def _page_cache(group: Path) -> int:
    """Bytes that count as used, but are given back when they are needed."""
    with suppress(OSError):
        figures = {line.split()[0]: int(line.split()[1]) for line in (group / "memory.stat").read_text().splitlines()}
        return figures.get("total_inactive_file", figures.get("inactive_file", 0))  # version 1 has both
    return 0
