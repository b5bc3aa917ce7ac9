"""A3C: its update against a naive one, its rollouts, its counts, its staleness, and whole runs with processes."""

import functools
import multiprocessing
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from common import FakeSession, small

from a3c_bench import build
from a3c_bench.algos import a3c
from a3c_bench.algos.a3c import A3CConfig, Worker
from a3c_bench.algos.settings import StaleConfig
from a3c_bench.config import compose
from a3c_bench.core.advantages import gae
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import (
    AdvantageConfig,
    BudgetConfig,
    Config,
    EvaluationConfig,
    LagConfig,
    OptimizerConfig,
)
from a3c_bench.train import check_run, train

CONSTANT = OptimizerConfig(lr=0.01, epsilon=0.1, anneal=False)
SMALL = small(
    A3CConfig(n_workers=2, optimizer=CONSTANT),
    evaluation=EvaluationConfig(n_games=2, n_envs=2, interval_frames=400),
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


def make_workers(config: Config, n_workers: int = 1, seconds: float = 0.0) -> list[Worker]:
    """Workers in this process, on one theta."""
    torch.set_num_threads(1)
    config = replace(config, algo=replace(config.algo, n_workers=n_workers))
    _, shared = a3c.assemble(config, FakeSession(config, seconds=seconds))  # type: ignore[arg-type]
    return [Worker(config, shared.for_worker(index), index, attempt=1) for index in range(n_workers)]


# --- one update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lstm_size", [None, 5])
@pytest.mark.parametrize(("reduction", "n_envs"), [("sum", 1), ("mean", 2), ("mean_over_envs", 2)])
def test_one_update_equals_the_papers_sums(
    reduction: str, n_envs: int, lstm_size: int | None, naive_gradient: Any
) -> None:
    """The gradient is of theta', and is applied to what theta has become meanwhile, with RMSProp by hand."""
    clipped = replace(CONSTANT, max_grad_norm=0.05)
    config = with_algo(loss_reduction=reduction, envs_per_worker=n_envs, optimizer=clipped)
    (worker,) = make_workers(replace(config, network=replace(config.network, lstm_size=lstm_size)))
    for _ in range(20):
        worker.update()
    statistics = worker.shared.state.tensors["square"]
    worker.synchronise()
    rollout = worker.actor.act()
    worker.shared.theta.add_(0.1)  # somebody else's update
    theta, square = worker.shared.theta.clone(), statistics.clone()
    total, gradient = naive_gradient(worker.network, rollout, worker.options)
    norm = gradient.norm()
    gradient = gradient * min(1.0, 0.05 / float(norm))
    square = 0.99 * square + 0.01 * gradient**2
    worker.learn(rollout)
    torch.testing.assert_close(worker.shared.theta, theta - 0.01 * gradient / torch.sqrt(square + 0.1))
    torch.testing.assert_close(statistics, square, rtol=1e-4, atol=1e-9)
    metrics = worker.notes.pending.figures[-1]
    torch.testing.assert_close(metrics["gradient_norm"], norm, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(metrics["loss"], total, rtol=1e-4, atol=1e-6)


def test_a_worker_acts_under_its_copy() -> None:
    """Theta may change inside a rollout: the copy does not."""
    (worker,) = make_workers(SMALL)
    worker.synchronise()
    before = worker.parameters.values.detach().clone()
    worker.shared.theta.zero_()
    rollout = worker.actor.act()
    assert torch.equal(worker.parameters.values.detach(), before)
    with torch.no_grad():
        expected, _ = worker.network.unroll(rollout.observations[:-1], rollout.state, torch.zeros(5, 1).bool())
    torch.testing.assert_close(rollout.log_probs, expected)
    worker.synchronise()
    assert worker.parameters.values.abs().max() == 0.0


def test_a_rollout_ends_with_its_episode_and_holds_no_phantom() -> None:
    (worker,) = make_workers(with_algo(t_max=20))
    lengths, n_steps = [], 0
    for _ in range(60):
        worker.synchronise()
        rollout = worker.actor.act()
        batch = rollout.batch()
        ended = (batch.terminated | batch.truncated)[:, 0]
        assert batch.valid.all()
        assert not ended[:-1].any()
        assert rollout.length == 20 or ended[-1]
        lengths.append(rollout.length)
        n_steps += rollout.length
        worker.learn(rollout)
    assert min(lengths) < 20 == max(lengths)
    assert worker.shared.tally.agent_steps == n_steps
    assert sum(episode.episode_length for episode in worker.notes.pending.episodes) <= n_steps
    assert len(worker.notes.pending.episodes) > 5


def test_games_keep_the_counters_of_their_end() -> None:
    """Whatever others do until they are reported."""
    first, second = make_workers(SMALL, 2, seconds=500.0)
    first.shared.tally.begin(1000, 0)
    before = 0
    while len(first.notes.pending.episodes) < 3:
        n_games = len(first.notes.pending.episodes)
        first.update()
        now = first.shared.tally.agent_steps
        games = first.notes.pending.episodes[n_games:]
        assert all(game.ended is not None and game.ended.agent_steps == now for game in games)
        second.update()
    ends = [game.ended for game in first.notes.report().episodes]
    for ended in ends:
        assert ended is not None
        assert ended.frames == ended.agent_steps > before
        assert 500.0 < ended.wall_seconds < 600.0
        before = ended.frames
    assert before < first.shared.tally.agent_steps


def test_several_environments_give_full_rollouts() -> None:
    (worker,) = make_workers(with_algo(envs_per_worker=3, t_max=7))
    for _ in range(30):
        worker.update()
        assert worker.actor.rollout.length == 7
    assert worker.notes.pending.episodes


def test_the_lstms_state_goes_on_from_rollout_to_rollout_and_ends_with_the_game() -> None:
    """Against the same network stepped one observation at a time, bootstrap steps left out."""
    (worker,) = make_workers(replace(SMALL, network=replace(SMALL.network, lstm_size=6)))
    worker.synchronise()
    state, n_games = worker.network.initial_state(1), 0
    with torch.no_grad():
        for _ in range(40):
            rollout = worker.actor.act()
            torch.testing.assert_close(rollout.state, state)
            for t in range(rollout.length):
                log_probs, _, state = worker.network(rollout.observations[t], state)
                torch.testing.assert_close(rollout.log_probs[t], log_probs)
            torch.testing.assert_close(
                rollout.bootstrap, worker.network(rollout.observations[rollout.length], state)[1]
            )
            batch = rollout.batch()
            if (batch.terminated | batch.truncated)[-1]:
                state, n_games = worker.network.initial_state(1), n_games + 1
    assert n_games > 3


# --- lag --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 4])
def test_staleness_is_what_others_applied_meanwhile(k: int) -> None:
    config = replace(with_algo(optimizer=replace(CONSTANT, lr=0.1)), lag=LagConfig(divergence_every_updates=1))
    first, second = make_workers(config, 2)
    for worker in (second, first, second):
        worker.update()
    first.synchronise()
    rollout = first.actor.act()
    frames = first.shared.tally.agent_steps
    for _ in range(k):
        second.update()
    first.learn(rollout)
    lag = first.notes.pending.lags[-1]
    assert lag["lag_gradient_updates"].tolist() == [k] * rollout.length
    assert set(lag["lag_rollout_updates"]) == set(lag["lag_queue_updates"]) == {0}
    assert lag["gradient_staleness_updates"].tolist() == [k]
    assert lag["lag_updates"].tolist() == [k] * rollout.length
    others = first.shared.tally.agent_steps - frames
    assert lag["lag_frames"].tolist() == [others + rollout.length - t for t in range(rollout.length)]
    assert (np.diff(lag["lag_seconds"]) < 0).all()
    if k == 0:
        assert lag["lag_kl_nats"].max() < 1e-6
        np.testing.assert_allclose(lag["importance_ratio"], 1.0, atol=1e-5)
    else:
        assert lag["lag_kl_nats"].max() > 1e-6


def test_what_others_do_while_the_divergence_is_taken_is_in_the_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = replace(CONSTANT, anneal=True)
    config = replace(with_algo(optimizer=optimizer), lag=LagConfig(divergence_every_updates=1))
    first, second = make_workers(config, 2)
    first.synchronise()
    rollout = first.actor.act()
    frames = first.shared.tally.agent_steps
    real = first.shared_network.unroll

    def meanwhile(*arguments: Any) -> Any:
        found = real(*arguments)
        with torch.enable_grad():
            for _ in range(3):
                second.update()
        return found

    monkeypatch.setattr(first.shared_network, "unroll", meanwhile)
    first.learn(rollout)
    lag = first.notes.pending.lags[-1]
    assert lag["gradient_staleness_updates"].tolist() == [3]
    assert lag["lag_updates"].tolist() == [3] * rollout.length
    others = second.notes.pending.n_agent_steps
    assert others > 0
    assert lag["lag_frames"].tolist() == [others + rollout.length - t for t in range(rollout.length)]
    rate = first.notes.pending.figures[-1]["learning_rate"]
    assert float(rate) == pytest.approx(0.01 * (1 - (frames + others) / SMALL.budget.frames))


def test_the_divergence_is_from_theta_just_before_the_update() -> None:
    first, second = make_workers(with_algo(optimizer=replace(CONSTANT, lr=0.3)), 2)
    first.synchronise()
    rollout = first.actor.act()
    for _ in range(5):
        second.update()
    second.synchronise()
    with torch.no_grad():
        seen = rollout.observations[: rollout.length, 0], second.network.initial_state(rollout.length)
        now, values, _ = second.network(*seen)
        _, values_then, _ = first.network(*seen)
    then = rollout.log_probs[: rollout.length, 0].clone()
    first.learn(rollout)
    lag = first.notes.pending.lags[-1]
    expected = (then.exp() * (then - now)).sum(-1)
    torch.testing.assert_close(lag["lag_kl_nats"], expected.clamp(min=0.0), rtol=1e-3, atol=1e-6)
    actions = rollout.actions[: rollout.length]
    torch.testing.assert_close(lag["importance_ratio"], (now - then).gather(1, actions).exp()[:, 0])
    torch.testing.assert_close(lag["value_lag"], (values - values_then).abs())
    assert lag["value_lag"].max() > 1e-3


def test_the_divergence_is_taken_of_one_update_in_so_many() -> None:
    (worker,) = make_workers(replace(SMALL, lag=LagConfig(divergence_every_updates=4)))
    measured = []
    for _ in range(12):  # however often it reports
        worker.update()
        measured.append(any("lag_kl_nats" in lag for lag in worker.notes.report().lags))
    assert measured == [True, False, False, False] * 3
    for _ in range(4):
        worker.update()
    assert ["lag_kl_nats" in lag for lag in worker.notes.pending.lags] == [True, False, False, False]
    (silent,) = make_workers(replace(SMALL, lag=LagConfig(enabled=False)))
    silent.update()
    assert silent.notes.pending.lags == []


@pytest.mark.parametrize("k", [0, 3])
def test_a_stale_gradient_takes_a_shorter_step_and_is_brought_up_to_date(k: int) -> None:
    """By what is known of the others: with none of them neither changes anything."""
    first, second = make_workers(with_algo(stale=StaleConfig(aware=True, delay_compensation=0.5)), n_workers=2)
    first.synchronise()
    rollout = first.actor.act()
    for _ in range(k):
        second.update()
    first.learner.differentiate(rollout.batch())
    first.learner.clip()
    g, step = first.parameters.gradients.clone(), first.learner.step
    moved, applied = first.shared.theta - first.parameters.values.detach(), []

    def noting(lr: float) -> None:
        applied.append(first.parameters.gradients.clone())
        step(lr)

    first.learner.step = noting  # type: ignore[method-assign]
    first.learn(rollout)
    assert bool(moved.any()) == (k > 0)
    torch.testing.assert_close(applied[0], g + 0.5 * g * g * moved)
    assert torch.equal(applied[0], g) == (k == 0)
    assert first.notes.pending.figures[-1]["learning_rate"] == pytest.approx(CONSTANT.lr / (1 + k))


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
