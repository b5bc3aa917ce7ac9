"""Runs that are told to stop, with all their processes at once, as a terminal and SLURM do it: each saves and leaves.

    STOPS=200 python -m pytest tests/test_stops.py -m slow -n 0 -s     # that many, and a table (SEED=1: other moments)

A stop that comes while Python still imports ends the process by the signal: nothing is there yet that could be saved.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from forking import Forked, ForkingServer
from test_faults import living

from a3c_bench.runtime import checkpoint
from a3c_bench.runtime.directory import read_status

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
ALGORITHMS = {
    "paac": ("algo.n_envs=2",),
    "dqn": ("algo.replay.learning_starts_agent_steps=100", "algo.replay.capacity_agent_steps=5000"),
    "pgql": (
        "algo.n_envs=2",
        "algo.replay.learning_starts_agent_steps=100",
        "algo.replay.capacity_agent_steps=5000",
    ),
    "ppo": ("algo.n_envs=2", "algo.t_max=16"),
    "pqn": ("algo.n_envs=2", "algo.t_max=16"),
    "a3c": ("algo.n_workers=2",),
    "one_step_sarsa": ("algo.n_workers=2",),
    "ga3c": ("algo.n_agents=8", "algo.min_training_batch=1", "algo.prediction_batch=2"),
    "gorila": (
        "algo.n_learners=2",
        "algo.replay.learning_starts_agent_steps=100",
        "algo.replay.capacity_agent_steps=5000",
    ),
}
WORDS = (
    "budget.frames=1000000000",
    "network.hidden_sizes=[8]",
    "evaluation.n_games=4",
    "evaluation.n_envs=2",
    "evaluation.interval_frames=1000",
    "evaluation.max_episode_frames=100",
    "metrics_interval_frames=250",
    "checkpoint_interval_seconds=0.1",
    "n_torch_threads=1",
    "progress=false",
)
LONGEST_START = 240.0  # seconds, on a busy machine
SECONDS_AFTER_BEGINNING = 5.0  # of a start and what comes after it: workers start, evaluations and checkpoints come


class Stop(NamedTuple):
    """One stop: of what, by what, and what was wrong with it ("" if it saved)."""

    algorithm: str
    sent: signal.Signals
    fault: str


class Stopped:
    """A run that is started and stopped again and again."""

    def __init__(self, algorithm: str, root: Path, forking: ForkingServer) -> None:
        self._algorithm = algorithm
        self._forking = forking
        self._root = root / algorithm
        self._words = (f"root={self._root}", f"algo={algorithm}", *ALGORITHMS[algorithm], *WORDS)
        self._frames: int | None = None  # in the checkpoint

    def stop(self, sent: signal.Signals, seconds: float, frames: int = 0) -> Stop:
        """Starts the run, and tells its process group to stop so long after it has begun and has saved so many frames.

        Args:
            seconds: to wait.
            frames: of a checkpoint that is there then.
        """
        process = self._forking.start(self._words)
        try:
            self._wait_until_it_runs(process, frames)
            time.sleep(seconds)
            os.killpg(process.pid, sent)
            process.wait()
            fault = self._fault(process, sent, process.stdout, process.stderr)
        except AssertionError as error:
            fault = f"{error}; stderr: {process.stderr}"
        except (subprocess.TimeoutExpired, ProcessLookupError) as error:
            fault = f"{type(error).__name__}: {process.stderr}"
        finally:
            if process.poll() is None or living(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Stop(self._algorithm, sent, fault)

    def _status(self) -> dict[str, object]:
        found = next(self._root.rglob("status.json"), None)
        return read_status(found.parent) if found else {}

    def _wait_until_it_runs(self, process: Forked, frames: int) -> None:
        deadline = time.monotonic() + LONGEST_START
        while (status := self._status()).get("state") != "running" or status.get("frames", 0) < frames:
            assert process.poll() is None, f"it ended before it ran, with exit status {process.poll()}"
            assert time.monotonic() < deadline, "it does not run"
            time.sleep(0.02)

    def _fault(self, process: Forked, sent: signal.Signals, stdout: str, stderr: str) -> str:
        if process.returncode != 128 + sent:
            return f"exit status {process.returncode}: {stderr}"
        status = self._status()
        if (status.get("state"), status.get("stop_signal"), status.get("error")) != ("preempted", sent.name, None):
            return f"status {status}"
        if stderr or f"Stopped by {sent.name} and saved" not in stdout:
            return f"it said: {stderr or stdout}"
        if self._frames is not None and f"Going on from frame {self._frames:,}." not in stdout:
            return f"it did not go on from frame {self._frames:,}: {stdout}"
        saved = checkpoint.load(next(self._root.rglob("latest.pt")))["counters"]["frames"]
        if saved != status["frames"]:
            return f"frame {status['frames']} is not the checkpoint's {saved}"
        if self._frames is not None and saved < self._frames:
            return f"frame {saved} after frame {self._frames}"
        self._frames = saved
        until = time.monotonic() + 10.0
        while (left := living(process.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        return f"processes {left} are left" if left else ""


def stop_again_and_again(
    algorithm: str, signals: Sequence[signal.Signals], root: Path, seed: int, forking: ForkingServer
) -> list[Stop]:
    """One run, stopped by each of these signals in turn, at random moments."""
    rng = random.Random(f"{seed} {algorithm}")
    run = Stopped(algorithm, root, forking)
    return [run.stop(sent, rng.uniform(0.0, SECONDS_AFTER_BEGINNING)) for sent in signals]


def table(stops: Sequence[Stop]) -> str:
    """Algorithm x signal: how many were saved, of how many."""
    lines = [f"{'':8}" + "".join(f"{sent.name:>10}" for sent in SIGNALS)]
    told, saved = Counter(stop[:2] for stop in stops), Counter(stop[:2] for stop in stops if not stop.fault)
    for algorithm in ALGORITHMS:
        cells = (f"{saved[algorithm, sent]}/{told[algorithm, sent]}" for sent in SIGNALS)
        lines.append(f"{algorithm:8}" + "".join(f"{cell:>10}" for cell in cells))
    lines.append(f"{saved.total()} of {told.total()} saved")
    return "\n".join(lines + [f"{algorithm}, {sent.name}: {fault}" for algorithm, sent, fault in stops if fault])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("algorithm", "sent", "seconds", "frames"),
    [
        ("a3c", signal.SIGTERM, 0.2, 1),  # both workers train
        pytest.param("one_step_sarsa", signal.SIGINT, 1.0, 0, marks=pytest.mark.slow),
        pytest.param("gorila", signal.SIGUSR2, 4.0, 0, marks=pytest.mark.slow),
        pytest.param("paac", signal.SIGINT, 0.5, 0, marks=pytest.mark.slow),
        pytest.param("ga3c", signal.SIGHUP, 1.0, 0, marks=pytest.mark.slow),
        pytest.param("dqn", signal.SIGUSR2, 0.5, 0, marks=pytest.mark.slow),
        pytest.param("pgql", signal.SIGTERM, 0.5, 0, marks=pytest.mark.slow),
        pytest.param("ppo", signal.SIGINT, 0.5, 0, marks=pytest.mark.slow),
        pytest.param("pqn", signal.SIGHUP, 0.5, 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_processes_are_all_told_to_stop_saves(
    tmp_path: Path,
    forking: ForkingServer,
    leaves_no_shared_memory: None,
    algorithm: str,
    sent: signal.Signals,
    seconds: float,
    frames: int,
) -> None:
    assert Stopped(algorithm, tmp_path, forking).stop(sent, seconds, frames).fault == ""


@pytest.mark.parametrize(
    ("imported", "sent"),
    [("/yaml/_yaml", signal.SIGINT), ("/libtorch_cpu", signal.SIGINT), ("/libtorch_cpu", signal.SIGHUP)],
)
def test_a_stop_before_there_is_anything_to_save_is_no_traceback(
    tmp_path: Path, imported: str, sent: signal.Signals
) -> None:
    """Each comes when a library has been mapped: Hydra's first, then torch's, of which an import takes seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "a3c_bench.run", f"root={tmp_path}", *WORDS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + LONGEST_START
    while imported not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, sent)
    _, stderr = process.communicate(timeout=LONGEST_START)
    assert (process.returncode, stderr) == (-sent, "")
    assert list(tmp_path.rglob("*.pt")) == list(tmp_path.rglob("status.json")) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_run_is_told_to_stop_at_any_moment(
    tmp_path: Path, forking: ForkingServer, leaves_no_shared_memory: None
) -> None:
    n_stops, seed = int(os.environ.get("STOPS", "40")), int(os.environ.get("SEED", "0"))
    turns: dict[str, list[signal.Signals]] = {algorithm: [] for algorithm in ALGORITHMS}
    for number in range(n_stops):
        name = list(ALGORITHMS)[number % len(ALGORITHMS)]
        turns[name].append(SIGNALS[number // len(ALGORITHMS) % len(SIGNALS)])
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda turn: stop_again_and_again(*turn, tmp_path, seed, forking), turns.items())
        stops = [stop for each in found for stop in each]
    print(f"\n{table(stops)}")
    assert len(stops) == n_stops
    assert [stop for stop in stops if stop.fault] == [], table(stops)
