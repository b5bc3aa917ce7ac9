"""Runs that differ in their seed alone, and the curve with a band that they make together."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import pandas as pd

from analysis import aggregate, style
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.outcome import AS_LONG, counting, tally
from analysis.run import Run

log = logging.getLogger(__name__)

GRID_POINTS = 200


class Trace(Protocol):
    """What a figure needs of one run."""

    @property
    def run(self) -> Run:
        """Where it comes from."""


@dataclass(frozen=True)
class Member:
    """A run and nothing else."""

    run: Run


AnyTrace = TypeVar("AnyTrace", bound=Trace)
AnyTrace_co = TypeVar("AnyTrace_co", bound=Trace, covariant=True)


@dataclass(frozen=True)
class SeedGroup(Generic[AnyTrace_co]):
    """The seeds of one algorithm with one configuration in one environment; at least one."""

    env: str
    algo: str
    label: str
    traces: Sequence[AnyTrace_co]
    missing: Sequence[Run] = field(default=(), kw_only=True)  # seeds that have nothing to be drawn

    @classmethod
    def of(cls, group: "SeedGroup[Any]", **more: Any) -> Self:
        """The same seeds as a group of a figure's own kind, which has more fields."""
        return cls(**{item.name: getattr(group, item.name) for item in fields(SeedGroup)}, **more)

    @property
    def method(self) -> tuple[str, str]:
        """Algorithm and label: what has one look in all environments."""
        return self.algo, self.label

    @property
    def keys(self) -> dict[str, str]:
        """What its rows in a table have in common."""
        return {"env": self.env, "algo": self.algo, "label": self.label}

    @property
    def name(self) -> str:
        """The algorithm with the settings that tell it from its variants."""
        return " ".join(filter(None, [style.display_name(self.algo), self.label]))

    @property
    def library(self) -> str:
        """The other library that trained it; empty for ours."""
        return self.all_runs[0].library

    @property
    def runs(self) -> list[Run]:
        """One per seed that is drawn."""
        return [trace.run for trace in self.traces]

    @property
    def all_runs(self) -> list[Run]:
        """One per seed, those that have nothing to be drawn included."""
        return [*self.runs, *self.missing]

    @property
    def counted(self) -> list[AnyTrace_co]:
        """The seeds of which means are: those that are over, where there are any."""
        which = counting(run.ending for run in self.runs)
        return [trace for trace, counts in zip(self.traces, which, strict=True) if counts]

    @property
    def others(self) -> list[AnyTrace_co]:
        """The seeds that are drawn beside the mean."""
        which = counting(run.ending for run in self.runs)
        return [trace for trace, counts in zip(self.traces, which, strict=True) if not counts]

    @property
    def has_band(self) -> bool:
        """Whether there are seeds enough for a mean with a band."""
        return len(self.counted) >= SEEDS_FOR_BAND

    @property
    def is_uneven(self) -> bool:
        """Whether some seeds ended long before others: their mean goes on without them, and is drawn faint there."""
        runs = [trace.run for trace in self.counted]
        known = [float(run.status["frames"]) for run in runs if isinstance(run.status.get("frames"), int | float)]
        return any(run.state != "finished" for run in runs) or (len(known) > 1 and min(known) < AS_LONG * max(known))

    def seeds(self, n_counted: int | None = None) -> str:
        """For a legend: "3 seeds", or "2 of 5 seeds; 3 failed" if means are of less than all."""
        n = len(self.counted) if n_counted is None else n_counted
        return tally([run.ending for run in self.all_runs], n)

    def legend(self, n_counted: int | None = None) -> str:
        """Its name and its seeds."""
        return f"{self.name} ({self.seeds(n_counted)})"


AnyGroup = TypeVar("AnyGroup", bound=SeedGroup[Any])


