"""Learning: differentiate a loss, clip the gradient, step theta.

Nothing here waits for the device, and nothing knows of environments, queues or configurations: `differentiate` and
`apply` are what one compiles, or captures in a graph (`core.compiled`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from a3c_bench.core.advantages import Estimator, past_after
from a3c_bench.core.compiled import AS_WRITTEN, Compute
from a3c_bench.core.losses import ActorCriticLoss, actor_critic_loss
from a3c_bench.core.networks import ActorCritic, QNetwork
from a3c_bench.core.optim import FlatParameters, set_learning_rate
from a3c_bench.core.q_actor_critic import QActorCritic, mean_q
from a3c_bench.core.q_learning import best_q, of_actions, q_loss, q_returns, q_targets
from a3c_bench.core.replay import Sample
from a3c_bench.core.rollout import Batch


class Learner:
    """What follows the gradient.

    Args:
        parameters: that the gradient is of.
        optimizer: steps them, or what they are a copy of; None: whoever gets the gradient steps.
        max_grad_norm: see `FlatParameters.clip_gradients`.
        compute: how the callables run.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer | None,
        max_grad_norm: float | None,
        compute: Compute,
    ) -> None:
        self.parameters = parameters
        self._optimizer = optimizer
        self._max_grad_norm = max_grad_norm
        self._clip_and_step = compute.fixed(self._clip_and_step_once, parameters.gradients.device)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of theta; part of a checkpoint, or in need of statistics that are shared."""
        assert self._optimizer is not None
        return self._optimizer

    def clip(self) -> Tensor:
        """Scales the gradient down to the norm that it may have; gives the norm that it had, a scalar."""
        return self.parameters.clip_gradients(self._max_grad_norm)

    def step(self, lr: float) -> None:
        """One update of theta with the gradient, at this learning rate."""
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()

    def apply(self, lr: float) -> Tensor:
        """Both at once: `clip`, then `step`; gives the norm that the gradient had, a scalar."""
        set_learning_rate(self.optimizer, lr)
        return self._clip_and_step()

    def _clip_and_step_once(self) -> Tensor:
        norm = self.clip()
        self.optimizer.step()
        return norm


class Backward(NamedTuple):
    """What `ActorCriticLearner.differentiate` found besides the gradient."""

    loss: ActorCriticLoss
    log_probs: Tensor  # [T, B, A], of the present policy
    values: Tensor  # [T, B], V
    returns: Tensor  # [T, B]
    mask: Tensor  # [T, B] bool, the samples that were learnt from
    n_valid: Tensor  # scalar: the samples there were, learnt from or not; phantoms are none
    n_learnt: Tensor  # scalar: those of the mask
    n_cut: Tensor | None = None  # scalar: of those learnt from, the samples whose ratio a correction cut

    def figures(self) -> dict[str, Tensor]:
        """For the record of the update."""
        return {
            "loss": self.loss.total,
            "loss_policy": self.loss.policy,
            "loss_value": self.loss.value,
            "entropy_nats": self.loss.entropy,
        }

    @property
    def unusable(self) -> tuple[Tensor, Tensor]:
        """How many samples were not learnt from, and how many there were."""
        return self.n_valid - self.n_learnt, self.n_valid

    @property
    def cut(self) -> tuple[Tensor | float, Tensor]:
        """The samples whose ratio a correction cut, and how many were learnt from."""
        return 0.0 if self.n_cut is None else self.n_cut, self.n_learnt

    @property
    def fit(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, returns and mask: how well the former foretold the latter."""
        return self.values, self.returns, self.mask


