"""What a run does when it is stopped or fails, and how it goes on: what is tried again, counted once, refused."""

import json
import logging
import math
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from a3c_bench import train as train_module
from a3c_bench.core.losses import ActorCriticLoss
from a3c_bench.errors import CheckpointError, DivergedError, RunDirectoryError
from a3c_bench.evaluation import EvaluationResult
from a3c_bench.runtime import checkpoint
from a3c_bench.runtime.directory import RunDirectory, read_status
from a3c_bench.schema import Config
from a3c_bench.train import train

NAN_LOSS = ActorCriticLoss(*torch.full((4,), float("nan"), requires_grad=True).unbind())


# --- stopping and going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP])
def test_a_stopped_run_goes_on_to_its_budget(
    tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None], sent: signal.Signals
) -> None:
    undisturbed = train(tiny, tmp_path / "undisturbed")
    stop_at_update(13, sent)
    stopped = train(tiny, tmp_path / "stopped")
    assert (stopped["state"], stopped["stop_signal"], stopped["updates"]) == ("preempted", sent.name, 13)
    saved = checkpoint.load(tmp_path / "stopped" / "checkpoint" / "latest.pt")
    assert saved["counters"] == {key: stopped[key] for key in ("frames", "agent_steps", "updates")}
    status = train(tiny, tmp_path / "stopped")
    assert (status["state"], status["attempts"]) == ("finished", 2)
    assert abs(status["frames"] - undisturbed["frames"]) < 2 * 5  # phantom steps may fall elsewhere
    assert abs(status["updates"] - undisturbed["updates"]) <= 3
    assert status["wall_seconds"] > stopped["wall_seconds"]
    metrics = pd.read_csv(tmp_path / "stopped" / "metrics.csv")
    assert metrics["frames"].is_monotonic_increasing
    assert metrics["frames"].is_unique
    assert metrics["updates"].tolist().count(13) == 1


def test_a_second_interrupt_ends_a_run_at_once(tiny: Config, tmp_path: Path, at_update: Callable[..., None]) -> None:
    def interrupt() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    at_update(13, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path)
    status = read_status(tmp_path)
    assert (status["state"], status["error"]) == ("failed", "KeyboardInterrupt: ")
    assert train(tiny, tmp_path)["state"] == "finished"
    assert pd.read_csv(tmp_path / "metrics.csv")["frames"].is_unique


def test_a_stop_during_the_last_evaluation_repeats_it(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train_module.evaluate

    def stopped(config: Config, network: Any, seed: Any, interrupted: Callable[[], bool]) -> EvaluationResult | None:
        signal.raise_signal(signal.SIGTERM)
        return real(config, network, seed, interrupted)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "evaluate", stopped)
        status = train(tiny, tmp_path)
    assert (status["state"], status["frames"] >= 400) == ("preempted", True)
    assert len(pd.read_csv(tmp_path / "eval.csv")) == 0
    again = train(tiny, tmp_path)
    assert (again["state"], again["frames"]) == ("finished", status["frames"])
    assert len(pd.read_csv(tmp_path / "eval.csv")) == 3


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_finished_run_is_left_alone(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_checkpoint: bool
) -> None:
    """Without its checkpoint too: results are not lost since somebody made room, or moved the tables alone."""
    first = train(tiny, tmp_path)
    if not has_checkpoint:
        (tmp_path / "checkpoint" / "latest.pt").unlink()
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".log"}
    monkeypatch.setattr(train_module, "_train", None)  # calling it would be an error
    assert train(tiny, tmp_path) == first
    assert {file: file.read_bytes() for file in files} == files


def test_a_finished_run_without_its_checkpoint_does_not_go_on(tiny: Config, tmp_path: Path) -> None:
    train(tiny, tmp_path)
    (tmp_path / "checkpoint" / "latest.pt").unlink()
    tables = {file: file.read_bytes() for file in tmp_path.glob("*.*") if file.suffix != ".log"}
    longer = replace(tiny, budget=replace(tiny.budget, frames=2 * (tiny.budget.frames or 0)))
    with pytest.raises(RunDirectoryError, match="holds a finished run without its checkpoint"):
        train(longer, tmp_path)
    assert {file: file.read_bytes() for file in tables} == tables


