"""The two tools beside the named sweeps: status and plan."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from a3c_bench.calibration import Calibration
from a3c_bench.config import compose
from a3c_bench.launch import slurm
from a3c_bench.schema import Config
from sweeps import plan, status

# --- status ---------------------------------------------------------------------------------------------------------


def test_progress_and_time_left() -> None:
    half = {"frames": 500, "wall_seconds": 10.0}
    assert status.progress(half, {"frames": 1000}) == (0.5, 10.0)
    assert status.progress(half, {"frames": 1000, "wall_clock_seconds": 12.5}) == (0.8, 2.5)
    assert status.progress({}, {"frames": 1000}) == (0.0, None)
    assert status.progress(half, {"target_return": 475.0}) == (None, None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (90, "2 min"), (3600, "1.0 h"), (100_000, "27.8 h"), (2e5, "2.3 d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text


def made_up(root: Path, name: str, config: dict[str, Any] | None = None, **said: Any) -> None:
    place = root / name
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(config or {"budget": {"frames": 1000}}))
    if said:
        (place / "status.json").write_text(json.dumps(said))


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up(tmp_path, "paac/seed0", state="finished", frames=1000, attempts=2, final={"evaluation_mean_return": 12.3})
    made_up(
        tmp_path, "paac/seed1", state="failed", frames=250, wall_seconds=5.0, error="ValueError: by hand", attempts=1
    )
    made_up(tmp_path, "paac/seed2")
    assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [re.split(r"\s*│\s*", line.strip())[1:-1] for line in out.splitlines() if "seed" in line and "│" in line]
    assert rows == [
        ["paac/seed0", "finished", "100%", "", "12.3", "2", "", ""],
        ["paac/seed1", "failed", "25%", "15 s", "", "1", "", "ValueError: by hand"],
        ["paac/seed2", "missing", "", "", "", "", "", "not submitted"],
    ]
    assert out.splitlines()[-1] == "3 runs: 1 finished, 1 failed, 1 missing."
    status.main([str(tmp_path), "--state", "failed"])
    out = capsys.readouterr().out
    assert "seed1" in out
    assert "seed0" not in out


def test_the_table_tells_of_ranks_where_a_run_has_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "queue", dict)
    monkeypatch.setattr(slurm, "accounting", lambda ids: {})
    lost = "RankError: Rank 1 on n2 died, or cannot be reached."
    several = {"ranks": 2, "budget": {"frames": 1000}}
    made_up(tmp_path, "a/seed0", several, state="failed", frames=500, wall_seconds=5.0, error=lost, attempts=1)
    job = {"launcher": "slurm", "job_id": "7_0", "folder": "/x", "nodes": "n[1-2]"}
    (tmp_path / "a/seed0/job.json").write_text(json.dumps(job))
    made_up(tmp_path, "b/seed0", several | {"ranks": 3}, state="finished", frames=1000, attempts=1)
    made_up(tmp_path, "c/seed0", state="finished", frames=1000, attempts=1)
    assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [re.split(r"\s*│\s*", line.strip())[1:-1] for line in out.splitlines() if "seed" in line and "│" in line]
    assert rows == [
        ["b/seed0", "finished", "100%", "", "", "1", "", "3", ""],
        ["c/seed0", "finished", "100%", "", "", "1", "", "1", ""],
        ["a/seed0", "failed", "50%", "5 s", "", "1", "7_0", "2 on n[1-2]", lost],
    ]


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_status_follows_links_and_counts_a_run_once(tmp_path: Path) -> None:
    run = tmp_path / "scratch" / "seed0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("budget: {frames: 10}\n")
    linked = tmp_path / "runs"
    linked.mkdir()
    (linked / "a").symlink_to(run)
    (linked / "b").symlink_to(run)
    (linked / "loop").symlink_to(tmp_path)
    assert status.run_directories(linked) == [linked / "a"]
    assert status.run_directories(linked, tmp_path) == [linked / "a"]


# --- plan -----------------------------------------------------------------------------------------------------------


def finished_run(root: Path, name: str, speed: float, seconds: float = 100.0, ranks: int = 1, **env: str) -> None:
    task = {"id": "CartPole-v1", "game": None} | env
    config = {"algo": {"name": "paac"}, "env": task, "network": {"kind": "mlp"}}
    config |= {"ranks": ranks} if ranks > 1 else {}  # which older runs do not have
    made_up(root, name, config | {"device": "cpu"}, state="finished", frames=int(speed * seconds), wall_seconds=seconds)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Calibration finds 250 agent steps per second, at once; the configurations that it was asked for."""
    asked: list[Config] = []

    def calibrated(config: Config, **options: Any) -> Calibration:
        asked.append(config)
        return Calibration(1.0, 1.0, 1.0, 250.0, 1, 1, 1, 3, 2, "cpu")

    monkeypatch.setattr("a3c_bench.calibration.calibrate", calibrated)
    return asked


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[list[str]], str]:
    assert plan.main(words) == 0
    out = capsys.readouterr().out
    rows = [re.split(r"\s*│\s*", line.strip())[1:-1] for line in out.splitlines() if line.startswith("│")]
    return rows, out


