"""Where lag arises: the parts of lag_updates add up for every sample of every algorithm, and are what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from common import FakeSession, hold_environments, small
from turns import take_turns

from a3c_bench.algos import a3c, async_q
from a3c_bench.algos.paac import PAAC
from a3c_bench.algos.settings import (
    A3CConfig,
    DQNConfig,
    ForcedLagConfig,
    GA3CConfig,
    GorilaConfig,
    GorilaReplayConfig,
    NStepQConfig,
    OneStepSarsaConfig,
    PAACConfig,
    PGQLConfig,
    PPOConfig,
    PQNConfig,
)
from a3c_bench.core.lag import LagMeter, Stamp, split
from a3c_bench.core.replay import lag_of
from a3c_bench.core.rollout import Batch
from a3c_bench.parallel import bundles
from a3c_bench.parallel.tally import EARLIER, Tally
from a3c_bench.schema import BudgetConfig, LagConfig, OptimizerConfig, ReplayConfig
from a3c_bench.train import train

PARTS = ROLLOUT, QUEUE, GRADIENT = "lag_rollout_updates", "lag_queue_updates", "lag_gradient_updates"
REPLAY: dict[str, Any] = {"capacity_agent_steps": 200, "learning_starts_agent_steps": 40, "batch_size": 8}
SMALL_PAAC = PAACConfig(n_envs=3, t_max=4)
RUNS: dict[str, tuple[Any, set[str]]] = {  # with the parts that there may be
    "paac": (SMALL_PAAC, set()),
    "paac, forced": (replace(SMALL_PAAC, lag=ForcedLagConfig(3)), {ROLLOUT}),
    "paac, uniform": (replace(SMALL_PAAC, lag=ForcedLagConfig(2, "uniform")), {ROLLOUT}),
    "paac, overlap": (replace(SMALL_PAAC, overlap=True), {ROLLOUT, QUEUE}),
    "a3c": (A3CConfig(n_workers=2), {ROLLOUT, GRADIENT}),
    "n_step_q": (NStepQConfig(n_workers=2), {ROLLOUT, GRADIENT}),
    "one_step_sarsa": (OneStepSarsaConfig(n_workers=2, envs_per_worker=2), {ROLLOUT, GRADIENT}),
    "ga3c": (GA3CConfig(n_agents=8, n_predictors=2, n_trainers=2, min_training_batch=10), {*PARTS}),
    "ga3c, in lock step": (GA3CConfig(n_agents=4, synchronous=True), set()),
    "ga3c, paced": (GA3CConfig(n_agents=8, lag_control="pace", max_lag_updates=6), {*PARTS}),
    "dqn": (DQNConfig(replay=ReplayConfig(**REPLAY)), {QUEUE}),
    "dqn, overlap": (DQNConfig(n_envs=2, overlap=True, replay=ReplayConfig(**REPLAY)), {QUEUE}),
    "pgql": (PGQLConfig(n_envs=3, t_max=4, replay=ReplayConfig(**REPLAY)), {QUEUE}),
    "ppo": (PPOConfig(n_envs=3, t_max=8, n_epochs=2, n_minibatches=3), {GRADIENT}),
    "pqn": (PQNConfig(n_envs=3, t_max=8, n_epochs=2, n_minibatches=3), {GRADIENT}),
    "gorila": (GorilaConfig(n_learners=2, refresh_period_agent_steps=10, replay=GorilaReplayConfig(**REPLAY)),
               {QUEUE, GRADIENT}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_parts_add_up_for_every_sample(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns(monkeypatch, a3c, async_q, bundles)
    algo, there_may_be = RUNS[name]
    if name in ("a3c", "ga3c", "n_step_q", "one_step_sarsa"):  # others apply updates all the time
        stamp, random = Tally.stamp, np.random.default_rng(0)

        def busy(tally: Tally, version: int | None = None) -> Stamp:
            tally.add(EARLIER, updates=int(random.integers(3)))
            return stamp(tally, version)

        monkeypatch.setattr(Tally, "stamp", busy)
    add, seen = LagMeter.add, []

    def noting(meter: LagMeter, **samples: Any) -> None:
        seen.append(np.stack([np.asarray(samples[unit]) for unit in ("lag_updates", *PARTS)]))
        add(meter, **samples)

    monkeypatch.setattr(LagMeter, "add", noting)
    config = small(algo, budget=BudgetConfig(frames=500), n_torch_threads=1, metrics_interval_frames=10_000)
    train(config, tmp_path)
    lags = np.concatenate(seen, axis=1)
    assert lags.shape[1] > 100
    np.testing.assert_array_equal(lags[0], lags[1:].sum(0))
    assert lags.min() == 0
    assert (lags.max() > 0) == bool(there_may_be)
    assert {part for part, own in zip(PARTS, lags[1:], strict=True) if own.max() > 0} <= there_may_be
    row = pd.read_csv(tmp_path / "lag.csv").iloc[-1]  # of the whole run
    assert sum(row[f"{part}_mean"] for part in PARTS) == pytest.approx(row.lag_updates_mean, rel=1e-4)
    samples = pd.read_csv(tmp_path / "lag_histogram.csv").groupby("unit").samples.sum()
    assert {samples[part] for part in PARTS} == {samples["lag_updates"]} == {lags.shape[1]}


def test_the_parts_by_hand() -> None:
    chosen = np.array([2.0, 2.0, 5.0])
    assert {unit: part.tolist() for unit, part in split(chosen, np.array([4.0, 5.0, 5.0]), 9, 10).items()} == {
        ROLLOUT: [2.0, 3.0, 0.0],
        QUEUE: [5.0, 4.0, 4.0],
        GRADIENT: [1.0, 1.0, 1.0],
    }


def test_the_parts_of_a_replay_by_hand() -> None:
    """The last step was chosen under a theta that the learner had not fetched yet."""
    origins = np.array([[3.0, 0, 0, 0], [8.0, 0, 0, 0], [11.0, 0, 0, 0]])
    found = lag_of(origins, Stamp(12, 0, 0.0), drawn=10)
    assert {unit: found[unit].tolist() for unit in PARTS} == {
        ROLLOUT: [0.0, 0.0, 0.0],
        QUEUE: [7.0, 2.0, 0.0],
        GRADIENT: [2.0, 2.0, 1.0],
    }


@pytest.mark.parametrize("slow", ["who acts", "who learns"])
def test_the_one_update_of_overlap_is_where_it_was_applied(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    session = FakeSession(small(replace(SMALL_PAAC, overlap=True)))
    paac = PAAC(session.config, session)  # type: ignore[arg-type]
    paac.update()
    held = hold_environments(paac, monkeypatch)
    assert paac.ahead is not None
    rollout = paac.ahead.exchange(paac.choose_policy, paac.actor.act)
    assert paac.ahead.next is not None
    if slow == "who learns":
        held.set()
        paac.ahead.next.result()
    paac.learn(rollout)
    held.set()
    paac.update()
    where, nowhere = (ROLLOUT, QUEUE) if slow == "who acts" else (QUEUE, ROLLOUT)
    assert set(session.lags[-1][where]) == set(session.lags[-1]["lag_updates"]) == {1}
    assert set(session.lags[-1][nowhere]) == set(session.lags[-1][GRADIENT]) == {0}
    paac.close()


def test_a_histogram_of_an_older_version_goes_on_without_the_parts() -> None:
    old = LagMeter()
    old.add(lag_updates=np.array([1, 2]))
    old.interval()
    state = {unit: counts for unit, counts in old.state_dict().items() if unit not in PARTS}
    meter = LagMeter()
    meter.load_state_dict(state)
    meter.add(lag_updates=np.array([2]), lag_queue_updates=np.array([2]))
    assert [row for row in meter.histogram() if row[0] != "lag_updates"] == [(QUEUE, 2.0, 3.0, 1)]
    assert sum(n for unit, *_, n in meter.histogram() if unit == "lag_updates") == 3


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_value_lag_is_how_far_the_value_moved(k: int, overlap: bool) -> None:
    torch.set_num_threads(1)
    algo = replace(SMALL_PAAC, optimizer=OptimizerConfig(lr=0.05), lag=ForcedLagConfig(0 if overlap else k))
    config = small(replace(algo, overlap=overlap and k > 0), lag=LagConfig(divergence_every_updates=2))
    session = FakeSession(config)
    paac = PAAC(config, session)  # type: ignore[arg-type]
    k, thetas = min(k, 1) if overlap else k, []
    for version in range(8):
        thetas.append(paac.parameters.values.detach().clone())
        rollout = paac.ahead.exchange(paac.choose_policy, paac.actor.act) if paac.ahead else paac.act()
        batch = rollout.batch()
        paac.learn(rollout)
        assert ("value_lag" in session.lags[-1]) == (version % 2 == 0)
        if version % 2 == 0:
            then, now = (values_at(paac, theta, batch) for theta in (thetas[max(version - k, 0)], thetas[version]))
            torch.testing.assert_close(session.lags[-1]["value_lag"], (now - then).abs(), rtol=1e-4, atol=1e-6)
            assert (session.lags[-1]["value_lag"].max() > 1e-4) == (k > 0 and version > 0)
    paac.close()


def values_at(paac: PAAC, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
    """V of the samples that are valid, at theta."""
    present = paac.parameters.values.detach().clone()
    with torch.no_grad():
        paac.parameters.values.copy_(theta)
        _, values = paac.network.unroll(batch.observations, batch.state, ~batch.valid)
        paac.parameters.values.copy_(present)
    return values[batch.valid]
