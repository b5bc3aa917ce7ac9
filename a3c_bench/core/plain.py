"""The forward pass of small networks for who only acts: the same numbers without torch's modules.

A module looks for hooks whenever it is called, and for its weights by name: with layers of 64 units that takes longer
than what they compute (docs/performance.md).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from a3c_bench.core.networks import ActorCritic, QNetwork
from a3c_bench.core.q_actor_critic import QActorCritic, mean_q

Forward = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {nn.Tanh: torch.tanh_, nn.ReLU: torch.relu_}


def plain_forward(network: nn.Module) -> Forward | None:
    """Log-probabilities [B, A], values [B] (or empty, if they are not wanted) and state [B, S] of an actor-critic.

    To be called without gradients; it reads the weights as they are then. None: the network is not made of fully
    connected layers under both heads, in float32, without memory.
    """
    if not isinstance(network, ActorCritic) or type(network) not in (ActorCritic, QActorCritic):
        return None
    if not network.is_plain or network.value_trunk is not None or network.lstm is not None:
        return None
    hidden = _features(network)
    policy, critic = ((head.weight, head.bias) for head in (network.policy_head, network.value_head))

    def forward(observations: Tensor, state: Tensor, values: bool) -> tuple[Tensor, Tensor, Tensor]:
        features = hidden(observations)
        log_probs = F.log_softmax(F.linear(features, *policy), dim=-1)
        if not values:
            return log_probs, log_probs.new_empty(0), state
        valued = F.linear(features, *critic)  # [B, 1], or [B, A] of a critic of actions
        return log_probs, mean_q(log_probs, valued) if network.values_actions else valued.squeeze(-1), state

    return forward


def plain_q(network: QNetwork) -> Callable[[Tensor], Tensor] | None:
    """Q [B, A] of observations [B, ...], to be called likewise. None: not of fully connected layers under one head."""
    if type(network) is not QNetwork or not network.is_plain or network.advantage_stream is not None:
        return None
    hidden, weight, bias = _features(network), network.head.weight, network.head.bias
    return lambda observations: F.linear(hidden(observations), weight, bias)


def _features(network: ActorCritic | QNetwork) -> Callable[[Tensor], Tensor]:
    layers: list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] = []
    _flatten, *trunk = network.trunk
    for linear, activation in zip(trunk[::2], trunk[1::2], strict=True):
        assert isinstance(linear, nn.Linear)
        layers.append((linear.weight, linear.bias, _IN_PLACE[type(activation)]))

    def features(observations: Tensor) -> Tensor:
        found = network.scaled(observations).flatten(1)
        for weight, bias, activate in layers:
            found = activate(F.linear(found, weight, bias))
        return found

    return features
