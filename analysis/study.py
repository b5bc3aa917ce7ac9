"""What lag does, and what each way of being parallel costs: figures over forced lags, and the price list.

    python -m analysis.study runs/forced_lag
    python -m analysis.study runs/forced_lag runs/headline --threshold CartPole-v1=475 --base "PAAC"

Writes what the runs allow, figures as PNG, PDF and CSV and tables as CSV, Markdown and LaTeX, and says what not:
study_score (score and area against lag), study_time (frames and seconds to a score), study_divergence (effective sample
size, KL and entropy), study_rates (score over learning rate and lag), study_prediction (what asynchronous runs lose
beside the curve of forced lag), and price_list. docs/analysis.md says what they show.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis import caption, cli, figure, prediction, prices, rates, style
from analysis.aggregate import SEEDS_FOR_BAND
from analysis.groups import Band
from analysis.outcome import FAILED, RULE, TRAINING_GAMES
from analysis.run import Run
from analysis.statistics import Estimate
from analysis.studied import Cell, Line, Study, make_study, mean_of, median_of, n_reached
from analysis.summary import LABELS, LAG_UNITS, about_areas
from analysis.writing import NOT_OVER, Table

log = logging.getLogger(__name__)

Drawn = tuple[Figure, pd.DataFrame]
_PANELS_IN_A_ROW = 4
_LAG = "forced lag, updates"
_STYLES: Mapping[str, style.Look] = {  # by the first word of a correction; colours of Okabe and Ito
    "no": style.Look(style.COLOURS["paac"], "-", "o"),
    "V-trace": style.Look("#000000", (0, (5.0, 1.5)), "s"),
    "ratio": style.Look("#E69F00", (0, (5.0, 1.2, 1.0, 1.2)), "^"),
    "log": style.Look("#7F7F7F", (0, (1.0, 1.2)), "D"),
    "steps": style.Look("#CC79A7", (0, (3.0, 1.2, 1.0, 1.2, 1.0, 1.2)), "v"),
    "delay": style.Look("#56B4E9", (0, (1.0, 1.2)), "P"),
}


@dataclass(frozen=True)
class Quantity:
    """What is drawn upwards in a row of panels."""

    name: str  # of Studied.numbers or arrivals
    label: str
    estimate: Callable[[Cell], Estimate]
    is_a_place: bool = False  # when something happened, which may be never

    @staticmethod
    def mean(name: str, label: str) -> "Quantity":
        """A mean over seeds."""
        return Quantity(name, label, partial(mean_of, name=name))

    @staticmethod
    def median(column: str, label: str) -> "Quantity":
        """A median over seeds of when the score was reached."""
        return Quantity(column, label, partial(median_of, column=column), is_a_place=True)


# --- figures over forced lags -----------------------------------------------------------------------------------------


def score(found: Study) -> Drawn:
    """Score and area under the training curve against lag."""
    quantities = [Quantity.mean("score", LABELS["score"]), Quantity.mean("area", LABELS["area"])]
    runs = [run for line in found.compared() for cell in line.cells.values() for run in cell.all_runs]
    return over_lag(found, quantities, [RULE if any(run.ending in FAILED for run in runs) else "", about_areas(runs)])


def time(found: Study) -> Drawn:
    """Frames and seconds to a score against lag."""
    goals = [f"{goal.value:,.4g} in {env} ({goal.reason})" for env, goal in found.goals.items()
             if env in {line.env for line in found.compared()}]  # fmt: skip
    sentences = [
        f"To the score: until the mean return of the last {TRAINING_GAMES} training games is first at least "
        f"{'; '.join(goals)}. Median over seeds after Kaplan and Meier, runs that ended below the score censored where "
        "they ended; a number beside a point: how many seeds got there, where not all did; at the upper edge: fewer "
        "than half. A band that reaches the edge has no upper end.",
    ]
    quantities = [
        Quantity.median("frames", "frames to the score"),
        Quantity.median("wall_seconds", "seconds to the score"),
    ]
    return over_lag(found, quantities, sentences, "Line: median over seeds.")


def divergence(found: Study) -> Drawn:
    """Effective sample size, KL and the policy's entropy against lag."""
    quantities = [
        Quantity.mean("effective_sample_size", "effective sample size, share of the samples"),
        Quantity.mean("lag_kl_nats", LABELS["lag_kl_nats"]),
        Quantity.mean("entropy_nats", LABELS["entropy_nats"]),
    ]
    sentence = (
        "Effective sample size: (sum w)^2 / (n sum w^2) of an update's n importance ratios w, 1 without lag, mean over "
        "updates. KL: of the policy that acted to the one that is updated, mean over samples. Entropy: of the policy "
        "that is updated, mean over training; at 0 it always takes one action."
    )
    return over_lag(found, quantities, [sentence])


