"""The algorithms, found by name in one registry; other packages add theirs by entry point (`a3c_bench.plugins`)."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from a3c_bench import plugins
from a3c_bench.errors import ConfigError
from a3c_bench.schema import nearest

if TYPE_CHECKING:
    from a3c_bench.algos.settings import Settings

_BUILT_IN = {
    name: f"a3c_bench.algos.{name}:ALGORITHM" for name in ("a3c", "dqn", "ga3c", "gorila", "paac", "pgql", "ppo", "pqn")
}
_BUILT_IN |= {name: f"a3c_bench.algos.async_q:{name.upper()}" for name in ("one_step_q", "one_step_sarsa", "n_step_q")}


@dataclass(frozen=True)
class Workload:
    """The batches in which an algorithm works, for calibration."""

    acting_batch: int  # environments whose actions are chosen at once
    t_max: int  # agent steps of each environment per update
    n_processes: int | None = None  # that do all this side by side, each on one core; None: one, on all cores
    replayed_batch: int | None = None  # samples of an update from a replay; None: what was acted, acting_batch * t_max
    update_period_agent_steps: int = 1  # agent steps per such an update
    n_epochs: int = 1  # passes over what was acted
    n_minibatches: int = 1  # parts of what was acted, each of which makes an update in every pass
    double: bool = False  # such an update asks both networks which action is best
    mapped_replays: tuple[int, ...] = ()  # environments of each replay that lies in files of the run directory


def _workload(config: Any) -> Workload:
    return Workload(config.algo.n_envs, config.algo.t_max)


def _make_network(config: Any, envs: Any, device: Any) -> Any:
    from a3c_bench.build import make_network  # names of algorithms are wanted where torch is not

    return make_network(config, envs, device)


@dataclass(frozen=True)
class Algorithm:
    """What the suite needs to know of an algorithm."""

    config_class: type  # a frozen dataclass with at least `name`, `gamma` and `optimizer`
    train: Callable[[Any, Any], None]  # (Config, Session): runs until session.running() is False
    check: Callable[[Any], None] = lambda config: None  # (Config): raises ConfigError for what it cannot do; of
    # an algorithm of this package, only for what takes a simulator to know: `settings` has the rest
    workload: Callable[[Any], Workload] = _workload  # (Config); this one reads algo.n_envs and algo.t_max
    make_network: Callable[[Any, Any, Any], Any] = _make_network  # (Config, VectorEnv, torch.device): what is evaluated
    resolve: Callable[[Any, int], Any] = lambda config, cores: config  # (Config, cores): with the nulls of `algo` that
    # stand for a number of cores filled in; a run does it once, and keeps the numbers
    computes: bool = False  # it has its callables made as config.compute says (`build.make_compute`)
    ranks: bool = False  # a run of it may be several processes: it calls `session.meet` and `session.peers.reduce`
    columns: tuple[str, ...] = ()  # of metrics.csv that this one adds: figures of `Session.updated`, ratios, gauges


def algorithm_names() -> list[str]:
    """All algorithms that can be named."""
    return sorted({*_BUILT_IN, *plugins.names(plugins.ALGORITHMS)})


def find_settings(name: str) -> "Settings":
    """The settings of the algorithm of that name; an algorithm of this package is not imported for them.

    Raises:
        ConfigError: with the names there are.
    """
    from a3c_bench.algos.settings import SETTINGS, Settings

    if name in SETTINGS:
        return SETTINGS[name]
    algorithm = find_algorithm(name)
    return Settings(algorithm.config_class, algorithm.check, algorithm.computes, ranks=algorithm.ranks)


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        ConfigError: with the names there are.
    """
    if name in _BUILT_IN:
        module, record = _BUILT_IN[name].split(":")
        found = getattr(importlib.import_module(module), record)
    else:
        found = plugins.load(plugins.ALGORITHMS, name)
        if found is None:
            raise ConfigError(f"algo={name} is not an algorithm: {nearest(name, algorithm_names())}")
    assert isinstance(found, Algorithm)
    return found
