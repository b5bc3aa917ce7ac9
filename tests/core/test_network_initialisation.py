"""The parameters that networks begin with."""

import math

import pytest
import torch
from small_networks import network, outputs
from torch import nn

from a3c_bench.core.networks import ActorCritic


def test_separate_trunks_start_differently() -> None:
    net = network("mlp", shared_trunk=False)
    assert net.value_trunk is not None
    weights, value_weights = next(net.trunk.parameters()), next(net.value_trunk.parameters())
    assert weights.shape == value_weights.shape
    assert not torch.equal(weights, value_weights)


@pytest.mark.parametrize("kind", ["nips", "nature", "mlp"])
def test_fan_in_fills_its_interval_and_no_more(kind: str) -> None:
    for module in network(kind, "fan_in", shared_trunk=False).modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        elif isinstance(module, nn.Linear):
            fan_in = module.in_features
        else:
            continue
        bound = 1.0 / math.sqrt(fan_in)
        assert module.bias is not None
        drawn = torch.cat([module.weight.flatten(), module.bias])
        assert drawn.abs().max() <= bound
        assert drawn.abs().max() > 0.95 * bound
        assert module.bias.abs().min() > 0.0
        # U(-b, b) has standard deviation b / sqrt 3; the smallest layer has 65 numbers.
        assert drawn.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.25)


@pytest.mark.parametrize("kind", ["nips", "nature", "mlp"])
def test_orthogonal_trunks_have_gain_root_two(kind: str) -> None:
    net = network(kind, "orthogonal", shared_trunk=False)
    assert net.value_trunk is not None
    layers = [m for trunk in (net.trunk, net.value_trunk) for m in trunk if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == {"nips": 6, "nature": 8, "mlp": 4}[kind]
    for layer in layers:
        w = layer.weight.flatten(1)
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w  # of the smaller side: the other has not full rank
        torch.testing.assert_close(gram, 2.0 * torch.eye(len(gram)), rtol=0.0, atol=1e-4)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_orthogonal_heads_have_their_own_gains() -> None:
    net = network("mlp", "orthogonal")
    policy, value = net.policy_head, net.value_head
    torch.testing.assert_close(policy.weight @ policy.weight.T, 1e-4 * torch.eye(5), rtol=0.0, atol=1e-8)
    torch.testing.assert_close(value.weight @ value.weight.T, torch.ones(1, 1))
    assert not policy.bias.any()
    assert not value.bias.any()
    log_probs, _ = outputs(net, torch.randn(10, 3))
    torch.testing.assert_close(log_probs.exp(), torch.full((10, 5), 0.2), rtol=0.0, atol=0.05)  # nearly uniform


@pytest.mark.parametrize("initialisation", ["orthogonal", "fan_in"])
def test_initialisation_of_the_lstm(initialisation: str) -> None:
    torch.manual_seed(0)
    lstm = ActorCritic((3,), 2, initialisation=initialisation, lstm_size=64).lstm
    assert lstm is not None
    gate = lstm.weight_hh[64:128].detach()
    if initialisation == "orthogonal":
        torch.testing.assert_close(gate @ gate.T, torch.eye(64), atol=1e-5, rtol=0.0)
        assert lstm.bias_ih.abs().max() == 0.0
    else:
        assert 0.9 / 8 < gate.abs().max() <= 1 / 8
        assert 0.0 < lstm.bias_ih.abs().max() <= 1 / 8
