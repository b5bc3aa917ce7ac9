"""The networks: shapes and sizes as published, inputs, trunks, initialisation, and sampling."""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from a3c_bench.core.networks import ActorCritic, QNetwork, sample_actions
from a3c_bench.core.optim import FlatParameters

ATARI = (4, 84, 84)
SMALL_FRAME = (2, 36, 36)  # the least that "nature" takes: 36 -> 8 -> 3 -> 1


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def frames(n: int, shape: tuple[int, ...] = SMALL_FRAME) -> Tensor:
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(
    kind: str = "nips",
    initialisation: str = "fan_in",  # lively outputs: the orthogonal policy head is nearly uniform
    shared_trunk: bool = True,
    channels_last: bool = False,
) -> ActorCritic:
    """The same weights on every call."""
    torch.manual_seed(0)
    shape = (3,) if kind == "mlp" else SMALL_FRAME
    return ActorCritic(
        shape, 5, kind, initialisation=initialisation, shared_trunk=shared_trunk, channels_last=channels_last
    )


def outputs(network: ActorCritic, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values at the start of a game."""
    return network(observations, network.initial_state(len(observations)))[:2]


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


@pytest.mark.parametrize("kind", ["nips", "nature"])
@pytest.mark.parametrize("shape", [(4,), (84, 84), (2, 4, 84, 84)])
def test_image_networks_refuse_what_is_no_image(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' needs images"):
        ActorCritic(shape, 2, kind)


# nips takes 20 -> 4 -> 1 and nature 36 -> 8 -> 3 -> 1: one pixel less must fail, whichever side lacks it.
@pytest.mark.parametrize(
    ("kind", "shape"), [("nips", (1, 19, 20)), ("nips", (1, 20, 19)), ("nature", (1, 35, 36)), ("nature", (1, 7, 7))]
)
def test_frames_too_small_are_refused(kind: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[2]} are too small for '{kind}'"):
        ActorCritic(shape, 2, kind)


@pytest.mark.parametrize(("kind", "side"), [("nips", 20), ("nature", 36)])
def test_the_smallest_frames_are_accepted(kind: str, side: int) -> None:
    log_probs, values = outputs(ActorCritic((1, side, side), 2, kind), frames(2, (1, side, side)))
    assert log_probs.shape == (2, 2)
    assert values.shape == (2,)


@pytest.mark.parametrize("shape", [(3, 7, 7), (1, 5, 5), (4, 40, 12), (10, 5)], ids=str)
def test_the_small_network_reads_small_pictures_and_boards(shape: tuple[int, ...]) -> None:
    """conv 16 3x3/1, fc 128: the convolution loses a pixel on each side."""
    net = ActorCritic(shape, 2, "small")
    height, width = shape[-2:]
    channels = shape[0] if len(shape) == 3 else 1
    weights = [tuple(p.shape) for p in net.trunk.parameters() if p.dim() > 1]
    assert weights == [(16, channels, 3, 3), (128, 16 * (height - 2) * (width - 2))]
    log_probs, values = outputs(net, torch.rand(6, *shape))
    assert (log_probs.shape, values.shape) == ((6, 2), (6,))
    assert QNetwork(shape, 3, "small", dueling=True)(torch.rand(6, *shape)).shape == (6, 3)


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        ("small", (3, 4, 9), "frames of 4x9 are too small for 'small': say network=mlp"),
        ("small", (3, 9, 41), "frames of 9x41 are too large for 'small': say network=mlp"),
        ("small", (4, 84, 84), "frames of 84x84 are too large for 'small': say network=nips or network=nature"),
        (
            "small",
            (8,),
            r"network 'small' needs images .* or boards .*, not observations of shape \(8,\): say network=mlp",
        ),
        ("nips", (3, 7, 7), "frames of 7x7 are too small for 'nips': say network=small or network=mlp"),
        ("nature", (3, 30, 30), "frames of 30x30 are too small for 'nature': say network=nips or network=small"),
        ("nips", (10, 5), r"needs images .*, not observations of shape \(10, 5\): say network=small or network=mlp"),
    ],
)
def test_what_does_not_fit_names_what_does(kind: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}$"):
        ActorCritic(shape, 2, kind)


def test_actions_are_sampled_by_their_probabilities() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.3, 0.0]])  # per row, and never the impossible
    n_draws = 20_000
    log_probs = probabilities.log().repeat(n_draws, 1)
    before = log_probs.clone()
    actions = sample_actions(log_probs, torch.Generator().manual_seed(0))
    assert actions.shape == (2 * n_draws,)
    assert actions.dtype == torch.int64
    assert torch.equal(log_probs, before)
    frequencies = F.one_hot(actions, 4).view(n_draws, 2, 4).float().mean(0)
    # A frequency's standard error is at most sqrt(0.25 / 20,000) = 0.0035.
    torch.testing.assert_close(frequencies, probabilities, rtol=0.0, atol=0.014)
    assert (frequencies[probabilities == 0.0] == 0.0).all()


def test_rows_are_sampled_independently() -> None:
    first, second = sample_actions(torch.full((20_000, 2), 0.5).log(), torch.Generator().manual_seed(0)).view(2, -1)
    assert (first == second).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_generator_alone_decides_the_actions() -> None:
    log_probs = torch.full((100, 4), 0.25).log()
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    first, second = (sample_actions(log_probs, generator) for _ in range(2))
    generator.manual_seed(1)
    torch.manual_seed(3)
    assert torch.equal(sample_actions(log_probs, generator), first)
    assert torch.equal(sample_actions(log_probs, generator), second)
    assert not torch.equal(first, second)


# --- LSTM -------------------------------------------------------------------------------------------------------------


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


def test_an_lstm_between_separate_trunks_is_refused() -> None:
    with pytest.raises(ValueError, match="shared_trunk=true"):
        ActorCritic((3,), 2, shared_trunk=False, lstm_size=5)


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
