"""What simulates environments, one face over EnvPool and Gymnasium: actions in, what came of them out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from a3c_bench.envs.spec import EnvSpec


class Arrival(NamedTuple):
    """What one step of B environments brought, or their reset; arrays are [B]."""

    env_ids: NDArray[np.int32]
    observations: NDArray[Any]  # [B, ...], as they are shown
    rewards: NDArray[np.float32]  # 0 for a reset
    terminated: NDArray[np.bool_]  # the game is over
    truncated: NDArray[np.bool_]  # the environment's own time limit ended the game, which is not over
    elapsed: NDArray[np.int32]  # agent steps since the reset, 0 for a reset
    lives: NDArray[Any] | None = None  # Atari's


def joined(arrivals: Sequence[Arrival]) -> Arrival:
    """Several as one, in their order."""
    parts: list[Any] = [None if part[0] is None else np.concatenate(part) for part in zip(*arrivals, strict=True)]
    return Arrival(*parts)


class Simulation(Protocol):
    """N environments. After the end of a game, the next action that an environment gets resets it and is ignored."""

    def reset(self, env_ids: NDArray[np.int32]) -> None:
        """Begins new games; `receive` gives their first observations."""

    def send(self, actions: NDArray[np.integer], env_ids: NDArray[np.int32]) -> None:
        """Gives actions [B] to environments that were received; `receive` gives what came of them."""

    def receive(self) -> Arrival:
        """Waits for the first B to have finished; with B = N for all that were sent, in the order of their sending."""

    def picture(self) -> NDArray[np.uint8]:
        """Environment 0, [H, W, 3]; only if it was made to render.

        Raises:
            ConfigError: it cannot be drawn.
        """

    def close(self) -> None:
        """Ends the threads or processes."""


# (spec, a seed for each of N environments, threads or processes at most, whether to render, B)
Simulate = Callable[[EnvSpec, Sequence[int], int, bool, int], Simulation]
