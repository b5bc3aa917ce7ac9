"""What the tests of several algorithms share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.rollout import Rollout


@pytest.fixture
def naive_gradient() -> Callable[[ActorCritic, Rollout, Any], tuple[Tensor, Tensor]]:
    """The actor-critic loss of a rollout and its gradient [P], sample by sample, with n-step returns."""
    return _naive_gradient


def _naive_gradient(network: ActorCritic, rollout: Rollout, options: Any) -> tuple[Tensor, Tensor]:
    batch = rollout.batch()
    rewards, terminated, truncated, valid = batch.rewards, batch.terminated, batch.truncated, batch.valid
    n_steps, n_envs = rewards.shape
    total, n_valid = torch.zeros(()), 0
    for b in range(n_envs):
        state, steps = rollout.state[b : b + 1], []
        for t in range(n_steps + 1):
            log_probs, value, state = network(rollout.observations[t, b : b + 1], state)
            steps.append((log_probs, value))
            if t < n_steps and not valid[t, b]:  # a new game
                state = network.initial_state(1)
        for t in range(n_steps):
            if not valid[t, b]:
                continue
            n_valid += 1
            target, discount = 0.0, 1.0
            for k in range(t, n_steps):
                target += discount * float(rewards[k, b])
                discount *= options.gamma
                if terminated[k, b]:
                    break
                if truncated[k, b] or k == n_steps - 1:
                    target += discount * float(steps[k + 1][1].detach())
                    break
            log_probs, value = steps[t]
            advantage = target - float(value.detach())
            entropy = -(log_probs.exp() * log_probs).sum()
            total = total - log_probs[0, rollout.actions[t, b]] * advantage - options.entropy_weight * entropy
            total = total + options.value_weight * (target - value[0]) ** 2
    total = total / {"sum": 1, "mean": n_valid, "mean_over_envs": n_envs}[options.loss_reduction]
    gradient = torch.autograd.grad(total, list(network.parameters()))
    return total.detach(), torch.cat([part.flatten() for part in gradient])
