"""The counts of many."""

import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

from a3c_bench.core.lag import Stamp
from a3c_bench.envs.episodes import Moment
from a3c_bench.parallel.tally import Tally
from a3c_bench.runtime.clock import TrainingClock


def test_all_rows_and_those_of_earlier_attempts_are_added_up(ticks: Any) -> None:
    tally = Tally(2, 4, TrainingClock(10.0))
    tally.begin(agent_steps=100, updates=7)
    tally.add(0, agent_steps=3)
    tally.add(1, agent_steps=2, updates=1)
    tally.add(1, updates=1)
    assert (tally.agent_steps, tally.frames, tally.version) == (105, 420, 9)
    assert (tally.of([0, 1]), tally.of([1])) == ((5, 2), (2, 2))
    assert tally.stamp() == Stamp(9, 420, 10.0)
    assert tally.stamp(version=8) == Stamp(8, 420, 10.0)
    assert tally.moment() == Moment(420, 105, 10.0)


def test_processes_that_are_handed_it_count_together(ticks: Any) -> None:
    clock = TrainingClock()
    tally = Tally(1, 1, clock).share()
    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(tally)
    other = pickle.loads(buffer.getvalue())
    clock.start()
    ticks.now += 5.0
    other.add(0, agent_steps=3)
    tally.add(0, agent_steps=2, updates=1)
    assert other.stamp() == tally.stamp() == Stamp(1, 5, 5.0)
