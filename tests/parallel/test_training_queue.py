"""The training queue: its order, its bound, and when who learns is woken."""

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from a3c_bench.core.pacing import Unpaced
from a3c_bench.parallel import training_queue
from a3c_bench.parallel.crew import Crew, Member
from a3c_bench.parallel.training_queue import TrainingQueue

LENGTHS = np.array([5, 5, 2, 5, 1, 3, 5, 5])


class Paced(Unpaced):
    """Holds back, and keeps what it was told."""

    held_back = True

    def __init__(self) -> None:
        self.told: list[tuple[str, list[int]]] = []

    def queued(self, slot: int, serial: int) -> None:
        self.told.append(("queued", [slot]))

    def taken(self, slots: Any, lengths: Any) -> None:
        self.told.append(("taken", list(slots)))


class Alone:
    """A member of no crew: each look is counted, and after so many the crew ends."""

    def __init__(self, looks: int = 1000) -> None:
        self.looks = looks

    def awake(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def acquire(self, lock: threading.Lock) -> bool:
        return lock.acquire(blocking=False)


def alone(looks: int = 1000) -> Member:
    return cast(Member, Alone(looks))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long."""
    monkeypatch.setattr(training_queue, "SECONDS_TO_WAIT", 0.001)


def test_a_batch_is_the_oldest_items_that_have_its_samples() -> None:
    queue = TrainingQueue(8, Unpaced(), LENGTHS, 10)
    queue.put(alone(), [[0], [1], [2], [3, 4], [5]])
    assert queue.gather(alone()) == [[0], [1]]
    assert (queue.depth, queue.unfinished) == (3, 5)
    queue.done([[0], [1]])
    assert queue.unfinished == 3
    assert queue.gather(alone()) == [[2], [3, 4], [5]]  # 2 + 6 are less than 10
    queue.put(alone(), [[6]])
    assert queue.gather(alone(3)) == []  # 5 are too few, and the crew ends
    assert queue.depth == 1  # they are left where they were
    queue.put(alone(), [[7]])
    assert queue.gather(alone()) == [[6], [7]]


def test_what_has_no_room_waits_until_somebody_takes() -> None:
    queue = TrainingQueue(2, Unpaced(), LENGTHS, 5)
    queue.put(alone(3), [[0], [1], [2], [3]])
    assert queue.depth == 2  # the crew ended before there was room
    assert queue.gather(alone()) == [[0]]
    queue.put(alone(3), [[3], [6]])
    assert queue.depth == 2  # and no room for the second of them
    assert [queue.gather(alone()) for _ in range(2)] == [[[1]], [[3]]]


def test_a_batch_larger_than_the_queue_is_taken_in_parts() -> None:
    queue = TrainingQueue(2, Unpaced(), LENGTHS, 12)
    found: list[list[list[int]]] = []
    with Crew(lambda report: None, 10.0) as crew:
        crew.start("gatherer", lambda member: found.append(queue.gather(member)))
        crew.start("putter", lambda member: queue.put(member, [[0], [2], [1]]))
        with crew.standstill():
            assert queue.depth == 0
        until = time.monotonic() + 5.0
        while not found and time.monotonic() < until:
            crew.poll(0.01)
    assert found == [[[0], [2], [1]]]


def test_who_gathers_is_not_woken_before_its_batch_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = TrainingQueue(8, Unpaced(), LENGTHS, 12)
    n_woken = 0
    notify = queue._filled.notify

    def count(n: int = 1) -> None:
        nonlocal n_woken
        n_woken += 1
        notify(n)

    monkeypatch.setattr(queue._filled, "notify", count)
    monkeypatch.setattr(training_queue, "SECONDS_TO_WAIT", 5.0)
    found: list[list[list[int]]] = []
    thread = threading.Thread(target=lambda: found.append(queue.gather(alone())))
    thread.start()
    while not queue._filled._waiters:  # type: ignore[attr-defined]
        time.sleep(0.001)
    for slot in (0, 1):
        queue.put(alone(), [[slot]])
    assert n_woken == 0
    queue.put(alone(), [[2]])
    thread.join(5.0)
    assert (n_woken, found) == (1, [[[0], [1], [2]]])


def test_who_is_held_back_for_what_waits_is_told_as_each_rollout_comes() -> None:
    pacing = Paced()
    queue = TrainingQueue(8, pacing, LENGTHS, 10)
    queue.put(alone(), [[2], [4]])
    assert queue.gather(alone(3)) == []  # 3 samples are too few, but they are taken and weighed
    assert pacing.told == [("queued", [2]), ("queued", [4]), ("taken", [2]), ("taken", [4])]


def test_one_trainer_at_a_time_gathers() -> None:
    queue = TrainingQueue(8, Unpaced(), LENGTHS, 10)
    queue.put(alone(), [[0], [1]])
    busy = SimpleNamespace(awake=lambda: True, acquire=lambda lock: False)
    assert queue.gather(cast(Member, busy)) == []  # another one gathers, and the crew ends
    assert queue.depth == 2


def test_neither_end_keeps_a_crew_from_pausing_or_ending() -> None:
    full, empty = (TrainingQueue(1, Unpaced(), LENGTHS, 5) for _ in range(2))
    full.put(alone(), [[0]])
    ended: list[Any] = []
    started = time.monotonic()
    with Crew(lambda report: None, 10.0) as crew:
        crew.start("putter", lambda member: ended.append(full.put(member, [[1]])))
        crew.start("gatherer", lambda member: ended.append(empty.gather(member)))
        for _ in range(3):
            with crew.standstill():
                pass
            crew.poll(0.05)
    assert sorted(ended, key=str) == [None, []]
    assert (full.depth, time.monotonic() - started < 5.0) == (1, True)
