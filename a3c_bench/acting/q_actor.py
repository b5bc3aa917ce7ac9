"""Exploring without a replay: an environment batch under an epsilon-greedy policy, a rollout at a time."""

import numpy as np
import torch

from a3c_bench.acting.explorer import Chosen, counted
from a3c_bench.acting.policy import Exploration
from a3c_bench.core.networks import QNetwork
from a3c_bench.core.q_learning import ValueCheck
from a3c_bench.core.rollout import Rollout
from a3c_bench.envs import VectorEnv
from a3c_bench.runtime.ledger import Ledger


class QActor:
    """Steps B environments epsilon-greedily under a Q-network, and carries what they show from rollout to rollout.

    Its rollouts have no log-probabilities, values or bootstrap.

    Args:
        envs: B of them; closed by whoever made them. With one, a rollout ends early when an episode ends.
        network: gives Q.
        generator: decides when to explore, and how.
        t_max: steps of a rollout.
        gamma: of the returns that max Q is compared with.
        ledger: gets counts and times.
        draws_ahead: the first actions of the next rollout are drawn with the last of this one, as SARSA wants to know
            them: see `ahead`. Nobody draws them again.
    """

    def __init__(
        self,
        envs: VectorEnv,
        network: QNetwork,
        generator: np.random.Generator,
        t_max: int,
        gamma: float,
        ledger: Ledger,
        draws_ahead: bool = False,
    ) -> None:
        device = torch.device("cpu")
        self._envs = envs
        self._policy = Exploration(network, generator, device)
        self._ledger = ledger
        self._draws_ahead = draws_ahead
        self._check = ValueCheck(envs.n_envs, gamma)
        self._observations = envs.reset()
        self.rollout = Rollout(t_max, envs.n_envs, envs.observation_shape, envs.observation_dtype, 0, device)
        self.ahead: Chosen | None = None  # for what is seen after the last step of the rollout

    def act(self, epsilon: float) -> Rollout:
        """Takes up to t_max steps in every environment.

        A first step in which every environment was reset is left out: it is nobody's experience.
        """
        rollout, ended = self.rollout, False
        self._start()
        while rollout.length < rollout.t_max and not ended:
            chosen, self.ahead = self.ahead or self._choose(epsilon), None
            self._envs.send_all(chosen.actions)
            step = self._envs.receive()
            self._ledger.timer.lap("simulate")
            self._observations = step.observations
            n_valid = counted(step, chosen.max_q, self._check, self._ledger)
            if rollout.length == 0 and n_valid == 0:
                self._start()
                continue
            rollout.rows[rollout.length][0].actions.copy_(torch.from_numpy(chosen.actions))
            rollout.add(0, chosen.stamp, step.rewards, step.terminated, step.truncated, step.valid)
            rollout.observations[rollout.length].copy_(torch.from_numpy(step.observations))
            ended = len(step.valid) == 1 and bool(step.ended[0])
        if self._draws_ahead:
            self.ahead = self._choose(epsilon)
        rollout.complete_at = self._ledger.theta_version
        self._ledger.timer.lap("predict")
        return rollout

    def next_actions(self) -> torch.Tensor:
        """[T, B], what is done after each step of the rollout; of who draws ahead."""
        assert self.ahead is not None
        actions = self.rollout.actions[1 : self.rollout.length]
        return torch.cat([actions, torch.from_numpy(self.ahead.actions).unsqueeze(0)])

    def _start(self) -> None:
        self.rollout.start(torch.from_numpy(self._observations), self.rollout.state)

    def _choose(self, epsilon: float) -> Chosen:
        stamp = self._ledger.stamp()
        actions, max_q = self._policy(self._observations, epsilon)
        self._ledger.timer.lap("predict")
        return Chosen(actions, max_q, stamp)
