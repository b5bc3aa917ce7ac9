import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.aggregate import bootstrap_band, common_grid, last_of_each, resample, rolling_mean


def test_rolling_mean_by_hand():
    assert rolling_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert rolling_mean(np.array([4.0, 8.0]), 100).tolist() == [4.0, 6.0]
    assert rolling_mean(np.zeros(0), 5).tolist() == []


def test_rolling_mean_against_pandas():
    values = np.random.default_rng(0).normal(200.0, 50.0, 1000)
    expected = pd.Series(values).rolling(100, min_periods=1).mean()
    np.testing.assert_allclose(rolling_mean(values, 100), expected, rtol=1e-10)


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window=0"):
        rolling_mean(np.ones(3), 0)


def test_the_last_of_equal_x_counts():
    x, y = last_of_each(np.array([1.0, 1.0, 2.0, 5.0, 5.0]), np.array([10.0, 11.0, 20.0, 50.0, 51.0]))
    assert x.tolist() == [1.0, 2.0, 5.0]
    assert y.tolist() == [11.0, 20.0, 51.0]


def test_the_grid_is_where_all_curves_are():
    assert common_grid(np.array([0.0, 2.0]), np.array([10.0, 6.0]), 3).tolist() == [2.0, 4.0, 6.0]
    assert common_grid(np.array([3.0, 1.0]), np.array([3.0, 4.0]), 3).tolist() == [3.0]
    assert common_grid(np.array([0.0, 7.0]), np.array([6.0, 9.0]), 3).tolist() == []


def test_resampling_by_hand_without_extrapolation():
    values = resample(np.array([0.0, 1.0, 2.0, 4.0, 9.0]), np.array([1.0, 3.0, 5.0]), np.array([10.0, 30.0, 0.0]))
    np.testing.assert_array_equal(values, [np.nan, 10.0, 20.0, 15.0, np.nan])


def test_the_band_of_three_seeds_is_their_range():
    # All three draws are the lowest seed in 1 of 27 resamples, 3.7%: more than the tail of 2.5%.
    low, high = bootstrap_band(np.array([[1.0, -4.0], [2.0, 0.0], [6.0, 3.0]]))
    np.testing.assert_allclose(low, [1.0, -4.0])
    np.testing.assert_allclose(high, [6.0, 3.0])


def test_the_band_against_scipy():
    values = np.random.default_rng(1).normal(100.0, 10.0, (10, 4))
    expected = stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    low, high = bootstrap_band(values)
    np.testing.assert_allclose(low, expected.low, atol=0.4)
    np.testing.assert_allclose(high, expected.high, atol=0.4)


def test_the_band_is_the_same_each_time():
    values = np.random.default_rng(1).normal(size=(5, 7))
    for first, second in zip(bootstrap_band(values), bootstrap_band(values), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_band_over_no_common_points_is_empty():
    low, high = bootstrap_band(np.zeros((3, 0)))
    assert low.shape == high.shape == (0,)