def test_lost_time_is_counted_once(tiny: Config, tmp_path: Path, at_update: Callable[..., None]) -> None:
    """A kill loses what came after the checkpoint; a start that fails before it trains loses nothing more."""

    def fail() -> None:
        raise RuntimeError("killed")

    at_update(5, fail)
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny, tmp_path)
    lost = {"wall_seconds": 50.0}  # what a kill long after the checkpoint leaves
    (tmp_path / "status.json").write_text(json.dumps(read_status(tmp_path) | lost))
    for _ in range(2):
        at_update(1, fail)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny, tmp_path)
    assert read_status(tmp_path)["lost_wall_seconds"] == pytest.approx(50.0, abs=1.0)


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [50, 10_000])
def test_a_diverged_run_fails_and_keeps_its_checkpoint(
    tiny: Config, tmp_path: Path, at_update: Callable[..., None], interval: int
) -> None:
    at_update(24, lambda: NAN_LOSS)
    config = replace(tiny, metrics_interval_frames=interval)
    with pytest.raises(DivergedError, match=r"loss became nan before frame \d+: the run diverged\."):
        train(config, tmp_path)
    status = read_status(tmp_path)
    assert status["state"] == "failed"
    assert status["error"].startswith("DivergedError: loss became nan")
    assert "Traceback" in status["traceback"]
    assert status["attempts"] == 1
    saved = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")
    rows = pd.read_csv(tmp_path / "metrics.csv")["updates"].tolist()
    assert saved["counters"]["updates"] == (rows[-1] if rows else 0) < 24
    assert len(rows) == (4 if interval == 50 else 0)
    assert all(torch.isfinite(value).all() for value in saved["parts"]["network"].values())
    assert not (tmp_path / "checkpoint" / "best.pt").exists()


def test_a_diverged_run_is_tried_again_only_when_asked(
    tiny: Config, tmp_path: Path, at_update: Callable[..., None]
) -> None:
    at_update(24, lambda: NAN_LOSS)
    with pytest.raises(DivergedError):
        train(tiny, tmp_path)
    told = read_status(tmp_path)
    assert (told["state"], told["diverged"]) == ("failed", True)
    with pytest.raises(DivergedError, match=r"diverged and is not tried again unless retry_diverged=true \(.*nan"):
        train(tiny, tmp_path)
    assert read_status(tmp_path) == told
    status = train(replace(tiny, retry_diverged=True), tmp_path)
    assert (status["state"], status["attempts"], status["error"]) == ("finished", 2, None)
    assert not math.isnan(status["final"]["evaluation_mean_return"])


