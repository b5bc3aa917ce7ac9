"""The lag of GA3C's samples and gradients: how it is measured, and what is discarded for it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ga3c_parts import SMALL, Parts, learn, with_algo

from a3c_bench import train as train_module
from a3c_bench.algos import ga3c
from a3c_bench.core.networks import ActorCritic
from a3c_bench.parallel.tally import EARLIER
from a3c_bench.runtime import clock
from a3c_bench.schema import AdvantageConfig, BudgetConfig, EvaluationConfig, LagConfig
from a3c_bench.train import train


@torch.no_grad()
def values_of(network: ActorCritic, observations: list[torch.Tensor]) -> torch.Tensor:
    """V of all of them."""
    seen = torch.cat(observations)
    return network(seen, network.initial_state(len(seen)))[1]


@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_delay_of_k_updates_is_measured_as_k(k: int) -> None:
    parts = Parts(SMALL)
    held = parts.collect(4)
    seen = [rollout.observations for rollout in parts.rollouts(held)]
    then = values_of(parts.trainer.network, seen)
    for _ in range(k):
        parts.trainer.learn(held)
    n_samples = int(parts.experience.lengths[held].sum())
    now = values_of(parts.trainer.network, seen)
    lag = learn(parts.trainer, held).lag
    assert lag["lag_queue_updates"].tolist() == [k] * n_samples
    assert set(lag["lag_rollout_updates"]) == set(lag["lag_gradient_updates"]) == {0}
    torch.testing.assert_close(lag["value_lag"].sort()[0], (now - then).abs().sort()[0], rtol=1e-4, atol=1e-6)
    assert (lag["value_lag"].max() > 1e-4) == (k > 0)
    assert lag["lag_updates"].tolist() == [k] * n_samples
    assert lag["gradient_staleness_updates"].tolist() == [0]
    assert len(lag["lag_kl_nats"]) == len(lag["importance_ratio"]) == n_samples
    assert (lag["lag_kl_nats"].max() < 1e-6) == (k == 0)
    assert (lag["lag_seconds"] > 0).all()
    frames = parts.tally.frames
    expected = [frames - f for rollout in parts.rollouts(held) for f in rollout.stamps[:, 1].tolist()]
    assert sorted(lag["lag_frames"]) == sorted(expected)


def test_a_gradient_is_as_stale_as_what_others_applied_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(SMALL)
    other = parts.staff.make_trainer()
    first, second = parts.collect(2), parts.collect(2)
    real = parts.trainer.learner.differentiate

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        other.learn(second)
        return found

    monkeypatch.setattr(parts.trainer.learner, "differentiate", meanwhile)
    lag = learn(parts.trainer, first).lag
    assert lag["gradient_staleness_updates"].tolist() == [1]
    assert set(lag["lag_updates"]) == set(lag["lag_gradient_updates"]) == {1}


def test_games_keep_the_counters_of_their_end() -> None:
    parts = Parts(SMALL, seconds=7.0)
    parts.tally.begin(1000, 0)
    reports: list[Any] = []
    while not any(report.episodes for report in reports):
        step = parts.agents.envs.receive()
        parts.predictor.answer(step)
        n = parts.tally.frames
        parts.tally.add(EARLIER, agent_steps=50)  # others go on while this one waits for room in the queue
        parts.predictor.act(step, parts.predictor.predict(step))
        parts.agents.experience.lengths[:] = 0  # nobody learns from them
        reports.append(parts.predictor.report())
    for game in reports[-1].episodes:
        assert game.ended is not None
        assert game.ended[:2] == (n, n)
        assert 7.0 < game.ended.wall_seconds < 107.0
    assert parts.predictor.report().episodes == []


def test_nothing_is_done_between_the_stamp_and_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others apply while the divergence is computed either comes after the step or is in the lag."""
    parts = Parts(SMALL)
    other = parts.staff.make_trainer()
    first, second = parts.collect(2), parts.collect(2)
    real, step = ga3c.divergence, parts.trainer.learner.optimizer.step
    at_step: list[int] = []

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(ga3c, "divergence", real)
        other.learn(second)
        return real(*arguments)

    def apply() -> None:
        at_step.append(parts.tally.version)
        step()

    monkeypatch.setattr(ga3c, "divergence", meanwhile)
    monkeypatch.setattr(parts.trainer.learner.optimizer, "step", apply)
    lag = learn(parts.trainer, first).lag
    assert parts.tally.version == 2
    assert lag["gradient_staleness_updates"].tolist() == at_step
    assert set(lag["lag_updates"]) == set(at_step)


