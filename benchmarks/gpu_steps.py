"""The steps of gpu.py: each measures one thing, and tells every result as soon as it has it."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from a3c_bench import build
from a3c_bench.algos import find_algorithm
from a3c_bench.calibration import calibrate
from a3c_bench.config import compose
from a3c_bench.core.networks import sample_actions
from a3c_bench.envs import find_spec
from a3c_bench.runtime import checkpoint, machine
from a3c_bench.runtime.seeding import Stream, sequence, torch_generator
from a3c_bench.schema import Config
from a3c_bench.train import train

if TYPE_CHECKING:
    from benchmarks.gpu import Job

TOLERANCE = 1e-4  # of theta's norm; and
TOLERANCE_OF_MOVEMENT = 0.1  # of how far theta has moved, or theta that never moved would agree with anything
LEARNING_RATE = 0.007  # ten times the preset's, with which theta moves by 0.0003 of its norm in 50 updates
SIZES = {"paac": ("n_envs", (32, 128, 512)), "ga3c": ("n_agents", (32, 128, 512)), "dqn": ("n_envs", (1, 8, 64))}
N_UPDATES = (1, 50)  # after which thetas are compared
LEARNING_STARTS = 200  # agent steps before DQN's first update where thetas are compared
N_DRAWN = 1024  # acting steps of which each has other actions, where all devices act alike
SHORT_EVALUATION = ("evaluation.n_games=1", "evaluation.n_envs=1", "evaluation.max_episode_frames=400")
TASK = ("experiment=pong",)
TINY_REPLAY = ("algo.replay.capacity_agent_steps=1000", "algo.replay.learning_starts_agent_steps=10",
               "algo.replay.batch_size=4")  # fmt: skip
TINY_TASK = ("env=cartpole", "settings=paper", "network=mlp", "network.hidden_sizes=[8]")
MODES = {
    "eager": (),
    "compiled": ("compute.compile=true",),
    "graphs": ("compute.cuda_graphs=true",),
}


def mode_there(job: "Job", mode: str) -> str:
    """The mode, or what there is in its place: no CPU has graphs."""
    return "eager" if mode == "graphs" and not job.device.startswith("cuda") else mode


def configuration(job: "Job", *words: str, device: str | None = None) -> Config:
    """Of a short run on the job's device, or on another."""
    task = TINY_TASK if job.tiny else TASK
    return compose([*task, f"device={device or job.device}", "progress=false", *SHORT_EVALUATION, *words])


def trained(config: Config, directory: Path) -> pd.DataFrame:
    """Trains, keeps no checkpoint, and gives the rows of metrics.csv."""
    train(config, directory)
    shutil.rmtree(directory / "checkpoint")
    return pd.read_csv(directory / "metrics.csv")


# --- the machine ------------------------------------------------------------------------------------------------------


