"""The estimators against naive ones, written per environment and per step from the definitions, and by hand."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from a3c_bench.core.advantages import Estimate, VTrace, baseline, estimator, gae, monte_carlo, nstep, td

NO_END = (False, False)
TERMINATED = (True, False)
TRUNCATED = (False, True)
BOTH = (True, True)
KINDS = ("nstep", "gae", "td", "monte_carlo", "baseline")


class Episodes(NamedTuple):
    """What one environment did in a rollout; lists over t, `values` one longer."""

    rewards: list[float]
    values: list[float]
    ends: list[tuple[bool, bool]]  # (terminated, truncated)
    phantom: list[bool]

    def last(self, t: int) -> int:
        """The last step that follows t without an end in between."""
        while t + 1 < len(self.rewards) and not any(self.ends[t]):
            t += 1
        return t

    def steps_return(self, t: int, n: int, gamma: float) -> float:
        """n discounted rewards from t and the value of the state after them; an end may only be at the last of them."""
        total = sum(gamma**i * self.rewards[t + i] for i in range(n))
        terminated, _ = self.ends[t + n - 1]
        return total if terminated else total + gamma**n * self.values[t + n]

    def longest_return(self, t: int, gamma: float) -> float:
        return self.steps_return(t, self.last(t) - t + 1, gamma)

    def reaches_an_end(self, t: int) -> bool:
        return any(self.ends[self.last(t)])


def naive(kind: str, episodes: Episodes, t: int, gamma: float, gae_lambda: float) -> tuple[float, float, bool]:
    """(advantage, return, usable) of one step."""
    value = episodes.values[t]
    if kind == "td":
        one_step = episodes.steps_return(t, 1, gamma)
        return one_step - value, one_step, True
    if kind == "gae":
        # The lambda-return: n-step returns weighted by (1 - lambda) lambda^(n - 1), the rest on the longest.
        n_max = episodes.last(t) - t + 1
        average = gae_lambda ** (n_max - 1) * episodes.steps_return(t, n_max, gamma)
        for n in range(1, n_max):
            average += (1 - gae_lambda) * gae_lambda ** (n - 1) * episodes.steps_return(t, n, gamma)
        return average - value, average, True
    full = episodes.longest_return(t, gamma)
    if kind == "nstep":
        return full - value, full, True
    return (full if kind == "monte_carlo" else full - value), full, episodes.reaches_an_end(t)


@st.composite
def rollouts(draw: st.DrawFn, life_losses: bool) -> list[Episodes]:
    """1 to 3 environments over 1 to 8 steps; with life losses some terminations go on without a phantom row."""
    number = st.floats(-10.0, 10.0, allow_subnormal=False)
    n_steps = draw(st.integers(1, 8))
    rollout = []
    for _ in range(draw(st.integers(1, 3))):
        values = draw(st.lists(number, min_size=n_steps + 1, max_size=n_steps + 1))
        episodes = Episodes([], values, [], [])
        resets_next = draw(st.booleans())  # an end in the last step of the rollout before
        for _ in range(n_steps):
            episodes.phantom.append(resets_next)
            if resets_next:
                end = NO_END
                episodes.rewards.append(0.0)
            else:
                end = draw(st.sampled_from([NO_END, NO_END, NO_END, TERMINATED, TRUNCATED, BOTH]))
                episodes.rewards.append(draw(number))
            lost_a_life = life_losses and end == TERMINATED and draw(st.booleans())
            resets_next = any(end) and not lost_a_life
            episodes.ends.append(end)
        rollout.append(episodes)
    return rollout


def stacked(rollout: Sequence[Episodes]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values, terminated and truncated as the estimators take them."""
    rewards = torch.tensor([e.rewards for e in rollout], dtype=torch.float64).T
    values = torch.tensor([e.values for e in rollout], dtype=torch.float64).T
    terminated, truncated = torch.tensor([e.ends for e in rollout]).permute(2, 1, 0)
    return rewards, values, terminated, truncated