def test_plan_from_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]) -> None:
    for number, speed in enumerate((100.0, 200.0, 900.0)):
        finished_run(tmp_path, f"seed{number}", speed)
    finished_run(tmp_path, "short", 10_000.0, seconds=1.0)
    words = ("algo=paac", "seed=range(0,6)", "budget.frames=720000", "--launcher", "slurm_gpu", "--runs", str(tmp_path))
    rows, out = planned(capsys, *words, "hydra.launcher.timeout_min=30", "hydra.launcher.cpus_per_task=3")
    # 720,000 frames at the median of 200 frames/s: one hour; six of them on 3 cores and 1 GPU each
    assert rows[0][5:12] == ["6", "720,000", "200", "1.0 h", "6.0 h", "18", "6"]
    assert rows[0][13] == "3 finished runs"
    assert rows[1][5:7] == ["6", "4,320,000"]
    assert bound == []
    assert "6 runs at once, each with 3 cores and 1 GPU: 1.0 h if all of that is free at once." in out
    assert "The longest run needs 2 starts of 30 min" in out
    assert "6 runs would hold a GPU without using it" in out


def test_plan_tells_what_simulates(tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]) -> None:
    """CartPole of EnvPool, of Gymnasium in place and in processes has a speed each; others calibrate theirs."""
    finished_run(tmp_path, "a", 400.0)  # of a version that knew EnvPool alone
    finished_run(tmp_path, "b", 200.0, backend="gymnasium")
    finished_run(tmp_path, "c", 100.0, backend="gymnasium", simulate="processes")
    words = ("algo=paac", "budget.frames=720000", "--runs", str(tmp_path))
    found = []
    for more in ((), ("env.backend=gymnasium",), ("env.backend=gymnasium", "env.simulate=processes")):
        rows, _ = planned(capsys, *words, *more)
        found.append((rows[0][1], rows[0][7], rows[0][13]))
    assert found == [
        ("CartPole-v1", "400", "1 finished runs"),
        ("CartPole-v1 (gymnasium)", "200", "1 finished runs"),
        ("CartPole-v1 (gymnasium, processes)", "100", "1 finished runs"),
    ]
    assert plan.task_of({"id": "my_module:MyEnv", "backend": None}) == "my_module:MyEnv (gymnasium)"
    assert plan.task_of({"id": "my_module:MyEnv", "backend": "envpool"}) == "my_module:MyEnv"
    slow = {"distribution": "lognormal", "mean_seconds": 0.005, "deviation_seconds": 0.02}
    assert plan.task_of({"id": "CartPole-v1", "step_time": slow}) == "CartPole-v1 + 0.005 ± 0.02 s, lognormal"
    assert plan.task_of({"id": "CartPole-v1", "step_time": {"distribution": "none"}}) == "CartPole-v1"
    assert bound == []


def test_plan_from_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]) -> None:
    words = ("atari57", "algo=a3c,ga3c,paac", "--launcher", "slurm_cpu", "--runs", str(tmp_path))
    rows, out = planned(capsys, *words)
    assert [row[0] for row in rows] == ["a3c", "ga3c", "paac", "in all"]
    assert len(bound) == 3  # once for each kind, whatever the game and the seed
    assert {config.device for config in bound} == {"cpu"}
    # 200M frames at 4 x 250 frames/s: 55.6 hours, of 57 x 5 runs
    assert rows[2][5:10] == ["285", "200,000,000", "1,000", "2.3 d", "659.7 d"]
    assert rows[3][6] == "171,000,000,000"
    assert float(rows[2][12]) > 1.0  # 285 x (2 checkpoints of nips, and its tables)
    assert "Calibrated speeds are the serial bound" in out


def test_plan_counts_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]) -> None:
    finished_run(tmp_path, "one", 100.0)
    finished_run(tmp_path, "eight", 400.0, ranks=8)
    words = ("algo=paac", "seed=0,1", "budget.frames=1440000", "--runs", str(tmp_path), "--launcher", "slurm_gpu")
    words = (*words, "hydra.launcher.gpus_per_node=4", "hydra.launcher.cpus_per_task=3")
    rows, out = planned(capsys, *words, "hydra.launcher.nodes=2")
    # 1,440,000 frames at 400 frames/s: one hour; two of them on 2 x 4 ranks with 3 cores and 1 GPU each
    assert rows[0][4:13] == ["32", "8", "2", "1,440,000", "400", "1.0 h", "2.0 h", "48", "16"]
    assert rows[1][6:8] == ["2", "2,880,000"]
    assert "2 runs at once, each with 24 cores and 8 GPUs on 2 nodes: 1.0 h if all of that is free at once." in out
    assert bound == []
    rows, _ = planned(capsys, *words)  # of four ranks there is no run: four times the bound of one
    assert (rows[0][5], rows[0][8], rows[0][14]) == ("4", "1,000", "calibrated here, 4 times")
    assert len(bound) == 1


