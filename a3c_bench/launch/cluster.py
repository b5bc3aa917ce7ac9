"""Runs as jobs of SLURM: arrays, submitted through submitit."""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from a3c_bench.errors import ConfigError
from a3c_bench.launch import slurm
from a3c_bench.launch.job import Job, slurm_record
from a3c_bench.launch.options import SlurmOptions, ranks_of_a_node
from a3c_bench.runtime.directory import write_job
from a3c_bench.runtime.machine import python_path

log = logging.getLogger(__name__)

# Until Python has set its handlers, SLURM's signals would kill it, and a preempted job would be a failed one.
_DEAF = """sh -c 'trap "" USR2 TERM; exec "$@"' sh"""


def submit(directories: Sequence[Path], options: SlurmOptions, folder: Path, name: str) -> list[str]:
    """Submits the runs of these directories as one array, or as several where SLURM has a smaller limit.

    Args:
        directories: with their configurations.
        options: what to ask SLURM for.
        folder: for scripts, submitit's files and the logs; seen by all nodes.
        name: of the jobs.

    Returns:
        the id of each array, or of the job if it is one.

    Raises:
        ConfigError: SLURM does not take it; the sentence has its reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(on_slurm=True, requeue=options.requeue, signal_delay_s=options.signal_delay_s)
    size = slurm.largest_array()
    ids: list[str] = []
    for start in range(0, len(directories), size):
        part = directories[start : start + size]
        executor = _executor(options, folder, name)
        if ids and options.array_parallelism < len(directories):  # the arrays together keep to it
            more = dict(options.additional_parameters) | {"dependency": f"afterany:{ids[-1]}"}
            executor.update_parameters(additional_parameters=_flags(options, more))
        try:
            jobs = executor.map_array(job, [str(path.absolute()) for path in part])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            stderr = getattr(error.__cause__, "stderr", None)
            reason = " ".join(str(stderr).split()) if stderr else reason
            raise ConfigError(f"SLURM does not take the jobs: {reason}") from error
        for path, submitted in zip(part, jobs, strict=True):
            write_job(path, slurm_record(submitted.job_id, folder))
        ids.append(jobs[0].job_id.split("_")[0])
    return ids


def _executor(options: SlurmOptions, folder: Path, name: str) -> SlurmExecutor:
    try:
        python = options.python or shlex.quote(sys.executable)
        executor = SlurmExecutor(folder, python=f"{_DEAF} {python}")
    except RuntimeError:
        raise ConfigError("There is no SLURM here: sbatch and srun are not found. Say hydra/launcher=local.") from None
    asked = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "nodes": options.nodes,
        "ntasks_per_node": ranks_of_a_node(options),
        "gpus_per_node": options.gpus_per_node,
        "gres": options.gres,
        "mem": f"{options.mem_gb}GB" if options.mem_gb else None,
    }
    path = python_path()
    executor.update_parameters(
        **{key: value for key, value in asked.items() if value is not None},
        job_name=name,
        time=options.timeout_min,
        cpus_per_task=options.cpus_per_task,
        array_parallelism=options.array_parallelism,
        signal_delay_s=options.signal_delay_s,
        stderr_to_stdout=True,
        setup=[*([f"export PYTHONPATH={shlex.quote(path)}"] if path else []), *options.setup],
        srun_args=[
            f"--cpus-per-task={options.cpus_per_task}",  # since 22.05 srun does not take it from sbatch
            "--kill-on-bad-exit=1",  # a rank that is lost ends the others: by SIGTERM, and after KillWait by SIGKILL
        ],
        additional_parameters=_flags(options, options.additional_parameters),
    )
    return executor


def _flags(options: SlurmOptions, more: dict[str, Any]) -> dict[str, Any]:
    return {("requeue" if options.requeue else "no-requeue"): True} | dict(more)
