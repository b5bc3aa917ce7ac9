"""GA3C's pacing: its condition by hand, and its promises in made-up runs of every order of events."""

from collections import deque
from typing import Any

import numpy as np
import pytest

from a3c_bench.core.pacing import Pacing, Unpaced


class World:
    """Agents, a queue and trainers whose turns come at random; and the version that they make."""

    def __init__(self, bound: int, t_max: int, batch: int, n_trainers: int, seed: int, paced: bool = True) -> None:
        self.draw = np.random.default_rng(seed)
        self.version, self.t_max, self.batch = 0, t_max, batch
        n_agents = -(-batch // t_max) + int(self.draw.integers(0, 10))
        self.pacing = Pacing(500, t_max, batch, bound, lambda: self.version) if paced else Unpaced()
        self.free = deque(range(500))
        self.idle: deque[None] = deque([None] * n_agents)
        self.at_work: dict[int, tuple[int, int]] = {}  # slot: version and samples to come
        self.complete: list[tuple[int, int]] = []  # in predictors' hands: slot and its number
        self.queue: deque[int] = deque()
        self.began: dict[int, int] = {}
        self.lengths = np.zeros(500, dtype=np.int64)
        self.gathered: list[int] = []  # by one trainer at a time
        self.learning: list[list[int]] = []
        self.n_trainers = n_trainers
        self.ages: list[int] = []  # of the first sample of each rollout, when a trainer has its batch
        self.n_learnt = 0

    def turn(self) -> None:
        """One event of those that may come next, or nothing."""
        events = [self.begin, self.step, self.put, self.take, self.learn]
        events[self.draw.integers(len(events))]()

    def begin(self) -> None:
        if not self.idle:
            return
        slot = self.free.popleft()
        seen = max(0, self.version - int(self.draw.integers(0, 2)))  # predicted before the last update
        if self.pacing.begin(slot, seen):
            self.idle.popleft()
            self.began[slot], self.at_work[slot] = seen, (0, int(self.draw.integers(1, self.t_max + 1)))
        else:
            self.free.appendleft(slot)

    def step(self) -> None:
        if not self.at_work:
            return
        slot = list(self.at_work)[self.draw.integers(len(self.at_work))]
        done, length = self.at_work[slot]
        self.at_work[slot] = done + 1, length
        if done + 1 == length:
            del self.at_work[slot]
            self.lengths[slot] = length
            self.complete.append((slot, self.pacing.serial(slot)))
            self.idle.append(None)

    def put(self) -> None:
        """In two steps: a trainer may take it, learn from it and free it before the queue's pacing hears of it."""
        if self.complete:
            slot, serial = self.complete.pop(int(self.draw.integers(len(self.complete))))
            self.queue.append(slot)
            for _ in range(self.draw.integers(0, 4)):
                self.turn()
            self.pacing.queued(slot, serial)

    def take(self) -> None:
        if not self.queue or len(self.learning) >= self.n_trainers:
            return
        slot = self.queue.popleft()
        self.pacing.taken([slot], self.lengths[[slot]])
        self.gathered.append(slot)
        if self.lengths[self.gathered].sum() >= self.batch:
            self.ages += [self.version - self.began[slot] for slot in self.gathered]
            self.learning.append(self.gathered)
            self.gathered = []

    def learn(self) -> None:
        if self.learning:
            slots = self.learning.pop(int(self.draw.integers(len(self.learning))))
            self.version += 1
            self.n_learnt += len(slots)
            self.pacing.learnt(slots)
            self.free.extendleft(slots)  # to be used again at once


CASES: list[Any] = [
    (bound, t_max, batch, n_trainers)
    for bound in (0, 1, 5)
    for t_max, batch in ((5, 1), (5, 20), (1, 1), (3, 7), (7, 3))
    for n_trainers in (1, 3)
]


@pytest.mark.parametrize(("bound", "t_max", "batch", "n_trainers"), CASES)
def test_no_sample_is_too_old_when_a_trainer_takes_it_and_nobody_waits_forever(
    bound: int, t_max: int, batch: int, n_trainers: int
) -> None:
    for seed in range(2):
        world = World(bound, t_max, batch, n_trainers, seed)
        for _ in range(10):
            before = world.version
            for _ in range(2000):
                world.turn()
                if world.version >= before + 2:
                    break
            assert world.version >= before + 2
        assert max(world.ages) <= bound


def test_without_it_they_are_older() -> None:
    world = World(1, 3, 7, 1, seed=0, paced=False)
    for _ in range(3000):
        world.turn()
    assert max(world.ages) > 1


def make(bound: int, t_max: int = 5, batch: int = 20) -> tuple[Pacing, list[int]]:
    """And the version, to be changed."""
    version = [0]
    return Pacing(50, t_max, batch, bound, lambda: version[0]), version


def begin(pacing: Pacing, slots: range, version: int) -> list[bool]:
    return [pacing.begin(slot, version) for slot in slots]


def test_so_many_begin_as_fill_the_updates_of_the_bound() -> None:
    """The last of (K + 1) B / t_max rollouts has K updates' worth of samples before it."""
    assert sum(begin(make(bound=0)[0], range(50), 0)) == 4
    assert sum(begin(make(bound=2)[0], range(50), 0)) == 12
    assert sum(begin(make(bound=2, batch=1)[0], range(50), 0)) == 3  # an update takes a whole rollout
    assert sum(begin(make(bound=0, batch=18)[0], range(50), 0)) == 4  # 15 samples are no batch yet
    assert make(bound=2)[0].room() == 12


def test_who_has_its_place_is_hurt_by_nobody_and_who_has_not_holds_others_back() -> None:
    pacing, version = make(bound=1)
    assert all(begin(pacing, range(8), 0))
    for slot in range(5):
        pacing.queued(slot, pacing.serial(slot))
    pacing.taken(range(4), np.full(50, 5)[:4])
    assert pacing.room() == 0
    version[0] = 1
    pacing.learnt(range(4))
    assert pacing.weight == 20
    assert pacing.room() == 0  # 5, 6 and 7 are an update old, and may see another if one more begins
    for slot in (5, 6, 7):
        pacing.queued(slot, pacing.serial(slot))
    assert pacing.room() == 4
    assert not pacing.begin(20, 0)  # its action was chosen before the update
    assert pacing.begin(20, 1)


def test_a_short_rollout_leaves_room_once_a_trainer_has_it() -> None:
    pacing, _ = make(bound=0)
    assert sum(begin(pacing, range(50), 0)) == 4
    pacing.queued(0, pacing.serial(0))
    assert pacing.room() == 0
    pacing.taken([0], np.array([2]))
    assert pacing.weight == 17
    assert pacing.room() == 1


def test_news_of_an_earlier_rollout_says_nothing_of_the_one_in_its_slot_now() -> None:
    pacing, version = make(bound=1, batch=5)
    assert pacing.begin(3, 0)
    serial = pacing.serial(3)
    pacing.taken([3], np.array([5]))
    version[0] = 1
    pacing.learnt([3])
    assert pacing.begin(3, 1)
    pacing.queued(3, serial)
    version[0] = 2
    assert pacing.room() == 0  # it is an update old, and may see another if one more begins
    pacing.queued(3, serial + 1)
    assert pacing.room() == 1


def test_a_phantom_is_no_second_rollout_and_who_does_not_begin_leaves_room() -> None:
    pacing, version = make(bound=0, batch=5)
    assert pacing.begin(3, 0)
    version[0] = 1
    assert pacing.begin(3, 1)
    assert pacing.weight == 5
    assert pacing.serial(3) == 1
    pacing.withdraw(3)
    assert pacing.room() == 1
