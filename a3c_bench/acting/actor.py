"""Acting: an environment batch under a policy, a rollout at a time."""

from collections import deque

import torch

from a3c_bench.acting.policy import AS_WRITTEN, Policy
from a3c_bench.core.compiled import Compute
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.rollout import Rollout
from a3c_bench.core.transfer import Transfer
from a3c_bench.envs import VectorEnv
from a3c_bench.runtime.ledger import Ledger


class Actor:
    """Steps B environments under a network, and carries observations and LSTM state from rollout to rollout.

    Args:
        envs: B of them; closed by whoever made them.
        network: chooses the actions.
        generator: draws them.
        t_max: steps of a rollout.
        device: of the network.
        ledger: gets counts and times.
        end_with_episode: a rollout ends early when an episode ends, as in A3C; only for one environment.
        n_rollouts: that are filled by turns: the last one stays as it is until so many more have been begun.
        values_every: V of what it sees is kept in one rollout in so many; 0: in none.
        values_end: the bootstrap is the network's; else it is left to who learns.
        compute: how the policy runs.
    """

    def __init__(
        self,
        envs: VectorEnv,
        network: ActorCritic,
        generator: torch.Generator,
        t_max: int,
        device: torch.device,
        ledger: Ledger,
        end_with_episode: bool = False,
        n_rollouts: int = 1,
        values_every: int = 0,
        values_end: bool = True,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        self._envs = envs
        self._policy = Policy(network, generator, compute=compute)
        self._to_device = Transfer(device)
        self._ledger = ledger
        self._end_with_episode = end_with_episode and envs.n_envs == 1
        shapes = (envs.observation_shape, envs.observation_dtype, envs.n_actions)
        self._rollouts = deque(Rollout(t_max, envs.n_envs, *shapes, device) for _ in range(n_rollouts))
        self._values_every = values_every
        self._values_end = values_end
        self._n_begun = 0  # rollouts
        self._observations = torch.from_numpy(envs.reset()).to(device)
        self._state = network.initial_state(envs.n_envs)

    @property
    def rollout(self) -> Rollout:
        """The last one."""
        return self._rollouts[0]

    @torch.no_grad()
    def act(self) -> Rollout:
        """Takes up to t_max steps in every environment, and values the states that follow.

        A first step in which every environment was reset is left out: it is nobody's experience.
        """
        self._rollouts.rotate()
        rollout, ledger, timer = self.rollout, self._ledger, self._ledger.timer
        rollout.start(self._observations, self._state)
        rollout.has_values = self._values_every > 0 and self._n_begun % self._values_every == 0
        self._n_begun += 1
        while rollout.length < rollout.t_max:
            t = rollout.length
            choice = self._policy(rollout.observations[t], self._state, rollout.has_values)
            if rollout.has_values:
                rollout.values[t] = choice.values
            rollout.log_probs[t], rollout.actions[t], self._state = choice.log_probs, choice.actions, choice.state
            stamp = ledger.stamp()
            actions = choice.actions.cpu().numpy()
            timer.lap("predict")
            step = self._envs.step(actions)
            timer.lap("simulate")
            n_valid = int(step.valid.sum())
            ledger.count(n_valid, step.episodes)
            if n_valid < len(step.valid) and self._state.numel():  # new games have begun
                self._state[torch.from_numpy(~step.valid)] = 0.0
            if n_valid == 0 and t == 0:
                rollout.start(self._to_device("observations", step.observations), self._state)
                continue
            rollout.add(stamp, step.rewards, step.terminated, step.truncated, step.valid)
            rollout.observations[t + 1].copy_(self._to_device("observations", step.observations))
            if self._end_with_episode and (step.terminated[0] or step.truncated[0]):
                break
        self._observations = rollout.observations[rollout.length]
        rollout.end_state = self._state
        if self._values_end:
            rollout.bootstrap = self._policy.value(self._observations, self._state)  # leaves the state as it is
        rollout.complete_at = ledger.theta_version
        timer.lap("predict")
        return rollout
