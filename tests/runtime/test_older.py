"""Runs and words of older versions: what was renamed since is read, found and refused with the new words."""

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from a3c_bench.algos import algorithm_names, find_settings
from a3c_bench.config import compose, load_config, run_directory
from a3c_bench.errors import ConfigError, RunDirectoryError
from a3c_bench.runtime.directory import RunDirectory, plain, read_yaml
from a3c_bench.runtime.older import LATER, LATER_IN
from a3c_bench.schema import Config


@functools.cache
def composed(*words: str) -> Config:
    """Composed once, as nobody can change it."""
    return compose(words)


def as_it_was(config: Config, **algo: Any) -> dict[str, Any]:
    """config.yaml of a version without bounds of V-trace in the advantage, and with these keys in the algorithm."""
    content: dict[str, Any] = plain(asdict(config))
    del content["advantage"]["rho_bar"], content["advantage"]["c_bar"]
    content["algo"] |= algo
    return content


def older_run(place: Path, content: dict[str, Any]) -> Path:
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(content))
    return place


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("paac", "algo.lag.updates=1"),
        ("paac", "algo.lag.of=gradients"),
        ("paac", "algo.overlap=true"),
        ("dqn", "algo.overlap=true"),
        ("a3c", "env.step_time.distribution=exponential"),
        ("a3c", "algo.stale.aware=true"),
        ("a3c", "advantage.q_baseline=false"),
        ("ga3c", "algo.lag_control=pace"),
        ("ga3c", "algo.stale_bootstrap=false"),
        ("ga3c", "algo.adjust.max_mean_lag_updates=2"),
        ("gorila", "algo.stale.aware=true"),
    ],
)
def test_a_run_without_the_keys_that_came_later_goes_on_with_their_defaults_alone(
    algo: str, more: str, tmp_path: Path
) -> None:
    content: dict[str, Any] = plain(asdict(composed(f"algo={algo}")))
    content["algo"] = without(content["algo"], later_than_all_of(algo))
    del content["env"]["step_time"], content["advantage"]["q_baseline"]
    place = older_run(tmp_path / "run", content)
    with pytest.raises(RunDirectoryError, match="holds a run with another configuration"):
        RunDirectory(place, asdict(compose([f"algo={algo}", more])))
    RunDirectory(place, asdict(composed(f"algo={algo}"))).close()


def test_what_came_later_has_its_default() -> None:
    """GA3C has had its epsilon from the start."""
    found = set()
    for name in algorithm_names():
        defaults = asdict(find_settings(name).config_class())
        later = later_than_all_of(name)
        found |= defaults.keys() & later.keys()
        for key in defaults.keys() & later.keys():
            default = defaults[key]
            assert (default | later[key] if isinstance(default, dict) else later[key]) == default
    assert found == LATER.keys()


def later_than_all_of(algo: str) -> dict[str, Any]:
    """What came later than the algorithm itself."""
    later = LATER | LATER_IN.get(algo, {})
    return {key: value for key, value in later.items() if (algo, key) != ("ga3c", "log_epsilon")}


def without(there: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """What an older run had: sections of which all came later were not there."""
    kept = {}
    for key, value in there.items():
        new = later.get(key)
        if isinstance(value, dict) and isinstance(new, dict) and value.keys() > new.keys():
            kept[key] = without(value, new)
        elif key not in later:
            kept[key] = value
    return kept


CORRECTED = ["algo=ga3c", "advantage=vtrace", "advantage.rho_bar=0.5"]
DUELING = ["algo=dqn", "network.dueling=true"]


@pytest.mark.parametrize(
    ("words", "before", "kind", "place"),
    [
        (
            CORRECTED,
            {"correction": "vtrace", "rho_bar": 0.5, "c_bar": 1.0},
            "nstep",
            "correction=vtrace,algo.rho_bar=0.5",
        ),
        (["algo=ga3c"], {"correction": "none", "rho_bar": 0.5, "c_bar": 1.0}, "nstep", None),
        (["algo=paac", "advantage=gae"], {}, "gae", None),
        (DUELING, {"dueling": True}, "nstep", "dueling=True"),
        (["algo=gorila", "network=mlp_dueling"], {"dueling": None}, "nstep", None),
    ],
    ids=["vtrace", "none", "gae", "dueling", "as the network says"],
)
def test_a_run_of_before_goes_on_where_it_was(
    words: list[str], before: dict[str, Any], kind: str, place: str | None, tmp_path: Path
) -> None:
    config = compose([*words, f"root={tmp_path}"])
    content = as_it_was(config, **before)
    content["advantage"]["kind"] = kind
    if "dueling" in before:
        content["network"]["dueling"] = "network=mlp_dueling" in words
    new = run_directory(config, words)
    old = new if place is None else new.parents[1] / f"algo.{place}" / "seed0"
    run = older_run(old, content)
    assert run_directory(config, words) == run
    assert load_config(run) == config
    RunDirectory(run, asdict(config)).close()
    assert read_yaml(run / "config.yaml") == plain(asdict(config))


def test_a_run_of_before_is_not_taken_for_another(tmp_path: Path) -> None:
    """One without a correction is none with, and what is new there stands for its default only."""
    run = older_run(tmp_path / "run", as_it_was(compose(["algo=ga3c"]), correction="none", rho_bar=1.0, c_bar=1.0))
    with pytest.raises(RunDirectoryError, match=r"advantage\.kind: 'nstep' there, 'vtrace' asked"):
        RunDirectory(run, asdict(compose(["algo=ga3c", "advantage=vtrace"])))
    with pytest.raises(RunDirectoryError, match=r"advantage\.c_bar: None there, 2\.0 asked"):
        RunDirectory(run, asdict(compose(["algo=ga3c", "advantage.c_bar=2.0"])))


@pytest.mark.parametrize(
    ("word", "say"),
    [
        ("algo.correction=vtrace", "advantage=vtrace, for every actor-critic, and nothing for none"),
        ("algo.rho_bar=2", "advantage.rho_bar with advantage=vtrace"),
        ("algo.c_bar=2", "advantage.c_bar with advantage=vtrace"),
        ("algo.dueling=true", "network.dueling, or network=mlp_dueling or network=nature_dueling"),
    ],
)
def test_old_keys_are_refused_with_the_new_words(word: str, say: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose([f"algo={'dqn' if 'dueling' in word else 'ga3c'}", word])
    assert str(refused.value) == f"{word.split('=')[0]} is no key any more: say {say}."


def test_so_are_they_in_a_sweep(cli: Callable[..., Any]) -> None:
    for words in (["algo.correction=none,vtrace"], ["algo.correction=vtrace", "seed=0,1"]):
        ended = cli("-m", "algo=ga3c", *words)
        assert ended.exit_status == 2
        assert set(ended.stderr.splitlines()) == {
            "a3c_bench: algo.correction is no key any more: "
            "say advantage=vtrace, for every actor-critic, and nothing for none."
        }
