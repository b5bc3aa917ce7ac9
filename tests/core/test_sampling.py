"""Actions are sampled by their probabilities, independently, and by the generator alone."""

import pytest
import torch
from torch.nn import functional as F

from a3c_bench.core.networks import sample_actions


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
