"""Environments of one's own: any Gymnasium environment with one discrete action, behind the face of EnvPool's.

gymnasium.vector is not used: its `step` takes an action for every environment, where GA3C wants the first B of N and a
game that is cut off here is reset while the others step; and its processes are one per environment.
"""

import importlib
import inspect
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from a3c_bench.envs.simulation import Arrival
from a3c_bench.envs.spec import GYMNASIUM, EnvSpec, check_actions, choose, read_space, readable, refuse_key, seen
from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig, nearest


@dataclass(frozen=True)
class Recipe:
    """How an environment is made."""

    env_id: str  # for messages
    make: Callable[..., Any] | str  # a class or function, or a name in Gymnasium's registry

    def __call__(self, render: bool = False) -> "gymnasium.Env[Any, Any]":
        """A new environment.

        Raises:
            ConfigError: it is none, or cannot be made.
        """
        with warnings.catch_warnings(), _told(self.env_id, "being made"):
            warnings.simplefilter("ignore")  # Gymnasium minds old versions, float64 and much else
            if isinstance(self.make, str):
                options = {"render_mode": "rgb_array"} if render else {}
                env = gymnasium.make(self.make, max_episode_steps=-1, disable_env_checker=True, **options)
            else:
                options = {"render_mode": "rgb_array"} if render and _takes_a_mode(self.make) else {}
                env = self.make(**options)
        if not isinstance(env, gymnasium.Env):
            raise ConfigError(f"env.id={self.env_id} makes a {type(env).__name__}, which is no gymnasium.Env.")
        return env

    @property
    def limit_agent_steps(self) -> int | None:
        """The time limit in Gymnasium's registry, which `VectorEnv` keeps."""
        return gymnasium.registry[self.make].max_episode_steps if isinstance(self.make, str) else None


def find_recipe(env_id: str) -> Recipe:
    """Of a name in Gymnasium's registry, or module:Name of a class, a function or of a name that the module registers.

    The module is looked up on sys.path and in the current directory.

    Raises:
        ConfigError: there is no such module or environment.
    """
    module_name, colon, name = env_id.rpartition(":")
    if colon:
        module = _import(env_id, module_name)
        found = getattr(module, name, None)
        if found is not None:
            if not callable(found):
                raise ConfigError(f"env.id={env_id} is a {type(found).__name__}: it must be a class of gymnasium.Env.")
            return Recipe(env_id, found)
        known = [key for key, value in vars(module).items() if _is_env_class(value, module_name)]
        if name not in gymnasium.registry:
            hint = nearest(name, known) if known else "it has no class of gymnasium.Env."
            raise ConfigError(f"env.id={env_id} is not an environment of that module: {hint}")
    elif name not in gymnasium.registry:
        raise ConfigError(
            f"env.id={env_id} is not in Gymnasium's registry: {nearest(name, list(gymnasium.registry))} "
            "One of your own is env.id=my_package.my_module:MyEnv."
        )
    return Recipe(env_id, name)


def describe(config: EnvConfig) -> EnvSpec:
    """What this task is, by one environment that is made, reset and stepped once in this process.

    Raises:
        ConfigError: the environment cannot be found, made or reset, or is not of the supported kind.
    """
    recipe = find_recipe(config.id)
    spaces = _tried(recipe)
    n_actions = check_actions(config.id, spaces.actions)
    if isinstance(spaces.observations, gymnasium.spaces.Dict):
        shown = choose(config, config.id, {key: read_space(part) for key, part in spaces.observations.items()})
    else:
        refuse_key(config, config.id)
        array = read_space(spaces.observations)
        if array is None:
            kind = type(spaces.observations).__name__
            raise ConfigError(f"env.id={config.id} shows a space of kind {kind}; only one array is supported.")
        shown = array
    shown = shown._replace(dtype=readable(shown.dtype))
    own, cap = recipe.limit_agent_steps, config.max_episode_frames
    sees = seen(config, shown, turn_pictures=True)
    return EnvSpec(
        config.id, False, n_actions, limit_agent_steps=own if cap is None else cap, backend=GYMNASIUM, **sees
    )


class Answer(NamedTuple):
    """What one step of one environment brought."""

    reward: float
    terminated: bool
    truncated: bool
    elapsed: int


class Game:
    """One environment; the action after an end resets it and is ignored.

    Args:
        spec: of the task.
        seed: of its first reset; later games go on from there.
        render: it can be drawn.
    """

    def __init__(self, spec: EnvSpec, seed: int, render: bool = False) -> None:
        self.env = find_recipe(spec.env_id)(render)
        self._seed: int | None = seed
        self._key = spec.observed_key
        self._shape = spec.shown.shape
        self._first_action = int(getattr(self.env.action_space, "start", 0))
        self._ended = False
        self._elapsed = 0

    def step(self, action: int, place: NDArray[Any]) -> Answer:
        """Takes an action, counted from 0, and writes what is seen then to its place."""
        if self._ended:
            return self.reset(place)
        observation, reward, terminated, truncated, _ = self.env.step(action + self._first_action)
        self._elapsed += 1
        terminated = bool(terminated)
        truncated = bool(truncated) and not terminated  # over at its limit is over
        self._ended = terminated or truncated
        self._show(observation, place)
        return Answer(float(reward), terminated, truncated, self._elapsed)

    def reset(self, place: NDArray[Any]) -> Answer:
        """Begins a new game."""
        observation, _ = self.env.reset(seed=self._seed)
        self._seed, self._ended, self._elapsed = None, False, 0
        self._show(observation, place)
        return Answer(0.0, False, False, 0)

    def _show(self, observation: Any, place: NDArray[Any]) -> None:
        array = np.asarray(observation if self._key is None else observation[self._key])
        if array.shape != self._shape:  # numpy would spread a smaller one over its place
            raise ValueError(f"an observation has the shape {array.shape}, its space {self._shape}")
        place[...] = array

    def picture(self) -> NDArray[np.uint8]:
        """As the environment draws itself.

        Raises:
            ConfigError: it does not.
        """
        try:
            picture = self.env.render()
        except Exception as error:  # of somebody else's code
            raise ConfigError(f"{_name(self.env)} cannot be drawn: {_in_words(error)}.") from error
        if picture is None:
            raise ConfigError(f"{_name(self.env)} cannot be drawn: it has no render_mode rgb_array.")
        return np.asarray(picture, dtype=np.uint8)


