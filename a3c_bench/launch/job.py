"""What one run does inside its job: its cores, SLURM's signals, its exit status.

submitit calls a `Job` in the job's own process, again after each requeue. All that the job needs to know of the run is
its directory: the configuration is the one that was written there at submission, whatever happened to conf/ since.

Who gets the run back into the queue, when it has saved and leaves before its end:

    scontrol requeue, preemption without grace      SLURM has ended the job already, and queues it by itself
    preemption with grace, a time limit ahead       SLURM only warns: the job asks for it (SLURM takes a job that ends
                                                    early for one that is done)
    scancel                                         nobody

Where a run has several ranks, each task of the job is one of them. Rank 0 alone keeps the directory, job.json and
status.json, and asks for the queue.

Exit status: 0 finished, 1 failed, 2 bad input, 128 + n left by signal n, saved. Of the latter rank 0 alone tells: the
others leave with 0, for the first task that leaves with something else is the end of all of them.
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
from typing import TYPE_CHECKING, Any

from a3c_bench.errors import DivergedError, RunDirectoryInUseError, TrainingError, UserError
from a3c_bench.launch import rendezvous, slurm
from a3c_bench.launch.ahead import start_ahead
from a3c_bench.runtime.directory import diverged, in_use, read_status, timestamp, write_job, write_status
from a3c_bench.runtime.signals import StopRequest

if TYPE_CHECKING:
    from a3c_bench.parallel.ranks import Place

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
            task = slurm.this_task() if self.on_slurm else slurm.ThisTask()
            if self.on_slurm and task.leads:
                write_job(path, record())
            frames_before = read_status(path).get("frames", 0)
            status = self._run(path, stop, task)
            if status["state"] == "preempted" and task.leads:
                number = signal.Signals[status["stop_signal"]]
                if self.on_slurm:
                    self._leave(path, number, progress=status.get("frames", 0) > frames_before)
                raise SystemExit(128 + number.value)

    def _run(self, path: Path, stop: StopRequest, task: slurm.ThisTask) -> Mapping[str, Any]:
        meeting: rendezvous.FileRendezvous | None = None
        try:
            meeting = rendezvous.of_this_job(path) if task.size > 1 else None
            status = self._train(path, stop, task, meeting)
        except Exception as error:
            if meeting is not None and task.leads:
                meeting.call_off(str(error).split("\n")[0])
            if isinstance(error, RunDirectoryInUseError):  # the status there is not ours
                log.error("%s", error)
            else:
                _note_failure(path, error, task.leads)
            raise SystemExit(getattr(error, "exit_status", 1)) from None
        if meeting is not None and task.leads:
            meeting.forget()
        return status

    def _train(
        self, path: Path, stop: StopRequest, task: slurm.ThisTask, meeting: rendezvous.FileRendezvous | None
    ) -> Mapping[str, Any]:
        from a3c_bench.config import load_config
        from a3c_bench.runtime import machine

        if self.on_slurm:
            _keep_to_own_cores(task)
            _keep_to_own_gpus(task)
        else:
            machine.die_with_parent(signal.SIGTERM)
        config = load_config(path)
        start_ahead(config, path)
        from a3c_bench.train import train

        if task.leads:
            _wait_for_the_last_one(path, stop)
        return train(config, path, stop, None if meeting is None else _place(task, meeting))

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
            _note_failure(path, TrainingError(sentence), leads=True)
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
    nodes = {"nodes": os.environ["SLURM_JOB_NODELIST"]} if slurm.this_task().size > 1 else {}
    return slurm_record(job_id, folder) | nodes


def slurm_record(job_id: str, folder: str | Path) -> dict[str, str]:
    """What job.json says of a job of SLURM whose script and log are in a folder."""
    log_file = str(Path(folder) / f"{job_id}_0_log.out")
    return {"launcher": "slurm", "job_id": job_id, "folder": str(folder), "log": log_file, "noted_at": timestamp()}


def _place(task: slurm.ThisTask, meeting: rendezvous.FileRendezvous) -> "Place":
    from a3c_bench.parallel.ranks import Place

    interface = rendezvous.interface_with(meeting.host)
    return Place(task.index, task.size, task.local_index, task.local_size, meeting, task.node, interface=interface)


def _wait_for_the_last_one(path: Path, stop: StopRequest) -> None:
    end = time.monotonic() + _SECONDS_FOR_THE_LAST_ONE
    while in_use(path) and stop.signal is None and time.monotonic() < end:
        time.sleep(1.0)


def _keep_to_own_cores(task: slurm.ThisTask) -> None:
    """Where SLURM only counts cores and binds nothing to them, keeps to those that it counted for this task."""
    from a3c_bench.runtime import machine

    job, usable = slurm.this_job(), sorted(os.sched_getaffinity(0))
    if job is None or not 0 < len(job.cpu_ids) // task.local_size < len(usable):
        return  # each task is bound to its own, or nobody knows
    numbers = range(len(usable)) if len(job.cpu_ids) == len(usable) else job.cpu_ids
    own = machine.shared_out(numbers, task.local_size)[task.local_index]
    machine.keep_to_cores({usable[number % len(usable)] for number in own})


def _keep_to_own_gpus(task: slurm.ThisTask) -> None:
    """Of the GPUs that the job has on this node, a rank sees its own; SLURM shows all of them to each task.

    It could show each task its own (--gpus-per-task), but where a task is kept from the others' GPUs, nccl goes through
    the host's memory.
    """
    from a3c_bench.runtime import machine

    if task.local_size > 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ.update(machine.gpus_of_a_rank(task.local_index, task.local_size))


def _note_failure(path: Path, error: Exception, leads: bool) -> None:
    """Into the log, and into status.json where training did not come so far as to do it.

    Of the other ranks, only where rank 0 is gone, which would have done so.
    """
    told_in_one_sentence = isinstance(error, UserError | TrainingError)
    print(f"a3c_bench: {error}" if told_in_one_sentence else "".join(traceback.format_exception(error)), flush=True)
    named = f"{type(error).__name__}: {error}"
    status = read_status(path)
    if not leads and (status.get("state") != "running" or in_use(path) is not False):
        return
    if isinstance(error, DivergedError) and diverged(status):
        return  # noted when it happened
    if status.get("state") != "failed" or status.get("error") != named:
        write_status(path, state="failed", error=named, traceback="".join(traceback.format_exception(error)))
