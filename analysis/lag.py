"""Policy lag: against frames, and its distribution over samples; one row of panels per environment and unit.

    python -m analysis.lag runs/demo
    python -m analysis.lag runs/before runs/after --unit lag_updates lag_seconds --out figures

Writes lag.png, lag.pdf and lag.csv (the same curves as numbers). docs/metrics.md defines the units.
"""

import argparse
import logging
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis import caption, cli, figure, style
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.groups import Band, SeedGroup, band_at, by_env, collect, make_band, table_of_bands
from analysis.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """How a unit of lag is drawn and explained."""

    label: str
    meaning: str
    linear_below: float = 1.0  # an axis that spans decades is linear from 0 to here, so that 0 has a place
    whole: bool = True  # a count, so its distribution is a staircase


UNITS = {
    "lag_updates": Unit(
        "lag in updates",
        "lag_updates: how many updates the parameters got between choosing an action and the update that learns from "
        "it; 0 if that update starts from the very policy that acted. Algorithms differ in samples per update.",
    ),
    "lag_rollout_updates": Unit(
        "lag until the rollout was complete, in updates",
        "lag_rollout_updates: the part of lag_updates from the version that chose the action until its rollout was "
        "complete.",
    ),
    "lag_queue_updates": Unit(
        "lag until a learner took it, in updates",
        "lag_queue_updates: the part from then until a learner took the rollout, or drew the sample from the replay.",
    ),
    "lag_gradient_updates": Unit(
        "lag until it was applied, in updates",
        "lag_gradient_updates: the part from then until the update that learns from it.",
    ),
    "lag_frames": Unit(
        "lag in frames",
        "lag_frames: frames simulated by the whole run between choosing an action and the update that learns from it.",
    ),
    "lag_seconds": Unit(
        "lag in seconds",
        "lag_seconds: training time between choosing an action and the update that learns from it.",
        linear_below=1e-2,
        whole=False,
    ),
    "lag_kl_nats": Unit(
        "KL in nats",
        "lag_kl_nats: KL(mu, pi) at a sample's state; mu chose the action, pi is about to be updated.",
        linear_below=1e-5,
        whole=False,
    ),
    "importance_ratio": Unit(
        "importance ratio",
        "importance_ratio: pi(a) / mu(a) of the action taken; mu chose it, pi is about to be updated. 1 without lag.",
        whole=False,
    ),
    "value_lag": Unit(
        "change of the value",
        "value_lag: how far V of a sample's state has moved since the action was chosen, in discounted reward as it is "
        "learnt from, whatever the sign.",
        linear_below=1e-3,
        whole=False,
    ),
    "gradient_staleness_updates": Unit(
        "gradient staleness in updates",
        "gradient_staleness_updates: how many updates the parameters got between computing a gradient and applying it; "
        "a sample is a gradient here.",
    ),
    "replay_age_frames": Unit(
        "replay age in frames",
        "replay_age_frames: frames simulated since a sample was put into the replay.",
    ),
}
PARTS = ("lag_rollout_updates", "lag_queue_updates", "lag_gradient_updates")  # of lag_updates
CSV_COLUMNS = ("env", "algo", "label", "n_seeds", "unit", "curve", "x_axis", "x", "value", "low", "high")
_DECADES_OF_SHARES = (3, 5)  # shown at least and at most, below 100%
_FAINT = 0.45  # opacity


@dataclass(frozen=True)
class Lag:
    """The lag of one run in one unit."""

    frames: Floats  # where each interval with samples ended, [N]
    mean: Floats  # over the samples of the interval, [N]
    p95: Floats  # likewise
    edges: Floats  # where the distribution is known, increasing, [E]; empty if the histogram was not written yet
    shares: Floats  # of the whole run's samples that have at least that lag, [E]

    @property
    def has_distribution(self) -> bool:
        """Whether there is a histogram."""
        return len(self.edges) > 0


@dataclass(frozen=True)
class LagTrace:
    """Lag of one run."""

    run: Run
    lags: Mapping[str, Lag]  # by unit, of those that were measured


