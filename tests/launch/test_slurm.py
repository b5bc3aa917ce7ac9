"""Sweeps on a real SLURM: what its accounting says, what is run again, and what survives preemption and lost nodes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from forking import Forked
from one_node import OneNode

from a3c_bench.launch import slurm
from a3c_bench.launch.state import look_again
from a3c_bench.runtime.directory import read_job, read_status

pytestmark = pytest.mark.timeout(400)  # on a machine that does nothing else, a minute for the longest
ROOT = Path(__file__).parents[2]
SMALL = (
    "algo=paac",
    "algo.n_envs=2",
    "network.hidden_sizes=[8]",
    "evaluation.n_games=2",
    "evaluation.n_envs=2",
    "evaluation.max_episode_frames=50",
    "metrics_interval_frames=200",
    "checkpoint_interval_seconds=0.2",
    "n_torch_threads=1",
    "progress=false",
    "hydra/launcher=slurm_cpu",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.poll_seconds=0.5",
)


class Checkout:
    """A plain checkout of the sources, which may be edited, and commands that run in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for part in ("a3c_bench", "conf", "hydra_plugins", "sweeps"):
            shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__", "local"))

    def start(self, *words: str, **options: Any) -> "subprocess.Popen[str]":
        """`python -m a3c_bench.run *words`, under way."""
        environment = os.environ | {"PYTHONPATH": str(self.place)}
        command = [sys.executable, "-m", "a3c_bench.run", "-m", f"root={self.place / 'runs'}", *words]
        return subprocess.Popen(
            command, cwd=self.place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            **options,
        )  # fmt: skip

    def run(self, *words: str, timeout: float = 300.0) -> tuple[int, str]:
        """The same, to its end: exit status and what it said."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"It does not end: {process.communicate()}") from None
        return process.returncode, out + err

    def runs(self) -> list[Path]:
        """Its run directories, by seed."""
        return sorted(path.parent for path in self.place.glob("runs/*/*/*/*/seed*/config.yaml"))


@pytest.fixture
def checkout(tmp_path: Path, cluster: OneNode) -> Checkout:
    return Checkout(tmp_path / "checkout")


def until(what: Callable[[], bool], seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "It does not come so far."
        time.sleep(0.2)


def trains(path: Path, attempt: int = 1, frames: int = 1) -> Callable[[], bool]:
    """Whether a start of a run is under way and has come so far."""

    def check() -> bool:
        status = read_status(path)
        return bool(
            status.get("state") == "running" and status.get("attempts") == attempt and status.get("frames", 0) >= frames
        )

    return check


def all_over(paths: Sequence[Path]) -> bool:
    return all(standing.is_over for standing in look_again(paths))


def accounted(paths: Sequence[Path], *states: tuple[str, str]) -> None:
    """Waits until accounting, which lags behind, says this of the runs' jobs."""
    ids = [read_job(path)["job_id"] for path in paths]
    end = time.monotonic() + 20.0
    while (said := [slurm.accounting(ids).get(one) for one in ids]) != list(states):
        assert time.monotonic() < end, said
        time.sleep(0.5)


def assert_one_piece(run: Path) -> None:
    """The tables of a run that was interrupted have whole rows, in order, none twice."""
    for name in ("metrics", "lag"):
        table = pd.read_csv(run / f"{name}.csv")
        assert table["frames"].is_monotonic_increasing
        assert table["frames"].is_unique
        assert table["wall_seconds"].is_monotonic_increasing
        assert not table[["frames", "agent_steps", "updates"]].isna().any(axis=None)
    status = read_status(run)
    assert pd.read_csv(run / "metrics.csv")["frames"].iloc[-1] == status["frames"]
    assert pd.read_csv(run / "eval.csv")["final"].sum() == 2


