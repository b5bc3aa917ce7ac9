"""Asynchronous Q-learners: their rollouts, their lag, whole runs, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from test_async_q import ALL, CONSTANT, N_STEP, ONE_STEP, act, configured, make_workers, shake
from turns import take_turns

from a3c_bench.algos import async_q
from a3c_bench.algos.settings import StaleConfig
from a3c_bench.config import compose
from a3c_bench.errors import ConfigError
from a3c_bench.runtime import checkpoint
from a3c_bench.schema import BudgetConfig, LagConfig, NetworkConfig
from a3c_bench.train import check_run, train

# --- rollouts and lag -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_rollout_ends_with_its_episode_and_holds_no_phantom(name: str) -> None:
    (worker,) = make_workers(configured(ALL[name], t_max=20))
    lengths, n_steps = [], 0
    for _ in range(25):
        rollout = act(worker, epsilon=1.0)
        batch = rollout.batch()
        ended = (batch.terminated | batch.truncated)[:, 0]
        assert batch.valid.all()
        assert not ended[:-1].any()
        assert rollout.length == 20 or ended[-1]
        lengths.append(rollout.length)
        n_steps += rollout.length
        worker.learn(rollout)
    assert min(lengths) < 20 == max(lengths)
    assert worker.shared.tally.agent_steps == n_steps
    assert len(worker.notes.pending.episodes) > 3


@pytest.mark.parametrize("k", [0, 1, 4])
def test_staleness_is_what_others_applied_meanwhile(k: int) -> None:
    first, second = make_workers(configured(N_STEP), 2)
    for worker in (second, first, second):
        worker.update()
    rollout = act(first)
    frames = first.shared.tally.agent_steps
    for _ in range(k):
        second.update()
    first.learn(rollout)
    lag = first.notes.pending.lags[-1]
    assert lag["gradient_staleness_updates"].tolist() == [k]
    assert lag["lag_updates"].tolist() == lag["lag_gradient_updates"].tolist() == [k] * rollout.length
    others = first.shared.tally.agent_steps - frames
    assert lag["lag_frames"].tolist() == [others + rollout.length - t for t in range(rollout.length)]


def test_steps_are_shorter_for_stale_gradients_if_it_is_asked_for() -> None:
    thetas = {}
    for name, stale in (("as they are", StaleConfig()), ("aware", StaleConfig(aware=True)),
                        ("compensated", StaleConfig(delay_compensation=2.0))):  # fmt: skip
        first, second = make_workers(configured(ONE_STEP, stale=stale), 2)
        rollout = act(first)
        for _ in range(3):
            second.update()
        before = first.shared.theta.clone()
        first.learn(rollout)
        thetas[name] = first.shared.theta - before
    torch.testing.assert_close(thetas["aware"], thetas["as they are"] / 4, rtol=1e-3, atol=1e-7)
    assert not torch.allclose(thetas["compensated"], thetas["as they are"])


def test_the_learning_rate_falls_on_the_frames_of_all() -> None:
    config = configured(ONE_STEP, optimizer=replace(CONSTANT, anneal=True))
    (worker,) = make_workers(config)
    worker.shared.tally.begin(config.budget.frames // 2, 0)  # type: ignore[operator]
    rollout = act(worker)
    worker.learn(rollout)
    rate = float(worker.notes.pending.figures[-1]["learning_rate"])
    assert rate == pytest.approx(0.01 * (0.5 - rollout.length / 1200))


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_run_learns_from_every_step_and_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its target network goes on with it; what it does over two attempts is in one table."""
    take_turns(monkeypatch, async_q)
    config = replace(configured(ALL[name], target_period_frames=70), budget=BudgetConfig(frames=500))
    assert train(replace(config, budget=BudgetConfig(frames=250)), tmp_path)["state"] == "finished"
    parts = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")["parts"]
    assert int(parts["target"]["passed"]) >= 3
    theta = torch.cat([part.flatten() for part in parts["network"].values()])
    assert not torch.equal(parts["target"]["values"], theta)
    assert train(config, tmp_path)["state"] == "finished"
    after = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")["parts"]["target"]
    assert int(after["passed"]) >= 7
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics["frames"].iloc[-1] >= 500
    assert metrics["epsilon"].iloc[-1] == pytest.approx(0.3)
    assert metrics["loss"].notna().all()
    assert metrics["max_q"].notna().any()
    assert metrics["discounted_return"].max() > 1.0
    samples = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    assert samples["lag_updates"] == metrics["agent_steps"].iloc[-1]
    lag = pd.read_csv(tmp_path / "lag.csv")
    assert lag["gradient_staleness_updates_mean"].iloc[-1] == pytest.approx(0.0)  # they take turns
    evaluated = pd.read_csv(tmp_path / "eval.csv")
    assert set(evaluated["policy"]) == {"epsilon_greedy"}


