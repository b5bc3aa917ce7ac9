"""Whole runs of GA3C: what is refused, threads that take turns, counts, and going on from a checkpoint."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ga3c_parts import CONSTANT, SMALL, with_algo

from a3c_bench.acting.slots import Experience
from a3c_bench.algos import settings
from a3c_bench.algos.ga3c import Predictor, Trainer
from a3c_bench.algos.settings import AdjustConfig
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import AdvantageConfig, BudgetConfig, Config, LagConfig
from a3c_bench.train import train


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (with_algo(min_training_batch=31), "at most 30"),
        (replace(SMALL, advantage=AdvantageConfig(kind="total_reward")), "which algo=ga3c does not keep"),
        (with_algo(prediction_batch=7), "more than there are agents"),
        (with_algo(prediction_batch=6), "without any"),
        (with_algo(synchronous=True, adjust=AdjustConfig(enabled=True)), "one thread of each kind"),
        (with_algo(n_trainers=9, adjust=AdjustConfig(enabled=True)), "more than algo.adjust.max_trainers=8"),
        (with_algo(adjust=AdjustConfig(enabled=True, max_agents=5)), "more than algo.adjust.max_agents=5"),
        (
            with_algo(adjust=AdjustConfig(max_mean_lag_updates=2.5)),
            "no effect without algo.adjust.enabled=true",
        ),
        (
            replace(
                with_algo(adjust=AdjustConfig(enabled=True, max_mean_lag_updates=2.0)), lag=LagConfig(enabled=False)
            ),
            "algo.adjust.max_mean_lag_updates=2 has no effect without lag.enabled=true",
        ),
    ],
)
def test_what_cannot_run_is_refused(config: Config, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"min_training_batch": 30}, {"n_agents": 1, "prediction_batch": 1, "t_max": 1}], ids=str
)
def test_rounds_of_phantoms_do_not_stop_the_lock_step(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A round with a phantom in it is smaller than the others, and may be empty."""
    status = train(replace(with_algo(synchronous=True, **changes), budget=BudgetConfig(frames=400)), tmp_path)
    assert status["state"] == "finished"
    assert len(pd.read_csv(tmp_path / "episodes.csv")) > 5


@pytest.mark.parametrize("take_turns", [True, False])
def test_threads_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take_turns: bool) -> None:
    """Two predictors and two trainers, each of whom rests amid its work."""
    present: list[str] = []
    met: set[int] = set()

    def rests(kind: Any, name: str) -> None:
        real = getattr(kind, name)

        def work(self: Any, *arguments: Any) -> Any:
            present.append(name)
            met.add(len(present))
            time.sleep(0.002)
            found = real(self, *arguments)
            present.remove(name)
            return found

        monkeypatch.setattr(kind, name, work)

    rests(Predictor, "turn")
    rests(Experience, "batch")  # of a trainer's turn, which is another's while torch goes backward
    config = with_algo(take_turns=take_turns, n_predictors=2, n_trainers=2)
    assert train(replace(config, budget=BudgetConfig(frames=300)), tmp_path)["state"] == "finished"
    assert (met == {1}) is take_turns


def test_small_networks_on_a_cpu_take_turns_by_default() -> None:
    def takes(n_parameters: int, device: str = "cpu", **changes: Any) -> bool:
        return settings.takes_turns(with_algo(**changes).algo, device, n_parameters)

    assert takes(4_675)  # CartPole's
    assert not takes(677_943)  # Pong's
    assert not takes(4_675, "cuda")
    assert not takes(4_675, take_turns=False)
    assert takes(677_943, "cuda", take_turns=True)


def test_more_predictors_than_agents_to_go_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the queue is full each may hold the rollouts of a step, so that some are of one agent."""
    real = Trainer.learn

    def slow(self: Trainer, *arguments: Any) -> None:
        time.sleep(0.02)
        real(self, *arguments)

    monkeypatch.setattr(Trainer, "learn", slow)
    changes = {"n_agents": 8, "prediction_batch": 4, "n_predictors": 8, "t_max": 1, "n_trainers": 1}
    config = replace(with_algo(**changes, training_queue_size=1), budget=BudgetConfig(frames=150))
    assert train(config, tmp_path)["state"] == "finished"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training_queue_size": 1, "t_max": 1},
        {"min_training_batch": 20, "n_trainers": 1, "n_predictors": 3},
        {"prediction_batch": 6, "n_predictors": 1, "n_trainers": 4},
        {"n_agents": 64, "prediction_batch": None},
        pytest.param({"optimizer": replace(CONSTANT, kind="adam", lr=1e-3)}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_counts_every_step_and_update(tmp_path: Path, changes: dict[str, Any]) -> None:
    n_frames = 2000  # more than all agents and queues hold at once, so that an evaluation comes in between
    status = train(replace(with_algo(**changes), budget=BudgetConfig(frames=n_frames)), tmp_path)
    assert status["state"] == "finished"
    assert [t.name for t in threading.enumerate() if t.name.startswith("a3c_bench")] == []
    lag = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    assert lag["lag_updates"] == lag["lag_frames"] == lag["lag_kl_nats"] == lag["importance_ratio"]
    assert lag["lag_updates"] <= status["agent_steps"]
    assert lag["gradient_staleness_updates"] == status["updates"]
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    gained = metrics.updates.diff().fillna(metrics.updates[0])
    assert (metrics.training_batch * gained).sum() == pytest.approx(lag["lag_updates"], rel=1e-4)
    options = with_algo(**changes).algo
    assert metrics.training_batch.min() >= options.min_training_batch
    assert metrics.training_queue_depth.max() <= options.training_queue_size
    assert n_frames <= status["frames"] < n_frames + 3000
    assert set(pd.read_csv(tmp_path / "eval.csv").final) == {False, True}


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    config = replace(SMALL, budget=BudgetConfig(frames=400))
    train(config, tmp_path)
    first = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    status = read_status(tmp_path)
    (tmp_path / "status.json").write_text((tmp_path / "status.json").read_text().replace("finished", "preempted"))
    again = train(config, tmp_path)
    second = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert (again["frames"], again["updates"]) == (status["frames"], status["updates"])
    for name, part in first["parts"].items():
        for key, tensor in part.items():
            assert torch.equal(tensor, second["parts"][name][key])
    assert np.isfinite(again["final"]["evaluation_mean_return"])
