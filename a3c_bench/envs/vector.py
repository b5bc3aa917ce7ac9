"""A batch of environments, with auto-reset, life losses, truncation and scores put right."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from a3c_bench.envs.backends import find_spec, simulate
from a3c_bench.envs.episodes import Episode, EpisodeTracker
from a3c_bench.envs.simulation import Arrival, Simulate, joined
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

    @property
    def ended(self) -> NDArray[np.bool_]:
        """[B], where a return ends: with the game, a life or the time."""
        return self.valid & (self.terminated | self.truncated)


class VectorEnv:
    """N environments that step together, or (with a batch_size) each when its action has come.

    Args:
        config: the task.
        n_envs: N.
        seed: environment i gets child `first` + i of this sequence.
        n_threads: simulation threads, or processes; results do not depend on them.
        render: keep what `frames` needs.
        batch_size: B, so many that `receive` gives: the first to have finished. None: all N, by `step`.
        simulation: makes what simulates; by default EnvPool's threads, or Gymnasium's environments in place.
        first: of the sequence's children, that environment 0 gets.

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
        simulation: Simulate = simulate,
        first: int = 0,
    ) -> None:
        self.config = config
        self.spec = spec = find_spec(config)
        self.n_envs = n_envs
        self.is_atari = spec.is_atari
        self.n_actions = spec.n_actions
        self.observation_shape = spec.observation_shape
        self.observation_dtype = spec.observation_dtype
        self._lock_step = batch_size in (None, n_envs)  # all N come then, in the order in which they were sent
        seeds = [int(s) for s in seed.generate_state(first + n_envs)[first:] % np.uint32(2**31 - 1)]
        self._simulation = simulation(spec, seeds, n_threads, render, batch_size or n_envs)
        self.frame_skip = config.frame_skip
        self._all_ids = np.arange(n_envs, dtype=np.int32)
        first = spec.shown.first_state
        self._states = None if spec.n_states is None else np.arange(first, first + spec.n_states)
        self._tracker = EpisodeTracker(n_envs)
        self._cut = np.zeros(n_envs, dtype=np.bool_)  # ended here and not in the simulation, which is to be told so
        self._to_reset = self._all_ids[:0]  # in lock step: what waits until the others have stepped

    def reset(self) -> NDArray[Any]:
        """Starts all games; gives the first observations [B, ...]."""
        self.start()
        return self.receive().observations

    def step(self, actions: NDArray[np.integer]) -> Step:
        """Takes one action [N] in every environment; where a game has just ended, the action is ignored."""
        self.send_all(actions)
        return self.receive()

    def start(self) -> None:
        """Starts all games; `receive` gives the first observations too, as steps that are not valid."""
        self._tracker = EpisodeTracker(self.n_envs, resetting=True)
        self._cut[:] = False
        self._simulation.reset(self._all_ids)

    def send_all(self, actions: NDArray[np.integer]) -> None:
        """Gives one action [N] to every environment; `receive` gives what came of them."""
        self.send(actions, self._all_ids)

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B] to environments that were received; `receive` gives what came of them."""
        if np.count_nonzero(self._cut) and np.count_nonzero(cut := self._cut[env_ids]):
            self._cut[env_ids] = False
            self._reset_later(env_ids[cut])
            env_ids, actions = env_ids[~cut], actions[~cut]
        if len(env_ids):
            self._simulation.send(actions, env_ids)

    def receive(self, n_batches: int = 1) -> Step:
        """Waits for the next B environments to finish their step; one thread at a time, while others run on.

        Args:
            n_batches: so many times B, if they do not step all at once.
        """
        arrival = self._simulation.receive() if len(self._to_reset) < self.n_envs else None
        if arrival is not None and n_batches > 1:
            arrival = joined([arrival, *(self._simulation.receive() for _ in range(n_batches - 1))])
        if len(self._to_reset):
            arrival = self._with_resets(arrival)
        assert arrival is not None
        env_ids, observations, rewards, terminated, truncated, elapsed, lives = arrival
        ended = terminated | truncated
        if self.spec.limit_agent_steps is not None:
            cut = (elapsed >= self.spec.limit_agent_steps) > ended  # there, and not over by itself
            if np.count_nonzero(cut):
                self._cut[env_ids] |= cut
                truncated, ended = truncated | cut, ended | cut
        valid, episodes = self._tracker.update(env_ids, rewards, ended)
        if lives is not None and self.config.life_loss_terminal:
            terminated = terminated | self._tracker.lost_life(env_ids, lives, valid)
        if self._states is not None:
            observations = observations[:, np.newaxis] == self._states  # one-hot
        if self.spec.channels_last:
            observations = np.ascontiguousarray(np.moveaxis(observations, -1, 1))
        if self.config.observed is not None:
            observations = observations[:, self.config.observed]
        if self.config.reward_clip is not None:
            rewards = np.clip(rewards, -self.config.reward_clip, self.config.reward_clip)
        return Step(env_ids, observations, rewards, terminated, truncated, valid, episodes)

    def _reset_later(self, env_ids: NDArray[np.int32]) -> None:
        """Resets environments whose games the simulation believes to go on: the phantom step, as after other ends."""
        if self._lock_step:  # EnvPool orders a batch by the places in one call: two calls at once would mix them
            self._to_reset = env_ids
        else:
            self._simulation.reset(env_ids)

    def _with_resets(self, stepped: Arrival | None) -> Arrival:
        """What the environments brought that stepped, and those that were to be reset, in the order of their ids."""
        self._simulation.reset(self._to_reset)
        self._to_reset = self._all_ids[:0]
        reset = self._simulation.receive()
        if stepped is None:
            return reset
        order = np.argsort(np.concatenate([stepped.env_ids, reset.env_ids]))
        arrays = zip(stepped[:-1], reset[:-1], strict=True)  # Atari keeps its own limit: nobody has lives here
        return Arrival(*(np.concatenate(pair)[order] for pair in arrays))

    def frames(self) -> NDArray[np.uint8]:
        """The pictures of environment 0, [H, W, 3]; only with `render=True`.

        Raises:
            ConfigError: the environment has no pictures.
        """
        return self._simulation.picture()

    def close(self) -> None:
        """Ends the simulation's threads or processes."""
        self._simulation.close()
