"""What SLURM says and is asked to do: squeue, sacct, scontrol.

Every question may go unanswered (slurmctld restarts, there is no accounting, a container without the tools): then the
answer is None, never an empty queue.
"""

import logging
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 60.0
_IDS_PER_QUESTION = 1000


@dataclass(frozen=True)
class Queued:
    """A job, or a task of an array, that waits or runs."""

    job_id: str  # 12, or 12_3 of an array
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits
    script: str  # the file that was given to sbatch

    @property
    def waits(self) -> bool:
        """Whether it is not running (any more)."""
        return self.state not in ("RUNNING", "COMPLETING", "SUSPENDED")


@dataclass(frozen=True)
class ThisJob:
    """What SLURM says of the job in which it is asked."""

    state: str
    restarts: int  # as SLURM counts; the job itself has the number it was started with in SLURM_RESTART_COUNT
    preempted: bool
    seconds_left: float | None  # until the time limit; None: there is none
    cpu_ids: tuple[int, ...]  # of one node; SLURM's own numbers


@dataclass(frozen=True)
class ThisTask:
    """What this process is among the tasks of its job: a rank of a run."""

    index: int = 0
    size: int = 1
    local_index: int = 0  # among those of its node
    local_size: int = 1
    node: str = ""

    @property
    def leads(self) -> bool:
        """Whether it is rank 0, or the only one."""
        return self.index == 0


def queue() -> dict[str, Queued] | None:
    """This user's jobs that wait or run, by id; tasks of an array one by one."""
    answer = _ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r|%o")
    if answer is None:
        return None
    jobs = {}
    for line in answer.splitlines():
        job_id, state, reason, script = (line.strip().split("|", 3) + [""] * 3)[:4]
        jobs[job_id] = Queued(job_id, state, reason, script)
    return jobs


def accounting(job_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """How jobs ended, as far as accounting knows: by id, the state (FAILED, TIMEOUT ...) and the exit code ("1:0")."""
    found = {}
    whole = sorted({job_id.split("_")[0] for job_id in job_ids})
    for start in range(0, len(whole), _IDS_PER_QUESTION):
        ids = ",".join(whole[start : start + _IDS_PER_QUESTION])
        options = ("--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode")
        for line in (_ask("sacct", *options, f"--jobs={ids}") or "").splitlines():
            job_id, state, exit_code = line.split("|")
            found[job_id] = (state.split(" ")[0], exit_code)  # of "CANCELLED by 0"
    return found


def largest_array() -> int:
    """Tasks that an array may have."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "", re.MULTILINE)
    return int(match.group(1)) if match else 1001  # SLURM's default


def this_task() -> ThisTask:
    """The task that this process is; each node of a job has as many."""
    size, n_nodes = (int(os.environ.get(name, 1)) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES"))
    index, local_index = (int(os.environ.get(name, 0)) for name in ("SLURM_PROCID", "SLURM_LOCALID"))
    return ThisTask(index, size, local_index, size // n_nodes, os.environ.get("SLURMD_NODENAME", ""))


def this_job() -> ThisJob | None:
    """The job in which this process runs."""
    text = _ask("scontrol", "--details", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", ""))
    return parse_job(text, os.environ.get("SLURMD_NODENAME")) if text else None


def parse_job(text: str, node: str | None = None) -> ThisJob | None:
    """Reads one line of `scontrol --details --oneliner show job`.

    Args:
        text: that line.
        node: whose cores are asked for; None: the only one's.
    """

    def value(key: str) -> str:
        match = re.search(rf"(?:^|\s){key}=(\S*)", text)
        return match.group(1) if match else ""

    if not value("JobState"):
        return None
    limit, passed = _seconds(value("TimeLimit")), _seconds(value("RunTime"))
    return ThisJob(
        state=value("JobState"),
        restarts=int(value("Restarts") or 0),
        preempted=value("PreemptTime") not in ("", "None", "Unknown"),
        seconds_left=None if limit is None or passed is None else limit - passed,
        cpu_ids=_cores_of(node, text),
    )


def requeue(job_id: str) -> bool:
    """Puts a running job back into the queue; SLURM ends it then. Gives whether that was understood."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job_id], capture_output=True, text=True, timeout=_SECONDS_TO_ANSWER, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.error("The job cannot be put back into the queue: %s", error)
        return False
    if done.returncode > 0:  # below 0: SLURM ended it with the rest of the job, which is what was wanted
        log.error("The job cannot be put back into the queue: %s", done.stderr.strip())
    return done.returncode <= 0


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_ANSWER, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("%s: %s", command[0], error)
        return None
    if done.returncode != 0:
        log.debug("%s: %s", command[0], done.stderr.strip())
        return None
    return done.stdout


def _cores_of(node: str | None, text: str) -> tuple[int, ...]:
    """SLURM's numbers of the job's cores on a node; nodes whose numbers are the same are told of together."""
    given = re.findall(r"\sNodes=(\S+)\s+CPU_IDs=(\S+)", text)
    if len(given) == 1:
        return _numbers(given[0][1])
    return next((_numbers(ids) for nodes, ids in given if node in hosts(nodes)), ())


def hosts(nodes: str) -> list[str]:
    """The names in a list of nodes: n1, n2, n4 and m of "n[1-2,4],m"."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        names += _expanded(part)
    return names


def _expanded(part: str) -> list[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, after = rest.partition("]")
    ends = _expanded(after)
    names = []
    for numbers in inside.split(","):
        first, _, last = numbers.partition("-")
        for number in range(int(first), int(last or first) + 1):
            names += [f"{before}{number:0{len(first)}d}{end}" for end in ends]
    return names


def _seconds(text: str) -> float | None:
    """Of [days-]hours:minutes:seconds; None of UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _numbers(text: str) -> tuple[int, ...]:
    """Of "0-2,5": 0, 1, 2, 5."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)
