"""The actor-critic loss by hand, against a naive loop, and what must not reach it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from a3c_bench.core.losses import REDUCTIONS, ActorCriticLoss, actor_critic_loss, explained_variance

# T = 2, B = 2, A = 2; the first environment's second step is a phantom.
PROBABILITIES = [[[0.5, 0.5], [0.25, 0.75]], [[0.5, 0.5], [0.8, 0.2]]]
MASK = torch.tensor([[True, True], [False, True]])


def rollout(**changes: Tensor) -> dict[str, Tensor]:
    """The hand-worked samples; log_probs and values take gradients."""
    tensors = {
        "log_probs": torch.tensor(PROBABILITIES).log(),
        "values": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        "actions": torch.tensor([[0, 1], [0, 1]]),
        "advantages": torch.tensor([[2.0, -1.0], [0.0, 0.5]]),
        "returns": torch.tensor([[3.0, 0.5], [0.0, 1.0]]),
        "mask": MASK,
    } | changes
    for name in ("log_probs", "values"):
        tensors[name].requires_grad_()
    return tensors


def loss_of(tensors: dict[str, Tensor], reduction: str = "sum") -> ActorCriticLoss:
    return actor_critic_loss(**tensors, entropy_weight=0.1, value_weight=0.25, reduction=reduction)


# policy   -2 ln 0.5 + ln 0.75 - 0.5 ln 0.2                          =  1.386294 - 0.287682 + 0.804719 = 1.903331
# entropy  ln 2 + H(0.25) + H(0.2)                                   =  0.693147 + 0.562335 + 0.500402 = 1.755885
# value    (3 - 1)^2 + (0.5 - 0)^2 + (1 - 2)^2                       =  5.25
# total    1.903331 - 0.1 * 1.755885 + 0.25 * 5.25                   =  3.040243
@pytest.mark.parametrize(
    ("reduction", "total"),
    [("sum", 3.040243), ("mean", 1.013414), ("mean_over_envs", 1.520121)],  # over 1, 3 samples, 2 environments
)
def test_loss_by_hand(reduction: str, total: float) -> None:
    loss = loss_of(rollout(), reduction)
    assert loss.total.item() == pytest.approx(total, abs=2e-6)
    # What is recorded is a mean over the three valid samples under every reduction.
    assert loss.policy.item() == pytest.approx(0.634444, abs=1e-6)
    assert loss.entropy.item() == pytest.approx(0.585295, abs=1e-6)
    assert loss.value.item() == pytest.approx(1.75)


# The second environment alone: policy 0.517037, entropy 1.062737, value 1.25, total 0.517037 - 0.106274 + 0.3125
@pytest.mark.parametrize(
    ("valid", "divisor"),
    [
        (MASK, 1),  # the first environment's one sample is left out: the mean is over the other
        (torch.tensor([[False, True], [False, True]]), 2),  # it had phantoms alone: nothing was left out
        (None, 2),
    ],
)
def test_the_mean_is_over_environments_of_which_something_is_learnt(valid: Tensor | None, divisor: int) -> None:
    tensors = rollout(mask=torch.tensor([[False, True], [False, True]]))
    weights = {"entropy_weight": 0.1, "value_weight": 0.25, "reduction": "mean_over_envs"}
    loss = actor_critic_loss(**tensors, **weights, valid=valid)
    assert loss.total.item() == pytest.approx(0.723263 / divisor, abs=2e-6)
    nothing = actor_critic_loss(**tensors | {"mask": torch.zeros(2, 2, dtype=torch.bool)}, **weights, valid=MASK)
    assert nothing.total.item() == 0.0


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 3), ("mean_over_envs", 2)])
def test_gradients_by_hand(reduction: str, divisor: int) -> None:
    tensors = rollout()
    loss_of(tensors, reduction).total.backward()
    # d/dV = -2 c (R - V), c = 0.25
    assert tensors["values"].grad is not None
    expected = torch.tensor([[-1.0, -0.25], [0.0, 0.5]]) / divisor
    torch.testing.assert_close(tensors["values"].grad, expected)
    # d/d(log p) = -psi at the action taken, plus beta (p ln p + p) from -beta H; for (0.25, 0.75) and action 1:
    #   0.1 (0.25 ln 0.25 + 0.25) = -0.009657;   1 + 0.1 (0.75 ln 0.75 + 0.75) = 1.053424
    assert tensors["log_probs"].grad is not None
    expected = torch.tensor([-0.009657, 1.053424]) / divisor
    torch.testing.assert_close(tensors["log_probs"].grad[0, 1], expected, rtol=0.0, atol=1e-6)


def test_the_record_carries_no_gradient() -> None:
    loss = loss_of(rollout())
    assert loss.total.requires_grad
    assert [x.requires_grad for x in (loss.policy, loss.value, loss.entropy)] == [False, False, False]


def naive_terms(arrays: dict[str, Any], entropy_weight: float, value_weight: float) -> tuple[float, int]:
    """The summed loss and the number of valid samples, from nested lists."""
    total, n_valid = 0.0, 0
    for t, row in enumerate(arrays["mask"]):
        for b, valid in enumerate(row):
            if valid:
                log_probs = arrays["log_probs"][t][b]
                entropy = -sum(math.exp(x) * x for x in log_probs)
                error = arrays["returns"][t][b] - arrays["values"][t][b]
                total -= log_probs[arrays["actions"][t][b]] * arrays["advantages"][t][b]
                total += value_weight * error**2 - entropy_weight * entropy
                n_valid += 1
    return total, n_valid


@given(
    n_steps=st.integers(1, 4),
    n_envs=st.integers(1, 3),
    n_actions=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    share_valid=st.sampled_from([0.0, 0.5, 1.0]),
    entropy_weight=st.floats(0.0, 1.0),
    value_weight=st.floats(0.0, 1.0),
)
@settings(deadline=None, max_examples=50)
def test_loss_agrees_with_a_naive_loop(
    n_steps: int,
    n_envs: int,
    n_actions: int,
    seed: int,
    share_valid: float,
    entropy_weight: float,
    value_weight: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n_steps, n_envs, *shape, generator=generator, dtype=torch.float64)

    tensors = {
        "log_probs": (3.0 * normal(n_actions)).log_softmax(-1),
        "values": normal(),
        "actions": torch.randint(n_actions, (n_steps, n_envs), generator=generator),
        "advantages": normal(),
        "returns": normal(),
        "mask": torch.rand(n_steps, n_envs, generator=generator) < share_valid,
    }
    arrays = {name: tensor.tolist() for name, tensor in tensors.items()}
    total, n_valid = naive_terms(arrays, entropy_weight, value_weight)
    for reduction, divisor in [("sum", 1), ("mean", max(n_valid, 1)), ("mean_over_envs", n_envs)]:
        loss = actor_critic_loss(
            **tensors, entropy_weight=entropy_weight, value_weight=value_weight, reduction=reduction
        )
        assert loss.total.item() == pytest.approx(total / divisor, abs=1e-9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_samples_change_neither_loss_nor_gradients(reduction: str) -> None:
    huge = 1e15  # its square still fits in single precision
    clean = rollout()
    spoilt = rollout(
        log_probs=torch.where(MASK.unsqueeze(-1), clean["log_probs"], -huge).detach(),
        values=torch.where(MASK, clean["values"], -huge).detach(),
        actions=torch.where(MASK, clean["actions"], 1),
        advantages=torch.where(MASK, clean["advantages"], huge),
        returns=torch.where(MASK, clean["returns"], huge),
    )
    losses = [loss_of(tensors, reduction) for tensors in (clean, spoilt)]
    for got, expected in zip(losses[1], losses[0], strict=True):
        assert got == expected  # as numbers; a sum is divided by None
    for loss in losses:
        loss.total.backward()
    for name in ("log_probs", "values"):
        gradient, clean_gradient = spoilt[name].grad, clean[name].grad
        assert gradient is not None
        assert clean_gradient is not None
        assert torch.equal(gradient, clean_gradient)
        assert not gradient[1, 0].any()


def test_no_valid_sample_is_no_loss() -> None:
    for reduction in REDUCTIONS:
        loss = loss_of(rollout(mask=torch.zeros_like(MASK)), reduction)
        assert [part.item() for part in loss[:4]] == [0.0, 0.0, 0.0, 0.0]


def test_the_divisor_is_what_the_sum_was_divided_by() -> None:
    """By which ranks weigh their means, so that those with more samples count for more."""
    total = loss_of(rollout(), "sum").total
    for reduction in ("mean", "mean_over_envs"):
        loss = loss_of(rollout(), reduction)
        assert loss.divisor is not None
        assert loss.total.item() * loss.divisor.item() == pytest.approx(total.item())
    assert loss_of(rollout(), "sum").divisor is None


def test_advantages_and_returns_are_constants() -> None:
    tensors = rollout()
    tensors["advantages"].requires_grad_()
    tensors["returns"].requires_grad_()
    loss_of(tensors).total.backward()
    assert tensors["advantages"].grad is None
    assert tensors["returns"].grad is None


def test_the_policy_term_leaves_the_values_alone() -> None:
    # The usual mistake: psi = R - V with V's graph attached, so that the policy loss trains the critic too.
    tensors = rollout()
    tensors["advantages"] = tensors["returns"] - tensors["values"]
    actor_critic_loss(**tensors, entropy_weight=0.1, value_weight=0.0, reduction="sum").total.backward()
    assert tensors["values"].grad is not None
    assert not tensors["values"].grad.any()


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'max' is not one of sum, mean, mean_over_envs"):
        loss_of(rollout(), "max")


def test_explained_variance_by_hand() -> None:
    # Returns 1, 2, 3 vary by 2/3; errors 0, 0, -1 by 1/3 - 1/9 = 2/9; 1 - (2/9) / (2/3) = 2/3. The mean error is free.
    returns = torch.tensor([[1.0, 2.0], [3.0, 1e6]])
    values = torch.tensor([[1.0, 2.0], [4.0, -1e6]])
    mask = torch.tensor([[True, True], [True, False]])
    assert explained_variance(values, returns, mask).item() == pytest.approx(2 / 3)
    assert explained_variance(values + 5.0, returns, mask).item() == pytest.approx(2 / 3)


def test_explained_variance_of_perfect_constant_and_opposite_values() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(torch.full((1, 3), 7.0), returns, mask).item() == 0.0
    assert explained_variance(-returns, returns, mask).item() == -3.0  # errors twice as large: 1 - 4


@pytest.mark.parametrize(
    "values",
    [[[0.0, 0.0, 0.0]], [[0.0, 1.0, 2.0]]],
)
def test_explained_variance_of_constant_returns_is_nan(values: list[list[float]]) -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(torch.tensor(values), torch.ones(1, 3), mask).isnan()
    assert explained_variance(torch.tensor(values), torch.full((1, 3), 0.1), mask).isnan()  # whose mean is rounded


# The same samples, chosen by mu: w = pi / mu of the three valid ones 1.25, 1.5, 0.4, clipped to 0.8 .. 1.2
# objective: min(2.5, 2.4), min(-1.5, -1.2), min(0.2, 0.4)  =  2.4 - 1.5 + 0.2
MU = torch.tensor([[0.4, 0.5], [1.0, 0.5]])


def clipped_loss(tensors: dict[str, Tensor], ratio_clip: float, mu: Tensor = MU) -> ActorCriticLoss:
    log_pi = tensors["log_probs"].gather(-1, tensors["actions"].unsqueeze(-1)).squeeze(-1)
    weights: dict[str, Any] = {"entropy_weight": 0.0, "value_weight": 0.0, "reduction": "sum"}
    return actor_critic_loss(**tensors, **weights, ratio_clip=ratio_clip, log_ratios=log_pi - mu.log())


def test_the_clipped_surrogate_by_hand() -> None:
    tensors = rollout()
    loss = clipped_loss(tensors, 0.2)
    assert loss.total.item() == pytest.approx(-(2.4 - 1.5 + 0.2), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.total, tensors["log_probs"])
    expected = torch.zeros(2, 2, 2)
    expected[0, 1, 1] = 1.5  # -w psi, of those alone that are not cut: the first is, and the phantom is none
    expected[1, 1, 1] = -0.2
    torch.testing.assert_close(gradient, expected)


def test_where_the_policy_has_not_moved_the_surrogate_has_the_gradient_of_log_pi() -> None:
    gradients = []
    for clip in (True, False):
        tensors = rollout()
        log_pi = tensors["log_probs"].gather(-1, tensors["actions"].unsqueeze(-1)).squeeze(-1)
        loss = clipped_loss(tensors, 0.2, log_pi.detach().exp()) if clip else actor_critic_loss(
            **tensors, entropy_weight=0.0, value_weight=0.0, reduction="sum"
        )  # fmt: skip
        gradients.append(torch.autograd.grad(loss.total, tensors["log_probs"])[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() == 2.0


def test_what_is_masked_may_have_any_ratio() -> None:
    loss = clipped_loss(rollout(), 0.2, torch.tensor([[0.4, 0.5], [0.0, 0.5]]))
    assert loss.total.item() == pytest.approx(-1.1, abs=1e-6)
