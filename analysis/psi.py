r"""The exact study of psi, what multiplies grad log pi: bias and variance of every choice, without sampling.

    python -m analysis.psi --out figures

On a 4 x 6 grid with a tabular policy the policy gradient is known, and so are both moments of every estimator of it
(`analysis.moments`): psi 1 to 6 of Schulman et al. 2016, n-step returns and GAE of rollouts of t_max steps with critics
that are right or wrong, Q of a critic. Writes four figures, as PNG, PDF and CSV each: psi_variance (the six psi),
psi_bias (bias and variance against lambda and t_max), psi_batch (the error of a gradient of B samples) and psi_ended
(REINFORCE of rollouts shorter than games). Takes half a minute. docs/psi.md reads them;
`python benchmarks/psi_samples.py` checks them by samples.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis import cli, figure, gridworld, moments, style
from analysis.aggregate import Floats
from analysis.gridworld import World
from analysis.moments import Moments, Quality

SHARES = (0.0, 0.5, 0.9)  # of the way from even chances to the best policy, in value without discount
GAMMA = 0.97  # per step; the six psi of equation 1 are the same in expectation at 1 alone
ERRORS = (0.0, 0.1, 0.3, 1.0)  # of a critic, in standard deviations of V over the steps of a game
T_MAX = (1, 2, 5, 10, 20, 100)  # steps of a rollout
LAMBDAS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
T_MAX_ENDED = (5, 10, 20, 50, 100, 200, 500, 1000)
LONG = 100  # steps of the rollouts in which lambda is compared
SAMPLES = {5: "5, as A3C's worker", 160: "160, as PAAC", 5000: "5,000"}  # in a gradient; PAAC: 32 environments, 5 steps
N_CRITICS = 100  # of each error
SEED = 0

PSI = ("total reward", "reward to go", "reward to go - V", "Q", "A = Q - V", "TD error", "all actions, Q")
WORLD = (
    "4 x 6 grid, start and goal in opposite corners, slip 0.1, reward -0.04 a step and 1 at the goal, tabular softmax"
)
POLICIES = {0.0: "even chances", 0.5: "half of the way", 0.9: "90% of the way"}
_LOOKS = {
    0.0: style.Look("#000000", "-", "o"),
    0.1: style.Look("#0072B2", (0, (5.0, 1.5)), "s"),
    0.3: style.Look("#E69F00", (0, (5.0, 1.2, 1.0, 1.2)), "^"),
    1.0: style.Look("#D55E00", (0, (1.0, 1.2)), "D"),
}
_POLICY_LOOKS = dict(zip(SHARES, (_LOOKS[0.3], _LOOKS[0.1], _LOOKS[0.0]), strict=True))
_LINEAR_BELOW = 0.01  # of a bias, whose 0 is to be seen


@dataclass(frozen=True)
class Case:
    """One policy, with critics that are off by one error."""

    share: float  # of `SHARES`
    error: float  # of `ERRORS`
    policy: Floats  # [S, A]
    critics: Floats  # V^ [C, S]
    q_critics: Floats  # Q_w [C, S, A]


def make_world() -> World:
    """The grid of this study."""
    return gridworld.make_grid(4, 6, slip=0.1, step_reward=-0.04, goal_reward=1.0)


def make_cases(world: World, n_critics: int = N_CRITICS) -> Iterator[Case]:
    """Every policy with every error. The errors of V^ and Q_w are normal and independent in every state and action."""
    random = np.random.default_rng(SEED)
    for share in SHARES:
        policy = gridworld.climb(world, 1.0, share)
        v, q = gridworld.values(world, policy, GAMMA)
        weights = gridworld.shares(world, policy)
        deviation = np.sqrt(weights @ (v - weights @ v) ** 2)
        noises = random.standard_normal((n_critics, *v.shape)), random.standard_normal((n_critics, *q.shape))
        for error in ERRORS:
            yield Case(share, error, policy, *(x + error * deviation * e for x, e in zip((v, q), noises, strict=True)))


# --- tables -----------------------------------------------------------------------------------------------------------


def six_psi(world: World, policy: Floats, gamma: float) -> list[Quality]:
    """Of each of `PSI` with an exact critic."""
    v, q = gridworld.values(world, policy, gamma)
    to_go = moments.reward_to_go(world, policy, gamma)
    every = (
        moments.total_reward(world, policy, gamma),
        to_go,
        moments.less_baseline(to_go, v[None]),
        moments.of_action(q[None]),
        moments.of_action((q - v[:, None])[None]),
        next(moments.rollouts(world, policy, gamma, 0.0, v[None])),
    )
    found = [moments.quality(world, policy, gamma, psi) for psi in every]
    return [*found, moments.all_actions(world, policy, gamma, q[None])]


def variance_table(world: World) -> pd.DataFrame:
    """A row per policy, gamma and psi: bias / |g|, variance / |g|^2 of one sample, and that in multiples of A's."""
    rows = []
    for share in SHARES:
        policy = gridworld.climb(world, 1.0, share)
        for gamma in (1.0, GAMMA):
            found = six_psi(world, policy, gamma)
            (of_a,) = found[PSI.index("A = Q - V")].variance
            for psi, one in zip(PSI, found, strict=True):
                row = {"policy": share, "gamma": gamma, "psi": psi, "bias": one.bias[0]}
                row |= {"cosine": one.cosine[0], "variance": one.variance[0], "times_a": one.variance[0] / of_a}
                rows.append(row)
    return pd.DataFrame(rows)


