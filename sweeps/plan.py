"""What a sweep will cost, before anything is submitted.

    python -m sweeps.plan atari57 --launcher slurm_gpu hydra.launcher.cpus_per_task=16
    python -m sweeps.plan algo=a3c,ga3c,paac seed=0,1,2

A launcher that the sweep names itself is the one that counts, unless --launcher names another.

Speeds come from finished runs of the same algorithm, kind of environment (EnvPool's or Gymnasium's), network and device
below --runs, with as many ranks; where there are none, from calibration on this machine, as the serial bound, which a
run stays below: so many times that bound as it has ranks.
Evaluation and start-up (some seconds per start) are not in the hours. Exit status: 0, or 2 for bad input.
"""

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from a3c_bench.algos import find_algorithm
from a3c_bench.checks import check_settings
from a3c_bench.envs.spec import uses_gymnasium
from a3c_bench.errors import UserError
from a3c_bench.launch.options import (
    LocalOptions,
    SlurmOptions,
    check_local,
    check_slurm,
    gpus_of_a_node,
    ranks_of_a_node,
)
from a3c_bench.launch.ranks import with_ranks
from a3c_bench.runtime.directory import read_status, read_yaml
from a3c_bench.runtime.machine import usable_cores, visible_gpus
from a3c_bench.schema import Config, EnvConfig
from a3c_bench.streams import exit_with
from sweeps.status import duration, run_directories

_BYTES_PER_CELL = 9  # of a CSV file
_BYTES_PER_GAME = 40  # a row of episodes.csv
_SECONDS_TO_COUNT = 5.0  # a shorter run tells more of its start than of its speed
_FRAMES_PER_GAME = {True: 4_000, False: 200}  # of Atari and of the others: games get longer as they are learnt


@dataclass(frozen=True)
class Kind:
    """Runs that cost the same."""

    algo: str
    env: str  # and what simulates it; "Atari" for all games
    network: str
    device: str
    frames: int | None
    seconds: float | None  # budget.wall_clock_seconds
    acting_batch: int
    n_processes: int | None
    ranks: int = 1


@dataclass(frozen=True)
class Resources:
    """What a launcher gives each run, to all of its ranks together."""

    cores: int
    gpus: int
    at_once: int
    timeout_hours: float | None
    nodes: int = 1


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
    task, sizes = task_of(asdict(config.env)), (work.acting_batch, work.n_processes)
    limits = budget.frames, budget.wall_clock_seconds
    return Kind(config.algo.name, task, config.network.kind, config.device, *limits, *sizes, config.ranks)


def task_of(env: Mapping[str, Any]) -> str:
    """What is simulated, by what if not by EnvPool, and slowed by what, as `env` of a run's configuration says."""
    if env.get("game"):
        task = "Atari"
    elif not uses_gymnasium(EnvConfig(id=env["id"], backend=env.get("backend"))):
        task = str(env["id"])
    else:
        task = f"{env['id']} (gymnasium{', processes' if env.get('simulate') == 'processes' else ''})"
    added = env.get("step_time") or {}
    if added.get("distribution", "none") == "none":
        return task
    deviation = added.get("deviation_seconds")
    return f"{task} + {added['mean_seconds']:g}{f' ± {deviation:g}' if deviation else ''} s, {added['distribution']}"


Measured = dict[tuple[str, str, str, str, int], list[tuple[float, int]]]


def measured_speeds(root: Path) -> Measured:
    """Frames per second of finished runs, and bytes without replays, by algorithm, task, network, device and ranks."""
    found = defaultdict(list)
    for path in run_directories(root) if root.is_dir() else []:
        status = read_status(path)
        if status.get("state") != "finished" or status.get("wall_seconds", 0.0) < _SECONDS_TO_COUNT:
            continue
        config = read_yaml(path / "config.yaml")
        files = (file for file in path.rglob("*") if file.is_file() and file.parent != path / "replay")
        size = sum(file.stat().st_size for file in files)
        key = (config["algo"]["name"], task_of(config["env"]), config["network"]["kind"], config["device"])
        found[*key, config.get("ranks", 1)].append((status["frames"] / status["wall_seconds"], size))
    return dict(found)


