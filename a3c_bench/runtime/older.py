"""What older versions said otherwise: the words of their command lines, and config.yaml of their runs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from a3c_bench.schema import Config

# Keys that are gone, and what to say instead.
INSTEAD = {
    "algo.correction": "advantage=vtrace, for every actor-critic, and nothing for none",
    "algo.rho_bar": "advantage.rho_bar with advantage=vtrace",
    "algo.c_bar": "advantage.c_bar with advantage=vtrace",
    "algo.dueling": "network.dueling, or network=mlp_dueling or network=nature_dueling",
}
# Keys of algorithms that came later, with the values under which a run goes on as before there were any.
LATER: dict[str, Any] = {
    "log_epsilon": 0.0,
    "lag": {"updates": 0, "distribution": "fixed", "of": "samples"},
    "overlap": False,
    "stale_bootstrap": False,
    "take_turns": None,
    "alternate": False,
    "lag_control": "discard",
    "adjust": {"max_mean_lag_updates": None},
    "shard_ranks": 1,
    "stale": {"aware": False, "delay_compensation": 0.0},
}
LATER_IN: dict[str, dict[str, Any]] = {"ga3c": {"stale_bootstrap": True}}  # where an algorithm was otherwise
_VTRACE, _DUELING = ("ga3c",), ("dqn", "gorila")  # algorithms that had these keys; another package's are its own
_PARTS_OF_PATHS = {
    "advantage=vtrace": "algo.correction=vtrace",
    "advantage.rho_bar=": "algo.rho_bar=",
    "advantage.c_bar=": "algo.c_bar=",
    "network.dueling=": "algo.dueling=",
}


def part_of_path(name: str) -> str:
    """An override as the path of a run had it before its key was renamed."""
    for now, before in _PARTS_OF_PATHS.items():
        if name == now or (now.endswith("=") and name.startswith(now)):
            return before + name.removeprefix(now)
    return name


def upgraded(there: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What config.yaml of a run says, in the words of this version.

    Args:
        there: as the file has it.
        asked: the configuration of this version that goes on with the run; keys of it that the file does not have yet
            are filled in where they have their default, with which the run went on as before there was such a key.
    """
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in there.items()}
    algo, advantage, network = (config.get(key) for key in ("algo", "advantage", "network"))
    if isinstance(algo, dict) and isinstance(advantage, dict) and algo.get("name") in _VTRACE:
        correction = algo.pop("correction", None)
        bounds = {key: algo.pop(key) for key in ("rho_bar", "c_bar") if key in algo}
        if correction == "vtrace":
            advantage.update(bounds, kind="vtrace")
    if isinstance(algo, dict) and isinstance(network, dict) and algo.get("name") in _DUELING:
        dueling = algo.pop("dueling", None)
        network.update({} if dueling is None else {"dueling": dueling})
    if asked is None:
        return config
    later = LATER | LATER_IN.get(algo.get("name", ""), {}) if isinstance(algo, dict) else LATER
    return _with_new_keys(config, asked, asdict(Config(algo=later)))


def _with_new_keys(there: dict[str, Any], asked: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(there)
    for key in asked.keys() & defaults.keys():
        old, new, default = there.get(key), asked[key], defaults[key]
        if isinstance(old, dict) and isinstance(new, Mapping) and isinstance(default, Mapping):
            filled[key] = _with_new_keys(old, new, default)
        elif key not in there and new == default:
            filled[key] = new
    return filled
