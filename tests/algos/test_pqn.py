"""PQN: an iteration against a naive loop; its lag, its epsilon, its checkpoint, every switch."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from common import TIMES, FakeSession, small
from torch import Tensor

from a3c_bench import checks
from a3c_bench.algos.pqn import PQN, PQNConfig, workload
from a3c_bench.config import compose
from a3c_bench.core.rollout import Rollout
from a3c_bench.errors import ConfigError
from a3c_bench.runtime import checkpoint
from a3c_bench.schema import BudgetConfig, Config, LagConfig, NetworkConfig, OptimizerConfig
from a3c_bench.train import train

RADAM = OptimizerConfig(kind="radam", lr=0.05, epsilon=1e-8, max_grad_norm=10.0)
ALGO = PQNConfig(
    n_envs=4, t_max=8, n_epochs=2, n_minibatches=4, epsilon_end=0.1, epsilon_horizon_frames=64, optimizer=RADAM
)
NETWORK = NetworkConfig(hidden_sizes=(8,), activation="relu", layer_norm="features")
SMALL = small(ALGO, network=NETWORK, n_torch_threads=1)


def make_pqn(config: Config) -> PQN:
    torch.set_num_threads(1)
    return PQN(config, FakeSession(config))  # type: ignore[arg-type]


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(ALGO, **changes))


def act_until_a_phantom(pqn: PQN) -> Rollout:
    for _ in range(200):
        rollout = pqn.act()
        if not rollout.batch().valid.all():
            return rollout
    raise AssertionError("no episode ended")


def naive(pqn: PQN, rollout: Rollout) -> Tensor:
    """theta after an iteration, sample by sample; pqn is left as it is."""
    options, batch = pqn.options, rollout.batch()
    network = copy.deepcopy(pqn.network)
    radam = torch.optim.RAdam(network.parameters(), RADAM.lr, eps=RADAM.epsilon)
    shuffling = torch.Generator()
    shuffling.set_state(pqn.shuffling.get_state())
    n_steps, n_envs = batch.rewards.shape
    with torch.no_grad():  # of the network at hand, which is who acted
        q = network(rollout.observations.flatten(0, 1)).view(n_steps + 1, n_envs, -1)
    targets = torch.zeros(n_steps, n_envs)
    for i in range(n_envs):
        for t in reversed(range(n_steps)):
            value = float(q[t + 1, i].max())
            if batch.terminated[t, i]:
                following = 0.0
            elif batch.truncated[t, i] or t == n_steps - 1:
                following = value
            else:
                following = options.q_lambda * float(targets[t + 1, i]) + (1 - options.q_lambda) * value
            targets[t, i] = batch.rewards[t, i] + options.gamma * following
    for _ in range(options.n_epochs):
        order = torch.randperm(n_steps * n_envs, generator=shuffling).tolist()
        size = len(order) // options.n_minibatches
        for k in range(options.n_minibatches):
            chosen = [divmod(place, n_envs) for place in order[k * size : (k + 1) * size]]
            chosen = [(t, i) for t, i in chosen if batch.valid[t, i]]
            total = torch.zeros(())
            for t, i in chosen:
                error = targets[t, i] - network(batch.observations[t, i].unsqueeze(0))[0, batch.actions[t, i]]
                total = total + error**2 / 2
            radam.zero_grad()
            (total / len(chosen)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            for group in radam.param_groups:
                group["lr"] = pqn.wiring.learning_rate_at(pqn.session.counters.frames)
            radam.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_an_iteration_equals_the_papers_loop() -> None:
    pqn = make_pqn(SMALL)
    rollout = act_until_a_phantom(pqn)
    before = pqn.parameters.values.detach().clone()
    expected = naive(pqn, rollout)
    pqn.learn(rollout)
    torch.testing.assert_close(pqn.parameters.values.detach(), expected, rtol=1e-3, atol=5e-5)
    assert float((expected - before).abs().max()) > 0.02
    assert pqn.session.counters.updates == 2 * 4


def test_phantom_samples_change_nothing() -> None:
    plain, scrambled = make_pqn(SMALL), make_pqn(SMALL)
    for pqn in (plain, scrambled):
        rollout = act_until_a_phantom(pqn)
    phantom = ~rollout.batch().valid
    rollout.actions[phantom] = 1 - rollout.actions[phantom]
    rollout._rewards[phantom] = 1e6
    for pqn in (plain, scrambled):
        pqn.learn(pqn.actor.rollout)
    torch.testing.assert_close(plain.parameters.values, scrambled.parameters.values, rtol=0, atol=0)
    lags: Any = scrambled.session
    assert sum(len(lag["lag_updates"]) for lag in lags.lags[:4]) == int((~phantom).sum())


def test_the_jth_update_learns_from_samples_that_are_j_updates_old() -> None:
    """The epsilon-greedy policy moves where another action has become the best, and nowhere else."""
    pqn = make_pqn(with_algo(epsilon_start=0.1, optimizer=replace(RADAM, lr=0.5, anneal=False)))
    for _ in range(12):
        pqn.update()
    session: Any = pqn.session
    for n, lag in enumerate(session.lags):
        assert set(lag["lag_updates"].tolist()) == set(lag["lag_gradient_updates"].tolist()) == {n % 8}
    first = session.lags[::8]
    assert max(float(lag["lag_kl_nats"].max()) for lag in first) < 1e-6
    assert max(float(lag["value_lag"].max()) for lag in first) < 1e-4
    ratios = torch.cat([lag["importance_ratio"] for lag in session.lags])
    possible = torch.tensor([0.05 / 0.95, 1.0, 0.95 / 0.05])  # of two actions
    assert float((ratios.unsqueeze(-1) - possible).abs().amin(-1).max()) < 1e-3
    assert float(ratios.min()) < 0.1


def test_epsilon_falls_with_the_frames_and_acts() -> None:
    pqn = make_pqn(with_algo(epsilon_horizon_frames=400))
    assert pqn.gauges() == {"epsilon": 1.0}
    for _ in range(5):
        frames = pqn.session.counters.frames
        expected = max(1.0 - 0.9 * frames / 400, 0.1)
        rollout = pqn.act()
        likeliest = float(rollout.log_probs.exp().max())
        assert likeliest == pytest.approx(1 - expected + expected / 2, abs=1e-5)
    pqn.session.counters.frames = 10_000
    assert pqn.epsilon == pytest.approx(0.1)


def test_what_it_believes_stands_beside_what_it_got() -> None:
    """max Q and the discounted return of every state of the episodes that ended, across rollouts."""
    pqn = make_pqn(with_algo(epsilon_horizon_frames=10_000))
    lengths, ended = [0] * 4, []
    for _ in range(12):
        rollout = pqn.act()
        batch = rollout.batch()
        for t in range(rollout.length):
            for i in range(4):
                lengths[i] += int(batch.valid[t, i])
                if batch.valid[t, i] and batch.terminated[t, i]:
                    ended.append(lengths[i])
                    lengths[i] = 0
        pqn.learn(rollout)
    session: Any = pqn.session
    found = {column: [0.0, 0.0] for column in ("max_q", "discounted_return")}
    for column, part, whole in session.ratios:
        found[column][0] += part
        found[column][1] += whole
    assert len(ended) >= 4
    assert found["max_q"][1] == found["discounted_return"][1] == sum(ended)
    returns = [(1 - 0.99**left) / 0.01 for length in ended for left in range(1, length + 1)]  # a reward of 1 per step
    assert found["discounted_return"][0] == pytest.approx(sum(returns), rel=1e-5)


def test_one_seed_gives_equal_numbers_and_another_does_not(tmp_path: Path) -> None:
    tables = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(replace(SMALL, seed=seed, budget=BudgetConfig(frames=200)), tmp_path / name)
        tables[name] = pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=TIMES, errors="ignore")
    pd.testing.assert_frame_equal(tables["first"], tables["again"])
    assert not tables["first"].equals(tables["other"])
    assert tables["first"].epsilon.iloc[-1] == pytest.approx(0.1)
    assert tables["first"].td_error.notna().all()
    parts = checkpoint.load(tmp_path / "first" / "checkpoint" / "latest.pt")["parts"]
    assert set(parts) == {"network", "optimizer", "action_generator", "shuffling"}
    status = train(replace(SMALL, budget=BudgetConfig(frames=300)), tmp_path / "first")  # goes on from there
    assert status["state"] == "finished"
    assert status["frames"] >= 300


def trained(config: Config) -> Tensor:
    pqn = make_pqn(config)
    for _ in range(4):
        pqn.update()
    pqn.close()
    return pqn.parameters.values.detach()


CHANGES: list[dict[str, Any]] = [
    {"n_envs": 8},
    {"t_max": 4},
    {"n_epochs": 3},
    {"n_minibatches": 2},
    {"gamma": 0.5},
    {"q_lambda": 0.0},
    {"epsilon_start": 0.2},
    {"epsilon_end": 1.0},
    {"epsilon_horizon_frames": 10_000},
    {"optimizer": replace(RADAM, kind="adam")},
    {"optimizer": replace(RADAM, beta1=0.5)},
    {"optimizer": replace(RADAM, beta2=0.9)},
    {"optimizer": replace(RADAM, max_grad_norm=0.1)},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_every_option_changes_what_is_learnt(changes: dict[str, Any]) -> None:
    assert not torch.allclose(trained(SMALL), trained(with_algo(**changes)))


def test_the_network_and_the_seed_do_too() -> None:
    plain = trained(SMALL)
    for network in (replace(NETWORK, layer_norm=None), replace(NETWORK, dueling=True)):
        assert trained(replace(SMALL, network=network)).shape != plain.shape
    assert not torch.allclose(plain, trained(replace(SMALL, seed=1)))
    assert torch.equal(plain, trained(replace(SMALL, lag=LagConfig(enabled=False))))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["algo.n_minibatches=3"],
            "algo.n_minibatches=3 does not divide the 512 samples of a rollout (algo.n_envs=4 times algo.t_max=128).",
        ),
        (
            ["advantage=gae"],
            "advantage=gae is for actor-critics: algo=pqn has algo.q_lambda, from 0 (one step) to 1 (as many as a "
            "rollout has).",
        ),
        (
            ["lag.gradient_cosine_every_updates=8"],
            "lag.gradient_cosine_every_updates=8 compares updates from whole rollouts: algo=pqn learns from "
            "minibatches.",
        ),
        (["algo.epsilon_end=0"], "algo.epsilon_end=0.0 must be greater than 0.0."),
        (["network.layer_norm=rows"], "network.layer_norm=rows is not known: choose one of features, channels."),
    ],
)
def test_what_cannot_run_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checks.check_settings(compose(["algo=pqn", *words]))
    assert str(refused.value) == said


def test_its_layers_are_normalised_by_default_and_nobody_elses() -> None:
    assert compose(["algo=pqn", "env=pong", "network=nature"]).network.layer_norm == "channels"
    assert compose(["algo=pqn", "network.layer_norm=null"]).network.layer_norm is None
    assert compose(["algo=dqn"]).network.layer_norm is None


def test_calibration_knows_its_passes() -> None:
    found = workload(SMALL)
    assert (found.acting_batch, found.t_max, found.n_epochs, found.n_minibatches) == (4, 8, 2, 4)