@pytest.mark.parametrize(
    "changes",
    [
        {"double": True},
        {"gamma": 0.5},
        {"t_max": 3},
        {"envs_per_worker": 2},
        {"target_period_frames": 30},
        {"td_error_clip": 0.1},
        {"loss_reduction": "mean"},
        {"epsilon_start": 0.5},
        {"epsilon_ends": (0.9,)},
        {"epsilon_horizon_frames": 10_000},
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(changes: dict[str, Any]) -> None:
    thetas = []
    for options in (ONE_STEP, replace(ONE_STEP, **changes)):
        (worker,) = make_workers(configured(options))
        shake(worker, 3.0)
        for _ in range(15):
            worker.update()
        thetas.append(worker.shared.theta)
    assert not torch.equal(*thetas)


def test_statistics_of_their_own_and_a_lock() -> None:
    first, second = make_workers(configured(ONE_STEP, shared_statistics=False, lock=True), 2)
    first.update()
    assert first.shared.lock is not None
    assert second.shared.state.tensors["square"].abs().max() == 0.0
    second.update()
    assert second.shared.state.tensors["square"].abs().max() > 0.0
    shared, other = make_workers(configured(ONE_STEP), 2)
    shared.update()
    assert other.shared.lock is None
    assert other.shared.state.tensors["square"] is shared.shared.state.tensors["square"]


@pytest.mark.parametrize("name", ALL)
def test_what_they_cannot_do_is_refused(name: str) -> None:
    config = configured(ALL[name])
    says = {
        f"algo={name} runs its workers on CPU cores: device=cuda is for algo=dqn.": replace(config, device="cuda"),
        f"network.lstm_size=8 is for actor-critics: algo={name} has feed-forward networks, as in the paper.": replace(
            config, network=NetworkConfig(lstm_size=8)
        ),
        "network.shared_trunk=false is for actor-critics: a Q-network has one trunk.": replace(
            config, network=NetworkConfig(shared_trunk=False)
        ),
        f"lag.gradient_cosine_every_updates=5 is for actor-critics: algo={name} is none.": replace(
            config, lag=LagConfig(gradient_cosine_every_updates=5)
        ),
        f"advantage=gae is for actor-critics: algo={name} has none.": replace(
            config, advantage=replace(config.advantage, kind="gae")
        ),
        "algo.epsilon_shares=[0.5] must be as many as algo.epsilon_ends (2), and add up to 1.": replace(
            config, algo=replace(config.algo, epsilon_ends=(0.1, 0.2), epsilon_shares=(0.5,))
        ),
        "algo.epsilon_shares=[0.5,0.6] must be as many as algo.epsilon_ends (2), and add up to 1.": replace(
            config, algo=replace(config.algo, epsilon_ends=(0.1, 0.2), epsilon_shares=(0.5, 0.6))
        ),
    }
    for sentence, wrong in says.items():
        with pytest.raises(ConfigError) as refused:
            check_run(wrong)
        assert str(refused.value) == sentence


def test_sarsa_has_no_double() -> None:
    with pytest.raises(ConfigError, match=r"algo\.double"):
        compose(["algo=one_step_sarsa", "algo.double=true"])


def test_one_worker_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    take_turns(monkeypatch, async_q)
    train(replace(configured(ONE_STEP, n_workers=1), budget=BudgetConfig(frames=100)), tmp_path)
    assert "algo=one_step_q trains with one worker" in caplog.text
