"""Where the runs of a sweep stand.

    python -m sweeps.status runs/lag_vs_agents

One row per run: its state, how far it is, why it waits or failed, the job, its ranks and nodes, and the time left.
Exit status: 0, also where runs failed; 2 if there is no run.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from yaml import YAMLError

from a3c_bench.launch.state import STATES, Standing, counted, look_again
from a3c_bench.runtime.directory import read_yaml
from a3c_bench.streams import exit_with
from analysis import walk

_COLOURS = {
    "finished": "green",
    "running": "cyan",
    "queued": "blue",
    "unknown": "magenta",
    "preempted": "yellow",
    "failed": "red",
    "missing": "dim",
}


def run_directories(*roots: Path) -> list[Path]:
    """The run directories below some directories, each once, those that wait in the queue included."""

    def below(root: Path) -> Iterator[Path]:
        for directory, children, files in walk.below(root):
            if "config.yaml" in files:
                children.clear()
                yield directory

    found: dict[Path, Path] = {}
    for path in (path for root in roots for path in below(root)):
        found.setdefault(path.resolve(), path)
    return list(found.values())


def progress(status: Mapping[str, Any], budget: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """How much of its budget a run has used (0 to 1), and the seconds of training left at its mean speed.

    A target return may end it earlier. None where nothing can be told.
    """
    frames, seconds = float(status.get("frames", 0)), float(status.get("wall_seconds", 0.0))
    done: list[float] = []
    left: list[float] = []
    if budget.get("frames"):
        done.append(min(frames / budget["frames"], 1.0))
        if frames > 0:
            left.append(seconds * max(budget["frames"] - frames, 0) / frames)
    if budget.get("wall_clock_seconds"):
        done.append(min(seconds / budget["wall_clock_seconds"], 1.0))
        left.append(max(budget["wall_clock_seconds"] - seconds, 0.0))
    return max(done, default=None), min(left, default=None)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h, 2.1 d."""
    for size, unit in ((86_400.0, "d"), (3_600.0, "h")):
        if seconds >= 2 * size or (unit == "h" and seconds >= size):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def status_table(standings: Sequence[Standing], root: Path) -> Table:
    """One row per run, those that need attention last."""
    columns = ["run", "state", "done", "left", "return", "starts", "job", "ranks", "why"]
    configs = {standing.directory: _config(standing.directory) for standing in standings}
    has_ranks = any(config.get("ranks", 1) != 1 for config in configs.values())
    table = Table(*[name for name in columns if name != "ranks" or has_ranks], title=str(root), title_justify="left")
    for column in (2, 3, 4, 5):
        table.columns[column].justify = "right"
    for standing in sorted(standings, key=lambda one: STATES.index(one.state)):
        cells = dict(zip(columns, _cells(standing, configs[standing.directory], root), strict=True))
        table.add_row(*[cells[str(column.header)] for column in table.columns])
    return table


def _cells(standing: Standing, config: Mapping[str, Any], root: Path) -> list[Text | str]:
    status = standing.status
    budget = config.get("budget")
    done, left = progress(status, budget if isinstance(budget, dict) else {})
    ranks, nodes = str(config.get("ranks", 1)), standing.job.get("nodes")
    final = status.get("final", {})
    score = final.get("evaluation_mean_return", final.get("mean_return_100_games"))
    over = standing.state == "finished"
    name = str(standing.directory.relative_to(root)) if standing.directory != root else standing.directory.name
    return [
        Text(name, overflow="fold"),
        Text(standing.state, style=_COLOURS[standing.state]),
        "" if done is None or not status else f"{100 * done:.0f}%",
        "" if over or left is None or not status else duration(left),
        "" if score is None else f"{score:.1f}",
        str(status.get("attempts", "")),
        str(standing.job.get("job_id", "")),
        f"{ranks} on {nodes}" if nodes else ranks,
        Text(standing.why, overflow="fold"),
    ]


def _config(directory: Path) -> Mapping[str, Any]:
    try:
        config = read_yaml(directory / "config.yaml")
    except (OSError, YAMLError, UnicodeDecodeError):
        return {}
    return config if isinstance(config, dict) else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.status", description="Where the runs of a sweep stand.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT", help="holds runs, for instance runs/headline")
    parser.add_argument(
        "--state", nargs="+", choices=STATES, default=STATES, help="only runs of these states (default: all)"
    )
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    for root in options.roots:
        directories = run_directories(root)
        if not directories:
            print(f"{root} holds no run: a run is a directory with config.yaml.", file=sys.stderr)
            return 2
        standings = look_again(directories)
        shown = [standing for standing in standings if standing.state in options.state]
        if shown:
            console.print(status_table(shown, root))
        console.print(f"{len(standings)} runs: {counted(standings)}.", highlight=False)
    return 0


if __name__ == "__main__":
    exit_with(main)