def estimators(world: World, case: Case) -> Iterator[tuple[str, int | None, float | None, Moments]]:
    """The estimators of one case: name, t_max (None: to the game's end), lambda (None: it has none), moments of psi."""
    for gae_lambda in LAMBDAS:
        made = moments.rollouts(world, case.policy, GAMMA, gae_lambda, case.critics)
        for t_max, psi in enumerate(islice(made, max(T_MAX)), start=1):
            if t_max in T_MAX:
                yield "rollout", t_max, gae_lambda, psi
    to_go = moments.reward_to_go(world, case.policy, GAMMA)
    yield "reward to go", None, None, to_go
    yield "reward to go - V", None, None, moments.less_baseline(to_go, case.critics)
    yield "Q", None, None, moments.of_action(case.q_critics)
    baseline = (case.policy * case.q_critics).sum(-1, keepdims=True)
    yield "Q - V", None, None, moments.of_action(case.q_critics - baseline)


def bias_table(world: World, n_critics: int = N_CRITICS) -> pd.DataFrame:
    """A row per policy, error of the critic and estimator.

    bias is the root mean square over the critics of |bias| / |g|, variance the mean of the variance of one sample
    / |g|^2, error_B the mean squared error of a mean of B independent samples / |g|^2.
    """
    rows = []
    for case in make_cases(world, n_critics):
        for name, t_max, gae_lambda, psi in estimators(world, case):
            found = moments.quality(world, case.policy, GAMMA, psi)
            row = {"policy": case.share, "critic_error": case.error, "psi": name, "t_max": t_max, "lambda": gae_lambda}
            row |= {"bias": np.sqrt((found.bias**2).mean()), "variance": found.variance.mean()}
            rows.append(row | {f"error_{n}": found.error(n).mean() for n in SAMPLES})
    return pd.DataFrame(rows)


def batch_table(biases: pd.DataFrame) -> pd.DataFrame:
    """A row per policy, error of the critic, number of samples and lambda, and whether that lambda is the best."""
    long = biases[(biases["psi"] == "rollout") & (biases["t_max"] == LONG)]
    keys = ["policy", "critic_error"]
    errors = {f"error_{n}": n for n in SAMPLES}
    table = long.melt([*keys, "lambda"], list(errors), "n_samples", "error").replace({"n_samples": errors})
    least = table.groupby([*keys, "n_samples"])["error"].transform("min")
    return table.assign(best=table["error"] <= least * (1.0 + 1e-9)).sort_values([*keys, "n_samples", "lambda"])


