"""Gorila on several ranks, in one process: what crosses a network changes nothing that is learnt; who lives where."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from common import FakeSession, small
from pairs import meeting, side_by_side

from a3c_bench.algos import gorila
from a3c_bench.algos.gorila import Bundle, GorilaConfig, Shard
from a3c_bench.algos.settings import GorilaReplayConfig, StaleConfig
from a3c_bench.core.lag import Stamp
from a3c_bench.errors import ConfigError
from a3c_bench.parallel.bundles import Roles, Shared, no_older
from a3c_bench.parallel.transport import Push
from a3c_bench.schema import BudgetConfig, Config, OptimizerConfig
from a3c_bench.train import check_settings

SMALL = small(
    GorilaConfig(
        n_learners=1,
        target_period_updates=10,
        refresh_period_agent_steps=12,
        epsilon_horizon_updates=50,
        replay=GorilaReplayConfig(capacity_agent_steps=600, learning_starts_agent_steps=40, batch_size=8),
        optimizer=OptimizerConfig(kind="adagrad", lr=0.05, epsilon=1e-3, initial_square=0.1, anneal=False),
    ),
    budget=BudgetConfig(frames=1000),
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


class Parts(NamedTuple):
    """All of a run but its leaders and its processes."""

    shared: Shared
    bundles: Sequence[Bundle]
    shards: Sequence[Shard]

    def serve(self) -> None:
        """The one gradient that is under way is applied, and its learner knows."""
        before = self.shared.server.versions.clone()
        for index, shard in enumerate(self.shards):
            for _ in range(1000):
                if self.shared.server.versions[index] > before[index]:
                    break
                shard.serve()
        for bundle in self.bundles:
            bundle.transport.settle()

    def run(self, n_updates: int) -> None:
        """Everybody in turn."""
        while int(self.shared.server.versions[0]) < n_updates:
            for bundle in self.bundles:
                n_computed = self.shared.tally.of([bundle.index])[1]
                bundle.work()
                if self.shared.tally.of([bundle.index])[1] > n_computed:
                    self.serve()


@contextmanager
def parts_of(config: Config, crosses: bool) -> Iterator[Parts]:
    torch.set_num_threads(1)
    _, shared, replays = gorila.assemble(config, FakeSession(config))  # type: ignore[arg-type]
    shared.wait_until_filled(replays, config.algo.replay.learning_starts_agent_steps)
    with meeting() as place:
        shared.meeting = place if crosses else None
        roles = shared.roles
        made = side_by_side(
            *(lambda i=i: Bundle(config, shared, i, attempt=1) for i in range(roles.n_bundles)),
            *(lambda s=s: Shard(config, shared, s) for s in range(roles.n_shards)),
        )
        parts = Parts(shared, made[: roles.n_bundles], made[roles.n_bundles :])
        yield parts
        for bundle in parts.bundles:
            bundle.transport.leave()
        for shard in parts.shards:
            shard.port.leave()


@pytest.mark.parametrize(
    "changes",
    [
        {"max_loss_deviations": None},
        {"max_loss_deviations": None, "n_shards": 2, "stale": StaleConfig(aware=True, delay_compensation=0.5)},
    ],
    ids=["one shard", "two shards"],
)
def test_in_lock_step_a_network_changes_no_bit_of_what_is_learnt(changes: dict[str, Any]) -> None:
    config = with_algo(**changes)
    found: list[list[torch.Tensor]] = []
    for crosses in (False, True):
        with parts_of(config, crosses) as parts:
            parts.run(25)
            server, (bundle,) = parts.shared.server, parts.bundles
            steps = torch.tensor([parts.shared.tally.agent_steps, len(bundle.replay)])
            squares = [shard.optimizer.state[shard.theta]["sum"] for shard in parts.shards]
            found.append([server.theta, server.target, server.versions, server.target_versions, steps, *squares])
    assert found[0][2].tolist() == [25] * config.algo.n_shards
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize(("limit", "kept"), [(2, True), (1, False)])
def test_staleness_over_the_wire_by_hand(limit: int, kept: bool) -> None:
    """Learner 0 fetches version 10, learner 1 makes 11 and 12 of it, and the gradient of learner 0 is 2 updates old."""
    config = with_algo(n_learners=2, max_staleness_updates=limit, max_loss_deviations=None)
    with parts_of(config, crosses=True) as parts:
        parts.run(10)
        server, (shard,), (first, second) = parts.shared.server, parts.shards, parts.bundles
        now = int(server.versions[0])
        theta = torch.zeros_like(server.theta)
        first.transport.fetch(theta)  # what came with the reply to its last gradient
        versions = first.transport.fetch(theta)
        assert versions.tolist() == [now]
        for _ in range(2):
            assert second.learner is not None
            second.learner.learn()
            parts.serve()
        then = server.theta.clone()
        shard.notes.report()
        first.transport.push(torch.ones_like(theta), versions, np.zeros((8, 4)))
        while not shard.notes.report().ratios.get("discarded_stale_share", (0, 0))[1]:
            shard.serve()
        first.transport.settle()
        assert int(server.versions[0]) == first.transport.version == now + 2 + kept
        assert bool((server.theta < then).all()) == kept
        assert torch.equal(server.theta, then) != kept


def test_a_bundle_pauses_when_all_that_it_sent_was_applied() -> None:
    """Before each pause, the shard's version is the number of gradients there are, though the shard takes its time."""
    config = with_algo(max_loss_deviations=None)
    _, shared, replays = gorila.assemble(config, FakeSession(config))  # type: ignore[arg-type]
    shared.wait_until_filled(replays, 40)
    pauses: list[tuple[int, int]] = []

    class Link:
        def going(self, report: Any, resume: Any, settle: Any = lambda: None) -> bool:
            settle()
            pauses.append((shared.tally.of([0])[1], int(shared.server.versions[0])))
            return pauses[-1][0] < 8

    with meeting() as shared.meeting:
        life = threading.Thread(target=gorila.worker_main, args=(Link(), config, shared, 0, 1))
        life.start()
        shard = Shard(config, shared, 0)
        while life.is_alive():
            time.sleep(0.01)
            shard.serve()
        shard.port.leave()
    assert pauses[-1] == (8, 8)
    assert all(n_computed == version for n_computed, version in pauses)