def machine_facts(job: "Job") -> None:
    """Hardware, driver, versions and commit."""
    device = machine.resolve_device(job.device)
    versions = machine.versions()
    job.tell(
        "machine",
        device=job.device,
        tiny=job.tiny,
        **machine.describe(device),
        driver=_driver(),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if device.type == "cuda" else None,  # type: ignore[no-untyped-call]
        torch=versions.pop("torch"),
        versions=versions,
        commit=job.commit or machine.git_commit(),
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


# --- the same numbers on both devices ---------------------------------------------------------------------------------


class Trained(NamedTuple):
    """Where a run ended."""

    theta: Tensor  # [P], float64
    updates: int
    seconds: float


def agree(job: "Job", algo: str, *modes: str) -> None:
    """The first updates of an algorithm on the CPU and on the device in each mode, with the same actions, no TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for n_updates in N_UPDATES:
        config, directory = agreeing_configuration(job, algo, n_updates), job.runs / f"{n_updates}_updates"
        on_cpu = train_alike(replace(config, device="cpu"), directory / "cpu")
        for mode in dict.fromkeys(mode_there(job, mode) for mode in modes):
            on_device = train_alike(agreeing_configuration(job, algo, n_updates, mode), directory / mode)
            job.tell(mode=mode, **compared(first_theta(config), on_cpu, on_device))


def agreeing_configuration(job: "Job", algo: str, n_updates: int, mode: str = "eager") -> Config:
    """A run of so many updates, or a few more if games end, whose learning rate stays."""
    words = [f"algo={algo}", "algo.optimizer.anneal=false", *MODES[mode]]
    if algo == "dqn":
        words += ["algo.epsilon_end=1.0", "algo.target_period_agent_steps=100",  # anything may be done: no argmax
                  "algo.replay.capacity_agent_steps=2000", "algo.replay.batch_size=32",
                  f"algo.replay.learning_starts_agent_steps={LEARNING_STARTS}"]  # fmt: skip
    elif algo == "ga3c":
        words += ["algo.synchronous=true"]
    if algo != "dqn":
        words += [f"algo.optimizer.lr={LEARNING_RATE}"]
        words += [f"algo.{SIZES[algo][0]}=4"] if job.tiny else []
    config = configuration(job, *words)
    if algo == "dqn":
        n_agent_steps = LEARNING_STARTS + n_updates * config.algo.update_period_agent_steps
    else:
        n_agent_steps = n_updates * find_algorithm(algo).workload(config).acting_batch * config.algo.t_max
    return replace(config, budget=replace(config.budget, frames=n_agent_steps * config.env.frame_skip))


def train_alike(config: Config, directory: Path) -> Trained:
    """Trains with actions that are the same on every device."""
    start = time.monotonic()
    with same_actions(config) as n_drawn:
        status = train(config, directory)
    if config.algo.name != "dqn" and n_drawn() < status["agent_steps"]:
        raise RuntimeError(f"{config.algo.name} drew {status['agent_steps']} actions, {n_drawn()} of them alike.")
    saved = checkpoint.load(directory / "checkpoint" / "latest.pt")["parts"]["network"]
    shutil.rmtree(directory / "checkpoint")
    return Trained(flat(saved), status["updates"], time.monotonic() - start)


@contextmanager
def same_actions(config: Config) -> Iterator[Callable[[], int]]:
    """Takes actor-critics' actions from a table that is the same for all devices, without a look at the policy.

    Rounding would change some of those that are drawn. Where the table is read, a counter on the device says, so that
    what is captured reads on.

    Yields:
        tells how many were taken.
    """
    algorithm = find_algorithm(config.algo.name)  # its modules are there now
    device, n_envs = machine.resolve_device(config.device), algorithm.workload(config).acting_batch
    n_actions, generator = find_spec(config.env).n_actions, torch.Generator().manual_seed(config.seed)
    table = torch.randint(n_actions, (N_DRAWN, n_envs), generator=generator).to(device)
    n_read = torch.zeros(1, dtype=torch.int64, device=device)

    def draw(log_probs: Tensor, _generator: torch.Generator, *_part: int) -> Tensor:
        actions = table.index_select(0, n_read % N_DRAWN)[0, : len(log_probs)]
        n_read.add_(1)
        return actions

    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("a3c_bench.") and getattr(module, "sample_actions", None) is sample_actions:
                stack.enter_context(patch.object(module, "sample_actions", draw))
        yield lambda: int(n_read) * n_envs


def first_theta(config: Config) -> Tensor:
    """What a run begins with, [P]."""
    network = find_algorithm(config.algo.name).make_network(config, find_spec(config.env), torch.device("cpu"))
    return flat(network.state_dict())


def flat(state: Mapping[str, Tensor]) -> Tensor:
    """All parameters, [P], float64."""
    return torch.cat([part.detach().double().flatten() for part in state.values()])


def compared(first: Tensor, on_cpu: Trained, on_device: Trained) -> dict[str, Any]:
    """How far apart two runs from the same theta [P] are, as shares of theta's norm."""
    norm = on_cpu.theta.norm()
    difference = float((on_device.theta - on_cpu.theta).norm() / norm)
    moved = float((on_cpu.theta - first).norm() / norm)
    return {
        "updates": on_cpu.updates,
        "updates_on_device": on_device.updates,
        "difference": difference,
        "tolerance": TOLERANCE,
        "moved": moved,
        "agrees": on_cpu.updates == on_device.updates
        and difference <= TOLERANCE
        and difference < TOLERANCE_OF_MOVEMENT * moved,
        "seconds_cpu": round(on_cpu.seconds, 2),
        "seconds_device": round(on_device.seconds, 2),
    }


def draws(job: "Job") -> None:
    """Whether actions are drawn on the device as often as their probabilities say, which `agree` leaves out."""
    device, n_draws = machine.resolve_device(job.device), 200_000
    probabilities = torch.tensor([0.05, 0.15, 0.3, 0.5])
    generator = torch_generator(device, sequence(0, Stream.ACTIONS))
    actions = sample_actions(probabilities.log().to(device).repeat(n_draws, 1), generator)
    frequencies = torch.bincount(actions.cpu(), minlength=4) / n_draws
    difference = float((frequencies - probabilities).abs().max())
    tolerance = 0.006  # 5 standard deviations of the last one
    job.tell(n_draws=n_draws, difference=difference, tolerance=tolerance, agrees=difference <= tolerance)


# --- speeds -----------------------------------------------------------------------------------------------------------


CEILINGS = (  # network, mode, numbers of environments
    ("nips", "eager", (32, 64, 128, 256, 512)),
    ("nips", "graphs", (32, 128, 512)),
    ("nature", "graphs", (32, 512)),
    ("nips", "compiled", (128,)),
)


def ceilings(job: "Job", *modes: str) -> None:
    """Simulation on all cores, forward, and forward + backward, each alone, by number of environments."""
    repeats, seconds = (1, 0.05) if job.tiny else (3, 0.3)
    for network, mode, sizes in (("mlp", "eager", (2, 4)), ("mlp", "compiled", (2,))) if job.tiny else CEILINGS:
        for n in sizes if mode in modes and mode_there(job, mode) == mode else ():
            words = ["algo=paac", f"network={network}", f"algo.n_envs={n}", *MODES[mode]]
            found = asdict(calibrate(configuration(job, *words), repeats, seconds))
            job.tell(network=network, mode=mode, n_envs=n, **found)


SPEED_WORDS = {
    "paac": ("metrics_interval_frames=20_000",),
    "ga3c": ("metrics_interval_frames=20_000",),
    "dqn": ("metrics_interval_frames=1000", "algo.replay.learning_starts_agent_steps=1000"),
}
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "overlap": ("algo.overlap=true",),
    "lag not measured": ("lag.enabled=false",),
    "alternate": ("algo.alternate=true",),
    "alternate and overlap": ("algo.alternate=true", "algo.overlap=true"),
}
SPEEDS: dict[str, tuple[tuple[str, str, tuple[int, ...]], ...]] = {  # way, mode, numbers of environments
    "paac": (
        ("plain", "graphs", (32, 128, 512)),
        ("plain", "eager", (128,)),
        ("overlap", "graphs", (128, 512)),
        ("alternate", "graphs", (128, 512)),
        ("alternate and overlap", "graphs", (512,)),
        ("lag not measured", "graphs", (128,)),
    ),
    "ga3c": (
        ("plain", "graphs", (32, 128, 512)),
        ("plain", "eager", (128,)),
        ("lag not measured", "graphs", (128,)),
    ),
    "dqn": (
        ("plain", "graphs", (1, 8, 64)),
        ("plain", "eager", (8,)),
        ("overlap", "graphs", (8,)),
    ),
}


