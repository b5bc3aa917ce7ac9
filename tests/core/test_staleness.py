"""Corrections for stale gradients, by hand."""

import pytest
import torch

from a3c_bench.core.staleness import compensate_delay, step_for


def test_a_step_is_divided_by_one_more_than_the_staleness() -> None:
    assert [step_for(0.6, staleness, aware=True) for staleness in (0, 1, 2)] == pytest.approx([0.6, 0.3, 0.2])
    assert step_for(0.6, 5, aware=False) == 0.6


def test_a_delay_is_compensated_by_the_square_of_the_gradient() -> None:
    gradient, now, then = torch.tensor([2.0, -3.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.0, -1.0])
    compensate_delay(gradient, now, then, 0.1)
    torch.testing.assert_close(gradient, torch.tensor([2.0 + 0.1 * 4.0 * 0.5, -3.0 + 0.1 * 9.0 * 1.0, 0.0]))
    compensate_delay(gradient, now, now, 0.1)  # nobody has changed anything
    compensate_delay(gradient, now, then, 0.0)
    torch.testing.assert_close(gradient, torch.tensor([2.2, -2.1, 0.0]))


def test_on_a_parabola_the_compensation_is_exact_where_the_curvature_is_g_squared() -> None:
    """Of 1/2 c x^2 the gradient c x changes by c dx: lambda g^2 = c makes up for all of it."""
    then, now, curvature = torch.tensor([2.0]), torch.tensor([1.5]), 0.8
    gradient = curvature * then
    compensate_delay(gradient, now, then, curvature / float(gradient) ** 2)
    torch.testing.assert_close(gradient, curvature * now)
