"""Q-learning: targets and losses by hand, the update against sums over single samples, and the look at bias."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a3c_bench.core.lag import Stamp
from a3c_bench.core.learning import QLearner
from a3c_bench.core.networks import QNetwork
from a3c_bench.core.optim import FlatParameters, RMSProp
from a3c_bench.core.q_learning import ValueCheck, q_loss, q_targets
from a3c_bench.core.replay import Replay, Sample


def test_targets_by_hand() -> None:
    rewards, discounts = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([0.9, 0.0, 0.81])
    target_q = torch.tensor([[2.0, 3.0], [100.0, 200.0], [-1.0, -2.0]])
    online_q = torch.tensor([[5.0, 4.0], [0.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(q_targets(rewards, discounts, target_q), torch.tensor([3.7, -1.0, -0.31]))
    double = q_targets(rewards, discounts, target_q, online_q)  # the online network's choice, the target's value
    torch.testing.assert_close(double, torch.tensor([2.8, -1.0, -1.12]))


@pytest.mark.parametrize(
    ("clip", "reduction", "expected"),
    [
        (1.0, "sum", 0.125 + 0.5 * (0.5 + 2.0) + 2.0 * 1.5),
        (1.0, "mean", (0.125 + 0.5 * (0.5 + 2.0) + 2.0 * 1.5) / 3),
        (None, "sum", 0.125 + 0.5 * 4.5 + 2.0 * 2.0),
        (2.5, "sum", 0.125 + 0.5 * (3.125 + 2.5 * 0.5) + 2.0 * 2.0),
    ],
)
def test_the_loss_by_hand(clip: float | None, reduction: str, expected: float) -> None:
    errors, weights = torch.tensor([0.5, -3.0, 2.0], requires_grad=True), torch.tensor([1.0, 0.5, 2.0])
    loss = q_loss(errors, weights, clip, reduction)
    assert float(loss.detach()) == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, errors)
    limit = clip or torch.inf
    by_hand = weights * torch.tensor([0.5, -3.0, 2.0]).clamp(-limit, limit) / (3 if reduction == "mean" else 1)
    torch.testing.assert_close(gradient, by_hand)


def learner(network: QNetwork, target: QNetwork, make_optimizer: Any = None, **options: Any) -> QLearner:
    parameters = FlatParameters(network)
    optimizer = make_optimizer([parameters.values]) if make_optimizer else None
    defaults = {"double": False, "td_error_clip": None, "reduction": "sum"}
    return QLearner(network, target, parameters, optimizer, **{**defaults, **options})


def make_sample(n: int, n_inputs: int = 3, n_actions: int = 2) -> Sample:
    empty = np.zeros(n, dtype=np.int64)
    return Sample(
        observations=torch.randn(n, n_inputs),
        actions=torch.randint(n_actions, (n,)),
        rewards=torch.randn(n) * 3,
        discounts=torch.where(torch.rand(n) < 0.3, 0.0, 0.9),
        next_observations=torch.randn(n, n_inputs),
        weights=torch.rand(n),
        indices=empty,
        versions=empty,
        frames_at_choice=empty,
        seconds_at_choice=empty.astype(np.float64),
        frames_at_insertion=empty,
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
def test_one_update_equals_single_samples_and_dqns_formula(double: bool, dueling: bool) -> None:
    """Sample by sample with the clipped error as gradient, then centred RMSProp as DeepMind's code writes it."""
    torch.manual_seed(1)
    network, target = (QNetwork((3,), 2, hidden_sizes=(5,), dueling=dueling) for _ in range(2))
    sample = make_sample(16)
    gradient = [torch.zeros_like(p) for p in network.parameters()]
    for b in range(16):
        following = target(sample.next_observations[b : b + 1])[0].tolist()
        chosen = network(sample.next_observations[b : b + 1])[0].tolist() if double else following
        best = following[chosen.index(max(chosen))]
        y = float(sample.rewards[b]) + float(sample.discounts[b]) * best
        q = network(sample.observations[b : b + 1])[0, sample.actions[b]]
        delta = max(-1.0, min(1.0, y - float(q.detach())))
        for total, part in zip(gradient, torch.autograd.grad(q, list(network.parameters())), strict=True):
            total -= float(sample.weights[b]) * delta * part
    before = [p.detach().clone() for p in network.parameters()]
    found = learner(network, target, double=double, td_error_clip=1.0).differentiate(sample)
    for p, expected in zip(network.parameters(), gradient, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in target.parameters())
    assert found.td_errors.abs().max() > 1.0
    optimizer = RMSProp(network.parameters(), lr=2.5e-4, decay=0.95, epsilon=0.01, centered=True)
    optimizer.step()
    for p, old, g in zip(network.parameters(), before, gradient, strict=True):
        mean, square = 0.05 * g, 0.05 * g * g  # g = 0.95 g + 0.05 dw; g2 = 0.95 g2 + 0.05 dw^2
        torch.testing.assert_close(p.detach(), old - 2.5e-4 * g / (square - mean * mean + 0.01).sqrt())