class Bounds:
    """The serial bounds of this machine in agent steps per second, each measured once."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def of(self, config: Config) -> float:
        """Runs that differ in their game, seed or budget only have one bound."""
        env = replace(config.env, game="any" if config.env.game else None)
        parts = (config.algo.name, find_algorithm(config.algo.name).workload(config), env, config.network)
        key = repr((*parts, config.device, config.n_torch_threads))
        if key not in self._known:
            from a3c_bench.calibration import calibrate

            _say(f"measuring the speed of {config.algo.name} on this machine")
            found = calibrate(config, repeats=3, seconds_per_repeat=0.3)
            self._known[key] = found.serial_bound_agent_steps_per_second
        return self._known[key]


def cost_of(kind: Kind, config: Config, measured: Measured, bounds: Bounds) -> Cost:
    """What a run of this kind costs."""
    import torch

    runs = measured.get((kind.algo, kind.env, kind.network, kind.device, kind.ranks))
    if runs:
        speed = statistics.median(speed for speed, _ in runs)
        gigabytes = (statistics.median(size for _, size in runs) + replay_bytes(config)) / 1e9
        source = f"{len(runs)} finished runs"
    else:
        here = config if kind.device == "cpu" or torch.cuda.is_available() else replace(config, device="cpu")
        speed = kind.ranks * bounds.of(here) * config.env.frame_skip
        gigabytes = estimated_bytes(config) / 1e9
        source = "calibrated here" + (f", {kind.ranks} times" if kind.ranks > 1 else "")
        source += "" if here is config else " without a GPU"
    hours = [kind.frames / speed / 3600] if kind.frames else []
    hours += [kind.seconds / 3600] if kind.seconds else []
    return Cost(speed if kind.frames else None, min(hours, default=None), gigabytes, source)


def estimated_bytes(config: Config) -> int:
    """Of a finished run's directory: two checkpoints, the tables and the replays that lie in files."""
    import torch

    from a3c_bench.envs import find_spec
    from a3c_bench.runtime.recorder import LAG_COLUMNS, METRIC_COLUMNS

    network = find_algorithm(config.algo.name).make_network(config, find_spec(config.env), torch.device("cpu"))
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    optimizer, has_target = config.algo.optimizer, any("target_period" in key for key in vars(config.algo))
    copies = 1 + (2 if optimizer.kind in ("adam", "radam") or optimizer.centered else 1) + has_target
    frames = config.budget.frames or 0
    rows = frames // config.metrics_interval_frames * (len(METRIC_COLUMNS) + len(LAG_COLUMNS)) * _BYTES_PER_CELL
    games = frames // _FRAMES_PER_GAME[config.env.game is not None] * _BYTES_PER_GAME
    return 2 * copies * 4 * n_parameters + rows + games + replay_bytes(config)


def replay_bytes(config: Config) -> int:
    """Of the replays in files of the run directory."""
    from a3c_bench.envs import find_spec
    from a3c_bench.replays import replay_bytes as bytes_of

    mapped, spec = find_algorithm(config.algo.name).workload(config).mapped_replays, find_spec(config.env)
    return sum(bytes_of(config, spec, n_envs) for n_envs in mapped)


def launcher_options(said: Mapping[str, Any]) -> LocalOptions | SlurmOptions | None:
    """What is said of a launcher, checked; None for Hydra's own, which runs one after the other here.

    Raises:
        ConfigError: in one sentence.
    """
    if "timeout_min" in said:
        slurm = SlurmOptions(**said)
        check_slurm(slurm)
        return slurm
    if "runs_at_once" in said:
        local = LocalOptions(**said)
        check_local(local)
        return local
    return None


def resources_of(options: LocalOptions | SlurmOptions | None, ranks: int) -> Resources:
    """What a launcher gives each run.

    Args:
        options: of the launcher.
        ranks: of the run that has most of them.
    """
    cores = usable_cores()
    if isinstance(options, SlurmOptions):
        cores = options.nodes * ranks_of_a_node(options) * options.cpus_per_task
        gpus = options.nodes * gpus_of_a_node(options)
        return Resources(cores, gpus, options.array_parallelism, options.timeout_min / 60, options.nodes)
    if options is not None:
        from a3c_bench.launch import local

        shares = local.slots(replace(options, ranks=ranks), range(cores), visible_gpus())
        return Resources(len(shares[0].cores), len(shares[0].gpus), len(shares), None)
    import torch

    return Resources(cores, torch.cuda.device_count(), 1, None)


def plan_table(costs: Sequence[tuple[Kind, int, Cost]], resources: Resources) -> Table:
    """One row per kind of run, and their sum."""
    has_ranks = any(kind.ranks > 1 for kind, _, _ in costs)
    table = Table("algo", "environment", "network", "device", "batch", *(["ranks"] if has_ranks else []))
    for title in ("runs", "frames each", "frames/s", "time each", "time", "core-hours", "GPU-hours", "disk GB"):
        table.add_column(title, justify="right")
    table.add_column("speed from")
    for kind, n_runs, cost in costs:
        hours = None if cost.hours is None else cost.hours * n_runs
        gpu_hours = None if hours is None else hours * resources.gpus
        table.add_row(
            *(kind.algo, kind.env, kind.network, kind.device, str(kind.acting_batch)),
            *([str(kind.ranks)] if has_ranks else []),
            *(f"{n_runs:,}", f"{kind.frames:,}" if kind.frames else "", _number(cost.frames_per_second)),
            *(_time(cost.hours), _time(hours), _number(None if hours is None else hours * resources.cores)),
            *(_number(gpu_hours), _number(cost.gigabytes * n_runs), cost.source),
        )
    hours, frames = _total(costs), sum(n_runs * (kind.frames or 0) for kind, n_runs, _ in costs)
    table.add_section()
    table.add_row(
        *("in all", *[""] * (4 + has_ranks), f"{sum(n for _, n, _ in costs):,}", f"{frames:,}", "", ""),
        *(_time(hours), _number(hours * resources.cores), _number(hours * resources.gpus)),
        *(_number(sum(cost.gigabytes * n_runs for _, n_runs, cost in costs)), ""),
    )
    return table


