"""The price list: what each way of being parallel gains in throughput, pays in frames, and gains all in all."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.aggregate import Floats
from analysis.cli import NothingToDrawError
from analysis.groups import by_env
from analysis.outcome import TRAINING_GAMES
from analysis.statistics import Estimate
from analysis.studied import UNKNOWN, Cell, Goal, Study, arrivals, counted, is_reproducible, mean_of, n_reached
from analysis.writing import INTERVAL, NO_INTERVAL, Table, number

_FACTORS = ("throughput", "frames_needed", "net_speed_up")


def price_list(found: Study, base: str | None = None) -> Table:
    """A row per way of being parallel and environment, as factors of a base in the same environment.

    Throughput gained: frames per second over the base's, means over seeds. Frames needed: median of the frames to the
    score over the base's. Net speed-up: the base's median seconds to the score over its own, which is infinite if only
    the base never gets there, and 0 if only the other does not. Medians are those of `statistics.median_crossing`.

    Args:
        found: the runs.
        base: which way is 1, by its name; PAAC without lag if None.

    Raises:
        NothingToDrawError: no environment has the base and another way beside it.
    """
    lines = []
    for env, ways in by_env(found.ways).items():
        reference = _base(ways, base)
        if reference is not None and len(ways) > 1:
            lines += [(env, way, way is reference, _factors(way, reference)) for way in ways]
    if not lines:
        wanted = base or "PAAC without a forced lag"
        known = ", ".join(dict.fromkeys(way.name for way in found.ways))
        raise NothingToDrawError(
            f"No environment has runs of {wanted} and of another way of being parallel beside it; there are: {known}."
        )
    numbers = pd.DataFrame([_numbers(*line, found.goals[line[0]]) for line in lines])
    text = pd.DataFrame([_cells(*line) for line in lines])
    return Table("price_list", "What each way of being parallel costs", numbers, text, _notes(lines, found, numbers))


def _base(ways: Sequence[Cell], name: str | None) -> Cell | None:
    """The way that was asked for; else the PAAC of most seeds whose lag is 0, the first of equals."""
    if name is not None:
        return next((way for way in ways if way.name == name), None)
    paac = [way for way in ways if way.algo == "paac" and way.traces[0].place is not None]
    return max(paac, key=lambda way: len(way.traces), default=None)


def _factors(way: Cell, base: Cell) -> dict[str, Estimate]:
    if way is base:
        return dict.fromkeys(_FACTORS, Estimate(np.asarray(1.0), *[np.asarray(np.nan)] * 2))
    return {
        "throughput": _ratio_of_means(counted(way, "frames_per_second"), counted(base, "frames_per_second")),
        "frames_needed": _ratio_of_medians(way, base, "frames"),
        "net_speed_up": _ratio_of_medians(base, way, "wall_seconds"),
    }


def _ratio_of_means(ours: Floats, theirs: Floats) -> Estimate:
    if not len(ours) or not len(theirs):
        return UNKNOWN
    return statistics.bootstrap(lambda a, b: statistics.mean(a) / statistics.mean(b), [ours], [theirs])


def _ratio_of_medians(above: Cell, below: Cell, column: str) -> Estimate:
    """Of when each reached the score; NaN where neither did, without an interval if that happens to resamples."""
    both = arrivals(above, column), arrivals(below, column)
    if not all(both):
        return UNKNOWN
    (x, reached), (other_x, other_reached) = (statistics.as_arrays(one) for one in both)

    def ratio(drawn: statistics.Places, other: statistics.Places) -> Floats:
        upper = statistics.median_crossings(x[drawn], reached[drawn])
        lower = statistics.median_crossings(other_x[other], other_reached[other])
        with np.errstate(invalid="ignore"):
            return np.divide(upper, lower)  # inf / inf is NaN

    return statistics.bootstrap_seeds(ratio, len(x), len(other_x))


# --- rows and notes ---------------------------------------------------------------------------------------------------


def _numbers(env: str, way: Cell, is_base: bool, factors: dict[str, Estimate], goal: Goal) -> dict[str, object]:
    reached, of = n_reached(way)
    known = factors | {"lag_updates": mean_of(way, "lag_updates"), "score": mean_of(way, "score")}
    row: dict[str, object] = {"env": env, "way": way.name, "algo": way.algo, "label": way.label, "base": is_base}
    row |= {"n_seeds": len(way.all_runs), "threshold": goal.value, "n_reached": reached, "n_on_the_way": of}
    for name, estimate in known.items():
        row |= {f"{name}{end}": float(getattr(estimate, part)) for end, part in
                (("", "value"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
    return row | {"reproducible": _reproducible(way)}


def _reproducible(way: Cell) -> bool:
    return all(is_reproducible(run) for run in way.runs)


def _cells(env: str, way: Cell, is_base: bool, factors: dict[str, Estimate]) -> dict[str, str]:
    reached, of = n_reached(way)
    score = mean_of(way, "score")
    return {
        "environment": env,
        "method": way.name + (" (base)" if is_base else ""),
        "throughput gained (x)": factor(factors["throughput"]),
        "frames needed (x)": factor(factors["frames_needed"]),
        "net speed-up (x)": factor(factors["net_speed_up"], endless="base never"),
        "reached": f"{reached} of {of}",
        "lag in updates": factor(mean_of(way, "lag_updates")),
        "final score": factor(score, _fitting(score)),
        "reproducible": "yes" if _reproducible(way) else "no",
    }


def factor(estimate: Estimate, digits: int = 2, endless: str = "never") -> str:
    """A value, and its interval where that is more than the value; what has no end is called `endless`."""
    parts = (float(getattr(estimate, part)) for part in ("value", "low", "high"))
    value, low, high = (endless if np.isposinf(part) else number(part, digits) for part in parts)
    return value if np.isnan(estimate.low) or low == value == high else f"{value} [{low}, {high}]"


def _fitting(estimate: Estimate) -> int:
    """Digits for a score, which may be of any size."""
    return 1 if abs(estimate.value) >= 10.0 else 2


def _notes(lines: Sequence[tuple[str, Cell, bool, object]], found: Study, numbers: pd.DataFrame) -> list[str]:
    envs = list(dict.fromkeys(line[0] for line in lines))
    goals = "; ".join(f"{found.goals[env].value:,.4g} in {env} ({found.goals[env].reason})" for env in envs)
    others = numbers[~numbers["base"].astype(bool)]
    columns = others[[f"{name}_low" for name in _FACTORS]].notna()
    return [
        "Factors of the base in the same environment. Throughput: frames per second of the whole run, means over "
        "seeds. Frames needed and net speed-up: by the median over seeds of the frames and of the seconds to the score "
        "after Kaplan and Meier, runs that ended below it censored where they ended; a net speed-up of 0 and frames "
        "that say never: fewer than half of the seeds got there; frames of 0 and a net speed-up that says base never: "
        "fewer than half of the base's.",
        f"Score: the mean return of the last {TRAINING_GAMES} training games is first at least {goals}.",
        *([INTERVAL] if columns.any(axis=None) else []),
        *([] if columns.all(axis=None) else [f"{NO_INTERVAL[:-1]}, or resamples in which nobody gets there."]),
        "Reproducible: the same seed gives the same numbers on one machine, bit by bit.",
        "Speeds hold for the load that the machine had while it ran.",
    ]
