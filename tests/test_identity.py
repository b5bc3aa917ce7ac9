"""What makes two starts the same run: numbers that a machine decides, settings that only watch, names."""

import json
import logging
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import pandas as pd
import pytest
import torch
import yaml
from turns import take_turns

from a3c_bench import train as train_module
from a3c_bench.algos import a3c, gorila
from a3c_bench.algos.a3c import A3CConfig
from a3c_bench.algos.gorila import GorilaConfig
from a3c_bench.config import load_config
from a3c_bench.errors import DivergedError, RunDirectoryError
from a3c_bench.launch import local, sweep
from a3c_bench.launch.options import LocalOptions
from a3c_bench.launch.points import Point, write_down
from a3c_bench.launch.state import look
from a3c_bench.runtime import machine
from a3c_bench.runtime.directory import RunDirectory, read_status, write_job, write_status
from a3c_bench.runtime.session import Session
from a3c_bench.schema import BudgetConfig, Config, OptimizerConfig
from a3c_bench.train import settled, train
from analysis import load_runs

# --- numbers that a machine decides ---------------------------------------------------------------------------------


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`cores(n)`: this process may use so many from now."""
    return lambda n: monkeypatch.setattr(machine, "usable_cores", lambda: n)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The workers of each start of A3C, which here trains nothing and only counts."""
    numbers: list[int] = []

    def count(config: Config, session: Session) -> None:
        numbers.append(config.algo.n_workers)
        session.begin(network=a3c.assemble(config, session)[0])
        while session.running():
            session.count(10)

    algorithm = replace(a3c.ALGORITHM, train=count)
    monkeypatch.setattr(train_module, "find_algorithm", lambda name: algorithm)
    return numbers