def test_a_run_that_failed_otherwise_is_tried_again(
    tiny: Config, tmp_path: Path, at_update: Callable[..., None]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by hand")

    at_update(24, fail)
    with pytest.raises(ZeroDivisionError):
        train(tiny, tmp_path)
    assert read_status(tmp_path)["diverged"] is False
    status = train(tiny, tmp_path)
    assert (status["state"], status["attempts"], status["error"]) == ("finished", 2, None)


# --- the best network -----------------------------------------------------------------------------------------------


def best_of(path: Path) -> tuple[float, int]:
    saved = checkpoint.load(path / "checkpoint" / "best.pt")
    return saved["best_return"], saved["counters"]["updates"]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the evaluations to come will find, in their order."""
    coming: list[float] = []

    def evaluate(*arguments: Any) -> EvaluationResult:
        games = [{"episode_return": coming[0], "episode_length": 1}]
        return EvaluationResult(games, {"evaluation_mean_return": coming.pop(0)})

    monkeypatch.setattr(train_module, "evaluate", evaluate)
    return coming


def test_the_best_network_is_never_of_a_part_that_was_lost(
    tiny: Config, tmp_path: Path, at_update: Callable[..., None], scores: list[float]
) -> None:
    """A run dies after a good evaluation and before its next checkpoint; it goes on from that evaluation."""

    def die() -> None:
        raise RuntimeError("killed")

    config = replace(tiny, checkpoint_interval_seconds=1e6, evaluation=replace(tiny.evaluation, interval_frames=100))
    scores += [1.0, 9.0]  # at 100 and 200 frames
    at_update(25, die)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path)
    latest = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")
    kept = best_of(tmp_path)
    assert kept == (latest["best_return"], latest["counters"]["updates"])
    assert (kept[0], 20 <= kept[1] < 25) == (9.0, True)
    scores += [3.0, 4.0, 4.0]
    status = train(config, tmp_path)
    assert (status["state"], best_of(tmp_path)) == ("finished", kept)
    assert pd.read_csv(tmp_path / "eval.csv")["episode_return"].max() == 9.0


def test_a_best_network_that_a_kill_kept_from_being_copied(tiny: Config, tmp_path: Path, scores: list[float]) -> None:
    scores += [9.0]
    train(tiny, tmp_path)
    best = tmp_path / "checkpoint" / "best.pt"
    whole = best_of(tmp_path)
    for content in (None, b"old"):
        best.unlink() if content is None else best.write_bytes(content)
        (tmp_path / "status.json").write_text('{"state": "running"}')
        scores += [1.0]
        train(tiny, tmp_path)
        assert best_of(tmp_path) == whole


def test_a_best_network_of_an_older_version_that_was_lost_is_replaced(
    tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None], scores: list[float]
) -> None:
    stop_at_update(13)
    train(tiny, tmp_path)
    folder = tmp_path / "checkpoint"
    saved = checkpoint.load(folder / "latest.pt")
    later = saved | {"best_return": 99.0, "counters": saved["counters"] | {"updates": 30}}
    checkpoint.save(folder / "best.pt", later)
    scores += [5.0]
    assert train(tiny, tmp_path)["state"] == "finished"
    score, updates = best_of(tmp_path)
    assert (score, updates > 30) == (5.0, True)


def test_any_other_error_is_on_record(tiny: Config, tmp_path: Path, at_update: Callable[..., None]) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by hand")

    at_update(3, fail)
    with pytest.raises(ZeroDivisionError):
        train(tiny, tmp_path)
    status = read_status(tmp_path)
    assert (status["state"], status["error"]) == ("failed", "ZeroDivisionError: by hand")
    assert "by hand" in status["traceback"]
    assert "ZeroDivisionError: by hand" in (tmp_path / "a3c_bench.log").read_text()


def test_the_directory_is_let_go_after_a_failure(tiny: Config, tmp_path: Path, at_update: Callable[..., None]) -> None:
    at_update(3, lambda: NAN_LOSS)
    with pytest.raises(DivergedError):
        train(replace(tiny, metrics_interval_frames=10), tmp_path)
    RunDirectory(tmp_path, asdict(replace(tiny, metrics_interval_frames=10))).close()


def test_log_handlers_and_levels_come_back(tiny: Config, tmp_path: Path) -> None:
    package = logging.getLogger("a3c_bench")
    before = package.handlers[:], package.level
    train(tiny, tmp_path)
    assert (package.handlers, package.level) == before
    assert "evaluation return" in (tmp_path / "a3c_bench.log").read_text()


@pytest.mark.parametrize("other", [{"n_envs": 3}, {"t_max": 7}])
def test_another_configuration_is_refused(tiny: Config, tmp_path: Path, other: dict[str, int]) -> None:
    train(tiny, tmp_path)
    (key, value), *_ = other.items()
    with pytest.raises(RunDirectoryError, match=rf"algo\.{key}: {getattr(tiny.algo, key)} there, {value} asked"):
        train(replace(tiny, algo=replace(tiny.algo, **other)), tmp_path)


def test_a_checkpoint_of_another_network_is_refused(
    tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None]
) -> None:
    stop_at_update(3)
    train(tiny, tmp_path)
    file = tmp_path / "checkpoint" / "latest.pt"
    saved = checkpoint.load(file)
    saved["parts"]["network"] = {"other.weight": torch.zeros(2)}
    checkpoint.save(file, saved)
    with pytest.raises(CheckpointError, match=r"latest\.pt does not fit this run") as refused:
        train(tiny, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_another_algorithm_is_refused(
    tiny: Config, tmp_path: Path, stop_at_update: Callable[..., None]
) -> None:
    stop_at_update(3)
    train(tiny, tmp_path)
    file = tmp_path / "checkpoint" / "latest.pt"
    checkpoint.save(file, checkpoint.load(file) | {"algorithm": "dqn"})
    with pytest.raises(CheckpointError, match="is a checkpoint of dqn, not of paac: remove it to start anew"):
        train(tiny, tmp_path)
