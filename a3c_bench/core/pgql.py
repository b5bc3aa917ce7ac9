"""The Q-learning half of PGQL: the Bellman residual of the Q-values that a policy implies (O'Donoghue et al. 2017).

Where policy gradient with entropy alpha H has come to rest, pi(a | s) is proportional to exp(Q(s, a) / alpha): from pi
and V one then reads Q off. Read off before, it is an estimate that Q-learning can improve:

    Q~(s, a) = alpha (log pi(a | s) + H(pi(. | s))) + V(s)
    delta    = r + discount max_b Q~(s', b) - Q~(s, a)
    d theta  = E[delta grad log pi(a | s)],   d w = E[delta grad V(s)]

delta is a constant in both: this is no gradient of delta^2, with which a small alpha would leave the policy as it is.
"""

import torch
from torch import Tensor

from a3c_bench.core.compiled import AS_WRITTEN, Compute
from a3c_bench.core.learning import Learner, QBackward
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.q_learning import q_targets
from a3c_bench.core.replay import Sample


def implied_q(log_probs: Tensor, values: Tensor, alpha: float) -> Tensor:
    """Q~(s, .) [B, A] of log-probabilities [B, A] and values [B]; their mean under the policy is V(s)."""
    entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
    return alpha * (log_probs + entropy) + values.unsqueeze(-1)


class ResidualLearner(Learner):
    """Learns a policy and its value from a replay.

    Args:
        network: at theta.
        parameters: the network's.
        optimizer: of them.
        alpha: the entropy weight of the actor-critic beside it.
        value_weight: c of its c (R - V)^2, whose gradient is -2 c (R - V) grad V: V learns from delta by 2 c, too.
        reduction: "sum" or "mean" over the batch.
        max_grad_norm: None: the gradient is not clipped.
        compute: how the callables run.
    """

    def __init__(
        self,
        network: ActorCritic,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        *,
        alpha: float,
        value_weight: float,
        reduction: str,
        max_grad_norm: float | None = None,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        super().__init__(parameters, optimizer, max_grad_norm, compute)
        self.network = network
        self._alpha = alpha
        self._value_weight = value_weight
        self._reduction = reduction
        self._loss = compute.traced(self._loss_once)
        self._backward = compute.fixed(self._backward_once, parameters.gradients.device)

    def differentiate(self, sample: Sample) -> QBackward:
        """The gradient of B steps from a replay, on the network's device, that a step of the optimiser goes against."""
        return self._backward(
            sample.observations, sample.actions, sample.rewards, sample.discounts, sample.next_observations
        )

    def _backward_once(self, *sample: Tensor) -> QBackward:
        self.parameters.zero_gradients()
        loss, td_errors = self._loss(*sample)
        loss.backward()  # type: ignore[no-untyped-call]
        return QBackward(loss.detach(), td_errors)

    def _loss_once(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, discounts: Tensor, next_observations: Tensor
    ) -> tuple[Tensor, Tensor]:
        nothing = self.network.initial_state(len(actions))
        log_probs, values, _ = self.network(observations, nothing)
        with torch.no_grad():
            next_log_probs, next_values, _ = self.network(next_observations, nothing)
            targets = q_targets(rewards, discounts, implied_q(next_log_probs, next_values, self._alpha))
            q = implied_q(log_probs, values, self._alpha)
            td_errors = targets - q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        log_pi = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        losses = -td_errors * (log_pi + 2.0 * self._value_weight * values)  # its value means nothing, its gradient does
        return losses.sum() if self._reduction == "sum" else losses.mean(), td_errors
