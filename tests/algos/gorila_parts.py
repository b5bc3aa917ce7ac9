"""Gorila in one process: a small run, and bundles and shards that a test steps itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import FakeSession, small

from a3c_bench.algos import gorila
from a3c_bench.algos.gorila import Bundle, GorilaConfig, Shard
from a3c_bench.algos.settings import GorilaReplayConfig
from a3c_bench.parallel.bundles import Shared
from a3c_bench.schema import BudgetConfig, Config, OptimizerConfig

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
