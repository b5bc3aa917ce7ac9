"""Runs on this machine: what each may use, how many there are at once, and what a signal leaves."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from forking import Forked

from a3c_bench.errors import ConfigError
from a3c_bench.launch.local import Slot, slots
from a3c_bench.launch.options import LocalOptions
from a3c_bench.launch.state import look
from a3c_bench.runtime.directory import read_status
from a3c_bench.runtime.machine import family, visible_gpus

Cli = Callable[..., Any]
SMALL = (
    "-m",
    "algo=paac",
    "algo.n_envs=2",
    "network.hidden_sizes=[8]",
    "evaluation.n_games=1",
    "evaluation.n_envs=1",
    "evaluation.max_episode_frames=50",
    "metrics_interval_frames=200",
    "progress=false",
    "hydra/launcher=local",
)


@pytest.mark.parametrize(
    ("options", "cores", "gpus", "expected"),
    [
        (LocalOptions(), [0, 1], [], [Slot((0,), ()), Slot((1,), ())]),
        (LocalOptions(), [4], [], [Slot((4,), ())]),  # fewer at once than asked
        (LocalOptions(runs_at_once=3), range(8), [], [Slot((0, 1), ()), Slot((2, 3), ()), Slot((4, 5), ())]),
        (LocalOptions(cores_per_run=3), range(4), [], [Slot((0, 1, 2), ())]),
        (LocalOptions(), [0, 1], ["0", "1"], [Slot((0,), ("0",)), Slot((1,), ("1",))]),
        (LocalOptions(), [0, 1], ["7"], [Slot((0,), ("7",)), Slot((1,), ("7",))]),  # one for both
        (LocalOptions(), [0, 1], ["0", "1", "2", "3"], [Slot((0,), ("0", "1")), Slot((1,), ("2", "3"))]),
        (LocalOptions(gpus_per_run=0), [0, 1], ["0"], [Slot((0,), ()), Slot((1,), ())]),
    ],
)
def test_sharing_out_a_machine(
    options: LocalOptions, cores: Sequence[int], gpus: Sequence[str], expected: list[Slot]
) -> None:
    assert slots(options, cores, gpus) == expected


def test_asking_for_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match="cores_per_run=3, but there are 2 cores"):
        slots(LocalOptions(cores_per_run=3), [0, 1], [])
    with pytest.raises(ConfigError, match="gpus_per_run=1, but there are 0 GPUs"):
        slots(LocalOptions(gpus_per_run=1), [0, 1], [])


def test_gpus_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert visible_gpus() == ["3", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 0,-1,2")
    assert visible_gpus() == ["1", "0"]


@pytest.mark.parametrize("none", ["", " ", "-1", "NoDevFiles", "none", "-1,0"])
def test_no_gpu_was_given(none: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
    assert visible_gpus() == []


def test_a_sweep_with_a_failure_and_the_same_again(cli: Cli, tmp_path: Path) -> None:
    words = (*SMALL, f"root={tmp_path}", "seed=0,1", "budget.frames=400")
    run = tmp_path / "default/CartPole-v1/paac"
    before = os.sched_getaffinity(0)
    ended = cli(*words, "name=default")
    assert ended.exit_status == 0, ended
    assert "2 runs: 2 finished." in ended.stdout
    runs = sorted(run.glob("*/seed*"))
    n_at_once = min(2, len(before))
    assert [read_status(path)["machine"]["cores"] for path in runs] == [len(before) // n_at_once] * 2
    assert os.sched_getaffinity(0) == before
    broken = runs[1] / "status.json"
    broken.write_text('{"state": "failed", "attempts": 1}')
    (runs[1] / "checkpoint" / "latest.pt").write_text("nonsense")
    ended = cli(*words)
    assert ended.exit_status == 1
    assert "1 finished, 1 failed; 1 to start" in ended.stdout
    assert "seed1 failed: CheckpointError: " in ended.stdout
    log = next(line.split("log: ")[1] for line in ended.stdout.splitlines() if "    log: " in line)
    assert "latest.pt is damaged" in Path(log).read_text()
    assert "CheckpointError" in read_status(runs[1])["traceback"]
    assert read_status(runs[0])["attempts"] == 1


def wait_for(what: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "It does not come so far."
        time.sleep(0.1)


LONG = ("budget.frames=null", "budget.wall_clock_seconds=1000", "algo.optimizer.anneal=false", "seed=0,1")


def states(root: Path) -> list[str]:
    return [look([path.parent], {})[0].state for path in sorted(root.glob("*/*/*/*/seed*/config.yaml"))]


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_signal_reaches_the_runs(fork: Callable[..., Forked], tmp_path: Path, sent: signal.Signals) -> None:
    """Ctrl-C to the command, or its violent death: the run that trains saves and ends, the one that waits stays so."""
    process = fork(*SMALL, *LONG, f"root={tmp_path}", "hydra.launcher.runs_at_once=1")
    wait_for(lambda: "running" in [read_status(p.parent).get("state") for p in tmp_path.rglob("status.json")])
    os.kill(process.pid, sent)
    process.communicate(timeout=60)
    assert process.returncode == (130 if sent is signal.SIGINT else -9)
    wait_for(lambda: states(tmp_path) == ["preempted", "missing"], 20.0)
    (status,) = [read_status(path.parent) for path in tmp_path.rglob("status.json")]
    assert (status["state"], status["stop_signal"]) == ("preempted", "SIGTERM")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_every_rank(fork: Callable[..., Forked], tmp_path: Path, sent: signal.Signals) -> None:
    process = fork(*SMALL, *LONG[:-1], "seed=0", f"root={tmp_path}", "hydra.launcher.ranks=2")
    wait_for(lambda: any(read_status(p.parent).get("frames", 0) > 0 for p in tmp_path.rglob("status.json")))
    (run,) = (path.parent for path in tmp_path.rglob("status.json"))
    assert run.parent.name.endswith("ranks=2")
    ranks = [Path(f"/proc/{pid}") for pid in family(process.pid) if "a3c_bench.rank" in command_of(pid)]
    assert len(ranks) == 1
    assert 1 <= read_status(run)["machine"]["cores"] <= max(1, len(os.sched_getaffinity(0)) // 2)  # its share
    os.kill(process.pid, sent)
    process.communicate(timeout=60)
    wait_for(lambda: read_status(run)["state"] == "preempted", 60.0)
    wait_for(lambda: not any(rank.exists() for rank in ranks), 60.0)
    assert read_status(run)["stop_signal"] == "SIGTERM"


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_detached_runs_need_nobody(cli: Cli, tmp_path: Path) -> None:
    words = (*SMALL, *LONG, f"root={tmp_path}", "hydra.launcher.detach=true", "hydra.launcher.runs_at_once=1")
    ended = cli(*words)
    assert ended.exit_status == 0
    line = next(line for line in ended.stdout.splitlines() if "are left to process" in line)
    pid = int(line.split("process ")[1].split(";")[0])
    try:
        wait_for(lambda: states(tmp_path) == ["running", "queued"])
        assert "2 runs: 1 running, 1 queued; 0 to start." in cli(*words).stdout
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)  # it is a child of this process, which launched in-process
    assert states(tmp_path) == ["preempted", "missing"]
