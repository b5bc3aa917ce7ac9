"""Lag as a setting: who acts, what is measured, that overlap is a lag of one, and what a stop or a fault leaves."""

import math
import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from common import TIMES, FakeSession, hold_environments, small

from a3c_bench.acting.past import PastParameters
from a3c_bench.algos import paac as paac_module
from a3c_bench.algos.paac import PAAC
from a3c_bench.algos.settings import ForcedLagConfig, PAACConfig
from a3c_bench.core.lag import effective_sample_size, policy_divergence
from a3c_bench.envs import VectorEnv
from a3c_bench.errors import ConfigError
from a3c_bench.schema import AdvantageConfig, BudgetConfig, Config, OptimizerConfig
from a3c_bench.train import train

SMALL = small(PAACConfig(n_envs=3, t_max=4, optimizer=OptimizerConfig(lr=0.05)), n_torch_threads=1)
OVERLAP = replace(SMALL, algo=replace(SMALL.algo, overlap=True))


def forced(updates: int, distribution: str = "fixed", config: Config = SMALL) -> Config:
    return replace(config, algo=replace(config.algo, lag=ForcedLagConfig(updates, distribution)))


def make_paac(config: Config) -> tuple[PAAC, FakeSession]:
    torch.set_num_threads(1)
    session = FakeSession(config)
    return PAAC(config, session), session  # type: ignore[arg-type]


@pytest.mark.parametrize("lstm_size", [None, 5])
@pytest.mark.parametrize("k", [1, 3])
def test_who_acts_is_theta_as_it_was_k_updates_ago(k: int, lstm_size: int | None) -> None:
    paac, session = make_paac(forced(k, config=replace(SMALL, network=replace(SMALL.network, lstm_size=lstm_size))))
    thetas: list[torch.Tensor] = []
    for version in range(10):
        thetas.append(paac.parameters.values.detach().clone())
        rollout = paac.act()
        batch = rollout.batch()
        theta = paac.parameters.values.detach().clone()
        with torch.no_grad():
            paac.parameters.values.copy_(thetas[max(0, version - k)])
            log_probs, _ = paac.network.unroll(batch.observations, batch.state, ~batch.valid)
            paac.parameters.values.copy_(theta)
        torch.testing.assert_close(log_probs[batch.valid], batch.log_probs[batch.valid])
        paac.learn(rollout)
        assert set(session.lags[-1]["lag_updates"]) == {min(version, k)}
    assert not torch.equal(thetas[0], thetas[1])
    paac.close()


def test_a_uniform_lag_is_so_and_is_k_on_average() -> None:
    theta, acting = torch.zeros(1), torch.zeros(1)
    past, lags = PastParameters(theta, acting, 3, "uniform", np.random.default_rng(0)), Counter[int]()
    for version in range(7006):
        theta.fill_(version)
        acts = past.choose(version)
        assert acting.item() == acts
        if version >= 6:
            lags[version - acts] += 1
    assert sorted(lags) == list(range(7))
    assert min(lags.values()) > 850  # of 1,000 each: five deviations
    assert max(lags.values()) < 1150


def theta_of(directory: Path) -> torch.Tensor:
    parts = torch.load(directory / "checkpoint" / "latest.pt", weights_only=True)["parts"]
    return torch.cat([tensor.flatten() for tensor in parts["network"].values()])


def test_lag_changes_what_is_learnt_and_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    runs = {"0": SMALL, "1": forced(1), "4": forced(4), "again": forced(4), "uniform": forced(4, "uniform"),
            "other": replace(forced(4, "uniform"), seed=1)}  # fmt: skip
    for name, config in runs.items():
        train(config, tmp_path / name)
    thetas = {name: theta_of(tmp_path / name) for name in runs}
    assert torch.equal(thetas.pop("again"), thetas["4"])
    assert len({tuple(theta.tolist()) for theta in thetas.values()}) == len(thetas)
    lag = pd.read_csv(tmp_path / "4" / "lag_histogram.csv")
    lag = lag[lag.unit == "lag_updates"]
    assert lag["lower"].tolist() == [0, 1, 2, 3, 4]
    assert lag.samples.iloc[-1] > 15 * lag.samples.iloc[:-1].max()