@dataclass(frozen=True)
class Band:
    """The mean of several seeds at common points, [G] each; low and high are NaN below SEEDS_FOR_BAND seeds."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    n: Floats  # of how many seeds
    n_seeds: int  # that there are

    @property
    def n_complete(self) -> int:
        """How many points, from the first on, are of all seeds: each has data there until it ends."""
        return int((self.n == self.n_seeds).sum())

    def rows(self, **fixed: object) -> pd.DataFrame:
        """A row per point for the CSV beside a figure, with what is the same in all of them."""
        numbers = {"x": self.x, "value": self.mean, "low": self.low, "high": self.high, "n_seeds": self.n.astype(int)}
        return pd.DataFrame(numbers).assign(**fixed)

    @staticmethod
    def of_estimate(x: Floats, value: Floats, low: Floats, high: Floats) -> "Band":
        """Of all there is at every point."""
        return Band(x, value, low, high, np.ones(len(x)), 1)


NO_BAND = Band.of_estimate(*[np.zeros(0)] * 4)


def collect(
    runs: Iterable[Run], read: Callable[[Run], AnyTrace | None], lacking: Callable[[Run], str]
) -> list[SeedGroup[AnyTrace]]:
    """What a figure needs of each run, grouped by `group_traces`; runs without it are named and not drawn.

    Args:
        runs: to draw.
        read: gives the trace of a run; None where it has nothing to be drawn.
        lacking: what is said of such a run, after its path.
    """
    traces, missing = [], []
    for run in runs:
        trace = read(run)
        if trace is None:
            missing.append(run)
            log.warning("%s %s", run.path, lacking(run))
        else:
            traces.append(trace)
    return group_traces(traces, missing)


def group_traces(traces: Iterable[AnyTrace], missing: Iterable[Run] = ()) -> list[SeedGroup[AnyTrace]]:
    """Groups by environment, algorithm and label, in the order of a legend.

    Of a repeated seed the first finished run counts, else the first; the others are named and left out.

    Args:
        traces: of the runs to draw.
        missing: runs without anything to be drawn; they count among the seeds of a group, if there is one.
    """
    found: dict[tuple[str, str, str], dict[int, AnyTrace]] = defaultdict(dict)
    for trace in sorted(traces, key=lambda one: one.run.state != "finished"):
        run = trace.run
        same = found[run.env, run.algo, run.label]
        if run.seed in same:
            log.warning("%s repeats %s and is not in the figure.", run.path, same[run.seed].run.path)
        else:
            same[run.seed] = trace
    lacking: dict[tuple[str, str, str], dict[int, Run]] = defaultdict(dict)
    for run in missing:
        if run.seed not in found.get((run.env, run.algo, run.label), {}):
            lacking[run.env, run.algo, run.label].setdefault(run.seed, run)
    return [
        SeedGroup(*key, [found[key][seed] for seed in sorted(found[key])], missing=list(lacking[key].values()))
        for key in in_legend_order(found)
    ]


def group_runs(runs: Iterable[Run]) -> list[SeedGroup[Member]]:
    """Runs that differ in their seed alone, together; repeated seeds are named and left out."""
    return group_traces(Member(run) for run in runs)


def by_env(groups: Iterable[AnyGroup]) -> dict[str, list[AnyGroup]]:
    """The groups of each environment, in their order."""
    found: dict[str, list[AnyGroup]] = {}
    for group in groups:
        found.setdefault(group.env, []).append(group)
    return found


def in_legend_order(keys: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Environment, algorithm and label, sorted: known algorithms first, n_envs=8 before n_envs=32."""
    return sorted(keys, key=lambda key: _order(*key))


def table_of_bands(parts: Iterable[pd.DataFrame], columns: Iterable[str]) -> pd.DataFrame:
    """The rows of several bands, one below the other."""
    return pd.concat(parts, ignore_index=True)[list(columns)]


def make_band(curves: Sequence[tuple[Floats, Floats]], to_the_end: bool = False) -> Band:
    """Mean over seeds, with a bootstrap band if there are seeds enough for one.

    Args:
        curves: increasing x [N] and y [N] of each seed, with an N of its own.
        to_the_end: of the longest; else as far as all of them have data.
    """
    starts, ends = (np.array([x[place] for x, _ in curves]) for place in (0, -1))
    grid = aggregate.common_grid(starts, np.full_like(ends, ends.max()) if to_the_end else ends, GRID_POINTS)
    return band_at(grid, np.stack([aggregate.resample(grid, x, y) for x, y in curves]))


def band_at(x: Floats, values: Floats) -> Band:
    """The same for seeds with values at common points: x [G] and values [S, G], NaN where a seed has none."""
    there = np.isfinite(values)
    mean, low, high = (np.full(len(x), np.nan) for _ in range(3))
    for pattern in {tuple(column) for column in there.T}:  # seeds that are there together
        seeds = np.array(pattern)
        points = (there == seeds[:, None]).all(axis=0)
        known = values[seeds][:, points]
        if len(known):
            mean[points] = known.mean(axis=0)
        if len(known) >= SEEDS_FOR_BAND:
            low[points], high[points] = aggregate.bootstrap_band(known)
    return Band(x, mean, low, high, there.sum(axis=0).astype(np.float64), len(values))


def _order(env: str, algo: str, label: str) -> tuple[str, int, str, list[tuple[float, str]]]:
    known = list(style.COLOURS)
    return env, known.index(algo) if algo in known else len(known), algo, style.natural_order(label)
