"""What a task is, without simulating it: its name, its shapes, its time limit; and which tasks are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig, nearest

ATARI = "atari"  # env.id of conf/env/atari.yaml: the game says which environment it is
ENVPOOL, GYMNASIUM = "envpool", "gymnasium"  # values of env.backend

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
# Types of arrays that networks read as they are; others are seen as float32.
_READ = tuple(map(np.dtype, ("bool", "uint8", "int8", "int16", "int32", "int64", "float32")))


class Shown(NamedTuple):
    """One array that an environment shows, or the number of one of n_states states."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    n_states: int | None = None  # None: an array
    first_state: int = 0


@dataclass(frozen=True)
class EnvSpec:
    """A task as networks and replays need to know it."""

    env_id: str  # EnvPool's or Gymnasium's name, or module:Name
    is_atari: bool
    n_actions: int  # A
    observation_shape: tuple[int, ...]  # of what the agent sees
    observation_dtype: np.dtype[Any]
    n_states: int | None  # the environment shows one of so many numbers, and the agent sees it one-hot; None: arrays
    limit_agent_steps: int | None  # a game is truncated after so many; None: never, or (Atari) EnvPool does it
    options: dict[str, Any] = field(default_factory=dict)  # for EnvPool
    backend: str = ENVPOOL
    shown: Shown = Shown((), np.dtype(np.float32))  # what the agent's observation is made of
    observed_key: str | None = None  # which of several arrays that is
    channels_last: bool = False  # it is a picture [H, W, C], seen as [C, H, W]


def uses_gymnasium(config: EnvConfig) -> bool:
    """Whether Gymnasium simulates it: because env.backend says so, or env.id is module:Name."""
    return config.backend == GYMNASIUM or (config.backend is None and ":" in config.id)


def refuse_atari_keys(config: EnvConfig) -> None:
    """Raises ConfigError for a key that only Atari games have."""
    defaults = {item.name: item.default for item in fields(config)}
    for key in ATARI_KEYS:
        value = getattr(config, key)
        if value != defaults[key]:
            raise ConfigError(
                f"env.{key}={str(value).lower()} has no effect on {config.id}: only Atari games (env=atari "
                f"env.game=...) have it; leave it at {str(defaults[key]).lower()}."
            )


# --- what is seen of what is shown ------------------------------------------------------------------------------------


def check_actions(env_id: str, actions: Any) -> int:
    """The number of actions of a Gymnasium space.

    Raises:
        ConfigError: it is not one discrete action.
    """
    if hasattr(actions, "n") and not actions.shape:
        return int(actions.n)
    if not actions.shape:
        has = f"takes actions of another kind ({type(actions).__name__})"
    elif np.issubdtype(actions.dtype, np.integer):
        has = f"takes actions of {actions.shape[0]} numbers each"
    else:
        has = "has continuous actions"
    raise ConfigError(f"env.id={env_id} {has}; only tasks with one discrete action are supported.")


def read_space(space: Any) -> Shown | None:
    """What a Gymnasium space shows; None if that is not one array or the number of a state."""
    if hasattr(space, "n") and space.shape == ():
        return Shown((), np.dtype(np.int64), int(space.n), int(getattr(space, "start", 0)))
    if not space.shape or space.dtype is None or np.dtype(space.dtype).kind not in "biuf":  # text, parts, one number
        return None
    return Shown(tuple(space.shape), np.dtype(space.dtype))


def choose(config: EnvConfig, env_id: str, spaces: Mapping[str, Shown | None]) -> Shown:
    """The one of several arrays that the agent sees, by env.observed_key.

    Raises:
        ConfigError: it has to be said, or is none of them.
    """
    arrays = {key: shown for key, shown in spaces.items() if shown is not None}
    key, parts = config.observed_key, ", ".join(sorted(spaces))
    if key is not None and key in arrays:
        return arrays[key]
    if not arrays:
        raise ConfigError(f"env.id={env_id} shows several things at once ({parts}); only one array is supported.")
    if key is not None:
        raise ConfigError(f"env.observed_key={key} is no array that {env_id} shows: {nearest(key, sorted(arrays))}")
    pictures = sorted(arrays, key=lambda name: (-len(arrays[name].shape), -int(np.prod(arrays[name].shape)), name))
    raise ConfigError(
        f"env.id={env_id} shows several arrays at once ({parts}): say env.observed_key={pictures[0]} for one of them, "
        "only one is supported."
    )


def refuse_key(config: EnvConfig, env_id: str) -> None:
    """Raises ConfigError for an env.observed_key where there is nothing to choose from."""
    if config.observed_key is not None:
        raise ConfigError(f"env.observed_key chooses from several arrays; {env_id} shows one: leave it out.")


def seen(config: EnvConfig, shown: Shown, turn_pictures: bool) -> dict[str, Any]:
    """The fields of EnvSpec that tell what the agent sees.

    Args:
        config: env.observed chooses entries of a vector.
        shown: by the environment.
        turn_pictures: arrays of three dimensions, the last the smallest, are [H, W, C] and seen as [C, H, W], the way
            networks take them. What EnvPool shows alone is so already.
    """
    shape, dtype = shown.shape, readable(shown.dtype)
    if shown.n_states is not None:
        shape, dtype = (shown.n_states,), np.dtype(np.bool_)
    turned = turn_pictures and len(shape) == 3 and shape[2] < min(shape[:2])
    if turned:
        shape = (shape[2], *shape[:2])
    return {
        "observation_shape": _chosen_shape(config, shape, shown.n_states),
        "observation_dtype": dtype,
        "n_states": shown.n_states,
        "shown": shown,
        "observed_key": config.observed_key,
        "channels_last": turned,
    }


def readable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which a network reads it: as it is, or float32."""
    return dtype if dtype in _READ else np.dtype(np.float32)


def _chosen_shape(config: EnvConfig, shape: Sequence[int], n_states: int | None) -> tuple[int, ...]:
    chosen = config.observed
    if chosen is None:
        return tuple(shape)
    if n_states is not None:
        raise ConfigError(f"env.observed chooses from a vector; {config.name} shows one of {n_states} states.")
    if len(shape) != 1:
        raise ConfigError(f"env.observed chooses from a vector; {config.name} shows arrays of shape {tuple(shape)}.")
    if not chosen or len(set(chosen)) < len(chosen) or max(chosen) >= shape[0]:
        raise ConfigError(f"env.observed={list(chosen)} must name different entries from 0 to {shape[0] - 1}.")
    return (len(chosen),)
