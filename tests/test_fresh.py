"""Stale gradients beside fresh ones: what is compared, and that a run computes the same with and without."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from turns import take_turns

from a3c_bench.algos import a3c
from a3c_bench.algos.settings import A3CConfig, DQNConfig, ForcedLagConfig, GA3CConfig, GorilaConfig, PAACConfig
from a3c_bench.checks import check_settings
from a3c_bench.errors import ConfigError
from a3c_bench.fresh import FreshGradients, NoComparison, make_comparison
from a3c_bench.runtime.recorder import METRIC_COLUMNS
from a3c_bench.schema import BudgetConfig, Config, EvaluationConfig, LagConfig, NetworkConfig
from a3c_bench.train import train

CLOCK = [name for name in METRIC_COLUMNS if "second" in name or name.startswith("share_")] + [
    "pps",
    "tps",
    "memory_mib",
]
CPU = torch.device("cpu")


def configured(algo: Any, every: int | None, **lag: Any) -> Config:
    return Config(
        algo=algo,
        network=NetworkConfig(hidden_sizes=(8,)),
        budget=BudgetConfig(frames=400),
        evaluation=EvaluationConfig(n_games=1, n_envs=1, max_episode_frames=20),
        metrics_interval_frames=10_000,
        n_torch_threads=1,
        progress=False,
        lag=LagConfig(gradient_cosine_every_updates=every, **lag),
    )


def compare(gradient: torch.Tensor, theta: torch.Tensor, path: tuple[int, ...] = (1,)) -> tuple[float, torch.Tensor]:
    """The cosine beside fresh samples, and the gradient of these."""
    fresh = make_comparison(configured(PAACConfig(n_envs=3), 1), 3, CPU, path)
    assert isinstance(fresh, FreshGradients)
    fresh.keep(gradient, theta)
    found = fresh.cosine()
    assert fresh.cosine() == {}  # once
    assert torch.equal(fresh.parameters.values, theta)
    fresh.close()
    return float(found["gradient_cosine"]), fresh.parameters.gradients.clone()


def test_the_cosine_by_hand() -> None:
    torch.set_num_threads(1)
    network_size = 4 * 8 + 8 + 8 * 2 + 2 + 8 + 1
    theta, other = torch.randn((2, network_size), generator=torch.Generator().manual_seed(0))
    by_hand, gradient = compare(other, theta)
    assert by_hand == pytest.approx(float(other @ gradient / (other.norm() * gradient.norm())), abs=1e-5)
    assert compare(gradient, theta)[0] == pytest.approx(1.0)  # the same seed gathers the same samples
    assert compare(-3.0 * gradient, theta)[0] == pytest.approx(-1.0)
    independent, _ = compare(gradient, theta, (2,))
    assert -0.9999 < independent < 0.9999
    assert not torch.equal(compare(gradient, other)[1], gradient)  # of the theta that is given


def test_of_how_many_updates_one_is_compared() -> None:
    fresh = make_comparison(configured(PAACConfig(n_envs=2), 3), 2, CPU, (1,))
    theta, found = torch.ones(67), []
    for i in range(7):
        gradient = torch.full((67,), float(i != 3))  # without a gradient there is no cosine
        fresh.keep(gradient, theta)
        found.append(len(fresh.cosine()))
    assert found == [1, 0, 0, 0, 0, 0, 1]
    fresh.close()


def test_what_is_not_asked_for_is_not_there() -> None:
    for config in (configured(PAACConfig(), None), configured(PAACConfig(), 1, enabled=False)):
        assert type(make_comparison(config, 3, CPU, (1,))) is NoComparison


RUNS = {
    "paac": PAACConfig(n_envs=3, lag=ForcedLagConfig(2)),
    "a3c": A3CConfig(n_workers=1),
    "ga3c": GA3CConfig(n_agents=3, synchronous=True),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_computes_the_same_with_and_without(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns(monkeypatch, a3c)
    thetas, tables = [], []
    for every in (None, 2):
        train(configured(RUNS[name], every), tmp_path / str(every))
        parts = torch.load(tmp_path / str(every) / "checkpoint" / "latest.pt", weights_only=True)["parts"]
        thetas.append(torch.cat([tensor.flatten() for tensor in parts["network"].values()]))
        tables.append(pd.read_csv(tmp_path / str(every) / "metrics.csv"))
    assert torch.equal(*thetas)
    without, compared = (table.drop(columns=[*CLOCK, "gradient_cosine"]) for table in tables)
    pd.testing.assert_frame_equal(without, compared)
    assert tables[0].gradient_cosine.isna().all()
    assert tables[1].gradient_cosine.between(-1.0, 1.0).all()


@pytest.mark.parametrize("algo", [DQNConfig(), GorilaConfig(n_learners=1)])
def test_learners_from_a_replay_refuse_it(algo: Any) -> None:
    config = replace(configured(algo, 5), budget=BudgetConfig(frames=100_000))
    words = rf"lag.gradient_cosine_every_updates=5 is for actor-critics: algo={algo.name} learns from a replay"
    with pytest.raises(ConfigError, match=words):
        check_settings(config)
    check_settings(replace(config, lag=LagConfig()))