def test_an_actor_without_a_learner_asks_for_what_others_learn() -> None:
    with parts_of(with_algo(n_actors=2, max_loss_deviations=None), crosses=True) as parts:
        parts.run(12)
        (bundle, actor), tally = parts.bundles, parts.shared.tally
        assert actor.learner is None
        assert tally.of([actor.index])[0] > 12  # it acts
        assert actor.transport.version == actor.notes.version > 0
        refreshed = torch.zeros_like(parts.shared.server.theta)
        assert actor.transport.fetch(refreshed).tolist() == parts.shared.server.versions.tolist()
        assert torch.equal(refreshed, parts.shared.server.theta)
        assert bundle.transport.version == int(parts.shared.server.versions[0])


def test_a_shard_on_another_clock_knows_no_sample_from_the_future() -> None:
    push = Push(0, torch.zeros(1), 3, np.array([[1.0, 50.0, 2.0, 40.0], [2.0, 70.0, 1.0, 60.0]]), None)
    assert no_older(Stamp(4, 60, 1.5), push) == Stamp(4, 70, 2.0)
    assert no_older(Stamp(4, 80, 2.5), push) == Stamp(4, 80, 2.5)


# --- who lives where --------------------------------------------------------------------------------------------------


def test_every_shard_lives_on_one_rank_and_every_bundle_has_a_number_of_its_own() -> None:
    ranks = [Roles(2, 1, 5, 1, False, rank, 3, 2) for rank in range(3)]
    assert [roles.shards for roles in ranks] == [[0, 2, 4], [1, 3], []]
    assert [[roles.number(i) for i in range(2)] for roles in ranks] == [[0, 1], [2, 3], [4, 5]]
    assert ranks[1].names == ["bundle 2", "actor 3", "shard 1", "shard 3"]
    assert ranks[2].names == ["bundle 4", "actor 5"]
    assert ranks[0].all_bundles[2:4] == ["bundle 2 of rank 1", "bundle 3 of rank 1"]
    assert ranks[0].all_shards == [f"shard {s} of rank {s % 2}" for s in range(5)]


