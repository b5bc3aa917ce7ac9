"""Gorila: its update by hand, shards, staleness, outliers, every switch, whole runs with processes, and faults."""

import functools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from common import FakeSession, small

from a3c_bench.algos import gorila
from a3c_bench.algos.gorila import Bundle, GorilaConfig, Shard, make_roles
from a3c_bench.algos.settings import GorilaReplayConfig, StaleConfig
from a3c_bench.core.outliers import LossWatch
from a3c_bench.errors import ConfigError
from a3c_bench.parallel.bundles import Roles, Shared
from a3c_bench.parallel.tally import EARLIER
from a3c_bench.runtime.machine import allow_many_files
from a3c_bench.runtime.session import Session
from a3c_bench.schema import (
    BudgetConfig,
    Config,
    LagConfig,
    OptimizerConfig,
)
from a3c_bench.train import check_run, train

REPLAY = GorilaReplayConfig(capacity_agent_steps=600, learning_starts_agent_steps=40, batch_size=8)
OPTIMIZER = OptimizerConfig(kind="adagrad", lr=0.05, epsilon=1e-3, initial_square=0.1, anneal=False)
SMALL = small(
    GorilaConfig(
        n_learners=2,
        n_shards=2,
        target_period_updates=10,
        refresh_period_agent_steps=12,
        epsilon_horizon_updates=50,
        replay=REPLAY,
        optimizer=OPTIMIZER,
    ),
    budget=BudgetConfig(frames=1000),
    metrics_interval_frames=250,
    checkpoint_interval_seconds=1e-6,
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


def with_replay(**changes: Any) -> Config:
    return with_algo(replay=replace(REPLAY, **changes))


class Parts(NamedTuple):
    """All of a run but its parent and its processes."""

    shared: Shared
    bundles: list[Bundle]
    shards: list[Shard]

    def serve(self) -> None:
        """Every gradient that waits is applied."""
        while self.shared.server.waiting.any():
            for index, shard in enumerate(self.shards):
                if self.shared.server.waiting[:, index].any():
                    shard.serve()

    def run(self, n_updates: int) -> None:
        """Everybody in turn, so that one seed gives one result."""
        for _ in range(10_000):
            for bundle in self.bundles:
                bundle.work()
                self.serve()
            if int(self.shared.server.versions[0]) >= n_updates:
                return
        raise AssertionError("nothing is learnt")


def make_parts(config: Config, directory: Path = Path("nowhere")) -> Parts:
    torch.set_num_threads(1)
    _, shared, replays = gorila.assemble(config, FakeSession(config, directory))  # type: ignore[arg-type]
    shared.wait_until_filled(replays, config.algo.replay.learning_starts_agent_steps)
    bundles = [Bundle(config, shared, index, attempt=1) for index in range(shared.roles.n_bundles)]
    return Parts(shared, bundles, [Shard(config, shared, index) for index in range(shared.roles.n_shards)])


# --- one update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("kind", ["adagrad", "rmsprop"])
def test_one_update_by_hand(kind: str, n_shards: int) -> None:
    """The gradient at the learner's theta', clipped, and the shards' formula on what theta has become meanwhile."""
    optimizer = replace(OPTIMIZER, kind=kind, decay=0.95, centered=True, max_grad_norm=0.5)
    parts = make_parts(with_algo(n_learners=1, n_shards=n_shards, optimizer=optimizer))
    parts.run(15)
    (bundle,), server = parts.bundles, parts.shared.server
    learner = bundle.learner
    assert learner is not None
    generator = np.random.default_rng()
    generator.bit_generator.state = learner.sampling.bit_generator.state
    learner.transport.fetch(learner.parameters.values.data)
    assert torch.equal(learner.parameters.values, server.theta)
    learner.parameters.zero_gradients()
    sample = bundle.replay.sample(8, generator)
    learner.q_learner.differentiate(sample)
    gradient = learner.parameters.gradients.clone()
    gradient *= min(1.0, 0.5 / float(gradient.norm()))
    states = [shard.optimizer.state[shard.theta] for shard in parts.shards]
    square = torch.cat([state["sum" if kind == "adagrad" else "square"] for state in states])
    assert learner.transport.room(0.0)
    learner.learn()
    server.theta += 0.1  # somebody else's update
    if kind == "adagrad":
        step = 0.05 * gradient / ((square + gradient**2).sqrt() + 1e-3)
    else:
        mean = 0.95 * torch.cat([state["mean"] for state in states]) + 0.05 * gradient
        step = 0.05 * gradient / (0.95 * square + 0.05 * gradient**2 - mean**2 + 1e-3).sqrt()
    expected = server.theta - step
    parts.serve()
    torch.testing.assert_close(server.theta, expected, rtol=1e-4, atol=1e-6)
    assert server.versions.tolist() == [16] * n_shards


@functools.cache
def learnt(config: Config, n_updates: int = 24) -> torch.Tensor:
    parts = make_parts(config)
    parts.run(n_updates)
    return parts.shared.server.theta.clone()


def test_into_how_many_shards_theta_is_cut_changes_nothing() -> None:
    one = learnt(with_algo(n_shards=1))
    for n_shards in (2, 5):
        torch.testing.assert_close(learnt(with_algo(n_shards=n_shards)), one)


def test_one_seed_gives_one_result_if_nothing_runs_at_once() -> None:
    assert torch.equal(learnt(SMALL), learnt.__wrapped__(SMALL))


@pytest.mark.parametrize(
    "config",
    [
        with_algo(n_learners=1),
        with_algo(n_actors=3),
        with_algo(envs_per_actor=2),
        with_algo(gamma=0.5),
        with_algo(n_step=2),
        with_algo(double=True),
        with_algo(update_period_agent_steps=2),
        with_algo(target_period_updates=3),
        with_algo(td_error_clip=0.1),
        with_algo(loss_reduction="mean"),
        with_algo(epsilon_start=0.5),
        with_algo(epsilon_end=0.9),
        with_algo(epsilon_horizon_updates=1000),
        with_replay(kind="global"),
        with_replay(batch_size=4),
        with_replay(capacity_agent_steps=30),
        with_replay(learning_starts_agent_steps=80),
        with_algo(optimizer=replace(OPTIMIZER, kind="rmsprop")),
        with_algo(optimizer=replace(OPTIMIZER, kind="adam")),
        with_algo(optimizer=replace(OPTIMIZER, max_grad_norm=0.01)),
        with_algo(optimizer=replace(OPTIMIZER, anneal=True)),
        replace(SMALL, network=replace(SMALL.network, dueling=True)),
        replace(SMALL, seed=1),
    ],
    ids=lambda config: str(config.algo) + str(config.network.dueling) + str(config.seed),
)
def test_every_option_changes_what_is_learnt(config: Config) -> None:
    plain, changed = learnt(SMALL), learnt(config)
    assert plain.shape != changed.shape or not torch.allclose(plain, changed)


# --- who there is -----------------------------------------------------------------------------------------------------


def test_bundles_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    roles = make_roles(GorilaConfig(n_learners=3))
    assert roles == Roles(n_actors=3, n_learners=3, n_shards=1, envs_per_actor=1, one_replay=False)
    assert roles.names == ["bundle 0", "bundle 1", "bundle 2", "shard 0"]
    assert [roles.users(i) for i in range(roles.n_replays)] == [[0], [1], [2]]
    for n_cores, n_bundles in ((7, 7), (128, gorila.MOST_LEARNERS)):
        monkeypatch.setattr(gorila, "usable_cores", lambda n=n_cores: n)
        assert make_roles(GorilaConfig()).n_bundles == n_bundles


@pytest.mark.parametrize(
    ("roles", "names", "users", "n_envs"),
    [
        (Roles(3, 1, 2, 2, False), ["bundle 0", "actor 1", "actor 2", "shard 0", "shard 1"], [[0, 1, 2]], [6]),
        (Roles(1, 3, 1, 1, False), ["bundle 0", "learner 1", "learner 2", "shard 0"], [[0, 1, 2]], [1]),
        (Roles(5, 2, 1, 4, False), ["bundle 0", "bundle 1", "actor 2", "actor 3", "actor 4", "shard 0"],
         [[0, 2, 4], [1, 3]], [12, 8]),
        (Roles(2, 2, 1, 1, True), ["bundle 0", "bundle 1", "shard 0"], [[0, 1]], [2]),
    ],
)  # fmt: skip
def test_numbers_are_free(roles: Roles, names: list[str], users: list[list[int]], n_envs: list[int]) -> None:
    assert roles.names == names
    assert [roles.users(i) for i in range(roles.n_replays)] == users
    assert [roles.n_envs(i) for i in range(roles.n_replays)] == n_envs


@pytest.mark.parametrize("kind", ["local", "global"])
@pytest.mark.parametrize(("n_actors", "n_learners"), [(2, 2), (3, 1), (1, 3), (3, 2)])
def test_gradients_keep_step_with_agent_steps(n_actors: int, n_learners: int, kind: str) -> None:
    """One for four agent steps of a replay, but for those that are due at this moment; and every step is stored."""
    config = with_algo(n_actors=n_actors, n_learners=n_learners, replay=replace(REPLAY, kind=kind))
    parts = make_parts(config)
    parts.run(60)
    roles, tally = parts.shared.roles, parts.shared.tally
    for index in range(roles.n_replays):
        users = roles.users(index)
        n_steps, n_gradients = tally.of(users)
        due = (n_steps - -(-40 // roles.n_replays)) // 4
        assert -n_learners < due - n_gradients <= 2 * n_learners + 1
        assert 0 <= n_steps - len(parts.bundles[users[0]].replay) <= roles.n_envs(index)
    each = [tally.of([index]) for index in range(roles.n_bundles)]
    assert [n_steps > 0 for n_steps, _ in each] == [index < n_actors for index in range(roles.n_bundles)]
    assert all(n_gradients == 0 for _, n_gradients in each[n_learners:])


def test_a_shared_replay_holds_what_all_actors_did() -> None:
    parts = make_parts(with_algo(n_actors=3, n_learners=1, envs_per_actor=2))
    parts.run(20)
    replay = parts.bundles[2].replay
    sample = replay.sample(500, np.random.default_rng(0))
    assert set((sample.indices % replay.n_envs).tolist()) == set(range(6))
    x, v, angle, angular_velocity = sample.observations.T  # the laws of CartPole: no step leads into another game
    torch.testing.assert_close(sample.next_observations[:, 0], x + 0.02 * v)
    torch.testing.assert_close(sample.next_observations[:, 2], angle + 0.02 * angular_velocity)


# --- the target network, actors' copies, and epsilon ------------------------------------------------------------------


def test_the_target_network_is_renewed_by_the_server() -> None:
    parts = make_parts(with_algo(n_learners=1))
    server, (bundle,) = parts.shared.server, parts.bundles
    assert bundle.learner is not None
    target, theta_then = server.target.clone(), server.theta.clone()
    for version in range(1, 31):
        parts.run(version)
        theta_now = server.theta.clone()
        if version % 10 == 0:
            assert torch.equal(server.target, theta_now)
            assert not torch.equal(theta_now, theta_then)
            target = theta_now
        assert torch.equal(server.target, target)
        if version % 10 == 1:  # the learner's next gradient uses it
            assert torch.equal(bundle.learner.target_parameters.values, target)


def test_actors_refresh_their_copy_now_and_then() -> None:
    parts = make_parts(with_algo(n_learners=1))
    (bundle,) = parts.bundles
    actor = bundle.actor
    assert actor is not None
    changes, versions = [], []
    for step in range(60):
        before = actor.parameters.values.detach().clone()
        parts.shared.server.theta += 0.01
        parts.shared.server.versions += 1
        actor.step()
        if not torch.equal(before, actor.parameters.values):
            changes.append(step)
            versions.append(bundle.notes.version)
    assert np.diff(changes).min() >= 12  # phantom steps make it a little more
    assert np.diff(changes).max() <= 15
    assert versions == [step + 1 for step in changes]


def test_epsilon_falls_with_the_updates_of_the_server() -> None:
    options = GorilaConfig(epsilon_start=1.0, epsilon_end=0.2, epsilon_horizon_updates=100)
    assert [gorila.epsilon_at(options, n) for n in (0, 50, 100, 500)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


# --- staleness and outliers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shards", [1, 2])
@pytest.mark.parametrize("k", [0, 3])
def test_a_stale_gradient_takes_a_shorter_step_and_is_brought_up_to_date(k: int, n_shards: int) -> None:
    config = with_algo(n_learners=1, n_shards=n_shards, stale=StaleConfig(aware=True, delay_compensation=0.5))
    parts = make_parts(config)
    parts.run(15)
    server, learner = parts.shared.server, parts.bundles[0].learner
    assert learner is not None
    square = torch.cat([shard.optimizer.state[shard.theta]["sum"] for shard in parts.shards]).clone()
    assert learner.transport.room(0.0)
    learner.learn()
    g, then = learner.parameters.gradients.clone(), server.theta.clone()
    server.theta += 0.1 * k  # somebody else's updates
    server.versions += k
    now = server.theta.clone()
    parts.serve()
    compensated = g + 0.5 * g * g * (now - then)
    step = 0.05 / (1 + k) * compensated / ((square + compensated**2).sqrt() + 1e-3)
    torch.testing.assert_close(server.theta, now - step, rtol=1e-4, atol=1e-6)
    assert g.norm() > 0.0


@pytest.mark.parametrize(
    ("k", "limit", "kept"), [(0, 0, True), (1, 0, False), (3, None, True), (3, 3, True), (3, 2, False)]
)
def test_staleness_is_what_others_applied_meanwhile(
    k: int, limit: int | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts(with_algo(max_staleness_updates=limit))
    parts.run(10)
    server = parts.shared.server
    first, second = (bundle.learner for bundle in parts.bundles)
    assert first is not None
    assert second is not None
    fetch = first.transport.fetch

    def fetch_and_fall_behind(into: torch.Tensor, target: bool = False) -> Any:
        versions = fetch(into, target)
        for _ in range(0 if target else k):
            assert second.transport.room(0.0)
            second.learn()
            parts.serve()
        return versions

    monkeypatch.setattr(first.transport, "fetch", fetch_and_fall_behind)
    for shard in parts.shards:
        shard.notes.report()
    before, theta = server.versions.clone(), server.theta.clone()
    assert first.transport.room(0.0)
    first.learn()
    if k == 0:
        assert torch.equal(server.theta, theta)
    theta = server.theta.clone()
    parts.serve()
    assert torch.equal(server.theta, theta) != kept
    assert (server.versions - before).tolist() == [k + kept] * 2
    reports = [shard.notes.report() for shard in parts.shards]
    assert [report.ratios["discarded_stale_share"] for report in reports] == [(int(not kept), k + 1)] * 2
    assert [report.n_updates for report in reports] == [k + kept, 0]
    staleness = [int(n) for lag in reports[0].lags for n in lag["gradient_staleness_updates"]]
    assert staleness == [0] * k + [k] * kept
    assert first.transport.room(0.0)  # taken, whatever became of it


def test_lag_is_measured_when_a_gradient_is_applied() -> None:
    parts = make_parts(with_algo(n_learners=1))
    parts.run(10)
    (bundle,) = parts.bundles
    assert bundle.learner is not None
    bundle.learner.learn()
    waiting = parts.shared.server.samples[0].numpy().copy()
    parts.shared.tally.add(EARLIER, agent_steps=1000)  # others went on
    locks = parts.shared.server.locks

    @contextmanager
    def wait() -> Iterator[None]:
        parts.shared.tally.add(EARLIER, agent_steps=300)  # and do while the shard waits for its lock
        yield

    locks[0] = wait()
    parts.shards[0].notes.report()
    parts.serve()
    lag = parts.shards[0].notes.report().lags[0]
    frames = parts.shared.tally.agent_steps
    np.testing.assert_array_equal(lag["lag_updates"], 10 - waiting[:, 0])
    np.testing.assert_array_equal(lag["lag_frames"], frames - waiting[:, 1])
    np.testing.assert_array_equal(lag["replay_age_frames"], frames - waiting[:, 3])
    assert lag["replay_age_frames"].min() >= 1300
    silent = make_parts(replace(SMALL, lag=LagConfig(enabled=False)))
    silent.run(5)
    assert silent.shards[0].notes.pending.lags == []


def test_losses_far_above_the_mean_are_outliers() -> None:
    watch = LossWatch(3.0)
    rng = np.random.default_rng(0)
    assert not watch.is_outlier(1e6)  # nothing is known yet
    watch = LossWatch(3.0)
    assert not any(watch.is_outlier(float(loss)) for loss in rng.uniform(0.0, 2.0, 500))  # sd 0.58: up to 1 + 1.73
    assert not watch.is_outlier(2.6)
    assert watch.is_outlier(3.0)
    assert not watch.is_outlier(-5.0)  # below the mean is no reason
    never = LossWatch(None)
    assert not any(never.is_outlier(loss) for loss in [1.0] * 200 + [1e9])


def test_what_is_usual_changes() -> None:
    watch = LossWatch(3.0, decay=0.9)
    for _ in range(200):
        watch.is_outlier(1.0)
    assert watch.is_outlier(10.0)
    for _ in range(100):
        watch.is_outlier(10.0)
    assert not watch.is_outlier(10.0)


def test_a_gradient_of_an_outlier_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts(with_algo(n_learners=1))
    parts.run(10)
    (bundle,) = parts.bundles
    learner = bundle.learner
    assert learner is not None
    bundle.notes.report()
    losses: list[float] = []
    monkeypatch.setattr(learner.watch, "is_outlier", lambda loss: losses.append(loss) or True)
    assert learner.transport.room(0.0)
    learner.learn()
    assert not parts.shared.server.waiting.any()
    assert learner.transport.room(0.0)
    report = bundle.notes.report()
    assert report.ratios["discarded_outlier_share"] == (1, 1)
    (figures,) = report.figures
    assert figures["loss"].tolist() == pytest.approx(losses)  # it is in the record all the same


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replace(SMALL, device="cuda"), "runs its bundles on CPU cores: device=cuda is for algo=dqn"),
        (with_replay(capacity_agent_steps=7), "capacity_agent_steps=7 is smaller than a batch of 8"),
        (with_replay(learning_starts_agent_steps=1000), "is not below the budget of 1000 agent steps"),
        (with_replay(kind="both"), "algo.replay.kind=both is not known: choose one of local, global"),
        (with_algo(target_period_updates=0), "target_period_updates=0 must be at least 1"),
        (with_algo(max_staleness_updates=-1), "max_staleness_updates=-1 must be at least 0"),
        (with_algo(max_loss_deviations=0.0), "max_loss_deviations=0.0 must be greater than 0"),
        (with_algo(n_shards=0), "n_shards=0 must be at least 1"),
        (with_algo(n_learners=101), "n_learners=101 with algo.n_shards=2 would share more files"),
        (with_algo(n_shards=49), "n_learners=2 with algo.n_shards=49 would share more files"),
        (with_algo(epsilon_end=-0.1), "epsilon_end=-0.1 must be at least 0"),
        (
            with_replay(capacity_agent_steps=10**12),
            r"a replay of 1,000,000,000,000 agent steps, 2 times, needs [\d,]{15,} bytes of memory",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_run_is_refused(config: Config, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("a3c_bench.runtime.machine.resolve_device", torch.device)
    with pytest.raises(ConfigError, match=sentence):
        check_run(config)


# --- whole runs, with processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [SMALL, with_algo(n_actors=1, n_learners=2, n_shards=1, replay=replace(REPLAY, kind="global"))],
    ids=["bundles", "global"],
)
def test_a_run_counts_every_step_and_update(config: Config, tmp_path: Path) -> None:
    status = train(config, tmp_path)
    assert status["state"] == "finished"
    assert multiprocessing.active_children() == []
    assert status["frames"] >= 1000
    assert 200 <= status["updates"] <= status["frames"] // 4
    lag = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    assert set(lag.index) == {
        *("lag_updates", "lag_frames", "lag_seconds"), "replay_age_frames", "gradient_staleness_updates",
        *("lag_rollout_updates", "lag_queue_updates", "lag_gradient_updates"),
    }  # fmt: skip
    assert lag["lag_updates"] == lag["replay_age_frames"] == status["updates"] * 8
    assert lag["gradient_staleness_updates"] == status["updates"]
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    wanted = ["loss", "td_error", "max_q", "discounted_return", "epsilon", "replay_agent_steps"]
    assert metrics[[*wanted, "discarded_stale_share", "discarded_outlier_share"]].notna().all(axis=None)
    episodes = pd.read_csv(tmp_path / "episodes.csv")
    assert episodes.frames.nunique() > 0.7 * len(episodes)  # of their ends, not of reports
    assert (episodes.frames.between(episodes.episode_length, status["frames"])).all()
    assert (episodes.wall_seconds.between(0.0, status["wall_seconds"])).all()
    assert status["agent_steps"] - 2 * 500 <= episodes.episode_length.sum() <= status["agent_steps"]
    saved = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert saved["parts"]["server"]["versions"][0] == status["updates"]


def test_one_bundle_is_never_stale(tmp_path: Path) -> None:
    train(replace(with_algo(n_learners=1, n_shards=1), budget=BudgetConfig(frames=800)), tmp_path)
    lag = pd.read_csv(tmp_path / "lag.csv")
    assert (lag.gradient_staleness_updates_max == 0).all()
    assert (lag.replay_age_frames_max > 0).all()
    assert (lag.lag_seconds_p50 >= 0).all()


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop_after(n)` sends SIGTERM to the parent when n updates have been reported."""
    real = Session.take

    def install(number: int) -> None:
        def take(session: Session, report: Any) -> None:
            real(session, report)
            if session.counters.updates >= number:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Session, "take", take)

    return install


@pytest.mark.timeout(300)  # two starts, of three processes each
def test_a_run_goes_on_with_everything(
    tmp_path: Path,
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Parameters, target network, optimiser state, counters, and replays that are in files."""
    algo = replace(SMALL.algo, n_shards=1, replay=replace(REPLAY, storage="memmap"))
    config = replace(SMALL, algo=algo, budget=BudgetConfig(frames=2000))
    stop_after(100)
    assert train(config, tmp_path)["state"] == "preempted"
    saved = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert sorted(saved["parts"]) == ["network", "replay_0", "replay_1", "replays", "server", "statistics_0"]
    n_kept = int(saved["parts"]["replays"]["kept"].split()[0])
    assert 0 <= saved["counters"]["agent_steps"] - n_kept <= 2
    assert (tmp_path / "replay" / "1" / "frames.npy").exists()
    restored: dict[str, Any] = {}
    begin = Session.begin

    def keep(session: Session, **parts: Any) -> None:
        begin(session, **parts)
        for name, part in parts.items():
            state = part.state_dict()
            restored[name] = {key: x.clone() if torch.is_tensor(x) else x for key, x in state.items()}
            if name.startswith("replay_"):
                restored[f"{name}_steps"] = len(part)

    monkeypatch.setattr(Session, "begin", keep)
    stop_after(10**9)
    status = train(config, tmp_path)
    assert (status["state"], status["attempts"]) == ("finished", 2)
    assert f"Replays kept: {n_kept} agent steps in replay/." in caplog.text
    for name, part in saved["parts"].items():
        for key, value in part.items() if name != "replays" else ():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(restored[name][key])), (name, key)
    stored = restored["replay_0_steps"] + restored["replay_1_steps"]
    assert 0 <= saved["counters"]["agent_steps"] - stored <= 2
    assert status["updates"] > saved["counters"]["updates"]
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics.frames.is_monotonic_increasing
    assert metrics.replay_agent_steps.iloc[-1] > stored


class Files:
    """Takes the place of a process that is being started: what it would be handed."""

    def __init__(self) -> None:
        self.n = 0

    def duplicate_for_child(self, file: int) -> int:
        self.n += 1
        return file

    def DupFd(self, file: int) -> int:  # noqa: N802
        return file


@pytest.mark.parametrize("kind", ["local", "global"])
def test_the_most_there_may_be_are_handed_no_more_files_than_a_process_can_get(kind: str) -> None:
    """The fork server passes 255, a few of which are its own."""
    replay = replace(REPLAY, capacity_agent_steps=1_000_000, kind=kind)
    adam = replace(OPTIMIZER, kind="adam", initial_square=0.0)
    config = with_algo(n_learners=gorila.MOST_LEARNERS, n_shards=gorila.MOST_SHARDS, replay=replay, optimizer=adam)
    allow_many_files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = make_shares(config)
    for share in parts:
        files = Files()
        multiprocessing.context.set_spawning_popen(files)
        try:
            ForkingPickler.dumps(share)
        finally:
            multiprocessing.context.set_spawning_popen(None)
        assert 20 < files.n < 245


def make_shares(config: Config) -> list[Shared]:
    """What the first bundle and the first shard get."""
    _, shared, _ = gorila.assemble(config, FakeSession(config))  # type: ignore[arg-type]
    return [shared.for_bundle(0), shared.for_shard(0)]


def test_bundles_by_the_number_of_cores_may_be_more_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: Callable[[int], None]
) -> None:
    config = replace(with_algo(n_learners=None, n_shards=1), budget=BudgetConfig(frames=2000))
    monkeypatch.setattr(gorila, "usable_cores", lambda: 1)
    stop_after(10)
    assert train(config, tmp_path)["state"] == "preempted"
    monkeypatch.setattr(gorila, "usable_cores", lambda: 2)
    stop_after(10**9)
    assert train(config, tmp_path)["state"] == "finished"
