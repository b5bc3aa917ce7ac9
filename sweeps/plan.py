"""What a sweep will cost, before anything is submitted.

    python -m sweeps.plan atari57 --launcher slurm_gpu hydra.launcher.cpus_per_task=16
    python -m sweeps.plan algo=a3c,ga3c,paac seed=0,1,2

Speeds come from finished runs of the same algorithm, kind of environment, network and device below --runs; where there
are none, from calibration on this machine, as the serial bound, which a run stays below. Evaluation and start-up (some
seconds per start) are not in the hours. Exit status: 0, or 2 for bad input.
"""

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from a3c_bench import build
from a3c_bench.algos import find_algorithm
from a3c_bench.calibrate import calibrate
from a3c_bench.errors import UserError
from a3c_bench.runtime.directory import read_status, read_yaml
from a3c_bench.runtime.machine import usable_cores
from a3c_bench.runtime.recorder import LAG_COLUMNS, METRIC_COLUMNS
from a3c_bench.runtime.seeding import Stream, sequence
from a3c_bench.schema import Config
from sweeps.status import duration, run_directories

_BYTES_PER_CELL = 9  # of a CSV file
_BYTES_PER_GAME = 40  # a row of episodes.csv
_SECONDS_TO_COUNT = 5.0  # a shorter run tells more of its start than of its speed
_FRAMES_PER_GAME = {True: 4_000, False: 200}  # of Atari and of the others: games get longer as they are learnt


@dataclass(frozen=True)
class Kind:
    """Runs that cost the same."""

    algo: str
    env: str  # "Atari" for all games
    network: str
    device: str
    frames: int | None
    seconds: float | None  # budget.wall_clock_seconds
    acting_batch: int
    n_processes: int | None


@dataclass(frozen=True)
class Resources:
    """What a launcher gives each run."""

    cores: int
    gpus: int
    at_once: int
    timeout_hours: float | None


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    frames_per_second: float | None  # None: the budget is in seconds
    hours: float | None  # None: the budget tells neither frames nor seconds
    gigabytes: float
    source: str


def kind_of(config: Config) -> Kind:
    """The kind of a run."""
    work, budget = find_algorithm(config.algo.name).workload(config), config.budget
    env = "Atari" if config.env.game else config.env.id
    sizes = (work.acting_batch, work.n_processes)
    return Kind(
        config.algo.name, env, config.network.kind, config.device, budget.frames, budget.wall_clock_seconds, *sizes
    )


def measured_speeds(root: Path) -> dict[tuple[str, str, str, str], list[tuple[float, int]]]:
    """Frames per second and bytes of finished runs, by algorithm, environment, network and device."""
    found = defaultdict(list)
    for path in run_directories(root) if root.is_dir() else []:
        status = read_status(path)
        if status.get("state") != "finished" or status.get("wall_seconds", 0.0) < _SECONDS_TO_COUNT:
            continue
        config = read_yaml(path / "config.yaml")
        env = "Atari" if config["env"].get("game") else config["env"]["id"]
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        key = (config["algo"]["name"], env, config["network"]["kind"], config["device"])
        found[key].append((status["frames"] / status["wall_seconds"], size))
    return dict(found)


def cost_of(kind: Kind, config: Config, measured: Mapping[tuple[str, str, str, str], list[tuple[float, int]]]) -> Cost:
    """What a run of this kind costs."""
    runs = measured.get((kind.algo, kind.env, kind.network, kind.device))
    if runs:
        speed = statistics.median(speed for speed, _ in runs)
        gigabytes = statistics.median(size for _, size in runs) / 1e9
        source = f"{len(runs)} finished runs"
    else:
        here = config if kind.device == "cpu" or torch.cuda.is_available() else replace(config, device="cpu")
        bound = calibrate(here, repeats=3, seconds_per_repeat=0.3).serial_bound_agent_steps_per_second
        speed = bound * config.env.frame_skip
        gigabytes = estimated_bytes(config) / 1e9
        source = "calibrated here" + ("" if here is config else " without a GPU")
    hours = [kind.frames / speed / 3600] if kind.frames else []
    hours += [kind.seconds / 3600] if kind.seconds else []
    return Cost(speed if kind.frames else None, min(hours, default=None), gigabytes, source)


def estimated_bytes(config: Config) -> int:
    """Of a finished run's directory: two checkpoints and the tables."""
    envs = build.make_envs(config, 1, sequence(config.seed, Stream.CALIBRATION))
    try:
        network = build.make_network(config, envs, torch.device("cpu"))
    finally:
        envs.close()
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    copies = 3 if config.algo.optimizer.kind == "adam" or config.algo.optimizer.centered else 2  # with the optimiser's
    frames = config.budget.frames or 0
    rows = frames // config.metrics_interval_frames * (len(METRIC_COLUMNS) + len(LAG_COLUMNS)) * _BYTES_PER_CELL
    games = frames // _FRAMES_PER_GAME[config.env.game is not None] * _BYTES_PER_GAME
    return 2 * copies * 4 * n_parameters + rows + games


