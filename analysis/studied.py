"""What a study of lag makes of runs: curves of forced lag with their cells, and the ways of being parallel beside them.

A run has a *forced* lag if its algorithm lets it be set (`algo.lag.updates`); others have the lag that they have.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis import crossings, statistics
from analysis.aggregate import Floats
from analysis.curves import ReturnTrace, make_trace
from analysis.figure import AXES
from analysis.groups import SeedGroup, group_traces
from analysis.outcome import FAILED, TRAINING_GAMES, counting
from analysis.run import Run
from analysis.settings import as_number, labelled, setting
from analysis.statistics import Crossing, Estimate
from analysis.summary import summarise

NO_CORRECTION = "no correction"
UNKNOWN = Estimate(*[np.asarray(np.nan)] * 3)


@dataclass(frozen=True)
class Place:
    """Where a run with a forced lag belongs."""

    lag: float  # k, the mean of a distribution
    correction: str
    distribution: str  # fixed or uniform
    late: str  # samples or gradients: what the lag is of
    rate: float  # learning rate


@dataclass(frozen=True)
class Studied:
    """One run; a trace of groups."""

    run: Run  # its label: what tells it from others, beside its place
    numbers: Mapping[str, float]  # of its row in the summary; score is that of training games where nothing else is
    place: Place | None  # None if its lag is not forced
    curve: ReturnTrace | None
    arrivals: Mapping[str, Crossing]  # by frames and wall_seconds; empty without a training game


Cell = SeedGroup[Studied]  # the seeds at one place


@dataclass(frozen=True)
class Line:
    """One curve over forced lags."""

    env: str
    correction: str
    distribution: str
    late: str
    label: str  # what else tells it from others
    rate: float
    cells: Mapping[float, Cell]  # by lag, which increases

    @property
    def name(self) -> str:
        """For a legend."""
        spread = [] if self.distribution == "fixed" else [f"{self.distribution} lag"]
        late = [] if self.late == "samples" else [f"late {self.late}"]
        return ", ".join(filter(None, [self.correction, *spread, *late, self.label]))

    @property
    def lags(self) -> Floats:
        """The lags that were set, [K]."""
        return np.array(list(self.cells))

    @property
    def is_plain(self) -> bool:
        """Whether lag is all that differs from the algorithm as it is."""
        return (self.correction, self.distribution, self.late) == (NO_CORRECTION, "fixed", "samples")


@dataclass(frozen=True)
class Goal:
    """The score that runs of one environment are to reach."""

    value: float
    reason: str  # where it comes from


@dataclass(frozen=True)
class Study:
    """What there is to be drawn and tabulated."""

    lines: Sequence[Line]  # at every learning rate
    ways: Sequence[Cell]  # of being parallel: what has no forced lag, and PAAC as it is
    goals: Mapping[str, Goal]  # by environment

    def at_usual_rates(self) -> list[Line]:
        """The lines at the learning rate that most of an environment's runs have: nothing is tuned for a lag."""
        usual = usual_rates([run for line in self.lines for cell in line.cells.values() for run in cell.traces])
        return [line for line in self.lines if line.rate == usual[line.env]]

    def compared(self) -> list[Line]:
        """Those of environments in which several lags were set."""
        lags: dict[str, set[float]] = defaultdict(set)
        for line in self.at_usual_rates():
            lags[line.env] |= {*line.cells}
        return [line for line in self.at_usual_rates() if len(lags[line.env]) > 1]


# --- from runs to a study ---------------------------------------------------------------------------------------------


def make_study(runs: Sequence[Run], goals: Mapping[str, float] | float | None = None) -> Study:
    """Sorts runs.

    A point is read beside the other points of its environment. So where any run there is over, one that is not has no
    numbers, and its caption names it.

    Args:
        runs: of any kind.
        goals: score to be reached, one for all environments or by environment; where there is none, as
            `crossings.goal_of` chooses.
    """
    numbers = {run.path: row for run, row in zip(runs, summarise(runs).to_dict("records"), strict=True)}
    places = {run.path: place_of(run, as_number(numbers[run.path]["learning_rate"])) for run in runs}
    curves = {run.path: make_trace(run, TRAINING_GAMES) for run in runs}
    chosen = _goals(list(curves.values()), dict.fromkeys(run.env for run in runs), goals)
    compared = {
        run.path for own in _by_env(runs) for run in itertools.compress(own, counting(one.ending for one in own))
    }

    def studied(run: Run) -> Studied:
        known = numbers[run.path] if run.path in compared else dict.fromkeys(numbers[run.path])
        row = {str(name): as_number(value) for name, value in known.items()}
        row["score"] = row["score"] if np.isfinite(row["score"]) else row["training_score"]
        curve = curves[run.path]
        return Studied(run, row, places[run.path], curve, _arrivals(run, curve, chosen[run.env].value))

    forced = _named([run for run in runs if places[run.path]], lambda run: places[run.path])
    lines = _lines([studied(run) for run in forced])
    usual = usual_rates([studied(run) for run in forced])
    ways = _named_by_what_is_unusual([run for run in runs if _is_a_way(run, places[run.path], usual)])
    return Study(lines, group_traces(studied(run) for run in ways), chosen)


