"""Training throughput beside another implementation: our PAAC and DQN against Stable-Baselines3's A2C and DQN.

    python -m analysis.peers
    python -m analysis.peers a2c --envs 64 --agent-steps 200000 --repeats 3 --out peers.json
    python -m analysis.peers dqn
    python -m analysis.peers dqn_pong

Both sides do the same work per agent step on the CPU: the same environments, networks, batches and kind of optimiser.
a2c: CartPole, 64 environments, updates of 5 steps, two separate 64x64 tanh networks, RMSProp. dqn: CartPole, one
environment, a 64x64 relu network, Adam, a batch of 32 every 4 steps. dqn_pong: the same with frames and "nature".
They run in turn, each time in a process of its own, so that a machine that slows down slows both. The rate is agent
steps per second of training: starting up and evaluation are outside it.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analysis.cli import positive
from analysis.load import load_runs

BUSY_LOAD = 0.5  # PyTorch's spinning threads make Stable-Baselines3 several times slower beside other work
T_MAX = 5  # a2c: agent steps per environment and update, on both sides
DQN_OPTIONS: Mapping[str, Any] = {  # dqn: on both sides, in Stable-Baselines3's words; periods in agent steps
    "buffer_size": 10_000,
    "learning_starts": 1000,
    "batch_size": 32,
    "train_freq": 4,
    "target_update_interval": 1000,
    "learning_rate": 1e-4,
    "max_grad_norm": 10.0,
}
SIDES = ("a3c_bench", "sb3")


class PeerError(Exception):
    """A side that did not run; the message is one sentence."""


@dataclass(frozen=True)
class Measurement:
    """One training run of one side."""

    agent_steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """Agent steps per second of training."""
        return self.agent_steps / self.seconds


Measure = Callable[[str, str, int, int], Measurement]  # (contest, side, environments, agent steps) -> what came of it


@dataclass(frozen=True)
class Contest:
    """One comparison."""

    env: str
    ours: str
    theirs: str
    n_envs: int  # unless said otherwise
    agent_steps: int  # likewise
    words: Callable[[int, int], Sequence[str]]  # our command's, for so many environments and agent steps
    train: Callable[[int, int], Measurement]  # the other side, in this process

    def name(self, side: str) -> str:
        """Of a side, for the table."""
        return f"a3c_bench {self.ours}" if side == "a3c_bench" else f"Stable-Baselines3 {self.theirs}"


# --- the two sides ----------------------------------------------------------------------------------------------------


def measure(contest: str, side: str, n_envs: int, agent_steps: int) -> Measurement:
    """Trains one side in a process of its own."""
    if side == "sb3":
        words = ("--side", side, "--envs", str(n_envs), "--agent-steps", str(agent_steps))
        return Measurement(**json.loads(_run("analysis.peers", contest, *words).splitlines()[-1]))
    with tempfile.TemporaryDirectory() as root:
        _run(
            "a3c_bench.run", *CONTESTS[contest].words(n_envs, agent_steps), "evaluation.n_games=1",
            "evaluation.n_envs=1", "evaluation.max_episode_frames=400", "name=peers", f"root={root}", "progress=false",
        )  # fmt: skip
        (run,) = load_runs(root)
        return Measurement(run.status["agent_steps"], run.status["wall_seconds"])


def a2c_words(n_envs: int, agent_steps: int) -> list[str]:
    """What our command says to do A2C's default work."""
    return [
        "env=cartpole", "algo=paac", f"algo.n_envs={n_envs}", f"algo.t_max={T_MAX}", "network=mlp",
        "network.hidden_sizes=[64,64]", "network.shared_trunk=false", f"budget.frames={agent_steps}",
    ]  # fmt: skip


def dqn_words(n_envs: int, agent_steps: int, env: str = "cartpole") -> list[str]:
    """What our command says to do the work of `DQN_OPTIONS`."""
    frames, network = agent_steps, ["network=mlp", "network.hidden_sizes=[64,64]", "network.activation=relu"]
    if env == "pong":
        frames, network = 4 * agent_steps, ["network=nature"]
    options = DQN_OPTIONS
    return [
        f"env={env}", "algo=dqn", *network, f"algo.n_envs={n_envs}", f"budget.frames={frames}",
        f"algo.replay.capacity_agent_steps={options['buffer_size']}",
        f"algo.replay.learning_starts_agent_steps={options['learning_starts']}",
        f"algo.replay.batch_size={options['batch_size']}", f"algo.update_period_agent_steps={options['train_freq']}",
        f"algo.target_period_agent_steps={options['target_update_interval']}", "algo.optimizer.kind=adam",
        f"algo.optimizer.lr={options['learning_rate']}", f"algo.optimizer.max_grad_norm={options['max_grad_norm']}",
    ]  # fmt: skip


def train_a2c(n_envs: int, agent_steps: int) -> Measurement:
    """Trains Stable-Baselines3's A2C with its default settings here, after a warm-up of ten updates."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=n_envs), n_steps=T_MAX, device="cpu")
    return _timed(model, agent_steps, warm_up=10 * T_MAX * n_envs)


def train_dqn(n_envs: int, agent_steps: int) -> Measurement:
    """Trains Stable-Baselines3's DQN here; the steps before learning starts count, as on our side."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env

    return _timed(
        DQN("MlpPolicy", make_vec_env("CartPole-v1", n_envs=n_envs), device="cpu", **DQN_OPTIONS), agent_steps
    )


