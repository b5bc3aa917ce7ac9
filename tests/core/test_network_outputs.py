"""What networks compute: shapes and sizes as published, inputs, trunks, and the same in any layout or compiled."""

from collections.abc import Callable

import pytest
import torch
from small_networks import SMALL_FRAME, frames, network, outputs
from torch import Tensor, nn

from a3c_bench.core.networks import ActorCritic

ATARI = (4, 84, 84)


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("kind", ["nips", "nature"])
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_outputs_of_image_networks(kind: str, shared_trunk: bool) -> None:
    log_probs, values = outputs(network(kind, shared_trunk=shared_trunk), frames(3))
    assert log_probs.shape == (3, 5)
    assert values.shape == (3,)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3))
    assert log_probs.std(-1).min() > 1e-3  # distributions, and not all the uniform one


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_the_mlp_flattens_any_observation(shape: tuple[int, ...]) -> None:
    log_probs, values = outputs(ActorCritic(shape, 2), torch.ones(7, *shape))
    assert log_probs.shape == (7, 2)
    assert values.shape == (7,)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(7))


@pytest.mark.parametrize(("activation", "function"), [("tanh", torch.tanh), ("relu", torch.relu)])
def test_the_mlp_by_hand(activation: str, function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = ActorCritic((3,), 2, hidden_sizes=(4, 5), activation=activation, initialisation="fan_in")
    first_w, first_b, second_w, second_b, policy_w, policy_b, value_w, value_b = net.parameters()
    x = torch.randn(6, 3)
    features = function(function(x @ first_w.T + first_b) @ second_w.T + second_b)
    log_probs, values = outputs(net, x)
    torch.testing.assert_close(log_probs.exp(), (features @ policy_w.T + policy_b).softmax(-1))
    torch.testing.assert_close(values, (features @ value_w.T + value_b)[:, 0])


def test_nips_has_the_published_size() -> None:
    # 84 -> (84 - 8)/4 + 1 = 20 -> (20 - 4)/2 + 1 = 9
    # conv 16 * (4 * 8 * 8) + 16 = 4,112;  conv 32 * (16 * 4 * 4) + 32 = 8,224
    # fc 256 * (32 * 9 * 9) + 256 = 663,808;  policy 6 * 256 + 6 = 1,542;  value 256 + 1 = 257
    assert n_parameters(ActorCritic(ATARI, 6, "nips", initialisation="fan_in")) == 677_943


def test_nature_has_the_published_size() -> None:
    # 84 -> 20 -> 9 -> (9 - 3)/1 + 1 = 7
    # conv 32 * (4 * 8 * 8) + 32 = 8,224;  conv 64 * (32 * 4 * 4) + 64 = 32,832;  conv 64 * (64 * 3 * 3) + 64 = 36,928
    # fc 512 * (64 * 7 * 7) + 512 = 1,606,144;  policy 6 * 512 + 6 = 3,078;  value 512 + 1 = 513
    assert n_parameters(ActorCritic(ATARI, 6, "nature", initialisation="fan_in")) == 1_687_719


def test_separate_trunks_cost_one_more_trunk() -> None:
    # (3 * 64 + 64) + (64 * 64 + 64) = 4,416
    shared, separate = (n_parameters(network("mlp", shared_trunk=shared)) for shared in (True, False))
    assert separate - shared == 4_416


@pytest.mark.parametrize("channels_last", [True, False])
def test_uint8_frames_are_scaled_to_one(channels_last: bool) -> None:
    net = network(channels_last=channels_last)
    observations = frames(3)
    before = observations.clone()
    log_probs, values = outputs(net, observations)
    by_hand_log_probs, by_hand_values = outputs(net, observations.float() / 255.0)
    torch.testing.assert_close(log_probs, by_hand_log_probs)
    torch.testing.assert_close(values, by_hand_values)
    assert torch.equal(observations, before)


def test_inputs_are_standardised_after_scaling() -> None:
    torch.manual_seed(0)
    plain = ActorCritic(SMALL_FRAME, 3, "nips")
    centred = ActorCritic(SMALL_FRAME, 3, "nips", input_mean=0.25, input_std=0.5)
    centred.load_state_dict(plain.state_dict())
    observations = frames(5)
    expected = outputs(plain, (observations.float() / 255.0 - 0.25) / 0.5)
    for seen in (observations, observations.float() / 255.0):  # frames, and what is no frame
        for got, hand in zip(outputs(centred, seen), expected, strict=True):
            torch.testing.assert_close(got, hand)
    assert not torch.allclose(outputs(plain, observations)[1], expected[1])


def test_floats_are_not_scaled() -> None:
    net = network("mlp")
    x = torch.randn(4, 3)
    features = net.trunk(x)
    torch.testing.assert_close(outputs(net, x)[1], net.value_head(features)[:, 0])


@pytest.mark.parametrize("kind", ["nips", "nature"])
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_memory_layout_does_not_change_outputs_or_gradients(kind: str, shared_trunk: bool) -> None:
    plain = network(kind, shared_trunk=shared_trunk)
    channels_last = network(kind, shared_trunk=shared_trunk, channels_last=True)
    convolution = channels_last.trunk[0]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    found = [outputs(net, frames(3)) for net in (plain, channels_last)]
    for got, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, expected)
    for log_probs, values in found:
        (log_probs[:, 0].sum() + values.sum()).backward()
    for got_parameter, expected_parameter in zip(channels_last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got_parameter.grad, expected_parameter.grad, rtol=1e-4, atol=1e-4)