def _by_env(runs: Sequence[Run]) -> Iterable[list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.env].append(run)
    return found.values()


def _named(runs: Sequence[Run], explained: Callable[[Run], object]) -> list[Run]:
    """Labelled by what else differs, the names of sweeps apart: one configuration may be a part of several sweeps."""
    return [replace(run, label=short_label(run.label)) for run in labelled(runs, explained)]


def _named_by_what_is_unusual(runs: Sequence[Run]) -> list[Run]:
    """As `_named`; a value that most configurations of an algorithm have is no part of a label, and all others are."""
    runs = labelled(runs, lambda run: "anywhere")
    labels: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        labels[run.env, run.algo].add(run.label)
    usual = {method: usual_parts(found) for method, found in labels.items()}

    def name(run: Run) -> str:
        parts = [part for part in run.label.split(", ") if part not in usual[run.env, run.algo]]
        told = {_key(part) for part in usual[run.env, run.algo]}
        return ", ".join(filter(None, (part if _key(part) in told else short_label(part) for part in parts)))

    return [replace(run, label=name(run)) for run in runs]


def _key(part: str) -> str:
    return part.rpartition("=")[0]


def usual_parts(labels: Iterable[str]) -> set[str]:
    """The parts of labels, such as `n_trainers=1`, that two thirds and more of at least three labels have."""
    apart = [label.split(", ") for label in labels]
    counts = Counter(part for parts in apart for part in parts)
    return {part for part, n in counts.items() if part and len(apart) >= 3 and 3 * n >= 2 * len(apart)}


def has_forced_lag(runs: Iterable[Run]) -> bool:
    """Whether there is anything for a study."""
    return any(place is not None and place.lag > 0.0 for place in (place_of(run, 0.0) for run in runs))


def correction_of(run: Run) -> str:
    """What is done about lag, in words, read from the configuration."""
    found = []
    if setting(run, "advantage.kind") == "vtrace":
        found.append("V-trace")
    for key, words in (
        ("algo.ratio_clip", "ratio clipped by {:g}"),
        ("algo.log_epsilon", "log epsilon {:g}"),
        ("algo.stale.delay_compensation", "delay compensation {:g}"),
    ):
        if (value := as_number(setting(run, key))) > 0.0:
            found.append(words.format(value))
    if setting(run, "algo.stale.aware") is True:
        found.append("steps lr / (1 + staleness)")
    return " + ".join(found) or NO_CORRECTION


def place_of(run: Run, rate: float) -> Place | None:
    """Its forced lag, 0 included, and what goes with it; None of an algorithm whose lag nobody sets, and of overlap."""
    lag = setting(run, "algo.lag.updates")
    lag = 0.0 if lag is None and run.algo == "paac" else as_number(lag)  # runs from before lag could be set
    if not np.isfinite(lag) or setting(run, "algo.overlap") is True:
        return None
    distribution = str(setting(run, "algo.lag.distribution") or "fixed") if lag else "fixed"
    late = str(setting(run, "algo.lag.of") or "samples")
    return Place(lag, correction_of(run), distribution, late, rate if np.isfinite(rate) else 0.0)  # 0: the seed drew it


def usual_rates(runs: Sequence[Studied]) -> dict[str, float]:
    """By environment, the learning rate of most of the runs with a forced lag; of equally many the smaller one."""
    counts: dict[str, Counter[float]] = defaultdict(Counter)
    for one in runs:
        if one.place is not None:
            counts[one.run.env][one.place.rate] += 1
    return {env: min(found, key=lambda rate: (-found[rate], rate)) for env, found in counts.items()}


def is_reproducible(run: Run) -> bool:
    """Whether the same seed gives the same numbers on one machine: whatever nothing is left to the threads' order."""
    return run.algo in ("paac", "pgql", "ppo", "pqn", "dqn") or (
        run.algo == "ga3c" and setting(run, "algo.synchronous") is True
    )


