"""Networks in bf16: what is rounded, and what keeps the precision of float32."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters


@pytest.mark.parametrize("lstm_size", [None, 6])
def test_bf16_changes_the_layers_and_not_the_types(lstm_size: int | None) -> None:
    torch.manual_seed(0)
    network = ActorCritic((4,), 3, hidden_sizes=(64, 64), lstm_size=lstm_size)
    torch.manual_seed(0)
    halved = ActorCritic((4,), 3, hidden_sizes=(64, 64), lstm_size=lstm_size, bf16=True)
    observations, state = torch.randn(5, 7, 4), torch.randn(7, network.state_size)
    ends = torch.zeros(5, 7, dtype=torch.bool)
    for exact, rounded in zip(
        (*network(observations[0], state), *network.unroll(observations, state, ends)),
        (*halved(observations[0], state), *halved.unroll(observations, state, ends)),
        strict=True,
    ):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(halved.unroll(observations, state, ends)[1], network.unroll(observations, state, ends)[1])
    log_probs, _ = halved.policy(observations[0], state)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(7))
    log_probs.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in halved.trunk.parameters() if p.grad is not None)


def test_in_bf16_weights_that_change_while_another_thread_predicts_are_seen_at_once() -> None:
    torch.manual_seed(0)
    network = ActorCritic((4,), 3, hidden_sizes=(16, 16), bf16=True)
    parameters = FlatParameters(network)
    observations, state = torch.randn(5, 4), network.initial_state(5)
    inside, changed = threading.Event(), threading.Event()

    def hold(module: Any, inputs: Any) -> None:
        if threading.current_thread() is slow:
            inside.set()
            assert changed.wait(30.0)

    slow = threading.Thread(target=lambda: network(observations, state))
    network.trunk[2].register_forward_pre_hook(hold)  # the first layer is through
    slow.start()
    assert inside.wait(30.0)
    parameters.values.data.mul_(2.0)
    found = network(observations, state)
    changed.set()
    slow.join()
    for now, alone in zip(found, network(observations, state), strict=True):
        assert torch.equal(now, alone)


def test_in_bf16_values_and_cells_have_the_precision_of_float32() -> None:
    network = ActorCritic((4,), 3, hidden_sizes=(16,), lstm_size=2, bf16=True)
    with torch.no_grad():
        for parameter in (*network.lstm.parameters(), network.value_head.weight):
            parameter.zero_()
        network.lstm.bias_ih[:4] = torch.tensor([-100.0, -100.0, 100.0, 100.0])  # takes nothing in, forgets nothing
        network.value_head.bias.fill_(100.3)
    state = torch.tensor([[0.0, 0.0, 1.001, 3.003]])
    _, values, after = network(torch.randn(1, 4), state)
    assert values.tolist() == [np.float32(100.3)]
    assert after[0, 2:].tolist() == state[0, 2:].tolist()
    _, unrolled = network.unroll(torch.randn(3, 1, 4), state, torch.zeros(3, 1, dtype=torch.bool))
    assert unrolled[:, 0].tolist() == [np.float32(100.3)] * 3
