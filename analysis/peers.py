"""Training throughput beside another implementation: our PAAC against Stable-Baselines3's A2C on CartPole-v1.

    python -m analysis.peers
    python -m analysis.peers --envs 64 --agent-steps 200000 --repeats 3 --out peers.json

Both do the same work per agent step: 64 environments, updates of 5 steps, two separate 64x64 tanh networks, RMSProp, on
the CPU. They run in turn, each time in a process of its own, so that a machine that slows down slows both. The rate is
agent steps per second of training: starting up and evaluation are outside it.
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
from pathlib import Path
from typing import Any

from analysis.cli import positive
from analysis.load import load_runs

T_MAX = 5  # agent steps per environment and update, on both sides
BUSY_LOAD = 0.5  # PyTorch's spinning threads make Stable-Baselines3 several times slower beside other work
SIDES = {"a3c_bench": "a3c_bench PAAC", "sb3": "Stable-Baselines3 A2C"}


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


Measure = Callable[[int, int], Measurement]  # (environments, agent steps) -> what came of it


# --- the two sides ----------------------------------------------------------------------------------------------------


def measure_a3c_bench(n_envs: int, agent_steps: int) -> Measurement:
    """Trains our PAAC in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        _run(
            "a3c_bench.run", "env=cartpole", "algo=paac", f"algo.n_envs={n_envs}", f"algo.t_max={T_MAX}",
            "network=mlp", "network.hidden_sizes=[64,64]", "network.shared_trunk=false", f"budget.frames={agent_steps}",
            "evaluation.n_games=1", "name=peers", f"root={root}", "progress=false",
        )  # fmt: skip
        (run,) = load_runs(root)
        return Measurement(run.status["agent_steps"], run.status["wall_seconds"])


def measure_sb3(n_envs: int, agent_steps: int) -> Measurement:
    """Trains Stable-Baselines3's A2C in a process of its own."""
    output = _run("analysis.peers", "--side", "sb3", "--envs", str(n_envs), "--agent-steps", str(agent_steps))
    return Measurement(**json.loads(output.splitlines()[-1]))


def train_sb3(n_envs: int, agent_steps: int) -> Measurement:
    """Trains Stable-Baselines3's A2C with its default settings here, after a warm-up of ten updates."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=n_envs), n_steps=T_MAX, device="cpu")
    model.set_logger(Logger(folder=None, output_formats=[]))  # its own writes nothing either, into a new folder in /tmp
    model.learn(10 * T_MAX * n_envs)
    start = time.perf_counter()
    model.learn(agent_steps)
    return Measurement(model.num_timesteps, time.perf_counter() - start)


MEASURES: Mapping[str, Measure] = {"a3c_bench": measure_a3c_bench, "sb3": measure_sb3}


def _run(module: str, *arguments: str) -> str:
    """Standard output of a Python module that ends well."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise PeerError(f"python -m {module} ended with status {done.returncode}: {last}")
    return done.stdout


# --- the comparison ---------------------------------------------------------------------------------------------------


def compare(n_envs: int, agent_steps: int, repeats: int, measures: Mapping[str, Measure] = MEASURES) -> dict[str, Any]:
    """Measures the sides in turn, `repeats` times each.

    Returns:
        rates (agent steps/s of each repeat) and medians by side, and ratio: our median over theirs.

    Raises:
        PeerError: a side failed.
    """
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES:
            rates[side].append(measures[side](n_envs, agent_steps).rate)
            print(f"{SIDES[side]}, repeat {repeat + 1}: {rates[side][-1]:,.0f} agent steps/s", file=sys.stderr)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return {"rates": rates, "medians": medians, "ratio": medians["a3c_bench"] / medians["sb3"]}


def format_table(result: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """The table to read: a row per side, a column per repeat, then the medians, their ratio and the machine."""
    repeats = len(next(iter(result["rates"].values())))
    lines = [_row("agent steps/s", [*(f"repeat {i + 1}" for i in range(repeats)), "median"])]
    for side, name in SIDES.items():
        lines.append(_row(name, [f"{rate:,.0f}" for rate in [*result["rates"][side], result["medians"][side]]]))
    lines.append(f"\nratio of the medians: {result['ratio']:.2f}")
    lines.append(
        f"CartPole-v1, {conditions['n_envs']} environments, {conditions['agent_steps']:,} agent steps per repeat; "
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
    if importlib.util.find_spec("stable_baselines3") is None:
        print("Stable-Baselines3 is not installed: pip install 'a3c-bench[peers]' brings it.", file=sys.stderr)
        return 2
    if chosen.side == "sb3":
        measurement = train_sb3(chosen.envs, chosen.agent_steps)
        print(json.dumps({"agent_steps": measurement.agent_steps, "seconds": measurement.seconds}))
        return 0
    conditions = {"n_envs": chosen.envs, "agent_steps": chosen.agent_steps, **machine()}
    if conditions["load_before"] > BUSY_LOAD:
        print(
            f"Other processes keep this machine busy (load {conditions['load_before']:.1f}): "
            "the sides suffer unequally, so repeat this when it is idle.",
            file=sys.stderr,
        )
    try:
        result = compare(chosen.envs, chosen.agent_steps, chosen.repeats)
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
        description="Times our PAAC and Stable-Baselines3's A2C on CartPole-v1 in turn.",
    )
    parser.add_argument("--envs", type=positive, default=64, help="environments on each side (default 64)")
    parser.add_argument("--agent-steps", type=positive, default=200_000, help="per repeat (default 200000)")
    parser.add_argument("--repeats", type=positive, default=3, help="of each side (default 3)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write everything there, as JSON")
    parser.add_argument("--side", choices=["sb3"], help=argparse.SUPPRESS)  # this process is one measurement
    return parser


if __name__ == "__main__":
    sys.exit(main())