@dataclass(frozen=True)
class LagGroup(SeedGroup[LagTrace]):
    """The seeds of one algorithm with one configuration in one environment."""

    bands: Mapping[str, Mapping[str, Band]]  # by unit, of those to draw that were measured; then as `make_bands` says

    def lags(self, unit: str, traces: Sequence[LagTrace] | None = None) -> list[Lag]:
        """One per seed that measured it; of some seeds only if they are given."""
        return [trace.lags[unit] for trace in (self.traces if traces is None else traces) if unit in trace.lags]


# --- from runs to curves ----------------------------------------------------------------------------------------------


def make_trace(run: Run) -> LagTrace | None:
    """The lag of one run in every unit that has samples; None if there are none."""
    table, histogram = run.lag(), run.lag_histogram()
    lags = {}
    for unit in UNITS:
        columns = ["frames", f"{unit}_mean", f"{unit}_p95", f"{unit}_max"]
        if not set(columns) <= set(table):
            continue
        frames, mean, p95, largest = table[columns].dropna().to_numpy(dtype=np.float64).T
        if len(frames):
            lags[unit] = Lag(frames, mean, p95, *distribution(histogram[histogram["unit"] == unit], largest.max()))
    return LagTrace(run, lags) if lags else None


def distribution(bins: pd.DataFrame, largest: float) -> tuple[Floats, Floats]:
    """The share of samples with at least a certain lag: the complementary cumulative distribution.

    Args:
        bins: of one unit, as in lag_histogram.csv.
        largest: lag of all samples; it ends the curve within the last bin, which may be wide.

    Returns:
        the edges of the bins from 0 on, and the shares there, which are exact; both empty without samples.
    """
    lower, upper, samples = bins[bins["samples"] > 0][["lower", "upper", "samples"]].to_numpy(dtype=np.float64).T
    if not len(samples):
        return np.zeros(0), np.zeros(0)
    edges = np.unique(np.concatenate([[0.0], lower, upper]))
    edges = edges[np.isfinite(edges)]
    shares = (lower >= edges[:, None]) @ samples / samples.sum()
    if lower.max() < largest < upper.max():
        position = np.searchsorted(edges, largest)
        edges, shares = np.insert(edges, position, largest), np.insert(shares, position, 1.0 / samples.sum())
    return edges, shares


def make_groups(runs: Iterable[Run], units: Sequence[str]) -> list[LagGroup]:
    """Groups runs that differ in their seed alone; runs without any lag and repeated seeds are left out.

    Whatever else is not drawn, for want of a unit or a histogram, is named.
    """
    groups = [_with_bands(group, units) for group in collect(runs, make_trace, _lacking)]
    _name_what_is_missing(groups, units)
    return groups


def _lacking(run: Run) -> str:
    measured = (run.config.get("lag") or {}).get("enabled", True)
    why = "has no measured lag yet" if measured else "did not measure its lag (lag.enabled=false)"
    return f"{why}: it is not in the figure."


def make_bands(lags: Sequence[Lag], to_the_end: bool = False) -> dict[str, Band]:
    """The curves of some seeds: `mean` and `p95` against frames, and the `share` of samples with at least a lag."""
    bands = {
        "mean": make_band([(lag.frames, lag.mean) for lag in lags], to_the_end),
        "p95": make_band([(lag.frames, lag.p95) for lag in lags], to_the_end),
    }
    known = [lag for lag in lags if lag.has_distribution]
    if known:
        edges = np.unique(np.concatenate([lag.edges for lag in known]))
        shares = [np.interp(edges, lag.edges, lag.shares, right=0.0) for lag in known]
        bands["share"] = band_at(edges, np.stack(shares))
    return bands


def missing_units(groups: Sequence[LagGroup], units: Sequence[str]) -> list[str]:
    """A sentence for each unit that some algorithms do not have."""
    sentences = []
    for unit in units:
        without: dict[str, dict[str, None]] = defaultdict(dict)  # algorithms by environment, each once
        for group in groups:
            if (group.env, group.algo) not in _algorithms_with(unit, groups):
                without[group.env][style.display_name(group.algo)] = None
        if without:
            places = "; ".join(f"{', '.join(names)} in {env}" for env, names in without.items())
            sentences.append(f"Not drawn, as there is no {unit}: {places}.")
    return sentences