def assert_like_naive(kind: str, rollout: Sequence[Episodes], gamma: float, gae_lambda: float) -> None:
    estimate = estimator(kind, gamma, gae_lambda)(*stacked(rollout))
    assert all(part.shape == (len(rollout[0].rewards), len(rollout)) for part in estimate)
    assert estimate.usable.dtype == torch.bool
    for b, episodes in enumerate(rollout):
        for t, phantom in enumerate(episodes.phantom):
            if not phantom:
                advantage, target, usable = naive(kind, episodes, t, gamma, gae_lambda)
                assert estimate.usable[t, b].item() == usable
                assert estimate.advantages[t, b].item() == pytest.approx(advantage, abs=1e-9)
                assert estimate.returns[t, b].item() == pytest.approx(target, abs=1e-9)


fractions = st.floats(0.0, 1.0, allow_subnormal=False)


@pytest.mark.parametrize("kind", KINDS)
@given(rollout=rollouts(life_losses=False), gamma=fractions, gae_lambda=fractions)
@settings(deadline=None, max_examples=60)
def test_estimators_agree_with_naive_ones(kind: str, rollout: list[Episodes], gamma: float, gae_lambda: float) -> None:
    assert_like_naive(kind, rollout, gamma, gae_lambda)


@pytest.mark.parametrize("kind", KINDS)
@given(rollout=rollouts(life_losses=True), gamma=fractions, gae_lambda=fractions)
@settings(deadline=None, max_examples=60)
def test_estimators_agree_with_naive_ones_when_lives_are_lost(
    kind: str, rollout: list[Episodes], gamma: float, gae_lambda: float
) -> None:
    assert_like_naive(kind, rollout, gamma, gae_lambda)


