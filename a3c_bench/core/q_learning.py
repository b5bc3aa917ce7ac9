"""Q-learning from a replay (Mnih et al. 2015; double: van Hasselt et al. 2016) or from rollouts (Mnih et al. 2016).

And a look at how it over-estimates.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_UNKNOWN_SHARE = 0.01  # of a discounted return, that a time limit may hide


def q_targets(rewards: Tensor, discounts: Tensor, next_q: Tensor, choosing_q: Tensor | None = None) -> Tensor:
    """y = r + discount Q^-(s', a*): the targets [B].

    Args:
        rewards: [B], of the whole stretch.
        discounts: [B], 0 where s' is terminal.
        next_q: [B, A], Q^-(s', .) of the target network.
        choosing_q: [B, A], of the network that chooses a*: the online one in Double DQN; None: the target network,
            whose maximum is then taken.
    """
    return rewards + discounts * best_q(next_q, choosing_q)


def best_q(q: Tensor, choosing_q: Tensor | None = None) -> Tensor:
    """Q(s, a*) [B] of q [B, A]; a* is the best by choosing_q [B, A], or by q itself."""
    if choosing_q is None:
        return q.amax(-1)
    return of_actions(q, choosing_q.argmax(-1))


def of_actions(q: Tensor, actions: Tensor) -> Tensor:
    """Q(s, a) [...] of q [..., A] and actions [...]."""
    return q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def q_returns(rewards: Tensor, values: Tensor, terminated: Tensor, ends: Tensor, gamma: float) -> Tensor:
    """The targets [T, B] of rollouts: rewards up to where a stretch ends, and then what Q^- says of the rest.

        R_t = r_t                       if s_{t+1} is terminal
        R_t = r_t + gamma values_t      if the stretch ends with step t
        R_t = r_t + gamma R_{t+1}       else

    Where every step is an end, these are the targets of one step; where only the last is, those of n steps.

    Args:
        rewards: [T, B].
        values: [T, B], Q^- of s_{t+1}, as far as stretches end there.
        terminated: [T, B] bool.
        ends: [T, B] bool; True in the last row, and where a time limit cut a game: s_{t+1} was its last state.
        gamma: discount per agent step.
    """
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0])
    for t in range(len(rewards) - 1, -1, -1):
        following = torch.where(ends[t], values[t], following).masked_fill(terminated[t], 0.0)
        following = returns[t] = rewards[t] + gamma * following
    return returns


def q_loss(td_errors: Tensor, weights: Tensor, clip: float | None, reduction: str) -> Tensor:
    """reduce[ w h(y - Q) ], a scalar.

    h is half the square up to `clip` and linear beyond it, so that its derivative is the error clipped to +-clip
    ("Huber"; Mnih et al. 2015 speak of clipping the error).

    Args:
        td_errors: [B], y - Q(s_t, a_t), with the gradient of Q.
        weights: [B], importance weights.
        clip: None: half the square everywhere.
        reduction: "sum" or "mean" over the batch.
    """
    size = td_errors.abs()
    linear_from = torch.inf if clip is None else clip
    inner = size.clamp(max=linear_from)
    losses = weights * (0.5 * inner.square() + inner * (size - inner))
    return losses.sum() if reduction == "sum" else losses.mean()


class ValueCheck:
    """Sets max Q at the states that were visited beside the discounted return that was really obtained from there.

    If the former is larger on average over the same states, the values are over-estimated (van Hasselt et al. 2016).
    Rewards and ends of episodes are those that are learnt from. Of a game that a time limit cut, only those states
    count of whose return the limit can hide no more than 1%; a game that is not over counts not yet.

    Args:
        n_envs: N.
        gamma: discount per agent step.
    """

    def __init__(self, n_envs: int, gamma: float) -> None:
        self._gamma = gamma
        self._values: list[list[float]] = [[] for _ in range(n_envs)]
        self._rewards: list[list[float]] = [[] for _ in range(n_envs)]

    def add(
        self,
        max_q: NDArray[np.floating],
        rewards: NDArray[np.floating],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        valid: NDArray[np.bool_],
    ) -> tuple[float, float, int]:
        """Takes one step of all environments, [N] each; max_q is of the states before it.

        Returns:
            sums of max Q and of returns over the states of the episodes that ended with it, and how many these are.
        """
        sums = (0.0, 0.0, 0)
        columns = (column.tolist() for column in (max_q, rewards, terminated, truncated, valid))
        for env_id, (value, reward, complete, cut, counts) in enumerate(zip(*columns, strict=True)):
            if not counts:
                continue
            self._values[env_id].append(value)
            self._rewards[env_id].append(reward)
            if complete or cut:
                total_q, total_return, n_states = self._close(env_id, complete)
                sums = (sums[0] + total_q, sums[1] + total_return, sums[2] + n_states)
        return sums

    def _close(self, env_id: int, complete: bool) -> tuple[float, float, int]:
        values, rewards = self._values[env_id], self._rewards[env_id]
        returns, following = [0.0] * len(rewards), 0.0
        for t in range(len(rewards) - 1, -1, -1):
            following = rewards[t] + self._gamma * following
            returns[t] = following
        n_known = len(rewards)
        if not complete:
            hidden = self._gamma ** np.arange(n_known, 0, -1)  # what a value at the end would weigh at each state
            n_known = int((hidden <= _UNKNOWN_SHARE).sum())
        self._values[env_id], self._rewards[env_id] = [], []
        return sum(values[:n_known]), sum(returns[:n_known]), n_known
