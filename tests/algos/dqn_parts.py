"""DQN in one process: a small run, and an instance that a test steps itself."""

from dataclasses import replace
from typing import Any

import torch
from common import FakeSession, small

from a3c_bench.algos.dqn import DQN, DQNConfig
from a3c_bench.schema import (
    BudgetConfig,
    Config,
    OptimizerConfig,
    ReplayConfig,
)

REPLAY = ReplayConfig(capacity_agent_steps=600, learning_starts_agent_steps=40, batch_size=8)
OPTIMIZER = OptimizerConfig(lr=0.01, epsilon=0.01, decay=0.95, centered=True, anneal=False)
SMALL = small(
    DQNConfig(target_period_agent_steps=50, epsilon_horizon_agent_steps=200, replay=REPLAY, optimizer=OPTIMIZER),
    budget=BudgetConfig(frames=400),
    metrics_interval_frames=100,
    n_torch_threads=1,
)


def make_dqn(config: Config) -> tuple[DQN, FakeSession]:
    torch.set_num_threads(1)
    session = FakeSession(config)
    return DQN(config, session), session  # type: ignore[arg-type]


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


def with_replay(**changes: Any) -> Config:
    return with_algo(replay=replace(REPLAY, **changes))
