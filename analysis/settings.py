"""Settings of runs: the one reader of a configuration, and the labels that tell runs apart by it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.run import Run

# Keys that tell no curves apart: the seed is averaged over, and the others change no result.
_NEVER_IN_LABEL = (
    *("seed", "name", "root", "progress", "logger", "calibrate", "checkpoint_interval_seconds"),
    *("worker_silence_seconds", "rank_silence_seconds", "metrics_interval_frames", "retry_diverged", "tuned_for"),
)
_ALWAYS = {"ranks": 1}  # of runs whose version had no such key
_ALWAYS_BESIDE = {"algo.lag.updates": {"algo.lag.of": "samples"}}  # likewise, of those that have the first key
_SAY_LITTLE = ("kind", "enabled", "mode", "frames")  # without the word before them
_LONGEST_LABEL = 100  # letters, beyond which a sweep's name is the better one


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with dotted keys: `algo.optimizer.lr`."""
    pairs: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[f"{prefix}{key}"] = value
    return pairs


def setting(run: Run, name: str) -> Any:
    """The setting whose dotted key is `name` or ends in it: `algo.n_agents`, `n_agents`. None if there is none.

    Where several keys end in it, the first that holds a number counts, else the first.
    """
    found = [value for key, value in flat(run.config).items() if f".{key}".endswith(f".{name}")]
    return next((value for value in found if not np.isnan(as_number(value))), found[0] if found else None)


def as_number(value: Any) -> float:
    """An int or a float as a float; NaN for whatever else, a bool included."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def printed(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys, and values as one would type them."""
    settings = _ALWAYS | flat(config)
    for key, always in _ALWAYS_BESIDE.items():
        settings = (always if key in settings else {}) | settings
    return {key: "null" if value is None else str(value) for key, value in settings.items()}


def changes_nothing(key: str) -> bool:
    """Whether a setting has no influence on what a run computes, or is the seed."""
    return key.split(".")[0] in _NEVER_IN_LABEL


# --- labels ---------------------------------------------------------------------------------------------------------


def labelled(runs: Sequence[Run], explained: Callable[[Run], Any] | None = None) -> list[Run]:
    """The same runs; those of one algorithm and environment are told apart by the settings in which they differ.

    Args:
        runs: to label.
        explained: what tells runs apart already, for instance their place on an axis: settings that it decides, as one
            value of it goes with one of theirs, are no part of the label.
    """
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.env, run.algo].append(run)
    labels: dict[Path, str] = {}
    for group in groups.values():
        labels |= _labels(group, explained)
    return [replace(run, label=labels[run.path]) for run in runs]


def _labels(group: Sequence[Run], explained: Callable[[Run], Any] | None) -> dict[Path, str]:
    settings = [printed(run.config) for run in group]
    keys = [key for key in dict.fromkeys(key for one in settings for key in one) if not changes_nothing(key)]
    differing = [key for key in keys if len({one.get(key, "unset") for one in settings}) > 1]
    if explained is not None:
        places = [explained(run) for run in group]
        differing = [key for key in differing if not _decided([one.get(key, "unset") for one in settings], places)]
        if not differing:
            return {run.path: "" for run in group}
    points = [
        (run.seed, *(one.get(key, "unset") for key in differing)) for run, one in zip(group, settings, strict=True)
    ]
    names = {one.get("name", "unset") for one in settings}
    if explained is None and len(set(points)) < len(points) and len(names) > 1:
        differing.append("name")  # the same point under two names, for instance before and after a change
    short = _short_names(differing)
    labels = {
        run.path: ", ".join(f"{short[key]}={one.get(key, 'unset')}" for key in differing)
        for run, one in zip(group, settings, strict=True)
    }
    named = {run.path: f"name={one.get('name', 'unset')}" for run, one in zip(group, settings, strict=True)}
    pairs = {(labels[path], named[path]) for path in labels}
    too_long = max(map(len, labels.values())) > _LONGEST_LABEL
    if too_long and len(pairs) == len({label for label, _ in pairs}) == len({name for _, name in pairs}):
        return named  # each name is one configuration, and that says it shorter
    return labels


def _decided(values: Sequence[str], places: Sequence[Any]) -> bool:
    """Whether all runs at one place have one value."""
    return len(set(zip(places, values, strict=True))) == len(set(places))


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last part, or as many of its last parts as no other key ends in."""
    return {key: _shortest_ending(key, [f".{other}" for other in keys if other != key]) for key in keys}


def _shortest_ending(key: str, others: Sequence[str]) -> str:
    parts = key.split(".")
    shortest = 2 if parts[-1] in _SAY_LITTLE else 1
    endings = (".".join(parts[start:]) for start in reversed(range(len(parts) - shortest + 1)))
    return next((end for end in endings if not any(other.endswith(f".{end}") for other in others)), key)
