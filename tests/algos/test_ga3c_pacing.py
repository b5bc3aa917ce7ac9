"""GA3C with agents that are held back: the bound on lag, in whole runs and step by step."""

import itertools
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ga3c_parts import Parts, with_algo

from a3c_bench.algos import ga3c
from a3c_bench.algos.ga3c import Trainer
from a3c_bench.algos.settings import AdjustConfig
from a3c_bench.core.pacing import Pacing
from a3c_bench.errors import ConfigError
from a3c_bench.schema import BudgetConfig, Config, EvaluationConfig
from a3c_bench.train import train

ONE = {"n_predictors": 1, "n_trainers": 1}
ADJUSTED = AdjustConfig(enabled=True, window_seconds=0.05, max_predictors=3, max_trainers=3)


def paced(bound: int, n_frames: int = 200, **changes: Any) -> Config:
    config = with_algo(lag_control="pace", max_lag_updates=bound, **changes)
    return replace(config, budget=BudgetConfig(frames=n_frames))


class Watched(Pacing):
    """Keeps how old rollouts are when a trainer takes them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.began: dict[int, int] = {}
        self.ages: list[int] = []

    def begin(self, slot: int, version: int) -> bool:
        self.began[slot] = version
        return super().begin(slot, version)

    def taken(self, slots: Any, lengths: Any) -> None:
        now = self._version()
        self.ages += [now - self.began[slot] for slot in slots]
        super().taken(slots, lengths)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The pacing of each run that follows."""
    made: list[Watched] = []

    def make(*arguments: Any) -> Watched:
        made.append(Watched(*arguments))
        return made[-1]

    monkeypatch.setattr(ga3c, "Pacing", make)
    return made


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Trainers that are slower than their agents."""
    real = Trainer.learn

    def learn(self: Trainer, *arguments: Any) -> None:
        time.sleep(seconds)
        real(self, *arguments)

    monkeypatch.setattr(Trainer, "learn", learn)


@pytest.mark.parametrize(
    ("bound", "changes"),
    [
        (0, {}),
        (0, ONE | {"min_training_batch": 30, "t_max": 5}),  # all that the agents produce at once
        (1, {"min_training_batch": 20, "n_trainers": 4, "n_predictors": 3, "training_queue_size": 1}),
        (0, {"n_agents": 1, "prediction_batch": 1, "n_predictors": 1, "n_trainers": 2, "t_max": 3}),
        (2, ONE),
        (0, {"min_training_batch": 7, "n_trainers": 3, "adjust": ADJUSTED}),
        (3, {"t_max": 1, "min_training_batch": 4, "n_trainers": 3, "adjust": ADJUSTED}),
    ],
    ids=str,
)
def test_nothing_is_discarded_and_nothing_taken_is_older_than_the_bound(
    bound: int, changes: dict[str, Any], tmp_path: Path, watched: list[Watched]
) -> None:
    """With checkpoints and evaluations in between, at which all stand still."""
    evaluation = EvaluationConfig(n_games=2, n_envs=2, interval_frames=100)
    config = replace(paced(bound, **changes), evaluation=evaluation, checkpoint_interval_seconds=0.05)
    status = train(config, tmp_path)
    assert status["state"] == "finished"
    metrics, lag = pd.read_csv(tmp_path / "metrics.csv"), pd.read_csv(tmp_path / "lag.csv")
    assert set(metrics.discarded_share.dropna()) == {0.0}  # empty where an interval took no sample
    assert len(watched[0].ages) >= status["updates"] > 3
    assert max(watched[0].ages) <= bound
    if config.algo.n_trainers == 1:  # else those that gathered later may come first
        assert lag.lag_updates_max.max() <= bound
    learnt_from = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()["lag_updates"]
    assert status["agent_steps"] - 120 < learnt_from <= status["agent_steps"]


def test_pacing_learns_from_what_discarding_throws_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.02)  # much slower than agents, also on a machine that does other work beside
    pace, share, updates, oldest, held = paced(1, **ONE), {}, {}, {}, {}
    for kind, config in {
        "pace": pace,
        "discard": replace(pace, algo=replace(pace.algo, lag_control="discard")),
        "neither": replace(pace, algo=replace(pace.algo, lag_control="discard", max_lag_updates=None)),
    }.items():
        updates[kind] = train(config, tmp_path / kind)["updates"]
        share[kind] = pd.read_csv(tmp_path / kind / "metrics.csv").discarded_share.max()
        held[kind] = pd.read_csv(tmp_path / kind / "metrics.csv").n_agents_held_back
        oldest[kind] = pd.read_csv(tmp_path / kind / "lag.csv").lag_updates_max.max()
    assert (share["pace"], share["neither"]) == (0.0, 0.0)
    assert share["discard"] > 0.3
    assert updates["pace"] > 1.3 * updates["discard"]
    assert oldest["pace"] <= 1 < oldest["neither"]
    assert held["pace"].max() > 1.0
    assert held["pace"].mean() < pace.algo.n_agents  # in a short interval all may be held back, in most one works
    assert held["discard"].isna().all()


def test_all_agents_take_turns() -> None:
    """Two of six may work at once: whoever has waited longest goes first, and simulates no more than his share."""
    parts = Parts(paced(0, min_training_batch=10))
    steps = np.zeros(6, dtype=int)
    batch: list[int] = []
    for _ in range(400):
        step = parts.agents.receive()
        assert len(step.env_ids) <= 2
        np.add.at(steps, step.env_ids[step.valid], 1)
        for slot in parts.predictor.turn(step) or ():
            serial = parts.staff.pacing.serial(slot)
            parts.staff.pacing.queued(slot, serial)
            parts.staff.pacing.taken([slot], parts.experience.lengths[[slot]])
            batch.append(slot)
        if parts.experience.lengths[batch].sum() >= 10:
            parts.trainer.learn(batch)
            parts.experience.set_free(batch)
            batch = []
    assert steps.min() > 0.5 * steps.mean() > 10


@pytest.mark.parametrize("end", ["budget", "signal"])
def test_a_run_ends_while_all_agents_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    slow(monkeypatch, 0.15)
    config = paced(0, n_frames=100_000, **ONE)
    seconds = 1.0 if end == "budget" else 60.0
    config = replace(config, budget=BudgetConfig(frames=None, wall_clock_seconds=seconds))
    if end == "signal":
        learn, n_calls = Trainer.learn, itertools.count(1)

        def signalling(trainer: Trainer, *arguments: Any) -> Any:
            if next(n_calls) == 4:
                signal.raise_signal(signal.SIGTERM)
            return learn(trainer, *arguments)

        monkeypatch.setattr(Trainer, "learn", signalling)
    began = time.monotonic()
    status = train(config, tmp_path)
    assert status["state"] == {"budget": "finished", "signal": "preempted"}[end]
    assert 0 < status["updates"] < 30
    assert time.monotonic() - began < 30.0
    assert [t.name for t in threading.enumerate() if t.name.startswith("a3c_bench")] == []
    if end == "signal":  # and goes on from there
        seconds = status["wall_seconds"] + 1.0
        again = train(replace(config, budget=BudgetConfig(frames=None, wall_clock_seconds=seconds)), tmp_path)
        assert again["state"] == "finished"
        assert again["updates"] > status["updates"]
        assert pd.read_csv(tmp_path / "lag_histogram.csv").query("unit == 'lag_updates'").lower.tolist() == [0.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_lag_updates": None}, "needs a bound: say algo.max_lag_updates="),
        ({"max_lag_updates": 3, "synchronous": True}, "no lag to pace"),
    ],
    ids=str,
)
def test_what_cannot_be_paced_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train(with_algo(lag_control="pace", **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []
