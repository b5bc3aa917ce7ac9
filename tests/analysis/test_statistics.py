import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis import statistics
from analysis.statistics import Crossing, bootstrap, first_crossing, median_crossing

TASKS = [np.array([0.0, 10.0, 20.0]), np.array([100.0, 100.0, 130.0]), np.array([-6.0, 0.0, 0.0, 2.0])]
RANDOM = np.random.default_rng(7)


# --- aggregate scores


def test_aggregates_by_hand():
    assert statistics.mean(TASKS) == pytest.approx((10.0 + 110.0 - 1.0) / 3)
    assert statistics.median(TASKS) == 10.0
    # ten runs, two off each end: -6 0 | 0 0 2 10 20 100 | 100 130
    assert statistics.iqm(TASKS) == pytest.approx((0 + 0 + 2 + 10 + 20 + 100) / 6)


def test_iqm_drops_a_quarter_at_each_end():
    assert statistics.iqm([np.array([1000.0, 2.0, 4.0, -1000.0])]) == 3.0
    assert statistics.iqm([np.array([1.0, 2.0, 9.0])]) == 4.0  # a quarter of three is no run


def test_profile_by_hand():
    profile = statistics.performance_profile(TASKS, np.array([-10.0, 0.0, 15.0, 200.0]))
    np.testing.assert_allclose(profile, [1.0, (2 / 3 + 1 + 1 / 4) / 3, (1 / 3 + 1 + 0) / 3, 0.0])


def test_probability_of_improvement_by_hand():
    ours, theirs = [np.array([1.0, 3.0]), np.array([5.0])], [np.array([2.0, 3.0, 0.0]), np.array([5.0])]
    # first task: 1 beats 0; 3 beats 2 and 0 and ties with 3: 3.5 of 6; second task: a tie
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx((3.5 / 6 + 0.5) / 2)
    assert statistics.probability_of_improvement(theirs, ours) == pytest.approx(1 - (3.5 / 6 + 0.5) / 2)
    with pytest.raises(ValueError, match="zip"):
        statistics.probability_of_improvement(ours, theirs[:1])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
)
def test_probability_of_improvement_is_mann_whitney(x, y):
    expected = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert statistics.probability_of_improvement([np.array(x)], [np.array(y)]) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mean", "median", "iqm"])
def test_leading_axes_are_many_samples_at_once(name):
    statistic = getattr(statistics, name)
    many = [RANDOM.normal(size=(50, 4)), RANDOM.normal(size=(50, 3)), RANDOM.normal(size=(50, 7))]
    naive = [statistic([task[i] for task in many]) for i in range(50)]
    np.testing.assert_allclose(statistic(many), naive)


def test_profiles_and_probabilities_along_leading_axes():
    many, other = ([RANDOM.integers(0, 4, size=(20, 4)) * 1.0 for _ in range(3)] for _ in range(2))
    at = np.array([0.5, 1.0, 2.5])
    naive = [statistics.performance_profile([task[i] for task in many], at) for i in range(20)]
    np.testing.assert_allclose(statistics.performance_profile(many, at), naive)
    naive = [statistics.probability_of_improvement([x[i] for x in many], [y[i] for y in other]) for i in range(20)]
    np.testing.assert_allclose(statistics.probability_of_improvement(many, other), naive)


def test_human_normalised_by_hand():
    assert statistics.human_normalised(np.array(20.0), np.array(-20.0), np.array(-10.0)) == 400.0


# --- intervals