def test_the_target_network_is_what_next_states_are_valued_by() -> None:
    torch.manual_seed(0)
    network, target = QNetwork((3,), 2), QNetwork((3,), 2)
    sample = make_sample(8)._replace(discounts=torch.full((8,), 0.9))
    learning = learner(network, target)
    first = learning.differentiate(sample).td_errors
    with torch.no_grad():
        target.head.bias += 1.0
    second = learning.differentiate(sample).td_errors
    torch.testing.assert_close(second - first, torch.full((8,), 0.9))


@pytest.mark.parametrize("n_step", [1, 2])
def test_a_chain_is_learnt_from_a_replay(n_step: int) -> None:
    """Five states in a row, reward 1 at the end of the last: the values become gamma^(steps to go)."""
    replay = Replay(64, 1, (5,), np.dtype(np.float32), stack=1, n_step=n_step, gamma=0.5)
    states, one, no = np.eye(5, dtype=np.float32), np.ones(1, dtype=bool), np.zeros(1, dtype=bool)
    replay.start(states[:1])
    for i in range(40):
        s = i % 5
        nothing = (np.zeros(1, dtype=np.int64), np.full(1, float(s == 4), dtype=np.float32))
        replay.add(np.zeros(1, np.int32), states[[min(s + 1, 4)]], *nothing, one & (s == 4), no, one,
                   Stamp(0, i, 0.0), i)  # fmt: skip
        if s == 4:  # the phantom step
            replay.add(np.zeros(1, np.int32), states[:1], *nothing, no, no, no, Stamp(0, i, 0.0), i)
    torch.manual_seed(0)
    network, target = (QNetwork((5,), 1, hidden_sizes=()) for _ in range(2))
    learning = learner(network, target, torch.optim.Adam, td_error_clip=1.0, reduction="mean")
    rng = np.random.default_rng(0)
    for i in range(300):
        learning.differentiate(replay.sample(8, rng))
        learning.step(0.1)
        if i % 10 == 0:
            target.load_state_dict(network.state_dict())
    learnt = network(torch.from_numpy(states)).detach()[:, 0]
    torch.testing.assert_close(learnt, torch.tensor([0.0625, 0.125, 0.25, 0.5, 1.0]), rtol=0.0, atol=0.03)


# --- over-estimation --------------------------------------------------------------------------------------------------


def step(check: ValueCheck, q: float, reward: float, end: str = "", valid: bool = True) -> tuple[float, float, int]:
    return check.add(*(np.array([x]) for x in (q, reward, end == "over", end == "cut", valid)))


def test_values_beside_returns_by_hand() -> None:
    check = ValueCheck(1, 0.5)
    assert step(check, 10.0, 1.0) == step(check, 20.0, 2.0) == (0.0, 0.0, 0)  # nobody knows yet
    assert step(check, 30.0, 4.0, "over") == (60.0, 3.0 + 4.0 + 4.0, 3)
    assert step(check, 999.0, 999.0, valid=False) == (0.0, 0.0, 0)  # a phantom


def test_what_a_time_limit_hides_is_left_out() -> None:
    """With gamma 0.5 the value at the end weighs 1/128 seven steps before it: only such states count."""
    check = ValueCheck(1, 0.5)
    for t in range(9):
        found = step(check, float(t), 1.0, "cut" if t == 8 else "")
    assert found == (0 + 1 + 2, pytest.approx((2 - 2**-8) + (2 - 2**-7) + (2 - 2**-6)), 3)
    assert step(check, 5.0, 1.0, "cut") == (0.0, 0.0, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "", "over", "cut"]), st.booleans(), st.integers(-3, 3)), max_size=40))
def test_environments_do_not_mix(steps: list[tuple[str, bool, int]]) -> None:
    together, alone = ValueCheck(2, 0.5), [ValueCheck(1, 0.5) for _ in range(2)]
    for i, (end, valid, reward) in enumerate(steps):
        kinds = [end, "over" if i % 3 == 0 else ""]
        flags = [valid, True]
        rows = ([i, -i], [reward, 2.0], [k == "over" for k in kinds], [k == "cut" for k in kinds], flags)
        found = together.add(*(np.array(row) for row in rows))
        apart = [alone[env].add(*(np.array([row[env]]) for row in rows)) for env in range(2)]
        np.testing.assert_allclose(found, np.sum(apart, axis=0))
