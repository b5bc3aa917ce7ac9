"""What a run computes, to the bit: hashes of theta and of the tables, which no change of the code's form may change.

Columns that the clock decides are left out. A3C and Gorila take turns in
this process (`turns.py`), GA3C goes in lock step and has one row of metrics: when the parent looks, the clock
decides. Empty columns do not count, so that a table may get more of them.

The numbers hold for one CPU and one version of torch: elsewhere a reference computation differs, and the tests are
skipped.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from turns import take_turns

from a3c_bench.algos import a3c
from a3c_bench.algos.settings import (
    A3CConfig,
    DQNConfig,
    GA3CConfig,
    GorilaConfig,
    GorilaReplayConfig,
    PAACConfig,
)
from a3c_bench.parallel import bundles
from a3c_bench.schema import (
    AdvantageConfig,
    BudgetConfig,
    Config,
    EnvConfig,
    EvaluationConfig,
    LagConfig,
    NetworkConfig,
    OptimizerConfig,
    ReplayConfig,
)
from a3c_bench.train import train

REFERENCE = "e189a89687d4706f"
LEFT_OUT = {
    *("wall_seconds", "frames_per_second", "pps", "tps", "memory_mib"),  # the clock, or the machine
    *(f"share_{phase}" for phase in ("simulate", "predict", "train", "wait", "predictors_wait", "trainers_wait")),
    *(f"lag_seconds_{figure}" for figure in ("mean", "p50", "p95", "max")),
    "unusable_share",  # had two meanings, and has one now
    *("share_communicate", "sent_mib_per_second", "sent_messages_per_second"),  # of several ranks
    *("clip_share", "effective_sample_size", "gradient_cosine", "n_agents_held_back"),  # came later
    "gradient_variance",  # of the first interval was left out; it is of all updates but the first now
}
LATER_UNITS = {"lag_rollout_updates", "lag_queue_updates", "lag_gradient_updates", "value_lag"}
LEFT_OUT |= {f"{unit}_{figure}" for unit in LATER_UNITS for figure in ("mean", "p50", "p95", "max")}

RMSPROP = OptimizerConfig(
    kind="rmsprop",
    lr=0.05,
    lr_range=None,
    anneal=True,
    epsilon=0.1,
    decay=0.99,
    epsilon_inside_root=True,
    initial_square=0.0,
    centered=False,
    max_grad_norm=0.5,
)
ACTOR_CRITIC: dict[str, Any] = {
    "t_max": 5,
    "gamma": 0.99,
    "entropy_weight": 0.01,
    "value_weight": 0.25,
    "optimizer": RMSPROP,
}
Q_LEARNING: dict[str, Any] = {
    "gamma": 0.99,
    "update_period_agent_steps": 4,
    "td_error_clip": 1.0,
    "loss_reduction": "sum",
    "epsilon_start": 1.0,
    "epsilon_end": 0.1,
}
REPLAY: dict[str, Any] = {
    "capacity_agent_steps": 400,
    "learning_starts_agent_steps": 40,
    "batch_size": 8,
    "storage": "memory",
}
PAAC = PAACConfig(n_envs=4, loss_reduction="mean_over_envs", **ACTOR_CRITIC)
A3C = A3CConfig(n_workers=1, envs_per_worker=1, loss_reduction="sum", shared_statistics=True, **ACTOR_CRITIC)
GA3C = GA3CConfig(
    n_agents=4, min_training_batch=1, synchronous=True, log_epsilon=1e-6, loss_reduction="sum", **ACTOR_CRITIC
)
CENTERED = OptimizerConfig(
    kind="rmsprop",
    lr=0.01,
    epsilon=0.01,
    decay=0.95,
    initial_square=0.0,
    centered=True,
    anneal=False,
    max_grad_norm=None,
)
DQN = DQNConfig(
    n_envs=1,
    n_step=1,
    double=False,
    prioritized=False,
    target_period_agent_steps=50,
    epsilon_horizon_agent_steps=200,
    replay=ReplayConfig(**REPLAY),
    optimizer=CENTERED,
    **Q_LEARNING,
)
PRIORITIZED = DQNConfig(
    n_envs=2,
    n_step=3,
    double=True,
    prioritized=True,
    priority_exponent=0.6,
    importance_exponent=0.4,
    target_period_agent_steps=50,
    epsilon_horizon_agent_steps=200,
    replay=ReplayConfig(**REPLAY),
    optimizer=CENTERED,
    **Q_LEARNING,
)
GORILA = GorilaConfig(
    n_learners=1,
    n_actors=1,
    n_shards=1,
    envs_per_actor=1,
    n_step=1,
    double=False,
    target_period_updates=20,
    refresh_period_agent_steps=12,
    max_staleness_updates=50,
    max_loss_deviations=3.0,
    epsilon_horizon_updates=100,
    replay=GorilaReplayConfig(kind="local", **REPLAY),
    optimizer=OptimizerConfig(
        kind="adagrad", lr=0.05, epsilon=1e-3, initial_square=0.1, anneal=False, max_grad_norm=None
    ),
    **Q_LEARNING,
)


def configured(algo: Any, frames: int, advantage: str = "nstep", **network: Any) -> Config:
    return Config(
        algo=algo,
        seed=3,
        env=EnvConfig(id="CartPole-v1"),
        network=NetworkConfig(kind="mlp", hidden_sizes=(8,), activation="tanh", initialisation="orthogonal", **network),
        advantage=AdvantageConfig(kind=advantage, gae_lambda=0.95),
        budget=BudgetConfig(frames=frames),
        evaluation=EvaluationConfig(n_games=1, n_envs=1, max_episode_frames=20),
        lag=LagConfig(divergence_every_updates=4),
        metrics_interval_frames=10_000 if isinstance(algo, GA3CConfig) else 200,
        n_torch_threads=1,
        progress=False,
    )


RUNS = {
    "paac": configured(PAAC, 800),
    "paac, lstm": configured(PAAC, 800, lstm_size=6),
    "paac, gae": configured(PAAC, 800, "gae"),
    "paac, monte_carlo": configured(PAAC, 800, "monte_carlo"),
    "a3c": configured(A3C, 600),
    "ga3c": configured(GA3C, 800),
    "dqn": configured(DQN, 500),
    "dqn, double, dueling, prioritized": configured(PRIORITIZED, 500, dueling=True),
    "gorila": configured(GORILA, 600),
}

FROZEN = {
    "paac": {
        "theta": "21939e1da263b816",
        "histogram": "3c92c7f12611492e",
        "metrics": "f6c092a94809136b",
        "lag": "4d5d67ce7595525e",
        "episodes": "854fba919c40e467",
        "eval": "170e3c7ce5edaaf8",
    },
    "paac, lstm": {
        "theta": "2fb03ba290fd1f28",
        "histogram": "f0afad41624244d4",
        "metrics": "8b65ce0de851a498",
        "lag": "c53c7db664e48e6d",
        "episodes": "fd17c90555e859c2",
        "eval": "0e947d4cdd9aa79a",
    },
    "paac, gae": {
        "theta": "6f4a29f7c3cd648e",
        "histogram": "3c92c7f12611492e",
        "metrics": "cb443aa78b1f2e36",
        "lag": "4d5d67ce7595525e",
        "episodes": "854fba919c40e467",
        "eval": "170e3c7ce5edaaf8",
    },
    "paac, monte_carlo": {
        "theta": "6bf0b226ca0bf548",
        "histogram": "e7e0814d6609c9ea",
        "metrics": "909bca80db78c88b",
        "lag": "339839d54a98f4da",
        "episodes": "abc754c7cf236e01",
        "eval": "4cda6b7db678dad7",
    },
    "a3c": {
        "theta": "32f9a2483393f3c6",
        "histogram": "1f96d0b55cf8dc6c",
        "metrics": "6455310e8794a045",
        "lag": "d98156a28c2535f0",
        "episodes": "ae303bf91386eef9",
        "eval": "6971f729dd255de6",
    },
    "ga3c": {
        "theta": "e0a346830481273d",
        "histogram": "70441f0cae70ee49",
        "metrics": "beba6ab78eea55a2",
        "lag": "aa43b684df7ada75",
        "episodes": "29ef5baca25dcb11",
        "eval": "5222b231eeef5757",
    },
    "dqn": {
        "theta": "b3e6c6726bcb6006",
        "histogram": "f6d4abaabeeffc79",
        "metrics": "6bf433611a052668",
        "lag": "4bbc4d2f8b18089c",
        "episodes": "cbab14a48cd77969",
        "eval": "bb3834d83436f3ab",
    },
    "dqn, double, dueling, prioritized": {
        "theta": "269d4208d8309ca1",
        "histogram": "521c39b0e3cf0db8",
        "metrics": "b9bc3060a128a7b1",
        "lag": "1ee9201af2b47e73",
        "episodes": "a5ab2db4f9c0a50e",
        "eval": "9571f1adf0584117",
    },
    "gorila": {
        "theta": "8d2b35315721e81f",
        "histogram": "761711255c2419e2",
        "metrics": "b50b36e455444338",
        "lag": "9456a80b34c91e7f",
        "episodes": "652a9185acd8c96e",
        "eval": "6ab68e96e44af733",
    },
}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def reference() -> str:
    """What this CPU and this torch make of the operations that matter."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(5, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3), torch.nn.LogSoftmax(-1)
    )
    x = torch.randn(33, 5)
    lstm, _ = torch.nn.LSTMCell(5, 6)(x)
    (network(x).sum() + lstm.exp().sum()).backward()  # type: ignore[no-untyped-call]
    parts = [lstm.detach(), torch.linalg.qr(x)[0], *(p.grad for p in network.parameters() if p.grad is not None)]
    return digest(*(part.numpy().tobytes() for part in parts), np.random.default_rng(0).random(9).tobytes())


