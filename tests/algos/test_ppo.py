"""PPO: PAAC with one epoch and one minibatch, a naive loop else; its lag, its KL stop, its memory, every switch."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from common import TIMES, FakeSession, small
from torch import Tensor

from a3c_bench import build, checks
from a3c_bench.algos import find_algorithm
from a3c_bench.algos.paac import PAAC
from a3c_bench.algos.ppo import PPO, PPOConfig, workload
from a3c_bench.algos.settings import PAACConfig
from a3c_bench.config import compose
from a3c_bench.core import advantages
from a3c_bench.core.rollout import Rollout
from a3c_bench.errors import ConfigError
from a3c_bench.runtime import checkpoint
from a3c_bench.schema import AdvantageConfig, BudgetConfig, Config, LagConfig, NetworkConfig, OptimizerConfig
from a3c_bench.train import train

ADAM = OptimizerConfig(kind="adam", lr=0.01, epsilon=1e-5, max_grad_norm=0.5)
ALGO = PPOConfig(n_envs=4, t_max=8, n_epochs=2, n_minibatches=4, optimizer=ADAM)
GAE = AdvantageConfig(kind="gae")
SMALL = small(ALGO, advantage=GAE, n_torch_threads=1)
PLAIN = {"n_epochs": 1, "n_minibatches": 1, "value_clip": None, "normalise_advantages": False}


def make_ppo(config: Config) -> PPO:
    torch.set_num_threads(1)
    return PPO(config, FakeSession(config))  # type: ignore[arg-type]


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(ALGO, **changes))


def act_until_a_phantom(ppo: PPO) -> Rollout:
    for _ in range(200):
        rollout = ppo.actor.act()
        if not rollout.batch().valid.all():
            return rollout
    raise AssertionError("no episode ended")


@pytest.mark.parametrize("advantage", ["gae", "nstep"])
@pytest.mark.parametrize("lstm_size", [None, 5])
def test_one_epoch_and_one_minibatch_are_paac(advantage: str, lstm_size: int | None) -> None:
    """arXiv:2205.09123: A2C is a special case of PPO. The order of sums differs, and so the last bits do."""
    network = NetworkConfig(hidden_sizes=(8,), lstm_size=lstm_size)
    ppo_config = replace(with_algo(**PLAIN), network=network, advantage=AdvantageConfig(kind=advantage))
    paac_algo = PAACConfig(n_envs=4, t_max=8, loss_reduction="mean", optimizer=ADAM)
    ppo = make_ppo(ppo_config)
    paac = PAAC(replace(ppo_config, algo=paac_algo), FakeSession(ppo_config))  # type: ignore[arg-type]
    assert torch.equal(ppo.parameters.values, paac.parameters.values)
    before = ppo.parameters.values.detach().clone()
    for _ in range(12):
        ppo.update()
        paac.update()
    torch.testing.assert_close(ppo.parameters.values, paac.parameters.values, rtol=1e-4, atol=2e-5)
    assert float((ppo.parameters.values.detach() - before).abs().max()) > 0.05
    mine: Any = ppo.session
    theirs: Any = paac.session
    for key in (
        "loss_value",
        "entropy_nats",
        "gradient_norm",
        "learning_rate",
    ):  # loss_policy: of w psi, not log pi psi
        figures = [[float(update[key]) for update in session.metrics] for session in (mine, theirs)]
        np.testing.assert_allclose(*figures, rtol=2e-3, atol=1e-5)


def naive(ppo: PPO, rollout: Rollout) -> Tensor:
    """theta after an iteration, sample by sample, with torch's own Adam; ppo is left as it is."""
    options, batch = ppo.options, rollout.batch()
    network = copy.deepcopy(ppo.network)
    adam = torch.optim.Adam(network.parameters(), ADAM.lr, eps=ADAM.epsilon)
    shuffling = torch.Generator()
    shuffling.set_state(ppo.shuffling.get_state())
    values = torch.cat([rollout.values, rollout.bootstrap.unsqueeze(0)])
    n_steps, n_envs = batch.rewards.shape
    advantages = torch.zeros(n_steps, n_envs)
    for i in range(n_envs):
        following = 0.0
        for t in reversed(range(n_steps)):
            goes_on = not (batch.terminated[t, i] or batch.truncated[t, i])
            next_value = 0.0 if batch.terminated[t, i] else float(values[t + 1, i])
            delta = float(batch.rewards[t, i]) + 0.99 * next_value - float(values[t, i])
            following = delta + 0.99 * 0.95 * following * goes_on
            advantages[t, i] = following
    lr = ppo.wiring.learning_rate_at(ppo.session.counters.frames)
    for _ in range(options.n_epochs):
        order = torch.randperm(n_steps * n_envs, generator=shuffling).tolist()
        size = len(order) // options.n_minibatches
        for k in range(options.n_minibatches):
            chosen = [divmod(place, n_envs) for place in order[k * size : (k + 1) * size]]
            chosen = [(t, i) for t, i in chosen if batch.valid[t, i]]
            psi = torch.tensor([float(advantages[t, i]) for t, i in chosen])
            psi = (psi - psi.mean()) / (psi.std() + 1e-8)
            total = torch.zeros(())
            for (t, i), advantage in zip(chosen, psi, strict=True):
                log_probs, value, _ = network(batch.observations[t, i].unsqueeze(0), batch.state[:1])
                action = int(batch.actions[t, i])
                ratio = (log_probs[0, action] - batch.log_probs[t, i, action]).exp()
                cut = ratio.clamp(1 - options.ratio_clip, 1 + options.ratio_clip)
                target = advantages[t, i] + values[t, i]
                held = values[t, i] + (value[0] - values[t, i]).clamp(-0.1, 0.1)
                total = total - torch.minimum(ratio * advantage, cut * advantage)
                total = total + 0.01 * (log_probs.exp() * log_probs).sum()
                total = total + 0.25 * torch.maximum((value[0] - target) ** 2, (held - target) ** 2)
            adam.zero_grad()
            (total / len(chosen)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            for group in adam.param_groups:
                group["lr"] = lr
            adam.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_an_iteration_equals_the_papers_loop() -> None:
    ppo = make_ppo(SMALL)
    rollout = act_until_a_phantom(ppo)
    before = ppo.parameters.values.detach().clone()
    expected = naive(ppo, rollout)
    ppo.learn(rollout)
    torch.testing.assert_close(ppo.parameters.values.detach(), expected, rtol=1e-3, atol=2e-5)
    assert float((expected - before).abs().max()) > 0.02
    assert ppo.session.counters.updates == 2 * 4


def test_phantom_samples_change_nothing() -> None:
    plain, scrambled = make_ppo(SMALL), make_ppo(SMALL)
    for ppo in (plain, scrambled):
        rollout = act_until_a_phantom(ppo)
    phantom = ~rollout.batch().valid
    rollout.actions[phantom] = 1 - rollout.actions[phantom]
    rollout._rewards[phantom] = 1e6
    rollout.log_probs[phantom] = -50.0
    for ppo in (plain, scrambled):
        ppo.learn(ppo.actor.rollout)
    torch.testing.assert_close(plain.parameters.values, scrambled.parameters.values, rtol=0, atol=0)
    lags: Any = scrambled.session
    per_pass = [sum(len(lag["lag_updates"]) for lag in lags.lags[k : k + 4]) for k in (0, 4)]
    assert per_pass == [int((~phantom).sum())] * 2
    assert [len(lag["lag_kl_nats"]) for lag in lags.lags] == [len(lag["lag_updates"]) for lag in lags.lags]


def test_the_jth_update_learns_from_samples_that_are_j_updates_old() -> None:
    ppo = make_ppo(SMALL)
    for _ in range(2):
        ppo.update()
    session: Any = ppo.session
    for n, lag in enumerate(session.lags):
        assert set(lag["lag_updates"].tolist()) == {n % 8}
        assert set(lag["lag_gradient_updates"].tolist()) == {n % 8}
        assert set(lag["lag_rollout_updates"].tolist()) == set(lag["lag_queue_updates"].tolist()) == {0}
    first, last = session.lags[0], session.lags[7]
    assert float(first["lag_kl_nats"].max()) < 1e-6 < 1e-5 < float(last["lag_kl_nats"].max())
    assert float((first["importance_ratio"] - 1).abs().max()) < 1e-5
    assert float(first["value_lag"].max()) < 1e-5 < float(last["value_lag"].max())
    worth = [float(update["effective_sample_size"]) for update in session.metrics[:8]]
    assert worth[0] == pytest.approx(1.0, abs=1e-6)
    assert worth[-1] < 0.9999


def test_the_share_that_is_cut_is_told() -> None:
    ppo = make_ppo(with_algo(ratio_clip=1e-3, n_epochs=4))
    ppo.update()
    session: Any = ppo.session
    shares = [part / whole for column, part, whole in session.ratios if column == "clip_share"]
    assert shares[0] == 0.0
    assert max(shares) > 0.3


def test_who_has_moved_too_far_stops() -> None:
    """The pass in which the last minibatch's KL is beyond the target is the last one."""
    counts = []
    for target in (1e-9, 1e-4, 1e9):
        ppo = make_ppo(with_algo(n_epochs=8, target_kl_nats=target))
        ppo.update()
        counts.append(ppo.session.counters.updates)
        lags: Any = ppo.session
        kl = [float(lag["lag_kl_nats"].mean()) for lag in lags.lags[3::4]]  # of each pass's last
        assert all(value <= target for value in kl[:-1])
    assert counts[0] == 4
    assert counts[2] == 32
    assert 4 <= counts[1] <= counts[2]


def test_a_memory_is_unrolled_from_the_start_of_the_rollout() -> None:
    """The first minibatch of an LSTM computes what acted: all its ratios are 1, across ends of games too."""
    ppo = make_ppo(replace(SMALL, network=NetworkConfig(hidden_sizes=(8,), lstm_size=5)))
    ppo.learn(act_until_a_phantom(ppo))
    session: Any = ppo.session
    assert float((session.lags[0]["importance_ratio"] - 1).abs().max()) < 1e-4
    assert float(session.lags[0]["value_lag"].max()) < 1e-4


def test_one_seed_gives_equal_numbers_and_another_does_not(tmp_path: Path) -> None:
    tables = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(replace(SMALL, seed=seed, budget=BudgetConfig(frames=400)), tmp_path / name)
        tables[name] = pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=TIMES, errors="ignore")
    pd.testing.assert_frame_equal(tables["first"], tables["again"])
    assert not tables["first"].equals(tables["other"])
    parts = checkpoint.load(tmp_path / "first" / "checkpoint" / "latest.pt")["parts"]
    assert set(parts) == {"network", "optimizer", "action_generator", "shuffling"}


