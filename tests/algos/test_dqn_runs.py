"""DQN: determinism, every switch, its replay over a stop, and bad input."""

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from common import TIMES
from dqn_parts import OPTIMIZER, REPLAY, SMALL, make_dqn, with_algo, with_replay

from a3c_bench import evaluate as evaluate_module
from a3c_bench import play as play_module
from a3c_bench.algos.dqn import DQN
from a3c_bench.algos.paac import PAACConfig
from a3c_bench.core.learning import QBackward, QLearner
from a3c_bench.core.replay import Sample
from a3c_bench.errors import ConfigError
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
from a3c_bench.train import check_run, train

# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", [{}, {"n_envs": 3, "prioritized": True, "n_step": 3, "double": True}])
def test_one_seed_gives_equal_numbers_and_another_does_not(algo: dict[str, Any], tmp_path: Path) -> None:
    tables, saved = {}, {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(replace(with_algo(**algo), seed=seed), tmp_path / name)
        tables[name] = {
            file: pd.read_csv(tmp_path / name / file).drop(columns=TIMES, errors="ignore")
            for file in ("metrics.csv", "episodes.csv", "eval.csv")
        }
        saved[name] = torch.load(tmp_path / name / "checkpoint" / "latest.pt", weights_only=True)["parts"]
    for file, table in tables["first"].items():
        pd.testing.assert_frame_equal(table, tables["again"][file])
        assert not table.equals(tables["other"][file])
    for part in ("network", "target_network"):
        for key, tensor in saved["first"][part].items():
            assert torch.equal(tensor, saved["again"][part][key])


def test_what_a_run_writes(tmp_path: Path) -> None:
    status = train(SMALL, tmp_path)
    assert (status["frames"], status["updates"]) == (400, 90)
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    for column in ("loss", "td_error", "max_q", "discounted_return", "epsilon", "gradient_norm", "learning_rate"):
        assert metrics[column].notna().all(), column
    assert (metrics.discounted_return > 0.0).all()
    assert metrics.epsilon.tolist() == pytest.approx([0.73, 0.28, 0.1, 0.1])
    assert metrics.replay_agent_steps.tolist() == [100, 200, 300, 400]
    assert metrics[["entropy_nats", "loss_policy", "discarded_stale_share"]].isna().all(axis=None)
    lag = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    parts = {f"lag_{part}_updates" for part in ("rollout", "queue", "gradient")}
    assert set(lag.index) == {"lag_updates", "lag_frames", "lag_seconds", "replay_age_frames", *parts}
    assert (lag == 90 * 8).all()
    assert set(pd.read_csv(tmp_path / "eval.csv").policy) == {"epsilon_greedy"}
    train(replace(SMALL, lag=LagConfig(enabled=False)), tmp_path / "silent")
    assert pd.read_csv(tmp_path / "silent" / "lag.csv").lag_updates_mean.isna().all()


def test_a_checkpoint_is_evaluated_and_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(SMALL, network=replace(SMALL.network, dueling=True))
    train(config, tmp_path)
    assert evaluate_module.main([str(tmp_path), "--games", "3"]) == 0
    explored = capsys.readouterr().out
    assert "epsilon_greedy policy" in explored
    assert evaluate_module.main([str(tmp_path), "--games", "3", "--policy", "greedy"]) == 0
    greedy = capsys.readouterr().out
    assert "greedy policy" in greedy
    assert greedy.splitlines()[1] != explored.splitlines()[1]
    assert play_module.main([str(tmp_path)]) == 0
    assert "agent steps" in capsys.readouterr().out


def test_evaluation_explores_with_its_own_epsilon(tmp_path: Path) -> None:
    """An untrained network lets the pole fall in its own time, chance alone after 22 steps on average."""
    lengths = {}
    for epsilon in (0.0, 1.0):
        protocol = EvaluationConfig(n_games=20, n_envs=5, epsilon=epsilon)
        train(replace(with_replay(learning_starts_agent_steps=399), evaluation=protocol), tmp_path / str(epsilon))
        lengths[epsilon] = pd.read_csv(tmp_path / str(epsilon) / "eval.csv").episode_length
    assert lengths[1.0].mean() == pytest.approx(22, abs=8)
    assert abs(lengths[0.0].mean() - lengths[1.0].mean()) > 1.0


@functools.cache
def trained_parameters(config: Config) -> torch.Tensor:
    dqn, session = make_dqn(config)
    while session.counters.agent_steps < 140:
        dqn.step()
    dqn.envs.close()
    return dqn.parameters.values.detach()


OPTIMIZER_CHANGES: list[dict[str, Any]] = [
    {"kind": "adam"},
    {"kind": "adagrad"},
    {"kind": "adagrad", "initial_square": 1.0},
    {"epsilon": 0.1},
    {"decay": 0.9},
    {"centered": False},
    {"epsilon_inside_root": False},
    {"max_grad_norm": 0.01},
    {"anneal": True},
]
ALGO_CHANGES: list[dict[str, Any]] = [
    {"n_envs": 2},
    {"gamma": 0.5},
    {"n_step": 2},
    {"double": True},
    {"prioritized": True},
    {"update_period_agent_steps": 2},
    {"target_period_agent_steps": 20},
    {"td_error_clip": 0.1},
    {"td_error_clip": None},
    {"loss_reduction": "mean"},
    {"epsilon_start": 0.5},
    {"epsilon_end": 0.9},
    {"epsilon_horizon_agent_steps": 1000},
    {"replay": replace(REPLAY, batch_size=4)},
    {"replay": replace(REPLAY, capacity_agent_steps=60)},
    {"replay": replace(REPLAY, learning_starts_agent_steps=100)},
]


@pytest.mark.parametrize(
    "config",
    [
        *(with_algo(**change) for change in ALGO_CHANGES),
        *(with_algo(optimizer=replace(OPTIMIZER, **change)) for change in OPTIMIZER_CHANGES),
        replace(SMALL, network=replace(SMALL.network, activation="relu")),
        replace(SMALL, network=replace(SMALL.network, initialisation="fan_in")),
        replace(SMALL, network=replace(SMALL.network, input_mean=0.5)),
        replace(SMALL, network=replace(SMALL.network, input_std=0.5)),
        replace(SMALL, network=replace(SMALL.network, dueling=True)),
        replace(SMALL, network=replace(SMALL.network, bf16=True)),
        replace(SMALL, seed=1),
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(config: Config) -> None:
    plain, changed = trained_parameters(SMALL), trained_parameters(config)
    assert plain.shape != changed.shape or not torch.allclose(plain, changed)


@pytest.mark.parametrize("change", [{"priority_exponent": 0.1}, {"importance_exponent": 1.0}])
def test_the_exponents_of_priorities_are_options(change: dict[str, float]) -> None:
    plain = trained_parameters(with_algo(prioritized=True))
    assert not torch.allclose(plain, trained_parameters(with_algo(prioritized=True, **change)))


def test_dqn_learns_catch_in_seconds(tmp_path: Path) -> None:
    """A random policy has a mean return of about -0.6."""
    algo = replace(
        SMALL.algo,
        n_envs=8,
        loss_reduction="mean",
        target_period_agent_steps=500,
        epsilon_horizon_agent_steps=4000,
        replay=ReplayConfig(capacity_agent_steps=10_000, learning_starts_agent_steps=500),
        optimizer=OptimizerConfig(kind="adam", lr=1e-3, epsilon=1e-8, anneal=False),
    )
    config = replace(
        SMALL,
        algo=algo,
        env=EnvConfig(id="Catch-v0"),
        network=NetworkConfig(),
        budget=BudgetConfig(frames=10_000),
        evaluation=EvaluationConfig(policy="greedy"),
        metrics_interval_frames=5000,
    )
    assert train(config, tmp_path)["final"]["evaluation_mean_return"] >= 0.8


# --- over a stop ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stop_at_update(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop_at_update(n)` sends SIGTERM in the n-th update from now."""

    def install(number: int) -> None:
        calls = 0

        differentiate = QLearner.differentiate

        def counting(learner: QLearner, sample: Sample) -> QBackward:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return differentiate(learner, sample)

        monkeypatch.setattr(QLearner, "differentiate", counting)

    return install


@pytest.mark.parametrize("storage", ["memory", "memmap"])
def test_a_run_goes_on(storage: str, tmp_path: Path, stop_at_update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything; a replay in memory is filled anew before anything is learnt, one in files is not."""
    config = with_replay(storage=storage)
    stop_at_update(30)
    assert train(config, tmp_path)["state"] == "preempted"
    saved = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert saved["counters"]["updates"] == 30
    agent_steps = saved["counters"]["agent_steps"]
    said = {"memory": "none: it was in memory", "memmap": f"{agent_steps} agent steps in replay/"}
    assert saved["parts"]["progress"]["replay_kept"] == said[storage]
    assert (tmp_path / "replay").exists() == (storage == "memmap")

    begun: list[dict[str, Any]] = []
    first_update: list[int] = []
    step, update = DQN.step, DQN.update

    def watch_step(dqn: DQN) -> None:
        if not begun:
            begun.append(
                {
                    "network": {key: x.clone() for key, x in dqn.network.state_dict().items()},
                    "target_network": {key: x.clone() for key, x in dqn.target_network.state_dict().items()},
                    "square": dqn.learner.optimizer.state[dqn.parameters.values]["square"].clone(),
                    "exploring": dqn.exploring.bit_generator.state,
                    "sampling": dqn.sampling.bit_generator.state,
                    "stored": len(dqn.replay),
                    "epsilon": dqn.epsilon,
                }
            )
        step(dqn)

    def watch_update(dqn: DQN) -> None:
        first_update.append(dqn.session.counters.agent_steps)
        update(dqn)

    monkeypatch.setattr(DQN, "step", watch_step)
    monkeypatch.setattr(DQN, "update", watch_update)
    assert train(config, tmp_path)["state"] == "finished"
    (at_start,) = begun
    parts = saved["parts"]
    for part in ("network", "target_network"):
        for key, tensor in parts[part].items():
            assert torch.equal(tensor, at_start[part][key])
    assert torch.equal(parts["optimizer"]["state"][0]["square"], at_start["square"])
    assert parts["exploring"] == at_start["exploring"]
    assert parts["sampling"] == at_start["sampling"]
    assert at_start["epsilon"] < 0.5
    assert at_start["stored"] == (agent_steps if storage == "memmap" else 0)
    assert first_update[0] - agent_steps == (4 if storage == "memmap" else 43)
    log = (tmp_path / "a3c_bench.log").read_text()
    assert ("The replay holds 0 agent steps: learning waits for 40 more." in log) == (storage == "memory")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (with_replay(capacity_agent_steps=7), "capacity_agent_steps=7 is smaller than a batch of 8"),
        (
            with_replay(learning_starts_agent_steps=400),
            "learning_starts_agent_steps=400 is not below the budget of 400 agent steps",
        ),
        (with_algo(n_envs=300, n_step=3), "leaves 2 for each of 300 environments, and algo.n_step=3 needs at least 4"),
        (with_algo(target_period_agent_steps=0), "target_period_agent_steps=0 must be at least 1"),
        (with_algo(update_period_agent_steps=0), "update_period_agent_steps=0 must be at least 1"),
        (with_algo(epsilon_end=-0.1), "epsilon_end=-0.1 must be at least 0"),
        (with_algo(epsilon_start=1.1), "epsilon_start=1.1 must be at most 1"),
        (with_algo(n_step=0), "n_step=0 must be at least 1"),
        (with_replay(storage="disk"), "storage=disk is not known: choose one of memory, memmap"),
        (
            with_replay(capacity_agent_steps=10**12),
            r"a replay of 1,000,000,000,000 agent steps needs [\d,]{15,} bytes of memory, but only [\d,]+ are",
        ),
        (
            with_replay(capacity_agent_steps=10**12, storage="memmap"),
            r"the index of a replay of 1,000,000,000,000 agent steps needs [\d,]{15,} bytes of memory",
        ),
        (
            replace(with_algo(prioritized=True), budget=BudgetConfig(wall_clock_seconds=1.0)),
            "algo.prioritized=true needs budget.frames",
        ),
        (replace(SMALL, advantage=AdvantageConfig(kind="gae")), "advantage=gae is for actor-critics"),
        (replace(SMALL, network=NetworkConfig(lstm_size=4)), "network.lstm_size=4 is for actor-critics"),
        (replace(SMALL, network=NetworkConfig(shared_trunk=False)), "network.shared_trunk=false is for actor-critics"),
        (replace(SMALL, evaluation=EvaluationConfig(epsilon=-0.5)), "evaluation.epsilon=-0.5 must be at least 0"),
        (replace(SMALL, algo=PAACConfig(), network=NetworkConfig(dueling=True)), "network.dueling=true is for Q-net"),
        (
            replace(SMALL, network=NetworkConfig(hidden_sizes=(), dueling=True)),
            "a dueling network needs a hidden layer",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_run_is_refused(config: Config, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refused:
        check_run(replace(config, algo=replace(config.algo, optimizer=OPTIMIZER)))
    assert "\n" not in str(refused.value)


def test_files_that_the_disk_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any is made."""
    monkeypatch.setattr("a3c_bench.runtime.storage.shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(ConfigError, match=r"the replay needs [\d,]+ bytes in .*replay, but only 100 are free there"):
        train(with_replay(storage="memmap"), tmp_path)
    assert not (tmp_path / "replay").exists()


def test_files_of_another_replay(tmp_path: Path) -> None:
    (tmp_path / "replay").mkdir()
    np.save(tmp_path / "replay" / "frames.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"frames.npy holds float64 of shape \(3,\) and not"):
        train(with_replay(storage="memmap"), tmp_path)
