"""GA3C: its rollouts, its update against a naive one, V-trace, its lag and what is done about it, and whole runs."""

import functools
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from common import FakeSession, small

from a3c_bench import train as train_module
from a3c_bench.acting.slots import Experience
from a3c_bench.algos import ga3c, settings
from a3c_bench.algos.ga3c import (
    GA3CConfig,
    Predictor,
    Trainer,
)
from a3c_bench.algos.settings import AdjustConfig
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.rollout import Batch
from a3c_bench.core.transfer import Transfer
from a3c_bench.errors import ConfigError
from a3c_bench.parallel.tally import EARLIER
from a3c_bench.runtime import clock
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import (
    AdvantageConfig,
    BudgetConfig,
    Config,
    EvaluationConfig,
    LagConfig,
    NetworkConfig,
    OptimizerConfig,
)
from a3c_bench.train import train

CONSTANT = OptimizerConfig(lr=0.01, epsilon=0.1, anneal=False)
SMALL = small(
    GA3CConfig(n_agents=6, prediction_batch=2, log_epsilon=0.0, optimizer=CONSTANT),
    network=NetworkConfig(hidden_sizes=(8,), initialisation="fan_in"),
    evaluation=EvaluationConfig(n_games=2, n_envs=2, interval_frames=400),
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


class Rollout(NamedTuple):
    """What a slot holds: L steps of one agent."""

    observations: torch.Tensor  # [L, ...]
    state: torch.Tensor  # [S]
    actions: torch.Tensor  # [L]
    log_probs: torch.Tensor  # [L, A]
    rewards: torch.Tensor  # [L]
    terminated: bool
    truncated: bool
    bootstrap: float
    stamps: torch.Tensor  # [L, 3]


class Parts:
    """A predictor and a trainer on one theta, in this thread."""

    def __init__(self, config: Config, seconds: float = 0.0) -> None:
        torch.set_num_threads(1)
        # By one thread, so that agents come back in one order; and with slots for all that a test holds.
        config = replace(
            config, env=replace(config.env, n_threads=1), algo=replace(config.algo, training_queue_size=3000)
        )
        self.staff = ga3c.assemble(config, FakeSession(config, seconds=seconds))  # type: ignore[arg-type]
        self.theta, self.statistics, self.tally = self.staff.theta, self.staff.statistics, self.staff.tally
        self.experience, self.agents = self.staff.experience, self.staff.agents
        self.predictor, self.trainer = self.staff.make_predictor(), self.staff.make_trainer()
        self.games: list[tuple[int, int]] = []  # agent and length of each
        self.staff.envs.start()

    def rollout(self, slot: int) -> Rollout:
        """What a slot holds."""
        e, n = self.experience, self.experience.lengths[slot]
        rows = (e.observations, e.actions, e.log_probs, e.rewards, e.stamps)
        observations, actions, log_probs, rewards, stamps = (torch.from_numpy(part[:n, slot]) for part in rows)
        ended = bool(e.terminated[slot]), bool(e.truncated[slot])
        state = torch.from_numpy(e.state[slot])
        return Rollout(observations, state, actions, log_probs, rewards, *ended, float(e.bootstrap[slot]), stamps)

    def turn(self) -> list[tuple[int, int]]:
        """What one turn of a predictor gives: agents and slots."""
        step = self.agents.envs.receive()
        self.games += [(game.env_id, game.episode_length) for game in step.episodes]
        agent_of = dict(zip(self.agents.slots.tolist(), range(len(self.agents.slots)), strict=True))
        return [(agent_of[slot], slot) for slot in self.predictor.turn(step) or ()]

    def collect(self, n: int) -> list[int]:
        """Slots with n rollouts."""
        slots: list[int] = []
        while len(slots) < n:
            slots += [slot for _, slot in self.turn()]
        return slots[:n]

    def rollouts(self, slots: list[int]) -> list[Rollout]:
        return [self.rollout(slot) for slot in slots]


class Trained(NamedTuple):
    """What a trainer says of a batch."""

    n_samples: int
    n_discarded: int
    n_unusable: int
    updated: bool
    metrics: dict[str, Any]
    fit: Any
    lag: dict[str, Any]


def learn(trainer: Trainer, slots: list[int]) -> Trained:
    """One batch, and what is reported of it alone."""
    trainer.notes.take()
    trainer.learn(slots)
    report = trainer.notes.take()
    (n_discarded, n_samples), (n_unusable, _) = (report.ratios[f"{what}_share"] for what in ("discarded", "unusable"))
    parts = (dict(of[0]) if of else {} for of in (report.figures, report.lags))
    metrics, lag = parts
    fit = report.fits[0] if report.fits else None
    return Trained(int(n_samples), int(n_discarded), int(n_unusable), report.n_updates == 1, metrics, fit, lag)


# --- experience -------------------------------------------------------------------------------------------------------


def test_every_agents_steps_follow_each_other_and_each_is_learnt_from_once() -> None:
    """CartPole moves by x' = x + 0.02 v: so no row is missing, doubled or another agent's, the last ones included."""
    parts = Parts(SMALL)
    rollouts: dict[int, list[Rollout]] = {i: [] for i in range(6)}
    for _ in range(900):
        for agent, slot in parts.turn():
            rollouts[agent].append(parts.rollout(slot))
    n_steps = n_games = 0
    for agent, own in rollouts.items():
        games, length, last = [], 0, None
        for rollout in own:
            observations = rollout.observations if last is None else torch.cat([last, rollout.observations])
            torch.testing.assert_close(observations[1:, 0], observations[:-1, 0] + 0.02 * observations[:-1, 1])
            length += len(rollout.actions)
            last = rollout.observations[-1:]
            assert (rollout.rewards == 1.0).all()
            if rollout.terminated or rollout.truncated:
                games.append((agent, length))
                n_steps, length, last = n_steps + length, 0, None
            else:
                assert len(rollout.actions) == 5
        assert games == [game for game in parts.games if game[0] == agent]
        n_steps += length
        n_games += len(games)
    assert n_games > 30
    assert n_steps + parts.experience.lengths[parts.agents.slots].sum() == parts.tally.agent_steps


def test_the_policy_and_the_state_that_acted_are_kept() -> None:
    parts = Parts(replace(SMALL, network=replace(SMALL.network, lstm_size=5)))
    network = parts.predictor.network
    states: dict[int, torch.Tensor] = {}
    n_continued = 0
    for _ in range(200):
        for agent, slot in parts.turn():
            rollout = parts.rollout(slot)
            state = states.get(agent, network.initial_state(1))
            torch.testing.assert_close(rollout.state, state[0])
            n_continued += agent in states
            with torch.no_grad():
                for t in range(len(rollout.actions)):
                    log_probs, _, state = network(rollout.observations[t : t + 1], state)
                    torch.testing.assert_close(log_probs[0], rollout.log_probs[t])
            states[agent] = state
            if rollout.terminated or rollout.truncated:
                del states[agent]
    assert n_continued > 20


def test_the_bootstrap_is_the_value_of_the_state_after_the_last_step() -> None:
    parts = Parts(with_algo(n_agents=1, prediction_batch=1))
    previous: Rollout | None = None
    for _ in range(60):
        for _, slot in parts.turn():
            rollout = parts.rollout(slot)
            if previous is not None and not previous.terminated:
                with torch.no_grad():
                    value = parts.predictor.network(rollout.observations[:1], torch.zeros(1, 0))[1][0]
                assert previous.bootstrap == pytest.approx(float(value), rel=1e-5, abs=1e-6)
            previous = rollout


@pytest.mark.parametrize("lstm_size", [None, 5])
def test_a_fresh_bootstrap_is_the_value_of_the_same_state_to_theta_as_it_learns(lstm_size: int | None) -> None:
    config = with_algo(stale_bootstrap=False)
    parts = Parts(replace(config, network=replace(config.network, lstm_size=lstm_size)))
    slots = parts.collect(6)
    as_seen = torch.from_numpy(parts.experience.bootstrap[slots].copy())
    values = partial(parts.trainer.learner.values, *parts.experience.ends(slots, Transfer(torch.device("cpu"))))
    torch.testing.assert_close(values(), as_seen)  # theta has not changed yet
    parts.trainer.learn(parts.collect(6))
    fresh, seen = values(), []
    assert not torch.allclose(fresh, as_seen)
    differentiate = parts.trainer.learner.differentiate

    def watch(batch: Batch, keep: torch.Tensor | None = None) -> Any:
        seen.append(batch.bootstrap)
        return differentiate(batch, keep)

    parts.trainer.learner.differentiate = watch  # type: ignore[method-assign]
    parts.trainer.learn(slots)
    torch.testing.assert_close(seen[0], fresh)


def test_merging_pads_at_the_end() -> None:
    parts = Parts(replace(SMALL, network=replace(SMALL.network, lstm_size=5)))
    slots = parts.collect(40)
    rollouts = parts.rollouts(slots)
    assert len({len(rollout.actions) for rollout in rollouts}) > 1
    batch = parts.experience.batch(slots, Transfer(torch.device("cpu")))
    log_probs, _ = parts.predictor.network.unroll(batch.observations, batch.state, ~batch.valid)
    for b, rollout in enumerate(rollouts):
        n = len(rollout.actions)
        assert batch.valid[:, b].tolist() == [True] * n + [False] * (5 - n)
        assert batch.terminated[:, b].sum() == rollout.terminated
        torch.testing.assert_close(log_probs[:n, b], rollout.log_probs)


# --- one update -------------------------------------------------------------------------------------------------------


def test_a_batch_is_filled_up_to_few_shapes() -> None:
    """To t_max, and with rollouts of length 0 to a multiple: what was there is there, the rest counts for nothing."""
    parts = Parts(SMALL)
    slots = parts.collect(3)
    experience, here = parts.experience, Transfer(torch.device("cpu"))
    whole, filled = experience.batch(slots, here), experience.batch(slots, here, unit=4)
    n_steps, n = len(whole.rewards), len(slots)
    assert filled.valid.shape == (experience.t_max, -(-n // 4) * 4)
    for name, part in whole._asdict().items():
        by_rollout = name in ("state", "bootstrap", "lengths")
        there = getattr(filled, name)
        assert torch.equal(there[:n] if by_rollout else there[:n_steps, :n], part), name
    assert int(filled.valid.sum()) == int(whole.valid.sum())
    assert filled.lengths is not None
    assert filled.lengths[n:].tolist() == [0] * (filled.valid.shape[1] - n)


def naive_update(parts: Parts, config: Config, rollouts: list[Rollout], epsilon: float = 0.0) -> torch.Tensor:
    """Theta after one update: summed loss, n-step returns from the acting bootstrap, RMSProp by hand."""
    options, network = config.algo, parts.trainer.network
    total = torch.zeros(())
    for rollout in rollouts:
        log_probs, values = network.unroll(
            rollout.observations.unsqueeze(1), rollout.state.unsqueeze(0), torch.zeros(len(rollout.actions), 1).bool()
        )
        target = 0.0 if rollout.terminated else float(rollout.bootstrap)
        for t in reversed(range(len(rollout.actions))):
            target = float(rollout.rewards[t]) + options.gamma * target
            pi = log_probs[t, 0].exp()
            advantage = target - float(values[t, 0].detach())
            total = total - (pi[rollout.actions[t]] + epsilon).log() * advantage
            total = total + options.entropy_weight * (pi * (pi + epsilon).log()).sum()
            total = total + options.value_weight * (target - values[t, 0]) ** 2
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()))])
    square = parts.statistics.tensors["square"] * 0.99 + 0.01 * gradient**2
    return parts.theta - 0.01 * gradient / torch.sqrt(square + 0.1)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("lstm_size", [None, 5])