def stopping_at(session_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes at this count of frames, once."""
    real = Session.count

    def count(self: Session, n_agent_steps: int, *episodes: Any) -> None:
        real(self, n_agent_steps, *episodes)
        if self.counters.frames == session_frames:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Session, "count", count)


def workers_of(path: Path) -> Any:
    return yaml.safe_load((path / "config.yaml").read_text())["algo"]["n_workers"]


def test_the_number_of_workers_is_decided_once(
    tiny: Config,
    tmp_path: Path,
    cores: Callable[[int], None],
    seen: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the cores of the first start; a resume on others goes on with as many."""
    config = replace(tiny, algo=A3CConfig())
    stopping_at(100, monkeypatch)
    cores(2)
    assert train(config, tmp_path)["state"] == "preempted"
    assert workers_of(tmp_path) == 2
    cores(5)
    assert train(config, tmp_path)["state"] == "finished"
    assert (seen, workers_of(tmp_path)) == ([2, 2], 2)
    assert [attempt["machine"]["cores"] for attempt in read_status(tmp_path)["history"]] == [2, 5]
    with pytest.raises(RunDirectoryError, match=r"algo\.n_workers: 2 there, 3 asked"):
        train(replace(config, algo=A3CConfig(n_workers=3)), tmp_path)


def test_a_sweep_leaves_the_number_to_the_job(
    tiny: Config, tmp_path: Path, cores: Callable[[int], None], seen: list[int]
) -> None:
    """What is written down before a job starts knows nothing of its cores; a repeated command takes what there is."""
    config = replace(tiny, algo=A3CConfig())
    cores(8)
    write_down([Point(tmp_path, config)])
    assert workers_of(tmp_path) is None
    cores(3)
    train(load_config(tmp_path), tmp_path)
    write_down([Point(tmp_path, config)])
    assert (seen, workers_of(tmp_path)) == ([3], 3)


def test_a_run_of_an_older_version_keeps_the_workers_it_had(
    tiny: Config, tmp_path: Path, cores: Callable[[int], None], seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny, algo=A3CConfig())
    stopping_at(100, monkeypatch)
    cores(2)
    train(config, tmp_path)
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    content["algo"]["n_workers"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    cores(7)
    assert load_config(tmp_path).algo.n_workers is None
    assert train(config, tmp_path)["state"] == "finished"
    assert (seen, workers_of(tmp_path)) == ([2, 2], 2)


def test_analysis_tells_runs_apart_by_it(
    tiny: Config, tmp_path: Path, cores: Callable[[int], None], seen: list[int]
) -> None:
    for n in (1, 2):
        cores(n)
        train(replace(tiny, algo=A3CConfig(), name=str(n)), tmp_path / str(n))
    assert [run.label for run in load_runs(tmp_path)] == ["n_workers=1", "n_workers=2"]


def test_gorilas_bundles_are_decided_together(tiny: Config, tmp_path: Path) -> None:
    def sizes(**said: Any) -> tuple[Any, Any]:
        found = settled(replace(tiny, algo=GorilaConfig(**said)), tmp_path, 3).algo
        return found.n_actors, found.n_learners

    assert (sizes(), sizes(n_learners=2), sizes(n_actors=5)) == ((3, 3), (2, 2), (5, 3))
    many = gorila.resolve(replace(tiny, algo=GorilaConfig()), 1000).algo
    assert many.n_actors == many.n_learners == gorila.MOST_LEARNERS
    there = replace(tiny, algo=GorilaConfig(n_learners=4, n_actors=4))
    RunDirectory(tmp_path, asdict(there)).close()
    assert (sizes(), sizes(n_learners=4), sizes(n_learners=5)) == ((4, 4), (4, 4), (4, 5))


def test_one_worker_is_worth_a_word(
    tiny: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_turns(monkeypatch, a3c)
    config = replace(tiny, algo=A3CConfig(n_workers=1), budget=BudgetConfig(frames=100))
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "worker" in record.getMessage()]
    assert line.startswith("A3C trains with one worker")


# --- attempts -------------------------------------------------------------------------------------------------------


def test_each_attempt_is_on_record(tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None]) -> None:
    stop_at_update(13)
    stopped = train(tiny, tmp_path)
    (first,) = read_status(tmp_path)["history"]
    assert (first["attempt"], first["frames"], first["ended"]) == (1, 0, "preempted")
    write_status(tmp_path, state="running", history=[{key: first[key] for key in first if not key.startswith("ended")}])
    status = train(tiny, tmp_path)
    assert (status["attempts"], status["machine"]) == (2, first["machine"])
    killed, last = status["history"]
    assert killed["ended"] == "killed"
    assert (last["attempt"], last["frames"], last["ended"]) == (2, stopped["frames"], "finished")
    for key in ("machine", "versions", "git_commit", "started_at", "ended_at"):
        assert key in last
    assert last["versions"]["gymnasium"] == gymnasium.__version__
    assert status == read_status(tmp_path)


@pytest.mark.parametrize(("error", "ended"), [(ZeroDivisionError, "failed"), (DivergedError, "diverged")])
def test_a_failed_attempt_is_on_record(
    tiny: Config, tmp_path: Path, at_update: Callable[..., None], error: type[Exception], ended: str
) -> None:
    def fail() -> None:
        raise error("by hand")

    at_update(3, fail)
    with pytest.raises(error):
        train(tiny, tmp_path)
    assert [attempt["ended"] for attempt in read_status(tmp_path)["history"]] == [ended]


# --- settings that only watch ---------------------------------------------------------------------------------------


def longer(config: Config, frames: int) -> Config:
    return replace(config, budget=replace(config.budget, frames=frames))


def test_a_finished_run_goes_on_when_its_budget_is_raised(tiny: Config, tmp_path: Path) -> None:
    first = train(tiny, tmp_path)
    status = train(longer(tiny, 800), tmp_path)
    assert (status["state"], 800 <= status["frames"] < 810) == ("finished", True)
    assert [attempt["frames"] for attempt in status["history"]] == [0, first["frames"]]
    assert [attempt["changed"] for attempt in status["history"]] == [{}, {"budget.frames": [400, 800]}]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["budget"]["frames"] == 800
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics["frames"].is_monotonic_increasing
    rate = metrics.set_index("frames")["learning_rate"]  # means of intervals of 100 frames, annealed over the budget
    lr = tiny.algo.optimizer.lr
    assert rate[first["frames"]] == pytest.approx(lr * (1 - 350 / 400), abs=0.03 * lr)
    after = rate[rate.index > first["frames"]].iloc[0]
    assert after == pytest.approx(lr * (1 - 455 / 800), abs=0.03 * lr)
    (run,) = load_runs(tmp_path)
    games = run.evaluations()
    assert set(games[games["final"]]["frames"]) == {status["frames"]}
    assert set(games["frames"]) == {first["frames"], status["frames"]}


def test_until_it_has_gone_on_it_is_no_finished_run(tiny: Config, tmp_path: Path) -> None:
    train(tiny, tmp_path)
    write_down([Point(tmp_path, longer(tiny, 800))])
    (standing,) = look([tmp_path], {})
    assert (standing.state, standing.is_over) == ("preempted", True)
    assert standing.why == "the budget was raised, not queued"
    write_down([Point(tmp_path, longer(tiny, 900))])
    assert read_status(tmp_path)["changed"] == {"budget.frames": [400, 900]}


def test_a_final_evaluation_is_none_any_more_once_the_run_goes_on(
    tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None]
) -> None:
    train(tiny, tmp_path)
    stop_at_update(10)
    assert train(longer(tiny, 800), tmp_path)["state"] == "preempted"
    (run,) = load_runs(tmp_path)
    assert (len(run.evaluations()), run.evaluations()["final"].any()) == (3, False)
    train(longer(tiny, 800), tmp_path)
    (run,) = load_runs(tmp_path)
    assert run.evaluations()["final"].tolist() == [False] * 3 + [True] * 3


