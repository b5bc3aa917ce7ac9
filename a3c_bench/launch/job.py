"""What one run does inside its job: its cores, SLURM's signals, its exit status.

submitit calls a `Job` in the job's own process, again after each requeue. All that the job needs to know of the run is
its directory: the configuration is the one that was written there at submission, whatever happened to conf/ since.

Who gets the run back into the queue, when it has saved and leaves before its end:

    scontrol requeue, preemption without grace      SLURM has ended the job already, and queues it by itself
    preemption with grace, a time limit ahead       SLURM only warns: the job asks for it (SLURM takes a job that ends
                                                    early for one that is done)
    scancel                                         nobody

Exit status: 0 finished, 1 failed, 2 bad input, 128 + n left by signal n, saved.
"""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a3c_bench.errors import DivergedError, RunDirectoryInUseError, TrainingError, UserError
from a3c_bench.launch import slurm
from a3c_bench.launch.ahead import start_ahead
from a3c_bench.runtime.directory import diverged, read_status, timestamp, write_job, write_status
from a3c_bench.runtime.signals import StopRequest

log = logging.getLogger(__name__)

_SECONDS_FOR_THE_LAST_ONE = 120.0  # after a node was lost and found, an earlier process may still be about to end
_SECONDS_SLURM_MAY_BE_EARLY = 90.0  # it looks at the time limits twice a minute


@dataclass(frozen=True)
class Job:
    """To be called with a run directory, in a process of its own.

    Args:
        on_slurm: or else on this machine.
        requeue: whether SLURM may be asked to start the run again.
        signal_delay_s: how long before its time limit SLURM sends its signal.
    """

    on_slurm: bool
    requeue: bool = False
    signal_delay_s: float = 0.0

    def __call__(self, directory: str) -> None:
        """Runs, or goes on with, the run of a directory.

        Raises:
            SystemExit: with the exit status, unless the run is finished.
        """
        logging.basicConfig(
            level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S", stream=sys.stdout, force=True
        )
        logging.getLogger("submitit").propagate = False  # it prints by itself
        with StopRequest() as stop:
            path = Path(directory)
            if self.on_slurm:
                write_job(path, record())
            frames_before = read_status(path).get("frames", 0)
            status = self._train(path, stop)
            if status["state"] == "preempted":
                number = signal.Signals[status["stop_signal"]]
                if self.on_slurm:
                    self._leave(path, number, progress=status.get("frames", 0) > frames_before)
                raise SystemExit(128 + number.value)

    def _train(self, path: Path, stop: StopRequest) -> Mapping[str, Any]:
        deadline = time.monotonic() + _SECONDS_FOR_THE_LAST_ONE
        try:
            from a3c_bench.config import load_config
            from a3c_bench.runtime import machine

            if self.on_slurm:
                _keep_to_own_cores()
            else:
                machine.die_with_parent(signal.SIGTERM)
            config = load_config(path)
            start_ahead(config, path)
            from a3c_bench.train import train

            while True:
                try:
                    return train(config, path, stop)
                except RunDirectoryInUseError:
                    if stop.signal is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(1.0)
        except RunDirectoryInUseError as error:  # the status there is not ours
            log.error("%s", error)
            raise SystemExit(error.exit_status) from None
        except Exception as error:
            _note_failure(path, error)
            raise SystemExit(getattr(error, "exit_status", 1)) from None

    def _leave(self, path: Path, number: signal.Signals, progress: bool) -> None:
        """Notes why the run was told to stop, and gets it back into the queue where SLURM would not."""
        job = slurm.this_job()
        if job is None:
            write_status(path, stop_reason="unknown")
            log.error("SLURM does not answer: the run is saved, but waits for the command to be repeated.")
            return
        warned = job.state == "RUNNING"
        if not warned:
            requeued = job.restarts > int(os.environ.get("SLURM_RESTART_COUNT", 0))
            reason = "requeued" if requeued else "cancelled"
        elif job.preempted:
            reason = "preemption"
        elif job.seconds_left is not None and job.seconds_left <= self.signal_delay_s + _SECONDS_SLURM_MAY_BE_EARLY:
            reason = "time limit"
        else:
            reason = "signal"
        if reason == "time limit" and not progress:
            sentence = "The time limit is too short: hydra.launcher.timeout_min ended before a frame was trained."
            _note_failure(path, TrainingError(sentence))
            raise SystemExit(1)
        write_status(path, stop_reason=reason)
        log.info("Stopped by %s (%s) and saved.", number.name, reason)
        if warned and self.requeue and number != signal.SIGINT:
            slurm.requeue(os.environ["SLURM_JOB_ID"])


def record() -> dict[str, str]:
    """What job.json says of a job of SLURM, as the job itself knows it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job_id = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    folder = os.environ.get("SUBMITIT_FOLDER", "")
    return slurm_record(job_id, folder)


def slurm_record(job_id: str, folder: str | Path) -> dict[str, str]:
    """What job.json says of a job of SLURM whose script and log are in a folder."""
    log_file = str(Path(folder) / f"{job_id}_0_log.out")
    return {"launcher": "slurm", "job_id": job_id, "folder": str(folder), "log": log_file, "noted_at": timestamp()}


def _keep_to_own_cores() -> None:
    """Where SLURM only counts cores and binds nothing to them, keeps to those that it counted for this job."""
    from a3c_bench.runtime import machine

    job, usable = slurm.this_job(), sorted(os.sched_getaffinity(0))
    if job is not None and 0 < len(job.cpu_ids) < len(usable):
        machine.keep_to_cores({usable[number % len(usable)] for number in job.cpu_ids})


def _note_failure(path: Path, error: Exception) -> None:
    """Into the log, and into status.json where training did not come so far as to do it."""
    told_in_one_sentence = isinstance(error, UserError | TrainingError)
    print(f"a3c_bench: {error}" if told_in_one_sentence else "".join(traceback.format_exception(error)), flush=True)
    named = f"{type(error).__name__}: {error}"
    status = read_status(path)
    if isinstance(error, DivergedError) and diverged(status):
        return  # noted when it happened
    if status.get("state") != "failed" or status.get("error") != named:
        write_status(path, state="failed", error=named, traceback="".join(traceback.format_exception(error)))