def speed(job: "Job", algo: str) -> None:
    """Agent steps and updates per second, as shares of raw simulation too, what the time goes into, memory and lag."""
    raw: dict[int, float] = {}
    done: dict[tuple[str, str, int], float] = {}
    for way, wanted, sizes in SPEEDS[algo]:
        mode = mode_there(job, wanted)
        for n in (2,) if job.tiny else sizes:
            if (way, mode, n) in done:
                continue
            config = speed_configuration(job, algo, n, *WAYS[way], *MODES[mode])
            raw[n] = raw.get(n) or raw_agent_steps_per_second(config, n, 0.05 if job.tiny else 0.5)
            found = speed_of(job, config, f"{way.replace(' ', '_')}_{mode}_{n}_envs")
            done[way, mode, n] = found["agent_steps_per_second"]
            measured = done.get(("plain", mode, n)) if way == "lag not measured" else None
            cost = {} if measured is None else {"lag_cost": 1.0 - measured / found["agent_steps_per_second"]}
            share = found["agent_steps_per_second"] / raw[n]
            job.tell(algo=algo, way=way, mode=mode, n_envs=n, raw_agent_steps_per_second=raw[n], share_of_raw=share,
                     **found, **cost)  # fmt: skip


def speed_configuration(job: "Job", algo: str, n: int, *more: str) -> Config:
    """A run of some seconds with so many environments."""
    words = [f"algo={algo}", f"algo.{SIZES[algo][0]}={n}", *SPEED_WORDS[algo], *more]
    words += ["budget.wall_clock_seconds=" + ("1.0" if job.tiny else "5.0")]
    if algo == "ga3c":
        words += [f"algo.min_training_batch={5 * n}"]  # an update as large as PAAC's
    if job.tiny:
        words += ["metrics_interval_frames=20"]
        words += TINY_REPLAY if algo == "dqn" else []
    return configuration(job, *words)