def ended_table(world: World) -> pd.DataFrame:
    """A row per policy, t_max and REINFORCE without and with a baseline, of samples whose game ends inside."""
    rows = []
    for share in SHARES:
        policy = gridworld.climb(world, 1.0, share)
        v, weights = gridworld.values(world, policy, GAMMA)[0], gridworld.shares(world, policy)
        for t_max, plain in enumerate(islice(moments.ended_returns(world, policy, GAMMA), max(T_MAX_ENDED)), start=1):
            if t_max in T_MAX_ENDED:
                known = (weights[:, None] * policy * plain.known[0]).sum()
                for name, psi in (("monte_carlo", plain), ("baseline", moments.less_baseline(plain, v[None]))):
                    found = moments.quality(world, policy, GAMMA, psi)
                    row = {"policy": share, "advantage": name, "t_max": t_max, "known": known, "bias": found.bias[0]}
                    rows.append(row | {"cosine": found.cosine[0], "variance": found.variance[0]})
    return pd.DataFrame(rows)


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_variance(table: pd.DataFrame) -> Figure:
    """The six psi: the variance of a sample, a line of marks per psi."""

    def fill(part: SubFigure) -> Sequence[Artist]:
        panels = figure.grid(part, 2, 2)
        for panel, gamma in zip(panels, (1.0, GAMMA), strict=True):
            for share in SHARES:
                rows = table[(table["policy"] == share) & (table["gamma"] == gamma)]
                mark = figure.marker(_POLICY_LOOKS[share])
                panel.plot(rows["variance"], range(len(PSI)), linestyle="none", **mark)
            panel.set(xscale="log", xlim=(10.0, 2.0 * table["variance"].max()), ylim=(len(PSI) - 0.5, -0.5))
            panel.set_title(f"gamma = {gamma:g}")
            panel.set_xlabel("variance of a sample / |g|$^2$")
            names = [_numbered(psi) if panel is panels[0] else "" for psi in PSI]
            panel.set_yticks(range(len(PSI)), names)
        return [Line2D([], [], linestyle="none", **figure.marker(look)) for look in _POLICY_LOOKS.values()]

    text = (
        f"{WORLD}; exact critic, no sampling. g = sum of w(s) pi(a|s) Q(s,a) grad log pi(a|s), w: share of the steps. "
        "At gamma = 1 all have the same mean, so the variance is all that differs; at less, psi 1 is another gradient, "
        "that of the discounted return, and the others are g still. Policies: on the way of exact gradient ascent."
    )
    section = figure.Section("Six psi, one gradient", 1.25, [f"policy: {name}" for name in POLICIES.values()], fill)
    return figure.compose([section], text, style.TWO_COLUMNS)


def draw_bias(table: pd.DataFrame) -> Figure:
    """Bias and variance against lambda and against t_max, a column per policy, a line per error of the critic."""
    by_lambda = table[(table["psi"] == "rollout") & (table["t_max"] == LONG)]
    by_t_max = table[(table["psi"] == "rollout") & (table["lambda"] == 1.0)].astype({"t_max": int})
    beside = {"Q - V": "Q-V", "Q": "Q"}
    to_end = {"reward to go - V": "end"}

    def section(title: str, rows: pd.DataFrame, key: str, label: str, others: dict[str, str]) -> figure.Section:
        def fill(part: SubFigure) -> Sequence[Artist]:
            panels = figure.grid(part, 2 * len(SHARES), len(SHARES))
            rest = table[table["psi"].isin(others)]
            for panel, (column, share) in zip(panels, ((c, s) for c in _SAID for s in SHARES), strict=True):
                here, points = (x[x["policy"] == share] for x in (rows, rest))
                _draw_lines(panel, here, points, key, column, others)
                _label(panel, column, share, label, pd.concat([rows[column], rest[column]]))
            return [figure.handle(look, with_marker=True) for look in _LOOKS.values()]

        return figure.Section(title, 2.0, _legend(), fill)

    text = (
        f"{WORLD}; gamma {GAMMA:g}; bias and variance of one sample against g, exactly, average over samples of a "
        f"rollout. Critic: V plus normal errors, independent in every state, {N_CRITICS} critics; bias is their root "
        "mean square. Q, Q-V: psi is a critic's Q(s,a), without and with its mean over actions taken off, with "
        "errors of the same size. end: reward to the game's end minus V. Bias is linear below 0.01, so that 0 is seen."
    )
    parts = [
        section(f"GAE, rollouts of {LONG} steps", by_lambda, "lambda", "lambda", beside),
        section("n-step returns (lambda = 1)", by_t_max, "t_max", "t_max, steps of a rollout", to_end),
    ]
    return figure.compose(parts, text, style.TWO_COLUMNS)


