"""What a task is, without starting an emulator: its name, its shapes, its time limit; and which tasks are refused."""

import warnings
from dataclasses import dataclass, fields
from typing import Any

import envpool
import numpy as np
from envpool.registration import registry

from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig, nearest

ATARI = "atari"  # env.id of conf/env/atari.yaml: the game says which environment it is

# Keys of EnvConfig that only EnvPool's Atari emulator reads.
ATARI_KEYS = (
    "frame_skip",
    "life_loss_terminal",
    "sticky_action_probability",
    "noop_max",
    "fire_reset",
    "full_action_space",
    "frame_stack",
    "image_height",
    "image_width",
    "grayscale",
)
# Families whose environments end at no time limit but the one that EnvPool is told, and then only if they know of it.
_TOLD_LIMIT_ONLY = ("envpool.classic_control", "envpool.box2d", "envpool.toy_text")
_MOST_STEPS = 2**31 - 1  # EnvPool's "no limit"


@dataclass(frozen=True)
class EnvSpec:
    """A task as networks and replays need to know it."""

    env_id: str  # EnvPool's name
    is_atari: bool
    n_actions: int  # A
    observation_shape: tuple[int, ...]  # of what the agent sees
    observation_dtype: np.dtype[Any]
    n_states: int | None  # the environment shows one of so many numbers, and the agent sees it one-hot; None: arrays
    limit_agent_steps: int | None  # a game is truncated after so many; None: never, or (Atari) EnvPool does it
    options: dict[str, Any]  # for EnvPool


def find_spec(config: EnvConfig) -> EnvSpec:
    """What this task is.

    Raises:
        ConfigError: a task that EnvPool does not know or that is not of the supported kind, or a key without effect.
    """
    env_id = resolve_id(config)
    atari = is_atari(env_id)
    if not atari:
        _refuse_atari_keys(config)
    limit, told = _limits(config, env_id)
    options = _atari_options(config) if atari else {}
    if told is not None:
        options["max_episode_steps"] = told
    with warnings.catch_warnings():  # gymnasium minds that EnvPool gives float64 bounds for float32 observations
        warnings.simplefilter("ignore")
        try:
            spec = envpool.make_spec(env_id, **options)
            actions, observations = spec.gymnasium_action_space, spec.gymnasium_observation_space
        except (RuntimeError, ImportError) as error:
            raise cannot_be_made(env_id, error) from error
    n_players = int(spec.config.max_num_players)
    if n_players > 1:
        raise ConfigError(f"env.id={env_id} is for {n_players} players or agents; only tasks of one are supported.")
    if not hasattr(actions, "n"):
        whole = np.issubdtype(actions.dtype, np.integer)
        has = f"takes actions of {actions.shape[0]} numbers each" if whole else "has continuous actions"
        raise ConfigError(f"env.id={env_id} {has}; only tasks with one discrete action are supported.")
    if "obs" not in spec._state_keys:
        parts = ", ".join(sorted(observations.spaces))
        raise ConfigError(f"env.id={env_id} shows several arrays at once ({parts}); only one is supported.")
    n_states = None if observations.shape else int(observations.n)
    shape = tuple(observations.shape) if n_states is None else (n_states,)
    dtype = spec._state_spec[spec._state_keys.index("obs")][0] if n_states is None else np.bool_
    return EnvSpec(
        env_id,
        atari,
        int(actions.n),
        _seen_shape(config, shape, n_states),
        np.dtype(dtype),
        n_states,
        limit,
        options,
    )


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
        raise ConfigError(f"env.id={config.id} is not an environment: {nearest(config.id, list(registry.specs))}")
    if is_atari(config.id):
        game = config.id.removesuffix("-v5")
        raise ConfigError(f"env.id={config.id} is an Atari game, with its own protocol: say env=atari env.game={game}.")
    return config.id


def episode_limit_frames(config: EnvConfig) -> int | None:
    """The frames after which a game is truncated: the configured cap, or else the environment's own."""
    if config.max_episode_frames is not None:
        return config.max_episode_frames
    own_limit = registry.specs[resolve_id(config)][2].get("max_episode_steps")
    return None if own_limit is None else int(own_limit) * config.frame_skip


def is_atari(env_id: str) -> bool:
    """Whether EnvPool plays this environment on the Atari emulator."""
    return bool(registry.specs[env_id][0] == "envpool.atari")


def atari_games() -> list[str]:
    """The games there are, e.g. "Pong"."""
    return [env_id.removesuffix("-v5") for env_id in registry.specs if is_atari(env_id)]


def cannot_be_made(env_id: str, error: Exception) -> ConfigError:
    """What to raise where EnvPool has an environment that does not start here."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return ConfigError(f"env.id={env_id} cannot be made here: {reason}")


def _refuse_atari_keys(config: EnvConfig) -> None:
    defaults = {item.name: item.default for item in fields(config)}
    for key in ATARI_KEYS:
        value = getattr(config, key)
        if value != defaults[key]:
            raise ConfigError(
                f"env.{key}={str(value).lower()} has no effect on {config.id}: only Atari games (env=atari "
                f"env.game=...) have it; leave it at {str(defaults[key]).lower()}."
            )


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


def _seen_shape(config: EnvConfig, shape: tuple[int, ...], n_states: int | None) -> tuple[int, ...]:
    seen = config.observed
    if seen is None:
        return shape
    if n_states is not None:
        raise ConfigError(f"env.observed chooses from a vector; {config.name} shows one of {n_states} states.")
    if len(shape) != 1:
        raise ConfigError(f"env.observed chooses from a vector; {config.name} shows arrays of shape {shape}.")
    if not seen or len(set(seen)) < len(seen) or max(seen) >= shape[0]:
        raise ConfigError(f"env.observed={list(seen)} must name different entries from 0 to {shape[0] - 1}.")
    return (len(seen),)


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
