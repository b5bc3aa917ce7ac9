"""A batch of environments on EnvPool, with its auto-reset, life losses, truncation and scores put right."""

import warnings
from typing import Any, NamedTuple

import envpool
import numpy as np
from envpool.registration import registry
from numpy.typing import NDArray

from a3c_bench.envs.episodes import Episode, EpisodeTracker
from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig, nearest

ATARI = "atari"  # env.id of conf/env/atari.yaml: the game says which environment it is


class Step(NamedTuple):
    """What one step of B environments brought; arrays are [B]."""

    env_ids: NDArray[np.int32]  # which environments these are; all of them, in order, unless they step asynchronously
    observations: NDArray[Any]  # [B, ...], after the step
    rewards: NDArray[np.float32]  # what is learnt from: clipped if the configuration says so; 0 for phantom steps
    terminated: NDArray[np.bool_]  # the return that is learnt from ends here: game over, or a life lost
    truncated: NDArray[np.bool_]  # a time limit ended the game here
    valid: NDArray[np.bool_]  # False for the phantom step of an auto-reset, which is nobody's experience
    episodes: list[Episode]  # the games that ended


class VectorEnv:
    """N environments that step together, or (with a batch_size) each when its action has come.

    Args:
        config: the task.
        n_envs: N.
        seed: environment i gets child i of this sequence.
        n_threads: simulation threads; results do not depend on them.
        render: keep what `frames` needs.
        batch_size: B, so many that `receive` gives: the first to have finished. None: all N, by `step`.

    Raises:
        ConfigError: a game or environment that EnvPool does not know, or one without discrete actions.
    """

    def __init__(
        self,
        config: EnvConfig,
        n_envs: int,
        seed: np.random.SeedSequence,
        n_threads: int,
        render: bool = False,
        batch_size: int | None = None,
    ) -> None:
        env_id = resolve_id(config)
        self.config = config
        self.n_envs = n_envs
        self.is_atari = is_atari(env_id)
        options = _atari_options(config) if self.is_atari else {}
        if config.max_episode_frames is not None:
            options["max_episode_steps"] = max(1, config.max_episode_frames // config.frame_skip)
        if render:
            options["render_mode"] = "rgb_array"
        if batch_size is not None:
            options["batch_size"] = batch_size
        seeds = [int(s) for s in seed.generate_state(n_envs) % np.uint32(2**31 - 1)]
        with warnings.catch_warnings():  # gymnasium minds that EnvPool gives float64 bounds for float32 observations
            warnings.simplefilter("ignore")
            self._pool = envpool.make_gymnasium(
                env_id, num_envs=n_envs, num_threads=min(n_threads, n_envs), seed=seeds, **options
            )
            actions, observations = self._pool.action_space, self._pool.observation_space
        if not hasattr(actions, "n"):
            raise ConfigError(f"env.id={env_id} has continuous actions; only discrete ones are supported.")
        if not observations.shape:
            raise ConfigError(f"env.id={env_id} shows several things at once; only one array is supported.")
        self.n_actions = int(actions.n)
        self.observation_shape = _seen_shape(config, tuple(observations.shape))
        self.observation_dtype = observations.dtype
        self.frame_skip = config.frame_skip
        self._all_ids = np.arange(n_envs, dtype=np.int32)
        self._tracker = EpisodeTracker(n_envs)
        self._action_dtype = self._pool._spec._action_spec[-1][0]
        places = {key: place for place, key in enumerate(self._pool._state_keys)}
        self._places = [places[key] for key in ("info:env_id", "obs", "reward", "done", "trunc")]
        self._atari_places = [places[key] for key in ("info:lives", "info:terminated")] if self.is_atari else []

    def reset(self) -> NDArray[Any]:
        """Starts all games; gives the first observations [B, ...]."""
        self._tracker = EpisodeTracker(self.n_envs, resetting=True)
        self._pool._reset(self._all_ids)
        return self.receive().observations

    def step(self, actions: NDArray[np.integer]) -> Step:
        """Takes one action [N] in every environment; where a game has just ended, the action is ignored."""
        self.send(actions, self._all_ids)
        return self.receive()

    def start(self) -> None:
        """Starts all games; `receive` gives the first observations too, as steps that are not valid."""
        self._tracker = EpisodeTracker(self.n_envs, resetting=True)
        self._pool._reset(self._all_ids)

    # EnvPool's compiled part is spoken to directly: on a small environment its Python face, which names every array of
    # a step in nested dictionaries, takes twice the time of the step.

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B] to environments that were received; `receive` gives what came of them."""
        player_env_ids = env_ids  # one player each
        self._pool._send([env_ids, player_env_ids, actions.astype(self._action_dtype)])

    def receive(self) -> Step:
        """Waits for the next B environments to finish their step; one thread at a time, while others run on."""
        state = self._pool._recv()
        env_ids, observations, rewards, done, truncated = [state[place] for place in self._places]
        terminated = done & ~truncated
        if self.is_atari:
            lives, game_over = [state[place] for place in self._atari_places]
            terminated = terminated | (game_over != 0)
        valid, episodes = self._tracker.update(env_ids, rewards, terminated | truncated)
        if self.is_atari and self.config.life_loss_terminal:
            terminated = terminated | self._tracker.lost_life(env_ids, lives, valid)
        if self.config.observed is not None:
            observations = observations[:, self.config.observed]
        if self.config.reward_clip is not None:
            rewards = np.clip(rewards, -self.config.reward_clip, self.config.reward_clip)
        return Step(env_ids, observations, rewards, terminated, truncated, valid, episodes)

    def frames(self) -> NDArray[np.uint8]:
        """The pictures of environment 0, [H, W, 3]; only with `render=True`.

        Raises:
            ConfigError: the environment has no pictures.
        """
        try:
            picture = self._pool.render()
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"{resolve_id(self.config)} cannot be drawn: {error}.") from error
        assert picture is not None  # human mode alone gives none
        return np.asarray(picture[0], dtype=np.uint8)

    def close(self) -> None:
        """Ends the simulation threads."""
        self._pool.close()


def resolve_id(config: EnvConfig) -> str:
    """EnvPool's name of the task.

    Raises:
        ConfigError: with the nearest names that exist.
    """
    if config.game is not None:
        if f"{config.game}-v5" not in registry.specs or not is_atari(f"{config.game}-v5"):
            raise ConfigError(f"env.game={config.game} is not an Atari game: {nearest(config.game, atari_games())}")
        return f"{config.game}-v5"
    if config.id == ATARI:
        raise ConfigError("env=atari needs a game: say env.game=Pong or another.")
    if config.id not in registry.specs:
        raise ConfigError(f"env.id={config.id} is not an environment: {nearest(config.id, list(registry.specs))}")
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


def _seen_shape(config: EnvConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    seen = config.observed
    if seen is None:
        return shape
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
        # Both are done here instead: EnvPool's life loss spends up to noop_max no-ops per life, and its clipping is
        # the sign. So a lost life changes nothing but what is learnt, and the scores need no second account.
        "episodic_life": False,
        "reward_clip": False,
    }
