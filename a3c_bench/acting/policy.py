"""Policies: forward, draw, and what was drawn to main memory; whoever acts, acts by one of these."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.core.networks import ActorCritic, EpsilonGreedy, QNetwork, sample_actions


class Choice(NamedTuple):
    """What a policy does in B environments."""

    log_probs: Tensor  # [B, A]
    values: Tensor  # [B]; empty if nobody asked for them
    actions: Tensor  # [B], int64
    state: Tensor  # [B, S], of the network, after the step

    def on_host(self) -> "Choice":
        """The same in main memory."""
        return Choice(*(part.cpu() for part in self))


class Policy:
    """Draws actions from the probabilities of a network, or takes the likeliest.

    Args:
        network: gives them; it is asked as it is then.
        generator: draws; on the network's device.
        greedy: nothing is drawn.
    """

    def __init__(self, network: ActorCritic | EpsilonGreedy, generator: torch.Generator, greedy: bool = False) -> None:
        self.network = network
        self.generator = generator
        self._greedy = greedy

    @torch.no_grad()
    def __call__(self, observations: Tensor, state: Tensor, values: bool = True) -> Choice:
        """Actions for observations [B, ...] and a state [B, S] of the network, both on its device.

        Args:
            observations: of B environments.
            state: before the step.
            values: whether they are wanted; an actor-critic whose value has layers of its own is faster without.
        """
        if values or isinstance(self.network, EpsilonGreedy):
            log_probs, value, state = self.network(observations, state)
        else:
            log_probs, state = self.network.policy(observations, state)
            value = log_probs.new_empty(0)
        actions = log_probs.argmax(-1) if self._greedy else sample_actions(log_probs, self.generator)
        return Choice(log_probs, value, actions, state)


class Exploration:
    """Does what has the largest Q, or with probability epsilon anything.

    Args:
        network: gives Q.
        generator: decides when to explore, and how.
        device: of the network.
    """

    def __init__(self, network: QNetwork, generator: np.random.Generator, device: torch.device) -> None:
        self._network = network
        self._generator = generator
        self._device = device

    @torch.no_grad()
    def __call__(self, observations: NDArray[Any], epsilon: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Actions and max Q, [B] each, for observations [B, ...], all in main memory."""
        q = self._network(to_device(observations, self._device))
        max_q, greedy = q.max(-1)
        explores = self._generator.random(len(q)) < epsilon
        anything = self._generator.integers(q.shape[-1], size=len(q))
        return np.where(explores, anything, greedy.cpu().numpy()), max_q.cpu().numpy()


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """As it is on a CPU; else copied through pinned memory, so that the thread need not wait."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
