"""psi, what multiplies grad log pi(a_t | s_t): estimators over a rollout, as pure functions.

All take these tensors, time first; the last ones are for those alone that ask for them (`Estimator`). Row t belongs to
the transition s_t, a_t -> r_t, s_tp1:

    rewards     [T, B]      r_t
    values      [T + 1, B]  V(s_t), without gradient; row T is V of the state after the last step
    terminated  [T, B]      bool: s_tp1 is terminal, its value is 0
    truncated   [T, B]      bool: a time limit cut the episode at s_tp1; V(s_tp1) stands for what would have followed
    log_ratios  [T, B]      log pi(a_t | s_t) - log mu(a_t | s_t): of the present policy and of the one that acted
    q           [T, B]      Q(s_t, a_t), without gradient; V(s) is sum_b pi(b | s) Q(s, b) then
    begins      [T, B]      bool: an episode begins with step t; False in row 0
    past        [2, B]      of the episodes of row 0: their discounted rewards before it, and gamma^(steps before it)

After an episode end, environments with next-step auto-reset spend one phantom step on the reset: row t + 1 then begins
in the final state of the old episode, so values[t + 1] is its value, which is what truncation bootstraps from. The
phantom row itself gets numbers here that nobody may use; losses mask it.

Several episodes may end inside one rollout; nothing flows across an end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """What an estimator says of a rollout; all [T, B]."""

    advantages: Tensor  # psi
    returns: Tensor  # what V(s_t), or Q(s_t, a_t), should have been: the target of the value loss
    usable: Tensor  # bool: False where the estimator needs the end of an episode that this rollout does not reach


@dataclass(frozen=True)
class Estimator:
    """An estimator with its numbers filled in, and what it asks of those who call it."""

    function: Callable[..., Estimate]
    needs_end: bool = False  # it cannot use a stretch of an episode that goes on elsewhere
    corrects: bool = False  # for the policy that acted being another: it takes log_ratios too
    cuts_at: float | None = None  # the ratio above which it cuts one
    values_actions: bool = False  # it takes q too: the network has a head of Q beside its policy
    # It takes begins and past too, discounted by this; each rollout goes on where the one before it stopped.
    past_gamma: float | None = None

    def __call__(self, *outcomes: Tensor) -> Estimate:
        """psi from rewards, values, terminated and truncated, and what else it asks for, in the order of the fields."""
        return self.function(*outcomes)


@dataclass(frozen=True)
class Advantage:
    """One of another package, as its entry point in "a3c_bench.advantages" names it."""

    make: Callable[[Any, float], Callable[..., Estimate]]  # (config.advantage, gamma): an `Estimator`, or a function of
    # rewards, values, terminated and truncated
    config_class: type | None = None  # a frozen subclass of `AdvantageConfig` with its own keys; None: it has none


def nstep(rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float) -> Estimate:
    """R_t - V(s_t), with R_t the longest n-step return the rollout allows (Mnih et al. 2016, Algorithm S3)."""
    returns = _discounted_returns(rewards, values, terminated, truncated, gamma)
    return Estimate(returns - values[:-1], returns, torch.ones_like(terminated))


def gae(
    rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, gae_lambda: float
) -> Estimate:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16); its value target is A_t + V(s_t)."""
    deltas = _td_errors(rewards, values, terminated, gamma)
    decay = (gamma * gae_lambda) * (~(terminated | truncated)).to(rewards.dtype)
    following = torch.zeros_like(rewards[0])
    backwards: list[Tensor] = []
    for delta, kept in _backwards(deltas, decay):
        following = delta + kept * following
        backwards.append(following)
    advantages = torch.stack(backwards[::-1])
    return Estimate(advantages, advantages + values[:-1], torch.ones_like(terminated))


def td(rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float) -> Estimate:
    """The one-step TD error r_t + gamma V(s_tp1) - V(s_t)."""
    deltas = _td_errors(rewards, values, terminated, gamma)
    return Estimate(deltas, deltas + values[:-1], torch.ones_like(terminated))


def monte_carlo(rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float) -> Estimate:
    """REINFORCE (Williams 1992): the return to the episode's end, no baseline.

    Steps whose episode does not end inside the rollout have no such return and are not usable: choose rollouts longer
    than episodes. At a time limit the value stands for the rest, as everywhere.
    """
    returns = _discounted_returns(rewards, values, terminated, truncated, gamma)
    return Estimate(returns, returns, _ends_inside(terminated | truncated))


def total_reward(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    begins: Tensor,
    past: Tensor,
    gamma: float,
) -> Estimate:
    """The return of the whole episode, what came before a_t included: each of its actions gets the same.

    It is discounted from the episode's start; usable are the steps of which `monte_carlo` uses the return, and V learns
    the same here as there.
    """
    returns = _discounted_returns(rewards, values, terminated, truncated, gamma)
    before, discount = past
    total = before + discount * returns[0]
    totals: list[Tensor] = []
    for new, following in zip(begins.unbind(), returns.unbind(), strict=True):
        total = torch.where(new, following, total)
        totals.append(total)
    return Estimate(torch.stack(totals), returns, _ends_inside(terminated | truncated))