def test_a_run_that_goes_on_shuffles_on(tmp_path: Path) -> None:
    """Not from the beginning again, as a generator that no checkpoint holds would."""
    train(replace(SMALL, budget=BudgetConfig(frames=200)), tmp_path)
    kept = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")["parts"]["shuffling"]
    assert not torch.equal(kept, make_ppo(SMALL).shuffling.get_state())
    train(replace(SMALL, budget=BudgetConfig(frames=225)), tmp_path)  # one rollout more
    after = checkpoint.load(tmp_path / "checkpoint" / "latest.pt")["parts"]["shuffling"]
    generator = torch.Generator()
    generator.set_state(kept)
    for _ in range(ALGO.n_epochs):
        torch.randperm(32, generator=generator)
    assert torch.equal(generator.get_state(), after)


def trained(config: Config) -> Tensor:
    ppo = make_ppo(config)
    for _ in range(3):
        ppo.update()
    ppo.close()
    return ppo.parameters.values.detach()


CHANGES: list[dict[str, Any]] = [
    {"n_envs": 8},
    {"t_max": 4},
    {"n_epochs": 3},
    {"n_minibatches": 2},
    {"gamma": 0.5},
    {"ratio_clip": 0.01},
    {"value_clip": None},
    {"value_clip": 1e-3},
    {"normalise_advantages": False},
    {"target_kl_nats": 1e-9},
    {"entropy_weight": 0.5},
    {"value_weight": 0.01},
    {"optimizer": replace(ADAM, epsilon=1.0)},
    {"optimizer": replace(ADAM, anneal=False)},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_every_option_changes_what_is_learnt(changes: dict[str, Any]) -> None:
    assert not torch.allclose(trained(SMALL), trained(with_algo(**changes)))


def test_psi_and_the_seed_do_too() -> None:
    for changed in (replace(SMALL, advantage=AdvantageConfig()), replace(SMALL, seed=1)):
        assert not torch.allclose(trained(SMALL), trained(changed))


def test_without_lag_nothing_changes_but_the_measurement() -> None:
    assert torch.equal(trained(SMALL), trained(replace(SMALL, lag=LagConfig(enabled=False))))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["algo.n_minibatches=3"],
            "algo.n_minibatches=3 does not divide the 1024 samples of a rollout (algo.n_envs=8 times algo.t_max=128).",
        ),
        (
            ["algo.n_minibatches=1024"],
            "algo.n_minibatches=1024 leaves one sample for each, whose normalised advantage is 0: say fewer, or "
            "algo.normalise_advantages=false.",
        ),
        (
            ["network=mlp_lstm", "settings=paper", "algo.n_envs=6"],
            "algo.n_minibatches=4 does not divide algo.n_envs=6: with an LSTM a minibatch is made of whole "
            "environments.",
        ),
        (
            ["advantage=vtrace"],
            "advantage=vtrace corrects for lag, as algo.ratio_clip of algo=ppo does: say advantage=gae or nstep.",
        ),
        (
            ["lag.gradient_cosine_every_updates=8"],
            "lag.gradient_cosine_every_updates=8 compares updates from whole rollouts: algo=ppo learns from "
            "minibatches.",
        ),
        (["network=mlp_dueling"], "network.dueling=true is for Q-networks: algo=ppo has a policy and a value."),
    ],
)
def test_what_cannot_run_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checks.check_settings(compose(["algo=ppo", "algo.n_envs=8", *words]))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("kind", "said"), [("q", "has a psi that changes"), ("total_reward", "needs what an episode brought")]
)
def test_anothers_advantage_that_asks_for_more_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.setattr(build, "make_estimator", lambda config, gamma: advantages.estimator(kind, gamma))
    with pytest.raises(ConfigError, match=said):
        find_algorithm("ppo").check(SMALL)


def test_gae_is_the_default_and_can_be_replaced() -> None:
    assert compose(["algo=ppo"]).advantage == AdvantageConfig(kind="gae")
    assert compose(["algo=ppo", "advantage=nstep"]).advantage.kind == "nstep"
    assert compose(["algo=paac"]).advantage.kind == "nstep"


def test_calibration_knows_its_passes() -> None:
    found = workload(SMALL)
    assert (found.acting_batch, found.t_max, found.n_epochs, found.n_minibatches) == (4, 8, 2, 4)