def over_lag(
    found: Study, quantities: Sequence[Quantity], sentences: Sequence[str], middle: str = "Line: mean over seeds."
) -> Drawn:
    """Quantities against the lag that was set: a row of panels each, a panel per environment, a line per correction.

    Args:
        found: what to draw; its lines at the usual learning rates.
        quantities: upwards.
        sentences: for the caption.
        middle: what a line is of.

    Raises:
        NothingToDrawError: no environment has runs with two lags, or none has the quantities.
    """
    lines = found.compared()
    if not lines:
        raise cli.NothingToDrawError("No environment has runs with two or more values of algo.lag.updates.")
    points = [_points(line, one) for line in lines for one in quantities]
    table = pd.concat(points, ignore_index=True).dropna(subset=["value"])
    known = [one for one in quantities if (table["quantity"] == one.name).any()]
    if not known:
        wanted = " or ".join(one.name for one in quantities)
        raise cli.NothingToDrawError(f"None of the runs with a forced lag has {wanted}.")
    envs = list(dict.fromkeys(line.env for line in lines))
    looks = _looks(lines)
    sections = []
    for one in known:
        fill = partial(_fill, lines=lines, quantity=one, table=table, looks=looks, with_legend=one is known[-1])
        texts = list(looks) if one is known[-1] else []
        sections.append(figure.Section("", 1.05 * -(-len(envs) // _PANELS_IN_A_ROW), texts, fill))
    cells = [cell for line in lines for cell in line.cells.values()]
    waiting = [NOT_OVER] if any(cell.others for cell in cells) else []
    how = " ".join(filter(None, [middle, *_about(lines), *sentences, *waiting]))
    return figure.compose(sections, caption.complete(how, cells, "point"), figure.width_of(len(envs))), table


def _points(line: Line, quantity: Quantity) -> pd.DataFrame:
    """A row per lag."""
    rows = []
    for lag, cell in line.cells.items():
        estimate = quantity.estimate(cell)
        reached, of = n_reached(cell)
        rows.append(
            {"env": line.env, "correction": line.correction, "distribution": line.distribution, "late": line.late}
            | {
                "label": line.label,
                "learning_rate": line.rate,
                "line": line.name,
                "lag_updates": lag,
                "n_seeds": len(cell.all_runs),
            }
            | {"n_reached": reached, "n_on_the_way": of, "quantity": quantity.name}
            | {part: float(getattr(estimate, part)) for part in ("value", "low", "high")}
        )
    return pd.DataFrame(rows)


def _looks(lines: Sequence[Line]) -> dict[str, style.Look]:
    """By the name of a line, in the order of a legend: a colour per correction, and no two lines alike."""
    looks: dict[str, style.Look] = {}
    styles, markers = list(style.LINE_STYLES.values()), list(style.MARKERS.values())
    for line in lines:
        first = _STYLES[line.correction.split()[0]]
        others = [style.Look(first.colour, *pair) for pair in zip(styles, markers, strict=True)][::-1]
        free = [look for look in [first, *others] if look not in looks.values()] or [first]
        looks.setdefault(line.name, free[0])
    return looks


def _about(lines: Sequence[Line]) -> list[str]:
    """Sentences on intervals and learning rates."""
    counts = {len(cell.counted) for line in lines for cell in line.cells.values()}
    usual = {line.env: line.rate for line in lines}
    words = ", ".join(f"{rate:g} in {env}" for env, rate in usual.items())
    known = f"{next(iter(usual.values())):g}" if len({*usual.values()}) == 1 else words
    return [
        "Band: 95% percentile bootstrap over seeds." if max(counts) >= SEEDS_FOR_BAND else "",
        f"No band where there are fewer than {SEEDS_FOR_BAND} seeds." if min(counts) < SEEDS_FOR_BAND else "",
        f"Learning rate {known} at every lag: nothing is tuned for it.",
    ]


def _fill(
    part: SubFigure,
    lines: Sequence[Line],
    quantity: Quantity,
    table: pd.DataFrame,
    looks: Mapping[str, style.Look],
    with_legend: bool,
) -> list[Artist]:
    envs = list(dict.fromkeys(line.env for line in lines))
    panels = figure.grid(part, len(envs), _PANELS_IN_A_ROW)
    mine = table[table["quantity"] == quantity.name]
    for i, (panel, env) in enumerate(zip(panels, envs, strict=True)):
        here = mine[mine["env"] == env]
        for name, rows in here.groupby("line", sort=False):
            _draw_line(panel, rows, looks[str(name)])
        panel.set_title(env)
        figure.set_lags(panel, sorted({lag for line in lines if line.env == env for lag in line.cells}), _LAG)
        _set_heights(panel, quantity, here)
        if i % _PANELS_IN_A_ROW == 0:
            panel.set_ylabel(figure.two_lines(quantity.label))
    return [figure.handle(look, with_marker=True) for look in looks.values()] if with_legend else []


def _draw_line(panel: Axes, rows: pd.DataFrame, look: style.Look) -> None:
    x, y, low, high = rows[["lag_updates", "value", "low", "high"]].to_numpy(dtype=np.float64).T
    seen = np.isfinite(y)
    top = 1e3 * max(np.nanmax(y[seen], initial=1.0), 1.0)  # far above the panel, which cuts it off
    shown = Band.of_estimate(x[seen], y[seen], low[seen], np.where(np.isinf(high[seen]), top, high[seen]))
    figure.draw_band(panel, shown.x, shown, look)
    panel.plot(shown.x, shown.mean, linestyle="none", **figure.marker(look))
    hollow = figure.marker(look) | {"markerfacecolor": "none", "markeredgecolor": look.colour, "clip_on": False}
    if not seen.all():
        edge = panel.get_xaxis_transform()
        panel.plot(x[~seen], np.ones((~seen).sum()), linestyle="none", transform=edge, **hollow)
    if np.isinf(high).any():
        for row in rows[(rows["n_reached"] > 0) & (rows["n_reached"] < rows["n_on_the_way"])].itertuples():
            at = (row.lag_updates, row.value) if np.isfinite(row.value) else (row.lag_updates, 1.0)
            place = "data" if np.isfinite(row.value) else panel.get_xaxis_transform()
            text, shift = f"{row.n_reached}/{row.n_on_the_way}", (3, 3) if np.isfinite(row.value) else (3, -8)
            panel.annotate(text, at, shift, place, "offset points", fontsize=5.5)


def _set_heights(panel: Axes, quantity: Quantity, rows: pd.DataFrame) -> None:
    if quantity.name in LAG_UNITS:
        figure.scale_with_zero(panel, "y", float(rows["value"].max()), LAG_UNITS[quantity.name])
    elif quantity.is_a_place:
        known = rows["value"][np.isfinite(rows["value"])]
        panel.set_ylim(0.0, 1.25 * known.max() if len(known) else 1.0)


# --- the command line -------------------------------------------------------------------------------------------------

FIGURES: Mapping[str, tuple[str, Callable[[Study], Drawn]]] = {  # by the name of the files: title, and how it is made
    "study_score": ("Score and area against lag", score),
    "study_time": ("Frames and seconds to a score against lag", time),
    "study_divergence": ("Effective sample size and KL against lag", divergence),
    "study_rates": ("The largest stable learning rate against lag", rates.figure_and_table),
    "study_prediction": ("Asynchronous runs on the curve of forced lag", prediction.figure_and_table),
}


def tables(base: str | None = None) -> Mapping[str, Callable[[Study], Table]]:
    """By the name of the files; `base` is of the price list."""
    return {"lag_prediction": prediction.table, "price_list": partial(prices.price_list, base=base)}


def write(runs: Sequence[Run], folder: Path, goals: Mapping[str, float] | float | None, base: str | None) -> list[Path]:
    """Writes all that the runs allow, and gives the files; what they do not is a warning.

    Raises:
        NothingToDrawError: they allow nothing, or a score is asked for in an environment that they do not have.
    """
    envs = {run.env for run in runs}
    unknown = sorted({*goals} - envs) if isinstance(goals, Mapping) else []
    if unknown:
        raise cli.NothingToDrawError(f"No run is of {', '.join(unknown)}, only of {', '.join(sorted(envs))}.")
    found = make_study(runs, goals)
    files: list[Path] = []
    reasons = []
    for name, (_, draw) in FIGURES.items():
        try:
            files += cli.save(name, *draw(found), folder)
        except cli.NothingToDrawError as reason:
            reasons.append(f"{name} is left out: {reason}")
    for name, make in tables(base).items():
        try:
            files += make(found).write(folder)
        except cli.NothingToDrawError as reason:
            reasons.append(f"{name} is left out: {reason}")
    if not files:
        raise cli.NothingToDrawError("\n".join(reasons))
    for sentence in reasons:
        log.warning("%s", sentence)
    return files


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    everywhere = [value for env, value in chosen.threshold if not env]
    goals = everywhere[-1] if everywhere else dict(chosen.threshold)
    return cli.write_files("study", chosen.roots, chosen.out, partial(write, goals=goals, base=chosen.base))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.study", "Draws what lag does and what parallelism costs.", "study")
    parser.add_argument(
        "--threshold", type=_threshold, action="append", default=[], metavar="[ENV=]RETURN",
        help="score to be reached, everywhere or in one environment; may be repeated",
    )  # fmt: skip
    parser.add_argument("--base", metavar="WAY", help="what the price list compares with (default: PAAC without lag)")
    return parser


def _threshold(text: str) -> tuple[str, float]:
    env, _, value = text.rpartition("=")
    try:
        return env, float(value)
    except ValueError:
        problem = f"{text} must be a return, or an environment and its return: Catch-v0=0.8"
        raise argparse.ArgumentTypeError(problem) from None


if __name__ == "__main__":
    sys.exit(main())
