"""From run directories to figures and tables; knows nothing of training but the files it leaves behind.

    from analysis import load_runs, summarise, write_report

    runs = load_runs("runs/headline")          # or several roots, or "wandb:entity/project"
    runs[0].metrics()                          # a pandas DataFrame; so are episodes(), lag(), evaluations(), ...
    summarise(runs)                            # one row per run: scores, speeds, lag
    for group in group_runs(runs): ...         # runs that differ in their seed alone
    write_report(runs, "report")               # everything that `python -m analysis.report` writes

Each figure is a module with `figure_and_table(runs, ...)`, which gives a matplotlib Figure and its numbers, and a
command line of the same name. docs/analysis.md shows them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.groups import SeedGroup, group_runs
    from analysis.load import load_runs
    from analysis.report import write_report
    from analysis.run import Run
    from analysis.statistics import Estimate, bootstrap, iqm
    from analysis.summary import summarise
    from analysis.table import make_tables
    from analysis.writing import Table

__all__ = [
    "Estimate",
    "Run",
    "SeedGroup",
    "Table",
    "bootstrap",
    "group_runs",
    "iqm",
    "load_runs",
    "make_tables",
    "summarise",
    "write_report",
]

_HOMES = {
    "groups": ("SeedGroup", "group_runs"),
    "load": ("load_runs",),
    "report": ("write_report",),
    "run": ("Run",),
    "statistics": ("Estimate", "bootstrap", "iqm"),
    "summary": ("summarise",),
    "table": ("make_tables",),
    "writing": ("Table",),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: a reader of tables needs no matplotlib."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"analysis.{module}"), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