def resources_of(launcher: str, options: Mapping[str, Any]) -> Resources:
    """What a launcher gives each run."""
    cores = usable_cores()
    if "timeout_min" in options:
        gres = str(options.get("gres") or "")
        gpus = options.get("gpus_per_node") or (int(gres.split(":")[-1]) if gres.split(":")[-1].isdigit() else 0)
        return Resources(options["cpus_per_task"], gpus, options["array_parallelism"], options["timeout_min"] / 60)
    if "runs_at_once" in options:
        from a3c_bench.launch import local
        from a3c_bench.launch.options import LocalOptions

        shares = local.slots(LocalOptions(**options), range(cores), local.visible_gpus())
        return Resources(len(shares[0].cores), len(shares[0].gpus), len(shares), None)
    return Resources(cores, torch.cuda.device_count(), 1, None)


def plan_table(costs: Sequence[tuple[Kind, int, Cost]], resources: Resources) -> Table:
    """One row per kind of run, and their sum."""
    table = Table("algo", "environment", "network", "device", "batch")
    for title in ("runs", "frames each", "frames/s", "hours each", "hours", "core-hours", "GPU-hours", "disk GB"):
        table.add_column(title, justify="right")
    table.add_column("speed from")
    for kind, n_runs, cost in costs:
        hours = None if cost.hours is None else cost.hours * n_runs
        gpu_hours = None if hours is None else hours * resources.gpus
        table.add_row(
            *(kind.algo, kind.env, kind.network, kind.device, str(kind.acting_batch), f"{n_runs:,}"),
            *(f"{kind.frames:,}" if kind.frames else "", _number(cost.frames_per_second)),
            *(_number(cost.hours), _number(hours), _number(None if hours is None else hours * resources.cores)),
            *(_number(gpu_hours), _number(cost.gigabytes * n_runs), cost.source),
        )
    hours, frames = _total(costs), sum(n_runs * (kind.frames or 0) for kind, n_runs, _ in costs)
    table.add_section()
    table.add_row(
        *("in all", "", "", "", "", f"{sum(n for _, n, _ in costs):,}", f"{frames:,}", "", ""),
        *(_number(hours), _number(hours * resources.cores), _number(hours * resources.gpus)),
        *(_number(sum(cost.gigabytes * n_runs for _, n_runs, cost in costs)), ""),
    )
    return table


def notes(costs: Sequence[tuple[Kind, int, Cost]], resources: Resources) -> Iterable[str]:
    """What the table does not tell."""
    n_runs = sum(n for _, n, _ in costs)
    at_once = min(resources.at_once, n_runs)
    hours = [cost.hours for _, _, cost in costs if cost.hours is not None]
    each = f"{resources.cores} cores" + (f" and {resources.gpus} GPUs" if resources.gpus else "")
    if hours:
        longest = max(max(hours), _total(costs) / at_once)
        yield f"{at_once} runs at once, each with {each}: {duration(3600 * longest)} if all of that is free at once."
    if resources.timeout_hours is not None and hours and max(hours) > resources.timeout_hours:
        starts, limit = math.ceil(max(hours) / resources.timeout_hours), duration(3600 * resources.timeout_hours)
        yield f"The longest run needs {starts} starts of {limit}, the time limit."
    n_idle = sum(n for kind, n, _ in costs if kind.device == "cpu") if resources.gpus else 0
    if n_idle:
        yield f"{n_idle} runs would hold a GPU that they do not use (device=cpu): give them another launcher."
    if len(hours) < len(costs):
        yield "Some runs end at a return only: nobody can tell their hours."
    if any(cost.source.startswith("calibrated") for _, _, cost in costs):
        yield (
            f"Calibrated speeds are the serial bound on {usable_cores()} cores of this machine: real runs stay below "
            "it; --runs takes speeds from finished runs."
        )


def _total(costs: Sequence[tuple[Kind, int, Cost]]) -> float:
    return sum(n_runs * (cost.hours or 0.0) for _, n_runs, cost in costs)


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    from a3c_bench.config import compose_sweep

    parser = argparse.ArgumentParser(prog="python -m sweeps.plan", description="What a sweep will cost.")
    parser.add_argument("words", nargs="+", metavar="WORD", help="name of a sweep, and words as for a3c_bench.run")
    parser.add_argument("--launcher", default="basic", help="local, slurm_cpu, slurm_gpu, ... (default: none)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="finished runs to take speeds from")
    options = parser.parse_intermixed_args(arguments)
    words = [word if "=" in word else f"+sweeps={word}" for word in options.words]
    try:
        hydra, points = compose_sweep([*words, f"hydra/launcher={options.launcher}"])
        kinds: dict[Kind, list[Config]] = defaultdict(list)
        for _, config in points:
            kinds[kind_of(config)].append(config)
        measured = measured_speeds(options.runs)
        costs = [(kind, len(configs), cost_of(kind, configs[0], measured)) for kind, configs in kinds.items()]
        launcher = {key: value for key, value in hydra.launcher.items() if key != "_target_"}
        resources = resources_of(options.launcher, launcher)
    except UserError as error:
        print(f"sweeps.plan: {error}", file=sys.stderr)
        return error.exit_status
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(plan_table(costs, resources))
    for note in notes(costs, resources):
        console.print(note, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
