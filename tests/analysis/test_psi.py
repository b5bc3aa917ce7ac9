"""The exact study of psi: the grid by hand, moments beside every path and beside samples of the suite's estimators."""

from itertools import islice, pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import gridworld, moments, psi
from analysis.aggregate import Floats
from analysis.gridworld import World
from benchmarks import psi_samples
from benchmarks.psi_samples import Rollouts

SMALL = gridworld.make_grid(2, 2, slip=0.2, step_reward=-0.1, goal_reward=1.0)  # 0 1 / 2 goal
UNEVEN = np.array([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.4, 0.1], [0.3, 0.5, 0.1, 0.1]])
CRITICS = np.array([[0.3, -0.2, 0.7]]), np.random.default_rng(2).standard_normal((1, 3, 4))  # V^ and Q_w, both wrong
CASE = psi.Case(0.0, 1.0, UNEVEN, *CRITICS)

# trace of the covariance of a sample over |g|^2 at gamma = 1, with an exact critic, of policies at 0, 50 and 90%
VARIANCES = {
    "total reward": (67050, 22272, 2496),
    "reward to go": (20664, 6511, 5113),
    "reward to go - V": (12845, 4950, 1244),
    "Q": (7918, 1634, 3950),
    "A = Q - V": (98, 74, 81),
    "TD error": (122, 91, 97),
    "all actions, Q": (32, 26, 23),
}


@pytest.fixture(scope="module")
def world() -> World:
    return psi.make_world()


@pytest.fixture(scope="module")
def biases(world: World) -> pd.DataFrame:
    return psi.bias_table(world, n_critics=4)


def test_the_grid_by_hand() -> None:
    chances = SMALL.chances
    assert chances.shape == (3, 4, 4)
    # right in cell 0 leads to 1; the grid's own moves: up and left stay, right to 1, down to 2
    assert chances[0, 1].tolist() == pytest.approx([0.1, 0.85, 0.05, 0.0])
    assert chances[1, 2].tolist() == pytest.approx([0.05, 0.1, 0.0, 0.85])  # down in 1 is the goal
    assert SMALL.rewards[1, 2].tolist() == pytest.approx([-0.1, -0.1, -0.1, 0.9])
    assert SMALL.mean_reward[1, 2] == pytest.approx(0.85 * 0.9 - 0.15 * 0.1)
    certain = gridworld.make_grid(4, 6, 0.0, 0.0, 1.0)
    assert gridworld.best_value(certain, 0.95) == pytest.approx(0.95**7)  # eight moves


def test_the_gradient_is_the_slope_of_the_value(world: World) -> None:
    """Without discount V(start) rises by g times the steps of a game."""
    theta = np.random.default_rng(1).standard_normal((world.n_states, 4))
    policy = gridworld.softmax(theta)
    slope = np.zeros_like(theta)
    for state, action in product(range(0, world.n_states, 5), range(4)):
        for sign in (1.0, -1.0):
            moved = theta.copy()
            moved[state, action] += sign * 1e-5
            slope[state, action] += sign * gridworld.values(world, gridworld.softmax(moved), 1.0)[0][0] / 2e-5
    found = gridworld.visits(world, policy).sum() * moments.true_gradient(world, policy, 1.0)
    assert found[::5] == pytest.approx(slope[::5], rel=1e-5, abs=1e-7)


def test_six_psi_have_one_mean_and_these_variances(world: World) -> None:
    table = psi.variance_table(world).set_index(["gamma", "psi", "policy"])
    undiscounted = table.loc[1.0]
    assert undiscounted["bias"].max() < 1e-12
    found = {
        name: tuple(round(undiscounted.loc[(name, share), "variance"]) for share in psi.SHARES) for name in psi.PSI
    }
    assert found == VARIANCES
    discounted = table.loc[psi.GAMMA]
    assert discounted.drop("total reward", level="psi")["bias"].max() < 1e-12
    assert discounted.loc["total reward", "bias"].min() > 0.3  # the gradient of another thing
    assert discounted.loc["total reward", "cosine"].between(0.98, 0.9999).all()


def test_total_reward_with_discount_is_the_slope_of_the_discounted_value() -> None:
    gamma = 0.7
    total = moments.total_reward(SMALL, UNEVEN, gamma)
    found = gridworld.gradient(gridworld.shares(SMALL, UNEVEN), UNEVEN, total.first[0])
    once = gridworld.visits(SMALL, UNEVEN, gamma) / gridworld.visits(SMALL, UNEVEN).sum()
    assert found == pytest.approx(gridworld.gradient(once, UNEVEN, gridworld.values(SMALL, UNEVEN, gamma)[1]))


