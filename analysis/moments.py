"""Mean and variance of what each psi makes of one sample, exactly: the two moments of psi given s_t and a_t.

A sample is psi_t grad log pi(a_t | s_t). Its moments follow from those of psi given s and a; these follow from a
recursion over the steps n that are left until the rollout ends (t_max for its first sample, 1 for its last):

    G_n = c + gamma lambda G_(n-1),   c = r + gamma (1 - lambda) V^(s'),   G_0 = V^(s'),   psi = G_n - V^(s)

With lambda = 1 that is the n-step return, with n = 1 the TD error. V^ is a fixed critic, right or wrong; it is 0 at the
end of a game. C critics are dealt with at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from analysis.aggregate import Floats
from analysis.gridworld import World, gradient, moves, shares, values, visits


@dataclass(frozen=True)
class Moments:
    """Of psi given s and a; of a psi that is not known of every sample, counted as 0 where it is not."""

    first: Floats  # [C, S, A], as the others
    second: Floats
    known: Floats  # probability that psi is known

    @classmethod
    def of_all(cls, first: Floats, second: Floats) -> "Moments":
        """Of a psi that every sample has."""
        return cls(first, second, np.ones_like(first))


@dataclass(frozen=True)
class Quality:
    """How far samples of an estimator are from the gradient g, per critic [C]; in units of |g| and |g|^2."""

    bias: Floats  # |E[sample] - g|
    variance: Floats  # E|sample - E[sample]|^2, summed over the entries
    cosine: Floats  # of E[sample] and g

    def error(self, n_samples: int) -> Floats:
        """[C]: mean squared error of the mean of so many independent samples."""
        return np.asarray(self.bias**2 + self.variance / n_samples)


def quality(world: World, policy: Floats, gamma: float, psi: Moments) -> Quality:
    """Bias and variance against `true_gradient`, which all of them estimate."""
    weights = shares(world, policy)
    known = (weights[:, None] * policy * psi.known).sum((-2, -1))
    mean = gradient(weights, policy, psi.first) / known[:, None, None]
    square = (weights[:, None] * policy * squared_score(policy) * psi.second).sum((-2, -1)) / known
    return _compare(mean, square, true_gradient(world, policy, gamma))


def true_gradient(world: World, policy: Floats, gamma: float) -> Floats:
    """g [S, A] = sum_s w(s) sum_a pi(a|s) Q(s, a) grad log pi(a|s).

    With gamma < 1 that is not the gradient of the discounted return, which would weigh a sample by gamma^t.
    """
    return gradient(shares(world, policy), policy, values(world, policy, gamma)[1])


def _compare(mean: Floats, square: Floats, g: Floats) -> Quality:
    """From E[sample] [C, S, A], E|sample|^2 [C] and g [S, A]."""
    length, own = np.sqrt((g**2).sum()), (mean**2).sum((-2, -1))
    bias = np.sqrt(((mean - g) ** 2).sum((-2, -1))) / length
    cosine = (mean * g).sum((-2, -1)) / (np.sqrt(own) * length)
    return Quality(bias, np.asarray((square - own) / length**2), cosine)


def squared_score(policy: Floats) -> Floats:
    """[S, A]: |grad log pi(a|s)|^2 of a table of logits."""
    return 1.0 - 2.0 * policy + (policy**2).sum(1, keepdims=True)


# --- estimators of a rollout ------------------------------------------------------------------------------------------


def rollouts(world: World, policy: Floats, gamma: float, gae_lambda: float, critics: Floats) -> Iterator[Moments]:
    """psi of `gae` (with gae_lambda = 1 of `nstep`) in rollouts of t_max = 1, 2, 3 ... steps, over their samples.

    Args:
        world: what actions do.
        policy: [S, A].
        gamma: per agent step.
        gae_lambda: 0 to 1.
        critics: V^ [C, S].
    """
    own, kept = gamma * (1.0 - gae_lambda), gamma * gae_lambda
    cost = world.mean_reward + own * _ahead(world.stays, critics)
    square = world.square_reward + 2.0 * own * _ahead(world.paid, critics) + own**2 * _ahead(world.stays, critics**2)
    first, second = critics, critics**2  # of G_0 in the next state
    sums = np.zeros((2, *cost.shape))
    for t_max in count(1):
        mixed = _ahead(world.paid, first) + own * _ahead(world.stays, critics * first)
        x1 = cost + kept * _ahead(world.stays, first)
        x2 = square + 2.0 * kept * mixed + kept**2 * _ahead(world.stays, second)
        first, second = (policy * x1).sum(-1), (policy * x2).sum(-1)
        sums += np.stack([x1, x2])
        yield less_baseline(Moments.of_all(*(sums / t_max)), critics)


def ended_returns(world: World, policy: Floats, gamma: float) -> Iterator[Moments]:
    """The reward to the game's end in rollouts of t_max = 1, 2, 3 ... steps, known where the end lies inside.

    That is `monte_carlo`; one "critic", as it asks none.
    """
    ends = world.chances[:, :, -1]
    at_end = ends, *(ends * world.rewards[:, :, -1] ** power for power in (1, 2))
    known = first = second = np.zeros(world.n_states)
    sums = np.zeros((3, *ends.shape))
    for t_max in count(1):
        x = (
            ends + world.stays @ known,
            at_end[1] + world.paid @ known + gamma * world.stays @ first,
            at_end[2] + world.paid_square @ known + 2.0 * gamma * world.paid @ first + gamma**2 * world.stays @ second,
        )
        known, first, second = ((policy * moment).sum(-1) for moment in x)
        sums += np.stack(x)
        yield Moments(*(sums[[1, 2, 0]] / t_max)[:, None])


def less_baseline(psi: Moments, critics: Floats) -> Moments:
    """psi - V^(s) from psi; critics [C, S]."""
    v = critics[:, :, None]
    return Moments(psi.first - v * psi.known, psi.second - 2.0 * v * psi.first + v**2 * psi.known, psi.known)


# --- psi of Schulman et al. 2016, equation 1, of whole games ----------------------------------------------------------


def reward_to_go(world: World, policy: Floats, gamma: float) -> Moments:
    """psi 2: the reward after a_t; one "critic"."""
    v, q = values(world, policy, gamma)
    at_once = world.square_reward + 2.0 * gamma * world.paid @ v
    later = np.linalg.solve(np.eye(world.n_states) - gamma**2 * moves(world, policy), (policy * at_once).sum(1))
    return Moments.of_all(q[None], (at_once + gamma**2 * world.stays @ later)[None])


def total_reward(world: World, policy: Floats, gamma: float) -> Moments:
    """psi 1: the reward of the whole game, sum_k gamma^k r_k from its first step on; one "critic".

    With t steps behind it is P_t + gamma^t G_t. The past P_t and the future G_t are independent given s_t and a_t, and
    sums over t of E[gamma^(i t) P_t^j 1(s_t = s)] solve linear equations.
    """
    ahead = moves(world, policy).T
    paid = np.einsum("sa,sat->ts", policy, world.paid)
    paid_square = np.einsum("sa,sat->ts", policy, world.paid_square)
    at, at_once, at_twice = (visits(world, policy, gamma**power) for power in (0, 1, 2))
    one = np.eye(world.n_states)
    past = np.linalg.solve(one - ahead, paid @ at_once)
    past_discounted = np.linalg.solve(one - gamma * ahead, gamma * paid @ at_twice)
    past_square = np.linalg.solve(one - ahead, 2.0 * paid @ past_discounted + paid_square @ at_twice)
    p, p_gamma, p_square, once, twice = (
        (one_of / at)[:, None] for one_of in (past, past_discounted, past_square, at_once, at_twice)
    )
    future = reward_to_go(world, policy, gamma)
    first = p + once * future.first
    return Moments.of_all(first, p_square + 2.0 * p_gamma * future.first + twice * future.second)


def of_action(psi: Floats) -> Moments:
    """A psi [C, S, A] that s and a determine: Q, or the advantage."""
    return Moments.of_all(psi, psi**2)


def all_actions(world: World, policy: Floats, gamma: float, q: Floats) -> Quality:
    """sum_b grad pi(b|s) Q_w(s, b) in place of a sampled action; q [C, S, A]."""
    weights = shares(world, policy)
    square = (gradient(np.ones_like(weights), policy, q) ** 2).sum(-1) @ weights
    return _compare(gradient(weights, policy, q), square, true_gradient(world, policy, gamma))


def _ahead(table: Floats, y: Floats) -> Floats:
    """[C, S, A]: sum over next states of table [S, A, S] times y [C, S]."""
    n_states, n_actions, _ = table.shape
    return np.asarray((y @ table.reshape(-1, n_states).T).reshape(-1, n_states, n_actions))
