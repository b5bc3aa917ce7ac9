"""What it costs to train on several ranks; for a machine that does nothing else.

    python benchmarks/measure_ranks.py scaling      PAAC on Pong: 2 ranks of one core each against one rank of two cores
    python benchmarks/measure_ranks.py all_reduce   adding up the gradients and the counts of two ranks, alone
    python benchmarks/measure_ranks.py model        what 8 GPUs and 16 nodes would pay, from parts that were measured

The model is that of a ring: of N ranks, each sends and gets 2 (N - 1) / N of the gradient in 2 (N - 1) messages,

    T(N) = 2 (N - 1) (latency + bytes / N / bandwidth)

and an update on N ranks takes what it takes on one, and T(N). The share that it costs is T / (T + update).
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from a3c_bench import build  # noqa: E402
from a3c_bench.config import compose  # noqa: E402
from a3c_bench.core.optim import FlatParameters  # noqa: E402
from a3c_bench.envs import find_spec  # noqa: E402
from a3c_bench.parallel.ranks import Fixed, Place, Ranks  # noqa: E402
from benchmarks.measure_speed import compare, run  # noqa: E402

NETWORKS = ("mlp", "nips", "nature")
N_WARM_UP, N_TIMED = 10, 100


def scaling(rounds: int) -> None:
    """As many environments and as large batches: 32 in one process, 16 in each of two."""
    words = ("algo=paac", "budget.frames=120_000", "network=nips")
    sides = {
        "one rank, two cores": (*words, "algo.n_envs=32"),
        "two ranks, a core each": (*words, "algo.n_envs=16", "ranks=2"),
    }
    compare(rounds, sides)
    parts = run(sides["two ranks, a core each"])["shares"]
    print("two ranks: " + ", ".join(f"{part} {share:.0%}" for part, share in parts.items()))


def all_reduce(_rounds: int) -> None:
    """Two processes that do nothing else."""
    for name in NETWORKS:
        spawning = multiprocessing.get_context("spawn")
        with spawning.Manager() as manager:
            seconds: Any = manager.dict()
            port = manager.Value("i", 0)
            started = [spawning.Process(target=_rank, args=(index, name, port, seconds)) for index in range(2)]
            for process in started:
                process.start()
            for process in started:
                process.join()
            n = seconds["parameters"]
            reduced, met = 1e3 * seconds["reduce"], 1e3 * seconds["meet"]
            print(f"{name}: gradient of {4 * (n + 1) / 1e6:.2f} MB in {reduced:.2f} ms, counts in {met:.2f} ms")


class _Told(Fixed):
    """A rendezvous by a value that two processes share."""

    def __init__(self, port: Any) -> None:
        super().__init__("127.0.0.1", 0)
        self._shared = port

    def publish(self, port: int) -> None:
        """See `parallel.ranks.Rendezvous`."""
        self._shared.value = port

    def find(self, timeout: float) -> tuple[str, int]:
        """See `parallel.ranks.Rendezvous`."""
        while self._shared.value == 0:
            time.sleep(0.01)
        return self.host, self._shared.value


def _rank(index: int, name: str, port: Any, seconds: Any) -> None:
    torch.set_num_threads(1)
    config = compose(["env=pong", f"network={name}"] if name != "mlp" else ["env=cartpole"])
    device = torch.device("cpu")
    parameters = FlatParameters(build.make_network(config, find_spec(config.env), device))
    ranks = Ranks(Place(index, 2, index, 2, _Told(port), interface="lo"))
    ranks.learn_on(device, 30.0)
    reduced = _median(lambda: ranks.reduce(parameters, torch.tensor(32.0)))
    met = _median(lambda: ranks.meet(160, False, 0))
    if index == 0:
        seconds.update(parameters=len(parameters.gradients), reduce=reduced, meet=met)
    ranks.close()


def _median(work: Any) -> float:
    times = []
    for _ in range(N_WARM_UP + N_TIMED):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times[N_WARM_UP:])


@dataclass(frozen=True)
class Link:
    """What the ranks are connected by."""

    name: str
    n_ranks: int
    bytes_per_second: float  # in each direction
    latency_seconds: float  # of a message


# Of the bandwidth on the data sheet a ring is taken to reach 80%. The latency of nodes is measured: half of the
# smallest all-reduce of two ranks by gloo on a loopback. That of GPUs is assumed: nothing was measured on any.
LINKS = (
    Link("8 GPUs, NVLink 450 GB/s", 8, 0.8 * 450e9, 5e-6),
    Link("8 GPUs, PCIe 4 25 GB/s", 8, 0.8 * 25e9, 10e-6),
    Link("16 nodes, 100 Gbit/s", 16, 0.8 * 12.5e9, 300e-6),
    Link("16 nodes, 10 Gbit/s", 16, 0.8 * 1.25e9, 300e-6),
    Link("16 nodes, 1 Gbit/s", 16, 0.8 * 0.125e9, 300e-6),
)


def seconds_of_ring(n_bytes: int, link: Link) -> float:
    """Of one all-reduce."""
    return 2 * (link.n_ranks - 1) * (link.latency_seconds + n_bytes / link.n_ranks / link.bytes_per_second)


def model(_rounds: int) -> None:
    """A line for each network and link: the all-reduce, and the update of one rank beside which it costs 10%."""
    print("| network | link | all-reduce, ms | costs 10% of an update of, ms | updates/s at that point |")
    print("|---|---|---|---|---|")
    for name, n_parameters in (("nips", 678_000), ("nature", 1_687_000)):
        for link in LINKS:
            seconds = seconds_of_ring(4 * n_parameters, link)
            alone = 9 * seconds  # T / (T + 9 T) = 10%
            print(
                f"| {name} | {link.name} | {1e3 * seconds:.3g} | {1e3 * (alone + seconds):.3g} | "
                f"{1 / (alone + seconds):.3g} |"
            )


def main(words: Sequence[str] | None = None) -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = {work.__name__: work for work in (scaling, all_reduce, model)}
    parser.add_argument("what", choices=what)
    parser.add_argument("--rounds", type=int, default=3)
    said = parser.parse_args(words)
    what[said.what](said.rounds)


if __name__ == "__main__":
    main()
