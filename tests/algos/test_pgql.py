"""PGQL: PAAC without its replay, what is stored, when it learns from it and by which step, and every switch."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from common import TIMES, FakeSession, small

from a3c_bench.algos.paac import PAAC, PAACConfig
from a3c_bench.algos.pgql import PGQL, PGQLConfig
from a3c_bench.checks import check_settings
from a3c_bench.core.lag import Stamp
from a3c_bench.errors import ConfigError
from a3c_bench.schema import AdvantageConfig, Config, EvaluationConfig, LagConfig, OptimizerConfig, ReplayConfig
from a3c_bench.train import check_run, train

OPTIMIZER = OptimizerConfig(lr=0.01, anneal=False)
REPLAY = ReplayConfig(300, 30, 8)
SMALL = small(
    PGQLConfig(n_envs=3, t_max=4, replay=REPLAY, optimizer=OPTIMIZER),
    n_torch_threads=1,
    evaluation=EvaluationConfig(n_games=1, n_envs=1, max_episode_frames=20),
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


def make_pgql(config: Config) -> PGQL:
    torch.set_num_threads(1)
    pgql = PGQL(config, FakeSession(config))  # type: ignore[arg-type]
    pgql.start()
    return pgql


def test_without_its_replay_it_is_paac_to_the_bit(tmp_path: Path) -> None:
    """Theta, tables, lag; in a run long enough for the replay to be learnt from otherwise."""
    paac = replace(SMALL, algo=PAACConfig(n_envs=3, t_max=4, optimizer=OPTIMIZER))
    tables, thetas = [], []
    for name, config in (("paac", paac), ("pgql", with_algo(eta=0.0))):
        train(config, tmp_path / name)
        parts = torch.load(tmp_path / name / "checkpoint" / "latest.pt", weights_only=True)["parts"]
        thetas.append(torch.cat([tensor.flatten() for tensor in parts["network"].values()]))
        found = [pd.read_csv(tmp_path / name / f"{table}.csv") for table in ("metrics", "lag", "episodes", "eval")]
        left_out = {*TIMES, "replay_agent_steps", "gradient_norm_q"}
        tables.append([t[[c for c in t if "second" not in c and c not in left_out]] for t in found])
    assert torch.equal(*thetas)
    for of_paac, of_pgql in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(of_paac, of_pgql)
    assert len(tables[0][0]) >= 5


def test_with_it_the_policy_acts_alike_until_learning_starts() -> None:
    """30 steps: the third rollout is the first that is followed by an update from the replay."""
    paac = PAAC(replace(SMALL, algo=PAACConfig(n_envs=3, t_max=4, optimizer=OPTIMIZER)), FakeSession(SMALL))  # type: ignore[arg-type]
    pgql, without = make_pgql(SMALL), make_pgql(with_algo(q_learning_rate_ratio=0.0))
    equal = []
    for _ in range(4):
        for each in (paac, pgql, without):
            each.update()
        equal.append(torch.equal(paac.parameters.values, pgql.parameters.values))
        assert torch.equal(paac.parameters.values, without.parameters.values)
    assert equal == [True, True, False, False]
    assert [each.session.counters.updates for each in (paac, pgql, without)] == [4, 6, 4]


def test_what_is_stored_is_what_was_learnt_from() -> None:
    """Each step of the rollouts, phantoms apart, where it led, whether that was the end, and where the run stood."""
    pgql = make_pgql(with_algo(q_learning_rate_ratio=1e-9))
    known: dict[bytes, list[Any]] = {}
    n_ends = 0
    for _ in range(30):
        frames = pgql.session.counters.frames
        version = pgql.session.counters.updates
        pgql.update()
        rollout = pgql.actor.rollout
        batch = rollout.batch()
        for t in range(4):
            for b in range(3):
                if batch.valid[t, b]:
                    discount = 0.0 if batch.terminated[t, b] else 0.99
                    n_ends += bool(batch.terminated[t, b])
                    row = [int(batch.actions[t, b]), float(batch.rewards[t, b]), discount]
                    following = rollout.observations[t + 1, b].tolist()
                    known[rollout.observations[t, b].numpy().tobytes()] = [*row, following, version, frames]
    found = pgql.replay.sample(200, np.random.default_rng(0))
    assert n_ends > 3
    n_known = 0
    for i in range(200):
        there = known.get(found.observations[i].numpy().tobytes())
        if there is None:
            continue
        n_known += 1
        action, reward, discount, following, version, frames = there
        assert (int(found.actions[i]), float(found.rewards[i])) == (action, reward)
        assert float(found.discounts[i]) == pytest.approx(discount)
        assert found.next_observations[i].tolist() == following
        assert found.versions[i] == version
        assert frames <= found.frames_at_choice[i] < frames + 12
        assert found.frames_at_choice[i] < found.frames_at_insertion[i]
    assert n_known == 200
    assert pgql.n_stored == pgql.session.counters.agent_steps


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_from_the_replay_is_half_as_long_and_by_hand(shared: bool) -> None:
    """RMSProp by hand, from the accumulator that is its own or both's; the policy's step is twice as long."""
    pgql = make_pgql(with_algo(shared_statistics=shared, optimizer=replace(OPTIMIZER, max_grad_norm=0.05)))
    while not pgql.learns_q:
        pgql.update()
    pgql.learn(pgql.actor.act())
    theta, statistics = pgql.parameters.values.detach().clone(), pgql.q_optimizer.state[pgql.parameters.values]
    policys = pgql.learner.optimizer.state[pgql.parameters.values]["square"].clone()
    assert float(pgql.learner.optimizer.param_groups[0]["lr"]) == 0.01
    square = statistics["square"].clone()
    sample = pgql.replay.sample(8, np.random.default_rng(1))
    pgql.sampling = np.random.default_rng(1)
    pgql.q_learner.differentiate(sample)
    gradient = pgql.parameters.gradients.clone()
    gradient *= min(1.0, 0.05 / float(gradient.norm()))
    pgql.learn_q()
    square = 0.99 * square + 0.01 * gradient**2
    expected = theta - 0.005 * gradient / torch.sqrt(square + 0.1)
    torch.testing.assert_close(pgql.parameters.values.detach(), expected, rtol=1e-5, atol=1e-7)
    kept = torch.equal(pgql.learner.optimizer.state[pgql.parameters.values]["square"], policys)
    assert kept == (not shared)


def test_its_lag_is_that_of_both_halves() -> None:
    """What theta has just chosen is 0 updates old; what the replay holds as many as both halves have made since."""
    pgql = make_pgql(SMALL)
    session: Any = pgql.session
    for _ in range(12):
        pgql.update()
    actors, replays = session.lags[-2:]
    assert set(actors["lag_updates"].tolist()) == {0}
    assert "replay_age_frames" not in actors
    now = Stamp(session.counters.updates - 1, session.counters.frames, 0.0)
    pgql.sampling = np.random.default_rng(2)
    sample = pgql.replay.sample(8, np.random.default_rng(2))
    pgql.learn_q()
    lag = session.lags[-1]
    assert lag["lag_updates"].tolist() == (now.version + 1 - sample.versions).tolist()
    assert lag["replay_age_frames"].tolist() == (now.frames - sample.frames_at_insertion).tolist()
    assert max(lag["lag_updates"]) > 12  # more than there were rollouts
    assert replays["lag_updates"].min() >= 1


def test_updates_from_the_replay_are_counted_and_told_apart() -> None:
    pgql = make_pgql(with_algo(q_updates_per_policy_update=3))
    for _ in range(6):
        pgql.update()
    session: Any = pgql.session
    names = ["gradient_norm_q" if "gradient_norm_q" in row else "gradient_norm" for row in session.metrics]
    assert names == ["gradient_norm"] * 3 + ["gradient_norm_q"] * 3 + (["gradient_norm"] + ["gradient_norm_q"] * 3) * 3
    from_replay = [row for row in session.metrics if "gradient_norm_q" in row]
    assert all(float(row["td_error"]) > 0.0 and "loss" not in row for row in from_replay)
    assert pgql.gauges() == {"replay_agent_steps": len(pgql.replay)}


@functools.cache
def trained(config: Config) -> torch.Tensor:
    pgql = make_pgql(config)
    for _ in range(8):
        pgql.update()
    pgql.wiring.close()
    return pgql.parameters.values.detach()


@pytest.mark.parametrize(
    "config",
    [
        with_algo(n_envs=2),
        with_algo(t_max=3),
        with_algo(gamma=0.5),
        with_algo(entropy_weight=0.5),
        with_algo(value_weight=0.01),
        with_algo(loss_reduction="sum"),
        with_algo(eta=0.5),
        with_algo(q_learning_rate_ratio=0.25),
        with_algo(q_updates_per_policy_update=2),
        with_algo(q_loss_reduction="sum"),
        with_algo(shared_statistics=False),
        with_algo(n_step=2),
        with_algo(replay=replace(REPLAY, capacity_agent_steps=60)),
        with_algo(replay=replace(REPLAY, learning_starts_agent_steps=60)),
        with_algo(replay=replace(REPLAY, batch_size=9)),
        with_algo(optimizer=replace(OPTIMIZER, lr=0.02)),
        with_algo(optimizer=replace(OPTIMIZER, anneal=True)),
        replace(SMALL, advantage=AdvantageConfig(kind="gae")),
        replace(SMALL, seed=1),
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(config: Config) -> None:
    plain, changed = trained(SMALL), trained(config)
    assert plain.shape != changed.shape or not torch.allclose(plain, changed)


def test_eta_shares_the_step_between_both_halves() -> None:
    pgql = make_pgql(with_algo(eta=0.25))
    assert (pgql.policy_share, pgql.q_share) == (0.75, 0.25)
    while not pgql.learns_q:
        pgql.update()
    session: Any = pgql.session
    pgql.learn(pgql.actor.act())
    assert session.metrics[-1]["learning_rate"] == pytest.approx(0.0075)
    pgql.learn_q()
    assert float(pgql.q_optimizer.param_groups[0]["lr"]) == pytest.approx(0.0025)


def test_one_seed_gives_one_result() -> None:
    assert torch.equal(trained(SMALL), trained.__wrapped__(SMALL))


@pytest.mark.parametrize(("storage", "shared"), [("memory", True), ("memmap", False)])
def test_a_run_goes_on_with_what_a_checkpoint_holds(storage: str, shared: bool, tmp_path: Path) -> None:
    """Both optimisers, both generators, and the replay if it lies in files; else it has to be filled anew."""
    config = with_algo(replay=replace(REPLAY, storage=storage), shared_statistics=shared)
    config = replace(config, budget=replace(config.budget, frames=600))
    train(config, tmp_path)
    parts = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)["parts"]
    assert ("q_optimizer" in parts) == (not shared)
    kept = {"memory": "none: they were in memory", "memmap": " agent steps in replay/"}[storage]
    assert parts["replays"]["kept"].endswith(kept)
    status = train(replace(config, budget=replace(config.budget, frames=1200)), tmp_path)
    assert (status["state"], status["attempts"]) == ("finished", 2)
    rows = pd.read_csv(tmp_path / "metrics.csv")
    held = rows[rows.frames > 700].replay_agent_steps.iloc[0]
    assert (held > 250) == (storage == "memmap")
    assert rows.td_error.notna().all()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(SMALL, advantage=AdvantageConfig(kind="q")), "advantage=q has no V, of which algo=pgql makes"),
        (replace(SMALL, network=replace(SMALL.network, lstm_size=4)), "network.lstm_size=4 is for algorithms without"),
        (replace(SMALL, network=replace(SMALL.network, dueling=True)), "network.dueling=true is for Q-networks"),
        (replace(SMALL, lag=LagConfig(gradient_cosine_every_updates=2)), "lag.gradient_cosine_every_updates=2 is for"),
        (with_algo(replay=ReplayConfig(4, 2, 8)), "algo.replay.capacity_agent_steps=4 is smaller than a batch of 8"),
        (with_algo(replay=ReplayConfig(300, 2000, 8)), "learning_starts_agent_steps=2000 is not below the budget"),
        (with_algo(eta=1.5), "algo.eta=1.5 must be at most 1.0"),
    ],
)
def test_what_cannot_be_is_refused(config: Config, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_settings(config)


def test_a_replay_that_nothing_is_learnt_from_need_not_begin() -> None:
    check_settings(with_algo(eta=0.0, replay=ReplayConfig(300, 2000, 8)))


def test_a_replay_that_is_too_short_for_its_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"leaves 3 for each of 3 environments, and algo.n_step=4 needs at least 5"):
        check_run(with_algo(n_step=4, replay=ReplayConfig(9, 2, 8)))