@given(rollout=rollouts(life_losses=True), gamma=fractions)
@settings(deadline=None, max_examples=40)
def test_lambda_spans_td_to_nstep(rollout: list[Episodes], gamma: float) -> None:
    tensors = stacked(rollout)
    for got, expected in [
        (gae(*tensors, gamma, gae_lambda=0.0), td(*tensors, gamma)),
        (gae(*tensors, gamma, gae_lambda=1.0), nstep(*tensors, gamma)),
    ]:
        torch.testing.assert_close(got.advantages, expected.advantages, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(got.returns, expected.returns, rtol=0.0, atol=1e-9)


@given(rollout=rollouts(life_losses=True), gamma=fractions)
@settings(deadline=None, max_examples=40)
def test_baseline_is_monte_carlo_minus_the_value(rollout: list[Episodes], gamma: float) -> None:
    tensors = stacked(rollout)
    plain, with_baseline = monte_carlo(*tensors, gamma), baseline(*tensors, gamma)
    torch.testing.assert_close(with_baseline.advantages, plain.advantages - tensors[1][:-1], rtol=0.0, atol=1e-9)
    assert torch.equal(with_baseline.returns, plain.returns)
    assert torch.equal(with_baseline.usable, plain.usable)


# Hand-worked: one environment, gamma 1/2, values of 4, 2, 6 and, after the last step, 8.


def by_hand(
    kind: str,
    ends: Sequence[tuple[bool, bool]],
    rewards: Sequence[float] = (1.0, 2.0, 3.0),
    values: Sequence[float] = (4.0, 2.0, 6.0, 8.0),
    gae_lambda: float = 0.5,
) -> Estimate:
    phantom = [False] * len(rewards)
    episodes = Episodes(list(rewards), list(values), list(ends), phantom)
    return estimator(kind, gamma=0.5, gae_lambda=gae_lambda)(*stacked([episodes]))


def column(x: Tensor) -> list[float]:
    assert x.shape[1] == 1
    return x[:, 0].tolist()


def test_nstep_bootstraps_from_the_value_after_the_rollout() -> None:
    estimate = by_hand("nstep", [NO_END, NO_END, NO_END])
    # R_2 = 3 + 8/2 = 7;  R_1 = 2 + 7/2 = 5.5;  R_0 = 1 + 5.5/2 = 3.75
    assert column(estimate.returns) == [3.75, 5.5, 7.0]
    assert column(estimate.advantages) == [-0.25, 3.5, 1.0]
    assert column(estimate.usable) == [True, True, True]


def test_nstep_stops_at_a_termination() -> None:
    # R_2 is as before, R_1 = 2 alone, R_0 = 1 + 2/2
    assert column(by_hand("nstep", [NO_END, TERMINATED, NO_END]).returns) == [2.0, 2.0, 7.0]


def test_nstep_at_a_time_limit_takes_the_value_of_the_state_reached() -> None:
    # R_1 = 2 + values[2]/2 = 5, R_0 = 1 + 5/2
    assert column(by_hand("nstep", [NO_END, TRUNCATED, NO_END]).returns) == [3.5, 5.0, 7.0]


def test_a_terminal_state_has_no_value_even_at_a_time_limit() -> None:
    for kind in KINDS:
        both, terminated = (by_hand(kind, [NO_END, end, NO_END]) for end in (BOTH, TERMINATED))
        assert column(both.advantages) == column(terminated.advantages)
        assert column(both.returns) == column(terminated.returns)


def test_td_bootstraps_unless_terminated() -> None:
    # 1 + 2/2 - 4;  2 + 6/2 - 2, or 2 - 2 when terminated;  3 + 8/2 - 6
    assert column(by_hand("td", [NO_END, NO_END, NO_END]).advantages) == [-2.0, 3.0, 1.0]
    assert column(by_hand("td", [NO_END, TRUNCATED, NO_END]).advantages) == [-2.0, 3.0, 1.0]
    assert column(by_hand("td", [NO_END, TERMINATED, NO_END]).advantages) == [-2.0, 0.0, 1.0]
    assert column(by_hand("td", [NO_END, TERMINATED, NO_END]).returns) == [2.0, 2.0, 7.0]


@pytest.mark.parametrize(
    ("end", "advantages"),
    [
        (NO_END, [-1.1875, 3.25, 1.0]),  # 3 + 1/4;  -2 + 3.25/4
        (TRUNCATED, [-1.25, 3.0, 1.0]),  # 3, nothing from beyond;  -2 + 3/4
        (TERMINATED, [-2.0, 0.0, 1.0]),  # 0;  -2 + 0/4
    ],
)
def test_gae_sums_td_errors_up_to_an_end(end: tuple[bool, bool], advantages: list[float]) -> None:
    estimate = by_hand("gae", [NO_END, end, NO_END], gae_lambda=0.5)  # gamma lambda = 1/4
    assert column(estimate.advantages) == advantages
    assert column(estimate.returns) == [a + v for a, v in zip(advantages, [4.0, 2.0, 6.0], strict=True)]


@pytest.mark.parametrize("kind", ["monte_carlo", "baseline"])
@pytest.mark.parametrize(
    ("ends", "usable"),
    [
        ([NO_END, NO_END, NO_END], [False, False, False]),
        ([NO_END, TERMINATED, NO_END], [True, True, False]),
        ([NO_END, TRUNCATED, NO_END], [True, True, False]),
        ([TERMINATED, NO_END, BOTH], [True, True, True]),
    ],
)
def test_only_steps_whose_episode_ends_in_the_rollout_are_usable(
    kind: str, ends: list[tuple[bool, bool]], usable: list[bool]
) -> None:
    assert column(by_hand(kind, ends).usable) == usable


def test_monte_carlo_has_no_baseline() -> None:
    estimate = by_hand("monte_carlo", [NO_END, NO_END, TERMINATED])
    # R_2 = 3;  R_1 = 2 + 3/2;  R_0 = 1 + 3.5/2
    assert column(estimate.advantages) == [2.75, 3.5, 3.0]
    assert column(estimate.returns) == [2.75, 3.5, 3.0]
    assert column(by_hand("baseline", [NO_END, NO_END, TERMINATED]).advantages) == [-1.25, 1.5, -3.0]


def test_usable_is_judged_per_environment() -> None:
    ends_at_once, goes_on = (
        Episodes([1.0, 1.0], [0.0] * 3, [end, NO_END], [False] * 2) for end in (TERMINATED, NO_END)
    )
    usable = monte_carlo(*stacked([ends_at_once, goes_on]), gamma=0.5).usable
    assert usable.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [1e30, -1e30])
def test_phantom_rows_do_not_reach_the_others(kind: str, garbage: float) -> None:
    ends = [NO_END, TERMINATED, NO_END, NO_END]
    clean = by_hand(kind, ends, [1.0, 2.0, 0.0, 3.0], [4.0, 2.0, 6.0, 6.0, 8.0])
    spoilt = by_hand(kind, ends, [1.0, 2.0, garbage, 3.0], [4.0, 2.0, garbage, 6.0, 8.0])
    for got, expected in zip(spoilt, clean, strict=True):
        assert torch.equal(got[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_time_limit_the_phantom_row_lends_its_value_only(kind: str) -> None:
    ends = [NO_END, TRUNCATED, NO_END, NO_END]
    values = [4.0, 2.0, 6.0, 6.0, 8.0]
    clean = by_hand(kind, ends, [1.0, 2.0, 0.0, 3.0], values)
    spoilt = by_hand(kind, ends, [1.0, 2.0, 1e30, 3.0], values)
    for got, expected in zip(spoilt, clean, strict=True):
        assert torch.equal(got[[0, 1, 3]], expected[[0, 1, 3]])
    assert column(spoilt.returns)[1] == 5.0  # 2 + 6/2 in every one of them


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_in_single_precision_out_and_nothing_changed(kind: str) -> None:
    rewards, values = torch.ones(2, 1), torch.ones(3, 1)
    terminated, truncated = torch.zeros(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.bool)
    estimate = estimator(kind, gamma=0.5, gae_lambda=0.5)(rewards, values, terminated, truncated)
    assert estimate.advantages.dtype == estimate.returns.dtype == torch.float32
    assert torch.equal(rewards, torch.ones(2, 1))
    assert torch.equal(values, torch.ones(3, 1))


# --- V-trace ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (2.0, 0.5), (100.0, 100.0)])
@pytest.mark.parametrize("seed", range(5))
def test_vtrace_against_the_papers_sum(seed: int, rho_bar: float, c_bar: float) -> None:
    n_steps, n_envs, gamma = 7, 3, 0.9
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(n_steps, n_envs, generator=generator)
    values = torch.randn(n_steps + 1, n_envs, generator=generator)
    log_ratios = torch.randn(n_steps, n_envs, generator=generator)
    terminated, truncated = (torch.rand(n_steps, n_envs, generator=generator) < 0.15 for _ in range(2))
    found = VTrace(gamma, rho_bar, c_bar)(rewards, values, terminated, truncated, log_ratios)
    for b in range(n_envs):
        ratios = log_ratios[:, b].exp().tolist()
        r, v = rewards[:, b].tolist(), values[:, b].tolist()
        rho, c = [min(rho_bar, x) for x in ratios], [min(c_bar, x) for x in ratios]

        def delta(t: int) -> float:
            return rho[t] * (r[t] + gamma * (0.0 if terminated[t, b] else v[t + 1]) - v[t])  # noqa: B023

        targets = []
        for s in range(n_steps):
            target, product = v[s], 1.0
            for t in range(s, n_steps):
                target += product * delta(t)
                if terminated[t, b] or truncated[t, b]:
                    break
                product *= gamma * c[t]
            targets.append(target)
        targets.append(v[n_steps])
        for s in range(n_steps):
            if terminated[s, b]:
                following = 0.0
            else:
                following = v[s + 1] if truncated[s, b] else targets[s + 1]
            assert found.returns[s, b].item() == pytest.approx(targets[s], abs=1e-4)
            assert found.advantages[s, b].item() == pytest.approx(rho[s] * (r[s] + gamma * following - v[s]), abs=1e-4)


def test_vtrace_on_policy_is_nstep() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(6, 4, generator=generator), torch.randn(7, 4, generator=generator)
    terminated, truncated = (torch.rand(6, 4, generator=generator) < 0.2 for _ in range(2))
    expected = nstep(rewards, values, terminated, truncated, 0.99)
    found = VTrace(0.99, 1.0, 1.0)(rewards, values, terminated, truncated, torch.zeros(6, 4))
    torch.testing.assert_close(found.advantages, expected.advantages, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.returns, expected.returns, rtol=1e-5, atol=1e-5)
