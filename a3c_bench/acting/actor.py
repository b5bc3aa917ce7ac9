"""Acting: environments under a policy, a rollout at a time.

    one part      all environments step, then the policy answers all of them
    two halves    simulate:  | 1 |  2  | 1 |  2  | 1 | ...     one half simulates while the policy answers the other:
                  predict:       | 1 | 2 | 1 | 2 | ...         predictions take no time where simulation takes longer

Halves end a rollout together, and theta acts as it is in both of them: lag is what it is without them.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.acting.policy import Policy
from a3c_bench.core.compiled import AS_WRITTEN, Compute
from a3c_bench.core.lag import Stamp
from a3c_bench.core.networks import ActorCritic, EpsilonGreedy
from a3c_bench.core.rollout import Rollout
from a3c_bench.core.transfer import Transfer
from a3c_bench.envs import Step, VectorEnv
from a3c_bench.runtime.ledger import Ledger


class _Part:
    """Environments that step together.

    Args:
        number: of the part.
        envs: of it; they have been started.
        state: [b, S], of the network.
        device: that acts.
    """

    def __init__(self, number: int, envs: VectorEnv, state: Tensor, device: torch.device) -> None:
        self.number = number
        self.envs = envs
        self.state = state
        self.actions: NDArray[np.int64]  # [b], that the environments take
        self.stamp: Stamp  # when these were chosen
        self.step: Step | None = None  # that has come of them and is in no rollout yet
        self.to_device = Transfer(device)


class Actor:
    """Steps B environments under a network, and carries observations and LSTM state from rollout to rollout.

    Args:
        envs: B of them; closed by whoever made them. Several batches of environments, B in all, take turns.
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
        witness: is told every step of a part, phantoms too: the actions [b], what came of them, and when these were
            chosen.
        rank: see `part` of `Policy`.
    """

    def __init__(
        self,
        envs: VectorEnv | Sequence[VectorEnv],
        network: ActorCritic | EpsilonGreedy,
        generator: torch.Generator,
        t_max: int,
        device: torch.device,
        ledger: Ledger,
        end_with_episode: bool = False,
        n_rollouts: int = 1,
        values_every: int = 0,
        values_end: bool = True,
        compute: Compute = AS_WRITTEN,
        witness: Callable[[NDArray[np.int64], Step, Stamp], None] | None = None,
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        batches = [envs] if isinstance(envs, VectorEnv) else list(envs)
        ends = [sum(batch.n_envs for batch in batches[: i + 1]) for i in range(len(batches))]
        first, n_envs = batches[0], ends[-1]
        self._policy = Policy(network, generator, compute=compute, part=rank)
        self._ledger = ledger
        self._end_with_episode = end_with_episode and n_envs == 1
        self._values_every = values_every
        self._values_end = values_end
        self._witness = witness
        self._n_begun = 0  # rollouts
        for batch in batches:
            batch.start()
        self._parts = [_Part(i, batch, network.initial_state(batch.n_envs), device) for i, batch in enumerate(batches)]
        columns = [slice(end - batch.n_envs, end) for batch, end in zip(batches, ends, strict=True)]
        shapes = (first.observation_shape, first.observation_dtype, first.n_actions)
        self._rollouts = deque(Rollout(t_max, n_envs, *shapes, device, columns) for _ in range(n_rollouts))
        self._observations = torch.cat([torch.from_numpy(batch.receive().observations) for batch in batches]).to(device)

    @property
    def rollout(self) -> Rollout:
        """The last one."""
        return self._rollouts[0]

    @property
    def observations(self) -> Tensor:
        """[B, ...], what is seen now: before the first rollout the first observation of every game."""
        return self._observations

    @torch.no_grad()
    def act(self) -> Rollout:
        """Takes up to t_max steps in every environment, and values the states that follow.

        A first step in which every environment was reset is left out: it is nobody's experience.
        """
        self._rollouts.rotate()
        rollout, ended = self.rollout, False
        rollout.has_values = self._values_every > 0 and self._n_begun % self._values_every == 0
        self._n_begun += 1
        self._begin()
        while rollout.length < rollout.t_max and not ended:
            t = rollout.length
            for part in self._parts:
                step = self._receive(part)
                rollout.add(part.number, part.stamp, step.rewards, step.terminated, step.truncated, step.valid)
                self._show(part, step, t + 1)
                part.step = None
                ended = self._end_with_episode and bool(step.terminated[0] or step.truncated[0])
                if t + 1 < rollout.t_max and not ended:
                    self._send(part, t + 1)
        self._observations = rollout.observations[rollout.length]
        rollout.end_state = self._state()
        if self._values_end:
            rollout.bootstrap = self._policy.value(self._observations, rollout.end_state)  # leaves the state as it is
        rollout.complete_at = self._ledger.theta_version
        self._ledger.timer.lap("predict")
        return rollout

    def _begin(self) -> None:
        """Lets all parts take the first step of a rollout, which is more than a reset for somebody."""
        rollout = self.rollout
        rollout.start(self._observations, self._state())
        while True:
            for part in self._parts:
                self._send(part, 0)
            if any(self._receive(part).valid.any() for part in self._parts):  # asks no further than it must
                return
            for part in self._parts:
                self._show(part, self._receive(part), 0)
                part.step = None
            rollout.start(rollout.observations[0], self._state())

    def _send(self, part: _Part, t: int) -> None:
        """Chooses a part's actions for step t of the rollout, and lets its environments take them."""
        rollout = self.rollout
        row = rollout.rows[t][part.number]
        choice = self._policy(row.observations, part.state, rollout.has_values)
        if rollout.has_values:
            row.values.copy_(choice.values)
        row.log_probs.copy_(choice.log_probs)
        row.actions.copy_(choice.actions)
        part.state = choice.state
        part.stamp = self._ledger.stamp()
        part.actions = choice.actions.cpu().numpy()
        self._ledger.timer.lap("predict")
        part.envs.send_all(part.actions)

    def _receive(self, part: _Part) -> Step:
        """What has come of a part's actions; waits for it the first time."""
        if part.step is None:
            part.step = step = part.envs.receive()
            self._ledger.timer.lap("simulate")
            n_valid = int(step.valid.sum())
            self._ledger.count(n_valid, step.episodes)
            if n_valid < len(step.valid) and part.state.numel():  # new games have begun
                part.state[torch.from_numpy(~step.valid)] = 0.0
            if self._witness is not None:
                self._witness(part.actions, step, part.stamp)
        return part.step

    def _show(self, part: _Part, step: Step, t: int) -> None:
        """Puts what a part sees before step t into the rollout."""
        rollout = self.rollout
        place = rollout.rows[t][part.number].observations if t < rollout.t_max else rollout.ends[part.number]
        place.copy_(part.to_device("observations", step.observations))

    def _state(self) -> Tensor:
        """[B, S], of the network."""
        states = [part.state for part in self._parts]
        return states[0] if len(states) == 1 else torch.cat(states)
