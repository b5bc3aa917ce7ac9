"""Whole games: their unclipped returns and lengths, whatever is learnt from."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Moment(NamedTuple):
    """Where the whole run stood."""

    frames: int
    agent_steps: int
    wall_seconds: float  # of training


class Episode(NamedTuple):
    """One finished game."""

    env_id: int
    episode_return: float  # unclipped
    episode_length: int  # agent steps
    ended: Moment | None = None  # None: at the step that is counted with it


class EpisodeTracker:
    """Adds up rewards per environment until its game ends, and knows which steps are phantoms.

    EnvPool resets on the step after a game's end: that step ignores its action and is nobody's experience. Steps may
    arrive for any subset of the environments, as in asynchronous mode.

    Args:
        n_envs: N.
        resetting: the first step of every environment is its reset.
    """

    def __init__(self, n_envs: int, resetting: bool = False) -> None:
        self._returns = np.zeros(n_envs, dtype=np.float64)
        self._lengths = np.full(n_envs, -1 if resetting else 0)  # -1: the next step of this environment is the reset
        self._lives = np.zeros(n_envs, dtype=np.int64)

    def update(
        self, env_ids: NDArray[np.int32], rewards: NDArray[np.float32], game_over: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], list[Episode]]:
        """Takes one step of the environments `env_ids` [B].

        Args:
            rewards: [B], unclipped.
            game_over: [B], the game ended or was truncated at this step.

        Returns:
            valid [B], False for phantom steps, and the games that ended.
        """
        ids = env_ids.astype(np.intp)  # once, and not at each look-up
        self._returns[ids] += rewards
        lengths = self._lengths[ids] + 1
        self._lengths[ids] = lengths
        episodes: list[Episode] = []
        for env_id in env_ids[game_over].tolist() if np.count_nonzero(game_over) else ():
            episodes.append(Episode(env_id, float(self._returns[env_id]), int(self._lengths[env_id])))
            self._returns[env_id] = 0.0
            self._lengths[env_id] = -1
        return lengths > 0, episodes

    def lost_life(
        self, env_ids: NDArray[np.int32], lives: NDArray[np.integer], valid: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Whether each of the environments [B] lost a life in this step; the reset's new lives are no loss."""
        lost = valid & (lives < self._lives[env_ids])
        self._lives[env_ids] = lives
        return lost