def test_overlap_computes_what_a_lag_of_one_computes(tmp_path: Path) -> None:
    for name, config in (("overlap", OVERLAP), ("forced", forced(1))):
        assert train(replace(config, metrics_interval_frames=100), tmp_path / name)["state"] == "finished"
    assert torch.equal(theta_of(tmp_path / "overlap"), theta_of(tmp_path / "forced"))
    overlap, one = (pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=TIMES) for name in ("overlap", "forced"))
    pd.testing.assert_frame_equal(overlap, one)
    assert len(one) > 8
    games = [pd.read_csv(tmp_path / name / "episodes.csv").episode_return for name in ("overlap", "forced")]
    assert games[0].tolist() == games[1].tolist()
    lag = [pd.read_csv(tmp_path / name / "lag.csv") for name in ("overlap", "forced")]
    assert lag[0].lag_updates_max.tolist() == lag[1].lag_updates_max.tolist()
    assert (lag[0].lag_kl_nats_mean == lag[1].lag_kl_nats_mean).all()
    assert [t.name for t in threading.enumerate() if t.name.startswith("a3c_bench")] == []


def test_overlap_learns_while_it_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The update begins and ends while the environments are held back."""
    paac, session = make_paac(OVERLAP)
    paac.update()
    held = hold_environments(paac, monkeypatch)
    paac.update()
    assert paac.ahead is not None
    assert session.counters.updates == 2
    assert paac.ahead.next is not None
    assert not paac.ahead.next.done()
    held.set()
    paac.close()


@pytest.mark.parametrize("config", [forced(5), forced(2, "uniform"), OVERLAP])
def test_a_run_that_was_stopped_goes_on(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, n_updates = PAAC.learn, 0

    def counting(paac: PAAC, rollout: Any) -> None:
        nonlocal n_updates
        learn(paac, rollout)
        n_updates += 1
        if n_updates == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PAAC, "learn", counting)
    assert train(config, tmp_path)["state"] == "preempted"
    saved = torch.load(tmp_path / "checkpoint" / "latest.pt", weights_only=True)
    assert saved["counters"]["updates"] == 30
    choose, acted = PastParameters.choose, []

    def noting(past: PastParameters, version: int) -> int:
        acts = choose(past, version)
        acted.append((acts, past._acting.clone()))
        return acts

    monkeypatch.setattr(PastParameters, "choose", noting)
    assert train(config, tmp_path)["state"] == "finished"
    lag = pd.read_csv(tmp_path / "lag_histogram.csv")
    lag = lag[lag.unit == "lag_updates"].set_index("lower").samples
    k = config.algo.lag.updates
    if config.algo.overlap:
        assert set(lag.index) == {0, 1}
        assert lag[0] <= 4 * 3 * 2  # the first update of each attempt
    elif config.algo.lag.distribution == "fixed":
        assert (lag.loc[: k - 1] <= 4 * 3).all()  # of the first attempt alone
        assert lag[k] > 1000 - 12 * k
    else:
        assert set(lag.index) == set(range(2 * k + 1))
    if k:
        kept = saved["parts"]["past"]["kept"]
        assert len(kept) == {"fixed": k, "uniform": 2 * k}[config.algo.lag.distribution] + 1
        assert len({tuple(row.tolist()) for row in kept}) == len(kept)
        acts, theta = acted[0]
        assert 30 - 2 * k <= acts <= 30
        assert acts == 30 or torch.equal(theta, kept[acts % len(kept)])


def test_a_fault_of_who_acts_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, n_steps = VectorEnv.send_all, 0

    def failing(envs: VectorEnv, actions: Any) -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 50:
            raise RuntimeError("the simulator is gone")
        send(envs, actions)

    monkeypatch.setattr(VectorEnv, "send_all", failing)
    with pytest.raises(RuntimeError, match="the simulator is gone"):
        train(OVERLAP, tmp_path)
    assert [t.name for t in threading.enumerate() if t.name.startswith("a3c_bench")] == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (forced(2, config=OVERLAP), "algo.overlap=true has a lag of exactly 1 update: say algo.lag.updates=0 with it"),
        (forced(-1), "algo.lag.updates=-1"),
        (forced(1, "normal"), "algo.lag.distribution=normal is not known: choose one of fixed, uniform"),
        (forced(10**9), "A lag of 1000000000 updates keeps 1,000,000,001 versions of"),
    ],
)
def test_what_cannot_run_is_refused(config: Config, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_lag_needs_no_second_network() -> None:
    paac, _ = make_paac(SMALL)
    assert paac.past is None
    assert paac.choose_policy() is None
    assert paac_module.ALGORITHM.check(replace(SMALL, budget=BudgetConfig(frames=10))) is None
    paac.close()


CORRECTED = {
    "ratio_clip": lambda config: replace(config, algo=replace(config.algo, ratio_clip=0.02)),
    "vtrace": lambda config: replace(config, advantage=AdvantageConfig(kind="vtrace")),
    "log_epsilon": lambda config: replace(config, algo=replace(config.algo, log_epsilon=0.05)),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs without a correction: without lag, and with a lag of 6 updates."""
    runs = {"none": SMALL, "lag": forced(6)}
    directories = {name: tmp_path_factory.mktemp("plain") / name for name in runs}
    for name, config in runs.items():
        train(config, directories[name])
    return directories