def test_one_update_equals_the_papers_sums(lstm_size: int | None, epsilon: float) -> None:
    config = with_algo(log_epsilon=epsilon)
    config = replace(config, network=replace(config.network, lstm_size=lstm_size))
    parts = Parts(config)
    for _ in range(3):
        parts.trainer.learn(parts.collect(4))
    slots = parts.collect(15)
    rollouts = parts.rollouts(slots)
    assert any(rollout.terminated for rollout in rollouts)
    expected = naive_update(parts, config, rollouts, epsilon)
    parts.trainer.learn(slots)
    torch.testing.assert_close(parts.theta, expected, rtol=1e-4, atol=1e-6)


def test_one_long_rollout_is_no_end_for_estimators_that_need_one() -> None:
    parts = Parts(replace(SMALL, advantage=AdvantageConfig(kind="monte_carlo")))
    slots = parts.collect(30)
    rollouts = parts.rollouts(slots)
    trained = learn(parts.trainer, slots)
    usable = sum(len(r.actions) for r in rollouts if r.terminated or r.truncated)
    n_samples = sum(len(r.actions) for r in rollouts)
    assert 0 < usable < n_samples
    assert (trained.n_samples, trained.n_discarded, trained.n_unusable) == (n_samples, 0, n_samples - usable)


