"""GA3C's numbers of agents, predictors and trainers, which are adjusted while it runs."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from ga3c_parts import SMALL, Parts, with_algo

from a3c_bench.algos.settings import AdjustConfig
from a3c_bench.schema import BudgetConfig
from a3c_bench.train import train


def test_agents_are_parked_and_woken_at_the_start_of_a_rollout() -> None:
    parts = Parts(SMALL)
    agents = parts.agents

    def turns(n: int) -> set[int]:
        at_work = set()
        for _ in range(n):
            step = agents.envs.receive()
            at_work |= set(step.env_ids.tolist())
            parts.predictor.turn(step)
        return at_work

    assert turns(30) == set(range(6))
    agents.n_wanted = 3
    turns(30)
    assert agents.n_working == 3
    at_work = turns(60)
    assert len(at_work) == 3
    parked = sorted(set(range(6)) - at_work)
    assert (parts.experience.lengths[agents.slots[parked]] == 0).all()
    agents.n_wanted = 5
    assert len(turns(60)) == 5
    agents.n_wanted = 6
    assert turns(60) == set(range(6))


def test_sizes_are_adjusted_while_it_runs(tmp_path: Path) -> None:
    """Threads come and go, agents are parked and woken, and still every step and update is counted once."""
    adjust = AdjustConfig(enabled=True, window_seconds=0.05, max_predictors=3, max_trainers=3)
    config = with_algo(adjust=adjust, training_queue_size=2)
    status = train(replace(config, budget=BudgetConfig(frames=3000)), tmp_path)
    windows = pd.read_csv(tmp_path / "adjustments.csv")
    assert len(windows) > 5
    tried = windows[["n_agents", "n_predictors", "n_trainers"]]
    assert len(tried.drop_duplicates()) > 2
    assert (tried.min() >= [2, 1, 1]).all()
    assert (tried.max() <= [12, 3, 3]).all()
    judged = windows.dropna(subset=["tps_before"])
    assert (judged.kept == (judged.tps > judged.tps_before)).all()
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics[["n_agents", "n_predictors", "n_trainers"]].drop_duplicates().shape[0] > 1
    assert metrics[["share_predictors_wait", "share_trainers_wait"]].min().min() >= 0
    lag = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    assert lag["gradient_staleness_updates"] == status["updates"]
    assert 3000 - 400 < lag["lag_updates"] <= status["agent_steps"]
    assert [t.name for t in threading.enumerate() if t.name.startswith("a3c_bench")] == []


def test_sizes_are_adjusted_within_a_bound_on_lag(tmp_path: Path) -> None:
    """The table tells what each decision rests on."""
    bound = 1.0
    adjust = AdjustConfig(
        enabled=True, window_seconds=0.05, max_predictors=3, max_trainers=3, max_mean_lag_updates=bound
    )
    config = with_algo(adjust=adjust, training_queue_size=4, min_training_batch=10)
    budget = BudgetConfig(frames=1_000_000, wall_clock_seconds=1.5)  # 30 windows on any machine
    train(replace(config, budget=budget), tmp_path)
    windows = pd.read_csv(tmp_path / "adjustments.csv")
    lag = pd.read_csv(tmp_path / "lag.csv")
    assert windows.lag_updates_mean.between(0.0, lag.lag_updates_max.max()).any()
    lags = windows.lag_updates_mean.fillna(np.inf)
    assert (lags > bound).any()
    home, n_judged = 0, 0
    for i in windows.index:
        if not np.isnan(windows.tps_before[i]):
            slow = windows.tps[i] <= windows.tps[home]
            better = lags[i] < lags[home] if lags[home] > bound else lags[i] <= bound and not slow
            assert windows.kept[i] == better
            n_judged += 1
        if windows.kept[i]:
            home = i
    assert n_judged > 3
