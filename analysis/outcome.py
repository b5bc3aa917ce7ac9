"""What a run reached, and which runs count together: the one rule of every table, figure and page.

A finished run counts with its final evaluation. A failed run is over too, and counts with what it had reached: its last
evaluation, else the mean of its last 100 training games. One that reached neither is in no mean, and the number says
so: "2 of 5 seeds; 3 failed". Runs that are not over (running, preempted) are in no mean beside runs that are. Where no
run is over they count with what they have reached so far, and their state stands beside the number.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.run import Run

AS_LONG = 0.9  # a run with that share of another's frames counts as equally long
TRAINING_GAMES = 100  # of which a training score is the mean
RULE = (
    "A run that failed counts with what it had reached: its last evaluation, else the mean of its last "
    f"{TRAINING_GAMES} training games."
)
FAILED = ("failed", "diverged")  # endings
_OVER = ("finished", *FAILED)
_ENDINGS = ("failed", "diverged", "preempted", "running")  # in the order of words

OutcomeKind = Literal["final evaluation", "last evaluation", "training games", "nothing"]


@dataclass(frozen=True)
class Outcome:
    """What a run reached."""

    value: float  # mean return; NaN with kind "nothing"
    kind: OutcomeKind
    n_games: int  # of which it is the mean
    frames: float  # when; NaN with kind "nothing"
    wall_seconds: float

    @property
    def is_evaluation(self) -> bool:
        """Whether it is the mean of an evaluation."""
        return self.kind in ("final evaluation", "last evaluation")


NOTHING = Outcome(float("nan"), "nothing", 0, float("nan"), float("nan"))


def outcome(run: Run, evaluations: pd.DataFrame | None = None) -> Outcome:
    """What a run reached, by the rule above; of a finished run without final evaluation its last training games.

    Args:
        run: in any state.
        evaluations: `run.evaluations()`, where it has been read already.
    """
    games = run.evaluations() if evaluations is None else evaluations
    finished = run.state == "finished"
    games = games[games["final"]] if finished else games
    if len(games):
        last = games[games["frames"] == games["frames"].max()]  # a run that was extended has several final ones
        last = last[last["final"]] if last["final"].any() else last
        kind: OutcomeKind = "final evaluation" if finished else "last evaluation"
        return Outcome(float(last["episode_return"].mean()), kind, len(last), *_place(last))
    table = run.training_returns(TRAINING_GAMES)
    if len(table):
        value, n_games = float(table["mean_return"].iloc[-1]), min(len(table), TRAINING_GAMES)
        return Outcome(value, "training games", n_games, *_place(table))
    return NOTHING


def counting(endings: Iterable[str]) -> list[bool]:
    """Which runs of one configuration, of those with a value, count together: those that are over, else all."""
    over = [ending in _OVER for ending in endings]
    return over if any(over) else [True] * len(over)


def tally(endings: Sequence[str], n_counted: int, noun: str = "seed") -> str:
    """How many runs a number is of, and what became of the others.

    Args:
        endings: `Run.ending` of all runs of one configuration.
        n_counted: how many of them the number is of.
        noun: for one of them.

    Returns:
        "5 seeds"; "5 seeds; 3 failed", of which all count; "2 of 5 seeds; 3 failed".
    """
    n = len(endings)
    of = f"{n_counted} of " if n_counted < n else ""
    known = Counter(ending for ending in endings if ending != "finished")
    words = [f"{known[ending]} {ending}" for ending in sorted(known, key=_order)]
    return "; ".join([f"{of}{n} {noun}{'' if n == 1 else 's'}", ", ".join(words)][: 1 + bool(words)])


def mean_of(outcomes: Iterable[Outcome]) -> float:
    """Mean over runs of what they reached, of those that reached something; NaN if none did."""
    known = [one.value for one in outcomes if np.isfinite(one.value)]
    return float(np.mean(known)) if known else float("nan")


def _order(ending: str) -> int:
    return _ENDINGS.index(ending) if ending in _ENDINGS else len(_ENDINGS)


def _place(table: pd.DataFrame) -> tuple[float, float]:
    return float(table["frames"].iloc[-1]), float(table["wall_seconds"].max())
