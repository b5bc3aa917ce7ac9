"""Asynchronous runs on the curve of forced lag: does their measured lag predict what they reach, and what they lose?

Predicted: the curve of PAAC without a correction at the measured mean lag, means over seeds joined linearly in the
order of the forced lags; nothing beyond what they reach. Lag is told in three units, each with a curve: in updates,
along log(1 + lag); by how far the policy has moved meanwhile, as KL in nats; and by how far the value has. An update of
one algorithm may move both half as far as one of another. Other things than lag differ between algorithms, so that what
an algorithm *loses* stands beside it: against its own runs without lag (A3C with one worker, GA3C in lock step), and on
the curve against lag 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import caption, figure, statistics, style
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.cli import NothingToDrawError
from analysis.groups import Band
from analysis.outcome import RULE
from analysis.prices import factor
from analysis.statistics import Estimate, Places
from analysis.studied import UNKNOWN, Cell, Line, Study, counted, mean_of
from analysis.summary import LABELS
from analysis.writing import INTERVAL, NO_INTERVAL, Table

QUANTITIES = ("score", "area")
UNITS: Mapping[str, Callable[[Floats], Floats]] = {  # of lag, and along what the curve is linear
    "lag_updates": np.log1p,
    "lag_kl_nats": np.asarray,
    "value_lag": np.asarray,
}
_AXES = {"lag_updates": "mean lag, updates", "lag_kl_nats": "mean KL, nats", "value_lag": "change of V"}
_SHORT = {"lag_updates": "updates", "lag_kl_nats": "nats (KL)", "value_lag": "change of the value"}
WITHOUT_LAG = 0.01  # updates: a mean lag below counts as none
_ESTIMATES = ("found", "predicted", "difference", "lost", "predicted_loss")


@dataclass(frozen=True)
class Prediction:
    """What one way of being parallel reached, and what the curve says."""

    line: Line
    way: Cell
    quantity: str
    unit: str  # of lag
    lag: Estimate
    found: Estimate
    predicted: Estimate  # NaN beyond the largest forced lag
    difference: Estimate  # found minus predicted
    lost: Estimate  # against the algorithm's own runs without lag; NaN without any
    predicted_loss: Estimate  # on the curve, against lag 0


def predictions(found: Study) -> list[Prediction]:
    """One per way, quantity and unit, in environments with a curve over forced lags that begins at 0."""
    curves: dict[str, Line] = {}
    for line in found.compared():
        if line.is_plain and len(line.cells) > 1 and 0.0 in line.cells:
            curves.setdefault(line.env, line)
    made = []
    for way in found.ways:
        if way.env in curves and way.traces[0].place is None and len(counted(way, "lag_updates")):
            same = [one for one in found.ways if (one.env, one.algo) == (way.env, way.algo) and one is not way]
            same = [one for one in same if _has_no_lag(one)]
            base = max(same, key=lambda one: len(one.traces), default=None)
            known = [(unit, name) for unit in UNITS for name in QUANTITIES if len(counted(way, unit))]
            made += [_predict(curves[way.env], way, base, *one) for one in known if len(counted(way, one[1]))]
    return made


def _has_no_lag(way: Cell) -> bool:
    lags = counted(way, "lag_updates")
    return len(lags) > 0 and float(lags.mean()) < WITHOUT_LAG


def _predict(line: Line, way: Cell, base: Cell | None, unit: str, name: str) -> Prediction:
    cells = [
        (np.full(len(values), forced) if unit == "lag_updates" else counted(cell, unit), values)
        for forced, cell in line.cells.items()
        for values in [counted(cell, name)]
    ]
    cells = [(lags, values) for lags, values in cells if len(values) and len(lags) == len(values)]
    ages, values = counted(way, unit), counted(way, name)
    bases = np.zeros(0) if base is None or _has_no_lag(way) else counted(base, name)

    def means(which: int, drawn: Sequence[Places]) -> Floats:
        return np.stack([cell[which][at].mean(axis=-1) for cell, at in zip(cells, drawn, strict=True)], axis=-1)

    def predicted(own: Places, *drawn: Places) -> Floats:
        scale = UNITS[unit]
        return interpolated(scale(means(0, drawn)), means(1, drawn), scale(ages[own].mean(axis=-1)))

    def difference(own: Places, *drawn: Places) -> Floats:
        return values[own].mean(axis=-1) - predicted(own, *drawn)

    def loss(own: Places, *drawn: Places) -> Floats:
        return means(1, drawn)[..., 0] - predicted(own, *drawn)

    ends = [float(lags.mean()) for lags, _ in cells]
    inside = len(cells) > 1 and len(ages) == len(values) and min(ends) <= ages.mean() <= max(ends)
    counts = [len(ages), *(len(lags) for lags, _ in cells)]
    known = [statistics.bootstrap_seeds(one, *counts) if inside else UNKNOWN for one in (predicted, difference, loss)]
    lost = statistics.bootstrap(_loss, [bases], [values]) if len(bases) else UNKNOWN
    return Prediction(
        line, way, name, unit, mean_of(way, unit), mean_of(way, name), known[0], known[1], lost, known[2]
    )  # fmt: skip


def _loss(without: statistics.Tasks, ours: statistics.Tasks) -> Floats:
    return statistics.mean(without) - statistics.mean(ours)


def interpolated(places: Floats, means: Floats, at: Floats) -> Floats:
    """Means between some places, linear in between; those of the ends beyond them.

    Where the places do not increase, the first way between two of them that leads past `at` counts.

    Args:
        places: [..., K], at least two.
        means: at the places, [..., K].
        at: where, [...].

    Returns:
        [...]
    """
    knots, means = np.broadcast_arrays(np.maximum.accumulate(places, axis=-1), means)
    at = np.clip(at, knots[..., 0], knots[..., -1])
    left = np.clip((knots < at[..., None]).sum(-1) - 1, 0, knots.shape[-1] - 2)
    (start, end), (low, high) = (
        [np.take_along_axis(values, (left + step)[..., None], -1)[..., 0] for step in (0, 1)]
        for values in (knots, means)
    )
    width = end - start
    return low + (high - low) * np.divide(at - start, width, out=np.zeros_like(width), where=width > 0.0)


# --- the table --------------------------------------------------------------------------------------------------------


def table(found: Study) -> Table:
    """Found and predicted, with intervals.

    Raises:
        NothingToDrawError: see `_made`.
    """
    made = _made(found)
    numbers = pd.DataFrame([_row(one) for one in made])
    text = pd.DataFrame(
        [
            {"environment": one.way.env, "method": one.way.name, "lag": factor(one.lag)}
            | {"in": _SHORT[one.unit], "quantity": one.quantity}
            | {name.replace("_", " "): factor(getattr(one, name)) for name in _ESTIMATES}
            for one in made
        ]
    )
    bounded = numbers[[f"{name}_low" for name in _ESTIMATES if name != "lost"]].notna()
    notes = [
        "Predicted: PAAC without a correction at that mean lag, between the lags that were forced, linear in "
        "log(1 + lag) of updates, in KL and in the change of the value; none beyond them. Difference: found minus "
        "predicted.",
        "Lost: the mean of the algorithm's own runs without lag minus found, where there are such; predicted loss: "
        "the curve at lag 0 minus predicted. Score: final evaluation; area: mean return over training.",
        *([INTERVAL] if bounded.any(axis=None) else [NO_INTERVAL]),
        RULE,
    ]
    return Table("lag_prediction", "Found, and predicted by the curve of forced lag", numbers, text, notes)


def _made(found: Study) -> list[Prediction]:
    made = predictions(found)
    if not made:
        raise NothingToDrawError(
            "No environment has both runs of PAAC with two values of algo.lag.updates, 0 among them, and runs whose "
            "lag was measured and not forced."
        )
    return made


def _row(one: Prediction) -> dict[str, object]:
    row: dict[str, object] = {**one.way.keys, "way": one.way.name, "n_seeds": len(one.way.all_runs)}
    row |= {"quantity": one.quantity, "unit": one.unit}
    for name in ("lag", *_ESTIMATES):
        estimate: Estimate = getattr(one, name)
        row |= {name: float(estimate.value), f"{name}_low": float(estimate.low), f"{name}_high": float(estimate.high)}
    return row


# --- the figure -------------------------------------------------------------------------------------------------------


def figure_and_table(found: Study) -> tuple[Figure, pd.DataFrame]:
    """The figure and its numbers: the curve, then the points.

    Raises:
        NothingToDrawError: see `_made`.
    """
    made = _made(found)
    lines = list({one.line.env: one.line for one in made}.values())
    looks = figure.looks_of([one.way for one in made])
    units = [unit for unit in UNITS if any(one.unit == unit for one in made)]  # from left to right
    panels = [(unit, name) for name in QUANTITIES for unit in units if any(one.quantity == name for one in made)]
    sections = []
    for line in lines:
        here = [one for one in made if one.line is line]
        ways = list({one.way.method: one.way for one in here}.values())
        texts = ["PAAC with a forced lag", *(way.legend() for way in ways)]
        fill = partial(_fill, line=line, made=here, ways=ways, panels=panels, looks=looks)
        sections.append(figure.Section(line.env, float(len(panels) // len(units)), texts, fill))
    points = {(one.way.env, one.way.method): one.way for one in made}.values()
    cells = [*(cell for line in lines for cell in line.cells.values()), *points]
    how = (
        "Line: mean over seeds of PAAC whose lag was forced, without a correction. Points: runs whose lag was "
        "measured, at its mean. "
        + (
            "Band and bars: 95% percentile bootstrap over seeds. "
            if any(len(cell.counted) >= SEEDS_FOR_BAND for cell in cells)
            else ""
        )
        + "If lag were all that mattered the points would lie on the line; algorithms differ in more. KL and "
        "change of the value: from the parameters that acted to those that are updated, on the line as they were "
        "measured at each forced lag. " + RULE
    )
    numbers = pd.concat([_curve(line, *panel) for line in lines for panel in panels])
    numbers = pd.concat([numbers, pd.DataFrame([_row(one) for one in made])])
    return figure.compose(sections, caption.complete(how, cells, "point"), figure.width_of(len(units))), numbers


def _curve(line: Line, unit: str, name: str) -> pd.DataFrame:
    """A row per forced lag, by what it is in this unit: as it was forced, or as it was measured."""
    rows = []
    for forced, cell in line.cells.items():
        found, lag = mean_of(cell, name), forced if unit == "lag_updates" else float(mean_of(cell, unit).value)
        rows.append(
            {"env": line.env, "way": "PAAC with a forced lag", "n_seeds": len(cell.all_runs), "quantity": name}
            | {"unit": unit, "lag": lag, "found": float(found.value)}
            | {"found_low": float(found.low), "found_high": float(found.high)}
        )
    return pd.DataFrame(rows)


def _fill(
    part: SubFigure,
    line: Line,
    made: Sequence[Prediction],
    ways: Sequence[Cell],
    panels: Sequence[tuple[str, str]],
    looks: dict[tuple[str, str], style.Look],
) -> list[Artist]:
    own = style.Look("0.25", "-", "o")
    n_columns = len({unit for unit, _ in panels})
    for panel, (unit, name) in zip(figure.grid(part, len(panels), n_columns), panels, strict=True):
        here = [one for one in made if (one.unit, one.quantity) == (unit, name)]
        rows = _curve(line, unit, name)
        lag, value, low, high = rows[["lag", "found", "found_low", "found_high"]].to_numpy(dtype=np.float64).T
        known = np.isfinite(value) & np.isfinite(lag)
        figure.draw_band(panel, lag[known], Band.of_estimate(lag[known], value[known], low[known], high[known]), own)
        for one in here:
            look = looks[one.way.method]
            bars = [_reach(estimate) for estimate in (one.lag, one.found)]
            panel.errorbar(
                one.lag.value, one.found.value, xerr=bars[0], yerr=bars[1], linestyle="none", elinewidth=1.0,
                ecolor=look.colour, **figure.marker(look),
            )  # fmt: skip
        largest = max((float(np.nanmax([one.lag.value, one.lag.high])) for one in here), default=0.0)
        if unit == "lag_updates":
            figure.set_lags(panel, list(line.cells), _AXES[unit], largest)
        else:
            moved = lag[known & (lag > 0.0)]
            decade = 10.0 ** np.floor(np.log10(moved.min())) if len(moved) else 1.0
            scale = figure.scale_with_zero(panel, "x", max([largest, *lag[known]]), decade)
            panel.set_xlabel(", ".join(filter(None, [_AXES[unit], scale])))
        panel.set_ylabel(figure.two_lines(LABELS[name]))
    alone = [{**figure.marker(looks[way.method]), "linestyle": "none"} for way in ways]
    return [figure.handle(own), *(Line2D([], [], **mark) for mark in alone)]


def _reach(estimate: Estimate) -> Floats | None:
    """How far bars go down and up, [2, 1]; None without an interval."""
    if np.isnan(estimate.low):
        return None
    reach = np.array([[estimate.value - estimate.low], [estimate.high - estimate.value]], dtype=np.float64)
    return np.maximum(reach, 0.0)