@pytest.mark.slow
def test_a_sweep_with_a_bad_day(checkout: Checkout) -> None:
    """While runs wait, conf/ is edited, a checkpoint damaged, a run cancelled: the same command again is enough."""
    words = (*SMALL, "seed=0,1,2", "budget.frames=400", "hydra.launcher.array_parallelism=1")
    conf = checkout.place / "conf" / "algo" / "paac.yaml"
    as_it_was = conf.read_text()
    status, said = checkout.run(*words, "hydra.launcher.detach=true")
    assert status == 0, said
    job = read_job(checkout.runs()[0])["job_id"].split("_")[0]
    assert f"Submitted 3 runs as job {job}" in said
    conf.write_text(as_it_was.replace("t_max: 5", "t_max: 3"))
    runs = checkout.runs()
    (runs[1] / "checkpoint" / "latest.pt").write_text("nonsense")
    subprocess.run(["scancel", f"{job}_2"], check=True)
    until(lambda: all_over(runs))

    standings = {standing.directory.name: standing for standing in look_again(runs)}
    assert {name: standing.state for name, standing in standings.items()} == {
        "seed0": "finished",
        "seed1": "failed",
        "seed2": "missing",
    }
    assert "CheckpointError" in standings["seed1"].why
    assert "CheckpointError" in read_status(runs[1])["traceback"]
    assert "latest.pt is damaged" in Path(standings["seed1"].job["log"]).read_text()
    accounted(runs[:2], ("COMPLETED", "0:0"), ("FAILED", "2:0"))
    assert yaml.safe_load((runs[0] / "config.yaml").read_text())["algo"]["t_max"] == 5
    assert 40 <= read_status(runs[0])["updates"] < 50  # of 2 x 5 samples; of 2 x 3 there would be 66 or more
    for run in runs[:2]:
        assert read_status(run).get("machine", {}).get("cores", 1) == 1  # SLURM gave one, and binds nothing

    status, said = checkout.run(*words)
    assert status == 2  # of the edited conf/: these are other runs
    assert "algo.t_max: 5 there, 3 asked" in said
    conf.write_text(as_it_was)
    (runs[1] / "checkpoint" / "latest.pt").unlink()
    status, said = checkout.run(*words[:-1])  # two at once now
    assert status == 0, said
    assert "1 finished, 1 failed, 1 missing; 2 to start" in said
    assert "3 runs: 3 finished." in said
    assert [read_status(run)["state"] for run in runs] == ["finished"] * 3
    assert [read_status(run)["attempts"] for run in runs] == [1, 1, 1]
    assert read_job(runs[0])["job_id"] == f"{job}_0"
    accounted(runs, *[("COMPLETED", "0:0")] * 3)


@pytest.mark.slow
def test_a_requeued_run_goes_on(checkout: Checkout) -> None:
    """`scontrol requeue`: SLURM ends the job at once, and starts it again; the command that waits waits on."""
    words = (*SMALL, "seed=0", "budget.frames=null", "budget.wall_clock_seconds=6", "algo.optimizer.anneal=false")
    command = checkout.start(*words)
    until(lambda: bool(checkout.runs()))
    (run,) = checkout.runs()
    until(trains(run, frames=200))
    subprocess.run(["scontrol", "requeue", read_job(run)["job_id"]], check=True)
    until(lambda: read_status(run).get("state") == "preempted")
    until(lambda: read_status(run).get("stop_reason") == "requeued")
    frames = read_status(run)["frames"]
    until(lambda: look_again([run])[0].why.endswith("after requeued"))
    out, err = command.communicate(timeout=100)
    assert command.returncode == 0, out + err
    status = read_status(run)
    assert (status["state"], status["attempts"]) == ("finished", 2)
    assert status["frames"] > frames
    assert 6.0 <= status["wall_seconds"] < 7.0
    assert_one_piece(run)
    accounted([run], ("COMPLETED", "0:0"))


def test_ctrl_c_leaves_the_jobs(cluster: OneNode, fork: Callable[..., Forked], tmp_path: Path) -> None:
    words = ("-m", f"root={tmp_path}", *SMALL, "seed=0", "budget.frames=400")
    words = (*words, "+hydra.launcher.additional_parameters.hold=true")
    command = fork(*words)
    until(lambda: "Submitted 1 runs" in command.stdout or command.poll() is not None)
    (run,) = tmp_path.glob("*/*/*/*/seed0")
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    assert command.returncode == 130, out + err
    assert "1 runs go on without this command" in out
    job = read_job(run)["job_id"]
    queue = slurm.queue()
    assert queue is not None
    assert queue[job].reason == "JobHeldUser"
    again = fork(*words)  # waits for the job that is there
    until(lambda: "0 to start" in again.stdout)
    subprocess.run(["scancel", job], check=True)
    again.communicate(timeout=30)
    assert again.returncode == 1
    assert read_status(run) == {}


# --- the longer shows: pytest -m slow tests/launch ------------------------------------------------------------------

