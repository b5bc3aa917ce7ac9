"""PAAC: its update against a naive one, its masks, its lag, its determinism, and every switch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from common import TIMES, FakeSession, small

from a3c_bench.algos.paac import PAAC, PAACConfig
from a3c_bench.core.optim import set_learning_rate
from a3c_bench.core.q_actor_critic import QActorCritic
from a3c_bench.evaluation import load_network
from a3c_bench.schema import (
    AdvantageConfig,
    BudgetConfig,
    Config,
    EvaluationConfig,
    LagConfig,
    NetworkConfig,
    OptimizerConfig,
)
from a3c_bench.train import train

SMALL = small(PAACConfig(n_envs=3, t_max=4, optimizer=OptimizerConfig()), n_torch_threads=1)


def make_paac(config: Config) -> PAAC:
    torch.set_num_threads(1)
    return PAAC(config, FakeSession(config))  # type: ignore[arg-type]


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


def act_until_a_phantom(paac: PAAC) -> None:
    for _ in range(200):
        paac.actor.act()
        if not paac.actor.rollout.batch().valid.all():
            return
    raise AssertionError("no episode ended")


def test_the_variance_of_the_gradient_is_taken_before_clipping() -> None:
    paac = make_paac(with_algo(optimizer=OptimizerConfig(lr=0.01, max_grad_norm=1e-6, anneal=False)))
    session: Any = paac.session
    unclipped: list[torch.Tensor] = []
    clip = paac.parameters.clip_gradients

    def noting(max_norm: float | None) -> torch.Tensor:
        unclipped.append(paac.parameters.gradients.clone())
        return clip(max_norm)

    paac.parameters.clip_gradients = noting  # type: ignore[method-assign]
    for _ in range(2):
        paac.update()
    assert "gradient_variance" not in session.metrics[0]
    expected = (unclipped[1] - unclipped[0]).square().sum() / 2.0
    assert session.metrics[1]["gradient_variance"] == pytest.approx(float(expected))
    assert float(expected) > 1e-9


@pytest.mark.parametrize("lstm_size", [None, 5])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_over_envs"])
def test_one_update_equals_the_papers_sums(reduction: str, lstm_size: int | None, naive_gradient: Any) -> None:
    """Sample by sample: n-step returns, loss, torch's own backward, clipping and RMSProp by hand."""
    optimizer = OptimizerConfig(lr=0.01, epsilon=0.1, max_grad_norm=0.05, anneal=False)
    config = with_algo(loss_reduction=reduction, optimizer=optimizer)
    paac = make_paac(replace(config, network=replace(config.network, lstm_size=lstm_size)))
    act_until_a_phantom(paac)
    rollout, options = paac.actor.rollout, paac.options
    before = paac.parameters.values.detach().clone()

    total, gradient = naive_gradient(paac.network, rollout, options)
    norm = gradient.norm()
    gradient = gradient * min(1.0, 0.05 / float(norm))
    square = 0.01 * gradient**2
    expected = before - 0.01 * gradient / torch.sqrt(square + 0.1)

    paac.learn(paac.actor.rollout)
    session: Any = paac.session
    torch.testing.assert_close(paac.parameters.values.detach(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(session.metrics[-1]["gradient_norm"], norm, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(session.metrics[-1]["loss"], total.detach(), rtol=1e-4, atol=1e-6)


def test_phantom_samples_change_nothing() -> None:
    """Whatever stands in a phantom row, the update and the figures are the same."""
    plain, scrambled = make_paac(SMALL), make_paac(SMALL)
    for paac in (plain, scrambled):
        act_until_a_phantom(paac)
    phantom = ~scrambled.actor.rollout.batch().valid
    scrambled.actor.rollout.actions[phantom] = 1 - scrambled.actor.rollout.actions[phantom]
    scrambled.actor.rollout._rewards[phantom] = 1e6
    scrambled.actor.rollout.log_probs[phantom] = -50.0
    for paac in (plain, scrambled):
        paac.learn(paac.actor.rollout)
    torch.testing.assert_close(plain.parameters.values, scrambled.parameters.values, rtol=0, atol=0)
    first, second = plain.session, scrambled.session
    assert first.metrics[-1] == second.metrics[-1]  # type: ignore[attr-defined]
    n_valid = int((~phantom).sum())
    assert len(second.lags[-1]["lag_updates"]) == len(second.lags[-1]["lag_kl_nats"]) == n_valid  # type: ignore[attr-defined]


def test_counters_leave_phantoms_out() -> None:
    paac = make_paac(SMALL)
    n_phantoms = 0
    for _ in range(60):
        paac.actor.act()
        n_phantoms += int((~paac.actor.rollout.batch().valid).sum())
        paac.learn(paac.actor.rollout)
    assert n_phantoms > 5
    assert paac.session.counters.agent_steps == 60 * 3 * 4 - n_phantoms


def test_an_artificial_delay_is_measured() -> None:
    """The measurement can show something other than 0: two updates between acting and learning."""
    paac = make_paac(SMALL)
    paac.actor.act()
    paac.learn(paac.actor.rollout)
    paac.learn(paac.actor.rollout)  # the same samples again: now one update old
    paac.learn(paac.actor.rollout)
    lags: Any = paac.session
    assert [set(lag["lag_updates"].tolist()) for lag in lags.lags] == [{0}, {1}, {2}]
    assert float(lags.lags[0]["lag_kl_nats"].max()) < 1e-6 < float(lags.lags[2]["lag_kl_nats"].max())
    n_steps = [4 * 3 - 3 * t for t in range(4)]  # frames simulated since the actions of row t were chosen
    assert sorted(set(lags.lags[0]["lag_frames"].tolist()), reverse=True) == n_steps


def test_lag_is_zero_for_every_sample_of_a_run(tmp_path: Path) -> None:
    status = train(replace(SMALL, lag=LagConfig(divergence_every_updates=1)), tmp_path)
    lag = pd.read_csv(tmp_path / "lag.csv")
    assert len(lag) >= 5
    assert (lag.value_lag_max < 1e-5).all()
    assert (lag.lag_updates_max == 0).all()
    assert (lag.lag_kl_nats_max < 1e-6).all()
    assert ((lag.importance_ratio_mean - 1).abs() < 1e-5).all()
    histogram = pd.read_csv(tmp_path / "lag_histogram.csv")
    updates = histogram[histogram.unit == "lag_updates"]
    assert updates[["lower", "upper"]].values.tolist() == [[0.0, 1e-9]]
    for _, rows in histogram.groupby("unit"):
        assert rows.samples.sum() == status["agent_steps"]  # every agent step is trained on once


def test_lag_can_be_switched_off(tmp_path: Path) -> None:
    train(replace(SMALL, lag=LagConfig(enabled=False)), tmp_path)
    assert pd.read_csv(tmp_path / "lag.csv").lag_updates_mean.isna().all()


def test_one_seed_gives_equal_numbers_and_another_does_not(tmp_path: Path) -> None:
    tables = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(replace(SMALL, seed=seed), tmp_path / name)
        tables[name] = {
            file: pd.read_csv(tmp_path / name / file).drop(columns=TIMES, errors="ignore")
            for file in ("metrics.csv", "episodes.csv", "eval.csv")
        }
    for file, table in tables["first"].items():
        pd.testing.assert_frame_equal(table, tables["again"][file])
        assert not table.equals(tables["other"][file])


def test_the_learning_rate_falls_to_zero_over_the_budget(tmp_path: Path) -> None:
    train(SMALL, tmp_path)
    rows = pd.read_csv(tmp_path / "metrics.csv")
    middle_of_interval = rows.frames - rows.frames.diff().fillna(rows.frames[0]) / 2
    expected = SMALL.algo.optimizer.lr * (1 - middle_of_interval / 1200)
    np.testing.assert_allclose(rows.learning_rate, expected, rtol=0.02, atol=SMALL.algo.optimizer.lr * 0.02)
    constant = with_algo(optimizer=OptimizerConfig(anneal=False))
    train(constant, tmp_path / "constant")
    assert set(pd.read_csv(tmp_path / "constant" / "metrics.csv").learning_rate) == {SMALL.algo.optimizer.lr}


def trained_parameters(config: Config, n_updates: int = 12) -> torch.Tensor:
    paac = make_paac(config)
    for _ in range(n_updates):
        paac.actor.act()
        set_learning_rate(paac.learner.optimizer, 0.01)
        paac.learn(paac.actor.rollout)
    paac.close()
    return paac.parameters.values.detach()


OPTIMIZER_CHANGES = [
    {"kind": "adam"},
    {"epsilon": 0.01},
    {"decay": 0.9},
    {"epsilon_inside_root": False},
    {"initial_square": 1.0},
    {"centered": True},
    {"max_grad_norm": 0.01},
]
ALGO_CHANGES = [
    {"n_envs": 2},
    {"t_max": 3},
    {"gamma": 0.5},
    {"entropy_weight": 0.5},
    {"value_weight": 0.01},
    {"loss_reduction": "sum"},
    {"loss_reduction": "mean"},
]


@pytest.mark.parametrize(
    "config",
    [
        *(with_algo(**change) for change in ALGO_CHANGES),
        *(with_algo(optimizer=replace(SMALL.algo.optimizer, **change)) for change in OPTIMIZER_CHANGES),
        *(
            replace(SMALL, advantage=AdvantageConfig(kind=kind))
            for kind in ("gae", "td", "total_reward", "monte_carlo", "baseline")
        ),
        replace(SMALL, network=replace(SMALL.network, activation="relu")),
        replace(SMALL, network=replace(SMALL.network, initialisation="fan_in")),
        replace(SMALL, network=replace(SMALL.network, input_mean=0.5)),
        replace(SMALL, network=replace(SMALL.network, input_std=0.5)),
        replace(SMALL, network=replace(SMALL.network, hidden_sizes=(9,))),
        replace(SMALL, network=replace(SMALL.network, shared_trunk=False)),
        replace(SMALL, seed=1),
    ],
    ids=str,
)
def test_every_option_changes_what_is_learnt(config: Config) -> None:
    plain, changed = trained_parameters(SMALL), trained_parameters(config)
    assert plain.shape != changed.shape or not torch.allclose(plain, changed)


@pytest.mark.parametrize("changes", [({"beta1": 0.5}), ({"beta2": 0.9})])
def test_adams_moments_are_options(changes: dict[str, float]) -> None:
    adam = OptimizerConfig(kind="adam", epsilon=1e-5)
    plain = trained_parameters(with_algo(optimizer=adam))
    assert not torch.allclose(plain, trained_parameters(with_algo(optimizer=replace(adam, **changes))))


def test_gae_lambda_is_an_option() -> None:
    tables = [
        trained_parameters(replace(SMALL, advantage=AdvantageConfig(kind="gae", gae_lambda=value)))
        for value in (0.95, 0.5)
    ]
    assert not torch.allclose(*tables)


def test_the_baseline_of_psi_q_is_an_option() -> None:
    psi = AdvantageConfig(kind="q")
    one, raw = (trained_parameters(replace(SMALL, advantage=each)) for each in (psi, replace(psi, q_baseline=False)))
    assert one.shape == raw.shape
    assert not torch.allclose(one, raw)


def test_with_a_critic_of_actions_a_rollout_ends_with_the_mean_of_q() -> None:
    paac = make_paac(replace(SMALL, advantage=AdvantageConfig(kind="q")))
    assert isinstance(paac.network, QActorCritic)
    for _ in range(3):
        paac.update()
    rollout = paac.act()
    ends = torch.zeros(1, 3, dtype=torch.bool)
    log_probs, q = paac.network.unroll_q(rollout.observations[4:], paac.network.initial_state(3), ends)
    expected = [sum(float((log_probs[0, b, a].exp() * q[0, b, a]).detach()) for a in range(2)) for b in range(3)]
    assert rollout.bootstrap.tolist() == pytest.approx(expected, abs=1e-6)
    assert rollout.bootstrap.abs().min() > 1e-3


def test_a_critic_of_actions_is_found_again_in_a_checkpoint(tmp_path: Path) -> None:
    config = replace(SMALL, advantage=AdvantageConfig(kind="q"), budget=BudgetConfig(frames=60))
    assert train(config, tmp_path)["final"]["evaluation_games"] == 2
    file = tmp_path / "checkpoint" / "latest.pt"
    network = load_network(config, file, torch.device("cpu"))
    assert isinstance(network, QActorCritic)
    saved = torch.load(file, weights_only=True)["parts"]["network"]
    assert saved["value_head.weight"].shape == (2, 8)
    assert torch.equal(network.value_head.weight.detach(), saved["value_head.weight"])


def test_paac_learns_cartpole_in_seconds(tmp_path: Path) -> None:
    """A random policy lives for about 22 agent steps."""
    optimizer = OptimizerConfig(kind="adam", lr=0.003, epsilon=1e-5, max_grad_norm=0.5)
    algo = PAACConfig(n_envs=16, t_max=16, value_weight=0.5, loss_reduction="mean", optimizer=optimizer)
    config = replace(
        SMALL,
        algo=algo,
        network=NetworkConfig(),
        budget=BudgetConfig(frames=120_000),
        metrics_interval_frames=10_000,
        evaluation=EvaluationConfig(n_games=10),
    )
    assert train(config, tmp_path)["final"]["evaluation_mean_return"] > 150