@pytest.mark.parametrize("correction", CORRECTED)
def test_a_correction_changes_what_lag_does_and_nothing_else(
    correction: str, plain: dict[str, Path], tmp_path: Path
) -> None:
    """Of log(pi + epsilon) the epsilon is a bias without lag too, but for one that is next to none."""
    without, with_lag = CORRECTED[correction](SMALL), CORRECTED[correction](forced(6))
    if correction == "log_epsilon":
        without = replace(without, algo=replace(without.algo, log_epsilon=1e-9))
    train(without, tmp_path / "none")
    train(with_lag, tmp_path / "lag")
    torch.testing.assert_close(theta_of(plain["none"]), theta_of(tmp_path / "none"), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(theta_of(plain["lag"]), theta_of(tmp_path / "lag"), rtol=1e-3, atol=1e-3)
    metrics = {name: pd.read_csv(tmp_path / name / "metrics.csv") for name in ("none", "lag")}
    assert metrics["none"].effective_sample_size.min() > 0.9999
    assert metrics["lag"].effective_sample_size.min() < 0.9995
    assert (metrics["none"].clip_share < 0.6).all()  # ratios of 1 but for rounding
    assert (metrics["lag"].clip_share.max() > 0.1) == (correction != "log_epsilon")


def test_two_corrections_at_once_are_refused(tmp_path: Path) -> None:
    config = CORRECTED["ratio_clip"](CORRECTED["vtrace"](SMALL))
    with pytest.raises(ConfigError, match=r"algo.ratio_clip=0.02 and advantage=vtrace both correct for lag"):
        train(config, tmp_path)


def test_the_effective_sample_size_by_hand() -> None:
    ratios = torch.tensor([1.0, 2.0, 3.0])
    assert float(effective_sample_size({"importance_ratio": torch.ones(7)})["effective_sample_size"]) == 1.0
    found = effective_sample_size({"importance_ratio": ratios, "lag_kl_nats": ratios})
    assert float(found["effective_sample_size"]) == pytest.approx(36 / (3 * 14))
    assert effective_sample_size({}) == effective_sample_size({"importance_ratio": ratios[:0]}) == {}


@pytest.mark.parametrize("nats", [-300.0, -60.0, 60.0, 300.0])
def test_policies_that_have_nothing_in_common_have_an_effective_sample_size(nats: float) -> None:
    """Ratios of e^-60 have squares that float32 does not know; those of e^-300 are not known themselves."""
    current = torch.tensor([[nats, 0.0], [nats - math.log(2), 0.0]])  # ratios of 1 and 1/2 times e^nats
    _, ratio = policy_divergence(torch.zeros(2, 2), current, torch.tensor([0, 0]))
    found = float(effective_sample_size({"importance_ratio": ratio})["effective_sample_size"])
    assert found == pytest.approx(1.5**2 / (2 * 1.25) if abs(nats) == 60.0 else 1.0)


@pytest.mark.parametrize("lstm_size", [None, 5])
def test_the_value_with_which_returns_end_is_that_of_theta_as_it_learns(lstm_size: int | None) -> None:
    """With algo.stale_bootstrap=true it is that of who acted."""
    lagged = forced(2, config=replace(SMALL, network=replace(SMALL.network, lstm_size=lstm_size)))
    for stale in (False, True):
        paac, _ = make_paac(replace(lagged, algo=replace(lagged.algo, stale_bootstrap=stale)))
        for _ in range(4):
            paac.update()
        acts = paac.actor._policy.network
        rollout = paac.act()
        end = rollout.observations[rollout.length], rollout.end_state
        with torch.no_grad():
            of_theta, of_who_acted = paac.network(*end)[1], acts(*end)[1]
        assert not torch.allclose(of_theta, of_who_acted)
        paac.learn(rollout)
        torch.testing.assert_close(rollout.bootstrap, of_who_acted if stale else of_theta)
        paac.close()


@pytest.mark.parametrize("lstm_size", [None, 5])
def test_a_late_gradient_is_that_of_who_acted_and_changes_theta_of_now(lstm_size: int | None) -> None:
    """Beside a naive loop: the gradient of a network that never was anything but the old one, applied by hand."""
    lagged = forced(2, config=replace(SMALL, network=replace(SMALL.network, lstm_size=lstm_size)))
    lagged = replace(lagged, algo=replace(lagged.algo, lag=ForcedLagConfig(2, "fixed", "gradients")))
    paac, session = make_paac(lagged)
    thetas = []
    for version in range(6):
        theta = paac.parameters.values.detach().clone()
        thetas.append(theta)
        rollout = paac.act()
        other, _ = make_paac(replace(SMALL, network=lagged.network))
        with torch.no_grad():
            other.parameters.values.copy_(thetas[max(0, version - 2)])
        batch = rollout.batch()
        bootstrap = other.learner.values(rollout.observations[rollout.length], rollout.end_state)
        torch.testing.assert_close(batch.bootstrap, bootstrap)
        found = other.learner.differentiate(batch)
        with torch.no_grad():
            log_probs, _ = paac.network.unroll(batch.observations, batch.state, ~batch.valid)
        paac.learn(rollout)
        torch.testing.assert_close(paac.parameters.gradients, other.parameters.gradients)
        kl, _ = policy_divergence(batch.log_probs, log_probs, batch.actions)
        seen = session.lags[-1]
        assert set(seen["lag_updates"]) == {min(version, 2)}
        torch.testing.assert_close(torch.as_tensor(seen["lag_kl_nats"]), kl[found.mask], rtol=1e-4, atol=1e-6)
        assert (seen["lag_kl_nats"].max() > 1e-6) == (version > 0)
        assert not torch.equal(paac.parameters.values, theta)
        other.close()
    paac.close()


def test_late_gradients_are_learnt_from_otherwise_than_late_samples(tmp_path: Path) -> None:
    """And without lag nothing is late."""
    for k in (0, 3):
        for of in ("samples", "gradients"):
            lag = ForcedLagConfig(k, "fixed", of)
            train(replace(SMALL, algo=replace(SMALL.algo, lag=lag)), tmp_path / f"{of}{k}")
    assert torch.equal(theta_of(tmp_path / "samples0"), theta_of(tmp_path / "gradients0"))
    assert not torch.allclose(theta_of(tmp_path / "samples3"), theta_of(tmp_path / "gradients3"))


@pytest.mark.parametrize("key", ["overlap", "stale_bootstrap"])
def test_late_gradients_and_what_contradicts_them(key: str, tmp_path: Path) -> None:
    lag = ForcedLagConfig(0 if key == "overlap" else 2, "fixed", "gradients")
    config = replace(SMALL, algo=replace(SMALL.algo, lag=lag, **{key: True}))
    with pytest.raises(ConfigError, match=rf"algo.lag.of=gradients and algo.{key}=true contradict each other"):
        train(config, tmp_path)


@pytest.mark.parametrize("config", [SMALL, forced(1), OVERLAP])
def test_a_stale_bootstrap_changes_what_is_learnt_from_old_samples_alone(config: Config, tmp_path: Path) -> None:
    for stale in (False, True):
        train(replace(config, algo=replace(config.algo, stale_bootstrap=stale)), tmp_path / str(stale))
    same = torch.equal(theta_of(tmp_path / "False"), theta_of(tmp_path / "True"))
    assert same == (config is SMALL)