def notes(costs: Sequence[tuple[Kind, int, Cost]], resources: Resources) -> Iterable[str]:
    """What the table does not tell."""
    n_runs = sum(n for _, n, _ in costs)
    at_once = min(resources.at_once, n_runs)
    hours = [cost.hours for _, _, cost in costs if cost.hours is not None]
    each = _counted(resources.cores, "core") + (f" and {_counted(resources.gpus, 'GPU')}" if resources.gpus else "")
    each += f" on {_counted(resources.nodes, 'node')}" if resources.nodes > 1 else ""
    if hours:
        longest = max(max(hours), _total(costs) / at_once)
        runs, needed = _counted(at_once, "run"), duration(3600 * longest)
        yield f"{runs} at once, each with {each}: {needed} if all of that is free at once."
    if resources.timeout_hours is not None and hours and max(hours) > resources.timeout_hours:
        starts, limit = math.ceil(max(hours) / resources.timeout_hours), duration(3600 * resources.timeout_hours)
        yield f"The longest run needs {starts} starts of {limit}, the time limit."
    n_idle = sum(n for kind, n, _ in costs if kind.device == "cpu") if resources.gpus else 0
    if n_idle:
        yield f"{_counted(n_idle, 'run')} would hold a GPU without using it (device=cpu): give them another launcher."
    if len(hours) < len(costs):
        yield "Some runs end at a return only: nobody can tell their hours."
    if any(cost.source.startswith("calibrated") for _, _, cost in costs):
        yield (
            f"Calibrated speeds are the serial bound on {_counted(usable_cores(), 'core')} of this machine: "
            "real runs stay below it; --runs takes speeds from finished runs."
        )


def _total(costs: Sequence[tuple[Kind, int, Cost]]) -> float:
    return sum(n_runs * (cost.hours or 0.0) for _, n_runs, cost in costs)


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    return "<1 s" if 0 < hours < 1 / 3600 else duration(3600 * hours)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _say(what: str) -> None:
    print(f"sweeps.plan: {what}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    from a3c_bench.config import compose_sweep

    parser = argparse.ArgumentParser(prog="python -m sweeps.plan", description="What a sweep will cost.")
    parser.add_argument("words", nargs="+", metavar="WORD", help="name of a sweep, and words as for a3c_bench.run")
    parser.add_argument("--launcher", help="local, slurm_cpu, slurm_gpu, ... (default: what the sweep names, or none)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="finished runs to take speeds from")
    options = parser.parse_intermixed_args(arguments)
    words = [word if "=" in word else f"+sweeps={word}" for word in options.words]
    try:
        _say("composing the runs")
        launcher = [f"hydra/launcher={options.launcher}"] if options.launcher else []
        hydra, points = compose_sweep([*words, *launcher])
        said = launcher_options({key: value for key, value in hydra.launcher.items() if key != "_target_"})
        configs = [config if said is None else with_ranks(config, said, overrides) for overrides, config in points]
        kinds: dict[Kind, list[Config]] = defaultdict(list)
        for config in configs:
            check_settings(config)  # before torch and EnvPool are imported, which takes seconds
        for config in configs:
            kinds[kind_of(config)].append(config)
        _say(
            f"{_counted(len(points), 'run')} of {_counted(len(kinds), 'kind')}; reading finished runs in {options.runs}"
        )
        measured = measured_speeds(options.runs)
        costs, bounds = [], Bounds()
        for kind, alike in kinds.items():
            _say(f"{kind.algo} on {kind.env}, network {kind.network}, {_counted(len(alike), 'run')}")
            costs.append((kind, len(alike), cost_of(kind, alike[0], measured, bounds)))
        resources = resources_of(said, max(kind.ranks for kind in kinds))
    except UserError as error:
        _say(str(error))
        return error.exit_status
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(plan_table(costs, resources))
    for note in notes(costs, resources):
        console.print(note, highlight=False)
    return 0


if __name__ == "__main__":
    exit_with(main)
