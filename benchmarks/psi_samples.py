"""The suite's own estimators, sampled on the grid of `analysis.psi`, beside what they must be exactly.

    python benchmarks/psi_samples.py
    python benchmarks/psi_samples.py --samples 2000000 --out docs/results/psi

Prints a row per policy and estimator, and writes psi_sampled.csv. The critic is off by 0.3 standard deviations of V. An
estimator that is right has a mean within some 3 standard errors of the exact one, `rms_z` near 1 and a variance within
a few per cent. Takes about two minutes.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from a3c_bench.core.advantages import estimator
from analysis import gridworld, moments
from analysis.aggregate import Floats
from analysis.cli import positive
from analysis.gridworld import World
from analysis.moments import Moments, Quality
from analysis.psi import GAMMA, Case, make_cases, make_world

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ERROR = 0.3  # of the critic, in standard deviations of V
AT_ONCE = 10_000  # rollouts
WITHOUT_BASELINE = "q without its baseline"
# advantage, t_max, lambda (of gae alone)
CASES: tuple[tuple[str, int, float | None], ...] = (
    ("td", 5, None),
    ("nstep", 5, None),
    ("nstep", 20, None),
    ("gae", 20, 0.8),
    ("gae", 20, 0.95),
    ("monte_carlo", 20, None),
    ("monte_carlo", 100, None),
    ("baseline", 100, None),
    ("q", 5, None),
    (WITHOUT_BASELINE, 5, None),
)


@dataclass(frozen=True)
class Rollouts:
    """Steps of B players who begin again whenever a game is over; their first states are drawn from those of a game."""

    states: Ints  # [T + 1, B]
    actions: Ints  # [T, B]
    rewards: Floats  # [T, B]
    terminated: Bools  # [T, B]


def play(world: World, policy: Floats, t_max: int, n_rollouts: int, random: np.random.Generator) -> Rollouts:
    """So many rollouts of t_max steps."""
    outcomes = world.chances.cumsum(-1)
    states = [random.choice(world.n_states, n_rollouts, p=gridworld.shares(world, policy))]
    actions, rewards, terminated = [], [], []
    for _ in range(t_max):
        action = _draw(policy.cumsum(-1)[states[-1]], random)
        following = _draw(outcomes[states[-1], action], random)
        actions.append(action)
        rewards.append(world.rewards[states[-1], action, following])
        terminated.append(following == world.n_states)
        states.append(np.where(terminated[-1], 0, following))
    return Rollouts(*(np.stack(rows) for rows in (states, actions, rewards, terminated)))


def exact(world: World, case: Case, kind: str, t_max: int, gae_lambda: float | None) -> Moments:
    """The moments of an estimator of the suite, with the first critic of a case."""
    critic = case.critics[:1]
    if kind in ("monte_carlo", "baseline"):
        psi = next(islice(moments.ended_returns(world, case.policy, GAMMA), t_max - 1, None))
        return psi if kind == "monte_carlo" else moments.less_baseline(psi, critic)
    if kind in ("q", WITHOUT_BASELINE):
        q = case.q_critics[:1]
        return moments.of_action(q if kind == WITHOUT_BASELINE else q - (case.policy * q).sum(-1, keepdims=True))
    own = {"td": 0.0, "nstep": 1.0}.get(kind, gae_lambda)
    assert own is not None
    return next(islice(moments.rollouts(world, case.policy, GAMMA, own, critic), t_max - 1, None))


class Sums:
    """Sums over the samples of an estimator."""

    def __init__(self, policy: Floats, g: Floats, mean: Floats):
        """From the policy, g and the mean that samples should have, [S, A] each."""
        self.policy, self.g, self.mean = policy, g, mean
        self.known = 0  # samples
        self.square = 0.0  # of |sample|^2
        self.off = np.zeros_like(mean)  # the samples of a rollout less as many means, over rollouts
        self.off_square = np.zeros_like(mean)  # its square
        self.along_square = 0.0  # the square of its part along g, times |g|^2

    def add(self, played: Rollouts, psi: Floats, usable: Bools) -> None:
        """The samples psi [T, B] of some rollouts, as far as they are usable [T, B]."""
        psi = np.where(usable, psi, 0.0)
        states, n_rollouts = played.states[:-1], psi.shape[1]
        off = np.zeros((n_rollouts, *self.policy.shape))
        np.add.at(off, (np.broadcast_to(np.arange(n_rollouts), states.shape), states, played.actions), psi)
        off -= off.sum(-1, keepdims=True) * self.policy  # grad log pi: 1 for the action that was taken, less pi
        off -= usable.sum(0)[:, None, None] * self.mean
        self.known += int(usable.sum())
        self.square += float((moments.squared_score(self.policy)[states, played.actions] * psi**2).sum())
        self.off += off.sum(0)
        self.off_square += (off**2).sum(0)
        self.along_square += float(((off * self.g).sum((1, 2)) ** 2).sum())


def check(world: World, n_samples: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """A row per policy and estimator of `CASES`."""
    random = np.random.default_rng(seed)
    for case in make_cases(world, n_critics=1):
        if case.error != ERROR:
            continue
        for t_max in dict.fromkeys(steps for _, steps, _ in CASES):
            chosen = [(kind, steps, own) for kind, steps, own in CASES if steps == t_max]
            psis = [exact(world, case, *one) for one in chosen]
            means = [mean_of(world, case.policy, psi) for psi in psis]
            g = moments.true_gradient(world, case.policy, GAMMA)
            sums = [Sums(case.policy, g, mean) for mean in means]
            for _ in range(max(1, n_samples // (t_max * AT_ONCE))):
                played = play(world, case.policy, t_max, min(AT_ONCE, n_samples // t_max), random)
                for (kind, _, own), each in zip(chosen, sums, strict=True):
                    each.add(played, *estimate(case, kind, own, played))
            for one, psi, each in zip(chosen, psis, sums, strict=True):
                about = {"policy": case.share, "advantage": one[0], "t_max": t_max, "lambda": one[2]}
                yield {**about, **compare(moments.quality(world, case.policy, GAMMA, psi), each)}


def estimate(case: Case, kind: str, gae_lambda: float | None, played: Rollouts) -> tuple[Floats, Bools]:
    """psi [T, B] of the suite's estimator with the first critic of a case, and where it is usable."""
    q = case.q_critics[0]
    values_actions = kind in ("q", WITHOUT_BASELINE)
    critic = (case.policy * q).sum(-1) if values_actions else case.critics[0]
    more = [q[played.states[:-1], played.actions]] if values_actions else []
    made = estimator(kind.split()[0], GAMMA, 0.0 if gae_lambda is None else gae_lambda, q_baseline=kind == "q")
    ended = played.terminated
    outcomes = played.rewards, critic[played.states], ended, np.zeros_like(ended), *more
    found = made(*map(torch.from_numpy, outcomes))
    return found.advantages.numpy(), found.usable.numpy()