def past_after(past: Tensor, rewards: Tensor, ends: Tensor, gamma: float) -> Tensor:
    """What `past` [2, B] has become after T steps.

    Args:
        past: before them.
        rewards: [T, B].
        ends: [T, B] bool, another episode follows the step: after its last one, and after a phantom.
        gamma: discount per agent step.
    """
    before, discount = past
    for reward, end in zip(rewards.unbind(), ends.unbind(), strict=True):
        before = (before + discount * reward).masked_fill(end, 0.0)
        discount = (gamma * discount).masked_fill(end, 1.0)
    return torch.stack([before, discount])


def baseline(rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float) -> Estimate:
    """REINFORCE with the state value as baseline: `monte_carlo` minus V(s_t)."""
    returns = _discounted_returns(rewards, values, terminated, truncated, gamma)
    return Estimate(returns - values[:-1], returns, _ends_inside(terminated | truncated))


def q_critic(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    q: Tensor,
    gamma: float,
    baseline: bool = True,
) -> Estimate:
    """Q(s_t, a_t) - sum_b pi(b | s_t) Q(s_t, b): what a critic of actions says of a_t (Sutton et al. 2000, theorem 1).

    No reward is in psi: the critic learns from them, Q(s_t, a_t) towards the n-step return of `nstep`, which ends with
    sum_b pi(b | s_n) Q(s_n, b). Without the baseline psi is Q(s_t, a_t) itself, as the theorem has it: the expectation
    is the same, the variance is not.
    """
    returns = _discounted_returns(rewards, values, terminated, truncated, gamma)
    return Estimate(q - values[:-1] if baseline else q, returns, torch.ones_like(terminated))


@dataclass(frozen=True)
class VTrace:
    """V-trace (Espeholt et al. 2018, equations 1 and section 4.2): n-step returns for what another policy chose.

        v_s   = V(s_s) + sum_{t >= s} gamma^(t - s) (c_s ... c_{t-1}) rho_t (r_t + gamma V(s_tp1) - V(s_t))
        psi_s = rho_s (r_s + gamma v_{s+1} - V(s_s))
        rho_t = min(rho_bar, pi(a_t | s_t) / mu(a_t | s_t)),  c_t = min(c_bar, pi / mu)

    With pi = mu this is `nstep`.
    """

    gamma: float
    rho_bar: float
    c_bar: float

    def __call__(
        self, rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, log_ratios: Tensor
    ) -> Estimate:
        """As the other estimators."""
        ratios = log_ratios.exp()
        rho, c = ratios.clamp(max=self.rho_bar), ratios.clamp(max=self.c_bar)
        discounts = self.gamma * (~terminated).to(rewards.dtype)
        goes_on = (~(terminated | truncated)).to(rewards.dtype)
        deltas = rho * (rewards + discounts * values[1:] - values[:-1])
        following = torch.zeros_like(rewards[0])  # v_{s+1} - V(s_{s+1})
        advantages: list[Tensor] = []
        corrections: list[Tensor] = []  # v_s - V(s_s)
        for delta, same_game, for_psi, for_v in _backwards(deltas, goes_on, rho * discounts, discounts * c):
            following = same_game * following
            advantages.append(delta + for_psi * following)
            following = delta + for_v * following
            corrections.append(following)
        returns = values[:-1] + torch.stack(corrections[::-1])
        return Estimate(torch.stack(advantages[::-1]), returns, torch.ones_like(terminated))


def estimator(
    kind: str,
    gamma: float,
    gae_lambda: float = 0.95,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    q_baseline: bool = True,
) -> Estimator:
    """The estimator of that name, with its numbers filled in."""
    if kind == "gae":
        return Estimator(partial(gae, gamma=gamma, gae_lambda=gae_lambda))
    if kind == "vtrace":
        return Estimator(VTrace(gamma, rho_bar, c_bar), corrects=True, cuts_at=rho_bar)
    if kind == "q":
        return Estimator(partial(q_critic, gamma=gamma, baseline=q_baseline), values_actions=True)
    if kind == "total_reward":
        return Estimator(partial(total_reward, gamma=gamma), needs_end=True, past_gamma=gamma)
    function = {"nstep": nstep, "td": td, "monte_carlo": monte_carlo, "baseline": baseline}[kind]
    return Estimator(partial(function, gamma=gamma), needs_end=kind in ("monte_carlo", "baseline"))


def _discounted_returns(
    rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float
) -> Tensor:  # [T, B]
    discounts = gamma * (~terminated).to(rewards.dtype)
    following = values[-1]
    returns: list[Tensor] = []
    for reward, discount, cut, value in _backwards(rewards, discounts, truncated, values[1:]):
        following = reward + discount * torch.where(cut, value, following)
        returns.append(following)
    return torch.stack(returns[::-1])


def _backwards(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of all of them, the last first; taken apart at once, as taking row by row takes longer than a sum."""
    return zip(*(reversed(tensor.unbind()) for tensor in tensors), strict=True)


def _td_errors(rewards: Tensor, values: Tensor, terminated: Tensor, gamma: float) -> Tensor:  # [T, B]
    return rewards + gamma * (~terminated).to(rewards.dtype) * values[1:] - values[:-1]


def _ends_inside(ended: Tensor) -> Tensor:  # [T, B] bool: an episode end lies at or after t
    return ended.flip(0).cummax(0).values.flip(0)