def train_dqn_pong(n_envs: int, agent_steps: int) -> Measurement:
    """The same from frames; needs ale-py and OpenCV."""
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    envs = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=n_envs), n_stack=4)
    model = DQN("CnnPolicy", envs, device="cpu", optimize_memory_usage=False, **DQN_OPTIONS)
    return _timed(model, agent_steps)


def _timed(model: Any, agent_steps: int, warm_up: int = 0) -> Measurement:
    from stable_baselines3.common.logger import Logger

    model.set_logger(Logger(folder=None, output_formats=[]))  # its own writes nothing either, into a new folder in /tmp
    if warm_up:
        model.learn(warm_up)
    start = time.perf_counter()
    model.learn(agent_steps)
    return Measurement(model.num_timesteps, time.perf_counter() - start)


CONTESTS: Mapping[str, Contest] = {
    "a2c": Contest("CartPole-v1", "PAAC", "A2C", 64, 200_000, a2c_words, train_a2c),
    "dqn": Contest("CartPole-v1", "DQN", "DQN", 1, 50_000, dqn_words, train_dqn),
    "dqn_pong": Contest("Pong", "DQN", "DQN", 1, 10_000, partial(dqn_words, env="pong"), train_dqn_pong),
}


def _run(module: str, *arguments: str) -> str:
    """Standard output of a Python module that ends well."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise PeerError(f"python -m {module} ended with status {done.returncode}: {last}")
    return done.stdout


# --- the comparison ---------------------------------------------------------------------------------------------------


def compare(contest: str, n_envs: int, agent_steps: int, repeats: int, measure: Measure = measure) -> dict[str, Any]:
    """Measures the sides in turn, `repeats` times each.

    Returns:
        rates (agent steps/s of each repeat) and medians by side, and ratio: our median over theirs.

    Raises:
        PeerError: a side failed.
    """
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES:
            rates[side].append(measure(contest, side, n_envs, agent_steps).rate)
            name = CONTESTS[contest].name(side)
            print(f"{name}, repeat {repeat + 1}: {rates[side][-1]:,.0f} agent steps/s", file=sys.stderr)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return {"rates": rates, "medians": medians, "ratio": medians["a3c_bench"] / medians["sb3"]}


def format_table(result: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """The table to read: a row per side, a column per repeat, then the medians, their ratio and the machine."""
    contest = CONTESTS[conditions["contest"]]
    repeats = len(next(iter(result["rates"].values())))
    lines = [_row("agent steps/s", [*(f"repeat {i + 1}" for i in range(repeats)), "median"])]
    for side in SIDES:
        rates = [*result["rates"][side], result["medians"][side]]
        lines.append(_row(contest.name(side), [f"{rate:,.0f}" for rate in rates]))
    lines.append(f"\nratio of the medians: {result['ratio']:.2f}")
    lines.append(
        f"{contest.env}, environments: {conditions['n_envs']}, {conditions['agent_steps']:,} agent steps per repeat; "
        f"{conditions['cpu']}, {conditions['cores']} cores, load {conditions['load_before']:.1f} before the start"
    )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, and how busy they were in the last minute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {"cpu": _cpu_model(), "cores": cores, "load_before": load}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<22}" + "".join(f"{cell:>11}" for cell in cells)


# --- the command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    contest = CONTESTS[chosen.contest]
    n_envs, agent_steps = chosen.envs or contest.n_envs, chosen.agent_steps or contest.agent_steps
    needed = ["stable_baselines3", *(["ale_py", "cv2"] if contest.env == "Pong" else [])]
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        print(f"{missing[0]} is not installed: pip install 'a3c-bench[peers]' brings it.", file=sys.stderr)
        return 2
    if chosen.side == "sb3":
        measurement = contest.train(n_envs, agent_steps)
        print(json.dumps({"agent_steps": measurement.agent_steps, "seconds": measurement.seconds}))
        return 0
    conditions = {"contest": chosen.contest, "n_envs": n_envs, "agent_steps": agent_steps, **machine()}
    if conditions["load_before"] > BUSY_LOAD:
        print(
            f"Other processes keep this machine busy (load {conditions['load_before']:.1f}): "
            "the sides suffer unequally, so repeat this when it is idle.",
            file=sys.stderr,
        )
    try:
        result = compare(chosen.contest, n_envs, agent_steps, chosen.repeats)
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    print(format_table(result, conditions))
    if chosen.out:
        try:
            chosen.out.write_text(json.dumps({"conditions": conditions, **result}, indent=2) + "\n")
        except OSError as error:
            print(f"{chosen.out} cannot be written: {error.strerror}.", file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.peers",
        description="Times our training beside Stable-Baselines3's, in turn.",
    )
    parser.add_argument("contest", nargs="?", choices=list(CONTESTS), default="a2c", help="what trains (default a2c)")
    parser.add_argument("--envs", type=positive, help="environments on each side (default 64 for a2c, else 1)")
    parser.add_argument("--agent-steps", type=positive, help="per repeat (default 200,000, 50,000 and 10,000)")
    parser.add_argument("--repeats", type=positive, default=3, help="of each side (default 3)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write everything there, as JSON")
    parser.add_argument("--side", choices=["sb3"], help=argparse.SUPPRESS)  # this process is one measurement
    return parser


if __name__ == "__main__":
    sys.exit(main())