def test_total_reward_where_nothing_is_left_to_chance() -> None:
    """A corridor that is walked from end to end: psi 1 is one number in every state, so its square is the square."""
    corridor = gridworld.make_grid(1, 5, slip=0.0, step_reward=-0.3, goal_reward=2.0)
    right = np.tile([0.0, 1.0, 0.0, 0.0], (4, 1))
    found = moments.total_reward(corridor, right, 0.7)
    total = -0.3 * (1 + 0.7 + 0.49 + 0.343) + 2.0 * 0.343
    assert found.first[0, :, 1] == pytest.approx(np.full(4, total))
    assert found.second[0, :, 1] == pytest.approx(np.full(4, total**2))


def test_total_reward_beside_played_games() -> None:
    """Mean and mean square of psi 1 over the steps of games, the past and its discount included."""
    gamma, random = 0.7, np.random.default_rng(0)
    played = psi_samples.play(SMALL, UNEVEN, 200, 300, random)
    discounts, totals, places = gamma ** np.arange(200), [], []
    for number, (rewards, ended) in enumerate(zip(played.rewards.T, played.terminated.T, strict=True)):
        for begin, end in pairwise(np.flatnonzero(ended) + 1):  # whole games alone
            totals += [discounts[: end - begin] @ rewards[begin:end]] * (end - begin)
            places += [(step, number) for step in range(begin, end)]
    steps = tuple(np.array(places).T)
    first, second, visited = (np.zeros(UNEVEN.shape) for _ in range(3))
    for sums, values in ((first, np.array(totals)), (second, np.array(totals) ** 2), (visited, np.ones(len(totals)))):
        np.add.at(sums, (played.states[steps], played.actions[steps]), values)
    exact = moments.total_reward(SMALL, UNEVEN, gamma)
    assert first / visited == pytest.approx(exact.first[0], abs=0.03)
    assert second / visited == pytest.approx(exact.second[0], abs=0.03)


def every_path(t_max: int) -> tuple[Rollouts, Floats]:
    """Every rollout of t_max steps that can come of a first state of `SMALL`, and its probability."""
    paths = [((state,), (), (), (), weight) for state, weight in enumerate(gridworld.shares(SMALL, UNEVEN))]
    for _ in range(t_max):
        paths = [
            (
                (*states, 0 if after == 3 else after),
                (*actions, action),
                (*rewards, SMALL.rewards[states[-1], action, after]),
                (*ended, after == 3),
                weight * UNEVEN[states[-1], action] * SMALL.chances[states[-1], action, after],
            )
            for states, actions, rewards, ended, weight in paths
            for action, after in product(range(4), range(4))
            if SMALL.chances[states[-1], action, after] > 0.0
        ]
    columns = (np.array(column).T for column in zip(*paths, strict=True))
    *played, weights = columns
    return Rollouts(*played), weights