def test_bundles_of_several_ranks_play_games_of_their_own() -> None:
    config = with_algo()
    observations = []
    for rank in (0, 1):
        _, shared, _ = gorila.assemble(config, FakeSession(config))  # type: ignore[arg-type]
        shared.roles = replace(shared.roles, rank=rank, n_ranks=2)
        bundle = Bundle(config, shared, 0, attempt=1)
        observations.append(bundle.envs.reset())
    assert not np.array_equal(observations[0], observations[1])


class Both:
    """Two ranks that add up what they have, one after the other."""

    def __init__(self) -> None:
        self.told: list[list[torch.Tensor]] = [[], []]

    def seen_from(self, rank: int, other: Sequence[torch.Tensor]) -> Any:
        both, remaining = self, iter(other)

        class Peers:
            def total(self, figures: torch.Tensor) -> torch.Tensor:
                both.told[rank].append(figures.clone())
                return figures + next(remaining, torch.zeros_like(figures))

        return Peers()


def test_shards_of_several_ranks_are_brought_together() -> None:
    config = with_algo(n_shards=2)
    shared = []
    for rank in (0, 1):
        _, of_rank, _ = gorila.assemble(config, FakeSession(config))  # type: ignore[arg-type]
        of_rank.roles = replace(of_rank.roles, rank=rank, n_ranks=2, shard_ranks=2)
        of_rank.server.theta.fill_(rank + 1.0)
        of_rank.server.target.fill_(rank + 3.0)
        of_rank.server.versions.fill_(rank + 5)
        of_rank.server.target_versions.fill_(rank + 7)
        for statistics in of_rank.statistics.values():
            statistics.tensors["sum"].fill_(rank + 9.0)
        shared.append(of_rank)
    both = Both()
    shared[1].bring_together(both.seen_from(1, ()))
    shared[0].bring_together(both.seen_from(0, both.told[1]))
    first, second = shared[0].server.parts
    assert set(shared[0].server.theta[first].tolist()) == {1.0}
    assert set(shared[0].server.theta[second].tolist()) == {2.0}
    assert set(shared[0].server.target[second].tolist()) == {4.0}
    assert shared[0].server.versions.tolist() == [5, 6]
    assert shared[0].server.target_versions.tolist() == [7, 8]
    assert set(shared[0].statistics[0].tensors["sum"].tolist()) == {9.0}
    assert set(shared[0].statistics[1].tensors["sum"].tolist()) == {10.0}


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (with_algo(shard_ranks=2, n_shards=2), "at most 1 with algo.n_shards=2 and ranks=1"),
        (replace(with_algo(shard_ranks=2), ranks=2), "at most 1 with algo.n_shards=1 and ranks=2"),
        (
            replace(with_algo(replay=replace(SMALL.algo.replay, storage="memmap")), ranks=2),
            "rank 0 alone has: with ranks=2 say algo.replay.storage=memory",
        ),
    ],
    ids=["one rank", "one shard", "memmap"],
)
def test_what_cannot_run_on_these_ranks_is_refused(config: Config, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_settings(config)


def test_shards_on_as_many_ranks_as_there_are_may_run() -> None:
    check_settings(replace(with_algo(shard_ranks=2, n_shards=2), ranks=2))
