"""From scores of seeds to numbers with intervals: pure functions over numpy arrays.

What varies is the seed, never the game within a run. Scores come by task (one environment, usually Atari game), an
array with a value per seed each; tasks need not have equally many seeds. Most functions also take arrays with more
axes in front of the seeds' one, which is how all resamples of a bootstrap are worked out at once.

Mean, median, interquartile mean, optimality gap, performance profiles and probability of improvement are those of
Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.aggregate import CONFIDENCE, N_RESAMPLES, SEEDS_FOR_BAND, Floats

Tasks = Sequence[Floats]  # scores, [..., S] each, with an S of its own
Places = NDArray[np.intp]  # of seeds in a sample, [..., S]


@dataclass(frozen=True)
class Estimate:
    """A number, or an array of them, with the ends of its 95% interval: NaN where there are too few seeds for one."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Crossing:
    """When a curve first reached a threshold; if it never did, where it ended (a censored observation)."""

    x: float
    reached: bool


# --- aggregate scores -------------------------------------------------------------------------------------------------


def mean(tasks: Tasks) -> Floats:
    """Mean over tasks of the mean over seeds. [..., S] each -> [...]"""
    return np.mean([scores.mean(axis=-1) for scores in tasks], axis=0)


def median(tasks: Tasks) -> Floats:
    """Median over tasks of the mean over seeds. [..., S] each -> [...]"""
    return np.median([scores.mean(axis=-1) for scores in tasks], axis=0)


def iqm(tasks: Tasks) -> Floats:
    """Interquartile mean: of all runs of all tasks, without the lowest and the highest quarter. [..., S] each -> [...]

    A quarter is rounded down: with three runs nothing is left out, and it is the mean.
    """
    from scipy import stats  # here, as loading it takes long

    return stats.trim_mean(np.concatenate(tasks, axis=-1), 0.25, axis=-1)


def optimality_gap(tasks: Tasks, full: float = 100.0) -> Floats:
    """How far scores are below `full` on average; one that is above it makes up for none. [..., S] each -> [...]"""
    return np.asarray(full - mean([np.minimum(scores, full) for scores in tasks]))


def performance_profile(tasks: Tasks, thresholds: Floats) -> Floats:
    """Share of runs with a score above each threshold, each task counting alike. [..., S] each, [G] -> [..., G]"""
    return np.mean([(scores[..., None] > thresholds).mean(axis=-2) for scores in tasks], axis=0)


def probability_of_improvement(ours: Tasks, theirs: Tasks) -> Floats:
    """How probable it is that a run of ours beats one of theirs on a task drawn at random; a tie is half a win.

    On one task it is the Mann-Whitney U over the number of pairs. Both sides have the same tasks in the same order.

    Args:
        ours: [..., S] each.
        theirs: [..., S'] each.

    Returns:
        [...]

    Raises:
        ValueError: the numbers of tasks differ.
    """
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(ours, theirs, strict=True)]
    return np.mean([((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)) for x, y in pairs], axis=0)


