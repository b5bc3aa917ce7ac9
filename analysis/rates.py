"""The largest stable learning rate against lag: scores over both, and the frontier on them.

Stable, at one lag: the mean score over seeds is at least STABLE of the way from what an untrained policy gets to the
best mean of any rate at that lag. The largest such rate of those that were run is the frontier, wherever smaller ones
lie; a lag at which no rate comes LEARNT of the way to the best mean of all lags has none, as nothing is learnt there.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from analysis import caption, crossings, figure, statistics
from analysis.aggregate import Floats
from analysis.cli import NothingToDrawError
from analysis.outcome import TRAINING_GAMES
from analysis.statistics import Estimate, Tasks
from analysis.studied import UNKNOWN, Cell, Line, Study, counted, mean_of

STABLE = 0.9
LEARNT = 0.5
_FRONTIER = {"color": "#D55E00", "marker": "o", "markersize": 5.0, "markeredgecolor": "white", "linewidth": 1.5}
_SLOPE = {"color": "0.15", "linestyle": (0, (1.0, 1.2)), "linewidth": 1.2}


@dataclass(frozen=True)
class Grid:
    """The runs of one environment and correction over lag and learning rate."""

    env: str
    name: str
    lags: Sequence[float]  # increasing
    rates: Sequence[float]  # increasing
    cells: dict[tuple[float, float], Cell]  # by lag and rate; some may be missing
    untrained: float  # the return with which training begins, mean over runs

    @property
    def best(self) -> float:
        """The highest mean score."""
        return float(np.nanmax(self.means))

    @property
    def means(self) -> Floats:
        """Mean scores over seeds, [rates, lags]; NaN where nothing was run."""
        return np.array([[self._mean(lag, rate) for lag in self.lags] for rate in self.rates])

    def _mean(self, lag: float, rate: float) -> float:
        cell = self.cells.get((lag, rate))
        scores = np.zeros(0) if cell is None else counted(cell, "score")
        return float(scores.mean()) if len(scores) else float("nan")

    def frontier(self, lag: float) -> Estimate:
        """The largest stable rate at a lag; NaN where nothing is learnt."""
        known = [(rate, counted(self.cells[lag, rate], "score")) for rate in self.rates if (lag, rate) in self.cells]
        known = [(rate, scores) for rate, scores in known if len(scores)]
        if not known or max(scores.mean() for _, scores in known) < self._level(LEARNT, self.best):
            return UNKNOWN
        rates = np.array([rate for rate, _ in known])
        return statistics.bootstrap(partial(self._largest, rates=rates), [scores for _, scores in known])

    def _largest(self, tasks: Tasks, rates: Floats) -> Floats:
        """[..., S] for each rate -> [...]"""
        means = np.stack([scores.mean(axis=-1) for scores in tasks], axis=-1)
        stable = means >= self._level(STABLE, means.max(axis=-1, keepdims=True))
        return rates[len(rates) - 1 - np.argmax(stable[..., ::-1], axis=-1)]

    def _level(self, share: float, best: Floats | float) -> Floats:
        return np.asarray(self.untrained + share * (best - self.untrained))


def grids(found: Study) -> list[Grid]:
    """Those with two lags and two learning rates at least."""
    lines: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in found.lines:
        lines[line.env, line.name].append(line)
    made = []
    for (env, name), same in lines.items():
        cells = {(lag, line.rate): cell for line in same for lag, cell in line.cells.items()}
        per_lag = defaultdict(set)
        for lag, rate in cells:
            per_lag[lag].add(rate)
        lags = sorted(lag for lag, known in per_lag.items() if len(known) > 1)
        rates = sorted({rate for lag, rate in cells if lag in lags})
        if len(lags) > 1:
            cells = {key: cell for key, cell in cells.items() if key[0] in lags}
            made.append(Grid(env, name, lags, rates, cells, _untrained(list(cells.values()))))
    return made


def _untrained(cells: Sequence[Cell]) -> float:
    curves = [one.curve for cell in cells for one in cell.traces if one.curve is not None and not one.curve.evaluated]
    first = [crossings.past_start(*curve.curve("frames"), TRAINING_GAMES)[1][0] for curve in curves]
    return float(np.mean(first)) if first else float("nan")


# --- the figure -------------------------------------------------------------------------------------------------------


def figure_and_table(found: Study) -> tuple[Figure, pd.DataFrame]:
    """The figure and its numbers.

    Raises:
        NothingToDrawError: no environment has two lags with two learning rates each.
    """
    made = [grid for grid in grids(found) if np.isfinite(grid.means).any() and np.isfinite(grid.untrained)]
    if not made:
        raise NothingToDrawError("No environment has two values of algo.lag.updates with two learning rates each.")
    table = pd.concat([_rows(grid) for grid in made], ignore_index=True)
    texts = ["largest stable learning rate", "slope of 1 / lag"]
    sections = []
    for env in dict.fromkeys(grid.env for grid in made):
        here = [grid for grid in made if grid.env == env]
        sections.append(figure.Section(env, 1.1 * -(-len(here) // 2), texts, partial(_fill, here=here, table=table)))
    cells = [cell for grid in made for cell in grid.cells.values()]
    return figure.compose(sections, caption.complete(_how(), cells, "cell"), figure.width_of(2)), table


def _how() -> str:
    return (
        "Numbers: mean score over seeds; shade: how far of the way from the untrained policy (the mean return of the "
        "first training games) to the best cell. Circles: the largest learning rate, of those that were run, whose "
        f"mean score is at least {STABLE:.0%} of the way from the untrained policy to the best mean at that lag; none "
        f"where no rate gets {LEARNT:.0%} of the way to the best cell; at the upper edge it may lie higher. Bars: 95% "
        "percentile bootstrap over seeds. Dots: rate proportional to 1 / lag, through the first circle with a lag of 1 "
        "or more: a slope to compare with, not a fit."
    )


def _rows(grid: Grid) -> pd.DataFrame:
    rows = []
    for (lag, rate), cell in sorted(grid.cells.items()):
        rows.append((lag, rate, "score", len(cell.all_runs), mean_of(cell, "score")))
    for lag in grid.lags:
        n_seeds = min(len(cell.all_runs) for key, cell in grid.cells.items() if key[0] == lag)
        rows.append((lag, float("nan"), "largest_stable_rate", n_seeds, grid.frontier(lag)))
    return pd.DataFrame(
        {"env": grid.env, "line": grid.name, "lag_updates": lag, "learning_rate": rate, "quantity": quantity}
        | {"n_seeds": n_seeds, "untrained": grid.untrained}
        | {part: float(getattr(estimate, part)) for part in ("value", "low", "high")}
        for lag, rate, quantity, n_seeds, estimate in rows
    )


def _fill(part: SubFigure, here: Sequence[Grid], table: pd.DataFrame) -> list[Artist]:
    panels = figure.grid(part, len(here), 2)
    for panel, grid in zip(panels, here, strict=True):
        image = _draw_scores(panel, grid)
        frontier = table[(table["env"] == grid.env) & (table["line"] == grid.name)]
        _draw_frontier(panel, grid, frontier[frontier["quantity"] == "largest_stable_rate"])
        panel.set_title(grid.name)
        panel.set_xlabel("forced lag, updates")
        panel.set_ylabel("learning rate")
    part.colorbar(image, ax=panels, label=figure.two_lines("share of the way to the best cell"))
    return [Line2D([], [], **_FRONTIER), Line2D([], [], **_SLOPE)]  # type: ignore[arg-type]


def _draw_scores(panel: Axes, grid: Grid) -> AxesImage:
    means = grid.means
    share = (means - grid.untrained) / (grid.best - grid.untrained)
    image = panel.imshow(share, origin="lower", aspect="auto", cmap="cividis", vmin=0.0, vmax=1.0)
    for row, column in np.argwhere(np.isfinite(means)):
        colour = "white" if share[row, column] < 0.55 else "black"
        text = f"{means[row, column]:.3g}"
        panel.text(column, row - 0.32, text, ha="center", va="center", fontsize=5.5, color=colour)
    panel.set_xticks(range(len(grid.lags)), [f"{lag:g}" for lag in grid.lags])
    panel.set_yticks(range(len(grid.rates)), [f"{rate:.3g}" for rate in grid.rates])
    panel.grid(visible=False)
    return image


def _draw_frontier(panel: Axes, grid: Grid, rows: pd.DataFrame) -> None:
    """On the grid's own scale: cell by cell, logarithmic in between."""
    lags, value, low, high = rows[["lag_updates", "value", "low", "high"]].to_numpy(dtype=np.float64).T
    x = np.arange(len(lags), dtype=np.float64)
    y, down, up = (_height(grid, rates) for rates in (value, low, high))
    panel.plot(x, y, **_FRONTIER)  # type: ignore[arg-type]
    panel.vlines(x, down, up, colors=str(_FRONTIER["color"]), linewidth=1.0)
    known = np.flatnonzero((lags >= 1.0) & np.isfinite(value))
    if len(known):
        first = known[0]
        panel.plot(x[first:], _height(grid, value[first] * lags[first] / lags[first:]), **_SLOPE)  # type: ignore[arg-type]


def _height(grid: Grid, rates: Floats) -> Floats:
    """Where rates lie among those of the grid; NaN outside."""
    known = np.log(np.array(grid.rates))
    heights = np.full(len(rates), np.nan)
    there = np.isfinite(rates)
    heights[there] = np.interp(np.log(rates[there]), known, np.arange(len(known)), left=np.nan, right=np.nan)
    return heights