def test_rollouts_that_are_wholly_discarded_do_not_shorten_the_step() -> None:
    parts = Parts(with_algo(max_lag_updates=1, loss_reduction="mean_over_envs"))
    old = parts.collect(3)
    for _ in range(2):
        parts.trainer.learn(parts.collect(2))
    parts.collect(6)  # those that began before the updates
    young, theta = parts.collect(4), parts.theta.clone()
    trained = learn(parts.trainer, old + young)
    gradients = parts.trainer.parameters.gradients.clone()
    assert trained.n_discarded == parts.experience.lengths[old].sum()
    parts.theta.copy_(theta)
    parts.tally.add(1, updates=-1)
    assert learn(parts.trainer, young).n_discarded == 0
    assert gradients.norm() > 0.0
    torch.testing.assert_close(gradients, parts.trainer.parameters.gradients)


def test_samples_beyond_the_bound_are_discarded() -> None:
    parts = Parts(with_algo(max_lag_updates=1))
    old = parts.collect(3)
    for _ in range(2):
        parts.trainer.learn(parts.collect(2))
    young = parts.collect(3)  # some began before those updates
    before, version = parts.theta.clone(), parts.tally.version
    trained = learn(parts.trainer, old)
    assert not trained.updated
    assert trained.n_discarded == trained.n_samples > 0
    assert torch.equal(parts.theta, before)
    assert parts.tally.version == version
    trained = learn(parts.trainer, old + young)
    both = parts.rollouts(old + young)
    fresh = sum(int((version - rollout.stamps[:, 0] <= 1).sum()) for rollout in both)
    assert trained.updated
    assert len(trained.lag["lag_updates"]) == fresh
    assert trained.lag["lag_updates"].max() <= 1
    assert trained.n_samples == sum(len(rollout.actions) for rollout in both)
    assert trained.n_discarded == trained.n_samples - fresh
    assert trained.n_unusable == 0
    assert not torch.equal(parts.theta, before)


def test_shares_are_of_all_samples_those_of_discarded_batches_too() -> None:
    parts = Parts(replace(with_algo(max_lag_updates=0), advantage=AdvantageConfig(kind="monte_carlo")))
    old, young = parts.collect(10), parts.collect(10)
    trainer, noted = parts.trainer, []
    for slots in (young, old, young):  # the first gives an update: the others are too old for any
        noted.append(learn(trainer, slots))
    trainer.learn(old)
    trainer.learn(young)
    assert noted[0].updated
    assert noted[0].n_unusable > 0
    assert [(trained.n_discarded, trained.updated) for trained in noted[1:]] == [
        (int(parts.experience.lengths[slots].sum()), False) for slots in (old, young)
    ]
    n = int(parts.experience.lengths[old + young].sum())
    assert trainer.notes.take().ratios["discarded_share"] == (n, n)


@pytest.mark.parametrize("kind", ["monte_carlo", "baseline"])
def test_the_share_of_unusable_rollouts_is_recorded(kind: str, tmp_path: Path) -> None:
    """With one rollout to a batch, each batch is usable or gives no update."""
    train(replace(with_algo(min_training_batch=1), advantage=AdvantageConfig(kind=kind)), tmp_path)
    assert 0.3 < pd.read_csv(tmp_path / "metrics.csv").unusable_share.mean() < 1.0


