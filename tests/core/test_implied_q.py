"""The Q-values that a policy implies, and the update by their Bellman residual: by hand, and sample by sample."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters, RMSProp
from a3c_bench.core.pgql import ResidualLearner, implied_q
from a3c_bench.core.replay import Sample

LN2 = math.log(2.0)


def test_the_implied_q_by_hand() -> None:
    log_probs = torch.tensor([[0.5, 0.25, 0.25]]).log()  # H = 1.5 ln 2
    q = implied_q(log_probs, torch.tensor([2.0]), 0.1)
    assert q[0].tolist() == pytest.approx([2 + 0.05 * LN2, 2 - 0.05 * LN2, 2 - 0.05 * LN2])
    assert float((log_probs.exp() * q).sum()) == pytest.approx(2.0)  # its mean is V


def test_at_the_fixed_point_it_is_q() -> None:
    """pi(a) proportional to exp(Q(a) / alpha), and V = sum pi Q."""
    q = torch.tensor([[0.3, -0.2, 0.1, 0.4]])
    log_probs = (q / 0.2).log_softmax(-1)
    torch.testing.assert_close(implied_q(log_probs, (log_probs.exp() * q).sum(-1), 0.2), q)


def sample(observations: Tensor, actions: list[int], rewards: list[float], discounts: list[float], following: Tensor):  # type: ignore[no-untyped-def]
    nothing: Any = np.zeros(len(actions), dtype=np.int64)
    numbers = torch.tensor(actions), torch.tensor(rewards), torch.tensor(discounts)
    return Sample(observations, *numbers, following, torch.ones(len(actions)), *[nothing] * 5)


def learner(
    network: ActorCritic, alpha: float = 0.1, reduction: str = "sum", value_weight: float = 0.25
) -> ResidualLearner:
    parameters = FlatParameters(network)
    optimizer = RMSProp([parameters.values], 1.0)
    return ResidualLearner(network, parameters, optimizer, alpha=alpha, value_weight=value_weight, reduction=reduction)


def test_one_update_by_hand() -> None:
    """Two states, two actions, tables: pi is uniform and Q~ = V = 0 in state 0; V = 2 in state 1."""
    network = ActorCritic((2,), 2, hidden_sizes=())
    for parameter in network.parameters():
        parameter.data.zero_()
    network.value_head.weight.data[0, 1] = 2.0
    network.policy_head.weight.data[:, 1] = torch.tensor([LN2, 0.0])  # pi = 2/3, 1/3: max Q~ is not V
    best = 0.1 * (math.log(2 / 3) - (2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))) + 2.0
    states = torch.eye(2)
    found = learner(network).differentiate(sample(states[:1], [1], [1.0], [0.9], states[1:]))
    delta = 1.0 + 0.9 * best
    assert found.td_errors.tolist() == pytest.approx([delta])
    assert delta > 2.8  # it would be 2.8 with V(s') in the place of the maximum
    # against delta (e_a - pi), and against 2 c delta
    assert network.policy_head.weight.grad[:, 0].tolist() == pytest.approx([0.5 * delta, -0.5 * delta])  # type: ignore[index]
    assert network.policy_head.weight.grad[:, 1].tolist() == [0.0, 0.0]  # type: ignore[index]
    assert network.value_head.weight.grad[0].tolist() == pytest.approx([-0.5 * delta, 0.0])  # type: ignore[index]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_gradient_is_that_of_the_papers_sum(reduction: str) -> None:
    """Sample by sample, delta as a number: d theta = delta grad log pi, d w = 2 c delta grad V; nothing through s'."""
    torch.manual_seed(0)
    network, alpha, c = ActorCritic((5,), 3, hidden_sizes=(8,), initialisation="fan_in"), 0.3, 0.4
    x, y = torch.randn(2, 6, 5)
    actions, rewards, discounts = [0, 2, 1, 1, 0, 2], [1.0, -2.0, 0.0, 0.5, 3.0, 0.1], [0.9, 0.0, 0.9, 0.81, 0.0, 0.9]
    total = [torch.zeros_like(p) for p in network.parameters()]
    deltas = []
    for i in range(6):
        log_probs, value, _ = network(x[i : i + 1], torch.zeros(1, 0))
        entropy = -sum(float(p) * math.log(float(p)) for p in log_probs[0].detach().exp())
        next_log_probs, next_value, _ = network(y[i : i + 1], torch.zeros(1, 0))
        next_entropy = -sum(float(p) * math.log(float(p)) for p in next_log_probs[0].detach().exp())
        following = max(alpha * (float(p) + next_entropy) for p in next_log_probs[0].detach()) + float(
            next_value.detach()
        )
        log_pi = log_probs[0, actions[i]]
        q = alpha * (float(log_pi.detach()) + entropy) + float(value.detach())
        deltas.append(rewards[i] + discounts[i] * following - q)
        ascent = torch.autograd.grad(deltas[-1] * (log_pi + 2 * c * value[0]), list(network.parameters()))
        total = [whole - part for whole, part in zip(total, ascent, strict=True)]
    expected = torch.cat([part.flatten() for part in total]) / {"sum": 1, "mean": 6}[reduction]
    learns = learner(network, alpha, reduction, c)
    found = learns.differentiate(sample(x, actions, rewards, discounts, y))
    torch.testing.assert_close(learns.parameters.gradients, expected)
    assert found.td_errors.tolist() == pytest.approx(deltas, rel=1e-5)
    assert expected.norm() > 0.1


def test_it_learns_without_a_look_at_the_device() -> None:
    """Tensors on "meta" have no values: whoever asks for one, as for what lies on a GPU, raises."""
    learns = learner(ActorCritic((5,), 3, hidden_sizes=(8,)).to("meta"))
    on_cpu = sample(torch.zeros(2, 5), [0, 1], [0.0, 1.0], [0.9, 0.9], torch.zeros(2, 5))
    found = learns.differentiate(on_cpu.to(lambda name, part: part.to("meta")))
    assert learns.apply(0.1).device.type == "meta"
    assert found.td_errors.device.type == "meta"
