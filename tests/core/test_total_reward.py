"""psi 1, the return of the whole episode: by hand, and over rollouts that cut episodes anywhere."""

import numpy as np
import pytest
import torch

from a3c_bench.core.advantages import estimator, past_after
from a3c_bench.core.learning import ActorCriticLearner
from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters, RMSProp
from a3c_bench.core.rollout import Batch

GAMMA = 0.5


def test_by_hand() -> None:
    """An episode that began before, with 3 collected in two steps; its end, a phantom, and one that goes on."""
    rewards = torch.tensor([[4.0], [8.0], [0.0], [16.0], [2.0]])
    values = torch.full((6, 1), 100.0)
    no = torch.zeros(5, 1, dtype=torch.bool)
    terminated, begins = no.clone(), no.clone()
    terminated[1] = begins[2] = begins[3] = True
    past = torch.tensor([[3.0], [0.25]])
    found = estimator("total_reward", GAMMA)(rewards, values, terminated, no, begins, past)
    assert found.advantages[:2, 0].tolist() == [3 + 0.25 * (4 + 8 / 2)] * 2
    assert found.advantages[3:, 0].tolist() == [16 + 2 / 2 + 100 / 4] * 2
    assert found.returns[[0, 1, 3], 0].tolist() == [8.0, 8.0, 42.0]  # what V learns: reward to go
    assert found.usable[:, 0].tolist() == [True, True, False, False, False]
    ends = torch.tensor(
        [[False], [True], [True], [False], [False]]
    )  # a new episode follows: after the end, the phantom
    assert past_after(past, rewards, ends, GAMMA)[:, 0].tolist() == [16 + 2 / 2, 0.25]


@pytest.mark.parametrize("t_max", [1, 3, 7])
def test_rollouts_go_on_where_the_last_one_stopped(t_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 steps of 3 environments, cut into rollouts; each usable step has the sum over its whole episode."""
    rng, n_envs, n_steps = np.random.default_rng(0), 3, 63
    rewards = rng.integers(-3, 4, (n_steps, n_envs)).astype(np.float32)
    terminated, truncated, valid = (np.zeros((n_steps, n_envs), dtype=bool) for _ in range(3))
    expected, ends_at = np.zeros((n_steps, n_envs)), np.zeros((n_steps, n_envs), dtype=int)
    for b in range(n_envs):
        t = 0
        while t < n_steps:
            length, kind = int(rng.integers(1, 9)), rng.integers(3)  # over with a phantom, a life lost, cut off
            last = t + length - 1
            steps = range(t, min(last + 1, n_steps))
            valid[steps, b] = True
            if last < n_steps:
                (truncated if kind == 2 else terminated)[last, b] = True
            total = sum(GAMMA**k * rewards[step, b] for k, step in enumerate(steps))
            expected[steps, b] = total + (GAMMA**length * 10.0 if kind == 2 else 0.0)  # V is 10 everywhere
            ends_at[steps, b] = last
            t = last + 1 if kind == 1 else last + 2

    network = ActorCritic((1,), 2, hidden_sizes=())
    for parameter in network.parameters():
        parameter.data.zero_()
    network.value_head.bias.data.fill_(10.0)
    estimate = estimator("total_reward", GAMMA)
    psi = []
    monkeypatch.setattr(type(estimate), "__call__", lambda self, *o: psi.append(self.function(*o)) or psi[-1])
    parameters = FlatParameters(network)
    learner = ActorCriticLearner(
        network, parameters, RMSProp([parameters.values], 1.0), estimate,
        entropy_weight=0.0, value_weight=0.0, reduction="sum",
    )  # fmt: skip
    n_usable = 0
    for t in range(0, n_steps, t_max):
        rows = slice(t, t + t_max)
        parts = [torch.from_numpy(part[rows]) for part in (rewards, terminated, truncated, valid)]
        none = torch.zeros(t_max, n_envs, 1)
        found = learner.differentiate(
            Batch(
                none,
                network.initial_state(n_envs),
                none[..., 0].long(),
                none.repeat(1, 1, 2),
                *parts,
                torch.full((n_envs,), 10.0),
            )
        )
        inside = valid[rows] & (ends_at[rows] < t + t_max)
        np.testing.assert_array_equal(found.mask.numpy(), inside)
        np.testing.assert_allclose(psi[-1].advantages.numpy()[inside], expected[rows][inside], rtol=1e-5, atol=1e-5)
        n_usable += inside.sum()
    assert n_usable > 10
