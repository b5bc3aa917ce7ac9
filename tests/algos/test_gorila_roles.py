"""Who there is in a run of Gorila: bundles, actors, learners and shards, and the replays and files that they share."""

import multiprocessing
import warnings
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from common import FakeSession
from gorila_parts import OPTIMIZER, REPLAY, make_parts, with_algo

from a3c_bench.algos import gorila
from a3c_bench.algos.gorila import GorilaConfig, make_roles
from a3c_bench.parallel.bundles import Roles, Shared
from a3c_bench.runtime.machine import allow_many_files
from a3c_bench.schema import Config


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
