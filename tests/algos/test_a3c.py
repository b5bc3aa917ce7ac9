"""A3C: its update against a naive one, its rollouts, its counts and its staleness."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from a3c_parts import CONSTANT, SMALL, make_workers, with_algo

from a3c_bench.algos.settings import StaleConfig
from a3c_bench.schema import (
    LagConfig,
)

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
