"""What takes the place of a worker's `main` in tests, for the worker to import: a fault in the midst of its work."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from a3c_bench.algos import a3c
from a3c_bench.parallel.workers import Link

MIDWAY = 100  # updates of worker 1
worker_main = a3c.worker_main


def killed_midway(link: Link, config: Any, shared: Any, index: int, attempt: int) -> None:
    """A3C, whose worker 1 is killed midway; the file `struck` in the root of the runs has the time."""
    update, n_updates = a3c.Worker.update, 0

    def faulty(worker: a3c.Worker) -> None:
        nonlocal n_updates
        n_updates += 1
        if n_updates == MIDWAY:
            (Path(config.root) / "struck").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        update(worker)

    if index == 1:
        a3c.Worker.update = faulty  # type: ignore[method-assign]  # of this process alone
    worker_main(link, config, shared, index, attempt)
