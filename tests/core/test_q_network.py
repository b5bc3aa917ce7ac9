"""Q-networks: shapes, the dueling sum and its gradient, and the epsilon-greedy policy."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from a3c_bench.core.networks import EpsilonGreedy, QNetwork, sample_actions

FRAMES = (4, 84, 84)


def n_parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("kind", "shape"), [("mlp", (3,)), ("mlp", (10, 5)), ("nips", FRAMES), ("nature", FRAMES)])
@pytest.mark.parametrize("dueling", [False, True])
def test_it_gives_a_value_for_every_action(kind: str, shape: tuple[int, ...], dueling: bool) -> None:
    network = QNetwork(shape, 6, kind, dueling=dueling)
    q = network(torch.zeros((2, *shape)))
    assert q.shape == (2, 6)
    assert q.dtype == torch.float32


def test_nature_has_the_published_size() -> None:
    """Mnih et al. 2015, 18 actions: three convolutions, 3136 x 512 and 512 x 18."""
    convolutions = (4 * 8 * 8 + 1) * 32 + (32 * 4 * 4 + 1) * 64 + (64 * 3 * 3 + 1) * 64
    assert n_parameters(QNetwork(FRAMES, 18, "nature")) == convolutions + 3137 * 512 + 513 * 18
    dueling = QNetwork(FRAMES, 18, "nature", dueling=True)
    assert n_parameters(dueling) == convolutions + 2 * 3137 * 512 + 513 * 18 + 513


def test_q_is_v_plus_a_minus_its_mean() -> None:
    network = QNetwork((3,), 4, hidden_sizes=(5, 6), dueling=True)
    x = torch.randn(7, 3)
    features = network.trunk(x)
    assert features.shape == (7, 5)  # all hidden layers but the last are shared
    advantages = network.head(network.advantage_stream(features))  # type: ignore[misc]
    value = network.value_head(network.value_stream(features))
    torch.testing.assert_close(network(x), value + advantages - advantages.mean(1, keepdim=True))
    torch.testing.assert_close(network(x).mean(1, keepdim=True), value)
    before = network(x)
    with torch.no_grad():
        network.head.bias += 3.0  # a constant in A cannot be told from V, and is taken out
    torch.testing.assert_close(network(x), before)


def test_dueling_sends_back_less_into_the_shared_layers() -> None:
    """1 / sqrt 2 of the gradient below the streams, all of it within them (Wang et al. 2016, section 4.2)."""
    network = QNetwork((3,), 4, hidden_sizes=(5, 6), dueling=True)
    x = torch.randn(7, 3)
    found = torch.autograd.grad(network(x)[:, 1].sum(), list(network.parameters()))
    features = network.trunk(x)
    advantages = network.head(network.advantage_stream(features))  # type: ignore[misc]
    q = network.value_head(network.value_stream(features)) + advantages - advantages.mean(1, keepdim=True)
    plain = torch.autograd.grad(q[:, 1].sum(), list(network.parameters()))
    for (name, _), one, other in zip(network.named_parameters(), found, plain, strict=True):
        torch.testing.assert_close(one, other * (math.sqrt(0.5) if name.startswith("trunk") else 1.0))


def test_a_dueling_network_needs_a_hidden_layer() -> None:
    with pytest.raises(ValueError, match="needs a hidden layer"):
        QNetwork((3,), 2, hidden_sizes=(), dueling=True)
    assert QNetwork((3,), 2, hidden_sizes=(), dueling=False)(torch.zeros(1, 3)).shape == (1, 2)
    assert QNetwork((2, 3), 2, hidden_sizes=(4,), dueling=True)(torch.zeros(1, 2, 3)).shape == (1, 2)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("changes", [{"channels_last": True}, {"bf16": True}])
def test_layout_and_precision_change_numbers_little(changes: dict[str, Any], dueling: bool) -> None:
    torch.manual_seed(0)
    frames = torch.randint(256, (2, *FRAMES), dtype=torch.uint8)
    plain = QNetwork(FRAMES, 3, "nips", dueling=dueling)
    changed = QNetwork(FRAMES, 3, "nips", dueling=dueling, **changes)
    changed.load_state_dict(plain.state_dict())
    torch.testing.assert_close(changed(frames), plain(frames), rtol=0.05, atol=0.02)
    torch.testing.assert_close(plain(frames), plain(frames.float() / 255.0))
    if "bf16" in changes:
        assert not torch.equal(changed(frames), plain(frames))


@pytest.mark.parametrize("dueling", [False, True])
def test_in_bf16_q_has_the_precision_of_float32(dueling: bool) -> None:
    network = QNetwork((4,), 2, hidden_sizes=(8, 8), dueling=dueling, bf16=True)
    heads = (network.head, network.value_head) if dueling else (network.head,)
    with torch.no_grad():
        for head in heads:
            head.weight.zero_()
            head.bias.fill_(100.3)
    assert network(torch.randn(3, 4)).tolist() == [[np.float32(100.3)] * 2] * 3


def test_inputs_are_standardised_after_scaling() -> None:
    torch.manual_seed(0)
    frames = torch.randint(256, (2, *FRAMES), dtype=torch.uint8)
    plain, centred = QNetwork(FRAMES, 3, "nips"), QNetwork(FRAMES, 3, "nips", input_mean=0.25, input_std=0.5)
    centred.load_state_dict(plain.state_dict())
    torch.testing.assert_close(centred(frames), plain((frames.float() / 255.0 - 0.25) / 0.5))
    assert not torch.allclose(centred(frames), plain(frames))


def test_initialisations_differ() -> None:
    drawn = {}
    for kind in ("orthogonal", "fan_in"):
        torch.manual_seed(0)
        drawn[kind] = QNetwork((64,), 2, initialisation=kind).head
    assert drawn["orthogonal"].bias.abs().max() == 0.0
    assert 0.0 < drawn["fan_in"].weight.abs().max() <= 1 / 8


def test_the_policy_explores_with_epsilon() -> None:
    network = QNetwork((2,), 4)
    x = torch.randn(3, 2)
    policy = EpsilonGreedy(network, 0.2)
    state = policy.initial_state(3)
    assert state.shape == (3, 0)
    log_probs, values, after = policy(x, state)
    assert after is state
    best = network(x).argmax(1)
    expected = torch.full((3, 4), 0.05).scatter_(1, best[:, None], 0.85)
    torch.testing.assert_close(log_probs.exp(), expected)
    torch.testing.assert_close(values, network(x).max(1).values)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_actions(log_probs[:1].expand(20_000, -1), generator)
    assert float((drawn == best[0]).float().mean()) == pytest.approx(0.85, abs=0.01)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_never_and_always_exploring(epsilon: float) -> None:
    network = QNetwork((2,), 4)
    x = torch.randn(1, 2).expand(2000, -1)
    log_probs, _, _ = EpsilonGreedy(network, epsilon)(x, torch.zeros(2000, 0))
    drawn = sample_actions(log_probs, torch.Generator().manual_seed(0)).bincount(minlength=4)
    if epsilon == 0.0:
        assert drawn[network(x[:1]).argmax()] == 2000
    else:
        assert drawn.min() > 400
