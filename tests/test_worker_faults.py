"""Runs whose workers or threads raise, die or hang: they fail in seconds, leave nothing behind, and go on next time."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from faulty_workers import killed_midway
from forking import Forked
from test_faults import assert_nothing_is_left, assert_tables_are_whole, living

from a3c_bench.algos import a3c
from a3c_bench.runtime.directory import read_status

ROOT = Path(__file__).parents[1]
SECONDS_TO_FAIL = 15.0  # the promise, with worker_silence_seconds as it is
WORDS = (
    "budget.frames=6000",
    "network.hidden_sizes=[8]",
    "evaluation.n_games=2",
    "evaluation.n_envs=2",
    "evaluation.max_episode_frames=50",
    "evaluation.interval_frames=1000",
    "metrics_interval_frames=100",
    "checkpoint_interval_seconds=0.05",
    "progress=false",
)
A3C = ("algo=a3c", "algo.n_workers=2", "algo.envs_per_worker=1")
ASYNC_Q = ("algo=n_step_q", "algo.n_workers=2", "algo.envs_per_worker=1")
GA3C = ("algo=ga3c", "algo.n_agents=8", "algo.min_training_batch=1", "algo.prediction_batch=2")
GORILA = (
    "algo=gorila",
    "algo.n_learners=2",
    "algo.replay.capacity_agent_steps=5000",
    "algo.replay.learning_starts_agent_steps=100",
    "algo.target_period_updates=100",
)
# Imported again by every spawned worker, so that the fault is there too.
SCRIPT = """
import os, signal, sys, time
from a3c_bench.algos import a3c, async_q, ga3c, gorila

FAULT, PLACE, MOMENT = (os.environ.get(f"FAULT_{key}", "") for key in ("KIND", "PLACE", "MOMENT"))
PLACES = {
    "worker": (a3c.Worker, "update"),
    "q_worker": (async_q.Worker, "update"),
    "locked": (a3c.Worker, "_lag"),  # where the lock is held
    "predictor": (ga3c.Predictor, "act"),
    "trainer": (ga3c.Trainer, "learn"),
    "bundle": (gorila.Bundle, "work"),
    "shard": (gorila.Shard, "serve"),
}
calls = 0


def strike():
    with open(os.environ["FAULT_FILE"], "w") as file:
        file.write(str(time.time()))
    if FAULT == "raise":
        raise ArithmeticError("a fault of the test")
    if FAULT == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "hang":
        time.sleep(1000.0)


def faulty(self, *arguments):
    global calls
    calls += 1
    if MOMENT == "full" and PLACE == "trainer":  # let the queue fill up first
        time.sleep(0.2)
    if calls == (1 if MOMENT == "start" else 150 if MOMENT == "midway" else 10) and (
        PLACE not in ("worker", "q_worker", "locked", "bundle") or self.notes.writer == 1
    ):
        strike()
    return real(self, *arguments)


if PLACE:
    owner, name = PLACES[PLACE]
    real = getattr(owner, name)
    setattr(owner, name, faulty)
if __name__ == "__main__":
    from a3c_bench.run import main
    main()
"""


class Faulty(NamedTuple):
    """Starts runs with a fault in them."""

    directory: Path
    started: list["subprocess.Popen[str]"]

    def start(self, *words: str, kind: str = "", place: str = "", moment: str = "") -> "subprocess.Popen[str]":
        fault = {"FAULT_KIND": kind, "FAULT_PLACE": place, "FAULT_MOMENT": moment, "FAULT_FILE": str(self.struck)}
        process = subprocess.Popen(
            [sys.executable, str(self.directory / "faulty.py"), f"root={self.directory}", *WORDS, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | fault,
        )
        self.started.append(process)
        return process

    @property
    def struck(self) -> Path:
        """Holds the time of the fault, once it has come."""
        return self.directory / "struck"

    @property
    def run(self) -> Path:
        """The run directory."""
        return next(self.directory.glob("default/CartPole-v1/*/*/seed0"))


@pytest.fixture
def faulty(tmp_path: Path, leaves_no_shared_memory: None) -> Iterator[Faulty]:
    (tmp_path / "faulty.py").write_text(SCRIPT)
    made = Faulty(tmp_path, [])
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def fail_and_go_on(faulty: Faulty, words: tuple[str, ...], place: str, kind: str, moment: str) -> str:
    """A run that fails by such a fault, and the next start of the same command; gives what the first one said."""
    process = faulty.start(*words, kind=kind, place=place, moment=moment)
    _, stderr = process.communicate(timeout=100)
    ended_at = time.time()
    assert process.returncode == 1, stderr
    assert ended_at - float(faulty.struck.read_text()) < SECONDS_TO_FAIL
    assert_nothing_is_left(process)
    failed = assert_it_failed(faulty.run)

    process = faulty.start(*words)
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr) == (0, "")
    assert "Going on from frame" in stdout
    assert_nothing_is_left(process)
    assert_it_went_on(faulty.run, failed, frames=6000)
    return str(failed["traceback"])


def assert_it_failed(run: Path) -> dict[str, Any]:
    """By a worker's fault; gives its status."""
    status = read_status(run)
    assert status["state"] == "failed"
    assert "WorkerError" in status["error"]
    return status


