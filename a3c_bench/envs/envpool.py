"""EnvPool's tasks and its threads: what 1.2.5 does otherwise than one expects is put right here and in `vector`."""

import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from a3c_bench.envs.simulation import Arrival
from a3c_bench.envs.spec import (
    ATARI,
    EnvSpec,
    Shown,
    check_actions,
    choose,
    read_space,
    readable,
    refuse_atari_keys,
    refuse_key,
    seen,
)
from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig, nearest

# Families whose environments end at no time limit but the one that EnvPool is told, and then only if they know of it.
_TOLD_LIMIT_ONLY = ("envpool.classic_control", "envpool.box2d", "envpool.toy_text")
_MOST_STEPS = 2**31 - 1  # EnvPool's "no limit"
_JUMANJI = "envpool.jumanji"


def _import_envpool() -> Any:
    """EnvPool, without what draws Jumanji's environments until one of them is made.

    EnvPool 1.2.5 imports all its families to register their names; that of Jumanji brings matplotlib along, 40% of
    the import. Names are registered by a module inside the family's package, which asks nothing of the package: so an
    empty package stands in for it meanwhile, and whoever makes a Jumanji environment imports the true one.
    """
    place, known = importlib.util.find_spec("envpool"), importlib.metadata.version("envpool") == "1.2.5"
    stands_in = None
    if known and place is not None and place.origin is not None and "envpool" not in sys.modules:
        stands_in = ModuleType(_JUMANJI)
        stands_in.__path__ = [str(Path(place.origin).parent / "jumanji")]
        sys.modules[_JUMANJI] = stands_in
    try:
        import envpool
    finally:
        if stands_in is not None:
            del sys.modules[_JUMANJI]
    return envpool


envpool = _import_envpool()
registry = envpool.registration.registry


def describe(config: EnvConfig) -> EnvSpec:
    """What this task is, without starting an emulator.

    Raises:
        ConfigError: a task that EnvPool does not know or that is not of the supported kind, or a key without effect.
    """
    env_id = resolve_id(config)
    atari = is_atari(env_id)
    if not atari:
        refuse_atari_keys(config)
    if config.simulate is not None:
        raise ConfigError(
            f"env.simulate={config.simulate} has no effect on {env_id}: EnvPool simulates on env.n_threads threads."
        )
    limit, told = _limits(config, env_id)
    options = _atari_options(config) if atari else {}
    if told is not None:
        options["max_episode_steps"] = told
    try:
        spec, actions, observations = _made(env_id, *options.items())
    except (RuntimeError, ImportError) as error:
        raise _cannot_be_made(env_id, error) from error
    n_players = int(spec.config.max_num_players)
    if n_players > 1:
        raise ConfigError(f"env.id={env_id} is for {n_players} players or agents; only tasks of one are supported.")
    n_actions = check_actions(env_id, actions)
    shown = _shown(config, env_id, spec, observations)
    several = config.observed_key is not None
    return EnvSpec(
        env_id, atari, n_actions, limit_agent_steps=limit, options=options, **seen(config, shown, turn_pictures=several)
    )


def _shown(config: EnvConfig, env_id: str, spec: Any, observations: Any) -> Shown:
    dtypes = dict(zip(spec._state_keys, (part[0] for part in spec._state_spec), strict=True))
    if "obs" not in dtypes:
        known = {key: read_space(space) for key, space in observations.spaces.items()}
        shown = choose(config, env_id, {key: part if f"obs:{key}" in dtypes else None for key, part in known.items()})
        return shown._replace(dtype=np.dtype(dtypes[f"obs:{config.observed_key}"]))
    refuse_key(config, env_id)
    n_states = None if observations.shape else int(observations.n)
    return Shown(tuple(observations.shape), np.dtype(dtypes["obs"]), n_states)


def resolve_id(config: EnvConfig) -> str:
    """EnvPool's name of the task.

    Raises:
        ConfigError: with the nearest names that exist, or with what to say instead.
    """
    if config.game is not None:
        env_id = f"{config.game}-v5"
        if env_id not in registry.specs or not is_atari(env_id):
            raise ConfigError(f"env.game={config.game} is not an Atari game: {nearest(config.game, atari_games())}")
        if config.id not in (ATARI, env_id):
            raise ConfigError(
                f"env.id={config.id} and env.game={config.game} are two tasks: say env=atari env.game={config.game} "
                f"for the game, or env.id={config.id} without a game for the other."
            )
        return env_id
    if config.id == ATARI:
        raise ConfigError("env=atari needs a game: say env.game=Pong or another.")
    if config.id not in registry.specs:
        raise ConfigError(f"env.id={config.id} is not an environment{_instead(config.id)}")
    if is_atari(config.id):
        game = config.id.removesuffix("-v5")
        raise ConfigError(f"env.id={config.id} is an Atari game, with its own protocol: say env=atari env.game={game}.")
    return config.id


def _instead(env_id: str) -> str:
    import gymnasium

    if ":" in env_id or env_id in gymnasium.registry:
        return " of EnvPool: say env.backend=gymnasium."
    return f": {nearest(env_id, list(registry.specs))}"


def own_limit_frames(config: EnvConfig) -> int | None:
    """The frames after which the environment itself truncates a game."""
    own_limit = registry.specs[resolve_id(config)][2].get("max_episode_steps")
    return None if own_limit is None else int(own_limit) * config.frame_skip


def is_atari(env_id: str) -> bool:
    """Whether EnvPool plays this environment on the Atari emulator."""
    return bool(registry.specs[env_id][0] == "envpool.atari")


def atari_games() -> list[str]:
    """The games there are, e.g. "Pong"."""
    return [env_id.removesuffix("-v5") for env_id in registry.specs if is_atari(env_id)]