UNTIL_SECONDS = ("budget.frames=null", "algo.optimizer.anneal=false")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_interruptions_and_an_undisturbed_run(checkout: Checkout) -> None:
    """Requeued by hand, preempted by an urgent job, ended by a time limit: still as long as one nobody disturbed."""
    frames = 300_000
    words = (*SMALL, f"budget.frames={frames}", "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=20")
    command = checkout.start(*words, "seed=0", "name=disturbed", "checkpoint_interval_seconds=1")
    until(lambda: bool(checkout.runs()))
    (run,) = checkout.runs()
    job = ""
    for attempt, interrupt in enumerate(("requeue", "urgent", "limit"), 1):
        until(trains(run, attempt, frames=1), 200.0)
        before = read_status(run)["frames"]
        job = read_job(run)["job_id"]
        if interrupt == "requeue":
            time.sleep(2.0)
            subprocess.run(["scontrol", "requeue", job], check=True)
        elif interrupt == "urgent":
            time.sleep(1.0)
            urgent = ["sbatch", "--partition=urgent", "--exclusive", "--mem=100", "--wrap", "sleep 2"]
            subprocess.run([*urgent, "--output=/dev/null"], check=True, capture_output=True)
        else:
            limit = "00:00:50"  # from its start; SLURM looks at limits twice a minute
            subprocess.run(["scontrol", "update", f"jobid={job}", f"timelimit={limit}"], check=True)
        until(lambda: read_status(run).get("state") in ("preempted", "finished"), 200.0)
        status = read_status(run)
        if status["state"] == "finished":
            raise AssertionError(f"It finished before {interrupt}: {status['frames']} frames.")
        assert status["frames"] >= before
        expected = {"requeue": "requeued", "urgent": "preemption", "limit": "time limit"}[interrupt]
        until(lambda expected=expected: read_status(run).get("stop_reason") == expected, 30.0)
    longer = ["scontrol", "update", f"jobid={job}", "timelimit=00:10:00"]  # or a slow machine meets the limit again
    until(lambda: subprocess.run(longer, capture_output=True).returncode == 0, 30.0)
    out, err = command.communicate(timeout=400)
    assert command.returncode == 0, out + err
    status = read_status(run)
    assert (status["state"], status["attempts"]) == ("finished", 4)
    assert_one_piece(run)
    accounted([run], ("COMPLETED", "0:0"))

    calmly = ("seed=0", "name=undisturbed", "checkpoint_interval_seconds=1", "hydra.launcher.timeout_min=15")
    code, said = checkout.run(*words, *calmly)
    assert code == 0, said
    (calm,) = [path for path in checkout.runs() if "undisturbed" in str(path)]
    other = read_status(calm)
    assert other["attempts"] == 1
    assert abs(status["frames"] - other["frames"]) <= 10  # both end with the update that reaches the budget
    rows = len(pd.read_csv(run / "metrics.csv"))
    assert abs(rows - len(pd.read_csv(calm / "metrics.csv"))) <= 3  # each stop ends an interval early


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node(checkout: Checkout, cluster: OneNode) -> None:
    """slurmd and all that it runs are killed: SLURM requeues the runs, which go on from their checkpoints."""
    words = (*SMALL, *UNTIL_SECONDS, "budget.wall_clock_seconds=8", "seed=0,1")
    command = checkout.start(*words)
    until(lambda: len(checkout.runs()) == 2)
    runs = checkout.runs()
    for run in runs:
        until(trains(run, frames=400), 200.0)
    cluster.fail_node()
    time.sleep(35.0)  # until slurmctld has noticed
    cluster.start_node()
    out, err = command.communicate(timeout=400)
    assert command.returncode == 0, out + err
    for run in runs:
        status = read_status(run)
        assert (status["state"], status["attempts"]) == ("finished", 2)
        assert_one_piece(run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_headline_sweep_as_an_array(checkout: Checkout) -> None:
    """Nine runs of three algorithms end as COMPLETED, and the same command finds nothing to do."""
    words = ("+sweeps=headline", "budget.frames=2000", *SMALL[3:], "hydra.launcher.timeout_min=10")
    code, said = checkout.run(*words, timeout=800.0)
    assert code == 0, said
    runs = checkout.runs()
    assert len(runs) == 9
    assert {read_status(run)["state"] for run in runs} == {"finished"}
    accounted(runs, *[("COMPLETED", "0:0")] * 9)
    attempts = [read_status(run)["attempts"] for run in runs]
    code, said = checkout.run(*words)
    assert code == 0, said
    assert "9 finished; 0 to start" in said
    assert [read_status(run)["attempts"] for run in runs] == attempts == [1] * 9


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_gpus_are_counted_and_given(checkout: Checkout) -> None:
    """The pretended GPUs: a run that asks for one waits until one is free, and sees no other."""
    words = tuple(word for word in SMALL if not word.startswith("hydra/launcher"))
    code, said = checkout.run(
        *words, "hydra/launcher=slurm_gpu", "hydra.launcher.partition=gpu", "budget.frames=400", "seed=0",
        "hydra.launcher.setup=['echo given $CUDA_VISIBLE_DEVICES']",
    )  # fmt: skip
    assert code == 0, said
    assert "1 runs get a GPU that they will not use" in said
    (run,) = checkout.runs()
    assert "given 0" in Path(read_job(run)["log"]).read_text()
    code, said = checkout.run(*words, "hydra/launcher=slurm_gpu", "hydra.launcher.gpus_per_node=3", "seed=1")
    assert code == 2
    assert "SLURM does not take the jobs" in said
