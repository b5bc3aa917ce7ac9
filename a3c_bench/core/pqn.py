"""Q-learning from rollouts in several passes, without replay and target network (Gallici et al. 2025): PQN's targets
and its loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from a3c_bench.core.advantages import Estimate, gae
from a3c_bench.core.compiled import AS_WRITTEN, Compute
from a3c_bench.core.learning import Learner
from a3c_bench.core.networks import EpsilonGreedy
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.q_learning import of_actions, q_loss
from a3c_bench.core.rollout import Batch


def q_lambda(
    rewards: Tensor, max_q: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, lambda_: float
) -> Estimate:
    """Peng's Q(lambda): `returns` are the targets G [T, B] of Q(s_t, a_t).

        G_t = r_t                                                                where s_{t+1} is terminal
        G_t = r_t + gamma max_b Q(s_{t+1}, b)                                    where a time limit cut, and at the end
        G_t = r_t + gamma (lambda G_{t+1} + (1 - lambda) max_b Q(s_{t+1}, b))    else

    Traces are not cut after an exploratory action. These are the returns of `gae` with max Q as V.

    Args:
        rewards: [T, B].
        max_q: [T + 1, B], max_b Q(s_t, b), without gradient; the last row is of the state after the last step.
        terminated: see `core.advantages`.
        truncated: likewise.
        gamma: discount.
        lambda_: 0: one-step Q-learning; 1: the longest return that the rollout allows.
    """
    return gae(rewards, max_q, terminated, truncated, gamma, lambda_)


class PQNBackward(NamedTuple):
    """What `PQNLearner.differentiate` found besides the gradient."""

    loss: Tensor  # scalar
    td_errors: Tensor  # [T, B], G - Q(s_t, a_t)
    chosen_q: Tensor  # [T, B], Q(s_t, a_t)
    targets: Tensor  # [T, B], G
    log_probs: Tensor  # [T, B, A], of the epsilon-greedy policy as it would act now
    values: Tensor  # [T, B], max Q
    mask: Tensor  # [T, B] bool, the samples that were learnt from
    divisor: Tensor  # scalar: their number, by which the loss was divided

    def figures(self) -> dict[str, Tensor]:
        """For the record of the update."""
        weights = self.mask.to(self.td_errors.dtype)
        mean = (weights * self.td_errors.abs()).sum() / weights.sum().clamp(min=1.0)
        return {"loss": self.loss, "td_error": mean}

    @property
    def fit(self) -> tuple[Tensor, Tensor, Tensor]:
        """Q of what was done, targets and mask: how well the former foretold the latter."""
        return self.chosen_q, self.targets, self.mask


class PQNLearner(Learner):
    """Learns Q from minibatches (`core.minibatches`) of rollouts: the mean of (G - Q(s, a))^2 / 2.

    Args:
        policy: of the network, at theta; its epsilon is that of who acted.
        parameters: the network's.
        optimizer: of them.
        max_grad_norm: None: the gradient is not clipped.
        compute: how the callables run.
    """

    def __init__(
        self,
        policy: EpsilonGreedy,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None = None,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        super().__init__(parameters, optimizer, max_grad_norm, compute)
        self.policy = policy
        self._loss = compute.traced(self._loss_once)
        self._backward = compute.fixed(self._backward_once, parameters.gradients.device)

    def differentiate(self, batch: Batch, targets: Tensor) -> PQNBackward:
        """The gradient of the loss over the samples [T, B] of a minibatch, of which these are the targets."""
        return self._backward(batch, targets)

    def _backward_once(self, batch: Batch, targets: Tensor) -> PQNBackward:
        self.parameters.zero_gradients()
        found = self._loss(batch, targets)
        found.loss.backward()  # type: ignore[no-untyped-call]
        return found._replace(loss=found.loss.detach())

    def _loss_once(self, batch: Batch, targets: Tensor) -> PQNBackward:
        shape, mask = batch.rewards.shape, batch.valid
        q = self.policy.network(batch.observations.flatten(0, 1)).view(*shape, -1)  # [T, B, A]
        chosen_q = of_actions(q, batch.actions)
        td_errors = targets - chosen_q
        weights = mask.to(q.dtype)
        loss = q_loss(td_errors, weights, None, "sum") / weights.sum().clamp(min=1.0)
        q = q.detach()
        log_probs, max_q = self.policy.log_probs(q), q.amax(-1)
        return PQNBackward(loss, td_errors.detach(), chosen_q.detach(), targets, log_probs, max_q, mask, weights.sum())