class ActorCriticLearner(Learner):
    """Learns a policy and its value from rollouts.

    Args:
        network: at theta, or at the copy of it that the gradient is to be of; a `QActorCritic` for an estimator that
            values actions.
        parameters: the network's.
        optimizer: of them, or of theta; its parameters have the gradients of `parameters`.
        estimate: gives psi and the returns; one that corrects is told how the policy that acted differs.
        entropy_weight: beta.
        value_weight: c.
        reduction: see `actor_critic_loss`.
        log_epsilon: see there too.
        ratio_clip: see there too.
        max_grad_norm: None: the gradient is not clipped.
        compute: how the callables run.
    """

    def __init__(
        self,
        network: ActorCritic,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        estimate: Estimator,
        *,
        entropy_weight: float,
        value_weight: float,
        reduction: str,
        log_epsilon: float = 0.0,
        ratio_clip: float | None = None,
        max_grad_norm: float | None = None,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        super().__init__(parameters, optimizer, max_grad_norm, compute)
        self.network = network
        self.estimate = estimate
        self._entropy_weight = entropy_weight
        self._value_weight = value_weight
        self._reduction = reduction
        self._log_epsilon = log_epsilon
        self._ratio_clip = ratio_clip
        device = parameters.gradients.device
        self._past: Tensor | None = None  # of the episodes of the next batch
        self.aside: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while torch goes backward
        self._loss = compute.traced(self._loss_once)
        self._backward = compute.fixed(self._backward_once, device)
        self._values = compute.fixed(compute.traced(self._values_once), device)

    def values(self, observations: Tensor, state: Tensor) -> Tensor:
        """V [B] of observations [B, ...], seen in a state [B, S] of the network."""
        return self._values(observations, state)

    @torch.no_grad()
    def _values_once(self, observations: Tensor, state: Tensor) -> Tensor:
        value: Tensor = self.network(observations, state)[1]
        return value

    def differentiate(self, batch: Batch, keep: Tensor | None = None) -> Backward:
        """The gradient of the loss over a batch of T steps.

        The network as it is gives the values from which psi is estimated, but for the bootstrap.

        Args:
            batch: on the network's device.
            keep: [T, B] bool; samples to leave out are False.
        """
        return self._backward(batch._replace(values=None), keep, self._past_before(batch))

    def _past_before(self, batch: Batch) -> Tensor | None:
        """What the estimator wants to know of the episodes before this batch, [2, B]; the next call is of the next."""
        gamma, past = self.estimate.past_gamma, self._past
        if gamma is None:
            return None
        if past is None:  # all episodes begin
            past = torch.stack([torch.zeros_like(batch.bootstrap), torch.ones_like(batch.bootstrap)])
        self._past = past_after(past, batch.rewards, batch.ends, gamma)
        return past

    def _backward_once(self, batch: Batch, keep: Tensor | None, past: Tensor | None) -> Backward:
        self.parameters.zero_gradients()
        found = self._loss(batch, keep, past)
        with self.aside():
            found.loss.total.backward()  # type: ignore[no-untyped-call]
        return found._replace(loss=found.loss._replace(total=found.loss.total.detach()))

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """log pi [T, B, A], V [T, B], and what the critic says of what was done, [T, B]: V(s_t), or Q(s_t, a_t)."""
        steps = batch.observations, batch.state, ~batch.valid
        if not self.estimate.values_actions:
            log_probs, values = self.network.unroll(*steps)
            return log_probs, values, values
        assert isinstance(self.network, QActorCritic)
        log_probs, q = self.network.unroll_q(*steps)
        of_actions = q.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        return log_probs, mean_q(log_probs, q).detach(), of_actions

    def _loss_once(self, batch: Batch, keep: Tensor | None, past: Tensor | None) -> Backward:
        log_probs, values, predicted = self._predict(batch)
        values_to_last = torch.cat([values.detach(), batch.bootstrap.unsqueeze(0)])  # [T + 1, B]
        if batch.lengths is not None:
            values_to_last.scatter_(0, batch.lengths.unsqueeze(0), batch.bootstrap.unsqueeze(0))
        outcomes = [batch.rewards, values_to_last, batch.terminated, batch.truncated]
        log_ratios = None
        if self.estimate.corrects or self._ratio_clip is not None:
            log_ratios = (log_probs - batch.log_probs).gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        if self.estimate.corrects:
            assert log_ratios is not None
            outcomes.append(log_ratios.detach())
        if self.estimate.values_actions:
            outcomes.append(predicted.detach())
        if past is not None:
            outcomes += [torch.cat([torch.zeros_like(batch.ends[:1]), batch.ends[:-1]]), past]
        psi = self.estimate(*outcomes)
        mask = batch.valid & psi.usable
        if keep is not None:
            mask = mask & keep
        loss = actor_critic_loss(
            log_probs,
            predicted,
            batch.actions,
            psi.advantages,
            psi.returns,
            mask,
            entropy_weight=self._entropy_weight,
            value_weight=self._value_weight,
            reduction=self._reduction,
            log_epsilon=self._log_epsilon,
            valid=batch.valid,
            ratio_clip=self._ratio_clip,
            log_ratios=log_ratios,
            there=None if batch.lengths is None else batch.lengths > 0,
        )
        n_cut = None if log_ratios is None else self._n_cut(log_ratios.detach().exp(), psi.advantages, mask)
        sizes = batch.valid.sum(), mask.sum()
        return Backward(loss, log_probs.detach(), values.detach(), psi.returns, mask, *sizes, n_cut)

    def _n_cut(self, ratios: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Samples whose ratio the correction cuts, a scalar."""
        if self._ratio_clip is not None:
            return n_beyond_clip(ratios, advantages, mask, self._ratio_clip)
        beyond = ratios > (torch.inf if self.estimate.cuts_at is None else self.estimate.cuts_at)
        return (beyond & mask).sum()


def n_beyond_clip(ratios: Tensor, advantages: Tensor, mask: Tensor, ratio_clip: float) -> Tensor:
    """Samples of the mask, a scalar, that the clipped surrogate leaves without a gradient; all else is [T, B]."""
    beyond = (advantages > 0) & (ratios > 1.0 + ratio_clip)
    beyond |= (advantages < 0) & (ratios < 1.0 - ratio_clip)
    return (beyond & mask).sum()


class QBackward(NamedTuple):
    """What `QLearner.differentiate` found besides the gradient."""

    loss: Tensor  # scalar, what was differentiated
    td_errors: Tensor  # [B], target - Q(s_t, a_t)

    def figures(self) -> dict[str, Tensor]:
        """For the record of the update."""
        return {"loss": self.loss, "td_error": self.td_errors.abs().mean()}


class QLearner(Learner):
    """Learns Q from a replay (Mnih et al. 2015; double: van Hasselt et al. 2016).

    Args:
        network: Q.
        target_network: Q^-.
        parameters: of Q.
        optimizer: of them; None: whoever gets the gradient steps.
        double: the online network chooses the action whose value the target network gives.
        td_error_clip: see `q_loss`.
        reduction: see there too.
        max_grad_norm: None: the gradient is not clipped.
        compute: how the callables run.
    """

    def __init__(
        self,
        network: QNetwork,
        target_network: QNetwork,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        double: bool,
        td_error_clip: float | None,
        reduction: str,
        max_grad_norm: float | None = None,
        compute: Compute = AS_WRITTEN,
    ) -> None:
        super().__init__(parameters, optimizer, max_grad_norm, compute)
        self.network = network
        self.target_network = target_network
        self._double = double
        self._td_error_clip = td_error_clip
        self._reduction = reduction
        self._loss = compute.traced(self._loss_once)
        self._backward = compute.fixed(self._backward_once, parameters.gradients.device)

    def differentiate(self, sample: Sample) -> QBackward:
        """The gradient of the loss over B steps from a replay, on the networks' device."""
        return self._backward(
            sample.observations,
            sample.actions,
            sample.rewards,
            sample.discounts,
            sample.next_observations,
            sample.weights,
        )

    def _backward_once(self, *sample: Tensor) -> QBackward:
        self.parameters.zero_gradients()
        loss, td_errors = self._loss(*sample)
        loss.backward()  # type: ignore[no-untyped-call]
        return QBackward(loss.detach(), td_errors.detach())

    def _loss_once(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        next_observations: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            next_q = self.target_network(next_observations)
            choosing_q = self.network(next_observations) if self._double else None
            targets = q_targets(rewards, discounts, next_q, choosing_q)
        q = self.network(observations).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        td_errors = targets - q
        return q_loss(td_errors, weights, self._td_error_clip, self._reduction), td_errors


class QRolloutLearner(Learner):
    """Learns Q from rollouts as they come, without a replay (Mnih et al. 2016, algorithms 1 and S2).

    Args:
        network: Q, at the copy of theta that the gradient is to be of.
        target_network: Q^-.
        parameters: of Q.
        optimizer: of theta; its parameters have the gradients of `parameters`.
        gamma: discount per agent step.
        n_step: a target has all rewards up to the end of the rollout, and not only the next one.
        double: see `QLearner`.
        td_error_clip: see `q_loss`.
        reduction: see there too; over the samples of a rollout.
        max_grad_norm: None: the gradient is not clipped.
    """

    def __init__(
        self,
        network: QNetwork,
        target_network: QNetwork,
        parameters: FlatParameters,
        optimizer: torch.optim.Optimizer,
        *,
        gamma: float,
        n_step: bool,
        double: bool,
        td_error_clip: float | None,
        reduction: str,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(parameters, optimizer, max_grad_norm, AS_WRITTEN)
        self.network = network
        self.target_network = target_network
        self._gamma = gamma
        self._n_step = n_step
        self._double = double
        self._td_error_clip = td_error_clip
        self._reduction = reduction

    def differentiate(self, batch: Batch, observations: Tensor, next_actions: Tensor | None = None) -> QBackward:
        """The gradient of the loss over a rollout of T steps, on a CPU.

        Args:
            batch: T steps of B environments.
            observations: [T + 1, B, ...], those of the batch, and what was seen after its last step.
            next_actions: [T, B], taken in s_{t+1}, whose value then stands for the rest (SARSA); None: the best one.
        """
        self.parameters.zero_gradients()
        returns = self._returns(batch, observations, next_actions)[batch.valid]
        q = self.network(observations[:-1][batch.valid])
        td_errors = returns - of_actions(q, batch.actions[batch.valid])
        loss = q_loss(td_errors, torch.ones_like(td_errors), self._td_error_clip, self._reduction)
        loss.backward()  # type: ignore[no-untyped-call]
        return QBackward(loss.detach(), td_errors.detach())

    @torch.no_grad()
    def _returns(self, batch: Batch, observations: Tensor, next_actions: Tensor | None) -> Tensor:
        """The targets [T, B]."""
        if self._n_step:
            ends = batch.truncated.clone()
            ends[-1] = True
        else:
            ends = torch.ones_like(batch.truncated)
        values = torch.zeros_like(batch.rewards)
        asked = ends & ~batch.terminated & batch.valid
        if asked.any():
            seen = observations[1:][asked]
            q = self.target_network(seen)
            if next_actions is not None:
                values[asked] = of_actions(q, next_actions[asked])
            else:
                values[asked] = best_q(q, self.network(seen) if self._double else None)
        return q_returns(batch.rewards, values, batch.terminated, ends, self._gamma)
