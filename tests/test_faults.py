"""Runs that are killed, stopped and started again, in processes of their own."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from forking import Forked

from a3c_bench.runtime.directory import read_status

Fork = Callable[..., Forked]
TRAINING_SECONDS = 2.0
WORDS = (
    f"budget.wall_clock_seconds={TRAINING_SECONDS}",
    "algo.n_envs=1",
    "algo.t_max=5",
    "network.hidden_sizes=[8]",
    "evaluation.n_games=2",
    "evaluation.n_envs=2",
    "evaluation.interval_frames=2000",
    "evaluation.max_episode_frames=50",
    "metrics_interval_frames=200",
    "checkpoint_interval_seconds=0.2",
    "n_torch_threads=1",
    "progress=false",
)
EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR2: 140, signal.SIGKILL: -9}


def run_in(root: Path) -> Path | None:
    """The run directory, once there is one."""
    return next(root.glob("default/CartPole-v1/paac/*/seed0"), None)


def wait_until_it_trains(process: Forked, root: Path, attempt: int) -> None:
    """Until the run's status says that this attempt is under way."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        run = run_in(root)
        status = read_status(run) if run is not None else {}
        if status.get("state") == "running" and status.get("attempts") == attempt:
            return
        if process.poll() is not None:
            raise AssertionError(f"It ended before it trained: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError("It does not train.")


def living(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *numbers = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(numbers[2]) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def assert_nothing_is_left(process: "Forked | subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 5.0
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(process.pid) == []


def assert_tables_are_whole(run: Path) -> None:
    """Every row has every column, nothing goes back in time, and no interval is there twice.

    Games of several workers are written as they are reported, each with the frames of its end.
    """
    for name in ("metrics", "lag", "episodes", "eval"):
        text = (run / f"{name}.csv").read_text()
        assert text.endswith("\n"), name
        lines = text.splitlines()
        assert {line.count(",") for line in lines} == {lines[0].count(",")}, name
        table = pd.read_csv(run / f"{name}.csv")
        assert len(table) == len(lines) - 1 > 0, name
        for column in ("frames", "wall_seconds"):
            assert table[column].is_monotonic_increasing or name == "episodes", (name, column)
            assert not table[column].isna().any(), (name, column)
    for name in ("metrics", "lag"):
        table = pd.read_csv(run / f"{name}.csv")
        assert table["frames"].is_unique, name
        assert table["updates"].is_monotonic_increasing, name  # GA3C's trainers may sleep through an interval
    episodes, last = pd.read_csv(run / "episodes.csv"), pd.read_csv(run / "metrics.csv").iloc[-1]
    counters = ["frames", "agent_steps", "wall_seconds"]
    assert (episodes[counters].max() <= last[counters] + 0.001).all()
    games = pd.read_csv(run / "eval.csv")
    assert not games.duplicated(["frames", "game_index"]).any()


def survive(fork: Fork, root: Path, signals: Sequence[signal.Signals], seed: int) -> None:
    """Stops a run at random moments, each time goes on, and looks at what the last start leaves."""
    rng = random.Random(seed)
    words = (f"root={root}", *WORDS)
    for attempt, sent in enumerate(signals, 1):
        process = fork(*words)
        wait_until_it_trains(process, root, attempt)
        time.sleep(rng.uniform(0.0, 0.5 * TRAINING_SECONDS / len(signals)))
        os.kill(process.pid, sent)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == EXIT_STATUS[sent], stdout + stderr
        assert stderr == ""
        assert_nothing_is_left(process)
        run = run_in(root)
        assert run is not None
        status = read_status(run)
        if sent is signal.SIGKILL:
            assert status["state"] == "running"
        else:
            assert (status["state"], status["stop_signal"]) == ("preempted", sent.name)
            assert f"Stopped by {sent.name} and saved" in stdout
    process = fork(*words)
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr) == (0, "")
    assert "Going on from frame" in stdout
    assert_nothing_is_left(process)
    assert run is not None
    status = read_status(run)
    assert (status["state"], status["attempts"], status["error"]) == ("finished", len(signals) + 1, None)
    assert TRAINING_SECONDS <= status["wall_seconds"] < 2 * TRAINING_SECONDS
    assert_tables_are_whole(run)
    metrics, games = pd.read_csv(run / "metrics.csv"), pd.read_csv(run / "eval.csv")
    assert metrics["frames"].iloc[-1] == status["frames"]
    assert metrics["updates"].iloc[-1] == status["updates"]
    assert games["final"].sum() == 2
    assert list(run.rglob("*.new")) == []


def test_a_run_survives_two_ends(fork: Fork, tmp_path: Path) -> None:
    survive(fork, tmp_path, [signal.SIGKILL, signal.SIGTERM], seed=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_survives_ten_ends(fork: Fork, tmp_path: Path, seed: int) -> None:
    signals = [signal.SIGKILL] * 5 + [signal.SIGTERM] * 2 + [signal.SIGINT] * 2 + [signal.SIGUSR2]
    random.Random(seed).shuffle(signals)
    survive(fork, tmp_path, signals, seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_survives_kills_at_any_moment(spawn: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    """While it imports, opens its directory, trains or saves: the next start makes do with what is there."""
    rng = random.Random(0)
    words = (f"root={tmp_path}", *WORDS)
    for _ in range(10):
        process = spawn(*words)
        time.sleep(rng.uniform(1.0, 6.0))
        process.kill()
        process.communicate(timeout=60)
        assert_nothing_is_left(process)
    process = spawn(*words)
    _, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr) == (0, "")
    run: Any = run_in(tmp_path)
    assert read_status(run)["state"] == "finished"
    assert_tables_are_whole(run)


@pytest.mark.slow
def test_two_starts_at_once(fork: Fork, tmp_path: Path) -> None:
    """One trains, the other says so and leaves the files alone."""
    words = (f"root={tmp_path}", *WORDS[1:], "budget.wall_clock_seconds=100")
    first = fork(*words)
    wait_until_it_trains(first, tmp_path, 1)
    second = fork(*words)
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 2
    assert stderr.startswith("a3c_bench: Another process is running in ")
    assert stderr.count("\n") == 1
    run: Any = run_in(tmp_path)
    assert first.poll() is None
    assert read_status(run)["attempts"] == 1
    first.send_signal(signal.SIGTERM)
    _, stderr = first.communicate(timeout=60)
    assert (first.returncode, stderr) == (143, "")
    assert_tables_are_whole(run)