# --- lag --------------------------------------------------------------------------------------------------------------


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


FAR = with_algo(optimizer=replace(CONSTANT, lr=0.1))  # far enough to clip ratios
VTRACE = replace(FAR, advantage=AdvantageConfig(kind="vtrace"))


def test_vtrace_changes_what_lag_does() -> None:
    thetas = []
    for config in (FAR, VTRACE):
        parts = Parts(config)
        held = parts.collect(5)
        for _ in range(4):
            parts.trainer.learn(held)
        thetas.append(parts.theta)
    assert not torch.allclose(*thetas, atol=1e-4)


@functools.cache
def learnt(config: Config) -> torch.Tensor:
    """Theta after four updates, the last two from samples that lag behind."""
    parts = Parts(config)
    for _ in range(2):
        parts.trainer.learn(parts.collect(6))
    held = parts.collect(6)
    for _ in range(2):
        parts.trainer.learn(held)
    return parts.theta


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (with_algo(t_max=3), SMALL),
        (with_algo(gamma=0.5), SMALL),
        (with_algo(entropy_weight=0.5), SMALL),
        (with_algo(value_weight=0.01), SMALL),
        (with_algo(loss_reduction="mean"), SMALL),
        (with_algo(loss_reduction="mean_over_envs"), SMALL),
        (with_algo(log_epsilon=0.1), SMALL),
        (with_algo(max_lag_updates=0), SMALL),
        (with_algo(stale_bootstrap=False), SMALL),
        (VTRACE, FAR),
        (replace(FAR, algo=replace(FAR.algo, ratio_clip=0.05)), FAR),
        (replace(VTRACE, advantage=replace(VTRACE.advantage, rho_bar=0.5)), VTRACE),
        (replace(VTRACE, advantage=replace(VTRACE.advantage, c_bar=0.5)), VTRACE),
        (with_algo(optimizer=replace(CONSTANT, kind="adam")), SMALL),
        (with_algo(optimizer=replace(CONSTANT, max_grad_norm=0.01)), SMALL),
        (with_algo(optimizer=replace(CONSTANT, lr_range=(1e-4, 1e-3))), SMALL),
        (with_algo(optimizer=replace(CONSTANT, anneal=True)), SMALL),
        (replace(SMALL, advantage=AdvantageConfig(kind="gae")), SMALL),
        (replace(SMALL, advantage=AdvantageConfig(kind="td")), SMALL),
        (replace(SMALL, network=replace(SMALL.network, lstm_size=4)), SMALL),
        (replace(SMALL, network=replace(SMALL.network, bf16=True)), SMALL),
        (replace(SMALL, seed=1), SMALL),
    ],
    ids=lambda config: "plain" if config is SMALL else str(config.algo) + str(config.advantage) + str(config.network),
)
def test_every_option_changes_what_is_learnt(config: Config, plain: Config) -> None:
    theta, changed = learnt(plain), learnt(config)
    assert theta.shape != changed.shape or not torch.allclose(theta, changed)