def draw_batch(table: pd.DataFrame) -> Figure:
    """The error of a gradient of B samples against lambda, a row per policy, a column per B; the best is ringed."""

    def fill(part: SubFigure) -> Sequence[Artist]:
        panels = figure.grid(part, len(SHARES) * len(SAMPLES), len(SAMPLES))
        for panel, (share, n) in zip(panels, ((s, n) for s in SHARES for n in SAMPLES), strict=True):
            here = table[(table["policy"] == share) & (table["n_samples"] == n)]
            _draw_lines(panel, here, here[:0], "lambda", "error", {})
            for error, look in _LOOKS.items():
                best = here[(here["critic_error"] == error) & here["best"]].iloc[:1]
                ring: dict[str, Any] = {"markersize": 10.0, "markerfacecolor": "none", "markeredgecolor": look.colour}
                panel.plot([LAMBDAS.index(x) for x in best["lambda"]], best["error"], "o", **ring)
            panel.axhline(1.0, color="0.6", linewidth=0.8, linestyle=(0, (2.0, 2.0)))
            _set_log(panel, table.loc[table["n_samples"] == n, "error"])
            if share == SHARES[0]:
                panel.set_title(f"B = {SAMPLES[n]}")
            if share == SHARES[-1]:
                panel.set_xlabel("lambda")
            if n == min(SAMPLES):
                panel.set_ylabel(f"policy: {POLICIES[share]}\nsquared error / |g|$^2$")
        return [figure.handle(look, with_marker=True) for look in _LOOKS.values()]

    text = (
        f"{WORLD}; gamma {GAMMA:g}; GAE of rollouts of {LONG} steps. (|bias|$^2$ + variance / B) / |g|$^2$ of the mean "
        f"of B independent samples, mean over {N_CRITICS} critics; above 1, the dashed line, no gradient at all is "
        "nearer. Ring: the best lambda of those drawn. A3C's worker has 5 samples in a gradient, PAAC 160."
    )
    section = figure.Section("A gradient of B samples", len(SHARES), _legend(), fill)
    return figure.compose([section], text, style.TWO_COLUMNS)


def draw_ended(table: pd.DataFrame) -> Figure:
    """REINFORCE of rollouts shorter than games: the share of samples that it can use, and what comes of it."""

    def fill(part: SubFigure) -> Sequence[Artist]:
        columns = {"known": "share of samples that it uses", "bias": "bias / |g|", "cosine": "cosine with g"}
        for panel, (column, label) in zip(figure.grid(part, 3, 3), columns.items(), strict=True):
            for share, look in _POLICY_LOOKS.items():
                for name, line, face in (("monte_carlo", "-", look.colour), ("baseline", ":", "white")):
                    rows = table[(table["policy"] == share) & (table["advantage"] == name)]
                    mark = figure.marker(look) | {"markerfacecolor": face, "markeredgecolor": look.colour}
                    panel.plot(rows["t_max"], rows[column], linestyle=line, **mark)
            panel.set(xscale="log", xlabel="t_max", title=label)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if column == "bias":
                _set_log(panel, table["bias"])
                panel.axhline(1.0, color="0.6", linewidth=0.8, linestyle=(0, (2.0, 2.0)))
        return [Line2D([], [], **figure.marker(look)) for look in _POLICY_LOOKS.values()]

    text = (
        f"{WORLD}; gamma {GAMMA:g}, exactly. advantage=monte_carlo (filled, solid) and advantage=baseline with an "
        "exact V (hollow, dotted) use a sample only if its game ends within its rollout: those near the goal, whose "
        "gradient is large, so that the mean is too long, and points a little elsewhere. Above the dashed line no "
        "gradient at all is nearer."
    )
    legend = [f"policy: {name}" for name in POLICIES.values()]
    section = figure.Section("REINFORCE with rollouts shorter than games", 1.0, legend, fill)
    return figure.compose([section], text, style.TWO_COLUMNS)


