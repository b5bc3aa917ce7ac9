"""Gorila's update by hand, what each option changes in it, and what follows it: target network, copies, epsilon."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from gorila_parts import OPTIMIZER, SMALL, make_parts, with_algo, with_replay

from a3c_bench.algos import gorila
from a3c_bench.algos.gorila import GorilaConfig
from a3c_bench.schema import Config

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