def test_vtraces_two_bounds_are_not_each_other() -> None:
    bounded = [replace(VTRACE.advantage, **{bar: 0.5}) for bar in ("rho_bar", "c_bar")]  # type: ignore[arg-type]
    thetas = [learnt(replace(VTRACE, advantage=advantage)) for advantage in bounded]
    assert not torch.allclose(*thetas)


def test_one_seed_gives_one_result_if_nothing_runs_at_once() -> None:
    assert torch.equal(learnt(SMALL), learnt.__wrapped__(SMALL))


def test_the_learning_rate_falls_with_the_frames_of_all_attempts() -> None:
    parts = Parts(with_algo(optimizer=replace(CONSTANT, anneal=True)))
    parts.tally.begin(1000, 0)
    for _ in range(3):
        rate = learn(parts.trainer, parts.collect(3)).metrics["learning_rate"]
        assert parts.tally.frames > 1000
        assert rate == pytest.approx(0.01 * (1 - parts.tally.frames / SMALL.budget.frames))


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
    lag = pd.read_csv(tmp_path / "nstep" / "lag.csv")
    assert (lag.lag_updates_max == 0).all()
    assert (lag.gradient_staleness_updates_max == 0).all()
    assert (lag.lag_kl_nats_max < 1e-6).all()


# --- options and runs -------------------------------------------------------------------------------------------------


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
    status = train(replace(with_algo(**changes), budget=BudgetConfig(frames=800)), tmp_path)
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
    assert 800 <= status["frames"] < 3800
    assert set(pd.read_csv(tmp_path / "eval.csv").final) == {False, True}


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
    train(replace(config, budget=BudgetConfig(frames=1500)), tmp_path)
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
