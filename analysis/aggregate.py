"""From the games of single runs to one curve with its uncertainty: pure functions over numpy arrays."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

N_RESAMPLES = 5_000
CONFIDENCE = 0.95
SEEDS_FOR_BAND = 3  # fewer say nothing of chance: runs are drawn, not a band


def rolling_mean(values: Floats, window: int) -> Floats:
    """Mean of the last `window` values at each position, or of those there are. [N] -> [N]"""
    if window < 1:
        raise ValueError(f"window={window} must be at least 1.")
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def last_of_each(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Non-decreasing x [N] without its repeats, and the last y of each: parallel games often end on the same frame."""
    last = np.append(x[1:] != x[:-1], True) if len(x) else np.zeros(0, dtype=bool)
    return x[last], y[last]


def common_grid(starts: Floats, ends: Floats, n_points: int) -> Floats:
    """Evenly spaced points where every one of several curves is defined: from the latest start to the earliest end.

    Args:
        starts: first x of each curve, [S].
        ends: last x of each curve, [S].
        n_points: G.

    Returns:
        [G]; a single point if the curves have only that in common; empty if they have nothing.
    """
    start, end = float(np.max(starts)), float(np.min(ends))
    if start > end:
        return np.zeros(0)
    return np.linspace(start, end, n_points) if end > start else np.array([start])


def resample(grid: Floats, x: Floats, y: Floats) -> Floats:
    """Linear interpolation of y(x) [N] at grid [G]; NaN outside x, as nothing is extrapolated."""
    return np.interp(grid, x, y, left=np.nan, right=np.nan)


def bootstrap_band(values: Floats, seed: int = 0) -> tuple[Floats, Floats]:
    """Percentile bootstrap of the mean over seeds, at every grid point at once.

    Drawing S seeds with replacement is drawing how often each of them counts: one matrix product for all resamples.
    With three seeds the 95% band reaches from the lowest to the highest (each is all of a resample in 1 of 27), and
    with few seeds it is in general too narrow.

    Args:
        values: one row per training seed, [S, G].
        seed: of the resampling; equal inputs give equal bands.

    Returns:
        lower and upper end of the band, [G] each.
    """
    n_seeds = len(values)
    weights = np.random.default_rng(seed).multinomial(n_seeds, np.full(n_seeds, 1.0 / n_seeds), N_RESAMPLES) / n_seeds
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(weights @ values, [tail, 1.0 - tail], axis=0)
    return low, high