def bootstrap(
    statistic: Callable[..., Floats], *samples: Tasks, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Estimate:
    """Stratified percentile bootstrap: the seeds of each task are drawn with replacement among themselves.

    Args:
        statistic: of one or more samples, as those above; it must work along leading axes.
        samples: what it takes; scores of one sample are drawn apart from those of another.
        seed: of the resampling; equal inputs give equal intervals.
        n_resamples: how often is drawn.

    Returns:
        the statistic of the samples themselves, and the interval; the latter is NaN if a task has fewer than
        SEEDS_FOR_BAND seeds: there is then nothing to tell chance from.
    """
    value = np.asarray(statistic(*samples), dtype=np.float64)
    if min(len(scores) for sample in samples for scores in sample) < SEEDS_FOR_BAND:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    random = np.random.default_rng(seed)
    drawn = [[_redrawn(scores, random, n_resamples) for scores in sample] for sample in samples]
    tail = (1.0 - CONFIDENCE) / 2.0
    numbers = statistic(*drawn)
    method: Literal["linear", "inverted_cdf"] = "linear" if np.isfinite(numbers).all() else "inverted_cdf"
    low, high = np.quantile(numbers, [tail, 1.0 - tail], axis=0, method=method)  # nothing lies halfway to infinity
    return Estimate(value, low, high)


def bootstrap_seeds(statistic: Callable[..., Floats], *counts: int) -> Estimate:
    """`bootstrap` of what takes more than one number of each seed.

    Args:
        statistic: takes for each sample which of its seeds were drawn, integers [..., S], and gives [...].
        counts: how many seeds each sample has, at least one.
    """

    def of_places(*drawn: Tasks) -> Floats:
        return statistic(*(sample[0].astype(np.intp) for sample in drawn))

    return bootstrap(of_places, *([np.arange(count, dtype=np.float64)] for count in counts))


def human_normalised(score: Floats, random: Floats, human: Floats) -> Floats:
    """100 (score - random) / (human - random): 0 as random play, 100 as a human tester. Any shapes that fit."""
    return 100.0 * (score - random) / (human - random)


def _redrawn(scores: Floats, random: np.random.Generator, n_resamples: int) -> Floats:
    """[S] -> [R, S]"""
    return scores[random.integers(len(scores), size=(n_resamples, len(scores)))]


# --- curves -----------------------------------------------------------------------------------------------------------


def area_under_curve(x: Floats, y: Floats, end: float | None = None) -> float:
    """Mean height of y(x), linear between its points, from its first x to `end`.

    Args:
        x: increasing, [N].
        y: [N].
        end: where to stop; the last x if None.

    Returns:
        in units of y; NaN if the curve ends before `end` or has no extent: nothing is extrapolated.
    """
    if not len(x):
        return float("nan")
    last = float(x[-1]) if end is None else end
    if not x[0] < last <= x[-1]:
        return float("nan")
    inside = x < last
    xs = np.append(x[inside], last)
    ys = np.append(y[inside], np.interp(last, x, y))
    return float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2.0) / (last - x[0]))


def first_crossing(x: Floats, y: Floats, threshold: float) -> Crossing:
    """The first x [N] at which y [N] is at least the threshold.

    Raises:
        ValueError: the curve is empty.
    """
    if not len(x):
        raise ValueError("A curve without points crosses nothing.")
    above: NDArray[np.bool_] = y >= threshold
    return Crossing(float(x[np.argmax(above)]), True) if above.any() else Crossing(float(x[-1]), False)


def median_crossing(crossings: Sequence[Crossing]) -> float:
    """Median over seeds (Kaplan and Meier 1958): a run that ended before it reached the threshold is censored there.

    Leaving such runs out would favour what seldom gets there, and so would taking their ends for crossings.

    Returns:
        the smallest x by which at least half of the runs are there; infinite if that was not seen, and where fewer than
        half of them arrived, as the estimate would then rest on who happened to train longest.
    """
    x, reached = as_arrays(crossings)
    return float(median_crossings(x, reached))


def as_arrays(crossings: Sequence[Crossing]) -> tuple[Floats, NDArray[np.bool_]]:
    """Where each was or ended, and whether it was; [S] each."""
    return np.array([one.x for one in crossings], np.float64), np.array([one.reached for one in crossings], np.bool_)


def median_crossings(x: Floats, reached: NDArray[np.bool_]) -> Floats:
    """The same of many samples at once: [..., S] each -> [...]"""
    n = x.shape[-1]
    if not n:
        return np.full(x.shape[:-1], np.inf)
    order = np.argsort(~reached, axis=-1, kind="stable")  # of what happens at one place, arrivals come first
    order = np.take_along_axis(order, np.argsort(np.take_along_axis(x, order, -1), axis=-1, kind="stable"), -1)
    x, arrives = np.take_along_axis(x, order, -1), np.take_along_axis(reached, order, -1)
    missing = np.cumprod(np.where(arrives, 1.0 - 1.0 / np.arange(n, 0, -1), 1.0), axis=-1)  # share not there yet
    there = missing <= 0.5 + 1e-12
    median = np.take_along_axis(x, np.argmax(there, axis=-1)[..., None], -1)[..., 0]
    return np.where(there.any(axis=-1) & (2 * arrives.sum(axis=-1) >= n), median, np.inf)