def make_table(groups: Iterable[LagGroup]) -> pd.DataFrame:
    """The curves as numbers, one row per point; x is in frames for mean and p95, and in the unit itself for share."""
    parts = [
        band.rows(**group.keys, unit=unit, curve=curve, x_axis=unit if curve == "share" else "frames")
        for group in groups
        for unit, bands in group.bands.items()
        for curve, band in bands.items()
    ]
    return table_of_bands(parts, CSV_COLUMNS)


def _with_bands(group: SeedGroup[LagTrace], units: Sequence[str]) -> LagGroup:
    bands = {}
    for unit in units:
        measured = [trace for trace in group.counted if unit in trace.lags]
        if measured:
            bands[unit] = make_bands([trace.lags[unit] for trace in measured], group.is_uneven)
    return LagGroup.of(group, bands=bands)


def _name_what_is_missing(groups: Sequence[LagGroup], units: Sequence[str]) -> None:
    for sentence in missing_units(groups, units):
        log.warning("%s", sentence)
    for unit in units:
        for group in (group for group in groups if (group.env, group.algo) in _algorithms_with(unit, groups)):
            if unit in group.bands and not len(group.bands[unit]["mean"].x):
                log.warning("%s in %s has no mean of %s: seeds have no frames in common.", group.name, group.env, unit)
            for trace in group.traces:
                if unit not in trace.lags:
                    log.warning("%s has no %s, unlike other runs of its algorithm.", trace.run.path, unit)
                elif not trace.lags[unit].has_distribution:
                    log.warning("%s has no histogram of %s yet: it is not in the distribution.", trace.run.path, unit)


def _algorithms_with(unit: str, groups: Sequence[LagGroup]) -> set[tuple[str, str]]:
    return {(group.env, group.algo) for group in groups if unit in group.bands}


# --- from curves to a figure ------------------------------------------------------------------------------------------


def draw(groups: Sequence[LagGroup], units: Sequence[str]) -> Figure:
    """The figure: per environment a row of two panels per unit and a legend, and one caption under all.

    Args:
        groups: one of them with a unit at least.
        units: keys of UNITS, a row each where it was measured.
    """
    drawn = [group for group in groups if group.bands]
    looks = figure.looks_of(drawn)
    sections = []
    for env, here in by_env(drawn).items():
        rows = [unit for unit in units if any(unit in group.bands for group in here)]
        fill = partial(_fill, groups=here, units=rows, looks=looks)
        sections.append(figure.Section(env, len(rows), [group.legend() for group in here], fill))
    return figure.compose(sections, make_caption(groups, units), style.TWO_COLUMNS)


def _fill(
    part: SubFigure, groups: Sequence[LagGroup], units: Sequence[str], looks: Mapping[tuple[str, str], style.Look]
) -> list[Line2D]:
    panels = part.subplots(len(units), 2, squeeze=False)
    for (left, right), unit in zip(panels, units, strict=True):
        row = [group for group in groups if unit in group.bands]
        lags = [lag for group in row for lag in group.lags(unit)]
        frames, scale = figure.axis_unit("frames", max(lag.frames[-1] for lag in lags))
        for group in row:
            for bands, thin in _curves(group, unit):
                look = looks[group.method]
                _draw_course(left, bands, scale, look, thin)
                _draw_distribution(right, bands, look, thin, UNITS[unit].whole)
        left.set(xlabel=frames, xlim=(0.0, None))
        _set_lag_axis(left, "y", UNITS[unit], max(max(lag.p95.max(), lag.mean.max()) for lag in lags))
        _finish_distribution(right, UNITS[unit], lags)
    panels[0, 0].set_title("mean (strong) and 95th percentile (faint)", fontsize=7.5)
    panels[0, 1].set_title("share of samples with at least this much", fontsize=7.5)
    return [figure.handle(looks[group.method], thin=not group.has_band, with_marker=True) for group in groups]


