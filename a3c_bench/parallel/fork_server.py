"""multiprocessing's fork server: a process that has imported torch once, for all worker processes, which it forks.

It holds no thread or lock of this process, and ends with it. It takes as long to get ready as this process takes to
import torch and EnvPool: who starts it before that waits only once.
"""

import multiprocessing
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker

from a3c_bench.runtime.signals import held_back

PRELOAD = (
    "a3c_bench.parallel.workers",
    "a3c_bench.build",
    "a3c_bench.envs.envpool",
    "a3c_bench.algos.a3c",  # what workers run
    "a3c_bench.algos.async_q",
    "a3c_bench.algos.gorila",
)


def start_fork_server(more: Sequence[str] = ()) -> None:
    """Starts the helpers of multiprocessing deaf to stop signals, which may be sent to the whole process group.

    Both begin with the signals blocked and never let them through, and so do the workers until they ignore them. The
    resource tracker has a step of its own: who starts it has SIGINT and SIGTERM unblocked afterwards, and the fork
    server, started in the same step, would be killed by them.

    Args:
        more: modules that all workers will need besides. A server that runs already has not imported them.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOAD, *more])
    for start in (resource_tracker.ensure_running, forkserver.ensure_running):
        with held_back():
            start()