def assert_it_went_on(run: Path, failed: dict[str, Any], frames: int) -> None:
    """From the checkpoint of a start that failed, to its budget."""
    again = read_status(run)
    assert (again["state"], again["attempts"], again["error"]) == ("finished", 2, None)
    assert again["frames"] >= frames > failed["frames"]
    assert_tables_are_whole(run)
    assert pd.read_csv(run / "metrics.csv")["updates"].iloc[-1] == again["updates"]


def test_a_killed_worker_ends_the_run_in_seconds_and_the_next_goes_on(
    cli: Callable[..., Any], tmp_path: Path, leaves_no_shared_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below in processes of their own."""
    words = (f"root={tmp_path}", *WORDS, *A3C, "budget.frames=3000")
    with monkeypatch.context() as patched:
        patched.setattr(a3c, "worker_main", killed_midway)
        ended = cli(*words)
    assert ended.exit_status == 1, ended
    assert time.time() - float((tmp_path / "struck").read_text()) < SECONDS_TO_FAIL
    assert multiprocessing.active_children() == []
    (run,) = tmp_path.glob("default/CartPole-v1/*/*/seed0")
    failed = assert_it_failed(run)
    assert "Worker 1 was killed by SIGKILL" in failed["traceback"]
    ended = cli(*words)
    assert (ended.exit_status, ended.stderr) == (0, "")
    assert "Going on from frame" in ended.stdout
    assert multiprocessing.active_children() == []
    assert_it_went_on(run, failed, frames=3000)


FULL_QUEUE = ("algo.training_queue_size=1", "algo.n_trainers=1")
CASES: list[Any] = [
    (A3C, "worker", "kill", "midway"),
    (GORILA, "shard", "kill", "midway"),
    (GA3C, "trainer", "raise", "midway"),
    (A3C, "worker", "raise", "midway"),
    *((ASYNC_Q, "q_worker", kind, "midway") for kind in ("raise", "kill", "hang")),
    ((*GA3C, *FULL_QUEUE), "trainer", "hang", "full"),
    *((A3C, "worker", kind, "start") for kind in ("raise", "kill", "hang")),
    (A3C, "worker", "hang", "midway"),
    *((GA3C, place, kind, "start") for place in ("predictor", "trainer") for kind in ("raise", "hang")),
    *((GA3C, place, "hang", "midway") for place in ("predictor", "trainer")),
    (GA3C, "predictor", "raise", "midway"),
    ((*GA3C, *FULL_QUEUE), "trainer", "raise", "full"),
    ((*GA3C, *FULL_QUEUE), "predictor", "raise", "full"),
    ((*GA3C, *FULL_QUEUE), "predictor", "hang", "full"),
    ((*A3C, "algo.lock=true"), "locked", "kill", "midway"),
    ((*A3C, "algo.n_workers=6"), "worker", "hang", "midway"),
    *((GORILA, place, kind, "start") for place in ("bundle", "shard") for kind in ("raise", "hang")),
    *((GORILA, "bundle", kind, "midway") for kind in ("raise", "kill", "hang")),
    *((GORILA, "shard", kind, "midway") for kind in ("raise", "hang")),
    ((*GORILA, "algo.replay.storage=memmap"), "bundle", "kill", "midway"),
    ((*GA3C, "algo.synchronous=true"), "trainer", "raise", "midway"),
    ((*GA3C, "algo.synchronous=true"), "predictor", "hang", "midway"),
]


@pytest.mark.slow
@pytest.mark.timeout(300)  # two runs, of up to four processes each
@pytest.mark.parametrize(("words", "place", "kind", "moment"), CASES)
def test_a_fault_ends_the_run_in_seconds_and_the_next_goes_on(
    faulty: Faulty, words: tuple[str, ...], place: str, kind: str, moment: str
) -> None:
    trace = fail_and_go_on(faulty, words, place, kind, moment)
    expected = {"raise": "ArithmeticError: a fault of the test", "kill": "was killed by SIGKILL", "hang": "strike"}
    assert expected[kind] in trace
    names = {"bundle": "Bundle 1", "shard": "Shard 0"} | dict.fromkeys(("worker", "q_worker", "locked"), "Worker 1")
    assert names.get(place, place) in trace


@pytest.mark.parametrize("words", [A3C, pytest.param(GA3C, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_nothing_outlives_a_run_that_is_stopped(
    fork: Callable[..., Forked],
    tmp_path: Path,
    leaves_no_shared_memory: None,
    words: tuple[str, ...],
    sent: signal.Signals,
) -> None:
    process = fork(f"root={tmp_path}", *WORDS, *words, "budget.frames=1000000")
    deadline = time.monotonic() + 60.0
    while not trained(tmp_path) or len(living(process.pid)) < (4 if words == A3C else 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if sent is signal.SIGKILL else 143)
    assert_nothing_is_left(process)
    if sent is signal.SIGTERM:
        (run,) = tmp_path.glob("default/CartPole-v1/*/*/seed0")
        assert read_status(run)["state"] == "preempted"


def trained(root: Path) -> bool:
    """Whether a run has ended an interval."""
    return any(len(file.read_text().splitlines()) > 1 for file in root.rglob("metrics.csv"))
