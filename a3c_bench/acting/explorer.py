"""Exploring: an environment batch under an epsilon-greedy policy, into a replay."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from a3c_bench.acting.policy import Exploration
from a3c_bench.core.networks import QNetwork
from a3c_bench.core.q_learning import ValueCheck
from a3c_bench.core.replay import Replay
from a3c_bench.envs import VectorEnv
from a3c_bench.runtime.ledger import Ledger


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
    ) -> None:
        self._envs = envs
        self._policy = Exploration(network, generator, device)
        self._replay = replay
        self._ledger = ledger
        self._env_ids = np.arange(first_env_id, first_env_id + envs.n_envs)
        self._exclusively = exclusively or nullcontext()
        self._observations = envs.reset()
        self._started = False
        self._check = ValueCheck(envs.n_envs, gamma)

    def step(self, epsilon: float) -> int:
        """One step of every environment; gives the agent steps that it was (phantoms left out)."""
        ledger, timer = self._ledger, self._ledger.timer
        if not self._started:  # here and not before: a checkpoint may have been loaded into the replay meanwhile
            self._started = True
            with self._exclusively:
                self._replay.start(self._observations, self._env_ids)
        stamp = ledger.stamp()
        actions, max_q = self._policy(self._observations, epsilon)
        timer.lap("predict")
        step = self._envs.step(actions)
        timer.lap("simulate")
        n_valid = int(step.valid.sum())
        ledger.count(n_valid, step.episodes)
        outcome = (step.rewards, step.terminated, step.truncated, step.valid)
        total_q, total_return, n_states = self._check.add(max_q, *outcome)
        ledger.ratio("max_q", total_q, n_states)
        ledger.ratio("discounted_return", total_return, n_states)
        with self._exclusively:
            frames = ledger.stamp().frames
            self._replay.add(self._env_ids, step.observations, actions, *outcome, stamp, frames)
        self._observations = step.observations
        timer.lap("predict")
        return n_valid