def speed_of(job: "Job", config: Config, name: str) -> dict[str, Any]:
    """What a run did once it was warm, and the lag that it had."""
    on_gpu = config.device.startswith("cuda")
    if on_gpu:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # else there are no statistics yet
        torch.cuda.reset_peak_memory_stats(config.device)
    rows = trained(config, job.runs / name)
    memory = torch.cuda.max_memory_reserved(config.device) / 2**20 if on_gpu else None
    lag = pd.read_csv(job.runs / name / "lag.csv").filter(
        regex="^(lag_(updates|seconds)|replay_age_frames|importance_ratio)_mean$"
    )
    found = rates(rows, 0.2 if job.tiny else 1.5)
    return found | {"gpu_memory_mib": memory, "lag": lag.mean().dropna().to_dict()}


def raw_agent_steps_per_second(config: Config, n_envs: int, seconds: float) -> float:
    """What simulation alone would reach: all environments in lock step, with random actions, on all cores."""
    envs, rng = build.make_envs(config, n_envs, sequence(0, Stream.CALIBRATION)), np.random.default_rng(0)
    try:
        envs.reset()
        envs.step(rng.integers(envs.n_actions, size=n_envs))
        start, n_rounds = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            envs.step(rng.integers(envs.n_actions, size=n_envs))
            n_rounds += 1
        return n_rounds * n_envs / (time.perf_counter() - start)
    finally:
        envs.close()


def rates(rows: pd.DataFrame, warm_up_seconds: float) -> dict[str, Any]:
    """Agent steps and updates per second, and the shares of time, once it is warm and learns; else (`warm`) of all."""
    counted = rows[(rows.wall_seconds >= warm_up_seconds) & (rows.updates > 0)]
    warm = len(counted) > 1
    if not warm:
        counted = rows
    counters = counted[["agent_steps", "updates", "wall_seconds"]]
    passed = counters.iloc[-1] - (counters.iloc[0] if warm else 0.0)
    shares = counted.filter(regex="^share_(simulate|predict|train|wait)$").mean().dropna()
    return {
        "agent_steps_per_second": passed.agent_steps / passed.wall_seconds,
        "updates_per_second": passed.updates / passed.wall_seconds,
        "seconds": passed.wall_seconds,
        "warm": warm,
        "shares": shares.to_dict(),
    }


# --- learning ---------------------------------------------------------------------------------------------------------

SECONDS_AFTER_TRAINING = 15.0
N_POINTS = 40


def pong(job: "Job", algo: str) -> None:
    """Pong until the mean return of 100 training games is 18, or until there is no time left."""
    target = 18.0
    seconds = 5.0 if job.tiny else max(job.seconds_left() - SECONDS_AFTER_TRAINING, 1.0)
    words = [f"algo={algo}", *MODES[mode_there(job, "graphs")],
             f"budget.target_return={target}", f"budget.wall_clock_seconds={seconds}",
             "metrics_interval_frames=" + ("100" if job.tiny else "40_000")]  # fmt: skip
    rows = trained(configuration(job, *words), job.runs)
    last = rows.iloc[-1]
    course = rows[["frames", "wall_seconds", "mean_return_100_games"]].dropna()
    job.tell(
        algo=algo,
        target_return=target,
        reached=bool(last.mean_return_100_games >= target),
        mean_return_100_games=last.mean_return_100_games,
        frames=int(last.frames),
        updates=int(last.updates),
        wall_seconds=last.wall_seconds,
        agent_steps_per_second=last.agent_steps / last.wall_seconds,
        course=course.iloc[:: max(1, len(course) // N_POINTS)].round(3).to_dict("list"),
    )