def test_channels_last_leaves_an_mlp_alone() -> None:
    x = torch.randn(4, 3)
    for got, expected in zip(outputs(network("mlp", channels_last=True), x), outputs(network("mlp"), x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["nips", "mlp"])
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_the_value_loss_reaches_the_policy_trunk_only_if_shared(kind: str, shared_trunk: bool) -> None:
    net = network(kind, shared_trunk=shared_trunk)
    _, values = outputs(net, torch.randn(3, 3) if kind == "mlp" else frames(3))
    values.square().sum().backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in net.trunk.parameters()]
    assert reached == [shared_trunk] * len(reached)
    assert net.policy_head.weight.grad is None
    assert net.value_head.weight.grad is not None
    assert (net.value_trunk is None) == shared_trunk
    if net.value_trunk is not None:
        assert all(p.grad is not None and p.grad.any() for p in net.value_trunk.parameters())


def test_the_policy_loss_leaves_a_separate_value_trunk_alone() -> None:
    net = network("mlp", shared_trunk=False)
    log_probs, _ = outputs(net, torch.randn(3, 3))
    log_probs[:, 0].sum().backward()
    assert net.value_trunk is not None
    assert all(p.grad is None for p in net.value_trunk.parameters())
    assert all(p.grad is not None for p in net.trunk.parameters())


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_compiled_trunks_compute_the_same() -> None:
    torch.manual_seed(0)
    network = ActorCritic((4, 84, 84), 3, "nips")
    frames = torch.randint(0, 255, (6, 4, 84, 84), dtype=torch.uint8)
    ends = torch.zeros(3, 2, dtype=torch.bool)

    def gradients() -> torch.Tensor:
        network.zero_grad()
        log_probs, values = network.unroll(frames.view(3, 2, 4, 84, 84), network.initial_state(2), ends)
        (log_probs[..., 0].sum() + values.sum()).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    expected = gradients()
    compiled_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    network.compile_trunk()
    torch.testing.assert_close(gradients(), expected, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert network(frames[:1], network.initial_state(1))[1].shape == (1,)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled_before


def test_hooks_fire_and_other_layers_are_called_as_modules() -> None:
    class Doubling(nn.Linear):  # whatever another package makes of a layer
        def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().__call__(inputs)

    trunk, inputs = nn.Sequential(Doubling(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 3))), torch.randn(2, 4)
    network = ActorCritic((4,), 2, own_trunk=lambda: trunk)
    expected = trunk[1](2.0 * nn.functional.linear(inputs, trunk[0].weight, trunk[0].bias))
    seen: list[nn.Module] = []
    watched = [trunk, trunk[0], trunk[1], trunk[1][0], network.policy_head, network.value_head]
    for module in watched:
        module.register_forward_hook(lambda module, inputs, outputs: seen.append(module))
    trunk[1][1].register_forward_hook(lambda module, inputs, outputs: outputs + 1.0)
    _, values, _ = network(inputs, network.initial_state(2))
    assert {id(module) for module in seen} == {id(module) for module in watched}
    assert len(seen) == len(watched)
    assert torch.equal(values, network.value_head(expected + 1.0).squeeze(-1))
