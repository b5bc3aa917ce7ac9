"""Where runs stand, from made-up directories and made-up answers of SLURM."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from a3c_bench.errors import RunDirectoryInUseError
from a3c_bench.launch import slurm, state
from a3c_bench.launch.slurm import Queued, parse_job
from a3c_bench.launch.state import counted, local_record, look
from a3c_bench.runtime.directory import RunDirectory, in_use

SLURM_JOB = {"launcher": "slurm", "job_id": "7_1", "folder": "/sweep/.submitit"}


@pytest.fixture(autouse=True)
def accounting(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """What sacct knows: nothing, unless a test says so."""
    known: dict[str, tuple[str, str]] = {}
    monkeypatch.setattr(slurm, "accounting", lambda ids: {key: known[key] for key in ids if key in known})
    return known


def run(tmp_path: Path, status: dict[str, Any] | None = None, job: dict[str, Any] | None = None) -> Path:
    for name, content in (("status.json", status), ("job.json", job)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def queued(slurm_state: str, reason: str = "Priority", script: str = "/sweep/.submitit/x.sh") -> dict[str, Queued]:
    return {"7_1": Queued("7_1", slurm_state, reason, script)}


PREEMPTED = {"state": "preempted", "stop_signal": "SIGUSR2", "stop_reason": "time limit"}
CASES = [
    # what status.json says, whose job it is, what the queue says; state, whether it is under way, why
    (None, None, {}, "missing", False, "not submitted"),
    (None, SLURM_JOB, {}, "missing", False, "left the queue before it started"),
    (None, SLURM_JOB, queued("PENDING"), "queued", True, "Priority"),
    (None, SLURM_JOB, queued("RUNNING"), "running", True, "starting"),
    (None, SLURM_JOB, None, "queued", True, "SLURM does not answer"),
    (None, SLURM_JOB, queued("RUNNING", script="/another/x.sh"), "missing", False, "left the queue before it started"),
    ({"state": "finished"}, SLURM_JOB, queued("RUNNING"), "finished", False, ""),
    ({"state": "finished"}, SLURM_JOB, None, "finished", False, ""),
    ({"state": "running"}, SLURM_JOB, queued("RUNNING"), "running", True, ""),
    ({"state": "running"}, SLURM_JOB, queued("PENDING", "BeginTime"), "queued", True, "BeginTime"),  # after NODE_FAIL
    ({"state": "running"}, SLURM_JOB, {}, "failed", False, "it was killed: it ended without a word"),
    ({"state": "running"}, None, {}, "failed", False, "it was killed: it ended without a word"),
    (PREEMPTED, SLURM_JOB, queued("PENDING", "BeginTime"), "preempted", True, "BeginTime, after time limit"),
    (PREEMPTED, SLURM_JOB, {}, "preempted", False, "SIGUSR2 (time limit), not queued"),
    (PREEMPTED, SLURM_JOB, None, "preempted", True, "SLURM does not answer"),
    ({"state": "failed", "error": "ValueError: by hand\nmore"}, SLURM_JOB, {}, "failed", False, "ValueError: by hand"),
    ({"state": "failed", "error": "E: x"}, SLURM_JOB, queued("PENDING"), "queued", True, "Priority"),  # tried again
]


@pytest.mark.parametrize(("status", "job", "queue", "expected", "under_way", "why"), CASES)
def test_where_a_run_stands(
    tmp_path: Path, status: Any, job: Any, queue: Any, expected: str, under_way: bool, why: str
) -> None:
    (standing,) = look([run(tmp_path, status, job)], queue)
    assert (standing.state, standing.under_way, standing.why) == (expected, under_way, why)
    assert standing.is_over == (not under_way)


def test_accounting_explains_what_nobody_else_can(tmp_path: Path, accounting: dict[str, tuple[str, str]]) -> None:
    accounting["7_1"] = ("OUT_OF_MEMORY", "0:125")
    (standing,) = look([run(tmp_path, {"state": "running"}, SLURM_JOB)], {})
    assert (standing.state, standing.why) == ("failed", "SLURM: OUT_OF_MEMORY, exit 0:125")


def test_a_directory_in_use_is_running(tmp_path: Path) -> None:
    held = RunDirectory(run(tmp_path, {"state": "preempted"}), {"seed": 1})
    assert in_use(tmp_path)
    assert look([tmp_path], {})[0].state == "running"
    with pytest.raises(RunDirectoryInUseError, match="Another process"):
        RunDirectory(tmp_path, {"seed": 1})
    held.close()
    assert not in_use(tmp_path)
    assert look([tmp_path], {})[0].state == "preempted"


def test_whoever_may_only_read_sees_that_a_run_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def open_to_read(path: Any, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *mode)

    held = RunDirectory(run(tmp_path, {"state": "running"}), {"seed": 1})
    monkeypatch.setattr(os, "open", open_to_read)
    assert look([tmp_path], {})[0].state == "running"
    held.close()
    assert look([tmp_path], {})[0].state == "failed"


def test_what_cannot_be_told_is_unknown_and_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> int:
        raise PermissionError(13, "Permission denied")

    def no_locks(*arguments: Any) -> None:
        raise OSError(37, "No locks available")

    RunDirectory(run(tmp_path, {"state": "running", "updated_at": "2026-11-27T01:02:03Z"}), {"seed": 1}).close()
    for module, name, broken in ((os, "open", refuse), (fcntl, "flock", no_locks)):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, broken)
            assert in_use(tmp_path) is None
            (standing,) = look([tmp_path], {})
        assert standing.state == "unknown"
        assert standing.why == "its lock cannot be read; last sign of life 2026-11-27T01:02:03Z"
    assert look([run(tmp_path, {"state": "failed", "error": "E: x"})], {})[0].state == "failed"


def test_a_run_on_the_list_of_a_living_process_is_queued(tmp_path: Path) -> None:
    mine = local_record(os.getpid())
    assert look([run(tmp_path, None, mine)], {})[0].state == "queued"
    for gone in ({"pid_started": mine["pid_started"] - 1}, {"host": socket.gethostname() + "x"}, {"pid": 2**22 + 1}):
        assert look([run(tmp_path, None, mine | gone)], {})[0].state == "missing"


def test_counts(tmp_path: Path) -> None:
    standings = look([run(tmp_path, {"state": "finished"})] * 2 + [tmp_path / "nowhere"], {})
    assert counted(standings) == "2 finished, 1 missing"
    assert counted([]) == "no runs"


def test_slurm_is_asked_only_if_it_has_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(slurm, "queue", lambda: asked.append(True))
    state.look_again([run(tmp_path, None, None)])
    assert asked == []
    state.look_again([run(tmp_path, None, SLURM_JOB)])
    assert asked == [True]


def test_reading_what_scontrol_shows() -> None:
    line = (
        "JobId=5 ArrayJobId=5 JobName=s JobState=RUNNING Reason=None Requeue=1 Restarts=2 RunTime=1-00:10:05 "
        "TimeLimit=2-00:00:00 PreemptTime=2026-11-23T13:49:48 JOB_GRES=(null)   Nodes=n1 CPU_IDs=0-2,5 Mem=4 GRES="
    )
    job = parse_job(line)
    assert job is not None
    assert (job.state, job.restarts, job.preempted, job.cpu_ids) == ("RUNNING", 2, True, (0, 1, 2, 5))
    assert job.seconds_left == 2 * 86_400 - (86_400 + 605)
    job = parse_job("JobState=COMPLETING RunTime=00:00:03 TimeLimit=UNLIMITED PreemptTime=None EndTime=Unknown")
    assert job is not None
    assert (job.restarts, job.preempted, job.cpu_ids, job.seconds_left) == (0, False, (), None)
    assert parse_job("slurm_load_jobs error: Invalid job id specified") is None