def short_label(label: str) -> str:
    """A label without what is switched off, and with the bare word for what is switched on: `overlap`."""
    pairs = [part.rpartition("=") for part in label.split(", ") if part]
    return ", ".join(
        key if value == "True" else f"{key}{sign}{value}"
        for key, sign, value in pairs
        if value not in ("False", "null", "none", "unset")
    )


def _is_a_way(run: Run, place: Place | None, usual: Mapping[str, float]) -> bool:
    if place is None:
        return True
    return place.lag == 0.0 and place.correction == NO_CORRECTION and place.rate == usual[run.env]


def _goals(
    curves: Sequence[ReturnTrace | None], envs: Iterable[str], given: Mapping[str, float] | float | None
) -> dict[str, Goal]:
    """By environment the score that was asked for, else the one that `crossings` chooses for all runs together."""
    chosen = {}
    for env in envs:
        value = given.get(env) if isinstance(given, Mapping) else given
        if value is not None:
            chosen[env] = Goal(value, "as it was asked for")
        else:
            here = [curve for curve in curves if curve is not None and curve.run.env == env]
            chosen[env] = Goal(*crossings.goal_of_traces(here, TRAINING_GAMES))
    return chosen


def _arrivals(run: Run, curve: ReturnTrace | None, goal: float) -> dict[str, Crossing]:
    if curve is not None and not curve.evaluated:
        return {column: crossings.crossing_of(curve, column, TRAINING_GAMES, goal) for column in AXES.values()}
    return dict.fromkeys(AXES.values(), crossings.NEVER) if run.ending in FAILED else {}


def _lines(runs: Sequence[Studied]) -> list[Line]:
    """Lines in the order of a legend: those without a correction first, then those of most runs."""
    found: dict[tuple[str, str, str, str, str, float], dict[float, list[Studied]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for one in runs:
        if one.place is not None:
            place = one.place
            key = (one.run.env, place.correction, place.distribution, place.late, one.run.label, place.rate)
            found[key][one.place.lag].append(one)
    lines = [
        Line(*key, {lag: _cell(lag, at_each[lag]) for lag in sorted(at_each)}) for key, at_each in found.items()
    ]  # fmt: skip
    return sorted(lines, key=_order)


def _order(line: Line) -> tuple[str, bool, bool, bool, str, str, float]:
    plain = line.correction != NO_CORRECTION, line.distribution != "fixed", line.late != "samples"
    return line.env, *plain, line.correction, line.label, line.rate


def _cell(lag: float, runs: Sequence[Studied]) -> Cell:
    """The seeds at one lag, told apart from others in a caption."""
    named = [replace(one, run=replace(one.run, label=_words(lag, one))) for one in runs]
    return group_traces(named)[0]


def _words(lag: float, one: Studied) -> str:
    correction = one.place.correction if one.place and one.place.correction != NO_CORRECTION else ""
    return ", ".join(filter(None, [f"lag {lag:g}", correction, one.run.label]))


# --- numbers of cells -------------------------------------------------------------------------------------------------


def counted(cell: Cell, name: str) -> Floats:
    """A quantity of those seeds of which the mean is: that are over, where there are any. [S]"""
    known = [one for one in cell.traces if np.isfinite(one.numbers.get(name, np.nan))]
    which = counting(one.run.ending for one in known)
    return np.array([one.numbers[name] for one, counts in zip(known, which, strict=True) if counts], np.float64)


def mean_of(cell: Cell, name: str) -> Estimate:
    """Mean over seeds; NaN if none has the quantity."""
    values = counted(cell, name)
    return statistics.bootstrap(statistics.mean, [values]) if len(values) else UNKNOWN


def arrivals(cell: Cell, column: str) -> list[Crossing]:
    """When seeds reached the score, or ended: one per seed that has finished a training game or failed."""
    return [one.arrivals[column] for one in cell.traces if one.arrivals]


def median_of(cell: Cell, column: str) -> Estimate:
    """Median over seeds of frames or seconds to the score (`statistics.median_crossing`), seeds drawn with it."""
    found = arrivals(cell, column)
    if not found:
        return UNKNOWN
    x, reached = statistics.as_arrays(found)
    return statistics.bootstrap_seeds(lambda drawn: statistics.median_crossings(x[drawn], reached[drawn]), len(x))


def n_reached(cell: Cell) -> tuple[int, int]:
    """How many seeds reached the score, of how many."""
    found = arrivals(cell, "frames")
    return sum(one.reached for one in found), len(found)
