"""A small run, and a session without files, for the tests that step an algorithm themselves."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from a3c_bench.algos.paac import PAAC
from a3c_bench.core.lag import Stamp
from a3c_bench.envs import VectorEnv
from a3c_bench.runtime.clock import PHASES, PhaseTimer, TrainingClock
from a3c_bench.runtime.ledger import WorkerReport
from a3c_bench.runtime.peers import ALONE
from a3c_bench.runtime.recorder import METRIC_COLUMNS
from a3c_bench.runtime.session import Counters
from a3c_bench.schema import BudgetConfig, Config, EnvConfig, EvaluationConfig, NetworkConfig

TIMES = [
    c
    for c in METRIC_COLUMNS
    if "second" in c or c in ("pps", "tps") or c.startswith(("share_", "sent_")) or c == "memory_mib"
]


def small(algo: Any, **changes: Any) -> Config:
    """A run of CartPole that takes a second or so."""
    config = Config(
        algo=algo,
        env=EnvConfig(id="CartPole-v1"),
        network=NetworkConfig(hidden_sizes=(8,)),
        budget=BudgetConfig(frames=1200),
        evaluation=EvaluationConfig(n_games=2, n_envs=2),
        metrics_interval_frames=200,
        progress=False,
    )
    return replace(config, **changes)


class FakeSession:
    """What an algorithm needs of a session, and no files but those of a replay."""

    def __init__(self, config: Config, directory: Path = Path("nowhere"), seconds: float = 0.0) -> None:
        self.config = config
        self.directory = directory
        self.attempt = 1
        self.counters = Counters()
        self.timer = PhaseTimer(*PHASES)
        self.clock = TrainingClock(seconds)
        self.clock.start()
        self.wall_seconds = 0.0
        self.version: int | None = None
        self.lag = self
        self.lags: list[dict[str, Any]] = []
        self.ratios: list[tuple[str, float, float]] = []
        self.metrics: list[dict[str, Any]] = []
        self.peers = ALONE

    def meet(self) -> None:
        """Nobody is there."""

    def count(self, n_agent_steps: int, episodes: Any = ()) -> None:
        self.counters.agent_steps += n_agent_steps
        self.counters.frames += n_agent_steps * self.config.env.frame_skip

    @property
    def theta_version(self) -> int:
        return self.counters.updates

    @property
    def frames(self) -> int:
        return self.counters.frames

    def stamp(self) -> Stamp:
        version = self.counters.updates if self.version is None else self.version
        return Stamp(version, self.counters.frames, self.wall_seconds)

    def take(self, report: WorkerReport) -> None:
        self.count(report.n_agent_steps)

    def updated(self, metrics: dict[str, Any], fit: Any = None) -> None:
        self.counters.updates += 1
        self.metrics.append(metrics if fit is None else metrics | {"fit": [part[fit[2]].tolist() for part in fit]})

    def ratio(self, column: str, part: Any, whole: Any) -> None:
        self.ratios.append((column, float(part), float(whole)))

    def add(self, **lags: Any) -> None:
        self.lags.append(lags)


def hold_environments(paac: PAAC, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """From the rollout after the one that is gathered now, environments wait for the event before each step."""
    held, send = threading.Event(), VectorEnv.send_all

    def slow(envs: VectorEnv, actions: Any) -> None:
        assert held.wait(20.0)
        send(envs, actions)

    assert paac.ahead is not None
    with paac.ahead.standstill():
        monkeypatch.setattr(VectorEnv, "send_all", slow)
    return held
