"""Lag by Little's law beside the lag that was measured.

Samples on their way = samples learnt from per second x their mean age in seconds, when they are learnt from. So many of
them come before the one that is chosen now, and each update takes its share: samples on their way / samples per update
is the lag in updates that speed alone predicts.
"""

from functools import partial

import pandas as pd

from analysis.summary import counted_rows, tally_of
from analysis.writing import Table, number

_QUANTITIES = ["samples_per_second", "lag_seconds", "samples_on_their_way", "samples_per_update"]
_NOTES = [
    "On their way: samples learnt from per second x mean age in seconds (Little's law). Predicted: on their way / "
    "samples per update. Measured: mean of lag_updates.",
    "Measured counts whole updates between choice and use, predicted also the part of an update's time that a sample "
    "is old: without lag it is between 0 and 1. Far above the prediction are policies that were old already when they "
    "chose (algo.lag.updates, copies of theta).",
]


def little_table(summary: pd.DataFrame) -> Table | None:
    """Means over the runs of a method in an environment; None if no run has measured its lag."""
    keys, lags = ["env", "algo", "label", "name"], ["lag_updates_predicted", "lag_updates"]
    known = summary.dropna(subset=lags)
    if known.empty:
        return None
    counted = counted_rows(known, "lag_updates_predicted")
    groups = known.groupby(keys, sort=False)
    words = groups.apply(lambda own: tally_of(own, counted.loc[counted.index.intersection(own.index)], "run"))
    means = counted.groupby(keys, sort=False)[[*_QUANTITIES, *lags]].mean().reindex(groups.size().index)
    numbers = means.assign(runs=words).reset_index()
    text = pd.DataFrame(
        {
            "environment": numbers["env"],
            "method": numbers["name"],
            "runs": numbers["runs"].str.replace(r" runs?\b", "", regex=True),
            "samples/s": numbers["samples_per_second"].map(number),
            "mean age, s": numbers["lag_seconds"].map(partial(number, digits=4)),
            "on their way": numbers["samples_on_their_way"].map(number),
            "samples per update": numbers["samples_per_update"].map(number),
            "predicted lag": numbers["lag_updates_predicted"].map(partial(number, digits=2)),
            "measured lag": numbers["lag_updates"].map(partial(number, digits=2)),
        }
    )
    return Table("little", "Lag in updates by Little's law and as measured", numbers, text, _NOTES)