@lru_cache(maxsize=8)
def _made(env_id: str, *options: tuple[str, Any]) -> tuple[Any, Any, Any]:
    """EnvPool's specification, the actions and the observations. A start asks some five times, 0.2 s each for Atari."""
    with warnings.catch_warnings():  # gymnasium minds that EnvPool gives float64 bounds for float32 observations
        warnings.simplefilter("ignore")
        spec = envpool.make_spec(env_id, **dict(options))
        return spec, spec.gymnasium_action_space, spec.gymnasium_observation_space


def _cannot_be_made(env_id: str, error: Exception) -> ConfigError:
    """What to raise where EnvPool has an environment that does not start here."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return ConfigError(f"env.id={env_id} cannot be made here: {reason}")


def _limits(config: EnvConfig, env_id: str) -> tuple[int | None, int | None]:
    """The agent steps after which a game is truncated here, and the limit that EnvPool is told; None: its own.

    EnvPool 1.2.5 calls each end a truncation that comes at or after its limit: a pole that falls at the limit too.
    Catch, CliffWalking and Highway do not end at their limit at all, Google football one step late. So the limit is
    kept here, and where an environment has no other time limit EnvPool is told one step more: every end that it
    reports is a true one then. Atari says by itself whether the game was over, and keeps its limit.
    """
    cap = None if config.max_episode_frames is None else max(1, config.max_episode_frames // config.frame_skip)
    if is_atari(env_id):
        return None, cap
    module, _, defaults = registry.specs[env_id]
    own = defaults.get("max_episode_steps")
    if module in _TOLD_LIMIT_ONLY:
        limit = own if cap is None else cap
        return limit, None if limit is None else min(limit + 1, _MOST_STEPS)
    limits = [limit for limit in (cap, own) if limit is not None]
    limit = min(limits, default=None)
    return limit, limit


def _atari_options(config: EnvConfig) -> dict[str, Any]:
    return {
        "frame_skip": config.frame_skip,
        "stack_num": config.frame_stack,
        "noop_max": config.noop_max,
        "use_fire_reset": config.fire_reset,
        "full_action_space": config.full_action_space,
        "repeat_action_probability": config.sticky_action_probability,
        "img_height": config.image_height,
        "img_width": config.image_width,
        "gray_scale": config.grayscale,
        # Both are done in VectorEnv instead: EnvPool's life loss spends up to noop_max no-ops per life, and its
        # clipping is the sign. So a lost life changes nothing but what is learnt, and scores need no second account.
        "episodic_life": False,
        "reward_clip": False,
    }


class Threads:
    """EnvPool's environments, simulated on its threads: a `Simulation`.

    EnvPool's compiled part is spoken to directly: on a small environment its Python face, which names every array of
    a step in nested dictionaries, takes twice the time of the step.

    Raises:
        ConfigError: an environment does not start on this machine.
    """

    def __init__(self, spec: EnvSpec, seeds: Sequence[int], n_threads: int, render: bool, batch_size: int) -> None:
        options = dict(spec.options)
        if render:
            options["render_mode"] = "rgb_array"
        n_envs = len(seeds)
        if batch_size < n_envs:
            options["batch_size"] = batch_size
        with warnings.catch_warnings():  # as in `describe`
            warnings.simplefilter("ignore")
            try:
                self._pool = envpool.make_gymnasium(
                    spec.env_id, num_envs=n_envs, num_threads=min(n_threads, n_envs), seed=list(seeds), **options
                )
            except (RuntimeError, ImportError) as error:
                raise _cannot_be_made(spec.env_id, error) from error
        self._env_id = spec.env_id
        self._action_dtype = self._pool._spec._action_spec[-1][0]
        self._cast = None if readable(spec.shown.dtype) == spec.shown.dtype else readable(spec.shown.dtype)
        places = {key: place for place, key in enumerate(self._pool._state_keys)}
        seen_key = "obs" if spec.observed_key is None else f"obs:{spec.observed_key}"
        self._places = [places[key] for key in ("info:env_id", seen_key, "reward", "done", "trunc", "elapsed_step")]
        self._atari_places = [places[key] for key in ("info:lives", "info:terminated")] if spec.is_atari else []

    def reset(self, env_ids: NDArray[np.int32]) -> None:
        """Begins new games."""
        self._pool._reset(env_ids)

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B]."""
        player_env_ids = env_ids  # one player each
        self._pool._send([env_ids, player_env_ids, actions.astype(self._action_dtype)])

    def receive(self) -> Arrival:
        """Waits for the first B to have finished; EnvPool lets other threads run meanwhile."""
        state = self._pool._recv()
        env_ids, observations, rewards, done, truncated, elapsed = [state[place] for place in self._places]
        # `a > b` is `a and not b`, in one call.
        if self._cast is not None:
            observations = observations.astype(self._cast)
        if not self._atari_places:
            return Arrival(env_ids, observations, rewards, done > truncated, done & truncated, elapsed)
        lives, game_over = [state[place] for place in self._atari_places]
        terminated = (done > truncated) | (game_over != 0)
        truncated = truncated > terminated  # a true end is an end, at a time limit too
        return Arrival(env_ids, observations, rewards, terminated, truncated, elapsed, lives)

    def picture(self) -> NDArray[np.uint8]:
        """Environment 0."""
        try:
            picture = self._pool.render()
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"{self._env_id} cannot be drawn: {error}.") from error
        assert picture is not None  # human mode alone gives none
        return np.asarray(picture[0], dtype=np.uint8)

    def close(self) -> None:
        """Ends the simulation threads."""
        self._pool.close()