def test_plan_refuses_what_the_launcher_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["algo=dqn", "--launcher", "local", "hydra.launcher.ranks=2"]) == 2
    assert "algo=dqn does not train on several ranks" in capsys.readouterr().err
    assert plan.main(["algo=paac", "ranks=2", "--launcher", "slurm_cpu"]) == 2
    assert "ranks=2 contradicts hydra.launcher.nodes=1" in capsys.readouterr().err


def test_plan_of_a_budget_of_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]) -> None:
    words = ("budget.frames=500_000", "budget.wall_clock_seconds=7200", "seed=0,1", "--runs", str(tmp_path))
    rows, _ = planned(capsys, *words)
    assert rows[0][8:10] == ["33 min", "1.1 h"]  # 500,000 frames at 250 frames/s come first
    rows, _ = planned(capsys, *words, "budget.frames=null", "algo.optimizer.anneal=false")
    assert rows[0][8:10] == ["2.0 h", "4.0 h"]


def test_plan_says_what_it_does_and_measures_each_kind_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]
) -> None:
    words = ("algo=paac", "env.game=Pong,Qbert", "env=atari", "budget.frames=4000,8000", "seed=0,1")
    assert plan.main([*words, "--runs", str(tmp_path)]) == 0
    assert len(bound) == 1  # of two budgets
    assert capsys.readouterr().err.splitlines() == [
        "sweeps.plan: composing the runs",
        f"sweeps.plan: 8 runs of 2 kinds; reading finished runs in {tmp_path}",
        "sweeps.plan: paac on Atari, network nips, 4 runs",
        "sweeps.plan: measuring the speed of paac on this machine",
        "sweeps.plan: paac on Atari, network nips, 4 runs",
    ]


def test_plan_of_seconds_is_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]) -> None:
    rows, _ = planned(capsys, "budget.frames=90", "--runs", str(tmp_path))
    assert rows[0][8:11] == ["<1 s", "<1 s", "<0.01"]
    costs = [
        (plan.kind_of(compose([])), 1, plan.Cost(1.0, 0.5, 0.1, "")),
    ]
    (first, *_) = plan.notes(costs, plan.Resources(1, 1, 4, None))
    assert first == "1 run at once, each with 1 core and 1 GPU: 30 min if all of that is free at once."


def test_plan_keeps_the_launcher_that_the_sweep_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]
) -> None:
    words = ("algo=paac", "hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=7", "--runs", str(tmp_path))
    _, out = planned(capsys, *words)
    assert "each with 7 cores:" in out
    _, out = planned(capsys, "algo=paac", "--launcher", "slurm_gpu", "--runs", str(tmp_path))
    assert "each with 8 cores and 1 GPU:" in out


@pytest.mark.parametrize("network", ["nature_dueling", "nips"])
def test_plan_of_a_network_that_is_the_algorithms_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config], network: str
) -> None:
    rows, _ = planned(capsys, "algo=dqn", "env=pong", f"network={network}", "--runs", str(tmp_path))
    assert rows[0][:3] == ["dqn", "Atari", network.split("_")[0]]


def test_plan_counts_replays_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: list[Config]) -> None:
    words = ("env=pong", "algo=dqn,gorila,pgql", "algo.replay.capacity_agent_steps=100000", "--runs", str(tmp_path))
    gigabytes = {}
    for storage in ("memory", "memmap"):
        rows, _ = planned(capsys, f"algo.replay.storage={storage}", *words)
        assert [row[0] for row in rows] == ["dqn", "gorila", "pgql", "in all"]
        gigabytes |= {(row[0], storage): float(row[12]) for row in rows[:3]}
    for algo in ("dqn", "pgql"):
        assert gigabytes[algo, "memmap"] - gigabytes[algo, "memory"] == pytest.approx(0.71, abs=0.05)  # 100,000 frames
    assert gigabytes["gorila", "memmap"] - gigabytes["gorila", "memory"] > 0.7


def test_plan_of_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["no_such_sweep"]) == 2
    assert "sweeps=no_such_sweep is not known" in capsys.readouterr().err
    assert plan.main(["headline", "--launcher", "slrm"]) == 2
    assert "hydra/launcher=slrm is not known: did you mean slurm" in capsys.readouterr().err