@pytest.mark.parametrize(
    ("kind", "t_max", "gae_lambda"),
    [
        ("nstep", 3, None),
        ("gae", 3, 0.6),
        ("td", 2, None),
        ("monte_carlo", 3, None),
        ("baseline", 3, None),
        ("q", 2, None),
        (psi_samples.WITHOUT_BASELINE, 2, None),
    ],
)
def test_moments_beside_every_path(
    kind: str, t_max: int, gae_lambda: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's estimator on each rollout that there is, weighed by its probability."""
    monkeypatch.setattr(psi_samples, "GAMMA", 0.8)
    played, weights = every_path(t_max)
    assert weights.sum() == pytest.approx(1.0)
    estimated, usable = psi_samples.estimate(CASE, kind, gae_lambda, played)
    first, second, known = (np.zeros(UNEVEN.shape) for _ in range(3))
    place = played.states[:-1], played.actions
    for sums, value in ((first, estimated), (second, estimated**2), (known, np.ones_like(estimated))):
        np.add.at(sums, place, np.where(usable, value, 0.0) * weights)
    exact = psi_samples.exact(SMALL, CASE, kind, t_max, gae_lambda)
    share = t_max * gridworld.shares(SMALL, UNEVEN)[:, None] * UNEVEN
    assert first == pytest.approx(share * exact.first[0], abs=1e-12)
    assert second == pytest.approx(share * exact.second[0], abs=1e-12)
    assert known == pytest.approx(share * exact.known[0], abs=1e-12)


def test_limits_of_the_recursion(world: World) -> None:
    """Long rollouts have the moments of whole games; a single step those of the TD error, whatever lambda is."""
    policy = gridworld.climb(world, 1.0, 0.9)
    critics = np.random.default_rng(0).standard_normal((2, world.n_states))
    whole = moments.less_baseline(moments.reward_to_go(world, policy, 0.5), critics)
    # positions near a rollout's end bootstrap, so compare the last position alone: n A_n - (n - 1) A_(n-1)
    before, last = islice(moments.rollouts(world, policy, 0.5, 1.0, critics), 58, 60)
    assert 60 * last.first - 59 * before.first == pytest.approx(whole.first, abs=1e-9)
    assert 60 * last.second - 59 * before.second == pytest.approx(whole.second, abs=1e-9)
    singles = [next(moments.rollouts(world, policy, 0.5, own, critics)) for own in (0.0, 0.5, 1.0)]
    for one in singles[1:]:
        assert one.second == pytest.approx(singles[0].second)


def test_samples_of_the_suite_beside_the_exact_moments(world: World) -> None:
    """2,000 to 20,000 rollouts each; benchmarks/psi_samples.py takes 2M samples."""
    rows = pd.DataFrame(psi_samples.check(world, 60_000))
    assert len(rows) == len(psi_samples.CASES) * len(psi.SHARES)
    off = (rows["mean_sampled"] - rows["mean_exact"]).abs() / rows["standard_error"]
    assert off.max() < 3.0
    assert rows["rms_z"].between(0.75, 1.25).all()
    assert (rows["variance_sampled"] / rows["variance_exact"]).between(0.92, 1.08).all()
    short = rows[(rows["advantage"] == "monte_carlo") & (rows["t_max"] == 20)]
    assert short["bias"].min() > 1.0  # returns that end inside a rollout are not those of all samples


def test_a_wrong_mean_is_seen(world: World) -> None:
    """The same check, of an estimator that is held to be another: it is many standard errors off."""
    random = np.random.default_rng(0)
    case = next(case for case in psi.make_cases(world, 1) if case.error == 0.3)
    played = psi_samples.play(world, case.policy, 5, 20_000, random)
    other = psi_samples.exact(world, case, "gae", 5, 0.5)
    g = moments.true_gradient(world, case.policy, psi.GAMMA)
    sums = psi_samples.Sums(case.policy, g, psi_samples.mean_of(world, case.policy, other))
    sums.add(played, *psi_samples.estimate(case, "nstep", None, played))
    row = psi_samples.compare(moments.quality(world, case.policy, psi.GAMMA, other), sums)
    assert row["rms_z"] > 1.4
    assert row["variance_sampled"] > 1.5 * row["variance_exact"]


def test_bias_falls_and_variance_rises(biases: pd.DataFrame) -> None:
    assert len(biases) == len(psi.SHARES) * len(psi.ERRORS) * (len(psi.T_MAX) * len(psi.LAMBDAS) + 4)
    rollout = biases[(biases["psi"] == "rollout") & (biases["t_max"] == psi.LONG)].set_index(["policy", "critic_error"])
    assert rollout.loc[(slice(None), 0.0), "bias"].max() < 1e-12  # an exact critic has none, at any lambda
    wrong = rollout.loc[(0.5, 0.3)].sort_values("lambda")
    assert (np.diff(wrong["bias"]) < 0).all()
    assert (np.diff(wrong["variance"]) > 0).all()
    best = psi.batch_table(biases)
    best = best[best["best"] & (best["critic_error"] == 1.0)].set_index(["policy", "n_samples"])["lambda"]
    for share in psi.SHARES:
        assert best[share, 5] < best[share, 5000]  # the larger the batch, the more lambda pays


def test_reinforce_needs_the_end_of_games(world: World) -> None:
    """The share of the samples whose game ends in a rollout, and what is left of the bias in long ones."""
    table = psi.ended_table(world).set_index(["policy", "advantage", "t_max"]).sort_index()
    assert (table.loc[(0.5, "baseline"), "known"].diff().dropna() > 0).all()
    assert table.loc[(0.9, "monte_carlo", 1000), "known"] > 0.95
    assert table.loc[(slice(None), "monte_carlo", 20), "bias"].min() > 1.0
    assert table.loc[(slice(None), slice(None), 20), "cosine"].between(0.9, 0.995).all()
    assert table.loc[(0.9, slice(None), 1000), "bias"].max() < 0.05


@pytest.mark.usefixtures("inkless")
def test_the_command(
    tmp_path: Path, biases: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(psi, "bias_table", lambda world: biases)
    assert psi.main(["--out", str(tmp_path / "out")]) == 0
    names = [f"psi_{part}.{kind}" for part in ("variance", "bias", "batch", "ended") for kind in ("png", "pdf", "csv")]
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / name) for name in names]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names}
    table = pd.read_csv(tmp_path / "out" / "psi_batch.csv")
    assert table.groupby(["policy", "critic_error", "n_samples"])["best"].sum().min() == 1
    (tmp_path / "file").touch()
    assert psi.main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err