_SAID = {"bias": "bias / |g|", "variance": "variance / |g|$^2$"}


def _draw_lines(
    panel: Axes, rows: pd.DataFrame, rest: pd.DataFrame, key: str, column: str, others: dict[str, str]
) -> None:
    """A line per error over the values of `key`, evenly spaced, and points for other psi to the right of them."""
    places = sorted(rows[key].unique())
    for error, look in _LOOKS.items():
        line = rows[rows["critic_error"] == error].sort_values(key)
        mark = figure.marker(look)
        panel.plot(range(len(places)), line[column], linestyle=look.line_style, **mark)
        for i, name in enumerate(others):
            point = rest[(rest["critic_error"] == error) & (rest["psi"] == name)]
            panel.plot([len(places) + i], point[column], linestyle="none", **mark)
    panel.set_xticks(range(len(places) + len(others)), [*(f"{place:g}" for place in places), *others.values()])
    panel.xaxis.set_minor_locator(NullLocator())
    if others:
        panel.axvline(len(places) - 0.5, color="0.6", linewidth=0.6, linestyle=(0, (2.0, 2.0)))


def _label(panel: Axes, column: str, share: float, label: str, shown: "pd.Series[float]") -> None:
    """Labels and scale, the same in a row of panels; `shown`: what the row shows."""
    if column == "bias":
        figure.scale_with_zero(panel, "y", float(shown.max()), _LINEAR_BELOW)
        panel.set_title(f"policy: {POLICIES[share]}")
    else:
        _set_log(panel, shown)
        panel.set_xlabel(label)
    if share == SHARES[0]:
        panel.set_ylabel(_SAID[column])


def _set_log(panel: Axes, shown: "pd.Series[float]") -> None:
    """A logarithmic axis upwards whose labels are numbers."""
    panel.set(yscale="log", ylim=(0.7 * shown.min(), 1.4 * shown.max()))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if shown.max() < 100 * shown.min() else (1,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _numbered(psi: str) -> str:
    number = PSI.index(psi) + 1
    return f"{number}  {psi}" if number <= 6 else psi


def _legend() -> list[str]:
    return ["exact critic" if not error else f"off by {error:g} sd of V" for error in ERRORS]


# --- the command line -------------------------------------------------------------------------------------------------


def make_files(folder: Path) -> list[Path]:
    """Writes the four figures and their tables to a folder and gives the paths."""
    world = make_world()
    variances, biases = variance_table(world), bias_table(world)
    batches, ended = batch_table(biases), ended_table(world)
    return [
        *cli.save("psi_variance", draw_variance(variances), variances, folder),
        *cli.save("psi_bias", draw_bias(biases), biases, folder),
        *cli.save("psi_batch", draw_batch(batches), batches, folder),
        *cli.save("psi_ended", draw_ended(ended), ended, folder),
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.psi", description="Draws bias and variance of every psi on a small grid, exactly."
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("figures"), help="default: figures/")
    return cli.write_to(parser.parse_args(arguments).out, "figures", make_files)


if __name__ == "__main__":
    sys.exit(main())
