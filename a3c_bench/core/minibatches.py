"""Minibatches: parts of one rollout, shuffled anew for each pass over it.

What follows a step (psi, returns) is estimated of the whole rollout, once; each minibatch is then a `Batch` of its own
and its part of the estimates.
"""

import torch
from torch import Tensor

from a3c_bench.core.advantages import Estimate
from a3c_bench.core.rollout import Batch


def shuffled(n_steps: int, n_envs: int, n_minibatches: int, whole_envs: bool, generator: torch.Generator) -> Tensor:
    """The places of a rollout's samples in its minibatches, each in one of them: int64 [n_minibatches, T, B].

    A place is t * n_envs + i: of step t of environment i.

    Args:
        n_steps: of the rollout.
        n_envs: of it.
        n_minibatches: divides the samples, or the environments.
        whole_envs: a minibatch has all steps of its environments, in order, as an LSTM needs them: T is n_steps. Else
            it has samples from anywhere, as T = 1 step.
        generator: draws; its device is that of the places.
    """
    if not whole_envs:
        order = torch.randperm(n_steps * n_envs, generator=generator, device=generator.device)
        return order.view(n_minibatches, 1, -1)
    envs = torch.randperm(n_envs, generator=generator, device=generator.device).view(n_minibatches, 1, -1)
    return envs + n_envs * torch.arange(n_steps, device=generator.device).view(1, -1, 1)


def at(places: Tensor, batch: Batch, psi: Estimate) -> tuple[Batch, Estimate]:
    """The part of a rollout, and of what was estimated of it, that is at these places [T, B]."""

    def part(whole: Tensor) -> Tensor:
        return whole.flatten(0, 1)[places]

    columns = places[0] % batch.rewards.shape[1]  # only the first step's state matters, and only to an LSTM
    chosen = Batch(
        part(batch.observations),
        batch.state[columns],
        part(batch.actions),
        part(batch.log_probs),
        part(batch.rewards),
        part(batch.terminated),
        part(batch.truncated),
        part(batch.valid),
        batch.bootstrap[columns],
        values=None if batch.values is None else part(batch.values),
    )
    return chosen, Estimate(*(part(whole) for whole in psi))


def mask_of(places: Tensor, mask: Tensor, n_steps: int, n_envs: int) -> Tensor:
    """Which samples of a rollout are those of a minibatch that its mask [T, B] has, as bool [n_steps, n_envs]."""
    whole = mask.new_zeros(n_steps * n_envs)
    whole[places] = mask
    return whole.view(n_steps, n_envs)
