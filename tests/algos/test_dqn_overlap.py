"""DQN that learns while its environments step: in which order, what is the same and what is not, stops, bad input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import FakeSession, small

from a3c_bench.acting.explorer import Chosen, Explorer
from a3c_bench.algos.dqn import DQN, DQNConfig
from a3c_bench.envs import VectorEnv
from a3c_bench.errors import ConfigError
from a3c_bench.schema import BudgetConfig, Config, EnvConfig, OptimizerConfig, ReplayConfig
from a3c_bench.train import check_run, train

SMALL = small(
    DQNConfig(
        target_period_agent_steps=50,
        epsilon_horizon_agent_steps=200,
        replay=ReplayConfig(capacity_agent_steps=600, learning_starts_agent_steps=40, batch_size=8),
        optimizer=OptimizerConfig(lr=0.01, epsilon=0.01, decay=0.95, centered=True, anneal=False),
    ),
    budget=BudgetConfig(frames=400),
    metrics_interval_frames=100,
    n_torch_threads=1,
)


def with_algo(**changes: Any) -> Config:
    return replace(SMALL, algo=replace(SMALL.algo, **changes))


def make_dqn(config: Config) -> DQN:
    torch.set_num_threads(1)
    return DQN(config, FakeSession(config))  # type: ignore[arg-type]


def test_updates_are_made_between_sending_and_receiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of one step: s send, u an update, r receive. An update falls due with every second step of two."""
    said: list[str] = []
    for owner, name in ((VectorEnv, "send"), (VectorEnv, "receive"), (DQN, "update")):
        real = getattr(owner, name)

        def noting(self: Any, *args: Any, real: Any = real, letter: str = name[0]) -> Any:
            said.append(letter)
            return real(self, *args)

        monkeypatch.setattr(owner, name, noting)
    orders = {}
    for overlap in (False, True):
        dqn = make_dqn(with_algo(n_envs=2, overlap=overlap))
        while dqn.session.counters.updates < 2:
            dqn.step()
        said.clear()
        while dqn.session.counters.updates < 8:
            dqn.step()
        orders[overlap] = "".join(said)
        dqn.envs.close()
    assert orders[False].count("u") == orders[True].count("u") == 6
    assert "sur" not in orders[False]
    assert orders[False].count("sru") == 6
    assert orders[True].count("sur") == 6  # each while the environments step


def test_who_acts_is_theta_before_the_updates_that_fell_due(monkeypatch: pytest.MonkeyPatch) -> None:
    dqn = make_dqn(with_algo(n_envs=4, epsilon_start=0.0, epsilon_end=0.0, overlap=True))
    sent: list[Chosen] = []
    receive = Explorer.receive
    monkeypatch.setattr(Explorer, "receive", lambda self, chosen: sent.append(chosen) or receive(self, chosen))
    while dqn.session.counters.updates < 10:
        version, theta = dqn.session.counters.updates, dqn.parameters.values.detach().clone()
        with torch.no_grad():
            fell_due = dqn.n_unused >= 4  # before the step, and not with it
            max_q, greedy = dqn.network(torch.from_numpy(dqn.explorer._observations)).max(1)
        dqn.step()
        assert sent[-1].stamp.version == version
        assert sent[-1].actions.tolist() == greedy.tolist()
        assert sent[-1].max_q.tolist() == max_q.tolist()
        assert (dqn.session.counters.updates > version) == fell_due
        assert torch.equal(theta, dqn.parameters.values) != fell_due
    dqn.envs.close()


@pytest.mark.parametrize("algo", [{}, {"n_envs": 3, "prioritized": True, "n_step": 3, "double": True}], ids=str)
def test_each_update_learns_from_what_it_would_learn_from_otherwise(algo: dict[str, Any]) -> None:
    """Where no action depends on theta, all is the same to the bit but the version that chose."""
    dqns = {overlap: make_dqn(with_algo(**algo, epsilon_end=1.0, overlap=overlap)) for overlap in (False, True)}
    for dqn in dqns.values():
        while dqn.session.counters.agent_steps < 250:
            dqn.step()
        dqn.catch_up()
        dqn.envs.close()
    plain, overlapped = dqns[False], dqns[True]
    session: Any = plain.session
    other: Any = overlapped.session
    assert session.counters == other.counters
    assert session.counters.updates > 40
    assert torch.equal(plain.parameters.values, overlapped.parameters.values)
    assert torch.equal(plain.target_parameters.values, overlapped.target_parameters.values)
    assert session.metrics == other.metrics
    for lag, other_lag in zip(session.lags, other.lags, strict=True):
        assert lag["replay_age_frames"].tolist() == other_lag["replay_age_frames"].tolist()
        older = other_lag["lag_updates"] - lag["lag_updates"]
        assert older.min() >= 0
        assert older.max() <= 1


def test_a_run_ends_with_what_fell_due_with_its_last_step(tmp_path: Path) -> None:
    thetas, updates = [], []
    for overlap in (False, True):
        config = replace(with_algo(epsilon_end=1.0, overlap=overlap), budget=BudgetConfig(frames=119))
        status = train(config, tmp_path / str(overlap))
        parts = torch.load(tmp_path / str(overlap) / "checkpoint" / "latest.pt", weights_only=True)["parts"]
        thetas.append(torch.cat([tensor.flatten() for tensor in parts["network"].values()]))
        updates.append(status["updates"])
    assert torch.equal(*thetas)
    assert updates == [20, 20]  # one in four from the 40th agent step on; the last falls due with the 119th


def test_what_is_due_outlasts_a_stop(tmp_path: Path) -> None:
    """Between a step and the next, when checkpoints are written, updates and a target may be due."""
    config = with_algo(n_envs=2, overlap=True, target_period_agent_steps=20)
    dqn, found = make_dqn(config), set()
    while dqn.session.counters.updates < 20:
        dqn.step()
        state = dqn.state_dict()
        found.add((state["n_unused"] >= 4, state["target_is_due"]))
        other = make_dqn(config)
        other.load_state_dict(state)
        assert (other.n_unused, other.target_is_due) == (dqn.n_unused, dqn.target_is_due)
        other.catch_up()  # its replay is empty
        assert other.session.counters.updates == 0
        other.envs.close()
    assert found >= {(True, True), (False, False)}
    del state["target_is_due"]  # as it was before there was an overlap
    dqn.load_state_dict(state)
    assert not dqn.target_is_due
    dqn.envs.close()


@pytest.mark.parametrize("env", [{}, {"simulate": "in_place"}, {"simulate": "processes"}], ids=str)
def test_environments_that_wait_to_be_stepped_are_refused(env: dict[str, str]) -> None:
    gymnasium = EnvConfig(id="CartPole-v1", backend="gymnasium", **env)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"algo.overlap=true needs environments that simulate by themselves: EnvPool"):
        check_run(replace(with_algo(overlap=True), env=gymnasium))
    check_run(replace(with_algo(overlap=False), env=gymnasium))
    if env.get("simulate") == "processes":
        check_run(replace(with_algo(overlap=True, n_envs=2), env=gymnasium))
