"""The words of the command line: what they may be, where they may stand, and what is said of those that may not."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from a3c_bench.algos import algorithm_names
from a3c_bench.config import for_each_point
from a3c_bench.schema import nearest

ROOT = Path(__file__).parents[1]
RUN = f"{sys.executable} -m a3c_bench.run"
TINY = (
    "budget.frames=200",
    "evaluation.n_games=1",
    "evaluation.n_envs=1",
    "network.hidden_sizes=[8]",
    "progress=false",
)
ALGORITHMS = ", ".join(algorithm_names())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algo=paac,a3c"], "algo=paac,a3c is a sweep: add -m to run one after the other."),
        (
            ["algo.t_max=5,6"],
            "algo.t_max=5,6 is a sweep: add -m to run one after the other, or say 'algo.t_max=[5,6]' for a list.",
        ),
        (["sweeps=headline"], "A named sweep is added with a plus: say +sweeps=headline."),
        (["algo=sarsa"], f"algo=sarsa is not known: choose one of {ALGORITHMS}."),
        (["algo=pacc"], "algo=pacc is not known: did you mean paac?"),
        (["seed=0,1", "algo.t_max=0", "-m", "algo=paac"], "algo.t_max=0 must be at least 1."),
        (["-m", "algo=dqn,gorila", "algo.double=true", "algo.n_step=0"], "algo.n_step=0 must be at least 1."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_sentence(cli: Callable[..., Any], words: list[str], said: str) -> None:
    ended = cli(*words)
    assert (ended.exit_status, set(ended.stderr.splitlines())) == (2, {f"a3c_bench: {said}"})
    assert "Run directory" not in ended.stdout


def test_help_lists_what_can_be_chosen(cli: Callable[..., Any]) -> None:
    ended = cli("--help")
    assert ended.exit_status == 0
    assert f"\nalgo: {ALGORITHMS}\n" in ended.stdout
    assert "\nhydra/launcher: basic, local, slurm_cpu, slurm_gpu\n" in ended.stdout
    assert "schema" not in ended.stdout


def test_glob_finds_algorithms_only(cli: Callable[..., Any]) -> None:
    """A point each, refused for the same reason."""
    ended = cli("-m", "algo=glob(*)", "algo.optimizer.lr=-1")
    assert ended.stderr.splitlines() == ["a3c_bench: algo.optimizer.lr=-1.0 must be greater than 0.0."] * len(
        algorithm_names()
    )


def test_a_line_per_point(cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli(f"root={tmp_path}", *TINY, "algo=paac", "seed=0,3", "-m")
    assert ended.exit_status == 0, ended.stderr
    lines = [line.split("] ", 1)[-1] for line in ended.stdout.splitlines()]
    assert [line for line in lines if line.startswith("Run ") and " of " in line] == [
        "Run 1 of 2: paac seed 0",
        "Run 2 of 2: paac seed 3",
    ]
    assert not [line for line in lines if "#0" in line or "Launching" in line]
    assert sum(line.startswith("Run directory: ") for line in lines) == 2


def test_keys_of_swept_algorithms_are_set_in_each_point() -> None:
    words = ["algo=dqn,gorila", "algo.double=true", "algo.n_step=1,3", "seed=0", "algo.replay.batch_size=8"]
    assert for_each_point(words) == [
        "algo=dqn,gorila",
        "algo.double=choice(true)",
        "algo.n_step=1,3",
        "seed=0",
        "algo.replay.batch_size=choice(8)",
    ]


def test_nearest_guesses_what_is_near() -> None:
    known = ["n_envs", "t_max", "gamma", "optimizer"]
    assert nearest("n_env", known) == "did you mean n_envs?"
    assert nearest("GAMMA", known) == "did you mean gamma?"
    assert nearest("zzzz", known) == "choose one of n_envs, t_max, gamma, optimizer."
    assert nearest("zzzz", [f"name{i}" for i in range(21)]) == "see the documentation for the names."


def shell(command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)


def test_a_reader_may_go_away(tmp_path: Path) -> None:
    ended = shell(f"{RUN} --help | head -1; {RUN} --cfg job | true", tmp_path)
    assert ended.stdout.startswith("a3c_bench: ")
    assert ended.stderr == ""


def test_no_command_minds_its_reader(tmp_path: Path) -> None:
    """Each command ends by `exit_with`; `run.py` does the same by itself, and analysis knows nothing of the suite."""
    code = "from a3c_bench.streams import exit_with; exit_with(lambda: print('x' * 99) or 3)"
    ended = shell(f'(sleep 0.5; {sys.executable} -c "{code}"; echo $? >&2) | true', tmp_path)
    assert ended.stderr == "141\n"
    ended = shell(f'{sys.executable} -c "{code}" >&-; echo $?', tmp_path)
    assert (ended.stdout, ended.stderr) == ("3\n", "")
    own = ("run.py", "rank.py")  # rank 0 starts the latter, and nobody reads what it prints
    files = [file for part in ("a3c_bench", "sweeps") for file in (ROOT / part).glob("*.py")]
    commands = [file for file in files if "__main__" in file.read_text() and file.name not in own]
    assert len(commands) == 6
    assert [file.name for file in commands if not file.read_text().endswith("    exit_with(main)\n")] == []


def test_a_run_needs_no_streams(tmp_path: Path) -> None:
    ended = shell(f"{RUN} {shlex.join(TINY)} >&- 2>&-; echo $?", tmp_path)
    assert ended.stdout == "0\n"
    assert list(tmp_path.glob("runs/*/*/*/**/metrics.csv"))


def test_a_directory_of_ones_own(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.yaml").write_text("# @package _global_\nenv:\n  id: MountainCar-v0\n")
    ended = cli("--config-dir", str(tmp_path), "--cfg", "job", "env=mine")
    assert ended.exit_status == 0
    assert "id: MountainCar-v0" in ended.stdout
