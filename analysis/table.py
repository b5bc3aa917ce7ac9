"""Tables: final scores beside published ones, human-normalised aggregates, who beats whom, time to a score, and cost.

    python -m analysis.table runs/atari_paac_games
    python -m analysis.table runs/headline --threshold 475 --published all

Writes each table as CSV (plain numbers), Markdown and LaTeX (booktabs). Scores are final evaluations; where a run has
none its mean training return stands in a table of its own, as scores from different starts are never mixed.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from analysis import cli, others, published
from analysis.crossings import threshold_table
from analysis.little import little_table
from analysis.run import Run
from analysis.scores import aggregate_table, improvement_table, score_rows, score_tables
from analysis.summary import counted_rows, summarise, tally_of
from analysis.writing import NOT_OVER, Table, about_endings, number


def cost_table(summary: pd.DataFrame) -> Table:
    """What runs took: hours, speeds and hardware, means over the runs of a method in an environment."""
    quantities = ["frames", "hours", "frames_per_second", "pps", "tps", "share_of_bound"]
    keys = ["env", "algo", "label", "name", "hardware"]
    groups = summary.groupby(keys, sort=False)
    counted = counted_rows(summary, "frames")
    words = groups.apply(lambda own: tally_of(own, counted.loc[counted.index.intersection(own.index)], "run"))
    means = counted.groupby(keys, sort=False)[quantities].mean().reindex(groups.size().index)
    numbers = means.assign(n_runs=groups.size(), total_hours=groups["hours"].sum(), runs=words).reset_index()
    text = pd.DataFrame(
        {
            "environment": numbers["env"],
            "method": numbers["name"],
            "runs": [re.sub(r" runs?\b", "", words) for words in numbers["runs"]],
            "frames per run": numbers["frames"].map(number),
            "hours per run": numbers["hours"].map(partial(number, digits=2)),
            "hours in all": numbers["total_hours"].map(partial(number, digits=2)),
            "frames/s": numbers["frames_per_second"].map(number),
            "PPS": numbers["pps"].map(number),
            "TPS": numbers["tps"].map(number),
            "of the bound": numbers["share_of_bound"].map(lambda share: f"{100 * share:.0f}%" if share > 0 else "-"),
            "hardware": numbers["hardware"],
        }
    )
    machines = list(dict.fromkeys(text["hardware"]))
    if len(machines) == 1:  # say it once
        text = text.drop(columns="hardware")
    notes = [
        "Hours of training, without evaluation and start-up. PPS: agent steps per second; TPS: updates per second. "
        "Of the bound: PPS over the machine's serial bound, where runs were calibrated.",
        "Speeds hold for the load that the machine had while it ran."
        + (f" Hardware: {machines[0]}." if len(machines) == 1 else ""),
        *(["Other libraries: hours since their log began."] if (summary["library"] != "").any() else []),
        *([NOT_OVER] if about_endings("; ".join(numbers["runs"]))[-1:] == [NOT_OVER] else []),
    ]
    return Table("cost", "Cost", numbers, text, notes)


def make_tables(
    runs: Sequence[Run],
    threshold: float | None = None,
    every_published: bool = False,
    beside: Iterable[Path] = (),
) -> list[Table]:
    """All tables that these runs allow; `beside` are tables of openrlbenchmark."""
    summary = summarise(runs)
    rows = score_rows(
        summary, (lambda method: True) if every_published else published.of_the_families, others.read_means(beside)
    )
    found = [
        *score_tables(rows),
        aggregate_table(summary, rows),
        improvement_table(summary),
        threshold_table(runs, threshold),
        little_table(summary),
        cost_table(summary),
    ]
    return [table for table in found if table is not None]


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    every = chosen.published == "all"
    make = partial(make_tables, threshold=chosen.threshold, every_published=every, beside=chosen.beside)

    def write(runs: list[Run], folder: Path) -> list[Path]:
        return [file for table in make(runs) for file in table.write(folder)]

    return cli.write_files("tables", chosen.roots, chosen.out, write)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.table", "Writes tables of scores, aggregates and cost.", "tables")
    parser.add_argument("--threshold", type=float, metavar="RETURN", help="for frames and time to a score")
    parser.add_argument(
        "--published", choices=("families", "all"), default="families",
        help=f"published methods: those of {', '.join(published.FAMILIES)} (default), or all",
    )  # fmt: skip
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], metavar="FILE",
        help="a table of openrlbenchmark (CSV, mean ± standard deviation), for the table of training returns",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
