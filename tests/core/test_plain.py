"""The forward pass without modules: the same numbers, of the weights as they are when it is asked."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from a3c_bench.acting.policy import Exploration, Policy
from a3c_bench.core.compiled import Compute
from a3c_bench.core.networks import ActorCritic, EpsilonGreedy, QNetwork
from a3c_bench.core.optim import FlatParameters
from a3c_bench.core.plain import plain_forward, plain_q
from a3c_bench.core.q_actor_critic import QActorCritic


@pytest.mark.parametrize("kind", [ActorCritic, QActorCritic])
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4,), {}),
        ((4,), {"activation": "relu", "hidden_sizes": (32,), "input_mean": 0.3, "input_std": 2.0}),
        ((2, 3), {"hidden_sizes": ()}),
    ],
    ids=str,
)
def test_it_says_what_the_network_says_bit_by_bit(
    shape: tuple[int, ...], options: Any, values: bool, kind: type[ActorCritic]
) -> None:
    torch.manual_seed(0)
    network = kind(shape, 3, **options)
    forward = plain_forward(network)
    assert forward is not None
    theta = FlatParameters(network).values  # weights move into one vector afterwards, and change
    with torch.no_grad():
        theta += torch.randn_like(theta)
        for dtype in (torch.float32, torch.uint8):
            observations, state = (10 * torch.rand(16, *shape)).to(dtype), torch.zeros(16, 0)
            before = observations.clone()
            log_probs, value, after = forward(observations, state, values)
            expected_log_probs, expected_value, _ = network(observations, state)
            assert torch.equal(log_probs, expected_log_probs)
            assert torch.equal(value, expected_value if values else torch.zeros(0))
            assert after is state
            assert torch.equal(observations, before)


class Squared(ActorCritic):
    """Another's, with a forward pass of its own."""


@pytest.mark.parametrize(
    "network",
    [
        ActorCritic((4,), 2, lstm_size=8),
        ActorCritic((4,), 2, shared_trunk=False),
        ActorCritic((4,), 2, bf16=True),
        ActorCritic((1, 8, 8), 2, "small"),
        ActorCritic((4,), 2, own_trunk=lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh())),
        Squared((4,), 2),
        EpsilonGreedy(QNetwork((4,), 2), 0.1),
    ],
    ids=["lstm", "two trunks", "bf16", "image", "another package's", "subclass", "Q"],
)
def test_other_networks_answer_for_themselves(network: nn.Module) -> None:
    assert plain_forward(network) is None


def test_who_acts_asks_it_unless_what_is_asked_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ActorCritic((4,), 2)
    called: list[str] = []
    monkeypatch.setattr(network, "forward", lambda *arguments: called.append("network"))
    policy = Policy(network, torch.Generator())
    choice = policy(torch.zeros(3, 4), torch.zeros(3, 0))
    assert (called, choice.values.shape) == ([], (3,))
    compiled = Policy(network, torch.Generator(), compute=Compute(compile=True))
    assert compiled._plain is None
    network.compile_trunk()
    assert plain_forward(network) is None


def test_a_q_network_of_one_head_says_the_same_bit_by_bit_to_who_explores() -> None:
    torch.manual_seed(0)
    network, observations = QNetwork((4,), 3, activation="relu"), torch.randn(1, 4)
    plain = plain_q(network)
    assert plain is not None
    theta = FlatParameters(network).values
    explore = Exploration(network, np.random.default_rng(0), torch.device("cpu"))
    with torch.no_grad():
        theta += torch.randn_like(theta)
        q = network(observations)
        assert torch.equal(plain(observations), q)
    actions, max_q = explore(observations.numpy(), 0.0)
    assert (actions.tolist(), max_q.tolist()) == ([int(q.argmax())], [float(q.max())])
    assert explore._plain is not None
    for other in (QNetwork((4,), 3, dueling=True), QNetwork((4,), 3, bf16=True), QNetwork((1, 8, 8), 3, "small")):
        assert plain_q(other) is None
