"""Lag per sample against a naive count, bins by hand, and a histogram that goes on after a checkpoint."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from a3c_bench.core import lag
from a3c_bench.core.lag import (
    BIN_EDGES,
    REAL_UNITS,
    UNITS,
    LagMeter,
    Repeated,
    effective_sample_size,
    policy_divergence,
)


def naive_bin(unit: str, value: float) -> tuple[float, float]:
    """Goes through the bins one by one."""
    edges = [*BIN_EDGES[unit].tolist(), float("inf")]
    for lower, upper in pairwise(edges):
        if lower <= value < upper:
            return lower, upper
    raise AssertionError(f"{value} is in no bin")


@pytest.mark.parametrize("unit", UNITS)
def test_bins_against_a_loop(unit: str) -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([[0.0], 10.0 ** random.uniform(-11, 5, 400), BIN_EDGES[unit]])
    meter = LagMeter()
    meter.add(**{unit: values})
    expected: dict[tuple[float, float], int] = {}
    for value in values.tolist():
        key = naive_bin(unit, value)
        expected[key] = expected.get(key, 0) + 1
    assert {(low, high): n for name, low, high, n in meter.histogram() if name == unit} == expected
    assert sum(expected.values()) == len(values)


def test_counts_have_a_bin_per_whole_number() -> None:
    meter = LagMeter()
    meter.add(lag_updates=np.array([0, 0, 1, 7, 7, 7, 99]))
    assert meter.histogram() == [
        ("lag_updates", 0.0, 1e-9, 2),
        ("lag_updates", 1.0, 2.0, 1),
        ("lag_updates", 7.0, 8.0, 3),
        ("lag_updates", 99.0, 100.0, 1),
    ]


@pytest.mark.parametrize("unit", sorted(REAL_UNITS))
def test_real_numbers_have_bins_of_equal_ratio(unit: str) -> None:
    edges = BIN_EDGES[unit]
    assert edges[0] == 0.0
    np.testing.assert_allclose(edges[2:] / edges[1:-1], 10.0**0.01)
    assert 1.0 in edges.tolist()  # exactly: a ratio just below 1 and one just above are told apart


def test_importance_ratios_about_one_are_told_apart() -> None:
    meter = LagMeter()
    meter.add(importance_ratio=np.array([0.5, 0.999, 1.0, 1.01, 1.05, 1.6, 5e3]))
    bins = [(low, high, n) for _, low, high, n in meter.histogram()]
    assert [n for _, _, n in bins] == [1, 1, 2, 1, 1, 1]
    assert bins[1][1] == bins[2][0] == 1.0
    assert bins[-1][:2] == (1000.0, np.inf)


def test_a_histogram_goes_on_after_a_checkpoint() -> None:
    first, second = LagMeter(), LagMeter()
    first.add(lag_updates=np.array([1, 2]), lag_seconds=np.array([0.25]))
    first.interval()
    second.load_state_dict(first.state_dict())
    for meter in (first, second):
        meter.add(lag_updates=np.array([2, 300]))
    assert first.histogram() == second.histogram()
    assert sum(n for *_, n in second.histogram()) == 5


def test_a_histogram_with_other_bins_is_refused() -> None:
    state = LagMeter().state_dict() | {"lag_seconds": torch.zeros(7, dtype=torch.int64)}
    with pytest.raises(ValueError, match="counts lag_seconds in 7 bins, this version in 1202"):
        LagMeter().load_state_dict(state)


def test_the_summary_of_an_interval_by_hand() -> None:
    meter = LagMeter()
    meter.add(lag_frames=torch.tensor([0, 10]), lag_updates=np.zeros(0))
    meter.add(lag_frames=np.array([20.0, 30.0, 40.0]))
    assert meter.interval() == {
        "lag_frames_mean": 20.0,
        "lag_frames_p50": 20.0,
        "lag_frames_p95": pytest.approx(38.0),
        "lag_frames_max": 40.0,
    }
    assert meter.interval() == {}


def test_an_interval_of_more_samples_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and maximum are of all of them, quantiles of the newest."""
    monkeypatch.setattr(lag, "_FOLD_AT", 10)
    meter = LagMeter()
    for start in range(0, 35, 5):
        meter.add(lag_frames=np.arange(start, start + 5), lag_updates=np.full(1, 100 - start))
    meter.histogram()  # changes nothing of the interval
    summary = meter.interval()
    assert (summary["lag_frames_mean"], summary["lag_frames_max"]) == (17.0, 34.0)
    assert summary["lag_frames_p50"] == 29.5  # of 25 to 34
    assert (summary["lag_updates_mean"], summary["lag_updates_max"]) == (85.0, 100.0)
    assert sum(n for unit, *_, n in meter.histogram() if unit == "lag_frames") == 35
    assert meter.interval() == {}


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(KeyError, match="lag_steps"):
        LagMeter().add(lag_steps=np.zeros(1))


def test_divergence_by_hand() -> None:
    mu, pi = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    kl, ratio = policy_divergence(mu, pi, torch.tensor([0, 1]))
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(kl.numpy(), [by_hand, 0.0], atol=1e-6)
    np.testing.assert_allclose(ratio.numpy(), [0.5, 1.0], rtol=1e-6)


def test_what_nobody_waited_for_counts_as_what_it_stands_for() -> None:
    """As a GPU's updates give it: figures of so many samples each, and NaN where there is no sample."""
    at_once, later = LagMeter(), LagMeter()
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    ratios = torch.tensor([[1.0, 2.0, 9.0], [9.0, 9.0, 9.0], [4.0, 0.5, 8.0]])
    for shift in (0.0, 3.0):
        figures = np.array([5.0, 6.0, 7.0]) + shift
        at_once.add(lag_updates=np.repeat(figures, [2, 0, 3]), importance_ratio=(ratios + shift)[mask])
        repeated = Repeated(figures, mask.sum(-1), mask.numel())
        assert len(repeated) == 9
        later.add(lag_updates=repeated, importance_ratio=torch.where(mask, ratios + shift, torch.nan).flatten())
    assert later.interval() == at_once.interval()
    assert later.histogram() == at_once.histogram()
    kept, marked = ratios[mask], torch.where(mask, ratios, torch.nan).flatten()
    expected = kept.sum().square() / (len(kept) * kept.square().sum())
    for given in (kept, marked):
        found = effective_sample_size({"importance_ratio": given})["effective_sample_size"]
        torch.testing.assert_close(found, expected)
    nobody = effective_sample_size({"importance_ratio": torch.full((4,), torch.nan)})
    assert float(nobody["effective_sample_size"]) == 1.0