def test_a_budget_below_what_was_run_is_refused(tiny: Config, tmp_path: Path) -> None:
    status = train(tiny, tmp_path)
    with pytest.raises(RunDirectoryError, match=r"holds a run of 40\d frames already, and budget\.frames=200 is less"):
        train(longer(tiny, 200), tmp_path)
    assert read_status(tmp_path) == status


def test_a_lower_budget_that_is_still_ahead_is_taken(
    tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None]
) -> None:
    stop_at_update(13)
    train(tiny, tmp_path)
    status = train(longer(tiny, 200), tmp_path)
    assert (status["state"], 200 <= status["frames"] < 210) == ("finished", True)


def test_a_target_that_is_raised_reopens_and_one_that_is_added_does_not(tiny: Config, tmp_path: Path) -> None:
    algo = replace(tiny.algo, optimizer=OptimizerConfig(anneal=False))
    budget = BudgetConfig(frames=100_000, target_return=1.0)
    config = replace(tiny, algo=algo, budget=budget)
    first = train(config, tmp_path)
    assert train(replace(config, budget=replace(budget, wall_clock_seconds=1e6)), tmp_path)["frames"] == first["frames"]
    frames = first["frames"] + 200
    status = train(replace(config, budget=BudgetConfig(frames=frames, target_return=501.0)), tmp_path)
    assert (status["state"], status["frames"] >= frames) == ("finished", True)


def test_what_only_watches_may_change(tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None]) -> None:
    stop_at_update(13)
    train(tiny, tmp_path)
    evaluation = replace(tiny.evaluation, n_games=1, policy="greedy")
    other = replace(tiny, evaluation=evaluation, metrics_interval_frames=50, lag=replace(tiny.lag, enabled=False))
    status = train(other, tmp_path)
    assert status["state"] == "finished"
    assert json.dumps(asdict(load_config(tmp_path))) == json.dumps(asdict(other))
    assert status["history"][1]["changed"] == {
        "evaluation.n_games": [3, 1],
        "evaluation.policy": ["sample", "greedy"],
        "lag.enabled": [True, False],
        "metrics_interval_frames": [100, 50],
    }
    assert len(pd.read_csv(tmp_path / "eval.csv")) == 1


def test_what_only_watches_changes_nothing_that_is_learnt(tiny: Config, tmp_path: Path) -> None:
    """Bit by bit: so it need not be part of what a run is."""
    evaluation = replace(tiny.evaluation, interval_frames=100, policy="greedy")
    other = replace(tiny, evaluation=evaluation, metrics_interval_frames=50, lag=replace(tiny.lag, enabled=False))
    networks = []
    for name, config in (("one", tiny), ("other", other)):
        train(config, tmp_path / name)
        saved = torch.load(tmp_path / name / "checkpoint" / "latest.pt", weights_only=True)
        networks.append(saved["parts"]["network"])
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])


# --- sweeps, and what the docs say ----------------------------------------------------------------------------------


def test_a_sweep_leaves_diverged_runs_alone_unless_asked(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def run_all(directories: Sequence[Path], *others: Any) -> None:
        started.append([path.name for path in directories])
        for path in directories:  # as the real one does: nobody has them on a list any more
            write_job(path, {})

    monkeypatch.setattr(local, "run_all", run_all)
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_LOOKS", 0.0)
    for name, more in (("diverged", {"diverged": True}), ("raised", {"diverged": False})):
        RunDirectory(tmp_path / name, asdict(tiny)).close()
        write_status(tmp_path / name, state="failed", error="E: x", **more)

    def launch(config: Config) -> int:
        points = [Point(tmp_path / name, config) for name in ("diverged", "raised")]
        return sweep.launch_local(points, LocalOptions(), tmp_path)

    assert launch(tiny) == 1
    assert launch(replace(tiny, retry_diverged=True)) == 1
    assert started == [["raised"], ["diverged", "raised"]]
    assert load_config(tmp_path / "diverged").retry_diverged  # so that the job, which reads it there, tries again


def test_the_line_of_the_docs_finds_every_offline_run(tmp_path: Path) -> None:
    """With overrides in its path and without."""
    docs = (Path(__file__).parents[1] / "docs" / "slurm.md").read_text()
    (line,) = (line.split("  #")[0].strip() for line in docs.splitlines() if "wandb sync" in line)
    for path in ("CartPole-v1/paac/seed0", "CartPole-v1/paac/algo.n_envs=8/seed0"):
        (tmp_path / "runs/default" / path / "wandb/offline-run-1-x").mkdir(parents=True)
    found = subprocess.run(
        ["bash", "-c", line.replace("wandb sync", "echo")], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(found) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("offline-run-*"))
    assert len(found) == 2
