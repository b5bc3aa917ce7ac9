"""compute.*: what runs otherwise computes the same; it is ignored by no algorithm, and refused where it cannot be.

CUDA graphs are stood in for by tapes (`tape.py`), and compilers by those that only trace.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import small
from tape import CpuTape, tapes
from torch import Tensor

from a3c_bench import build, checks
from a3c_bench.algos import algorithm_names, find_settings
from a3c_bench.algos.settings import DQNConfig, GA3CConfig, PAACConfig, PGQLConfig, PPOConfig, PQNConfig
from a3c_bench.config import compose
from a3c_bench.core import compiled
from a3c_bench.errors import ConfigError, RunDirectoryError
from a3c_bench.runtime import checkpoint
from a3c_bench.runtime.directory import RunDirectory, plain
from a3c_bench.schema import (
    AdvantageConfig,
    BudgetConfig,
    ComputeConfig,
    Config,
    EvaluationConfig,
    LagConfig,
    NetworkConfig,
    OptimizerConfig,
    ReplayConfig,
)
from a3c_bench.train import check_run, train

LSTM = NetworkConfig(hidden_sizes=(8,), lstm_size=4)
PAAC = PAACConfig(n_envs=4)
DQN = DQNConfig(n_envs=2, double=True, prioritized=True, target_period_agent_steps=50, replay=ReplayConfig(400, 40, 8))
PASSES: dict[str, Any] = {"n_envs": 4, "t_max": 8, "n_epochs": 2, "n_minibatches": 4}
RUNS: dict[str, Config] = {
    "paac": small(PAAC),
    "paac, overlap": small(replace(PAAC, overlap=True)),
    "paac, lstm": small(PAAC, network=LSTM),
    "ga3c": small(GA3CConfig(n_agents=4, synchronous=True, stale_bootstrap=False)),
    "dqn": small(DQN),
    "ppo": small(PPOConfig(optimizer=OptimizerConfig(), **PASSES), advantage=AdvantageConfig(kind="gae")),
    "ppo, lstm": small(PPOConfig(optimizer=OptimizerConfig(), **PASSES), network=LSTM),
    "pqn": small(
        PQNConfig(optimizer=OptimizerConfig(), **PASSES),
        network=NetworkConfig(hidden_sizes=(8,), layer_norm="features"),
    ),
    "pgql": small(PGQLConfig(n_envs=4, replay=ReplayConfig(400, 40, 8))),
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """compute.cuda_graphs=true works on the CPU; the learning rate is a tensor of RMSProp without it too."""
    monkeypatch.setattr(compiled, "CudaTape", CpuTape)
    monkeypatch.setattr(checks, "check_compute", lambda config: None)
    make = build.make_optimizer

    def with_tensor(options: OptimizerConfig, parameters: Tensor, *more: Any) -> torch.optim.Optimizer:
        optimizer = make(options, parameters, *more)
        optimizer.param_groups[0]["lr"] = torch.full((), options.lr)
        return optimizer

    monkeypatch.setattr(build, "make_optimizer", with_tensor)
    tapes.clear()
    yield
    tapes.clear()


def trained(config: Config, directory: Path, frames: int) -> dict[str, Any]:
    shortly = EvaluationConfig(n_games=1, n_envs=1, max_episode_frames=10)
    config = replace(config, budget=BudgetConfig(frames=frames), evaluation=shortly, n_torch_threads=1)
    train(replace(config, lag=LagConfig(divergence_every_updates=2)), directory)
    parts: dict[str, Any] = checkpoint.load(directory / "checkpoint" / "latest.pt")["parts"]
    return parts


def theta(parts: dict[str, Any]) -> Tensor:
    return torch.cat([part.flatten() for part in parts["network"].values()])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * ("," in name or name in ("pgql", "ppo", "pqn"))) for name in RUNS],
)
@pytest.mark.usefixtures("graphs")
def test_graphs_compute_the_same_bit_by_bit(name: str, tmp_path: Path) -> None:
    """And go on as one without does: with its random numbers, and an annealed learning rate."""
    config = RUNS[name]
    captured = replace(config, compute=ComputeConfig(cuda_graphs=True))
    for frames in (
        (240, 480) if name == "ga3c" else (120, 240)
    ):  # the second goes on with the first, from its checkpoint
        as_written = trained(config, tmp_path / "written", frames)
        assert not tapes
        of_graphs = trained(captured, tmp_path / "graphs", frames)
        if name == "ga3c":  # rollouts that ended early are padded, and sums over zeros are added up in another order
            torch.testing.assert_close(theta(of_graphs), theta(as_written), rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(theta(of_graphs), theta(as_written))
        replayed = [tape for tape in tapes if tape.n_replays > 2]
        assert any(tape.generators for tape in replayed) == (name != "dqn")  # DQN's chance is NumPy's
        backward = {"threshold_backward", "tanh_backward"}
        assert any("addmm" in tape.names and not backward & tape.names for tape in replayed)  # act
        assert any(backward & tape.names for tape in replayed)  # differentiate
        assert any("sqrt_" in tape.names for tape in replayed)  # apply
        tapes.clear()
        if "action_generator" in as_written:
            assert torch.equal(as_written["action_generator"], of_graphs["action_generator"])


@pytest.mark.parametrize(
    "name", ["paac", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ga3c", "dqn", "pgql", "ppo", "pqn"))]
)
def test_what_is_compiled_computes_nearly_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        traced.append(module.code)
        return module.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.reset()
    config = RUNS[name]
    as_written = theta(trained(config, tmp_path / "written", 80))
    assert not traced
    of_compiled = theta(trained(replace(config, compute=ComputeConfig(compile=True)), tmp_path / "compiled", 80))
    torch.testing.assert_close(of_compiled, as_written, rtol=1e-4, atol=1e-5)
    assert any(("linear" in code and "log_softmax" in code) or "max" in code for code in traced)  # act
    assert any("sqrt_" in code for code in traced)  # apply
    assert len(traced) >= 4


@pytest.mark.slow
def test_what_is_compiled_for_this_cpu_computes_nearly_the_same(tmp_path: Path) -> None:
    as_written = theta(trained(RUNS["paac"], tmp_path / "written", 160))
    config = replace(RUNS["paac"], compute=ComputeConfig(compile=True))
    torch.testing.assert_close(theta(trained(config, tmp_path / "compiled", 160)), as_written, rtol=1e-3, atol=1e-4)


def test_the_network_is_compiled_once() -> None:
    with pytest.raises(ConfigError, match=r"^compute.compile=true compiles the network with all else: leave network"):
        checks.check_settings(compose(["algo=paac", "compute.compile=true", "network.compile=true"]))
    for key in ("compute.compile", "network.compile"):
        checks.check_settings(compose(["algo=paac", f"{key}=true"]))


@pytest.mark.parametrize("key", ["compile", "cuda_graphs"])
@pytest.mark.parametrize("algo", algorithm_names())
def test_no_algorithm_ignores_it(algo: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "cuda" if key == "cuda_graphs" and not find_settings(algo).forks else "cpu"
    config = compose([f"algo={algo}", f"compute.{key}=true", f"device={device}"])
    if find_settings(algo).computes:
        checks.check_settings(config)
        assert algo in RUNS  # of the tests above
        return
    others = " or ".join(f"algo={name}" for name in algorithm_names() if find_settings(name).computes)
    words = f"algo={algo} runs as it is written: compute.{key}=true is for {others}."
    with pytest.raises(ConfigError) as refused:
        checks.check_settings(config)
    assert str(refused.value) == words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algo=paac"], "compute.cuda_graphs=true needs a GPU, and device=cpu is none: say device=cuda."),
        (
            ["algo=ga3c", "device=cuda", "algo.optimizer.kind=adagrad"],
            "compute.cuda_graphs=true is not for algo.optimizer.kind=adagrad, which counts its steps in main memory: "
            "say rmsprop or adam.",
        ),
    ],
)
def test_graphs_are_refused_where_there_can_be_none(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checks.check_settings(compose([*words, "compute.cuda_graphs=true"]))
    assert str(refused.value) == said
    assert refused.value.exit_status == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_graphs_without_a_gpu_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="torch finds no CUDA GPU here"):
        check_run(compose(["algo=paac", "compute.cuda_graphs=true", "device=cuda"]))


def test_no_compiler_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> Any:
        raise RuntimeError("no compiler was found\nand more")

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", backend)
    with pytest.raises(ConfigError, match=r"^compute.compile=true does not work on this machine: .*no compiler"):
        build.make_compute(replace(RUNS["paac"], compute=ComputeConfig(compile=True)))


def test_a_run_is_of_one_rounding(tmp_path: Path) -> None:
    """One that is begun as written goes on so alone, and so does one of a version without these keys."""
    config = compose(["algo=paac"])
    content: dict[str, Any] = plain(asdict(config))
    for place in ("of today", "older"):
        if place == "older":
            del content["compute"]
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(RunDirectoryError, match="compute"):
            RunDirectory(tmp_path / place, asdict(compose(["algo=paac", "compute.compile=true"])))
        RunDirectory(tmp_path / place, asdict(config)).close()
