"""How fast the algorithms are beside each other and beside the machine; for a machine that does nothing else.

    python benchmarks/measure_speed.py bound      PAAC, A3C and DQN as a share of the serial bound that they calibrate
    python benchmarks/measure_speed.py workers    A3C with 2 workers against 1
    python benchmarks/measure_speed.py ga3c       GA3C against PAAC
    python benchmarks/measure_speed.py lag        what it costs to measure lag: PAAC, A3C and GA3C with it and without
    python benchmarks/measure_speed.py overlap    PAAC and DQN that learn while environments step, against others
    python benchmarks/measure_speed.py alternate  PAAC in halves that alternate, alone and with overlap, against PAAC
    python benchmarks/measure_speed.py bundles    Gorila's updates per second with 2 bundles against 1

Pong and the nips network, if not said otherwise. The sides of a comparison take turns, `--rounds` times, so that a
machine that slows down slows both; what counts is the median of the ratios within a round.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from a3c_bench.algos import a3c  # noqa: E402
from a3c_bench.algos.a3c import Worker  # noqa: E402
from a3c_bench.algos.ga3c import Trainer  # noqa: E402
from a3c_bench.algos.paac import PAAC  # noqa: E402
from a3c_bench.config import compose  # noqa: E402
from a3c_bench.runtime.clock import TrainingClock  # noqa: E402
from a3c_bench.train import train  # noqa: E402
from benchmarks.measure_sweeps import statuses, sweep  # noqa: E402

BLOCK = 16  # calls with lag measured, then as many without; of A3C one update in 16 has its divergence taken
SHORT = ("evaluation.n_games=1", "evaluation.n_envs=1", "evaluation.max_episode_frames=400", "progress=false",
         "env=pong", "name=speed")  # fmt: skip
PRESET = ("experiment=pong",)
DQN = ("algo=dqn", "network=nature", "algo.replay.capacity_agent_steps=20_000",
       "algo.replay.learning_starts_agent_steps=1000")  # fmt: skip
GORILA = ("algo=gorila", "network=nips", "algo.replay.capacity_agent_steps=20_000", "n_torch_threads=1",
          "algo.replay.learning_starts_agent_steps=1000")  # fmt: skip


def run(words: Sequence[str]) -> Mapping[str, Any]:
    """The status of one training run, with the shares of its time."""
    with tempfile.TemporaryDirectory() as root:
        sweep(Path(root), *SHORT, *words)
        (status,) = statuses(Path(root))
        (table,) = Path(root).rglob("metrics.csv")
        shares = pd.read_csv(table).filter(regex="^share_(simulate|predict|train|wait|communicate)$").mean()
        return status | {"shares": {name.removeprefix("share_"): share for name, share in shares.items()}}


def steps_per_second(status: Mapping[str, Any]) -> float:
    """Agent steps per second of training."""
    return float(status["agent_steps"]) / float(status["wall_seconds"])


def updates_per_second(status: Mapping[str, Any]) -> float:
    """Updates per second of training."""
    return float(status["updates"]) / float(status["wall_seconds"])


def compare(rounds: int, sides: Mapping[str, Sequence[str]], rate: Any = steps_per_second) -> None:
    """The first side is what the others are compared with."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, words in sides.items():
            rates[name].append(rate(run(words)))
            print(f"  {name}: {rates[name][-1]:,.1f}", flush=True)
    first, *others = rates
    for name in others:
        ratios = [b / a for a, b in zip(rates[first], rates[name], strict=True)]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"{name} / {first}: median {median(ratios):.3f} ({shown}); {first} {median(rates[first]):,.0f} per second"
        )


def bound(rounds: int) -> None:
    """Each run calibrates first, in its own process."""
    for name, words in {
        "paac, n_e = 32": ("algo=paac", "budget.frames=160_000"),
        "a3c, 2 workers of 1": ("algo=a3c", "algo.n_workers=2", "budget.frames=80_000"),
        "a3c, the preset": (*PRESET, "algo=a3c", "budget.frames=160_000"),
        "dqn, nature, batch 32": (*DQN, "budget.frames=40_000"),
    }.items():
        shares = []
        for _ in range(rounds):
            status = run((*words, "calibrate=true"))
            shares.append(steps_per_second(status) / status["calibration"]["serial_bound_agent_steps_per_second"])
            where = ", ".join(f"{part} {share:.0%}" for part, share in status["shares"].items())
            print(f"  {name}: {steps_per_second(status):,.0f} agent steps/s, {shares[-1]:.0%}; {where}", flush=True)
        print(f"{name}: median {median(shares):.0%} of the serial bound")


