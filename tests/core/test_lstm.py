"""The LSTM and the state of networks: by hand, unrolled, remembered and forgotten."""

import pytest
import torch
from small_networks import SMALL_FRAME, frames, network

from a3c_bench.core.networks import ActorCritic


def recurrent(kind: str = "mlp") -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic((3,) if kind == "mlp" else SMALL_FRAME, 5, kind, initialisation="fan_in", lstm_size=7)


def test_the_lstm_by_hand() -> None:
    torch.manual_seed(0)
    net = ActorCritic((3,), 2, hidden_sizes=(4,), initialisation="fan_in", lstm_size=5)
    w, b, w_input, w_hidden, b_input, b_hidden, policy_w, policy_b, value_w, value_b = (
        net.trunk[1].weight, net.trunk[1].bias, *net.lstm.parameters(), *net.policy_head.parameters(),
        *net.value_head.parameters(),
    )  # fmt: skip
    x, state = torch.randn(6, 3), torch.randn(6, 10)
    h, c = state[:, :5], state[:, 5:]
    gates = torch.tanh(x @ w.T + b) @ w_input.T + b_input + h @ w_hidden.T + b_hidden
    i, f, g, o = gates.chunk(4, dim=-1)
    new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    new_h = o.sigmoid() * new_c.tanh()
    log_probs, values, new_state = net(x, state)
    torch.testing.assert_close(new_state, torch.cat([new_h, new_c], dim=-1))
    torch.testing.assert_close(log_probs.exp(), (new_h @ policy_w.T + policy_b).softmax(-1))
    torch.testing.assert_close(values, (new_h @ value_w.T + value_b)[:, 0])


@pytest.mark.parametrize("kind", ["mlp", "nips", "nature"])
@pytest.mark.parametrize("lstm_size", [None, 7])
def test_unrolling_equals_stepping_one_by_one(kind: str, lstm_size: int | None) -> None:
    n_steps, n_envs = 6, 3
    torch.manual_seed(0)
    net = ActorCritic((3,) if kind == "mlp" else SMALL_FRAME, 5, kind, initialisation="fan_in", lstm_size=lstm_size)
    observations = torch.randn(n_steps, n_envs, 3)
    if kind != "mlp":
        observations = frames(n_steps * n_envs).view(n_steps, n_envs, *SMALL_FRAME)
    ends = torch.rand(n_steps, n_envs) < 0.3
    assert 0 < ends.sum() < ends.numel()
    start = torch.randn(n_envs, net.state_size)
    log_probs, values = net.unroll(observations, start, ends)
    for b in range(n_envs):
        state = start[b : b + 1]
        for t in range(n_steps):
            step_log_probs, step_value, state = net(observations[t, b : b + 1], state)
            torch.testing.assert_close(step_log_probs[0], log_probs[t, b])
            torch.testing.assert_close(step_value[0], values[t, b])
            if ends[t, b]:
                state = net.initial_state(1)


@pytest.mark.parametrize("lstm_size", [None, 7])
@pytest.mark.parametrize("kind", ["mlp", "nips"])
def test_the_policy_alone_is_that_of_a_step(kind: str, lstm_size: int | None) -> None:
    torch.manual_seed(0)
    net = ActorCritic((3,) if kind == "mlp" else SMALL_FRAME, 5, kind, initialisation="fan_in", lstm_size=lstm_size)
    x = torch.randn(4, 3) if kind == "mlp" else frames(4)
    state = torch.randn(4, net.state_size)
    log_probs, _, after = net(x, state)
    for got, expected in zip(net.policy(x, state), (log_probs, after), strict=True):
        assert torch.equal(got, expected)


def test_the_lstm_remembers_and_forgets_when_told() -> None:
    net = recurrent()
    x = torch.randn(3, 1, 3)
    other = x.clone()
    other[0] += 1.0
    state, never = net.initial_state(1), torch.zeros(3, 1, dtype=torch.bool)
    after_first = torch.tensor([[True], [False], [False]])
    assert not torch.equal(net.unroll(x, state, never)[0][2], net.unroll(other, state, never)[0][2])
    assert torch.equal(net.unroll(x, state, after_first)[0][2], net.unroll(other, state, after_first)[0][2])


def test_no_gradient_flows_through_a_forgotten_state() -> None:
    net = recurrent()
    x = torch.randn(3, 1, 3, requires_grad=True)
    net.unroll(x, net.initial_state(1), torch.tensor([[False], [True], [False]]))[1][2].sum().backward()
    assert x.grad is not None
    assert x.grad[:2].abs().max() == 0.0
    assert x.grad[2].abs().min() > 0.0


def test_a_feed_forward_network_remembers_nothing() -> None:
    net = network("mlp")
    state = net.initial_state(4)
    assert state.shape == (4, 0)
    assert net(torch.randn(4, 3), state)[2].shape == (4, 0)


def test_an_lstm_between_separate_trunks_is_refused() -> None:
    with pytest.raises(ValueError, match="shared_trunk=true"):
        ActorCritic((3,), 2, shared_trunk=False, lstm_size=5)
