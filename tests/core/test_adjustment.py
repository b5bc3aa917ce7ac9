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