def workers(rounds: int) -> None:
    """One environment per worker as in the paper, and the preset's eight."""
    for preset, frames in (((), 40_000), (PRESET, 80_000)):
        sides = {
            f"{n} worker{'s' * (n > 1)}": (*preset, "algo=a3c", f"algo.n_workers={n}", f"budget.frames={frames}")
            for n in (1, 2)
        }
        compare(rounds, sides)


def ga3c(rounds: int) -> None:
    """With as many environments and as large batches."""
    algos = {"paac": (), "ga3c": (), "ga3c, 32 agents": ("algo.n_agents=32",)}
    frames = "budget.frames=120_000"
    compare(rounds, {name: (*PRESET, f"algo={name[:4]}", *more, frames) for name, more in algos.items()})


def lag(rounds: int) -> None:
    """Within one run, block by block: between two runs the machine drifts by more than this costs."""
    for algo, (owner, name) in {"paac": (PAAC, "update"), "a3c": (Worker, "learn"), "ga3c": (Trainer, "learn")}.items():
        config = compose([*SHORT, *PRESET, f"algo={algo}", "budget.frames=80_000"])
        if algo == "ga3c":
            config = replace(config, algo=replace(config.algo, n_trainers=1))
        for _ in range(rounds):
            timed, seconds = in_turns(getattr(owner, name))
            with patch.object(owner, name, timed):
                if algo == "a3c":  # a worker in this process
                    torch.set_num_threads(1)  # as in its own process
                    session: Any = SimpleNamespace(attempt=1, clock=TrainingClock())
                    session.clock.start()
                    worker = Worker(config, a3c.assemble(config, session)[1].for_worker(0), 0, attempt=1)
                    for _ in range(20 * BLOCK):
                        worker.update()
                else:
                    with tempfile.TemporaryDirectory() as root:
                        train(config, Path(root) / "run")
            blocks = [sum(seconds[start : start + BLOCK]) for start in range(0, len(seconds) - BLOCK + 1, BLOCK)]
            ratios = [measured / plain for plain, measured in zip(blocks[2::2], blocks[3::2], strict=False)]
            print(f"{algo}: {owner.__name__}.{name} takes {median(ratios):.3f} times as long with lag", flush=True)


def in_turns(work: Callable[..., Any]) -> tuple[Callable[..., Any], list[float]]:
    """The method with its lag measured in every other block of calls, and the seconds of each call."""
    seconds: list[float] = []

    def timed(self: Any, *args: Any) -> Any:
        measured = len(seconds) // BLOCK % 2 == 1
        if isinstance(self, Worker):
            self.lag = replace(self.lag, enabled=measured)
        else:
            self.measure_lag = measured
        start = time.perf_counter()
        result = work(self, *args)
        if isinstance(self, Worker):
            self.notes.report()
        seconds.append(time.perf_counter() - start)
        return result

    return timed, seconds


def overlap(rounds: int) -> None:
    """With the simulation as it is, and with 10 ms added to each step: there is more to hide then."""
    added = ("env.step_time.distribution=constant", "env.step_time.mean_seconds=0.01")
    for name, words in {
        "paac": (*PRESET, "algo=paac", "budget.frames=120_000"),
        "dqn, 1 environment": (*DQN, "budget.frames=20_000"),
        "dqn, 8 environments": (*DQN, "algo.n_envs=8", "budget.frames=20_000"),
    }.items():
        for longer, more in {"": (), ", 10 ms more": added}.items():
            sides = {f"{name}{longer}{', overlap' * (value == 'true')}": (*words, *more, f"algo.overlap={value}")
                     for value in ("false", "true")}  # fmt: skip
            compare(rounds, sides)


def alternate(rounds: int) -> None:
    """16 environments as in the preset; with 10 ms added to each step, which hide a prediction; and the paper's 32."""
    added = ("env.step_time.distribution=constant", "env.step_time.mean_seconds=0.01")
    for name, words in {
        "paac, the preset": (*PRESET, "algo=paac", "budget.frames=120_000"),
        "paac, the preset, 10 ms more": (*PRESET, "algo=paac", "budget.frames=60_000", *added),
        "paac, n_e = 32": ("algo=paac", "budget.frames=120_000"),
    }.items():
        ways = ((), ("alternate",), ("overlap",), ("alternate", "overlap"))
        compare(rounds, {", ".join([name, *way]): (*words, *(f"algo.{key}=true" for key in way)) for way in ways})


def bundles(rounds: int) -> None:
    """With one torch thread each, until the two cores are full."""
    sides = {f"{n} bundle{'s' * (n > 1)}": (*GORILA, f"algo.n_learners={n}", "budget.frames=40_000") for n in (1, 2)}
    compare(rounds, sides, updates_per_second)


def main() -> None:
    """The command line."""
    whats = {one.__name__: one for one in (bound, workers, ga3c, lag, overlap, alternate, bundles)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=list(whats))
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    whats[chosen.what](chosen.rounds)


if __name__ == "__main__":
    main()
