"""Where each run stands: its directory first, then its job, then what SLURM says."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from a3c_bench.launch import slurm
from a3c_bench.runtime.directory import in_use, read_job, read_status

# unknown: somebody else's lock on it cannot be read
STATES = ("finished", "running", "queued", "unknown", "preempted", "failed", "missing")


@dataclass(frozen=True)
class Standing:
    """One run."""

    directory: Path
    state: str  # of STATES; missing: nothing ran yet, and nothing will unless the command is repeated
    under_way: bool  # it runs, or something will run it
    why: str  # in a few words; may be empty
    status: Mapping[str, Any]  # status.json
    job: Mapping[str, Any]  # job.json

    @property
    def is_over(self) -> bool:
        """Finished, or nothing will run it unless the command is repeated."""
        return self.state == "finished" or not self.under_way


def look(directories: Sequence[Path], queue: Mapping[str, slurm.Queued] | None) -> list[Standing]:
    """Where runs stand.

    Args:
        directories: of the runs; they need not exist.
        queue: what SLURM has of this user; None if it does not answer: its jobs count as under way then.
    """
    standings = [_look(path, queue) for path in directories]
    puzzling = [s.job["job_id"] for s in standings if s.job.get("launcher") == "slurm" and _unexplained(s)]
    ended = slurm.accounting(puzzling) if puzzling else {}
    return [_explained(standing, ended) for standing in standings]


def look_again(directories: Sequence[Path]) -> list[Standing]:
    """Where runs stand now; asks SLURM only if one of them is its job."""
    on_slurm = any(read_job(path).get("launcher") == "slurm" for path in directories)
    return look(directories, slurm.queue() if on_slurm else {})


def counted(standings: Sequence[Standing]) -> str:
    """How many there are of each state: "7 finished, 2 failed"."""
    numbers = {state: sum(standing.state == state for standing in standings) for state in STATES}
    return ", ".join(f"{number} {state}" for state, number in numbers.items() if number) or "no runs"


def local_record(pid: int) -> dict[str, Any]:
    """What job.json says of a run that a process of this machine has on its list."""
    return {"launcher": "local", "host": socket.gethostname(), "pid": pid, "pid_started": _started(pid)}


def _look(path: Path, queue: Mapping[str, slurm.Queued] | None) -> Standing:
    status, job = read_status(path), read_job(path)
    said = status.get("state")

    def standing(state: str, under_way: bool, why: str = "") -> Standing:
        return Standing(path, state, under_way, why, status, job)

    if said == "finished":
        return standing("finished", False)
    if job.get("launcher") == "slurm":
        if queue is None:
            return standing(said if said in STATES else "queued", True, "SLURM does not answer")
        entry = queue.get(job["job_id"])
        if entry is not None and entry.script.startswith(job["folder"]):  # else another cluster's of this number
            if not entry.waits:
                return standing("running", True, "" if said == "running" else "starting")
            if said != "preempted":
                return standing("queued", True, entry.reason)
            return standing("preempted", True, f"{entry.reason}, after {status.get('stop_reason') or 'a signal'}")
    used = in_use(path)
    if used:
        return standing("running", True)
    if job.get("launcher") == "local" and _is_alive(job):
        return standing("queued", True)
    if said == "failed":
        return standing("failed", False, str(status.get("error") or "").split("\n")[0])
    if said == "preempted":
        sent, reason = status.get("stop_signal"), status.get("stop_reason")
        because = f"{sent} ({reason})" if sent and reason else sent or reason
        return standing("preempted", False, f"{because}, not queued")
    if said == "running" and used is None:
        return standing("unknown", False, f"its lock cannot be read; last sign of life {status.get('updated_at')}")
    if said == "running":
        return standing("failed", False)
    return standing("missing", False)


def _unexplained(standing: Standing) -> bool:
    return not standing.why and standing.is_over and standing.state != "finished"


def _explained(standing: Standing, ended: Mapping[str, tuple[str, str]]) -> Standing:
    if not _unexplained(standing):
        return standing
    state, exit_code = ended.get(standing.job.get("job_id", ""), ("", ""))
    killed = standing.state == "failed"
    if state:
        why = f"SLURM: {state}, exit {exit_code}"
    elif killed:
        why = "it was killed: it ended without a word"
    else:
        why = "left the queue before it started" if standing.job else "not submitted"
    return replace(standing, why=why)


def _is_alive(job: Mapping[str, Any]) -> bool:
    """Whether the process that has a run on its list is there; on another machine nobody can tell: it is not."""
    if job["pid"] is None or job["host"] != socket.gethostname():
        return False
    return bool(job["pid_started"] == _started(job["pid"]) is not None)


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None if there is none."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])
