"""RMSProp by hand and against torch's, parameters and gradients as flat vectors, and the schedule."""

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from a3c_bench.core.networks import ActorCritic
from a3c_bench.core.optim import FlatParameters, GradientVariance, RMSProp, set_learning_rate
from a3c_bench.core.schedules import linear


def apply(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: Tensor) -> None:
    """One step for each row of gradients."""
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def random_gradients(n: int, size: int = 5) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# theta 1, lr 0.1, decay 1/2, eps 1/4, gradients 2 and then 1:
#   s  from 0: 0 + 4/2 = 2,      2/2 + 1/2 = 1.5       from 1: 1/2 + 4/2 = 2.5,  2.5/2 + 1/2 = 1.75
#   m  2/2 = 1,  1/2 + 1/2 = 1   so that v = s - 1 in both steps if centered
#   theta = 1 - 0.2 / d_1 - 0.1 / d_2, with d = sqrt(v + 0.25) or sqrt(v) + 0.25
@pytest.mark.parametrize(
    ("inside", "initial_square", "centered", "after_one", "after_two"),
    [
        (True, 0.0, False, 0.8666667, 0.7910738),  # d = sqrt 2.25, sqrt 1.75
        (True, 1.0, False, 0.8793955, 0.8086848),  # d = sqrt 2.75, sqrt 2
        (True, 0.0, True, 0.8211146, 0.7056445),  # d = sqrt 1.25, sqrt 0.75
        (True, 1.0, True, 0.8488142, 0.7488142),  # d = sqrt 1.75, 1
        (False, 0.0, False, 0.8798231, 0.8120148),  # d = sqrt 2 + 0.25, sqrt 1.5 + 0.25
        (False, 1.0, False, 0.8907784, 0.8272005),  # d = sqrt 2.5 + 0.25, sqrt 1.75 + 0.25
        (False, 0.0, True, 0.8400000, 0.7355185),  # d = 1.25, sqrt 0.5 + 0.25
        (False, 1.0, True, 0.8643833, 0.7747796),  # d = sqrt 1.5 + 0.25, sqrt 0.75 + 0.25
    ],
)
def test_two_steps_by_hand(
    inside: bool, initial_square: float, centered: bool, after_one: float, after_two: float
) -> None:
    theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = RMSProp([theta], 0.1, 0.5, 0.25, inside, initial_square, centered)
    apply(optimizer, theta, torch.tensor([[2.0]], dtype=torch.float64))
    assert theta.item() == pytest.approx(after_one, abs=1e-7)
    apply(optimizer, theta, torch.tensor([[1.0]], dtype=torch.float64))
    assert theta.item() == pytest.approx(after_two, abs=1e-7)


@pytest.mark.parametrize("centered", [True, False])
def test_epsilon_outside_and_a_zero_start_is_torchs_rmsprop(centered: bool) -> None:
    ours, theirs = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    optimizer = RMSProp([ours], 0.01, 0.9, 0.1, epsilon_inside_root=False, initial_square=0.0, centered=centered)
    reference = torch.optim.RMSprop([theirs], 0.01, 0.9, 0.1, centered=centered)
    for gradient in random_gradients(20):
        apply(optimizer, ours, gradient.unsqueeze(0))
        apply(reference, theirs, gradient.unsqueeze(0))
        torch.testing.assert_close(ours, theirs)
    assert (ours - 1.0).abs().min() > 1e-3  # both moved


@pytest.mark.parametrize("centered", [True, False])
def test_a_long_vector_is_stepped_in_blocks_to_the_same_bits(centered: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2**18 + 3, generator=generator)
    long = nn.Parameter(start.clone())
    short = [nn.Parameter(part.clone()) for part in start.split(50_000)]
    one, many = (RMSProp(parameters, 0.01, 0.9, 0.01, centered=centered) for parameters in ([long], short))
    for _ in range(3):
        gradient = torch.randn(2**18 + 3, generator=generator)
        long.grad = gradient.clone()
        for parameter, part in zip(short, gradient.split(50_000), strict=True):
            parameter.grad = part.clone()
        one.step()
        many.step()
    assert torch.equal(long.detach(), torch.cat([parameter.detach() for parameter in short]))
    assert (long.detach() - start).abs().min() > 0.0  # no block was forgotten


