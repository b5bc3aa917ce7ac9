import subprocess
import sys
from pathlib import Path

import pytest

import analysis
from analysis import group_runs, load_runs, make_tables, summarise, write_report


def test_every_name_is_there_and_documented():
    for name in analysis.__all__:
        assert getattr(analysis, name).__doc__
    assert {name for names in analysis._HOMES.values() for name in names} == set(analysis.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = analysis.nonsense


def test_what_the_documentation_shows(make_run, tmp_path, draft):
    for seed in range(2):
        make_run(seed=seed)
    runs = load_runs(tmp_path / "runs")
    assert [len(group.runs) for group in group_runs(runs)] == [2]
    assert summarise(runs)["score"].tolist() == [480.0, 481.0]
    assert "cost" in [table.name for table in make_tables(runs)]
    assert all(file.stat().st_size for file in write_report(runs, tmp_path / "report", title="Two seeds"))
    assert "<h1>Two seeds</h1>" in (tmp_path / "report" / "index.html").read_text()
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "none")


# What `python -m` does, of one after the other: each begins without what is in analysis/.
COMMANDS = """
import runpy, sys
for command in ("curves", "report", "table"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "analysis"]:
        del sys.modules[name]
    sys.argv = [command, "--help"]
    try:
        runpy.run_module(f"analysis.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        assert not left.code, left.code
"""


def test_commands_start_without_a_warning():
    words = [sys.executable, "-W", "error::RuntimeWarning", "-c", COMMANDS]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(analysis.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("usage: ") == 3
    assert done.stdout.count("ROOT") >= 3


def test_nothing_is_imported_that_is_not_needed():
    code = (
        "import sys; from analysis import load_runs; assert not {*sys.modules} & {'matplotlib'}; "
        "import analysis.report, analysis.table; "
        "assert not {*sys.modules} & {'seaborn', 'scipy', 'wandb', 'torch'}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(analysis.__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
