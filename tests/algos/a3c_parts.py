"""A3C in one process: a small run, and workers that a test steps itself."""

from dataclasses import replace
from typing import Any

import torch
from common import FakeSession, small

from a3c_bench.algos import a3c
from a3c_bench.algos.a3c import A3CConfig, Worker
from a3c_bench.schema import (
    Config,
    EvaluationConfig,
    OptimizerConfig,
)

CONSTANT = OptimizerConfig(lr=0.01, epsilon=0.1, anneal=False)
SMALL = small(
    A3CConfig(n_workers=2, optimizer=CONSTANT),
    evaluation=EvaluationConfig(n_games=2, n_envs=2, interval_frames=400),
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


def make_workers(config: Config, n_workers: int = 1, seconds: float = 0.0) -> list[Worker]:
    """Workers in this process, on one theta."""
    torch.set_num_threads(1)
    config = replace(config, algo=replace(config.algo, n_workers=n_workers))
    _, shared = a3c.assemble(config, FakeSession(config, seconds=seconds))  # type: ignore[arg-type]
    return [Worker(config, shared.for_worker(index), index, attempt=1) for index in range(n_workers)]
