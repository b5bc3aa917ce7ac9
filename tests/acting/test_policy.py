"""Policies: what they draw, what they leave out, and what lies where."""

import numpy as np
import torch

from a3c_bench.acting.policy import Exploration, Policy
from a3c_bench.core.networks import ActorCritic, EpsilonGreedy, QNetwork, sample_actions


def actor_critic() -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic((4,), 3, hidden_sizes=(8,), lstm_size=5, initialisation="fan_in")


def test_a_policy_draws_from_what_the_network_says_and_remembers() -> None:
    network, observations = actor_critic(), torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    choice = Policy(network, torch.Generator().manual_seed(2))(observations, network.initial_state(6))
    with torch.no_grad():
        log_probs, values, state = network(observations, network.initial_state(6))
    assert torch.equal(choice.log_probs, log_probs)
    assert torch.equal(choice.values, values)
    assert torch.equal(choice.state, state)
    assert torch.equal(choice.actions, sample_actions(log_probs, torch.Generator().manual_seed(2)))
    assert not choice.log_probs.requires_grad


def test_values_that_nobody_wants_are_not_computed() -> None:
    network, observations = actor_critic(), torch.ones(6, 4)
    state = network.initial_state(6)
    with_values = Policy(network, torch.Generator().manual_seed(2))(observations, state)
    without = Policy(network, torch.Generator().manual_seed(2))(observations, state, values=False)
    assert torch.equal(without.actions, with_values.actions)
    assert torch.equal(without.state, with_values.state)
    assert (len(with_values.values), len(without.values)) == (6, 0)


def test_a_greedy_policy_takes_the_likeliest_and_draws_nothing() -> None:
    network, generator = QNetwork((4,), 3), torch.Generator().manual_seed(2)
    before, observations = generator.get_state(), torch.eye(4)
    policy = Policy(EpsilonGreedy(network, 0.9), generator, greedy=True)
    assert torch.equal(policy(observations, torch.zeros(4, 0)).actions, network(observations).argmax(-1))
    assert torch.equal(generator.get_state(), before)


def test_exploration_does_anything_as_often_as_epsilon_says() -> None:
    network, device = QNetwork((4,), 3), torch.device("cpu")
    observations = np.ones((30_000, 4), dtype=np.float32)
    q = network(torch.ones(1, 4))[0].detach()
    for epsilon in (0.0, 0.3, 1.0):
        actions, max_q = Exploration(network, np.random.default_rng(0), device)(observations, epsilon)
        np.testing.assert_allclose(max_q, float(q.max()), rtol=1e-5)
        expected = np.full(3, epsilon / 3)
        expected[int(q.argmax())] += 1.0 - epsilon
        np.testing.assert_allclose(np.bincount(actions, minlength=3) / 30_000, expected, atol=0.015)


def test_one_environment_explores_as_one_of_several_would() -> None:
    network, device = QNetwork((4,), 5), torch.device("cpu")
    alone, by_array = np.random.default_rng(0), np.random.default_rng(0)
    explore = Exploration(network, alone, device)
    for observation in np.random.default_rng(1).standard_normal((40, 1, 4), dtype=np.float32):
        explores, anything = by_array.random(1) < 0.5, by_array.integers(5, size=1)
        best = network(torch.from_numpy(observation)).argmax(-1).numpy()
        np.testing.assert_array_equal(explore(observation, 0.5)[0], np.where(explores, anything, best))
    assert alone.bit_generator.state == by_array.bit_generator.state


def test_the_first_of_equal_actions_is_taken_and_what_is_no_number_is_seen() -> None:
    network, device = QNetwork((4,), 3), torch.device("cpu")
    for biases, action, largest in (((1.0, 2.0, 2.0), 1, 2.0), ((9.0, torch.nan, 1.0), 1, torch.nan)):
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(torch.tensor(biases))
        actions, max_q = Exploration(network, np.random.default_rng(0), device)(np.ones((2, 4), dtype=np.float32), 0.0)
        np.testing.assert_array_equal(actions, [action, action])
        np.testing.assert_array_equal(max_q, np.full(2, largest, dtype=np.float32))
