"""Exploring: an environment batch under an epsilon-greedy policy, into a replay."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from a3c_bench.acting.policy import Exploration
from a3c_bench.core.compiled import AS_WRITTEN, Compute
from a3c_bench.core.lag import Stamp
from a3c_bench.core.networks import QNetwork
from a3c_bench.core.q_learning import ValueCheck
from a3c_bench.core.replay import Replay
from a3c_bench.envs import Step, VectorEnv
from a3c_bench.runtime.ledger import Ledger


class Chosen(NamedTuple):
    """Actions that are on their way."""

    actions: NDArray[np.int64]  # [B]
    max_q: NDArray[np.float32]  # [B], of the states in which they were chosen
    stamp: Stamp  # of the network that chose them


def counted(step: Step, max_q: NDArray[np.floating], check: ValueCheck, ledger: Ledger) -> int:
    """Tells the ledger of a step and of the games that ended with it; gives its agent steps (phantoms left out).

    Args:
        step: of all environments, in order.
        max_q: [B], of the states before it.
        check: compares max Q with the returns of games that end.
        ledger: told.
    """
    n_valid = int(np.count_nonzero(step.valid))
    ledger.count(n_valid, step.episodes)
    total_q, total_return, n_states = check.add(max_q, step.rewards, step.terminated, step.truncated, step.valid)
    if n_states:
        ledger.ratio("max_q", total_q, n_states)
        ledger.ratio("discounted_return", total_return, n_states)
    return n_valid


class Explorer:
    """Steps B environments epsilon-greedily and puts what comes of it into a replay.

    Args:
        envs: B of them; closed by whoever made them.
        network: gives Q.
        replay: of these environments, and perhaps of others.
        generator: decides when to explore, and how.
        gamma: of the returns that max Q is compared with.
        device: of the network.
        ledger: gets counts and times.
        first_env_id: of these environments in the replay.
        exclusively: entered while the replay is written to.
        compute: how the policy runs.
    """

    def __init__(
        self,
        envs: VectorEnv,
        network: QNetwork,
        replay: Replay,
        generator: np.random.Generator,
        gamma: float,
        device: torch.device,
        ledger: Ledger,
        first_env_id: int = 0,
        exclusively: AbstractContextManager[Any] | None = None,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        self._envs = envs
        self._policy = Exploration(network, generator, device, compute)
        self._replay = replay
        self._ledger = ledger
        self._env_ids = np.arange(first_env_id, first_env_id + envs.n_envs)
        self._own_ids = np.arange(envs.n_envs, dtype=np.int32)
        self._exclusively = exclusively or nullcontext()
        self._observations = envs.reset()
        self._started = False
        self._check = ValueCheck(envs.n_envs, gamma)

    def step(self, epsilon: float) -> int:
        """One step of every environment; gives the agent steps that it was (phantoms left out)."""
        return self.receive(self.send(epsilon))

    def send(self, epsilon: float) -> Chosen:
        """Chooses an action for every environment. Where they simulate by themselves, they do so from now on."""
        if not self._started:  # here and not before: a checkpoint may have been loaded into the replay meanwhile
            self._started = True
            with self._exclusively:
                self._replay.start(self._observations, self._env_ids)
        stamp = self._ledger.stamp()
        actions, max_q = self._policy(self._observations, epsilon)
        self._ledger.timer.lap("predict")
        self._envs.send(actions, self._own_ids)
        return Chosen(actions, max_q, stamp)

    def receive(self, chosen: Chosen) -> int:
        """Waits for what came of it and stores it; gives the agent steps that it was (phantoms left out)."""
        ledger, timer = self._ledger, self._ledger.timer
        actions, max_q, stamp = chosen
        step = self._envs.receive()
        timer.lap("simulate")
        n_valid = counted(step, max_q, self._check, ledger)
        outcome = (step.rewards, step.terminated, step.truncated, step.valid)
        with self._exclusively:
            self._replay.add(self._env_ids, step.observations, actions, *outcome, stamp, ledger.frames)
        self._observations = step.observations
        timer.lap("predict")
        return n_valid