def test_where_epsilon_stands_changes_the_step_by_almost_three() -> None:
    # The trap of algorithms.md: epsilon 0.1, gradients of 0.01, moments settled at g^2 = 0.0001.
    def step(inside: bool) -> float:
        theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = RMSProp([theta], 1.0, 0.99, 0.1, epsilon_inside_root=inside, initial_square=0.01**2)
        apply(optimizer, theta, torch.full((1, 1), 0.01, dtype=torch.float64))
        return -theta.item()

    assert step(inside=True) == pytest.approx(0.01 / math.sqrt(0.1001))
    assert step(inside=False) == pytest.approx(0.01 / 0.11)
    assert step(inside=False) / step(inside=True) == pytest.approx(2.876, abs=1e-3)


def test_a_centered_variance_below_zero_is_no_nan() -> None:
    # Steady gradients: v = s - m^2 is 0 up to rounding, which without a floor gives the root of a negative number.
    theta = nn.Parameter(torch.zeros(100))
    optimizer = RMSProp([theta], 1e-3, 0.5, 1e-10, epsilon_inside_root=False, centered=True)
    gradient = torch.randn(100, generator=torch.Generator().manual_seed(0))
    apply(optimizer, theta, gradient.expand(100, -1))
    assert theta.isfinite().all()


def test_parameters_without_gradient_stay() -> None:
    with_gradient, without = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = RMSProp([without, with_gradient], 0.1, initial_square=1.0)
    apply(optimizer, with_gradient, torch.ones(1, 1))
    assert without.item() == 1.0
    assert optimizer.state[without]["square"].item() == 1.0
    assert with_gradient.item() < 1.0


@pytest.mark.parametrize("centered", [True, False])
def test_a_saved_optimiser_continues_as_if_never_stopped(centered: bool) -> None:
    gradients = random_gradients(10)
    whole = nn.Parameter(torch.ones(5, dtype=torch.float64))
    optimizer = RMSProp([whole], 0.01, 0.9, 0.2, initial_square=1.0, centered=centered)
    apply(optimizer, whole, gradients[:5])
    file = io.BytesIO()
    torch.save({"parameter": whole.detach(), "optimizer": optimizer.state_dict()}, file)
    apply(optimizer, whole, gradients[5:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = nn.Parameter(saved["parameter"])
    # Settings come back too: these are other ones.
    successor = RMSProp([resumed], 1.0, 0.5, 1.0, initial_square=0.0, centered=not centered)
    successor.load_state_dict(saved["optimizer"])
    apply(successor, resumed, gradients[5:])
    assert torch.equal(resumed, whole)


def test_a_closure_may_compute_the_gradients() -> None:
    theta = nn.Parameter(torch.full((1,), 3.0))
    optimizer = RMSProp([theta], 0.1, initial_square=1.0)

    def closure() -> float:
        loss = theta.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert theta.item() < 3.0


@pytest.mark.parametrize("make", [RMSProp, torch.optim.Adam])
def test_set_learning_rate_sets_that_of_every_group(make: Any) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = make([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 7.0}], lr=0.1)
    set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


@pytest.mark.parametrize("centered", [False, True])
def test_a_learning_rate_that_is_a_tensor_steps_to_the_same_bits(centered: bool) -> None:
    """As on a GPU, where it is one."""
    thetas = [nn.Parameter(torch.ones(1000)) for _ in range(2)]
    for theta, lr in zip(thetas, (0.037, torch.tensor(0.037)), strict=True):
        optimizer = RMSProp([theta], 1.0, centered=centered)
        optimizer.param_groups[0]["lr"] = lr
        apply(optimizer, theta, random_gradients(3, 1000).float())
    assert torch.equal(*thetas)
    assert not torch.equal(thetas[0], torch.ones(1000))


def test_off_the_cpu_the_learning_rate_is_one_tensor_that_is_filled() -> None:
    theta = nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = RMSProp([theta], 1.0)
    set_learning_rate(optimizer, 0.5)
    tensor = optimizer.param_groups[0]["lr"]
    assert tensor.device.type == "meta"
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is tensor
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5)  # from a checkpoint that was read on a CPU
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"].device.type == "meta"


