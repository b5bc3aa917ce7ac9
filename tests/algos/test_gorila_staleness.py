"""Gorila's stale gradients: how lag is measured, and what is done about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gorila_parts import SMALL, make_parts, with_algo

from a3c_bench.algos.settings import StaleConfig
from a3c_bench.parallel.tally import EARLIER
from a3c_bench.schema import LagConfig


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
