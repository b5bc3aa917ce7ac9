"""A rank above 0 that rank 0 has started on its own machine: python -m a3c_bench.rank, with torchrun's environment."""

import logging
import os
import signal
import sys

from a3c_bench.errors import TrainingError, UserError
from a3c_bench.parallel.ranks import place_from_environment
from a3c_bench.runtime.machine import die_with_parent
from a3c_bench.runtime.signals import STOP_SIGNALS, StopRequest
from a3c_bench.train import follow


def main() -> int:
    """Gives the exit status, as that of a run."""
    die_with_parent()
    place = place_from_environment()
    if place is None:
        print("a3c_bench: rank 0 starts python -m a3c_bench.rank: say ranks=2 to a3c_bench.run.", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format=f"[rank {place.index}] %(message)s")
    with StopRequest() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # they were held back until now
        try:
            status = follow(place, stop)
        except (UserError, TrainingError) as error:
            print(f"a3c_bench: rank {place.index}: {error}", file=sys.stderr)
            return error.exit_status
    signal_name = status.get("stop_signal") if status.get("state") == "preempted" else None
    return 128 + signal.Signals[signal_name] if signal_name else 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # what a broken connection has left behind cannot keep this process