class InPlace:
    """Gymnasium's environments, each stepped by the thread that receives: a `Simulation`."""

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], render: bool, batch_size: int) -> None:
        self._games = [Game(spec, seed, render and index == 0) for index, seed in enumerate(seeds)]
        self._shown = spec.shown
        self._batch_size = None if batch_size == len(seeds) else batch_size  # None: all that were asked
        self._asked: deque[tuple[int, int | None]] = deque()  # environment, and its action; None: a reset
        self._changed = threading.Condition()
        self._closed = False

    def reset(self, env_ids: NDArray[np.int32]) -> None:
        """Begins new games."""
        self._ask([(env_id, None) for env_id in env_ids.tolist()])

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B]."""
        self._ask(list(zip(env_ids.tolist(), actions.tolist(), strict=True)))

    def receive(self) -> Arrival:
        """Steps the first B that were asked."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._asked) >= (self._batch_size or 1))
            if self._closed:
                raise RuntimeError("the environments were closed")
            asked = [self._asked.popleft() for _ in range(self._batch_size or len(self._asked))]
        observations = np.empty((len(asked), *self._shown.shape), self._shown.dtype)
        outcomes = []
        for place, (env_id, action) in enumerate(asked):
            game, seen_by = self._games[env_id], observations[place, ...]
            outcomes.append(game.reset(seen_by) if action is None else game.step(action, seen_by))
        return arrival([env_id for env_id, _ in asked], observations, outcomes)

    def picture(self) -> NDArray[np.uint8]:
        """Environment 0."""
        return self._games[0].picture()

    def close(self) -> None:
        """Closes all environments."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for game in self._games:
            game.env.close()

    def _ask(self, work: list[tuple[int, int | None]]) -> None:
        with self._changed:
            self._asked.extend(work)
            self._changed.notify_all()


def arrival(env_ids: Sequence[int], observations: NDArray[Any], outcomes: Sequence[Answer]) -> Arrival:
    """What came of B environments, as arrays."""
    rewards, terminated, truncated, elapsed = zip(*outcomes, strict=True)
    return Arrival(
        np.array(env_ids, dtype=np.int32),
        observations,
        np.array(rewards, dtype=np.float32),
        np.array(terminated, dtype=np.bool_),
        np.array(truncated, dtype=np.bool_),
        np.array(elapsed, dtype=np.int32),
    )


class _Spaces(NamedTuple):
    observations: Any
    actions: Any


@cache  # a process asks several times, and making one may take long
def _tried(recipe: Recipe) -> _Spaces:
    """The spaces of an environment that can be made, reset and stepped."""
    env = recipe()
    try:
        with _told(recipe.env_id, "its reset"):
            found = env.reset(seed=0)
            _ = env.observation_space, env.action_space
        if not (isinstance(found, tuple) and len(found) == 2):
            raise ConfigError(f"env.id={recipe.env_id} is for an older interface: reset must give (observation, info).")
        spaces = _Spaces(env.observation_space, env.action_space)
        if isinstance(spaces.actions, gymnasium.spaces.Discrete):
            with _told(recipe.env_id, "its first step"):
                n_parts = len(env.step(int(spaces.actions.start)))
            if n_parts != 5:
                raise ConfigError(
                    f"env.id={recipe.env_id} is for an older interface: step must give (observation, reward, "
                    "terminated, truncated, info)."
                )
        return spaces
    finally:
        env.close()


def _import(env_id: str, name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # `python -m` has it there, a3c-bench does not
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"env.id={env_id}: there is no module {missing}, neither on sys.path nor in the current directory."
            ) from error
        raise ConfigError(f"env.id={env_id} cannot be imported: {name} needs {missing}, which is missing.") from error
    except Exception as error:  # of somebody else's code
        raise ConfigError(f"env.id={env_id} cannot be imported: {name} raised {_in_words(error)}.") from error


@contextmanager
def _told(env_id: str, when: str) -> Iterator[None]:
    """What somebody else's code raises, in one sentence."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"env.id={env_id} cannot be used: {when} raised {_in_words(error)}.") from error


def _in_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _takes_a_mode(make: Callable[..., Any]) -> bool:
    try:
        return "render_mode" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # of compiled code
        return False


def _is_env_class(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, gymnasium.Env) and value.__module__ == module


def _name(env: "gymnasium.Env[Any, Any]") -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