def _curves(group: LagGroup, unit: str) -> Iterator[tuple[Mapping[str, Band], bool]]:
    """What is drawn, and whether it is a single run: the mean over seeds, or each seed alone where they are few."""
    alone = group.lags(unit)
    if len(group.lags(unit, group.counted)) >= SEEDS_FOR_BAND:
        yield group.bands[unit], False
        alone = group.lags(unit, group.others)
    for lag in alone:
        yield make_bands([lag]), True


def _draw_course(panel: Axes, bands: Mapping[str, Band], scale: float, look: style.Look, thin: bool) -> None:
    width = figure.THIN if thin else 1.0
    figure.draw_band(panel, bands["p95"].x / scale, bands["p95"], look, _FAINT, thin, linewidth=width)
    figure.draw_band(panel, bands["mean"].x / scale, bands["mean"], look, thin=thin)
    end = bands["mean"].x[-1:] / scale, bands["mean"].mean[-1:]
    panel.plot(*end, **figure.marker(look), clip_on=False, zorder=5)


def _draw_distribution(panel: Axes, bands: Mapping[str, Band], look: style.Look, thin: bool, whole: bool) -> None:
    if "share" not in bands:
        return
    band = bands["share"]
    figure.draw_band(panel, band.x, band, look, thin=thin, staircase=whole)
    median = np.flatnonzero(band.mean >= 0.5)[-1]
    panel.plot(band.x[median], band.mean[median], **figure.marker(look), clip_on=False, zorder=5)


def _finish_distribution(panel: Axes, unit: Unit, lags: Sequence[Lag]) -> None:
    known = [lag for lag in lags if lag.has_distribution]
    smallest = min((lag.shares[lag.shares > 0.0].min() for lag in known), default=1.0)
    n_decades = int(np.clip(np.ceil(-np.log10(smallest)), *_DECADES_OF_SHARES))
    panel.set(yscale="log", ylim=(10.0**-n_decades, 1.5), ylabel="share of samples")
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    visible = [lag.edges[lag.shares >= 10.0**-n_decades].max() for lag in known]
    _set_lag_axis(panel, "x", unit, max(visible, default=0.0))
    if not known:
        panel.text(0.5, 0.5, "no histogram yet", transform=panel.transAxes, ha="center", va="center", color="0.4")


def _set_lag_axis(panel: Axes, which: Literal["x", "y"], unit: Unit, largest: float) -> None:
    note = figure.scale_with_zero(panel, which, largest, unit.linear_below)
    if which == "x":
        panel.set_xlabel(", ".join(filter(None, [unit.label, note])))
    else:
        panel.set_ylabel("\n".join([*textwrap.wrap(unit.label, 20), note]).strip())


# --- the caption and the command line ---------------------------------------------------------------------------------


def make_caption(groups: Sequence[LagGroup], units: Sequence[str]) -> str:
    """How the figure was made: what is drawn, the units, then a line per environment, then the machines."""
    drawn = [group for group in groups if group.bands]
    how = [
        "Left: mean and 95th percentile over the samples of each interval of training, at its end.",
        "Right: over all samples of a run, exact at the edges of its histogram's bins.",
        "Markers: the end of training, and the median.",
        *caption.averaging(drawn),
    ]
    meanings = [UNITS[unit].meaning for unit in units if any(unit in group.bands for group in drawn)]
    return caption.complete("\n".join([" ".join(how), *meanings, *missing_units(groups, units)]), drawn)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    chosen = _parser().parse_args(arguments)
    make = partial(figure_and_table, units=list(dict.fromkeys(chosen.unit)))
    return cli.write_figure("lag", chosen.roots, chosen.out, make)


def figure_and_table(runs: list[Run], units: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    groups = make_groups(runs, units)
    if not any(group.bands for group in groups):
        raise cli.NothingToDrawError(f"None of the {len(runs)} runs found has measured {' or '.join(units)}.")
    return draw(groups, units), make_table(groups)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("python -m analysis.lag", "Draws policy lag against frames, and its distribution.")
    parser.add_argument(
        "--unit",
        nargs="+",
        choices=UNITS,
        default=["lag_updates"],
        metavar="UNIT",
        help=f"a row of panels each, of {', '.join(UNITS)} (default lag_updates)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
