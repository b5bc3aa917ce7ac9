"""The walls between the packages, as the imports say: what may know of what."""

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from a3c_bench.config import compose
from a3c_bench.runtime import recorder
from a3c_bench.runtime.directory import plain

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "a3c_bench"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lower layers first; a module imports from its own layer and from lower ones. `a3c_bench.algos` itself is the registry,
# which `config` needs before any algorithm is built.
LAYERS = (
    ("core", "schema", "errors", "plugins", "streams"),
    ("envs",),
    ("runtime",),
    ("acting", "parallel"),
    ("build",),
    ("replays", "fresh"),
    ("algos",),
    ("checks", "config", "evaluate", "evaluation", "play", "calibrate", "calibration", "train"),
    ("launch", "rank"),
    ("run",),
)
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(module: str) -> str:
    """core of a3c_bench.core.losses; the empty string of a3c_bench itself."""
    return module.removeprefix("a3c_bench").removeprefix(".").split(".")[0]


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports(file: Path) -> tuple[tuple[str, bool], ...]:
    """Every module that a file imports, and whether it does so when it is imported itself."""
    return tuple(_imports(ast.parse(file.read_text()), file))


def _imports(tree: ast.Module, file: Path) -> Iterator[tuple[str, bool]]:
    inside = {
        child
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            for name in node.names:  # `from a3c_bench import build` imports a3c_bench.build
                whole = f"{node.module}.{name.name}"
                yield whole if is_module(whole) else node.module, node not in inside


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def top(module: str) -> str:
    return module.split(".")[0]


def test_the_layers_are_all_there() -> None:
    parts = {part_of(name_of(file)) for file in MODULES} - {""}
    assert parts == set(LEVELS)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    here = part_of(name_of(file))
    for module, _ in imports(file):
        if top(module) == "a3c_bench" and here:
            there = part_of(module)
            assert LEVELS.get(there, 0) <= LEVELS[here], f"{name_of(file)} imports {module}"
            assert {here, there} != {"acting", "parallel"}, f"{name_of(file)} imports {module}"  # mutually blind


@pytest.mark.parametrize("file", sorted((PACKAGE / "core").glob("*.py")), ids=name_of)
def test_core_knows_torch_and_numpy_only(file: Path) -> None:
    for module, _ in imports(file):
        allowed = top(module) in {"torch", "numpy"} | sys.stdlib_module_names or module.startswith("a3c_bench.core")
        assert allowed, f"{name_of(file)} imports {module}"


@pytest.mark.parametrize("part", ["schema", "errors", "plugins"])
def test_leaves_import_nothing_but_each_other(part: str) -> None:
    for module, _ in imports(PACKAGE / f"{part}.py"):
        assert top(module) in sys.stdlib_module_names or module in ("a3c_bench.errors", "a3c_bench.plugins")


def importers(*packages: str, below: Path = PACKAGE) -> set[str]:
    """The modules that import any of these."""
    return {name_of(file) for file in below.rglob("*.py") if {top(module) for module, _ in imports(file)} & {*packages}}


def test_hydra_stays_at_the_door() -> None:
    assert importers("hydra", "omegaconf") == {"a3c_bench.run", "a3c_bench.config"}


def test_config_is_loaded_by_entry_points_only() -> None:
    """Whoever imports a3c_bench.config imports Hydra: at import time only `run`, in functions the other commands."""
    at_import = {name_of(file) for file in MODULES if ("a3c_bench.config", True) in imports(file)}
    within = {name_of(file) for file in MODULES if ("a3c_bench.config", False) in imports(file)}
    assert at_import == {"a3c_bench.run"}
    commands = {f"a3c_bench.{name}" for name in ("evaluate", "play", "calibrate", "launch.job")}
    assert within <= {"a3c_bench", *commands}


def test_submitit_stays_in_its_two_launchers() -> None:
    assert importers("submitit") == {"a3c_bench.launch.local", "a3c_bench.launch.cluster"}


def test_a_run_that_compiles_nothing_imports_no_compiler(tmp_path: Path) -> None:
    """It would take a third of what a run has to import before its first frame, in each process."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from a3c_bench.config import compose\n"
        "from a3c_bench.train import train\n"
        f"config = compose(['experiment=tiny', 'algo=paac', 'root={tmp_path}'])\n"
        f"train(config, Path({str(tmp_path / 'run')!r}))\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert not [name_of(file) for file in MODULES if ("torch._dynamo", True) in imports(file)]  # workers import all


def test_the_plugin_is_light() -> None:
    """Hydra imports it for every application of the machine, and every job begins with launch.job."""
    code = (
        "import sys, hydra_plugins.a3c_bench_sweeps, a3c_bench.launch.job\n"
        "print([name for name in ('torch', 'envpool', 'submitit', 'pandas') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert ran.stdout == "[]\n"


def test_nothing_imports_the_sweeps_tools() -> None:
    assert importers("sweeps") == importers("sweeps", below=ROOT / "analysis") == set()


def test_wandb_is_a_guest() -> None:
    assert importers("wandb", "tensorboard") == {"a3c_bench.runtime.loggers"}
    loggers = [(module, early) for module, early in imports(PACKAGE / "runtime" / "loggers.py")]
    assert ("wandb", False) in loggers
    assert not [module for module, early in loggers if early and top(module) in ("wandb", "tensorboard", "torch")]


def test_envpool_and_gymnasium_stay_in_envs() -> None:
    assert importers("envpool") == {"a3c_bench.envs.envpool"}
    assert importers("gymnasium") == {"a3c_bench.envs.envpool", "a3c_bench.envs.gymnasium"}


def test_a_run_imports_the_simulator_that_it_uses() -> None:
    backends = {("a3c_bench.envs.envpool", True), ("a3c_bench.envs.gymnasium", True)}
    at_import = {name_of(file) for file in MODULES if backends & {*imports(file)}}
    assert at_import == {"a3c_bench.parallel.simulators"}  # which `build` imports for Gymnasium's


def test_analysis_knows_run_directories_only() -> None:
    assert list((ROOT / "analysis").rglob("*.py"))
    assert importers("a3c_bench", below=ROOT / "analysis") == set()


def test_nothing_imports_analysis() -> None:
    assert importers("analysis") == set()


def test_no_import_goes_in_a_circle() -> None:
    """In no package of the house, imports within functions included: who waits for whom has an end."""
    houses = [ROOT / name for name in ("a3c_bench", "analysis", "sweeps", "hydra_plugins")]
    files = {name_of(file): file for house in houses for file in sorted(house.rglob("*.py"))}
    graph = {name: {module for module, _ in imports(file)} & {*files} - {name} for name, file in files.items()}
    assert graph["analysis.load"] >= {"analysis.run", "analysis.wandb_runs"}
    assert graph["a3c_bench.envs.backends"] >= {"a3c_bench.envs.envpool", "a3c_bench.envs.gymnasium"}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", ["a3c_bench", "analysis", "sweeps", "benchmarks"])
def test_no_file_is_longer_than_450_lines(package: str) -> None:
    lengths = {name_of(file): len(file.read_text().splitlines()) for file in (ROOT / package).rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 450} == {}
    assert lengths


def test_no_column_is_called_steps() -> None:
    """Every counter carries its unit."""
    tables = [value for name, value in vars(recorder).items() if name.endswith("_COLUMNS")]
    assert len(tables) >= 5
    columns = {column for table in tables for column in table}
    assert "agent_steps" in columns
    assert columns.isdisjoint({"steps", "step", "timesteps", "time", "iterations"})


def test_words_need_neither_torch_nor_a_simulator() -> None:
    """Help, the configuration, and what is refused without either: none of them waits for what a run imports.

    One process is asked all of it, one after the other; which games there are, EnvPool alone knows.
    """
    asked: list[tuple[list[str], int, list[str]]] = [
        (["--help"], 0, []),
        (["--cfg", "job"], 0, []),
        (["algo=pacc"], 2, []),
        (["algo.n_env=3"], 2, []),
        (["algo.n_envs=0"], 2, []),
        (["algo=a3c", "device=cuda"], 2, []),
        (["device=gpu"], 2, []),
        (["-m", "algo=ga3c", "algo.prediction_batch=99", "hydra/launcher=local"], 2, []),
        (["env=atari", "env.game=Pnog"], 2, ["envpool"]),
    ]
    code = (
        "import sys\n"
        "names = ('torch', 'envpool', 'wandb', 'submitit', 'pandas')\n"
        "from a3c_bench.run import main\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        f"for words in {[words for words, *_ in asked]!r}:\n"
        "    GlobalHydra.instance().clear()\n"
        "    sys.argv = ['a3c_bench', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as left:\n"
        "        heavy = [name for name in names if name in sys.modules]\n"
        "        print(f'asked {words} {left.code or 0} {heavy}', file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    ends = [line for line in ran.stderr.splitlines() if line.startswith("asked ")]
    assert ends == [f"asked {words} {status} {heavy}" for words, status, heavy in asked], ran.stderr


def test_the_other_commands_need_them_neither(tmp_path: Path) -> None:
    """Help, and each way to be refused that needs no run to be looked into; all asked of one process."""
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(plain(asdict(compose([])))))
    on_a_run = [["nowhere"], ["run"], ["run", "--checkpoint", "best"], ["run", "--device", "gpu"], ["run", "--seed=-1"]]
    refused = {
        "a3c_bench.evaluate": [*on_a_run, ["run", "--games", "0"]],
        "a3c_bench.play": [*on_a_run, ["run", "--fps=-3"], ["run", "--video", "game.txt"]],
        "a3c_bench.calibrate": [["algo=pacc"], ["algo.n_envs=0"], ["device=gpu"], ["algo.optimizer.lr_range=[2,1]"]],
        "sweeps.plan": [["nope"], ["algo=pacc"], ["algo=paac,dqn", "algo.n_envs=0"], ["seed=0,1", "device=gpu"]],
        "sweeps.status": [["nowhere"]],
        "sweeps.pack": [["nowhere"], ["nowhere", "--out", "runs.zip"]],
    }
    asked = [(command, words) for command, several in refused.items() for words in (["--help"], *several)]
    code = (
        "import sys\n"
        "from importlib import import_module\n"
        f"for command, words in {asked!r}:\n"
        "    main = import_module(command).main\n"
        "    sys.argv = ['command', *words]\n"
        "    try:\n"
        "        status = main()\n"
        "    except SystemExit as left:\n"
        "        status = left.code\n"
        "    heavy = [name for name in ('torch', 'envpool', 'wandb', 'pandas') if name in sys.modules]\n"
        "    print(f'asked {command} {words} {status} {heavy}', file=sys.stderr)"
    )
    process = [sys.executable, "-c", code]
    options: dict[str, Any] = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    ran = subprocess.run(process, **options, capture_output=True, text=True, timeout=100, check=True)
    ends = [line for line in ran.stderr.splitlines() if line.startswith("asked ")]
    assert ends == [f"asked {command} {words} {0 if words == ['--help'] else 2} []" for command, words in asked], (
        ran.stderr
    )
