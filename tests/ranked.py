"""Runs of several ranks, each a process of its own that a test starts, stops and looks into."""

import csv
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from forking import Forked

from a3c_bench.config import compose, run_directory

TINY = ("evaluation.n_games=1", "evaluation.n_envs=1", "progress=false", "network.hidden_sizes=[8]")
LONG = ("budget.frames=100000000", "algo.optimizer.anneal=false")
SECONDS_TO_END = 60.0

Start = Callable[..., list[Forked]]


def directory(root: Path, n_ranks: int, *words: str) -> Path:
    words = (*TINY, f"root={root}", *words, *([f"ranks={n_ranks}"] if n_ranks > 1 else []))
    return run_directory(compose(words), words)


def rows(run: Path, name: str) -> list[dict[str, str]]:
    with open(run / f"{name}.csv") as file:
        return list(csv.DictReader(file))


def state_of(run: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(run / "checkpoint" / "latest.pt", weights_only=True)
    return saved


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)


def wait_for_updates(run: Path) -> None:
    wait_for(lambda: (run / "metrics.csv").exists() and len(rows(run, "metrics")) >= 2)


def all_end(processes: Sequence[Forked], seconds: float = SECONDS_TO_END) -> list[int]:
    until = time.monotonic() + seconds
    return [process.wait(max(until - time.monotonic(), 0.1)) for process in processes]


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]
