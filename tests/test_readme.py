"""What README.md says: its own algorithm trains, its table of sweeps is that of sweeps/, its words compose."""

import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from a3c_bench import train
from a3c_bench.config import compose_sweep, sweeps_directory
from a3c_bench.runtime.directory import read_status
from tests.test_sweeps import FIVE, N_RUNS

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def block(after: str) -> str:
    """The first indented block that begins with this line."""
    start = TEXT.index(f"    {after}")
    found = re.match(r"(?:    .*\n|\n)+", TEXT[start:])
    assert found is not None
    return textwrap.dedent(found[0])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's package, as if it were installed."""
    place = tmp_path / "site"
    (place / "my_package").mkdir(parents=True)
    (place / "my_package" / "__init__.py").touch()
    (place / "my_package" / "mine.py").write_text(block("from dataclasses import dataclass\n"))
    metadata = place / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = block('[project.entry-points."a3c_bench.algorithms"]')
    entry = re.sub(r'"', "", points.replace('[project.entry-points."a3c_bench.algorithms"]', "[a3c_bench.algorithms]"))
    (metadata / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(place))
    yield place
    algorithms = ConfigStore.instance().repo["algo"]  # Hydra knows them for the rest of the process
    for group in (algorithms, algorithms["schema"]):
        group.pop("mine.yaml", None)
    sys.modules.pop("my_package.mine", None)
    sys.modules.pop("my_package", None)


def test_the_algorithm_of_ones_own_trains(cli: Callable[..., Any], package: Path, tmp_path: Path) -> None:
    own = tmp_path / "conf" / "env"
    own.mkdir(parents=True)
    (own / "short.yaml").write_text(
        "# @package _global_\nenv:\n  id: Acrobot-v1\nbudget:\n  frames: 800\nevaluation:\n  n_games: 1\n  n_envs: 1\n"
    )
    words = (
        "algo=mine",
        "env=short",
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
    known = {name: n for name, n in N_RUNS.items() if name != "throughput"} | FIVE | {"throughput": 5}
    assert {name: int(runs.replace(",", "")) for name, _, _, runs in rows} == known
    for name, _, figure, _ in rows:
        head = " ".join((sweeps_directory() / f"{name}.yaml").read_text().replace("\n#", " ").split())
        named = re.search(r"(figure|table|section) [\d.]+", figure)
        assert named is None or named[0] in head, (name, figure)


def test_a3c_beside_paac_on_a_gpu() -> None:
    line = block("device: ").strip()
    for name in FIVE:  # whose points test_sweeps has
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
