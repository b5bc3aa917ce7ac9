"""Proximal policy optimisation (Schulman et al. 2017): what is learnt from a minibatch whose psi has been estimated."""

from collections.abc import Callable

import torch
from torch import Tensor

from a3c_bench.core.advantages import Estimate
from a3c_bench.core.compiled import AS_WRITTEN, Compute
from a3c_bench.core.learning import Backward, Learner, n_beyond_clip
from a3c_bench.core.losses import actor_critic_loss
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.rollout import Batch

_SMALL = 1e-8  # beside the standard deviation that advantages are divided by, as in CleanRL


def normalised(advantages: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Advantages minus their mean, over their standard deviation (n - 1), of the samples of the mask; both [T, B].

    Args:
        advantages: [T, B].
        mask: [T, B] bool.
        total: makes sums [K] over these samples those over the samples of all ranks.
    """
    weights = mask.to(advantages.dtype)
    n_samples, summed = total(torch.stack([weights.sum(), (weights * advantages).sum()])).unbind()
    mean = summed / n_samples.clamp(min=1.0)
    (squares,) = total((weights * (advantages - mean).square()).sum().unsqueeze(0)).unbind()
    variance = squares / (n_samples - 1.0).clamp(min=1.0)
    return (advantages - mean) / (variance.sqrt() + _SMALL)


class PPOLearner(Learner):
    """Learns a policy and its value from minibatches (`core.minibatches`) of rollouts.

    Args:
        network: at theta.
        parameters: the network's.
        optimizer: of them.
        entropy_weight: beta.
        value_weight: c of (R - V)^2.
        ratio_clip: see `actor_critic_loss`.
        value_clip: see there too.
        normalise: advantages have mean 0 and standard deviation 1 in each minibatch.
        max_grad_norm: None: the gradient is not clipped.
        compute: how the callables run.
    """

    def __init__(
        self,
        network: ActorCritic,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        *,
        entropy_weight: float,
        value_weight: float,
        ratio_clip: float,
        value_clip: float | None = None,
        normalise: bool = False,
        max_grad_norm: float | None = None,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        super().__init__(parameters, optimizer, max_grad_norm, compute)
        self.network = network
        self._entropy_weight = entropy_weight
        self._value_weight = value_weight
        self._ratio_clip = ratio_clip
        self._value_clip = value_clip
        self._normalise = normalise
        self._loss: Callable[[Batch, Estimate], Backward] = compute.traced(self._loss_once)
        self._backward = compute.fixed(self._backward_once, parameters.gradients.device)

    def differentiate(self, batch: Batch, psi: Estimate) -> Backward:
        """The gradient of the mean loss over the samples [T, B] of a minibatch, with the values of who acted."""
        return self._backward(batch, psi)

    def _backward_once(self, batch: Batch, psi: Estimate) -> Backward:
        self.parameters.zero_gradients()
        found = self._loss(batch, psi)
        found.loss.total.backward()  # type: ignore[no-untyped-call]
        return found._replace(loss=found.loss._replace(total=found.loss.total.detach()))

    def _loss_once(self, batch: Batch, psi: Estimate) -> Backward:
        log_probs, values = self.network.unroll(batch.observations, batch.state, ~batch.valid)
        mask = batch.valid & psi.usable
        advantages = normalised(psi.advantages, mask) if self._normalise else psi.advantages
        log_ratios = (log_probs - batch.log_probs).gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        loss = actor_critic_loss(
            log_probs,
            values,
            batch.actions,
            advantages,
            psi.returns,
            mask,
            entropy_weight=self._entropy_weight,
            value_weight=self._value_weight,
            reduction="mean",
            ratio_clip=self._ratio_clip,
            log_ratios=log_ratios,
            value_clip=self._value_clip,
            values_then=batch.values,
        )
        n_cut = n_beyond_clip(log_ratios.detach().exp(), advantages, mask, self._ratio_clip)
        sizes = batch.valid.sum(), mask.sum()
        return Backward(loss, log_probs.detach(), values.detach(), psi.returns, mask, *sizes, n_cut)
