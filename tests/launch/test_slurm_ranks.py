"""Runs of two ranks on a real SLURM of two nodes: to the end, and on after a lost rank, a requeue and a preemption."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from one_node import OneNode
from test_slurm import SMALL, UNTIL_SECONDS, Checkout, accounted, assert_one_piece, until

from a3c_bench.launch.state import look_again
from a3c_bench.runtime.directory import read_job, read_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TWO = (*SMALL, *UNTIL_SECONDS, "hydra.launcher.nodes=2", "seed=0")


@pytest.fixture
def checkout(tmp_path: Path, two_nodes: OneNode) -> Checkout:
    return Checkout(tmp_path / "checkout")


def rank_pids(job: str) -> dict[int, int]:
    """The process of each rank of a job that is there."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = dict(part.partition("=")[::2] for part in (process / "environ").read_text().split("\0"))
            words = (process / "cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if said.get("SLURM_JOB_ID") == job and "SLURM_PROCID" in said and "submitit.core._submit" in words[1:5]:
            found[int(said["SLURM_PROCID"])] = int(process.name)
    return found


def under_way(path: Path, attempt: int = 1) -> Callable[[], bool]:
    """Whether a start of a run trains."""

    def check() -> bool:
        status = read_status(path)
        there = len(status.get("history", [])) == attempt and status.get("state") == "running"
        return there and status.get("frames", 0) >= 200

    return check


def seconds_until_gone(job: str) -> float:
    start = time.monotonic()
    until(lambda: not rank_pids(job))
    return time.monotonic() - start


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_other_and_the_same_command_goes_on(checkout: Checkout, lost: int) -> None:
    words = (*TWO, "budget.wall_clock_seconds=15")
    command = checkout.start(*words)
    until(lambda: bool(checkout.runs()) and bool(read_job(checkout.runs()[0])))
    (run,) = checkout.runs()
    until(under_way(run), 200.0)
    job = read_job(run)["job_id"]
    pids = rank_pids(job)
    assert sorted(pids) == [0, 1]
    os.kill(pids[lost], signal.SIGKILL)
    assert seconds_until_gone(job) < 60.0
    out, err = command.communicate(timeout=200)
    assert command.returncode == 1, out + err
    (standing,) = look_again([run])
    assert standing.state == "failed"
    assert standing.why == f"RankError: Rank {lost} on n{lost + 1} died, or cannot be reached."
    assert standing.job["nodes"] == "n[1-2]"
    accounted([run], ("FAILED", "9:0"))

    before = read_status(run)["frames"]
    code, said = checkout.run(*words)
    assert code == 0, said
    status = read_status(run)
    assert (status["state"], len(status["history"])) == ("finished", 2)
    assert status["frames"] > before
    assert_one_piece(run)
    accounted([run], ("COMPLETED", "0:0"))


def test_requeued_and_preempted_it_saves_once_and_goes_on(checkout: Checkout) -> None:
    command = checkout.start(*TWO, "budget.wall_clock_seconds=15")
    until(lambda: bool(checkout.runs()) and bool(read_job(checkout.runs()[0])))
    (run,) = checkout.runs()
    for attempt, reason in enumerate(("requeued", "preemption"), 1):
        until(under_way(run, attempt), 200.0)
        job = read_job(run)["job_id"]
        if reason == "requeued":
            subprocess.run(["scontrol", "requeue", job], check=True)
        else:
            urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--mem=100", "--wrap", "sleep 2"]
            subprocess.run([*urgent, "--output=/dev/null"], check=True, capture_output=True)
        assert seconds_until_gone(job) < 60.0
        until(lambda reason=reason: read_status(run).get("stop_reason") == reason, 30.0)  # type: ignore[misc]
        assert read_status(run)["state"] == "preempted"
    out, err = command.communicate(timeout=300)
    assert command.returncode == 0, out + err
    status = read_status(run)
    assert (status["state"], status["attempts"]) == ("finished", 3)
    assert_one_piece(run)
    accounted([run], ("COMPLETED", "0:0"))
    logs = [Path(read_job(run)["log"].replace("_0_log", f"_{rank}_log")).read_text() for rank in (0, 1)]
    assert logs[0].count("Stopped by") == 2
    assert "Stopped by" not in logs[1]
