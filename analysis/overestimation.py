r"""Over-estimation: max Q against the discounted return that was really obtained from the same states.

    python -m a3c_bench.run -m experiment=catch name=double algo=dqn algo.double=false,true seed=0,1,2,3,4 \
        metrics_interval_frames=1000
    python -m analysis.overestimation runs/double

Writes overestimation.png, overestimation.pdf and overestimation.csv (the same curves as numbers).
"""

import sys

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import cli, course
from analysis.course import CourseGroup, Curve, Panel
from analysis.run import Run

COLUMNS = ("max_q", "discounted_return")  # of metrics.csv
PANELS = (
    Panel("max Q (strong) and what was obtained (faint)", "discounted return", COLUMNS),
    Panel("max Q minus what was obtained", "difference", ["over_estimation"], zero_line=True),
)
HOW = (
    "Max Q: mean over the states of the training games that ended in an interval, when they were visited. What was "
    "obtained: the discounted return from the same states to the end, exploration and clipped rewards included. "
    "States whose return a time limit may hide by more than 1% are left out."
)


def read(run: Run) -> dict[str, Curve]:
    """What one run estimated, what it got, and the difference; empty if it has no interval with both."""
    table = run.metrics()
    if not set(COLUMNS) <= set(table):
        return {}
    known = table[["frames", *COLUMNS]].apply(pd.to_numeric, errors="coerce").dropna()
    frames, max_q, obtained = known.to_numpy(dtype=np.float64).T
    if not len(frames):
        return {}
    curves = {"max_q": max_q, "discounted_return": obtained, "over_estimation": max_q - obtained}
    return {name: (frames, values) for name, values in curves.items()}


def make_groups(runs: list[Run]) -> list[CourseGroup]:
    """Groups runs that differ in their seed alone; runs without values and repeated seeds are named and left out."""
    return course.make_groups(runs, read, "estimates no Q, or no game of it has ended")


def figure_and_table(runs: list[Run]) -> tuple[Figure, pd.DataFrame]:
    """The figure and its numbers.

    Raises:
        NothingToDrawError: no run estimates Q.
    """
    groups = make_groups(runs)
    if not groups:
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has estimated Q and finished a game.")
    return course.draw(groups, PANELS, "frames", HOW), course.make_table(groups, "frames")


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    about = "Draws max Q against the return really obtained."
    return cli.draw_without_options("overestimation", about, figure_and_table, arguments)


if __name__ == "__main__":
    sys.exit(main())