def mean_of(world: World, policy: Floats, psi: Moments) -> Floats:
    """[S, A]: the mean of the samples, exactly."""
    weights = gridworld.shares(world, policy)
    known = (weights[:, None] * policy * psi.known).sum()
    return np.asarray(gridworld.gradient(weights, policy, psi.first)[0] / known)


def compare(must: Quality, sums: Sums) -> dict[str, float]:
    """Exact beside sampled; a mean is its part along g, in units of |g|.

    rms_z is the root mean square, over the entries, of sampled less exact mean in standard errors; rollout_factor is
    by what the variance of the mean of a rollout exceeds that of as many independent samples.
    """
    g, seen = sums.g, sums.off_square > 0.0
    length = (g**2).sum()
    found = sums.mean + sums.off / sums.known
    variance = sums.square / sums.known - (found**2).sum()
    return {
        "samples": sums.known,
        "bias": float(must.bias[0]),
        "mean_exact": float((sums.mean * g).sum() / length),
        "mean_sampled": float((found * g).sum() / length),
        "standard_error": float(np.sqrt(sums.along_square) / sums.known / length),
        "rms_z": float(np.sqrt((sums.off[seen] ** 2 / sums.off_square[seen]).mean())),
        "variance_exact": float(must.variance[0]),
        "variance_sampled": float(variance / length),
        "rollout_factor": float(sums.off_square.sum() / sums.known / variance),
    }


def _draw(cumulated: Floats, random: np.random.Generator) -> Ints:
    """[B]: an index each, from cumulated probabilities [B, N]."""
    return np.asarray((random.random((len(cumulated), 1)) > cumulated[:, :-1]).sum(1), dtype=np.int64)


def main() -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(description="Samples the suite's estimators of psi beside their exact moments.")
    parser.add_argument("--samples", type=positive, default=2_000_000, help="per estimator (default 2,000,000)")
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), help="folder of psi_sampled.csv (default figures/)"
    )
    chosen = parser.parse_args()
    table = pd.DataFrame(check(make_world(), chosen.samples))
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "psi_sampled.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.4g"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
