"""What a Gymnasium environment costs beside EnvPool's: CartPole of both, for a machine that does nothing else.

    python benchmarks/measure_backends.py                   8, 32 and 128 environments, three rounds
    python benchmarks/measure_backends.py --n-envs 16 --rounds 5

Measured are agent steps per second of the simulation alone, with random actions, and of a run of PAAC. EnvPool on its
threads, Gymnasium in place and Gymnasium in processes take turns, `--rounds` times, so that a machine that slows down
slows all; shown are the medians, and the median of the ratios to EnvPool within a round.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from a3c_bench.build import make_envs  # noqa: E402
from a3c_bench.config import compose  # noqa: E402
from a3c_bench.runtime.seeding import Stream, sequence  # noqa: E402
from a3c_bench.schema import Config  # noqa: E402
from a3c_bench.train import train  # noqa: E402

BACKENDS = {
    "EnvPool": ("env.backend=envpool",),
    "Gymnasium in place": ("env.backend=gymnasium", "env.simulate=in_place"),
    "Gymnasium in processes": ("env.backend=gymnasium", "env.simulate=processes"),
}
RUN = ("env=cartpole", "algo=paac", "evaluation.n_games=1", "evaluation.n_envs=1", "progress=false")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    n_envs: tuple[int, ...] = (8, 32, 128)
    rounds: int = 3
    seconds: float = 3.0  # of each measurement of the simulation
    frames: int = 60_000  # of each run


TINY = Size((2,), rounds=1, seconds=0.01, frames=100)


@dataclass(frozen=True)
class Row:
    """Agent steps per second of one backend, in each round."""

    n_envs: int
    backend: str
    simulation: list[float]
    run: list[float]


def simulate(config: Config, seconds: float) -> float:
    """Agent steps per second of the simulation alone; phantom steps take their time, and are none."""
    n_envs = config.algo.n_envs
    envs = make_envs(config, n_envs, sequence(config.seed, Stream.CALIBRATION))
    draws = np.random.default_rng(0)
    try:
        envs.reset()
        for _ in range(10):  # which warm up
            envs.step(draws.integers(envs.n_actions, size=n_envs))
        start, n_agent_steps = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds or not n_agent_steps:
            n_agent_steps += int(envs.step(draws.integers(envs.n_actions, size=n_envs)).valid.sum())
        return n_agent_steps / passed
    finally:
        envs.close()


def run(config: Config) -> float:
    """Agent steps per second of training."""
    with tempfile.TemporaryDirectory() as root:
        status = train(config, Path(root) / "run")
    return float(status["agent_steps"]) / float(status["wall_seconds"])


def measure(size: Size) -> list[Row]:
    """All backends, for each number of environments."""
    rows = []
    for n_envs in size.n_envs:
        words = (*RUN, f"algo.n_envs={n_envs}", f"budget.frames={size.frames}")
        configs = {backend: compose([*words, *own]) for backend, own in BACKENDS.items()}
        turns = [
            (backend, simulate(config, size.seconds), run(config))
            for _ in range(size.rounds)
            for backend, config in configs.items()
        ]
        for backend in BACKENDS:
            simulations, runs = zip(*(speeds for name, *speeds in turns if name == backend), strict=True)
            rows.append(Row(n_envs, backend, list(simulations), list(runs)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """In Markdown; each ratio is to EnvPool with as many environments."""
    lines = [
        "| environments | backend | simulation, agent steps/s | / EnvPool | PAAC, agent steps/s | / EnvPool |",
        "|---|---|---|---|---|---|",
    ]
    first = {row.n_envs: row for row in rows if row.backend == "EnvPool"}
    for row in rows:
        cells = [str(row.n_envs), row.backend]
        for speeds, beside in ((row.simulation, first[row.n_envs].simulation), (row.run, first[row.n_envs].run)):
            ratio = median(own / other for own, other in zip(speeds, beside, strict=True))
            cells += [f"{median(speeds):,.0f}", f"{ratio:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n-envs", type=int, nargs="+", default=Size.n_envs, help="two at least: one is never spread")
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    parser.add_argument("--tiny", action="store_true", help="see that it works, within seconds")
    asked = parser.parse_args()
    if min(asked.n_envs) < 2 or asked.rounds < 1:
        parser.error(f"--n-envs {min(asked.n_envs)} --rounds {asked.rounds}: it takes 2 environments and 1 round.")
    print(table(measure(TINY if asked.tiny else Size(tuple(asked.n_envs), asked.rounds))))


if __name__ == "__main__":
    main()
