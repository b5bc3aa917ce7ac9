"""Lag by Little's law: by hand, and of a run as training leaves it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from a3c_bench.algos.settings import ForcedLagConfig, PAACConfig
from a3c_bench.schema import BudgetConfig, Config, EvaluationConfig, LagConfig, NetworkConfig
from a3c_bench.train import train
from analysis import load_runs, make_tables, relation, summarise
from analysis.little import little_table


def with_lag(path: Path, lag_seconds: float, lag_updates: int) -> None:
    """1,000 samples in 50 updates and 20 seconds."""
    status = json.loads((path / "status.json").read_text()) | {"updates": 50, "wall_seconds": 20.0}
    (path / "status.json").write_text(json.dumps(status))
    rows = [
        f"lag_updates,{lag_updates},{lag_updates + 1},1000",
        f"lag_seconds,{lag_seconds - 0.01},{lag_seconds + 0.01},1000",
    ]
    (path / "lag_histogram.csv").write_text("\n".join(["unit,lower,upper,samples", *rows, ""]))


def test_by_hand(make_run: Any, tmp_path: Path) -> None:
    for seed, lag_seconds, lag_updates in ((0, 2.0, 4), (1, 4.0, 12)):
        with_lag(make_run(algo="ga3c", seed=seed), lag_seconds, lag_updates)
    make_run(algo="paac")  # without any lag
    runs = load_runs(tmp_path)
    rows = summarise(runs).query("algo == 'ga3c'")
    assert rows["samples_per_second"].tolist() == [50.0, 50.0]
    assert rows["samples_per_update"].tolist() == [20.0, 20.0]
    assert rows["samples_on_their_way"].tolist() == pytest.approx([100.0, 200.0])
    assert rows["lag_updates_predicted"].tolist() == pytest.approx([5.0, 10.0])
    table = little_table(summarise(runs))
    assert table is not None
    (row,) = table.text.to_dict("records")
    assert row == {
        "environment": "CartPole-v1",
        "method": "GA3C",
        "runs": "2",
        "samples/s": "50.0",
        "mean age, s": "3.0000",
        "on their way": "150.0",
        "samples per update": "20.0",
        "predicted lag": "7.50",
        "measured lag": "8.00",
    }
    assert "little" in [table.name for table in make_tables(runs)]


def test_without_lag_there_is_no_table(make_run: Any, tmp_path: Path) -> None:
    make_run()
    assert little_table(summarise(load_runs(tmp_path))) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PAAC without lag and with a lag of 3, forced."""
    root = tmp_path_factory.mktemp("trained")
    for k in (0, 3):
        config = Config(
            algo=PAACConfig(n_envs=4, lag=ForcedLagConfig(k)),
            network=NetworkConfig(hidden_sizes=(8,)),
            budget=BudgetConfig(frames=800),
            evaluation=EvaluationConfig(n_games=1, n_envs=1, max_episode_frames=20),
            lag=LagConfig(gradient_cosine_every_updates=10, divergence_every_updates=2),
            n_torch_threads=1,
            progress=False,
        )
        train(config, root / str(k))
    return root


def test_of_real_runs(trained: Path) -> None:
    """The prediction sees how long samples take, and not how old the policy was that chose them."""
    runs = load_runs(trained)
    summary = summarise(runs)
    for k in (0, 3):
        (row,) = [row for run, (_, row) in zip(runs, summary.iterrows(), strict=True) if run.path.name == str(k)]
        status = json.loads((trained / str(k) / "status.json").read_text())
        ages = pd.read_csv(trained / str(k) / "lag.csv")  # of one interval
        expected = status["updates"] / status["wall_seconds"] * ages.lag_seconds_mean.iloc[0]
        assert row["lag_updates_predicted"] == pytest.approx(expected, rel=0.02)
        assert 0.0 < row["lag_updates_predicted"] < 1.0
        assert k - 0.3 < row["lag_updates"] <= k
        assert row["samples_per_update"] == pytest.approx(status["agent_steps"] / status["updates"])


def test_what_is_measured_beside_age_can_be_drawn(trained: Path) -> None:
    names = ["lag_updates_predicted", "lag_rollout_updates", "lag_queue_updates", "lag_gradient_updates", "value_lag",
             "lag_kl_nats", "effective_sample_size", "clip_share", "gradient_cosine"]  # fmt: skip
    points = relation.make_points(load_runs(trained), "lag_rollout_updates", names)
    assert sorted(point.x for point in points) == pytest.approx([0.0, 3.0], abs=0.3)
    for point in points:
        assert all(value == value for value in point.y.values())  # no NaN
        assert point.y["lag_queue_updates"] == point.y["lag_gradient_updates"] == point.y["clip_share"] == 0.0
        assert (point.y["value_lag"] > 1e-4) == (point.x != 0.0)
