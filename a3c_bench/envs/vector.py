"""A batch of environments on EnvPool, with its auto-reset, life losses, truncation and scores put right."""

import warnings
from typing import Any, NamedTuple

import envpool
import numpy as np
from numpy.typing import NDArray

from a3c_bench.envs.episodes import Episode, EpisodeTracker
from a3c_bench.envs.spec import cannot_be_made, find_spec
from a3c_bench.errors import ConfigError
from a3c_bench.schema import EnvConfig


class Step(NamedTuple):
    """What one step of B environments brought; arrays are [B]."""

    env_ids: NDArray[np.int32]  # which environments these are; all of them, in order, unless they step asynchronously
    observations: NDArray[Any]  # [B, ...], after the step
    rewards: NDArray[np.float32]  # what is learnt from: clipped if the configuration says so; 0 for phantom steps
    terminated: NDArray[np.bool_]  # the return that is learnt from ends here: game over, or a life lost
    truncated: NDArray[np.bool_]  # a time limit ended the game here; a game that is over at its limit is terminated
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
        ConfigError: see `find_spec`; or an environment that does not start on this machine.
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
        self.config = config
        self.spec = spec = find_spec(config)
        self.n_envs = n_envs
        self.is_atari = spec.is_atari
        self.n_actions = spec.n_actions
        self.observation_shape = spec.observation_shape
        self.observation_dtype = spec.observation_dtype
        options = dict(spec.options)
        if render:
            options["render_mode"] = "rgb_array"
        if batch_size is not None:
            options["batch_size"] = batch_size
        self._lock_step = batch_size in (None, n_envs)  # EnvPool then gives all N, in the order in which they were sent
        seeds = [int(s) for s in seed.generate_state(n_envs) % np.uint32(2**31 - 1)]
        with warnings.catch_warnings():  # gymnasium minds that EnvPool gives float64 bounds for float32 observations
            warnings.simplefilter("ignore")
            try:
                self._pool = envpool.make_gymnasium(
                    spec.env_id, num_envs=n_envs, num_threads=min(n_threads, n_envs), seed=seeds, **options
                )
            except (RuntimeError, ImportError) as error:
                raise cannot_be_made(spec.env_id, error) from error
        self.frame_skip = config.frame_skip
        self._all_ids = np.arange(n_envs, dtype=np.int32)
        self._states = None if spec.n_states is None else np.arange(spec.n_states)
        self._tracker = EpisodeTracker(n_envs)
        self._cut = np.zeros(n_envs, dtype=np.bool_)  # ended here and not in EnvPool, which has to be told to reset
        self._to_reset = self._all_ids[:0]  # in lock step: what waits until the others have stepped
        self._action_dtype = self._pool._spec._action_spec[-1][0]
        places = {key: place for place, key in enumerate(self._pool._state_keys)}
        self._places = [places[key] for key in ("info:env_id", "obs", "reward", "done", "trunc", "elapsed_step")]
        self._atari_places = [places[key] for key in ("info:lives", "info:terminated")] if self.is_atari else []

    def reset(self) -> NDArray[Any]:
        """Starts all games; gives the first observations [B, ...]."""
        self.start()
        return self.receive().observations

    def step(self, actions: NDArray[np.integer]) -> Step:
        """Takes one action [N] in every environment; where a game has just ended, the action is ignored."""
        self.send(actions, self._all_ids)
        return self.receive()

    def start(self) -> None:
        """Starts all games; `receive` gives the first observations too, as steps that are not valid."""
        self._tracker = EpisodeTracker(self.n_envs, resetting=True)
        self._cut[:] = False
        self._pool._reset(self._all_ids)

    # EnvPool's compiled part is spoken to directly: on a small environment its Python face, which names every array of
    # a step in nested dictionaries, takes twice the time of the step.

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B] to environments that were received; `receive` gives what came of them."""
        cut = self._cut[env_ids]
        if cut.any():
            self._reset_later(env_ids[cut])
            env_ids, actions = env_ids[~cut], actions[~cut]
        if len(env_ids):
            player_env_ids = env_ids  # one player each
            self._pool._send([env_ids, player_env_ids, actions.astype(self._action_dtype)])

    def receive(self) -> Step:
        """Waits for the next B environments to finish their step; one thread at a time, while others run on."""
        state = self._pool._recv() if len(self._to_reset) < self.n_envs else None
        if len(self._to_reset):
            state = self._with_resets(state)
        assert state is not None
        env_ids, observations, rewards, done, truncated, elapsed = [state[place] for place in self._places]
        terminated = done & ~truncated
        if self.is_atari:
            lives, game_over = [state[place] for place in self._atari_places]
            terminated = terminated | (game_over != 0)
            truncated = truncated & ~terminated  # a true end is an end, at a time limit too
        if self.spec.limit_agent_steps is not None:
            cut = (elapsed >= self.spec.limit_agent_steps) & ~done
            self._cut[env_ids] = cut
            truncated = truncated | cut
        valid, episodes = self._tracker.update(env_ids, rewards, terminated | truncated)
        if self.is_atari and self.config.life_loss_terminal:
            terminated = terminated | self._tracker.lost_life(env_ids, lives, valid)
        if self._states is not None:
            observations = observations[:, np.newaxis] == self._states  # one-hot
        if self.config.observed is not None:
            observations = observations[:, self.config.observed]
        if self.config.reward_clip is not None:
            rewards = np.clip(rewards, -self.config.reward_clip, self.config.reward_clip)
        return Step(env_ids, observations, rewards, terminated, truncated, valid, episodes)

    def _reset_later(self, env_ids: NDArray[np.int32]) -> None:
        """Resets environments whose games EnvPool itself believes to go on: the phantom step, as after its own ends."""
        if self._lock_step:  # EnvPool orders a batch by the places in one call: two calls at once would mix them
            self._to_reset = env_ids
        else:
            self._pool._reset(env_ids)

    def _with_resets(self, stepped: list[NDArray[Any]] | None) -> list[NDArray[Any]]:
        """What the environments brought that stepped, and those that were to be reset, in the order of their ids."""
        self._pool._reset(self._to_reset)
        self._to_reset = self._all_ids[:0]
        reset: list[NDArray[Any]] = self._pool._recv()
        if stepped is None:
            return reset
        order = np.argsort(np.concatenate([part[self._places[0]] for part in (stepped, reset)]))
        return [np.concatenate(parts)[order] for parts in zip(stepped, reset, strict=True)]

    def frames(self) -> NDArray[np.uint8]:
        """The pictures of environment 0, [H, W, 3]; only with `render=True`.

        Raises:
            ConfigError: the environment has no pictures.
        """
        try:
            picture = self._pool.render()
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"{self.spec.env_id} cannot be drawn: {error}.") from error
        assert picture is not None  # human mode alone gives none
        return np.asarray(picture[0], dtype=np.uint8)

    def close(self) -> None:
        """Ends the simulation threads."""
        self._pool.close()
