"""GA3C's random walk over sizes, on made-up speeds."""

import itertools

import numpy as np
import pytest

from a3c_bench.core.adjustment import Adjuster, Sizes, Window

START, LOW, HIGH = Sizes(8, 2, 2), Sizes(4, 1, 1), Sizes(12, 4, 4)


def walk(adjuster: Adjuster, n_windows: int) -> list[Window]:
    """Lets it look every second; windows of 10 s."""
    windows, trained, seconds = [], 0.0, 0.0
    while len(windows) < n_windows:
        window = adjuster.look(seconds, round(trained))
        if window:
            windows.append(window)
        seconds += 1.0
        trained += 100.0 * (adjuster.sizes.n_trainers + adjuster.sizes.n_agents)
    return windows


def make(low: Sizes = LOW, high: Sizes = HIGH) -> Adjuster:
    return Adjuster(START, low, high, 10.0, np.random.default_rng(0))


def test_nothing_is_decided_before_the_window_is_over() -> None:
    adjuster = make()
    assert all(adjuster.look(second, 5 * second) is None for second in range(10))
    assert adjuster.look(10.0, 50) == Window(Sizes(8, 2, 2), 5.0, None, True)


def test_what_is_faster_is_kept_and_what_is_not_is_taken_back() -> None:
    windows = walk(make(), 60)
    home: Window | None = None
    n_kept = n_taken_back = 0
    for window in windows:
        if window.tps_before is None:  # measured: as they were kept last
            assert home is None or window.sizes == home.sizes
            home = window
            continue
        assert home is not None
        assert window.tps_before == pytest.approx(home.tps)
        steps = np.abs(np.array(window.sizes) - np.array(home.sizes))
        assert steps.max() == 1
        assert window.kept == (window.tps > home.tps)
        n_kept, n_taken_back = n_kept + window.kept, n_taken_back + (not window.kept)
        if window.kept:
            home = window
    assert n_kept >= 3
    assert n_taken_back > 5


def test_it_climbs_to_the_fastest_and_stays_there() -> None:
    adjuster = make()
    windows = walk(adjuster, 400)
    best = [window.sizes for window in windows if window.tps_before is None][-1]
    assert (best.n_agents, best.n_trainers) == (12, 4)


def test_a_rejected_trial_is_followed_by_a_new_measurement() -> None:
    windows = walk(make(), 60)
    for before, after in itertools.pairwise(windows):
        assert (after.tps_before is None) == (not before.kept)


def test_sizes_that_cannot_change_do_not() -> None:
    fixed = Sizes(8, 2, 2)
    assert {window.sizes for window in walk(make(low=fixed, high=fixed), 5)} == {fixed}


def test_it_goes_on_from_what_was_kept() -> None:
    adjuster = make()
    walk(adjuster, 50)
    again = make()
    again.load_state_dict(adjuster.state_dict())
    assert list(again.sizes) == adjuster.state_dict()["sizes"]
    again = make(high=Sizes(8, 2, 2))  # another limit now
    again.load_state_dict({"sizes": [12, 4, 4]})
    assert again.sizes == Sizes(8, 2, 2)


def bounded(bound: float | None, lags: list[float | None], tps: list[int]) -> list[Window]:
    """Windows of 10 s with so many trainings per second and such a mean lag."""
    adjuster = Adjuster(START, LOW, HIGH, 10.0, np.random.default_rng(0), bound)
    assert adjuster.look(0.0, 0) is None
    windows, trained = [], 0
    for i, (lag, per_second) in enumerate(zip(lags, tps, strict=True)):
        if lag is not None:
            adjuster.learnt(np.full(3, lag + 1.0))  # means are over samples, not over updates
            adjuster.learnt(np.full(9, lag - 1 / 3))
        trained += 10 * per_second
        window = adjuster.look(10.0 * (i + 1), trained)
        assert window is not None
        windows.append(window)
    return windows


@pytest.mark.parametrize(
    ("bound", "home", "trial", "kept"),
    [  # (mean lag, trainings per second)
        (None, (3.0, 50), (9.0, 51), True),
        (4.0, (3.0, 50), (4.0, 51), True),  # at the bound is within it
        (4.0, (3.0, 50), (1.0, 50), False),  # less lag than is asked for is worth nothing
        (4.0, (3.0, 50), (4.5, 90), False),
        (4.0, (6.0, 50), (3.0, 1), True),  # to get within it
        (4.0, (6.0, 50), (5.0, 10), True),  # on the way there
        (4.0, (6.0, 50), (6.0, 90), False),
        (4.0, (6.0, 50), (7.0, 90), False),
        (4.0, (6.0, 50), (None, 0), False),  # nothing was learnt from
        (4.0, (None, 0), (6.0, 1), True),
        (0.0, (0.0, 50), (0.0, 60), True),
    ],
)
def test_a_bound_on_lag_goes_before_speed(
    bound: float | None, home: tuple[float | None, int], trial: tuple[float | None, int], kept: bool
) -> None:
    first, second = bounded(bound, [home[0], trial[0]], [home[1], trial[1]])
    assert (first.kept, first.tps_before, second.tps_before) == (True, None, home[1])
    assert second.kept == kept
    for window, (lag, tps) in ((first, home), (second, trial)):
        assert window.tps == tps
        assert window.mean_lag_updates == (None if lag is None else pytest.approx(lag, abs=1e-12))


def test_a_trial_over_the_bound_is_taken_back_and_what_it_came_from_is_measured_anew() -> None:
    first, trial, again, next_trial = bounded(4.0, [3.0, 5.0, 4.5, 4.2], [50, 90, 50, 20])
    assert trial.sizes != first.sizes == again.sizes
    assert (trial.kept, again.kept, again.tps_before) == (False, True, None)
    assert next_trial.kept  # home is above the bound now, by this newest measurement


@pytest.mark.parametrize(("bound", "best"), [(None, (12, 4)), (3.0, (12, 4)), (2.0, (8, 4)), (1.5, (6, 4))])
def test_it_climbs_to_the_fastest_sizes_within_the_bound(bound: float | None, best: tuple[int, int]) -> None:
    """Trainings per second grow with agents and trainers, and lag with agents over trainers: 4 at the start."""
    adjuster = Adjuster(START, LOW, HIGH, 10.0, np.random.default_rng(0), bound)
    trained = 0
    for i in range(600):
        adjuster.look(10.0 * i, trained)
        sizes = adjuster.sizes
        trained += 100 * (sizes.n_agents + sizes.n_trainers)
        adjuster.learnt(np.full(4, sizes.n_agents / sizes.n_trainers))
    n_agents, _, n_trainers = adjuster.state_dict()["sizes"]
    assert (n_agents, n_trainers) == best
