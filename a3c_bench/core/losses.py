"""The actor-critic loss, with its reduction stated."""

from typing import NamedTuple

import torch
from torch import Tensor

from a3c_bench.core.names import ACTOR_CRITIC_REDUCTIONS as REDUCTIONS


class ActorCriticLoss(NamedTuple):
    """`total` is what is differentiated; the rest are means over the valid samples, for the record."""

    total: Tensor
    policy: Tensor  # mean of -log pi(a_t | s_t) psi_t, or of the clipped surrogate
    value: Tensor  # mean of (R_t - V(s_t))^2, or (R_t - Q(s_t, a_t))^2, without the weight; see value_clip
    entropy: Tensor  # mean of H(pi(. | s_t)), nats
    divisor: Tensor | None = None  # scalar: what the reduction divided by, but for 0; None: by nothing


def actor_critic_loss(
    log_probs: Tensor,
    values: Tensor,
    actions: Tensor,
    advantages: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    entropy_weight: float,
    value_weight: float,
    reduction: str,
    log_epsilon: float = 0.0,
    valid: Tensor | None = None,
    ratio_clip: float | None = None,
    log_ratios: Tensor | None = None,
    there: Tensor | None = None,
    value_clip: float | None = None,
    values_then: Tensor | None = None,
) -> ActorCriticLoss:
    """L = reduce[ -log pi(a_t | s_t) psi_t - beta H(pi(. | s_t)) + c (R_t - V(s_t))^2 ]  (Mnih et al. 2016, section 4).

    All three terms share one reduction, over the valid samples only:

        sum             sum over t and environments (A3C, GA3C)
        mean            mean over the valid samples
        mean_over_envs  sum over t, mean over the B environments (PAAC: its code takes the batch mean times t_max)

    An environment (or rollout, in GA3C) of whose samples none is learnt from, because all were too old or the
    estimator can use none, is not among the B: else a bound on lag would shorten the steps too. One that only
    had phantoms is: nothing of it was left out.

    Args:
        log_probs: [T, B, A], log pi(. | s_t), with gradient.
        values: [T, B], V(s_t), or Q(s_t, a_t) of a critic that values actions, with gradient.
        actions: [T, B], int64.
        advantages: [T, B], psi_t; used as a constant.
        returns: [T, B], R_t; used as a constant.
        mask: [T, B], bool; False for phantom and unusable samples, which then change nothing.
        entropy_weight: beta.
        value_weight: c; 0.25 is the "0.5 times 1/2 squared error" of A3C and PAAC.
        reduction: one of REDUCTIONS.
        log_epsilon: epsilon of log(pi + epsilon) in both policy terms (Babaeizadeh et al. 2017, section 3.3), which
            bounds what an action that has become improbable meanwhile can do.
        valid: [T, B], bool; False for phantoms and padding alone. None: so is the mask.
        ratio_clip: epsilon of the clipped surrogate, which then takes the place of log pi psi: with w = pi / mu,
            min(w psi, clip(w, 1 - epsilon, 1 + epsilon) psi) (Schulman et al. 2017, equation 7). Its gradient is that
            of log pi psi where pi = mu, and 0 where the policy has moved further than that in the direction of psi.
        log_ratios: [T, B], log w, with gradient; for ratio_clip.
        there: [B], bool; False for what only fills a batch up, which is not among the B either. None: all are.
        value_clip: V may move so far from what it was: (R - V)^2 is replaced by the larger of itself and that of V
            clipped to values_then +- value_clip, whose gradient is 0 where V has moved further away (PPO's code).
        values_then: [T, B], V when the sample was taken; for value_clip.
    """
    if log_epsilon > 0.0:
        log_of_pi = (log_probs.exp() + log_epsilon).log()
    else:
        log_of_pi = log_probs
    weights = mask.to(values.dtype)
    n_valid = weights.sum().clamp(min=1.0)
    log_prob_actions = log_of_pi.gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # [T, B]
    objective = log_prob_actions * advantages.detach()
    if ratio_clip is not None:
        assert log_ratios is not None
        ratios = log_ratios.masked_fill(~mask, 0.0).exp()
        clipped = ratios.clamp(1.0 - ratio_clip, 1.0 + ratio_clip)
        objective = torch.minimum(ratios * advantages.detach(), clipped * advantages.detach())
    policy = -(weights * objective).sum()
    entropy = -(weights * (log_probs.exp() * log_of_pi).sum(-1)).sum()
    errors = (returns.detach() - values).square()
    if value_clip is not None:
        assert values_then is not None
        clipped_values = values_then + (values - values_then).clamp(-value_clip, value_clip)
        errors = torch.maximum(errors, (returns.detach() - clipped_values).square())
    value = (weights * errors).sum()
    total = policy - entropy_weight * entropy + value_weight * value
    divisor = None
    if reduction == "mean":
        divisor, total = weights.sum(), total / n_valid
    elif reduction == "mean_over_envs":
        counted = torch.ones_like(mask[0]) if valid is None else mask.any(0) | ~valid.any(0)  # without those left out
        divisor = (counted if there is None else counted & there).sum()
        total = total / divisor.clamp(min=1)
    elif reduction != "sum":
        raise ValueError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    policy, value, entropy = (part.detach() / n_valid for part in (policy, value, entropy))
    return ActorCriticLoss(total, policy, value, entropy, divisor)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the valid samples, a scalar; NaN where the returns do not vary.

    Args:
        values: [T, B], without gradient.
        returns: [T, B].
        mask: [T, B], bool.
    """
    weights = mask.to(returns.dtype)
    n_valid = weights.sum()

    def variance(x: Tensor) -> Tensor:
        mean = (weights * x).sum() / n_valid
        return (weights * (x - mean).square()).sum() / n_valid

    of_returns = variance(returns)
    rounding = (
        1e-6 * (weights * returns).abs().max()
    )  # what float32 leaves of a deviation when all returns are one number
    return torch.where(of_returns > rounding.square(), 1.0 - variance(returns - values) / of_returns, torch.nan)
