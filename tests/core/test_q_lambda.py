"""PQN's parts: its targets by hand and against naive loops, its loss, layer normalisation, RAdam, its policy."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from a3c_bench import build
from a3c_bench.core.advantages import nstep
from a3c_bench.core.compiled import Compute
from a3c_bench.core.networks import ActorCritic, EpsilonGreedy, QNetwork
from a3c_bench.core.normalisation import with_layer_norm
from a3c_bench.core.optim import FlatParameters, set_learning_rate
from a3c_bench.core.pqn import PQNLearner, q_lambda
from a3c_bench.core.rollout import Batch
from a3c_bench.schema import OptimizerConfig

GAMMA, LAMBDA = 0.9, 0.5


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers).unsqueeze(-1)


def flags(*numbers: int) -> Tensor:
    return column(*numbers).bool()


def test_targets_by_hand() -> None:
    """From the end: 1 + 0.9 * 4 = 4.6; 2 + 0.9 (0.5 * 4.6 + 0.5 * 3) = 5.42; 0 + 0.9 (0.5 * 5.42 + 0.5 * 2) = 3.339."""
    found = q_lambda(column(0.0, 2.0, 1.0), column(9.0, 2.0, 3.0, 4.0), flags(0, 0, 0), flags(0, 0, 0), GAMMA, LAMBDA)
    assert found.returns.flatten().tolist() == pytest.approx([3.339, 5.42, 4.6], rel=1e-6)


@pytest.mark.parametrize(("terminated", "last"), [(True, 2.0), (False, 2.0 + 0.9 * 3.0)])
def test_an_end_has_no_value_and_a_time_limit_has(terminated: bool, last: float) -> None:
    """Both codes take a time limit for an end; row 2 is the phantom step in which the game is reset."""
    ends = flags(0, 1, 0)
    none = torch.zeros_like(ends)
    outcome = (ends, none) if terminated else (none, ends)
    found = q_lambda(column(0.0, 2.0, 100.0), column(9.0, 2.0, 3.0, 100.0), *outcome, GAMMA, LAMBDA)
    assert found.returns[1, 0] == pytest.approx(last)
    assert found.returns[0, 0] == pytest.approx(0.9 * (0.5 * last + 0.5 * 2.0))


def rollout(seed: int, n_steps: int = 12, n_envs: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    rewards, max_q = torch.randn(n_steps, n_envs, generator=draws), torch.randn(n_steps + 1, n_envs, generator=draws)
    ends = torch.rand(2, n_steps, n_envs, generator=draws) < 0.15
    return rewards, max_q, ends[0], ends[1] & ~ends[0]


@pytest.mark.parametrize("seed", range(3))
def test_targets_equal_a_naive_sum(seed: int) -> None:
    """(1 - lambda) sum_n lambda^(n - 1) R^(n), with the longest return for what is left."""
    rewards, max_q, terminated, truncated = rollout(seed)
    found = q_lambda(rewards, max_q, terminated, truncated, GAMMA, LAMBDA).returns
    n_steps, n_envs = rewards.shape
    for i in range(n_envs):
        for t in range(n_steps):
            reward_sum, total, left = 0.0, 0.0, 1.0
            for n in range(1, n_steps - t + 1):
                k = t + n - 1
                reward_sum += GAMMA ** (n - 1) * float(rewards[k, i])
                value = 0.0 if terminated[k, i] else float(max_q[k + 1, i])
                over = bool(terminated[k, i] or truncated[k, i] or k == n_steps - 1)
                weight = left if over else left * (1 - LAMBDA)
                total += weight * (reward_sum + GAMMA**n * value)
                left -= weight
                if over:
                    break
            assert float(found[t, i]) == pytest.approx(total, abs=1e-5)


def test_lambda_0_is_one_step_and_lambda_1_the_longest_return() -> None:
    rewards, max_q, terminated, truncated = rollout(3)
    one_step = rewards + GAMMA * (~terminated) * max_q[1:]
    outcomes = rewards, max_q, terminated, truncated
    torch.testing.assert_close(q_lambda(*outcomes, GAMMA, 0.0).returns, one_step)
    torch.testing.assert_close(q_lambda(*outcomes, GAMMA, 1.0).returns, nstep(*outcomes, GAMMA).returns)


def test_the_loss_by_hand() -> None:
    """Q(s, .) = (2 s, -s): errors 1 - 2 and 3 + 2; the third sample is a phantom. (1 + 25) / 4 = 6.5."""
    network = QNetwork((1,), 2, hidden_sizes=())
    parameters = FlatParameters(network)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        network.head.bias.zero_()
    optimizer = build.make_optimizer(OptimizerConfig(kind="radam"), parameters.values)
    learner = PQNLearner(EpsilonGreedy(network, 0.1), parameters, optimizer)
    zeros = torch.zeros(1, 3)
    batch = Batch(
        observations=torch.tensor([[[1.0], [2.0], [50.0]]]),
        state=torch.zeros(3, 0),
        actions=torch.tensor([[0, 1, 0]]),
        log_probs=torch.zeros(1, 3, 2),
        rewards=zeros,
        terminated=zeros.bool(),
        truncated=zeros.bool(),
        valid=torch.tensor([[True, True, False]]),
        bootstrap=torch.zeros(3),
    )
    found = learner.differentiate(batch, torch.tensor([[1.0, 3.0, 7.0]]))
    assert float(found.loss) == pytest.approx(6.5)
    assert found.td_errors[0, :2].tolist() == [-1.0, 5.0]
    assert network.head.weight.grad is not None
    assert network.head.weight.grad.flatten().tolist() == pytest.approx([1.0 / 2, -5.0 * 2.0 / 2])
    assert float(found.figures()["td_error"]) == pytest.approx(3.0)
    assert found.values.tolist() == [[2.0, 4.0, 100.0]]
    assert found.log_probs[0, 0].exp().tolist() == pytest.approx([0.95, 0.05])


def test_epsilon_may_be_a_tensor_that_changes() -> None:
    network = QNetwork((3,), 4)
    seen = torch.randn(5, 3)
    state = torch.zeros(5, 0)
    epsilon = torch.tensor(0.3)
    policy = EpsilonGreedy(network, epsilon)
    for value in (0.3, 1.0, 0.02):
        epsilon.fill_(value)
        torch.testing.assert_close(policy(seen, state)[0], EpsilonGreedy(network, value)(seen, state)[0])
        chosen = network(seen).argmax(-1)
        probabilities = policy(seen, state)[0].exp()
        assert probabilities[torch.arange(5), chosen].tolist() == pytest.approx([1 - value + value / 4] * 5, rel=1e-5)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))


@pytest.mark.parametrize("over", ["features", "channels"])
def test_what_is_normalised(over: str) -> None:
    """Over C, H and W as torch's LayerNorm of CleanRL; or over the channels of each place, as flax's."""
    network = with_layer_norm(nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten()), (2, 5, 4), over)
    convolution, norm = network[0], network[1]
    features = convolution(torch.randn(3, 2, 5, 4))
    expected = torch.empty_like(features)
    for b in range(3):
        if over == "features":
            x = features[b]
            expected[b] = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        else:
            for h in range(3):
                for w in range(2):
                    x = features[b, :, h, w]
                    expected[b, :, h, w] = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(norm(features), expected, rtol=1e-4, atol=1e-5)
    shape = {"features": (6, 3, 2), "channels": (6,)}[over]  # of scale and shift
    assert norm.weight.shape == norm.bias.shape == shape


NATURE = [nn.Conv2d, nn.LayerNorm, nn.ReLU] * 3 + [nn.Flatten, nn.Linear, nn.LayerNorm, nn.ReLU]


def test_every_hidden_layer_is_normalised_before_its_activation() -> None:
    network = QNetwork((4, 84, 84), 6, "nature", layer_norm="features")
    assert [type(layer) for layer in network.trunk] == NATURE
    shapes = [tuple(layer.normalized_shape) for layer in network.trunk if isinstance(layer, nn.LayerNorm)]
    assert shapes == [(32, 20, 20), (64, 9, 9), (64, 7, 7), (512,)]
    mlp = QNetwork((4,), 2, hidden_sizes=(8, 9), activation="relu", layer_norm="channels")
    assert [type(layer) for layer in mlp.trunk] == [nn.Flatten, *[nn.Linear, nn.LayerNorm, nn.ReLU] * 2]


@pytest.mark.parametrize("over", ["features", "channels"])
def test_normalised_networks_compute(over: str) -> None:
    """Dueling streams and actor-critics too; the layout in memory changes nothing."""
    frames = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    q = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        options: dict[str, Any] = {"layer_norm": over, "channels_last": channels_last, "dueling": True}
        q.append(QNetwork((4, 84, 84), 6, "nips", **options)(frames))
    torch.testing.assert_close(*q, rtol=1e-4, atol=1e-5)
    assert q[0].shape == (2, 6)
    critic = ActorCritic((4,), 2, layer_norm=over, lstm_size=3)
    log_probs, _, _ = critic(torch.randn(2, 4), critic.initial_state(2))
    assert log_probs.exp().sum(-1).tolist() == pytest.approx([1.0, 1.0])


def test_another_packages_trunk_normalises_itself() -> None:
    def trunk() -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU())

    with pytest.raises(ValueError, match=r"^network\.layer_norm=features is for networks of a3c_bench, and 'mine' is"):
        QNetwork((4,), 2, "mine", own_trunk=trunk, layer_norm="features")


@pytest.mark.parametrize("graphs", [False, True])
def test_radam_is_the_papers(graphs: bool) -> None:
    """Liu et al. 2020, algorithm 2, with the bound 5 of its code: without the second moment until it is known."""
    theta = nn.Parameter(torch.tensor([1.0, -2.0]))
    options = OptimizerConfig(kind="radam", lr=0.1, epsilon=1e-8, beta2=0.9)
    try:
        optimizer = build.make_optimizer(options, theta, Compute(cuda_graphs=graphs))
    except RuntimeError:  # pragma: no cover
        pytest.skip("capturable needs a GPU here")
    assert isinstance(optimizer, torch.optim.RAdam)
    assert optimizer.param_groups[0]["capturable"] == graphs
    if graphs:
        return
    expected, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    rho_inf = 2 / (1 - 0.9) - 1
    for t in range(1, 9):
        g = [0.3 * t, -0.1 / t]
        theta.grad = torch.tensor(g)
        set_learning_rate(optimizer, 0.1 / t)
        optimizer.step()
        rho = rho_inf - 2 * t * 0.9**t / (1 - 0.9**t)
        for i in range(2):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.9 * v[i] + 0.1 * g[i] ** 2
            step = m[i] / (1 - 0.9**t)
            if rho > 5:
                r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
                step *= r * math.sqrt(1 - 0.9**t) / (math.sqrt(v[i]) + 1e-8)
            expected[i] -= 0.1 / t * step
        assert theta.tolist() == pytest.approx(expected, rel=1e-4)
    assert rho > 5
