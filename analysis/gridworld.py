"""A small Markov decision process whose values and policy gradient are known exactly: pure functions of numpy arrays.

A grid of R x C cells with the start in one corner and the goal in the other. S = R C - 1 states (the goal is none: a
game that reaches it is over), A = 4 actions: up, right, down, left; who would leave the grid stays. With probability
`slip` the grid moves in a direction of its own, drawn evenly from all four.

A policy is a table pi [S, A]. Samples are those of a player who begins a new game whenever one is over, as the
environments of the suite do, so a state has the weight w [S] of its share of all steps.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.aggregate import Floats

N_ACTIONS = 4
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # rows down, columns right


@dataclass(frozen=True)
class World:
    """What an action does. Games begin in state 0."""

    chances: Floats  # [S, A, S + 1]: probability of the next state; the last is the end of the game
    rewards: Floats  # [S, A, S + 1]: reward on the way there

    @cached_property
    def stays(self) -> Floats:
        """[S, A, S]: the part of `chances` after which the game goes on."""
        return self.chances[:, :, :-1]

    @cached_property
    def mean_reward(self) -> Floats:
        """[S, A]: E[r | s, a]."""
        return np.einsum("sat,sat->sa", self.chances, self.rewards)

    @cached_property
    def square_reward(self) -> Floats:
        """[S, A]: E[r^2 | s, a]."""
        return np.einsum("sat,sat->sa", self.chances, self.rewards**2)

    @cached_property
    def paid(self) -> Floats:
        """[S, A, S]: E[r 1(next state) | s, a], of next states in which the game goes on."""
        return (self.chances * self.rewards)[:, :, :-1]

    @cached_property
    def paid_square(self) -> Floats:
        """[S, A, S]: the same of r^2."""
        return (self.chances * self.rewards**2)[:, :, :-1]

    @property
    def n_states(self) -> int:
        """S."""
        return len(self.chances)


def make_grid(n_rows: int, n_columns: int, slip: float, step_reward: float, goal_reward: float) -> World:
    """The grid; every step pays `step_reward`, the step into the goal `goal_reward` on top of it."""
    cells = [(row, column) for row in range(n_rows) for column in range(n_columns)]
    number = {cell: index for index, cell in enumerate(cells)}
    n_states = len(cells) - 1
    moved = np.zeros((n_states, N_ACTIONS, n_states + 1))
    for state, (row, column) in enumerate(cells[:-1]):
        for action, (down, right) in enumerate(_MOVES):
            moved[state, action, number.get((row + down, column + right), state)] = 1.0
    chances = (1.0 - slip) * moved + slip * moved.mean(1, keepdims=True)
    rewards = np.full_like(chances, step_reward)
    rewards[:, :, -1] += goal_reward
    return World(chances, rewards)


def softmax(theta: Floats) -> Floats:
    """The policy of a table of logits; over the last axis."""
    powers = np.exp(theta - theta.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def values(world: World, policy: Floats, gamma: float) -> tuple[Floats, Floats]:
    """V [S] and Q [S, A] of a policy."""
    expected = (policy * world.mean_reward).sum(1)
    v = np.linalg.solve(np.eye(world.n_states) - gamma * moves(world, policy), expected)
    return v, world.mean_reward + gamma * world.stays @ v


def best_value(world: World, gamma: float) -> float:
    """The largest value that a policy can have at the start."""
    v = np.zeros(world.n_states)
    while True:
        better = (world.mean_reward + gamma * world.stays @ v).max(1)
        if np.abs(better - v).max() < 1e-12:
            return float(better[0])
        v = better


def moves(world: World, policy: Floats) -> Floats:
    """[S, S]: from a state to the next, under a policy; a row lacks what ends the game."""
    return np.einsum("sa,sat->st", policy, world.stays)


def visits(world: World, policy: Floats, gamma: float = 1.0) -> Floats:
    """[S]: how often a game visits a state, in expectation, a visit after t steps counted gamma^t times."""
    start = np.zeros(world.n_states)
    start[0] = 1.0
    return np.asarray(np.linalg.solve(np.eye(world.n_states) - gamma * moves(world, policy).T, start), np.float64)


def shares(world: World, policy: Floats) -> Floats:
    """w [S]: the share of all steps that begins in a state."""
    found = visits(world, policy)
    return np.asarray(found / found.sum())


def gradient(weights: Floats, policy: Floats, psi: Floats) -> Floats:
    """sum_s w(s) sum_a pi(a|s) psi(s, a) grad log pi(a|s) of a table of logits.

    Args:
        weights: w [S].
        policy: pi [S, A].
        psi: [..., S, A], in expectation given s and a.

    Returns:
        [..., S, A]; what psi has in common in all actions of a state falls out.
    """
    centred = psi - (policy * psi).sum(-1, keepdims=True)
    return np.asarray(weights[:, None] * policy * centred)


def climb(world: World, gamma: float, share: float, step: float = 0.1) -> Floats:
    """The policy on the way from even chances to the best one, at a share of the way in value.

    Exact policy gradient ascent on V(start) with steps of one length.
    """
    theta = np.zeros((world.n_states, N_ACTIONS))
    first, best = float(values(world, softmax(theta), gamma)[0][0]), best_value(world, gamma)
    while True:
        policy = softmax(theta)
        v, q = values(world, policy, gamma)
        if v[0] >= first + share * (best - first):
            return policy
        ascent = gradient(visits(world, policy, gamma), policy, q)
        theta = theta + step * ascent / np.linalg.norm(ascent)
