"""The steps of gpu.py: each measures one thing, and tells every result as soon as it has it."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor

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
SHORT_EVALUATION = ("evaluation.n_games=1", "evaluation.n_envs=1", "evaluation.max_episode_frames=400")
TASK = ("experiment=pong",)
TINY_REPLAY = ("algo.replay.capacity_agent_steps=1000", "algo.replay.learning_starts_agent_steps=10",
               "algo.replay.batch_size=4")  # fmt: skip
TINY_TASK = ("env=cartpole", "settings=paper", "network=mlp", "network.hidden_sizes=[8]")


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


def agree(job: "Job", algo: str) -> None:
    """The first updates of an algorithm on the CPU and on the device, with the same actions, without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for n_updates in N_UPDATES:
        config = agreeing_configuration(job, algo, n_updates)
        on_cpu = train_alike(replace(config, device="cpu"), job.runs / f"{n_updates}_updates" / "cpu")
        on_device = train_alike(config, job.runs / f"{n_updates}_updates" / "device")
        job.tell(**compared(first_theta(config), on_cpu, on_device))


def agreeing_configuration(job: "Job", algo: str, n_updates: int) -> Config:
    """A run of so many updates, or a few more if games end, whose learning rate stays."""
    words = [f"algo={algo}", "algo.optimizer.anneal=false"]
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
    if config.algo.name != "dqn" and n_drawn[0] < status["agent_steps"]:
        raise RuntimeError(f"{config.algo.name} drew {status['agent_steps']} actions, {n_drawn[0]} of them alike.")
    saved = checkpoint.load(directory / "checkpoint" / "latest.pt")["parts"]["network"]
    shutil.rmtree(directory / "checkpoint")
    return Trained(flat(saved), status["updates"], time.monotonic() - start)


@contextmanager
def same_actions(config: Config) -> Iterator[list[int]]:
    """Draws actor-critics' actions on the CPU and without a look at the policy: rounding would change some.

    Yields:
        how many were drawn, in a list.
    """
    find_algorithm(config.algo.name)  # its modules are there now
    generator = torch.Generator().manual_seed(config.seed)
    n_drawn = [0]

    def draw(log_probs: Tensor, _generator: torch.Generator) -> Tensor:
        *shape, n_actions = log_probs.shape
        actions = torch.randint(n_actions, shape, generator=generator)
        n_drawn[0] += actions.numel()
        return actions.to(log_probs.device)

    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("a3c_bench.") and getattr(module, "sample_actions", None) is sample_actions:
                stack.enter_context(patch.object(module, "sample_actions", draw))
        yield n_drawn


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


def parts(job: "Job") -> None:
    """Simulation on all cores, forward, and forward + backward, each alone, by number of environments."""
    sizes: dict[str, Sequence[int]] = {"nips": (32, 64, 128, 256, 512), "nature": (32, 512)}
    repeats, seconds = (1, 0.05) if job.tiny else (3, 0.4)
    for network, n_envs in {"mlp": (2, 4)}.items() if job.tiny else sizes.items():
        for n in n_envs:
            config = configuration(job, "algo=paac", f"network={network}", f"algo.n_envs={n}")
            job.tell(network=network, n_envs=n, **asdict(calibrate(config, repeats, seconds)))


SPEED_WORDS = {
    "paac": ("metrics_interval_frames=20_000",),
    "ga3c": ("metrics_interval_frames=20_000",),
    "dqn": ("metrics_interval_frames=1000", "algo.replay.learning_starts_agent_steps=1000"),
}


def speed(job: "Job", algo: str) -> None:
    """Agent steps and updates per second of an algorithm, and what its time goes into, by number of environments."""
    key, sizes = SIZES[algo]
    seconds, warm_up_seconds = (1.0, 0.2) if job.tiny else (12.0, 3.0)
    for n in (2,) if job.tiny else sizes:
        words = [f"algo={algo}", f"algo.{key}={n}", *SPEED_WORDS[algo], f"budget.wall_clock_seconds={seconds}"]
        if algo == "ga3c":
            words += [f"algo.min_training_batch={5 * n}"]  # an update as large as PAAC's
        if job.tiny:
            words += ["metrics_interval_frames=20"]
            words += TINY_REPLAY if algo == "dqn" else []
        directory = job.runs / f"{n}_envs"
        rows = trained(configuration(job, *words), directory)
        lag = pd.read_csv(directory / "lag.csv").filter(regex="^lag_(updates|seconds)_mean$|^replay_age_frames_mean$")
        job.tell(n_envs=n, **rates(rows, warm_up_seconds), lag=lag.mean().dropna().to_dict())


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


def pong(job: "Job") -> None:
    """PAAC on Pong until the mean return of 100 training games is 18, or until there is no time left."""
    target = 18.0
    seconds = 5.0 if job.tiny else max(job.seconds_left() - SECONDS_AFTER_TRAINING, 1.0)
    words = ["algo=paac", f"budget.target_return={target}", f"budget.wall_clock_seconds={seconds}",
             "metrics_interval_frames=" + ("100" if job.tiny else "40_000")]  # fmt: skip
    rows = trained(configuration(job, *words), job.runs)
    last = rows.iloc[-1]
    course = rows[["frames", "wall_seconds", "mean_return_100_games"]].dropna()
    job.tell(
        target_return=target,
        reached=bool(last.mean_return_100_games >= target),
        mean_return_100_games=last.mean_return_100_games,
        frames=int(last.frames),
        updates=int(last.updates),
        wall_seconds=last.wall_seconds,
        agent_steps_per_second=last.agent_steps / last.wall_seconds,
        course=course.iloc[:: max(1, len(course) // N_POINTS)].round(3).to_dict("list"),
    )
