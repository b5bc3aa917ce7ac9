"""What README.md says: its own algorithm trains, its table of sweeps is that of sweeps/, its words compose."""

import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.core.config_store import ConfigStore
from torch import nn

from a3c_bench import build, train
from a3c_bench.checks import check_settings
from a3c_bench.config import compose, compose_sweep, load_config, sweeps_directory
from a3c_bench.envs import find_spec
from a3c_bench.errors import ConfigError
from a3c_bench.evaluation import load_network
from a3c_bench.runtime.directory import read_status
from a3c_bench.schema import EnvConfig
from tests.test_sweeps import ATARI, N_RUNS

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def block(after: str) -> str:
    """The first indented block that begins with this line."""
    start = TEXT.index(f"    {after}")
    found = re.match(r"(?:    .*\n|\n)+", TEXT[start:])
    assert found is not None
    return textwrap.dedent(found[0])


MODULES = {  # of the package, and the line with which each begins
    "mine": "from dataclasses import dataclass\n\n    from a3c_bench import build\n",
    "psi": "from dataclasses import dataclass\n\n    from a3c_bench.core.advantages import Advantage",
    "wide": "from math import prod\n",
    "corridor": "import gymnasium\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's package, as if it were installed."""
    place = tmp_path / "site"
    (place / "my_package").mkdir(parents=True)
    (place / "my_package" / "__init__.py").touch()
    for module, begins in MODULES.items():
        (place / "my_package" / f"{module}.py").write_text(block(begins))
    metadata = place / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = "".join(block(f'[project.entry-points."a3c_bench.{group}"]') for group in ("algorithms", "advantages"))
    (metadata / "entry_points.txt").write_text(points.replace("project.entry-points.", "").replace('"', ""))
    monkeypatch.syspath_prepend(str(place))
    yield place
    groups = ConfigStore.instance().repo  # Hydra knows them for the rest of the process
    for group, name in (
        (groups["algo"], "mine"),
        (groups["algo"]["schema"], "mine"),
        (groups["advantage"], "clipped"),
        (groups["network"], "wide"),
    ):
        group.pop(f"{name}.yaml", None)
    for module in (*(f"my_package.{name}" for name in MODULES), "my_package"):
        sys.modules.pop(module, None)


def test_a_package_of_ones_own_trains(cli: Callable[..., Any], package: Path, tmp_path: Path) -> None:
    """Its algorithm, with its advantage and network, on an environment of YAML of one's own."""
    own = tmp_path / "conf" / "env"
    own.mkdir(parents=True)
    (own / "short.yaml").write_text(
        "# @package _global_\nenv:\n  id: Acrobot-v1\nbudget:\n  frames: 800\nevaluation:\n  n_games: 1\n  n_envs: 1\n"
    )
    words = (
        "algo=mine",
        "env=short",
        "advantage=clipped",
        "advantage.bound=0.5",
        "network=wide",
        "algo.t_max=4",
        "n_torch_threads=1",
        "progress=false",
        f"root={tmp_path / 'runs'}",
    )
    ended = cli("--config-dir", str(tmp_path / "conf"), *words)
    assert (ended.exit_status, ended.stderr) == (0, "")
    (run,) = (tmp_path / "runs" / "default" / "Acrobot-v1" / "mine").glob("**/seed0")
    status = read_status(run)
    assert (status["state"], status["frames"] >= 800, status["updates"] >= 800 // (16 * 4)) == ("finished", True, True)
    assert run.parent.name == "advantage.bound=0.5,advantage=clipped,algo.t_max=4,n_torch_threads=1,network=wide"
    config = load_config(run)
    assert (config.advantage.kind, config.advantage.bound, config.network.kind) == ("clipped", 0.5, "wide")
    network = load_network(config, run / "checkpoint" / "latest.pt", torch.device("cpu"))
    assert network(torch.zeros(3, 6), network.initial_state(3))[0].shape == (3, 3)
    metrics = pd.read_csv(run / "metrics.csv")  # its own column: of actions drawn from a policy, that is its entropy
    assert metrics.surprise_nats.tolist() == pytest.approx(metrics.entropy_nats.tolist(), abs=0.05)
    assert 0.9 < metrics.surprise_nats.iloc[-1] < 1.2  # three actions, nearly alike: ln 3


def test_the_environment_of_ones_own_is_trained_on(cli: Callable[..., Any], package: Path, tmp_path: Path) -> None:
    words = ("settings=paper", "algo.n_envs=4", "budget.frames=400", "evaluation.n_games=2", "progress=false")
    ended = cli("env.id=my_package.corridor:Corridor", *words, f"root={tmp_path / 'runs'}")
    assert (ended.exit_status, ended.stderr) == (0, "")
    (table,) = (tmp_path / "runs").rglob("eval.csv")
    assert set(pd.read_csv(table).episode_return) <= {-1.0, 1.0}


def test_its_parts_serve_the_algorithms_here(package: Path) -> None:
    """The advantage by hand, and the network under a policy, under Q-values and under dueling ones."""
    estimate = build.make_estimator(compose(["advantage=clipped", "advantage.bound=0.5"]), 0.9)
    rewards, values = torch.tensor([[2.0], [-0.2]]), torch.zeros(3, 1)
    never = torch.zeros(2, 1, dtype=torch.bool)
    found = estimate(rewards, values, never, never)
    torch.testing.assert_close(found.advantages, torch.tensor([[0.5], [-0.2]]))
    torch.testing.assert_close(found.returns, torch.tensor([[1.82], [-0.2]]))
    spec, cpu = find_spec(EnvConfig()), torch.device("cpu")
    assert isinstance(build.make_network(compose(["network=wide"]), spec, cpu).trunk[2], nn.GELU)
    for dueling, hidden in ((False, 3), (True, 1)):
        network = build.make_q_network(compose(["algo=dqn", "network=wide", f"network.dueling={dueling}"]), spec, cpu)
        assert len(network.trunk) == hidden
        assert network(torch.zeros(5, 4)).shape == (5, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["advantage=clipped", "advantage.bound=0"], "advantage.bound=0.0 must be greater than 0.0."),
        (["advantage.bound=1"], "advantage.bound is not a key of the configuration: choose one of c_bar, gae_lambda, "),
        (["advantage.kind=clipped"], "advantage.kind=clipped has keys of its own: say advantage=clipped."),
        (["network.kind=wider"], "network.kind=wider is not known: choose one of mlp, small, nips, nature, wide."),
        (["network=wider"], "network=wider is not known: did you mean wide?"),
    ],
)
def test_its_words_are_checked_like_those_here(words: list[str], said: str, package: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        check_settings(compose(words))
    assert str(refused.value).startswith(said)


def test_the_notebooks_run_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(train, "train", lambda config, directory: asked.extend((config, directory)))
    exec(block("from pathlib import Path\n    from a3c_bench import compose\n"), {})
    config, directory = asked
    optimizer = config.algo.optimizer
    assert (config.algo.name, config.seed, config.budget.frames, directory) == ("paac", 3, 100_000, Path("runs/mine"))
    assert (optimizer.lr, optimizer.max_grad_norm, optimizer.initial_square) == (0.0224, 40.0, 1.0)


def test_the_table_of_sweeps_is_that_of_their_files() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|([^|]*)\| ([\d,]+) \|$", TEXT, re.MULTILINE)
    assert {name for name, *_ in rows} == {file.stem for file in sweeps_directory().glob("*.yaml")}
    known = {name: n for name, n in N_RUNS.items() if name != "throughput"} | ATARI | {"throughput": 5}
    assert {name: int(runs.replace(",", "")) for name, _, _, runs in rows} == known
    for name, _, figure, _ in rows:
        head = " ".join((sweeps_directory() / f"{name}.yaml").read_text().replace("\n#", " ").split())
        named = re.search(r"(figure|table|section) [\d.]+", figure)
        assert named is None or named[0] in head, (name, figure)


def test_a3c_beside_paac_on_a_gpu() -> None:
    line = block("device: ").strip()
    for name in ATARI:  # whose points test_sweeps has
        assert f"\n{line} #" in (sweeps_directory() / f"{name}.yaml").read_text()
    (command,) = re.findall(r"`python -m a3c_bench.run (\+sweeps=atari_paac_games [^`]+)`", TEXT)
    _, points = compose_sweep(command.split())
    assert [(config.algo.name, config.device) for _, config in points] == [("a3c", "cpu"), ("paac", "cuda")]


def test_the_headlines_runs_are_where_the_commands_look() -> None:
    assert "python -m analysis.curves runs/default " in TEXT
    assert "runs/demo" not in TEXT


def test_what_is_installed_without_make() -> None:
    wheels = re.findall(r"pip install torch --index-url https://download.pytorch.org/whl/(\w+)", TEXT)
    assert len(wheels) == 2
    assert wheels[0] == "cpu"
    assert wheels[1].startswith("cu")
