r"""PGQL's grid world (O'Donoghue et al. 2017, section 5.1): actor-critic, Q-learning and both in turn, on tables.

    python -m analysis.pgql_grid --out figures

A 4 x 6 grid without chance, reward 1 at the goal, gamma 0.95, alpha 0.001. The policy is a softmax of theta [S, A],
and the Q-values are those of the policy: Q~(s, a) = alpha (log pi(a|s) + H(s)) + V(s). Each agent step makes

    actor-critic   delta = r + gamma V(s') - Q~(s, a)                 of the step just made
    Q-learning     delta = r + gamma max_b Q~(s', b) - Q~(s, a)       of one drawn evenly from all steps so far
    both           theta(s, .) += step size delta grad log pi(a|s),   V(s) += step size delta

and PGQL the first, then the second. What is drawn is the exact value of the policy at the start, over the best. Seeds
run side by side, each with numbers of its own: the same seed gives the same curve. Writes pgql_grid.png, .pdf and
.csv. docs/psi.md compares it with the paper.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure, SubFigure

from analysis import cli, figure, gridworld, style
from analysis.aggregate import Floats, bootstrap_band
from analysis.gridworld import World
from analysis.groups import Band

Ints = npt.NDArray[np.int64]

GAMMA = 0.95
ALPHA = 0.001  # weight of the entropy, and temperature of Q~
STEP_SIZES = (1.0, 1.2, 2.0)  # the paper's, and larger ones
N_STEPS = 3000
N_SEEDS = 10
EVERY = 10  # steps between two values
METHODS = {"actor_critic": "actor-critic", "q_learning": "Q-learning from replay", "pgql": "PGQL"}
_LOOKS = {
    "actor_critic": style.Look("#0072B2", "-", "o"),
    "q_learning": style.Look("#E69F00", (0, (1.0, 1.2)), "D"),
    "pgql": style.Look("#009E73", (0, (5.0, 1.5)), "s"),
}


@dataclass(frozen=True)
class Steps:
    """An agent step of each of N seeds, [N] each."""

    state: Ints
    action: Ints
    reward: Floats
    following: Ints  # the next state; S where the game is over


class Tables:
    """theta and V of N seeds."""

    def __init__(self, n_seeds: int, n_states: int):
        """Even chances, and V = 0."""
        self.theta = np.zeros((n_seeds, n_states, gridworld.N_ACTIONS))
        self.v = np.zeros((n_seeds, n_states + 1))  # that of the end stays 0
        self.rows = np.arange(n_seeds)

    def log_policy(self, state: Ints) -> Floats:
        """log pi(.|s) [N, A] of states [N]."""
        theta = self.theta[self.rows, state]
        theta = theta - theta.max(1, keepdims=True)
        return np.asarray(theta - np.log(np.exp(theta).sum(1, keepdims=True)))

    def q(self, state: Ints) -> Floats:
        """Q~(s, .) [N, A]; 0 at the end of a game."""
        over = state == self.theta.shape[1]
        log_policy = self.log_policy(np.where(over, 0, state))
        entropy = -(np.exp(log_policy) * log_policy).sum(1, keepdims=True)
        found = ALPHA * (log_policy + entropy) + self.v[self.rows, state][:, None]
        return np.asarray(np.where(over[:, None], 0.0, found))

    def learn(self, steps: Steps, next_value: Floats, step_size: float) -> None:
        """The update of theta and V by delta = r + gamma V(s') - Q~(s, a), from V(s') [N]."""
        delta = steps.reward + GAMMA * next_value - self.q(steps.state)[self.rows, steps.action]
        score = -np.exp(self.log_policy(steps.state))
        score[self.rows, steps.action] += 1.0
        self.theta[self.rows, steps.state] += step_size * delta[:, None] * score
        self.v[self.rows, steps.state] += step_size * delta

    def actor_critic(self, steps: Steps, step_size: float) -> None:
        """From the step just made."""
        self.learn(steps, self.v[self.rows, steps.following], step_size)

    def q_learning(self, steps: Steps, step_size: float) -> None:
        """From a step of the replay."""
        self.learn(steps, self.q(steps.following).max(1), step_size)


def train(method: str, step_size: float, n_steps: int = N_STEPS, seeds: Sequence[int] = range(N_SEEDS)) -> Floats:
    """[N, n_steps // EVERY + 1]: the value at the start over the best, before and after each `EVERY` agent steps."""
    world = make_world()
    best = gridworld.best_value(world, GAMMA)
    chances = np.stack([np.random.default_rng(seed).random((n_steps, 2)) for seed in seeds], axis=2)  # [n_steps, 2, N]
    tables = Tables(len(seeds), world.n_states)
    states, actions = np.zeros((2, n_steps + 1, len(seeds)), dtype=np.int64)  # the replay
    shares = [_value(world, tables) / best]
    for i, (to_act, to_replay) in enumerate(chances):
        policy = np.exp(tables.log_policy(states[i]))
        actions[i] = (to_act[:, None] > policy.cumsum(1)[:, :-1]).sum(1)
        made = _steps(world, states[i], actions[i])
        states[i + 1] = np.where(made.following == world.n_states, 0, made.following)
        if method != "q_learning":
            tables.actor_critic(made, step_size)
        if method != "actor_critic":
            drawn = (to_replay * (i + 1)).astype(np.int64), tables.rows
            tables.q_learning(_steps(world, states[drawn], actions[drawn]), step_size)
        if (i + 1) % EVERY == 0:
            shares.append(_value(world, tables) / best)
    return np.stack(shares, axis=1)


def make_world() -> World:
    """The grid of this study; the paper does not say where its start and goal are, nor its walls."""
    return gridworld.make_grid(4, 6, slip=0.0, step_reward=0.0, goal_reward=1.0)


def _steps(world: World, state: Ints, action: Ints) -> Steps:
    following = world.chances[state, action].argmax(-1)
    return Steps(state, action, world.rewards[state, action, following], following)


def _value(world: World, tables: Tables) -> Floats:
    """[N]: V(start) of each seed's policy, exactly."""
    policies = gridworld.softmax(tables.theta)
    kept = np.einsum("nsa,sat->nst", policies, world.stays)
    expected = (policies * world.mean_reward).sum(2)
    return np.asarray(np.linalg.solve(np.eye(world.n_states) - GAMMA * kept, expected[:, :, None])[:, 0, 0])


# --- figure and table -------------------------------------------------------------------------------------------------


def make_bands(n_steps: int = N_STEPS, n_seeds: int = N_SEEDS) -> dict[tuple[str, float], Band]:
    """Mean over seeds with its interval, of each method and step size."""
    x = np.arange(0, n_steps + 1, EVERY, dtype=np.float64)
    bands = {}
    for step_size in STEP_SIZES:
        for method in METHODS:
            found = train(method, step_size, n_steps, range(n_seeds))
            bands[method, step_size] = Band.of_estimate(x, found.mean(0), *bootstrap_band(found))
    return bands


def make_table(bands: dict[tuple[str, float], Band]) -> pd.DataFrame:
    """A row per method, step size and point of a curve."""
    rows = [band.rows(method=method, step_size=step_size) for (method, step_size), band in bands.items()]
    table = pd.concat(rows, ignore_index=True).rename(columns={"x": "agent_steps", "value": "share_of_best"})
    return table[["method", "step_size", "agent_steps", "share_of_best", "low", "high"]]


def draw(bands: dict[tuple[str, float], Band], n_seeds: int = N_SEEDS) -> Figure:
    """A panel per step size, a line per method."""

    def fill(part: SubFigure) -> Sequence[Artist]:
        panels = figure.grid(part, len(STEP_SIZES), len(STEP_SIZES))
        for panel, step_size in zip(panels, STEP_SIZES, strict=True):
            for method, look in _LOOKS.items():
                band = bands[method, step_size]
                figure.draw_band(panel, band.x, band, look)
            panel.set(ylim=(0.0, 1.05), title=f"step size {step_size:g}", xlabel="agent steps")
        panels[0].set_ylabel("value of the policy / best")
        return [figure.handle(look) for look in _LOOKS.values()]

    text = (
        f"4 x 6 grid without chance, start and goal in opposite corners, reward 1 at the goal; gamma {GAMMA:g}, alpha "
        f"{ALPHA:g}, tables. Exact value of the policy at the start. Line: mean over {n_seeds} seeds, band: 95% "
        "percentile bootstrap. PGQL makes an actor-critic step, then one of Q-learning, in each agent step; Q-learning "
        "alone has one replayed sample in each."
    )
    section = figure.Section("PGQL's grid world", 1.0, list(METHODS.values()), fill)
    return figure.compose([section], text, style.TWO_COLUMNS)


# --- the command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.pgql_grid", description="Trains and draws PGQL, actor-critic and Q-learning on a grid."
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("figures"), help="default: figures/")
    parser.add_argument("--steps", type=cli.positive, default=N_STEPS, help=f"agent steps (default {N_STEPS:,})")
    parser.add_argument("--seeds", type=cli.positive, default=N_SEEDS, help=f"how many (default {N_SEEDS})")
    chosen = parser.parse_args(arguments)

    def write(folder: Path) -> list[Path]:
        bands = make_bands(chosen.steps, chosen.seeds)
        return cli.save("pgql_grid", draw(bands, chosen.seeds), make_table(bands), folder)

    return cli.write_to(chosen.out, "figures", write)


if __name__ == "__main__":
    sys.exit(main())
