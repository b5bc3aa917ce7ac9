"""Training time and its shares."""

from typing import Any

import pytest

from a3c_bench.runtime.clock import PhaseTimer, TrainingClock


def test_time_counts_while_the_clock_runs(ticks: Any) -> None:
    clock = TrainingClock(10.0)
    ticks.now += 5
    assert clock.seconds == 10.0
    clock.start()
    ticks.now += 5
    clock.start()  # changes nothing
    ticks.now += 1
    assert clock.seconds == 16.0
    clock.stop()
    ticks.now += 5
    clock.stop()
    assert clock.seconds == 16.0
    clock.start()
    ticks.now += 2
    assert clock.seconds == 18.0


@pytest.mark.parametrize("running", [True, False])
def test_a_pause_leaves_the_clock_as_it_was(ticks: Any, running: bool) -> None:
    clock = TrainingClock()
    if running:
        clock.start()
    ticks.now += 1

    def evaluate() -> None:
        with clock.paused():
            ticks.now += 100
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()
    ticks.now += 1
    assert clock.seconds == (2.0 if running else 0.0)


def test_who_shares_the_clock_sees_it_run_and_stand(ticks: Any) -> None:
    """As a worker process does, which gets the memory and not the object."""
    clock = TrainingClock(10.0).share()
    other = TrainingClock()
    other._memory = clock._memory
    clock.start()
    ticks.now += 5
    assert other.seconds == 15.0
    clock.stop()
    ticks.now += 100
    assert other.seconds == 15.0


def test_shares_of_phases(ticks: Any) -> None:
    timer = PhaseTimer("simulate", "train", "wait")
    ticks.now += 100
    timer.start()
    for phase, seconds in [("simulate", 1), ("train", 2), ("simulate", 1)]:
        ticks.now += seconds
        timer.lap(phase)
    assert timer.shares() == {"share_simulate": 0.5, "share_train": 0.5, "share_wait": 0.0}
    assert timer.shares() == {"share_simulate": 0.0, "share_train": 0.0, "share_wait": 0.0}
    ticks.now += 3
    timer.lap("wait")
    assert timer.shares()["share_wait"] == 1.0
    with pytest.raises(KeyError):
        timer.lap("other")
