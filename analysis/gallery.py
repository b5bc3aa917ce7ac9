"""Every kind of figure, and when a set of runs allows it: what the report draws.

A setting that a figure is about must vary within an algorithm and environment; else there is a sentence instead.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from analysis import aggregate_curves, course, curves, lag, overestimation, profiles, relation, speed
from analysis.cli import NothingToDrawError
from analysis.figure import AXES
from analysis.outcome import TRAINING_GAMES
from analysis.run import Run
from analysis.settings import setting
from analysis.summary import summarise

RATES_FOR_SCATTER = 3
PARALLEL = ("n_envs", "envs_per_worker", "n_workers", "n_learners", "n_agents")  # settings: how much is parallel
Drawn = tuple[Figure, pd.DataFrame]


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure."""

    name: str  # of its files
    title: str
    make: Callable[[list[Run]], Drawn]  # may raise NothingToDrawError


def varying(runs: Sequence[Run], value: Callable[[Run], Hashable], what: str, at_least: int = 2) -> list[Run]:
    """The runs of those algorithms and environments in which something takes several values.

    Args:
        runs: to choose from.
        value: of a run; None where it has none.
        what: its name, for the message.
        at_least: how many values.

    Raises:
        NothingToDrawError: there are none.
    """
    found: dict[tuple[str, str], set[Hashable]] = defaultdict(set)
    for run in runs:
        found[run.env, run.algo].add(value(run))
    chosen = [run for run in runs if len(found[run.env, run.algo] - {None}) >= at_least and value(run) is not None]
    if not chosen:
        raise NothingToDrawError(f"No algorithm was run with {at_least} or more values of {what} in one environment.")
    return chosen


def word(name: str) -> Callable[[Run], Hashable]:
    """A setting of a run, as a word; None if it has none."""

    def value(run: Run) -> Hashable:
        found = setting(run, name)
        return None if found is None else str(found)

    return value


def _score_against_lag(runs: list[Run]) -> Drawn:
    return relation.figure_and_table(runs, "lag_updates", _scores(runs))


def _against_setting(runs: list[Run], name: str, ys: Sequence[str]) -> Drawn:
    chosen = varying(runs, word(name), name)
    return relation.figure_and_table(chosen, name, ys)


def _learning_rates(runs: list[Run]) -> Drawn:
    rates = dict(zip((run.path for run in runs), summarise(runs)["learning_rate"], strict=True))

    def rate(run: Run) -> Hashable:
        return rates[run.path] if rates[run.path] > 0.0 else None

    chosen = varying(runs, rate, "the learning rate", RATES_FOR_SCATTER)
    compared = {(run.env, run.algo) for run in chosen}
    chosen += [run for run in runs if rate(run) is None and (run.env, run.algo) in compared]  # to be counted
    return relation.figure_and_table(chosen, "learning_rate", _scores(chosen))


def _advantages(runs: list[Run]) -> Drawn:
    chosen = varying(runs, word("advantage.kind"), "advantage.kind (psi)")
    return relation.figure_and_table(chosen, "advantage.kind", [*_scores(chosen), "gradient_norm", "gradient_variance"])


def _scores(runs: Sequence[Run]) -> list[str]:
    """Final evaluations where there are any, else training returns; and the mean over training."""
    evaluated = any(run.evaluations()["final"].any() for run in runs)
    return ["score" if evaluated else "training_score", "area"]


HEADLINE = (
    FigureKind("curves", "Return against frames and wall-clock time",
         partial(curves.figure_and_table, axes=list(AXES), window=TRAINING_GAMES)),
    FigureKind("lag", "Policy lag", partial(lag.figure_and_table, units=["lag_updates"])),
    FigureKind("throughput", "Speed", speed.throughput),
)  # fmt: skip
OTHERS = (
    FigureKind("score_against_lag", "Score against policy lag", _score_against_lag),
    *(
        FigureKind(f"lag_against_{name}", f"Policy lag against {name}",
             partial(_against_setting, name=name, ys=["lag_updates", "lag_frames"]))
        for name in PARALLEL
    ),
    FigureKind("lag_units", "Policy lag in its other units",
         partial(lag.figure_and_table, units=[unit for unit in lag.UNITS if unit not in ("lag_updates", *lag.PARTS)])),
    FigureKind("lag_parts", "Where policy lag arises", partial(lag.figure_and_table, units=lag.PARTS)),
    FigureKind("speed_up", "Speed-up by workers", speed.speed_up),
    FigureKind("scaling", "Scaling by ranks", speed.scaling),
    FigureKind("adjustments", "GA3C's adjustments of its own sizes", speed.adjustments),
    FigureKind("learning_rates", "Sensitivity to the learning rate", _learning_rates),
    FigureKind("advantages", "Estimators of the advantage", _advantages),
    FigureKind("overestimation", "Over-estimation of Q", overestimation.figure_and_table),
    FigureKind("profiles", "Performance profiles and aggregate scores", profiles.figure_and_table),
    FigureKind("aggregate_curves", "Human-normalised return over games", aggregate_curves.figure_and_table),
    FigureKind("training", "Inside training",
         partial(course.figure_and_table, columns=["entropy_nats", "explained_variance", "gradient_norm", "loss_value"],
                 x_column="frames")),
    FigureKind("memory", "Memory that runs hold",
         partial(course.figure_and_table, columns=["memory_mib"], x_column="wall_seconds")),
)  # fmt: skip
