"""V-trace in every actor-critic: without lag it is the n-step return, if its bounds let a ratio of 1 through."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from turns import WorkersInTurn

from a3c_bench.algos import a3c
from a3c_bench.algos.settings import A3CConfig, GA3CConfig, PAACConfig
from a3c_bench.schema import AdvantageConfig, BudgetConfig, Config, OptimizerConfig
from a3c_bench.train import train

STEPS: dict[str, Any] = {"t_max": 5, "optimizer": OptimizerConfig(lr=0.01)}


@pytest.mark.parametrize(
    "algo",
    [
        PAACConfig(n_envs=2, **STEPS),
        A3CConfig(n_workers=1, **STEPS),
        GA3CConfig(n_agents=2, synchronous=True, **STEPS),
    ],
    ids=lambda algo: str(algo.name),
)
def test_without_lag_vtrace_is_nstep(algo: Any, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a3c, "Workers", WorkersInTurn)
    short = replace(tiny, algo=algo, budget=BudgetConfig(frames=200))

    def learnt(name: str, **advantage: Any) -> torch.Tensor:
        train(replace(short, advantage=AdvantageConfig(**advantage)), tmp_path / name)
        parts = torch.load(tmp_path / name / "checkpoint" / "latest.pt", weights_only=True)["parts"]
        return torch.cat([tensor.flatten() for tensor in parts["network"].values()])

    nstep, vtrace, cut = learnt("nstep"), learnt("vtrace", kind="vtrace"), learnt("cut", kind="vtrace", rho_bar=0.5)
    torch.testing.assert_close(vtrace, nstep, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cut, nstep, atol=1e-3)
    assert pd.read_csv(tmp_path / "vtrace" / "lag.csv").lag_updates_max.max() == 0
