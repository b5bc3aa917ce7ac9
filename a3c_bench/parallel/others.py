"""The other ranks of a run that nobody has started: processes of this machine, each with its share of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from a3c_bench.errors import RankError
from a3c_bench.parallel.ranks import Fixed, Place
from a3c_bench.runtime.machine import gpus_of_a_rank, keep_to_cores, python_path, shared_out
from a3c_bench.runtime.signals import held_back

_HOST = "127.0.0.1"
_SECONDS_TO_LEAVE = 10.0


class Others(NamedTuple):
    """What was started."""

    place: Place  # of this process, which is rank 0
    processes: Sequence["subprocess.Popen[bytes]"]

    def look(self) -> None:
        """Raises RankError if one of them has ended."""
        for index, process in enumerate(self.processes, start=1):
            if process.poll() is not None:
                raise RankError(f"Rank {index} ended with status {process.returncode} before the run began.")


class _StartWhenPublished(Fixed):
    """Starts the others once rank 0 listens: they get the port with them."""

    def __init__(self, n_ranks: int, shares: Sequence[Sequence[int]]) -> None:
        super().__init__(_HOST, 0)
        self._n_ranks = n_ranks
        self._shares = shares
        self.processes: list[subprocess.Popen[bytes]] = []

    def publish(self, port: int) -> None:
        """See `parallel.ranks.Rendezvous`."""
        super().publish(port)
        before = os.sched_getaffinity(0)
        try:
            for index in range(1, self._n_ranks):
                os.sched_setaffinity(0, self._shares[index])  # of this thread: the process begins with them
                with held_back():  # until it listens to signals
                    self.processes.append(self._start(index, port))
        finally:
            os.sched_setaffinity(0, before)

    def _start(self, index: int, port: int) -> "subprocess.Popen[bytes]":
        n_ranks = str(self._n_ranks)
        place = {"RANK": str(index), "WORLD_SIZE": n_ranks, "LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": n_ranks}
        gpus = gpus_of_a_rank(index, self._n_ranks)  # to rank 0, `cuda` is the first, which is no other's
        quiet = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}  # our sentence says it
        return subprocess.Popen(
            [sys.executable, "-m", "a3c_bench.rank"],
            stdin=subprocess.DEVNULL,
            env=os.environ
            | {"PYTHONPATH": python_path(), "MASTER_ADDR": _HOST, "MASTER_PORT": str(port)}
            | place
            | gpus
            | quiet,
        )


@contextmanager
def started(n_ranks: int) -> Iterator[Others]:
    """While entered, this process is rank 0 of `n_ranks`, on its share of the cores; the others end with it."""
    cores = sorted(os.sched_getaffinity(0))
    shares = shared_out(cores, n_ranks)
    rendezvous = _StartWhenPublished(n_ranks, shares)
    keep_to_cores(shares[0])
    try:
        yield Others(Place(0, n_ranks, 0, n_ranks, rendezvous, interface="lo"), rendezvous.processes)
    finally:
        end = time.monotonic() + _SECONDS_TO_LEAVE
        for process in rendezvous.processes:
            _end(process, end - time.monotonic())
        keep_to_cores(cores)


def _end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Kills what does not end by itself; it has something to say before."""
    try:
        process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
