"""Performance profiles, and aggregate scores with intervals, over the environments that all methods share.

    python -m analysis.profiles runs/atari_paac_games

Writes profiles.png, profiles.pdf and profiles.csv. After Agarwal et al. (2021). Atari scores are human-normalised;
scores of one other environment stay as they are, and several are scaled by their lowest and highest run.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis import caption, cli, figure, published, statistics, style
from analysis.aggregate import SEEDS_FOR_BAND, Floats
from analysis.groups import Band, Member, SeedGroup, in_legend_order, table_of_bands
from analysis.outcome import FAILED, RULE, tally
from analysis.run import Run
from analysis.scores import AGGREGATES
from analysis.statistics import Estimate
from analysis.summary import counted_rows, is_plain, starts_of, summarise, tally_of, unique_seeds

N_THRESHOLDS = 101
CSV_COLUMNS = ("algo", "label", "n_environments", "curve", "x", "value", "low", "high")


@dataclass(frozen=True)
class Method:
    """One algorithm with one configuration, over all environments."""

    algo: str
    label: str
    name: str
    seeds: str  # how many, for the legend
    tasks: Sequence[Floats]  # scores of its seeds by environment, [S] each
    profile: Estimate  # share of runs above each threshold, [N_THRESHOLDS]
    aggregates: Mapping[str, Estimate]  # by name in AGGREGATES


@dataclass(frozen=True)
class Profiles:
    """What is compared, and in what unit."""

    methods: Sequence[Method]
    thresholds: Floats  # [N_THRESHOLDS]
    envs: Sequence[str]
    unit: str
    groups: Sequence[SeedGroup[Member]]  # by environment, for the caption


def make_profiles(runs: Sequence[Run]) -> Profiles | None:
    """Scores of all methods on the environments that all of them have; None if there are none.

    Final evaluations count; if a run has none, training returns of all are taken.
    """
    everyone = unique_seeds(summarise(runs)).reset_index(drop=True)
    evaluated = everyone["score"].notna()[everyone["state"] == "finished"].all() and everyone["score"].notna().any()
    everyone["used"] = everyone["score"] if evaluated else everyone["training_score"]
    summary = counted_rows(everyone, "used")
    methods = list(dict.fromkeys(zip(summary["algo"], summary["label"], strict=True)))
    of_method = {key: set(own["env"]) for key, own in summary.groupby(["algo", "label"])}
    envs = sorted(set.intersection(*of_method.values())) if of_method else []
    summary = summary[summary["env"].isin(envs)].reset_index(drop=True)
    if summary.empty:
        return None
    everyone = everyone[everyone["env"].isin(envs)]
    by_path = {str(run.path): run for run in runs}
    values, unit = _scaled(summary, evaluated, by_path)
    thresholds = np.linspace(min(0.0, values.min()), values.max(), N_THRESHOLDS)
    found = []
    for _, algo, label in in_legend_order(("", *key) for key in methods):
        own = (summary["algo"] == algo) & (summary["label"] == label)
        tasks = [values[own & (summary["env"] == env)] for env in envs]
        profile = statistics.bootstrap(partial(statistics.performance_profile, thresholds=thresholds), tasks)
        aggregates = {name: statistics.bootstrap(statistic, tasks) for name, statistic in AGGREGATES.items()}
        method = everyone[(everyone["algo"] == algo) & (everyone["label"] == label)]
        plain = is_plain(method, summary[own])
        seeds = tally(["finished"] * (n := min(map(len, tasks))), n) if plain else tally_of(method, summary[own], "run")
        found.append(Method(algo, label, method["name"].iloc[0], seeds, tasks, profile, aggregates))
    groups = [
        _group(env, algo, label, own, summary, by_path)
        for (env, algo, label), own in everyone.groupby(["env", "algo", "label"])
    ]
    return Profiles(found, thresholds, envs, unit, groups)


def _group(
    env: str, algo: str, label: str, own: pd.DataFrame, counted: pd.DataFrame, by_path: Mapping[str, Run]
) -> SeedGroup[Member]:
    here = own["path"].isin(counted["path"])
    members = [Member(by_path[path]) for path in own[here]["path"]]
    return SeedGroup(env, algo, label, members, missing=[by_path[path] for path in own[~here]["path"]])


def make_table(profiles: Profiles) -> pd.DataFrame:
    """Profiles and aggregates as numbers; x is the threshold, and empty for an aggregate."""
    parts = []
    for method in profiles.methods:
        bands = {"profile": _band(profiles.thresholds, method.profile)}
        bands |= {name: _band(np.array([np.nan]), estimate) for name, estimate in method.aggregates.items()}
        fixed = {"algo": method.algo, "label": method.label, "n_environments": len(profiles.envs)}
        parts += [band.rows(**fixed, curve=curve) for curve, band in bands.items()]
    return table_of_bands(parts, CSV_COLUMNS)


def _band(x: Floats, estimate: Estimate) -> Band:
    """Estimates at each x [G], or one of them alone."""
    return Band.of_estimate(x, *map(np.atleast_1d, (estimate.value, estimate.low, estimate.high)))


def draw(profiles: Profiles) -> Figure:
    """The figure: profiles left, aggregates right."""
    looks = style.looks([(method.algo, method.label) for method in profiles.methods])
    texts = [f"{method.name} ({method.seeds})" for method in profiles.methods]
    title = profiles.envs[0] if len(profiles.envs) == 1 else f"{len(profiles.envs)} environments"
    section = figure.Section(title, 1, texts, partial(_fill, profiles=profiles, looks=looks))
    bands = [method for method in profiles.methods if np.isfinite(method.profile.low).all()]
    how = "Left: share of runs with a score above each value, every environment counting alike. " + (
        "Right: over all runs of all environments; IQM: mean of the middle half of them."
    )
    if bands:
        how += " Bands and bars: 95% stratified bootstrap over seeds, too narrow when they are few."
    if len(bands) < len(profiles.methods):
        how += f" No interval where there are fewer than {SEEDS_FOR_BAND} seeds."
    if any(run.ending in FAILED for group in profiles.groups for run in group.all_runs):
        how += f" {RULE}"
    return figure.compose([section], caption.complete(how, profiles.groups), style.TWO_COLUMNS)


def _fill(part: SubFigure, profiles: Profiles, looks: Mapping[tuple[str, str], style.Look]) -> list[Line2D]:
    left, right = part.subplots(1, 2)
    n = len(profiles.methods)
    for i, method in enumerate(profiles.methods):
        look = looks[method.algo, method.label]
        figure.draw_band(left, profiles.thresholds, _band(profiles.thresholds, method.profile), look, staircase=True)
        for row, estimate in enumerate(method.aggregates.values()):
            y = row + 0.6 * ((i + 0.5) / n - 0.5)
            right.plot([estimate.low, estimate.high], [y, y], color=look.colour, linewidth=2.0, alpha=0.6)
            right.plot([estimate.value], [y], **figure.marker(look))
    left.set(xlabel=profiles.unit, ylabel="share of runs above", ylim=(-0.02, 1.02))
    right.set_yticks(range(len(AGGREGATES)), ["IQM" if name == "iqm" else name for name in AGGREGATES])
    right.set(ylim=(len(AGGREGATES) - 0.5, -0.5), xlabel=profiles.unit)
    return [figure.handle(looks[method.algo, method.label], with_marker=True) for method in profiles.methods]


def _scaled(summary: pd.DataFrame, evaluated: bool, by_path: Mapping[str, Run]) -> tuple[Floats, str]:
    """Scores on one scale, and its name."""
    scores = summary["used"].to_numpy(dtype=np.float64)
    starts = [starts_of(run, run.evaluations()) for run in (by_path[path] for path in summary["path"])]
    rows = summary.assign(method=summary["name"], score=scores, starts=starts)
    percent = published.normalise(rows).to_numpy(dtype=np.float64)
    if np.isfinite(percent).all():
        return percent, f"human-normalised {'score' if evaluated else 'training return'}, %"
    kind = "final evaluation return" if evaluated else "training return"
    if summary["env"].nunique() == 1:
        return scores, kind
    of_env = summary.groupby("env")["used"]
    low, span = of_env.transform("min"), of_env.transform("max") - of_env.transform("min")
    shares = (summary["used"] - low) / span.where(span > 0, 1.0)
    return shares.to_numpy(dtype=np.float64), f"{kind}, from 0 (lowest run) to 1 (highest)"


# --- the command line -------------------------------------------------------------------------------------------------


def figure_and_table(runs: list[Run]) -> tuple[Figure, pd.DataFrame]:
    """The figure and its numbers.

    Raises:
        NothingToDrawError: no environment was scored for all methods.
    """
    profiles = make_profiles(runs)
    if profiles is None:
        raise cli.NothingToDrawError(f"Among the {len(runs)} runs found no environment has scores of every method.")
    return draw(profiles), make_table(profiles)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    about = "Draws performance profiles and aggregate scores."
    return cli.draw_without_options("profiles", about, figure_and_table, arguments)


if __name__ == "__main__":
    sys.exit(main())
