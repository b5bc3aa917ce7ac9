"""A3C: every option, what it refuses, and whole runs with processes."""

import functools
import multiprocessing
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from a3c_parts import CONSTANT, SMALL, make_workers, with_algo

from a3c_bench import build
from a3c_bench.config import compose
from a3c_bench.core.advantages import gae
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import (
    AdvantageConfig,
    BudgetConfig,
    Config,
)
from a3c_bench.train import check_run, train

# --- options ----------------------------------------------------------------------------------------------------------


def test_statistics_are_shared_or_one_each() -> None:
    for shared_statistics in (True, False):
        workers = make_workers(with_algo(shared_statistics=shared_statistics), 2)
        workers[0].update()
        squares = [next(iter(worker.learner.optimizer.state.values()))["square"] for worker in workers]
        assert (squares[0] is squares[1]) == shared_statistics
        assert (squares[1].max() > 0.0) == shared_statistics


@functools.cache
def trained(config: Config) -> torch.Tensor:
    first, second = make_workers(config, 2)
    for _ in range(6):
        first.update()
        second.update()
    return first.shared.theta


@pytest.mark.parametrize(
    "config",
    [
        with_algo(envs_per_worker=2),
        with_algo(t_max=3),
        with_algo(gamma=0.5),
        with_algo(entropy_weight=0.5),
        with_algo(value_weight=0.01),
        with_algo(loss_reduction="mean"),
        with_algo(log_epsilon=0.1),
        with_algo(shared_statistics=False),
        with_algo(optimizer=replace(CONSTANT, kind="adam")),
        with_algo(optimizer=replace(CONSTANT, max_grad_norm=0.01)),
        with_algo(optimizer=replace(CONSTANT, lr_range=(1e-4, 1e-3))),
        with_algo(optimizer=replace(CONSTANT, anneal=True)),
        replace(SMALL, advantage=AdvantageConfig(kind="gae")),
        replace(SMALL, advantage=AdvantageConfig(kind="td")),
        replace(SMALL, advantage=AdvantageConfig(kind="q")),
        replace(SMALL, network=replace(SMALL.network, lstm_size=4)),
        replace(SMALL, seed=1),
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(config: Config) -> None:
    plain, changed = trained(SMALL), trained(config)
    assert plain.shape != changed.shape or not torch.allclose(plain, changed)


def test_one_seed_gives_one_result_if_nothing_runs_at_once() -> None:
    assert torch.equal(trained(SMALL), trained.__wrapped__(SMALL))


def test_the_learning_rate_falls_with_what_all_have_done() -> None:
    """On the global counter, which goes on from earlier attempts."""
    first, second = make_workers(with_algo(optimizer=replace(CONSTANT, anneal=True)), 2)
    second.shared.tally.begin(1000, 0)
    for worker in (first, second, second, first):
        worker.update()
        frames = 1000 + first.notes.pending.n_agent_steps + second.notes.pending.n_agent_steps
        rate = float(worker.notes.pending.figures[-1]["learning_rate"])
        assert rate == pytest.approx(0.01 * (1 - frames / SMALL.budget.frames))


def test_with_a_lock_one_at_a_time_reads_or_changes_theta() -> None:
    (worker,) = make_workers(with_algo(lock=True))
    lock = worker.shared.lock
    assert lock is not None
    rollout = worker.actor.act()
    for work in (worker.synchronise, partial(worker.learn, rollout)):
        theta, copied = worker.shared.theta.clone(), worker.parameters.values.clone()
        thread = threading.Thread(target=work)
        with lock:
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()
            assert torch.equal(worker.shared.theta, theta)
            assert torch.equal(worker.parameters.values, copied)
            worker.shared.theta.add_(1.0)  # so that there is something to synchronise
        thread.join(10.0)
        assert not thread.is_alive()
    assert worker.n_updates == 1
    assert torch.equal(worker.parameters.values, copied)


def test_adam_shares_its_moments_and_its_step() -> None:
    first, second = make_workers(with_algo(optimizer=replace(CONSTANT, kind="adam")), 2)
    first.update()
    second.update()
    state = first.shared.state.tensors
    assert state["step"] == 2.0
    assert state["exp_avg_sq"].max() > 0.0


def test_the_universe_preset_is_what_it_says() -> None:
    (worker,) = make_workers(compose(["experiment=universe", "algo=a3c", "advantage.gae_lambda=0.9"]))
    assert worker.network.lstm is not None
    estimate = worker.learner.estimate.function
    assert isinstance(estimate, partial)
    assert (estimate.func, estimate.keywords) == (gae, {"gamma": 0.99, "gae_lambda": 0.9})
    assert isinstance(worker.learner.optimizer, torch.optim.Adam)
    before = worker.shared.theta.clone()
    worker.update()
    assert worker.notes.pending.n_agent_steps == 20
    step = (worker.shared.theta - before).abs().max()
    assert step == pytest.approx(1e-4, rel=0.01)  # the first step of Adam


def test_the_learning_rate_is_drawn_log_uniformly_by_the_seed() -> None:
    optimizer = replace(CONSTANT, lr_range=(1e-4, 1e-2))
    drawn = [build.make_schedule(replace(with_algo(optimizer=optimizer), seed=seed))(0) for seed in range(400)]
    assert 1e-4 <= min(drawn) < max(drawn) <= 1e-2
    assert 0.45 < np.mean(np.array(drawn) < 1e-3) < 0.55
    assert build.make_schedule(with_algo(optimizer=optimizer))(0) == drawn[0]


def test_what_a3c_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="CPU cores"):
        check_run(replace(SMALL, device="cuda"))
    with pytest.raises(ConfigError, match="lr_range"):
        check_run(with_algo(optimizer=replace(CONSTANT, lr_range=(1e-2, 1e-4))))


# --- whole runs, with processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [False, True])
def test_a_run_counts_every_step_and_update(tmp_path: Path, lock: bool) -> None:
    status = train(with_algo(lock=lock), tmp_path)
    assert status["state"] == "finished"
    assert multiprocessing.active_children() == []
    assert 1200 <= status["frames"] < 4200
    lag = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    assert lag["lag_updates"] == lag["lag_frames"] == lag["lag_seconds"] == status["agent_steps"]
    assert lag["gradient_staleness_updates"] == status["updates"]
    assert 0 < lag["lag_kl_nats"] < status["agent_steps"]
    episodes = pd.read_csv(tmp_path / "episodes.csv")
    assert (episodes.frames.between(episodes.episode_length, status["frames"])).all()
    assert (episodes.wall_seconds.between(0.0, status["wall_seconds"])).all()
    assert episodes.frames.nunique() > 0.9 * len(episodes)
    assert status["agent_steps"] - 2 * 500 <= episodes.episode_length.sum() <= status["agent_steps"]
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics.frames.is_monotonic_increasing
    assert (metrics[["loss", "entropy_nats", "gradient_norm", "learning_rate"]].notna()).all(axis=None)
    assert set(pd.read_csv(tmp_path / "eval.csv").final) == {False, True}


def test_one_worker_is_never_stale(tmp_path: Path) -> None:
    train(replace(with_algo(n_workers=1), budget=BudgetConfig(frames=600)), tmp_path)
    lag = pd.read_csv(tmp_path / "lag.csv")
    assert (lag.gradient_staleness_updates_max == 0).all()
    assert (lag.lag_updates_max == 0).all()
    assert (lag.lag_kl_nats_max.dropna() < 1e-6).all()


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    config = replace(with_algo(shared_statistics=False), budget=BudgetConfig(frames=400))
    train(config, tmp_path)
    first = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    status = read_status(tmp_path)
    (tmp_path / "status.json").write_text((tmp_path / "status.json").read_text().replace("finished", "preempted"))
    again = train(config, tmp_path)  # the budget is spent already: nothing is trained
    second = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert (again["frames"], again["updates"]) == (status["frames"], status["updates"])
    assert set(first["parts"]) == {"network", "statistics_0", "statistics_1"}
    for name, part in first["parts"].items():
        for key, tensor in part.items():
            assert torch.equal(tensor, second["parts"][name][key])


def test_more_workers_than_cores(tmp_path: Path) -> None:
    config = replace(with_algo(n_workers=4, t_max=1), budget=BudgetConfig(frames=500), metrics_interval_frames=100)
    assert train(config, tmp_path)["state"] == "finished"