def test_the_learning_rate_set_is_the_one_applied() -> None:
    theta = nn.Parameter(torch.zeros(1))
    optimizer = RMSProp([theta], 1.0, decay=0.0, epsilon=0.0)  # steps of lr exactly
    set_learning_rate(optimizer, 0.25)
    apply(optimizer, theta, torch.full((1, 1), 3.0))
    assert theta.item() == -0.25


# FlatParameters


def small_network(channels_last: bool = False, seed: int = 0) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic((2, 20, 20), 3, "nips", initialisation="fan_in", shared_trunk=False, channels_last=channels_last)


def frames() -> Tensor:
    return torch.rand(4, 2, 20, 20, generator=torch.Generator().manual_seed(0))


def outputs(network: ActorCritic, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values at the start of a game."""
    return network(observations, network.initial_state(len(observations)))[:2]


def backward(network: ActorCritic) -> None:
    log_probs, values = outputs(network, frames())
    (log_probs[:, 0].sum() + values.square().sum()).backward()


def assert_views(network: nn.Module, flat: FlatParameters) -> None:
    """Every parameter and gradient lies in its own place of the two vectors, and these are full."""
    places, size = set(), flat.values.element_size()
    for parameter in network.parameters():
        assert parameter.grad is not None
        offset = parameter.data_ptr() - flat.values.data_ptr()
        assert parameter.grad.data_ptr() - flat.gradients.data_ptr() == offset
        assert parameter.grad.stride() == parameter.stride()
        places |= set(range(offset // size, offset // size + parameter.numel()))
    assert places == set(range(flat.values.numel()))
    assert flat.values.numel() == flat.gradients.numel() == sum(p.numel() for p in network.parameters())


layouts = pytest.mark.parametrize("channels_last", [False, True])


@layouts
def test_flattening_changes_no_output(channels_last: bool) -> None:
    network = small_network(channels_last)
    before = outputs(network, frames())
    strides = [p.stride() for p in network.parameters()]
    flat = FlatParameters(network)
    for got, expected in zip(outputs(network, frames()), before, strict=True):
        assert torch.equal(got, expected)
    assert [p.stride() for p in network.parameters()] == strides
    assert_views(network, flat)


def test_values_are_the_parameters_in_their_order() -> None:
    network = small_network()
    expected = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    assert torch.equal(FlatParameters(network).values, expected)


@layouts
def test_the_module_follows_the_vector(channels_last: bool) -> None:
    network = small_network(channels_last)
    flat = FlatParameters(network)
    with torch.no_grad():
        flat.values.fill_(0.5)
    assert all((p == 0.5).all() for p in network.parameters())


@layouts
def test_backward_fills_and_adds_to_the_gradients(channels_last: bool) -> None:
    network, reference = small_network(channels_last), small_network(channels_last)
    flat = FlatParameters(network)
    backward(reference)
    for n_times in (1, 2):  # gradients pile up until they are set to zero, as torch's do
        backward(network)
        assert_views(network, flat)
        for got, expected in zip(network.parameters(), reference.parameters(), strict=True):
            assert got.grad is not None
            assert expected.grad is not None
            torch.testing.assert_close(got.grad, n_times * expected.grad)
    assert flat.values.grad is flat.gradients
    assert flat.gradients.any()


def test_zero_gradients_keeps_the_views() -> None:
    network = small_network()
    flat = FlatParameters(network)
    backward(network)
    once = flat.gradients.clone()
    flat.zero_gradients()
    assert not flat.gradients.any()
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())
    assert_views(network, flat)
    backward(network)
    assert torch.equal(flat.gradients, once)


@layouts
def test_a_step_on_the_vector_is_a_step_on_the_module(channels_last: bool) -> None:
    network, reference = small_network(channels_last), small_network(channels_last)
    flat = FlatParameters(network)
    optimizer = RMSProp([flat.values], lr=0.01)
    layer_by_layer = RMSProp(reference.parameters(), lr=0.01)
    for _ in range(3):
        flat.zero_gradients()
        layer_by_layer.zero_grad()
        backward(network)
        backward(reference)
        optimizer.step()
        layer_by_layer.step()
    assert_views(network, flat)
    for got, expected, first in zip(
        network.parameters(), reference.parameters(), small_network().parameters(), strict=True
    ):
        torch.testing.assert_close(got, expected)
        assert not torch.equal(got, first)


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6])
def test_clipping_is_torchs(max_norm: float) -> None:
    network, reference = small_network(), small_network()
    flat = FlatParameters(network)
    backward(network)
    backward(reference)
    expected_norm = nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
    norm = flat.clip_gradients(max_norm)
    assert norm.shape == ()
    torch.testing.assert_close(norm, expected_norm)
    for got, expected in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_clipping_by_hand() -> None:
    flat = FlatParameters(nn.Linear(1, 1))
    flat.gradients.copy_(torch.tensor([3.0, 4.0]))
    assert flat.clip_gradients(None).item() == 5.0
    assert flat.gradients.tolist() == [3.0, 4.0]
    assert flat.clip_gradients(10.0).item() == 5.0
    assert flat.gradients.tolist() == [3.0, 4.0]
    assert flat.clip_gradients(2.5).item() == 5.0
    assert flat.gradients.tolist() == pytest.approx([1.5, 2.0])


def test_no_gradient_is_clipped_to_none() -> None:
    flat = FlatParameters(nn.Linear(1, 1))
    assert flat.clip_gradients(1.0).item() == 0.0
    assert flat.gradients.tolist() == [0.0, 0.0]


def test_a_gradient_that_is_not_a_number_spreads() -> None:
    flat = FlatParameters(nn.Linear(1, 1))
    flat.gradients.copy_(torch.tensor([torch.nan, 4.0]))
    assert flat.clip_gradients(10.0).isnan()
    assert flat.gradients.isnan().all()


@layouts
def test_loading_weights_keeps_the_views(channels_last: bool) -> None:
    network, other = small_network(channels_last), small_network(seed=1)
    flat = FlatParameters(network)
    network.load_state_dict(other.state_dict())
    assert_views(network, flat)
    for got, expected in zip(outputs(network, frames()), outputs(other, frames()), strict=True):
        torch.testing.assert_close(got, expected)


@layouts
def test_copying_the_vector_copies_the_network(channels_last: bool) -> None:
    network, other = small_network(channels_last), small_network(channels_last, seed=1)
    flat, other_flat = FlatParameters(network), FlatParameters(other)
    with torch.no_grad():
        flat.values.copy_(other_flat.values)
    for got, expected in zip(outputs(network, frames()), outputs(other, frames()), strict=True):
        assert torch.equal(got, expected)


# schedules


@pytest.mark.parametrize(
    ("position", "value"),
    [(0, 8.0), (25, 6.5), (50, 5.0), (100, 2.0), (250, 2.0), (-10, 8.0)],  # 8 to 2: 6 over 100
)
def test_linear_runs_from_start_to_end_and_stays_there(position: float, value: float) -> None:
    assert linear(8.0, 2.0, position, horizon=100) == value


def test_linear_also_rises_and_may_stand_still() -> None:
    assert linear(0.0, 1.0, 30, horizon=120) == 0.25
    assert linear(3.0, 3.0, 77, horizon=100) == 3.0


# GradientVariance


def test_the_variance_of_two_gradients_by_hand() -> None:
    variance = GradientVariance()
    gradients = torch.tensor([1.0, 2.0, 3.0])
    assert variance.add(gradients) == {}
    gradients += torch.tensor([2.0, 0.0, -4.0])  # in place, as gradients are
    assert variance.add(gradients)["gradient_variance"] == pytest.approx((4 + 16) / 2)
    assert variance.add(gradients)["gradient_variance"] == 0.0


def test_its_mean_is_the_trace_of_the_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 2.0, 0.5])
    variance = GradientVariance()
    variance.add(torch.zeros(3))
    draws = (5.0 + scale * torch.randn(3, generator=generator) for _ in range(20_000))
    found = [variance.add(draw)["gradient_variance"] for draw in draws]
    assert torch.stack(found[1:]).mean() == pytest.approx(float(scale.square().sum()), rel=0.05)