class Jumping:
    """The clock of this machine, and what has been added to it."""

    added = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.added


def test_an_evaluation_is_no_lag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts that waited in the queue for 1000 s meanwhile are no older for it, and nobody waited."""
    real, jumping = train_module.evaluate, Jumping()

    def slow(*arguments: Any) -> Any:
        jumping.added += 1000.0
        return real(*arguments)

    monkeypatch.setattr(clock, "time", jumping)
    monkeypatch.setattr(train_module, "evaluate", slow)
    status = train(replace(SMALL, evaluation=EvaluationConfig(n_games=2, n_envs=2, interval_frames=700)), tmp_path)
    assert len(pd.read_csv(tmp_path / "eval.csv").frames.unique()) == 2
    lag = pd.read_csv(tmp_path / "lag.csv")
    assert lag.lag_seconds_max.min() >= 0.0
    assert lag.lag_seconds_max.max() < status["wall_seconds"] < 900.0
    shares = pd.read_csv(tmp_path / "metrics.csv").filter(regex="^share_(simulate|predict|train|wait)$")
    assert shares.sum(axis=1).to_numpy() == pytest.approx(np.ones(len(shares)), abs=1e-4)
    assert shares.share_simulate.max() < 0.95


def test_lag_can_be_switched_off() -> None:
    parts = Parts(replace(SMALL, lag=LagConfig(enabled=False)))
    trained = learn(parts.trainer, parts.collect(3))
    assert (trained.lag, trained.updated) == ({}, True)


@pytest.mark.parametrize("kind", ["nstep", "gae", "td", "monte_carlo", "baseline", "vtrace", "q"])
def test_what_is_learnt_from_is_what_is_counted(kind: str) -> None:
    """The trainer knows the mask of the loss without waiting for it."""
    parts = Parts(replace(with_algo(max_lag_updates=1), advantage=AdvantageConfig(kind=kind)))
    held = parts.collect(10)
    for _ in range(3):
        slots = parts.collect(20)
        parts.trainer.learn(slots)
    trained = learn(parts.trainer, held + slots)
    n_learnt = trained.n_samples - trained.n_discarded - trained.n_unusable
    assert int(trained.fit[2].sum()) == n_learnt == len(trained.lag["lag_updates"])
    assert trained.n_samples > n_learnt > 0


def lock_step(tmp_path: Path, advantage: str = "nstep", **changes: Any) -> torch.Tensor:
    """Theta after a run without lag."""
    name = ",".join(f"{key}={value}" for key, value in changes.items()) or advantage
    config = replace(with_algo(synchronous=True, **changes), budget=BudgetConfig(frames=600))
    train(replace(config, advantage=AdvantageConfig(kind=advantage)), tmp_path / name)
    parts = torch.load(tmp_path / name / "checkpoint" / "latest.pt", weights_only=True)["parts"]
    return torch.cat([tensor.flatten() for tensor in parts["network"].values()])


def test_without_lag_nothing_that_is_done_about_it_changes_anything(tmp_path: Path) -> None:
    plain = lock_step(tmp_path)
    assert torch.equal(lock_step(tmp_path, max_lag_updates=0), plain)
    torch.testing.assert_close(lock_step(tmp_path, stale_bootstrap=False), plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(lock_step(tmp_path, "vtrace"), plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(lock_step(tmp_path, log_epsilon=1e-9), plain, rtol=1e-3, atol=1e-4)
    lag = pd.read_csv(tmp_path / "nstep" / "lag.csv").dropna(subset=["lag_updates_max"])  # some intervals learn nothing
    assert len(lag) > 0
    assert (lag.lag_updates_max == 0).all()
    assert (lag.gradient_staleness_updates_max == 0).all()
    assert (lag.lag_kl_nats_max < 1e-6).all()