def table(file: Path) -> str:
    """The columns that have a value and do not depend on the clock, by name."""
    if not file.exists():
        return "none"
    columns = pd.read_csv(file, dtype=str).dropna(axis=1, how="all")
    kept = [name for name in sorted(columns) if name not in LEFT_OUT]
    return digest(columns[kept].to_csv(index=False).encode())


def hashes(directory: Path) -> dict[str, str]:
    parts = torch.load(directory / "checkpoint" / "latest.pt", weights_only=True)["parts"]
    theta = torch.cat([tensor.flatten() for tensor in parts["network"].values()])
    histogram = pd.read_csv(directory / "lag_histogram.csv", dtype=str)
    of_counts = histogram[~histogram.unit.isin(LATER_UNITS | {"lag_seconds"})].to_csv(index=False).encode()
    tables = {name: table(directory / f"{name}.csv") for name in ("metrics", "lag", "episodes", "eval")}
    return {"theta": digest(theta.numpy().tobytes()), "histogram": digest(of_counts), **tables}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_computes_what_it_always_did(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reference() != REFERENCE:
        pytest.skip("this CPU or this torch rounds otherwise than those whose numbers are frozen here")
    take_turns(monkeypatch, a3c, bundles)
    train(RUNS[name], tmp_path)
    assert hashes(tmp_path) == FROZEN[name]
