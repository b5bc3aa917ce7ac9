"""PPO's parts by hand: which samples a minibatch has, what is normalised, how far a value may move, the whole loss."""

import math

import pytest
import torch
from torch import Tensor

from a3c_bench.core.advantages import Estimate
from a3c_bench.core.learning import n_beyond_clip
from a3c_bench.core.losses import actor_critic_loss
from a3c_bench.core.minibatches import at, mask_of, shuffled
from a3c_bench.core.ppo import normalised
from a3c_bench.core.rollout import Batch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_sample_is_in_one_minibatch() -> None:
    places = shuffled(6, 4, 3, whole_envs=False, generator=generator())
    assert places.shape == (3, 1, 8)
    assert sorted(places.flatten().tolist()) == list(range(24))
    assert places.flatten().tolist() != list(range(24))
    assert places.tolist() != shuffled(6, 4, 3, whole_envs=False, generator=generator(1)).tolist()


def test_with_a_memory_minibatches_have_whole_environments_in_order() -> None:
    places = shuffled(3, 4, 2, whole_envs=True, generator=generator())
    assert places.shape == (2, 3, 2)
    assert sorted(places.flatten().tolist()) == list(range(12))
    for minibatch in places:
        steps, envs = minibatch // 4, minibatch % 4
        assert steps.tolist() == [[0, 0], [1, 1], [2, 2]]
        assert (envs == envs[0]).all()


def numbered(n_steps: int, n_envs: int) -> tuple[Batch, Estimate]:
    """A rollout each of whose figures tells its step and environment: 10 t + i, and more for some."""
    numbers = (10.0 * torch.arange(n_steps).view(-1, 1) + torch.arange(n_envs)).float()
    flags = numbers % 2 == 0
    batch = Batch(
        torch.stack([numbers, -numbers], dim=-1),
        torch.arange(n_envs).float().view(-1, 1),
        numbers.long(),
        numbers.unsqueeze(-1) + 0.5,
        numbers + 0.1,
        flags,
        ~flags,
        flags,
        100.0 + torch.arange(n_envs),
        values=numbers + 0.2,
    )
    return batch, Estimate(numbers + 0.3, numbers + 0.4, ~flags)


@pytest.mark.parametrize("whole_envs", [False, True])
def test_a_minibatch_is_that_part_of_the_rollout(whole_envs: bool) -> None:
    whole, whole_psi = numbered(3, 4)
    for places in shuffled(3, 4, 2, whole_envs, generator()):
        part, psi = at(places, whole, whole_psi)
        names: list[tuple[Tensor, Tensor]] = list(zip(psi, whole_psi, strict=True))
        fields = ("observations", "actions", "log_probs", "rewards", "terminated", "truncated", "valid", "values")
        names += [(getattr(part, name), getattr(whole, name)) for name in fields]
        for row in range(places.shape[0]):
            for column in range(places.shape[1]):
                t, i = divmod(int(places[row, column]), 4)
                assert all(torch.equal(mine[row, column], theirs[t, i]) for mine, theirs in names)
        envs = places[0] % 4
        assert part.state.tolist() == whole.state[envs].tolist()
        assert part.bootstrap.tolist() == whole.bootstrap[envs].tolist()
        again = mask_of(places, part.valid, 3, 4)
        assert {tuple(place) for place in again.nonzero().tolist()} == {
            divmod(int(place), 4) for place in places[part.valid]
        }


def test_advantages_are_normalised_over_the_samples_that_count() -> None:
    """Of 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7; the fourth is a phantom."""
    found = normalised(torch.tensor([[1.0, 2.0], [6.0, 1e6]]), torch.tensor([[True, True], [True, False]]))
    expected = [-2.0 / math.sqrt(7.0), -1.0 / math.sqrt(7.0), 3.0 / math.sqrt(7.0)]
    assert found.flatten()[:3].tolist() == pytest.approx(expected, rel=1e-6)
    alone = normalised(torch.tensor([[5.0, 1.0]]), torch.tensor([[True, False]]))
    assert alone[0, 0] == 0.0  # nothing to divide by


def loss_of(log_probs: Tensor, values: Tensor, **more: object) -> Tensor:
    n = len(values)
    fixed = {"actions": torch.zeros(1, n, dtype=torch.int64), "mask": torch.ones(1, n, dtype=torch.bool)}
    arguments: dict[str, object] = {"entropy_weight": 0.0, "value_weight": 1.0, "reduction": "mean"} | fixed | more
    return actor_critic_loss(log_probs.unsqueeze(0), values.unsqueeze(0), **arguments).total  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "then", "target", "loss", "slope"),
    [
        (0.5, 0.45, 1.0, 0.25, -1.0),  # moved less than the clip: the square
        (0.5, 0.0, 1.0, 0.81, 0.0),  # moved towards its target by more: that of 0.1, which nothing changes
        (0.5, 0.0, 0.2, 0.09, 0.6),  # moved past its target: the square, which leads back
        (0.5, 1.0, 0.0, 0.81, 0.0),  # likewise downwards: that of 0.9
    ],
)
def test_a_value_moves_no_further_than_the_clip(
    value: float, then: float, target: float, loss: float, slope: float
) -> None:
    """max((R - V)^2, (R - clip(V, V_then +- 0.1))^2), as in the codes of OpenAI and CleanRL."""
    values = torch.tensor([value], requires_grad=True)
    outcomes = {"advantages": torch.zeros(1, 1), "returns": torch.tensor([[target]])}
    clip = {"value_clip": 0.1, "values_then": torch.tensor([[then]])}
    found = loss_of(torch.full((1, 2), 0.5).log(), values, **outcomes, **clip)
    (gradient,) = torch.autograd.grad(found, values)
    assert float(found.detach()) == pytest.approx(loss, abs=1e-6)
    assert float(gradient) == pytest.approx(slope, abs=1e-6)


def test_the_clipped_surrogate_by_hand() -> None:
    """Ratios 1.5, 1.5, 0.5, 0.5 with psi 1, -1, 1, -1 and a clip of 0.2: only those that would lead further are cut."""
    ratios, psi = torch.tensor([[1.5, 1.5, 0.5, 0.5]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    log_probs = (ratios[0] * 0.5).log().requires_grad_()
    both = torch.stack([log_probs, torch.full((4,), 0.5).log()], dim=-1)
    log_ratios = log_probs.unsqueeze(0) - math.log(0.5)
    more = {"advantages": psi, "returns": torch.zeros(1, 4), "ratio_clip": 0.2, "log_ratios": log_ratios}
    loss = loss_of(both, torch.zeros(4), **more)
    assert float(loss.detach()) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient.tolist() == pytest.approx([0.0, 1.5 / 4, -0.5 / 4, 0.0], abs=1e-6)  # -w psi / 4, or cut
    assert int(n_beyond_clip(ratios, psi, torch.ones(1, 4, dtype=torch.bool), 0.2)) == 2
