"""What is installed: the wheel, and the data that the project carries."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (found,) = target.glob("*.whl")
    return found


def test_the_wheel_carries_the_whole_configuration(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"a3c_bench/conf/{file.relative_to(ROOT / 'conf')}"
        for file in (ROOT / "conf").rglob("*.yaml")
        if "local" not in file.parts
    }
    assert len(expected) > 25
    assert expected <= names
    assert {"sweeps/headline.yaml", "sweeps/tiny/headline.yaml", "sweeps/plan.py"} <= names
    assert "hydra_plugins/a3c_bench_sweeps.py" in names
    assert "hydra_plugins/__init__.py" not in names  # other packages have plugins there too
    assert "a3c_bench/data/atari_reference_scores.csv" in names
    assert not any(name.startswith(("tests/", "runs/")) for name in names)


def test_an_installed_package_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import a3c_bench.config as config\n"
        "print(config.config_directory())\n"
        "print(config.compose(['experiment=pong']).env.game)\n"
        "hydra, points = config.compose_sweep(['+sweeps=headline', 'hydra/launcher=local'])\n"
        "print(len(points), hydra.launcher._target_, sys.modules['hydra_plugins.a3c_bench_sweeps'].__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, check=True, capture_output=True, text=True, timeout=100
    )
    assert ran.stdout.split() == [
        str(installed / "a3c_bench" / "conf"),
        "Pong",
        "9",
        "hydra_plugins.a3c_bench_sweeps.LocalLauncher",
        str(installed / "hydra_plugins" / "a3c_bench_sweeps.py"),
    ]
