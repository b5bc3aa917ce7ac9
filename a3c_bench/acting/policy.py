"""Policies: forward, draw, and what was drawn to main memory; whoever acts, acts by one of these."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.core.compiled import AS_WRITTEN, Compute, padded, rounded_up
from a3c_bench.core.networks import ActorCritic, EpsilonGreedy, QNetwork, sample_actions
from a3c_bench.core.plain import plain_forward, plain_q
from a3c_bench.core.transfer import Transfer


class Choice(NamedTuple):
    """What a policy does in B environments."""

    log_probs: Tensor  # [B, A]
    values: Tensor  # [B]; empty if nobody asked for them
    actions: Tensor  # [B], int64
    state: Tensor  # [B, S], of the network, after the step

    def on_host(self) -> "Choice":
        """The same in main memory, by one copy."""
        if self.actions.device.type == "cpu":
            return self
        columns = (self.log_probs, self.values.unsqueeze(-1), self.actions.unsqueeze(-1), self.state)
        rows = torch.cat([part.float() for part in columns], dim=-1).cpu()  # a float32 holds an action without loss
        log_probs, values, actions, state = torch.split(rows, [part.shape[-1] for part in columns], dim=-1)
        return Choice(log_probs, values.squeeze(-1), actions.squeeze(-1).long(), state)


class Policy:
    """Draws actions from the probabilities of a network, or takes the likeliest.

    Args:
        network: gives them; it is asked as it is then.
        generator: draws; on the network's device.
        greedy: nothing is drawn.
        compute: how the callables run.
        part: which of several parts of equal size of all environments this one acts in, and how many there are: each
            gets the draws that it would get if all were asked at once.
    """

    def __init__(
        self,
        network: ActorCritic | EpsilonGreedy,
        generator: torch.Generator,
        greedy: bool = False,
        compute: Compute = AS_WRITTEN,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.network = network
        self.generator = generator
        self._greedy = greedy
        self._part = part
        self._plain = None if compute.fixes_shapes else plain_forward(network)
        self._forward = compute.traced(self._forward_once)
        self._choose = compute.fixed(self._choose_once, generator.device, (generator,))
        self._value = compute.fixed(compute.traced(self._value_once), generator.device)

    def __call__(self, observations: Tensor, state: Tensor, values: bool = True) -> Choice:
        """Actions for observations [B, ...] and a state [B, S] of the network, both on its device.

        Args:
            observations: of B environments.
            state: before the step.
            values: whether they are wanted; an actor-critic whose value has layers of its own is faster without.
        """
        return self._choose(observations, state, values)

    def value(self, observations: Tensor, state: Tensor) -> Tensor:
        """V [B] of the same, where nothing is done."""
        return self._value(observations, state)

    @torch.no_grad()
    def _choose_once(self, observations: Tensor, state: Tensor, values: bool) -> Choice:
        log_probs, value, state = (self._plain or self._forward)(observations, state, values)
        actions = log_probs.argmax(-1) if self._greedy else sample_actions(log_probs, self.generator, *self._part)
        return Choice(log_probs, value, actions, state)

    def _forward_once(self, observations: Tensor, state: Tensor, values: bool) -> tuple[Tensor, Tensor, Tensor]:
        if values or isinstance(self.network, EpsilonGreedy):
            log_probs, value, state = self.network(observations, state)
        else:
            log_probs, state = self.network.policy(observations, state)
            value = log_probs.new_empty(0)
        return log_probs, value, state

    @torch.no_grad()
    def _value_once(self, observations: Tensor, state: Tensor) -> Tensor:
        value: Tensor = self.network(observations, state)[1]
        return value


class HostPolicy:
    """A policy whose questions and answers are in main memory.

    Args:
        policy: asked on its device.
        unit: batches are padded to a multiple of so many; 0: they are as they are.
    """

    def __init__(self, policy: Policy, unit: int) -> None:
        self._policy = policy
        self._unit = unit
        self._to_device = Transfer(policy.generator.device)

    def __call__(self, observations: NDArray[Any], state: NDArray[np.float32]) -> Choice:
        """What the policy chooses for observations [B, ...] and a state [B, S]."""
        n = len(observations)
        size = rounded_up(n, self._unit) if self._unit else n
        on_device = self._to_device("observations", padded(observations, size))
        choice = self._policy(on_device, self._to_device("state", padded(state, size))).on_host()
        return choice if size == n else Choice(*(part[:n] for part in choice))


class Exploration:
    """Does what has the largest Q, or with probability epsilon anything.

    Args:
        network: gives Q.
        generator: decides when to explore, and how.
        device: of the network.
        compute: how the callable runs.
    """

    def __init__(
        self,
        network: QNetwork,
        generator: np.random.Generator,
        device: torch.device,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        self._network = network
        self._generator = generator
        self._to_device = Transfer(device)
        self._plain = None if compute.fixes_shapes else plain_q(network)
        self._q = compute.fixed(compute.traced(self._q_once), device)

    def __call__(self, observations: NDArray[Any], epsilon: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Actions and max Q, [B] each, for observations [B, ...], all in main memory."""
        q = self._q(self._to_device("observations", observations)).cpu().numpy()  # one copy
        n_envs, n_actions = q.shape
        size = None if n_envs == 1 else n_envs  # the same number, and sooner, than in an array
        explores = self._generator.random(size) < epsilon
        anything = self._generator.integers(n_actions, size=size)
        return np.where(explores, anything, q.argmax(1)), q.max(1)

    @torch.no_grad()
    def _q_once(self, observations: Tensor) -> Tensor:
        q: Tensor = (self._plain or self._network)(observations)
        return q
