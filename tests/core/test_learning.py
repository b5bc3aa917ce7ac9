"""Learners: they clip and step as they are told, and read nothing off the device."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from a3c_bench.core import advantages
from a3c_bench.core.compiled import padded
from a3c_bench.core.lag import LagMeter, Stamp, effective_sample_size
from a3c_bench.core.learning import ActorCriticLearner, QLearner
from a3c_bench.core.networks import ActorCritic, QNetwork
from a3c_bench.core.optim import FlatParameters, RMSProp
from a3c_bench.core.q_actor_critic import QActorCritic
from a3c_bench.core.replay import Sample
from a3c_bench.core.rollout import Batch, Rollout, divergence
from a3c_bench.runtime.ledger import Ratios

T, B, A = 4, 3, 2
WEIGHTS: dict[str, Any] = {"entropy_weight": 0.01, "value_weight": 0.5, "reduction": "mean"}


def actor_critic_learner(kind: str, device: str, lstm_size: int | None = None, **options: Any) -> ActorCriticLearner:
    torch.manual_seed(0)
    estimate = advantages.estimator(kind, 0.9, 0.95, 1.0, 1.0)
    network_class = QActorCritic if estimate.values_actions else ActorCritic
    network = network_class((5,), A, hidden_sizes=(8,), lstm_size=lstm_size).to(device)
    parameters = FlatParameters(network)
    optimizer = RMSProp([parameters.values], 1.0, decay=0.0, epsilon=0.0)
    return ActorCriticLearner(network, parameters, optimizer, estimate, **(WEIGHTS | options))


def batch(device: str, state_size: int = 0, lengths: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    no = torch.zeros(T, B, dtype=torch.bool)
    parts = Batch(
        torch.randn(T, B, 5, generator=generator),
        torch.zeros(B, state_size),
        torch.randint(A, (T, B), generator=generator),
        torch.full((T, B, A), 0.5).log(),
        torch.randn(T, B, generator=generator),
        no,
        no,
        ~no,
        torch.randn(B, generator=generator),
        lengths,
    )
    return Batch(*(part if part is None else part.to(device) for part in parts))


def sample(device: str) -> Sample:
    generator = torch.Generator().manual_seed(1)
    observations, following = torch.randn(2, B, 5, generator=generator)
    actions, ones = torch.randint(A, (B,), generator=generator), torch.ones(B)
    parts = [part.to(device) for part in (observations, actions, ones, 0.9 * ones, following, ones)]
    nothing: Any = np.zeros(B, dtype=np.int64)
    return Sample(*parts, *[nothing] * 5)


@pytest.mark.parametrize("kind", ["nstep", "gae", "monte_carlo", "total_reward", "vtrace", "q"])
@pytest.mark.parametrize("lstm_size", [None, 6])
def test_an_actor_critic_learns_without_a_look_at_the_device(kind: str, lstm_size: int | None) -> None:
    """Tensors on "meta" have no values: whoever asks for one, as for what lies on a GPU, raises."""
    learner = actor_critic_learner(kind, "meta", lstm_size, max_grad_norm=0.5, log_epsilon=1e-6)
    found = learner.differentiate(
        batch("meta", 2 * (lstm_size or 0), torch.full((B,), T)), keep=torch.ones(T, B, dtype=torch.bool, device="meta")
    )
    assert learner.clip().device.type == "meta"
    learner.step(0.1)
    assert {part.device.type for part in found.figures().values()} == {"meta"}
    with pytest.raises(RuntimeError):
        float(found.loss.total.detach())


def test_the_record_of_an_update_asks_the_device_for_nothing() -> None:
    """All that PAAC does between acting and acting, but for the environments."""
    learner = actor_critic_learner("vtrace", "meta", max_grad_norm=0.5)
    rollout = Rollout(T, B, (5,), np.dtype(np.float32), A, torch.device("meta"))
    rollout.start(torch.zeros(B, 5, device="meta"), torch.zeros(B, 0, device="meta"))
    yes = np.ones(B, dtype=np.bool_)
    for t in range(T):
        rollout.add(0, Stamp(t, 10 * t, float(t)), np.zeros(B, np.float32), ~yes, ~yes, yes)
    rollout.has_values = True
    rollout.bootstrap = learner.values(rollout.observations[T], rollout.state)
    batch, ratios, meter = rollout.batch(), Ratios(), LagMeter()
    found = learner.differentiate(batch)
    diverged = divergence(batch, found.log_probs, found.mask, found.values)
    meter.add(**rollout.lag(Stamp(9, 90, 9.0), found.mask), **diverged)
    ratios.add("unusable_share", *found.unusable)
    ratios.add("clip_share", *found.cut)
    figures = found.figures() | effective_sample_size(diverged) | {"gradient_norm": learner.apply(0.1)}
    assert {part.device.type for part in figures.values()} == {"meta"}
    assert {unit: len(part) for unit, part in diverged.items()} == {
        "lag_kl_nats": T * B,
        "importance_ratio": T * B,
        "value_lag": T * B,
    }
    with pytest.raises((RuntimeError, NotImplementedError)):
        meter.interval()
    with pytest.raises((RuntimeError, NotImplementedError)):
        ratios.sums()


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_over_envs"])
@pytest.mark.parametrize("kind", ["nstep", "gae", "monte_carlo", "vtrace", "q"])
def test_padding_changes_no_number(kind: str, reduction: str) -> None:
    """Steps after the end of a rollout, and rollouts of no step: gradient, figures and counts are those without."""
    learner = actor_critic_learner(kind, "cpu", reduction=reduction, log_epsilon=1e-6)
    lengths = torch.tensor([T, 2, 3])
    steps = torch.arange(T).unsqueeze(-1)
    valid, ends = steps < lengths, steps == lengths - 1
    whole = batch("cpu", lengths=lengths)
    whole = whole._replace(valid=valid, terminated=ends & torch.tensor([True, False, True]), truncated=ends)
    sizes = {1: (T + 2, B + 4), 0: (B + 4,)}
    parts = {name: part for name, part in whole._asdict().items() if part is not None}
    by_rollout = ("state", "bootstrap", "lengths")
    filled = {k: torch.from_numpy(padded(part.numpy(), *sizes[k not in by_rollout])) for k, part in parts.items()}
    found, gradients = [], []
    for each in (parts, filled):
        found.append(learner.differentiate(Batch(**each)))
        gradients.append(learner.parameters.gradients.clone())
    assert gradients[0].norm() > 0.01
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
    plain, full = found
    for name, figure in plain.figures().items():
        torch.testing.assert_close(full.figures()[name], figure)
    assert [int(n) for n in (*full.unusable, *full.cut)] == [int(n) for n in (*plain.unusable, *plain.cut)]


@pytest.mark.parametrize("double", [False, True])
def test_q_is_learnt_without_a_look_at_the_device(double: bool) -> None:
    network, target = (QNetwork((5,), A, hidden_sizes=(8,), dueling=True).to("meta") for _ in range(2))
    parameters = FlatParameters(network)
    learner = QLearner(network, target, parameters, RMSProp([parameters.values], 1.0, centered=True),
                       double=double, td_error_clip=1.0, reduction="sum", max_grad_norm=0.5)  # fmt: skip
    found = learner.differentiate(sample("meta"))
    learner.clip()
    learner.step(0.1)
    assert found.figures()["td_error"].device.type == "meta"


def test_each_gradient_is_of_one_batch_alone() -> None:
    learner = actor_critic_learner("nstep", "cpu")
    learner.differentiate(batch("cpu"))
    once = learner.parameters.gradients.clone()
    learner.differentiate(batch("cpu"))
    assert torch.equal(learner.parameters.gradients, once)
    assert once.norm() > 0.01


def test_a_step_is_of_the_learning_rate_given_and_of_the_gradient_clipped() -> None:
    learner = actor_critic_learner("nstep", "cpu", max_grad_norm=0.001)
    learner.differentiate(batch("cpu"))
    gradient = learner.parameters.gradients.clone()
    norm = learner.clip()
    torch.testing.assert_close(norm, gradient.norm())
    torch.testing.assert_close(learner.parameters.gradients, gradient * 0.001 / norm, rtol=0.01, atol=0.0)
    before = learner.parameters.values.detach().clone()
    learner.step(0.25)  # without memory or epsilon each entry moves by the learning rate
    moved = before - learner.parameters.values.detach()
    torch.testing.assert_close(moved, 0.25 * gradient.sign(), rtol=0.0, atol=1e-6)


def test_who_only_differentiates_has_nothing_to_step() -> None:
    network, target = QNetwork((5,), A), QNetwork((5,), A)
    learner = QLearner(network, target, FlatParameters(network), double=False, td_error_clip=1.0, reduction="sum")
    learner.differentiate(sample("cpu"))
    assert learner.clip() > 0.0
    with pytest.raises(AssertionError):
        learner.step(0.1)
