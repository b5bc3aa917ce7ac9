"""Whole runs of Gorila, with processes: what is refused, counts, and going on with everything."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from gorila_parts import REPLAY, SMALL, with_algo, with_replay

from a3c_bench.algos import gorila
from a3c_bench.errors import ConfigError
from a3c_bench.runtime.session import Session
from a3c_bench.schema import BudgetConfig, Config
from a3c_bench.train import check_run, train


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replace(SMALL, device="cuda"), "runs its bundles on CPU cores: device=cuda is for algo=dqn"),
        (with_replay(capacity_agent_steps=7), "capacity_agent_steps=7 is smaller than a batch of 8"),
        (with_replay(learning_starts_agent_steps=1000), "is not below the budget of 1000 agent steps"),
        (with_replay(kind="both"), "algo.replay.kind=both is not known: choose one of local, global"),
        (with_algo(target_period_updates=0), "target_period_updates=0 must be at least 1"),
        (with_algo(max_staleness_updates=-1), "max_staleness_updates=-1 must be at least 0"),
        (with_algo(max_loss_deviations=0.0), "max_loss_deviations=0.0 must be greater than 0"),
        (with_algo(n_shards=0), "n_shards=0 must be at least 1"),
        (with_algo(n_learners=101), "n_learners=101 with algo.n_shards=2 would share more files"),
        (with_algo(n_shards=49), "n_learners=2 with algo.n_shards=49 would share more files"),
        (with_algo(epsilon_end=-0.1), "epsilon_end=-0.1 must be at least 0"),
        (
            with_replay(capacity_agent_steps=10**12),
            r"a replay of 1,000,000,000,000 agent steps, 2 times, needs [\d,]{15,} bytes of memory",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_run_is_refused(config: Config, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("a3c_bench.runtime.machine.resolve_device", torch.device)
    with pytest.raises(ConfigError, match=sentence):
        check_run(config)


@pytest.mark.parametrize(
    "config",
    [SMALL, with_algo(n_actors=1, n_learners=2, n_shards=1, replay=replace(REPLAY, kind="global"))],
    ids=["bundles", "global"],
)
def test_a_run_counts_every_step_and_update(config: Config, tmp_path: Path) -> None:
    status = train(config, tmp_path)
    assert status["state"] == "finished"
    assert multiprocessing.active_children() == []
    assert status["frames"] >= 1000
    assert 200 <= status["updates"] <= status["frames"] // 4
    lag = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    assert set(lag.index) == {
        *("lag_updates", "lag_frames", "lag_seconds"), "replay_age_frames", "gradient_staleness_updates",
        *("lag_rollout_updates", "lag_queue_updates", "lag_gradient_updates"),
    }  # fmt: skip
    assert lag["lag_updates"] == lag["replay_age_frames"] == status["updates"] * 8
    assert lag["gradient_staleness_updates"] == status["updates"]
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    wanted = ["loss", "td_error", "max_q", "discounted_return", "epsilon", "replay_agent_steps"]
    assert metrics[[*wanted, "discarded_stale_share", "discarded_outlier_share"]].notna().all(axis=None)
    episodes = pd.read_csv(tmp_path / "episodes.csv")
    assert episodes.frames.nunique() > 0.7 * len(episodes)  # of their ends, not of reports
    assert (episodes.frames.between(episodes.episode_length, status["frames"])).all()
    assert (episodes.wall_seconds.between(0.0, status["wall_seconds"])).all()
    assert status["agent_steps"] - 2 * 500 <= episodes.episode_length.sum() <= status["agent_steps"]
    saved = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert saved["parts"]["server"]["versions"][0] == status["updates"]


def test_one_bundle_is_never_stale(tmp_path: Path) -> None:
    train(replace(with_algo(n_learners=1, n_shards=1), budget=BudgetConfig(frames=800)), tmp_path)
    lag = pd.read_csv(tmp_path / "lag.csv")
    assert (lag.gradient_staleness_updates_max == 0).all()
    assert (lag.replay_age_frames_max > 0).all()
    assert (lag.lag_seconds_p50 >= 0).all()


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop_after(n)` sends SIGTERM to the parent when n updates have been reported."""
    real = Session.take

    def install(number: int) -> None:
        def take(session: Session, report: Any) -> None:
            real(session, report)
            if session.counters.updates >= number:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Session, "take", take)

    return install


@pytest.mark.timeout(300)  # two starts, of three processes each
def test_a_run_goes_on_with_everything(
    tmp_path: Path,
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Parameters, target network, optimiser state, counters, and replays that are in files."""
    algo = replace(SMALL.algo, n_shards=1, replay=replace(REPLAY, storage="memmap"))
    config = replace(SMALL, algo=algo, budget=BudgetConfig(frames=2000))
    stop_after(100)
    assert train(config, tmp_path)["state"] == "preempted"
    saved = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert sorted(saved["parts"]) == ["network", "replay_0", "replay_1", "replays", "server", "statistics_0"]
    n_kept = int(saved["parts"]["replays"]["kept"].split()[0])
    assert 0 <= saved["counters"]["agent_steps"] - n_kept <= 2
    assert (tmp_path / "replay" / "1" / "frames.npy").exists()
    restored: dict[str, Any] = {}
    begin = Session.begin

    def keep(session: Session, **parts: Any) -> None:
        begin(session, **parts)
        for name, part in parts.items():
            state = part.state_dict()
            restored[name] = {key: x.clone() if torch.is_tensor(x) else x for key, x in state.items()}
            if name.startswith("replay_"):
                restored[f"{name}_steps"] = len(part)

    monkeypatch.setattr(Session, "begin", keep)
    stop_after(10**9)
    status = train(config, tmp_path)
    assert (status["state"], status["attempts"]) == ("finished", 2)
    assert f"Replays kept: {n_kept} agent steps in replay/." in caplog.text
    for name, part in saved["parts"].items():
        for key, value in part.items() if name != "replays" else ():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(restored[name][key])), (name, key)
    stored = restored["replay_0_steps"] + restored["replay_1_steps"]
    assert 0 <= saved["counters"]["agent_steps"] - stored <= 2
    assert status["updates"] > saved["counters"]["updates"]
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics.frames.is_monotonic_increasing
    assert metrics.replay_agent_steps.iloc[-1] > stored


def test_bundles_by_the_number_of_cores_may_be_more_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: Callable[[int], None]
) -> None:
    config = replace(with_algo(n_learners=None, n_shards=1), budget=BudgetConfig(frames=2000))
    monkeypatch.setattr(gorila, "usable_cores", lambda: 1)
    stop_after(10)
    assert train(config, tmp_path)["state"] == "preempted"
    monkeypatch.setattr(gorila, "usable_cores", lambda: 2)
    stop_after(10**9)
    assert train(config, tmp_path)["state"] == "finished"