@pytest.mark.parametrize(
    ("name", "of_scipy"),
    [("mean", np.mean), ("iqm", lambda x, axis: stats.trim_mean(x, 0.25, axis=axis))],
)
def test_interval_is_that_of_scipy_on_one_task(name, of_scipy):
    scores = np.random.default_rng(3).normal(10.0, 3.0, 12)
    ours = bootstrap(getattr(statistics, name), [scores], n_resamples=40_000)
    theirs = stats.bootstrap((scores,), of_scipy, method="percentile", n_resamples=40_000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours.value == pytest.approx(of_scipy(scores, axis=-1))


def test_seeds_are_drawn_within_their_task():
    """Tasks far apart add nothing to the interval, as they would if runs were drawn across them."""
    tasks = [np.array([0.0, 0.0, 0.0]), np.array([1000.0, 1000.0, 1000.0])]
    for name in ("mean", "median", "iqm"):
        estimate = bootstrap(getattr(statistics, name), tasks)
        assert estimate.low == estimate.value == estimate.high == 500.0


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """The mean of 20 normal scores: the percentile bootstrap is a little narrow, about 93%."""
    random = np.random.default_rng(0)
    estimates = [bootstrap(statistics.mean, [random.normal(size=20)], n_resamples=500) for _ in range(400)]
    covered = np.mean([estimate.low <= 0.0 <= estimate.high for estimate in estimates])
    assert 0.88 <= covered <= 0.98


def test_intervals_are_seeded():
    first, again = (bootstrap(statistics.iqm, TASKS) for _ in range(2))
    assert first == again
    other = bootstrap(statistics.iqm, TASKS, seed=1, n_resamples=100)
    assert (other.low, other.high) != (first.low, first.high)
    assert first.low <= first.value <= first.high


def test_two_seeds_have_no_interval():
    estimate = bootstrap(statistics.mean, [np.array([1.0, 3.0]), np.array([1.0, 2.0, 3.0])])
    assert estimate.value == 2.0
    assert np.isnan(estimate.low)
    assert np.isnan(estimate.high)
    profile = bootstrap(lambda tasks: statistics.performance_profile(tasks, np.zeros(5)), [np.array([1.0])])
    assert profile.low.shape == (5,)
    assert np.isnan(profile.low).all()


def test_interval_of_a_probability_draws_both_sides():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    estimate = bootstrap(statistics.probability_of_improvement, [x], [y])
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (0.0, 1.0)  # thrice the lowest: 1 in 27
    same = bootstrap(statistics.probability_of_improvement, [x], [x])
    assert same.low < 0.5 < same.high  # drawn apart, though the samples are equal


# --- curves


def test_area_by_hand():
    x, y = np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 0.0])
    assert statistics.area_under_curve(x, y) == 5.0
    assert statistics.area_under_curve(x, y, 10.0) == 5.0
    assert statistics.area_under_curve(x, y, 15.0) == pytest.approx((50.0 + 5 * 7.5) / 15)
    assert np.isnan(statistics.area_under_curve(x, y, 21.0))
    assert np.isnan(statistics.area_under_curve(x[:1], y[:1]))
    assert np.isnan(statistics.area_under_curve(x[:0], y[:0]))


def test_first_crossing_by_hand():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 5.0, 4.0, 6.0])
    assert first_crossing(x, y, 5.0) == Crossing(2.0, True)
    assert first_crossing(x, y, 5.5) == Crossing(4.0, True)
    assert first_crossing(x, y, 7.0) == Crossing(4.0, False)
    with pytest.raises(ValueError, match="without points"):
        first_crossing(x[:0], y[:0], 0.0)


@pytest.mark.parametrize(
    ("crossings", "expected"),
    [
        ([(10, True), (20, True), (30, True)], 20),
        ([(10, True), (20, True), (100, False)], 20),
        ([(10, True), (100, False), (100, False)], np.inf),
        ([(5, False)], np.inf),
        ([(5, False), (5, False), (20, True)], np.inf),  # who trained longest is no median
        # censored at 15, so only two are at risk at 20: S = 2/3, then 1/3 of it
        ([(10, True), (15, False), (20, True)], 20),
        # S(10) = 3/4, then one censored, S(30) = 3/8
        ([(10, True), (20, False), (30, True), (40, True)], 30),
        ([(10, True), (20, True)], 10),
    ],
)
def test_median_crossing_by_hand(crossings, expected):
    assert median_crossing([Crossing(float(x), reached) for x, reached in crossings]) == expected


def test_what_never_arrives_stays_to_the_end_of_the_curve():
    never = [Crossing(float("inf"), False)] * 2
    assert median_crossing([Crossing(x, True) for x in (10.0, 20.0, 30.0)] + never) == 30.0
    assert np.isinf(median_crossing([Crossing(x, True) for x in (10.0, 20.0)] + [*never, Crossing(15.0, False)]))
