"""Q actor-critic: a policy, and beside it Q(s, .) where other actor-critics have V(s) (`advantage=q`)."""

from torch import Tensor
from torch.nn import functional as F

from a3c_bench.core.networks import ActorCritic


class QActorCritic(ActorCritic):
    """pi(. | s) and Q(s, .) for a batch of observations, on the layers of an actor-critic.

    Whoever asks it for V gets V(s) = sum_b pi(b | s) Q(s, b): a return that goes on beyond a rollout ends with that.
    """

    values_actions = True

    def unroll_q(self, observations: Tensor, state: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """As `unroll`, with Q [T, B, A] in place of V [T, B]."""
        log_probs, q = self._policy_and_q(*self._unrolled(observations, state, ends))
        shape = (*observations.shape[:2], -1)
        return log_probs.view(shape), q.view(shape)

    def _heads(self, features: Tensor, value_features: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, q = self._policy_and_q(features, value_features)
        return log_probs, mean_q(log_probs, q)

    def _policy_and_q(self, features: Tensor, value_features: Tensor) -> tuple[Tensor, Tensor]:  # [N, A] each
        return F.log_softmax(self.policy_head(features), dim=-1), self.value_head(value_features)


def mean_q(log_probs: Tensor, q: Tensor) -> Tensor:
    """sum_b pi(b | s) Q(s, b), from both [..., A]."""
    return (log_probs.exp() * q).sum(-1)
