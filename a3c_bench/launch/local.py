"""Runs on this machine: so many at once, each a process of its own on cores and GPUs of its own.

python -m a3c_bench.launch.local FILE        what a detached sweep leaves behind: FILE has the options and the runs
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from submitit.local.local import LocalExecutor, LocalJob

from a3c_bench.errors import ConfigError
from a3c_bench.launch.job import Job
from a3c_bench.launch.options import LocalOptions
from a3c_bench.launch.state import look
from a3c_bench.runtime.directory import read_job, replace_file, write_job
from a3c_bench.runtime.machine import python_path, visible_gpus
from a3c_bench.runtime.signals import StopRequest

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.1


class Slot(NamedTuple):
    """What one of the runs at once may use."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]  # as CUDA_VISIBLE_DEVICES names them


def slots(options: LocalOptions, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Shares out a machine: cores belong to one run alone, GPUs to as few runs as possible.

    Runs of several ranks are so few at once that each rank has a core, if there are enough.

    Raises:
        ConfigError: one run asks for more than there is.
    """
    if options.cores_per_run is not None and options.cores_per_run > len(cores):
        raise ConfigError(f"hydra.launcher.cores_per_run={options.cores_per_run}, but there are {len(cores)} cores.")
    if options.gpus_per_run is not None and options.gpus_per_run > len(gpus):
        raise ConfigError(f"hydra.launcher.gpus_per_run={options.gpus_per_run}, but there are {len(gpus)} GPUs.")
    n_needed = options.cores_per_run or min(options.ranks or 1, len(cores))
    n_at_once = min(options.runs_at_once, len(cores) // n_needed)
    n_cores = options.cores_per_run or len(cores) // n_at_once
    n_gpus = options.gpus_per_run if options.gpus_per_run is not None else -(-len(gpus) // n_at_once)
    return [
        Slot(
            tuple(cores[i * n_cores : (i + 1) * n_cores]),
            tuple(gpus[(i * n_gpus + k) % len(gpus)] for k in range(n_gpus)),
        )
        for i in range(n_at_once)
    ]


def run_all(directories: Sequence[Path], options: LocalOptions, folder: Path, stop: StopRequest) -> None:
    """Runs the runs of these directories. Told to stop, it tells them, and waits until they have saved.

    Args:
        directories: with their configurations.
        options: how many at once, and on what.
        folder: for submitit's files and the logs.
        stop: told by signals; after a second SIGINT the runs are killed.
    """
    free = slots(options, sorted(os.sched_getaffinity(0)), visible_gpus())
    share = f"{len(free[0].cores)} core{'s' if len(free[0].cores) > 1 else ''}"
    if free[0].gpus:
        share += f" and GPU {', '.join(free[0].gpus)}"
    log.info("%d at once, each with %s.", len(free), share)
    executor = _Executor(folder)
    waiting = list(directories)
    running: dict[Path, tuple[LocalJob[None], Slot]] = {}
    told = False
    try:
        while running or (waiting and stop.signal is None):
            while free and waiting and stop.signal is None:
                directory, slot = waiting.pop(0), free.pop(0)
                running[directory] = executor.start(directory, slot), slot
            if stop.signal is not None and not told:
                told = True
                log.info("Told to stop: waiting until %d runs have saved.", len(running))
                for job, _ in running.values():
                    _signal(job, signal.SIGTERM)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for directory in [directory for directory, (job, _) in running.items() if job.done()]:
                free.append(running.pop(directory)[1])
                (standing,) = look([directory], {})
                log.info("%s: %s%s", directory, standing.state, f" ({standing.why})" if standing.why else "")
    finally:
        for job, _ in running.values():
            _signal(job, signal.SIGKILL)
        for directory in directories:  # this process has them on its list no more
            write_job(directory, read_job(directory) | {"pid": None})


def leave_behind(directories: Sequence[Path], options: LocalOptions, folder: Path) -> int:
    """Starts a process that runs these directories and needs nobody; gives its id. Its log is folder/local.log."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"local-{os.getpid()}.json"
    content = {"options": asdict(options), "directories": [str(path) for path in directories], "folder": str(folder)}
    replace_file(file, json.dumps(content, indent=2))
    with open(folder / "local.log", "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "a3c_bench.launch.local", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": python_path()},
        )
    return process.pid


class _Executor(LocalExecutor):
    """submitit's, without its controller process, which kills a run one second after Ctrl-C."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._slot = Slot((), ())
        self._n_started = 0

    def start(self, directory: Path, slot: Slot) -> "LocalJob[None]":
        """Starts the run of a directory."""
        self._slot = slot
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, slot.cores)  # of this thread: the process that it starts begins with them
        try:
            job: LocalJob[None] = self.submit(Job(on_slurm=False), str(directory.absolute()))  # type: ignore[assignment]
        finally:
            os.sched_setaffinity(0, before)
        write_job(directory, read_job(directory) | {"log": str(job.paths.stdout)})
        return job

    def _submit_command(self, command: str) -> "LocalJob[Any]":
        self._n_started += 1
        job_id = f"{os.getpid()}-{self._n_started}"
        job: LocalJob[Any] = LocalJob(self.folder, job_id, [0])
        environment = os.environ | {
            "PYTHONPATH": python_path(),
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": job_id,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_GLOBALID": "0",
            "SUBMITIT_LOCAL_LOCALID": "0",
            "CUDA_VISIBLE_DEVICES": ",".join(self._slot.gpus),
        }
        with open(job.paths.stdout, "ab") as out:
            process = subprocess.Popen(  # a session of its own: Ctrl-C comes to this process, which decides
                shlex.split(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
                start_new_session=True,
            )  # fmt: skip
        return LocalJob(self.folder, job_id, [0], process)


def _signal(job: "LocalJob[None]", number: signal.Signals) -> None:
    process = job._process
    if process is None or process.poll() is not None:
        return
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)  # it leads a session of its own
        process.wait()
    else:
        process.send_signal(number)


def main() -> int:
    """Runs what a detached sweep left behind; gives the exit status."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", stream=sys.stdout)
    content = json.loads(Path(sys.argv[1]).read_text())
    with StopRequest() as stop:
        directories = [Path(path) for path in content["directories"]]
        run_all(directories, LocalOptions(**content["options"]), Path(content["folder"]), stop)
    return 128 + stop.signal.value if stop.signal is not None else 0


if __name__ == "__main__":
    sys.exit(main())
