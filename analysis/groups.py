"""Runs that differ in their seed alone, and the curve with a band that they make together."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from analysis import aggregate, style
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.load import Run

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

    @property
    def name(self) -> str:
        """The algorithm with the settings that tell it from its variants."""
        return " ".join(filter(None, [style.display_name(self.algo), self.label]))

    @property
    def runs(self) -> list[Run]:
        """One per seed."""
        return [trace.run for trace in self.traces]

    @property
    def has_band(self) -> bool:
        """Whether there are seeds enough for a mean with a band."""
        return len(self.traces) >= SEEDS_FOR_BAND


@dataclass(frozen=True)
class Band:
    """The curve of several seeds at common points, [G] each; low and high are NaN below SEEDS_FOR_BAND seeds."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def group_traces(traces: Iterable[AnyTrace]) -> list[SeedGroup[AnyTrace]]:
    """Groups by environment, algorithm and label, in the order of a legend; repeated seeds are named and left out."""
    found: dict[tuple[str, str, str], dict[int, AnyTrace]] = defaultdict(dict)
    for trace in traces:
        run = trace.run
        same = found[run.env, run.algo, run.label]
        if run.seed in same:
            log.warning("%s repeats %s and is not in the figure.", run.path, same[run.seed].run.path)
        else:
            same[run.seed] = trace
    return [SeedGroup(*key, [found[key][seed] for seed in sorted(found[key])]) for key in in_legend_order(found)]


def group_runs(runs: Iterable[Run]) -> list[SeedGroup[Member]]:
    """Runs that differ in their seed alone, together; repeated seeds are named and left out."""
    return group_traces(Member(run) for run in runs)


def in_legend_order(keys: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Environment, algorithm and label, sorted: known algorithms first, n_envs=8 before n_envs=32."""
    return sorted(keys, key=lambda key: _order(*key))


def make_band(curves: Sequence[tuple[Floats, Floats]]) -> Band:
    """Mean over seeds, where all of them have data, with a bootstrap band if there are seeds enough for one.

    Args:
        curves: increasing x [N] and y [N] of each seed, with an N of its own.
    """
    grid = aggregate.common_grid(np.array([x[0] for x, _ in curves]), np.array([x[-1] for x, _ in curves]), GRID_POINTS)
    return band_at(grid, np.stack([aggregate.resample(grid, x, y) for x, y in curves]))


def band_at(x: Floats, values: Floats) -> Band:
    """The same for seeds whose values are known at common points: x [G] and values [S, G]."""
    nothing = np.full(len(x), np.nan)
    low, high = aggregate.bootstrap_band(values) if len(values) >= SEEDS_FOR_BAND else (nothing, nothing)
    return Band(x, values.mean(axis=0), low, high)


def _order(env: str, algo: str, label: str) -> tuple[str, int, str, list[tuple[float, str]]]:
    known = list(style.COLOURS)
    return env, known.index(algo) if algo in known else len(known), algo, style.natural_order(label)
