"""The queue between those who act and those who learn: rollouts, by the numbers of their slots, in their order."""

import math
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from a3c_bench.core.pacing import Unpaced
from a3c_bench.parallel.crew import SECONDS_TO_WAIT, Member


class TrainingQueue:
    """Bounded, first come, first served. An item is some slots that are learnt from together.

    One trainer at a time gathers a batch: two with half a batch each would learn later, and from older samples. It is
    woken once its batch is here, or must be taken in parts as the queue is full of less: waking it for every rollout
    would take the interpreter from who predicts, many times per batch.

    Args:
        size: items at most.
        pacing: is told where each rollout is. If it holds agents back, each is taken as it comes: until then it weighs
            what a full one does, for which others might wait forever.
        lengths: [S], samples of the rollouts in all slots.
        min_samples: of a batch.
    """

    def __init__(self, size: int, pacing: Unpaced, lengths: NDArray[np.int64], min_samples: int) -> None:
        self._size = size
        self._pacing = pacing
        self._lengths = lengths
        self._min_samples = min_samples
        self._items: deque[list[int]] = deque()
        self._n_samples = 0  # of all items
        self._n_wanted = math.inf  # samples for which who gathers is to be woken
        self._lock = threading.Lock()
        self._filled, self._emptied = threading.Condition(self._lock), threading.Condition(self._lock)
        self._gathering = threading.Lock()
        self.unfinished = 0  # items that were put and are not `done`

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._items)

    def put(self, member: Member, items: Sequence[list[int]]) -> None:
        """One after the other, each as soon as there is room, unless the crew is to end first."""
        n_put = 0
        while n_put < len(items) and member.awake():
            with self._lock:
                if len(self._items) == self._size:
                    self._emptied.wait(SECONDS_TO_WAIT)
                arrived = items[n_put : n_put + self._size - len(self._items)]
                serials = [(slot, self._pacing.serial(slot)) for item in arrived for slot in item]
                self._items.extend(arrived)
                self._n_samples += sum(self._length(item) for item in arrived)
                self.unfinished += len(arrived)
                if self._n_samples >= self._n_wanted or len(self._items) == self._size:
                    self._filled.notify()
            n_put += len(arrived)
            for slot, serial in serials:  # it may have been taken already
                self._pacing.queued(slot, serial)

    def gather(self, member: Member) -> list[list[int]]:
        """Items that make a batch together, as soon as there are; none if the crew is to end first."""
        if not member.acquire(self._gathering):
            return []
        try:
            items: list[list[int]] = []
            n_lacking = self._min_samples
            while n_lacking > 0:
                if not member.awake():
                    return []
                taken = self._take(n_lacking)
                for item in taken:
                    self._pacing.taken(item, self._lengths[item])
                    n_lacking -= self._length(item)
                items += taken
            return items
        finally:
            self._gathering.release()

    def done(self, items: Sequence[list[int]]) -> None:
        """These were learnt from."""
        with self._lock:
            self.unfinished -= len(items)

    def _take(self, n_lacking: int) -> list[list[int]]:
        """Items of so many samples, or all if the queue is full of less; none if that is not so for a while."""
        taken: list[list[int]] = []
        with self._lock:
            self._n_wanted = 1 if self._pacing.held_back else n_lacking
            if self._n_samples < self._n_wanted and len(self._items) < self._size:
                self._filled.wait(SECONDS_TO_WAIT)
            if self._n_samples >= self._n_wanted or len(self._items) == self._size:
                while self._items and n_lacking > 0:
                    taken.append(self._items.popleft())
                    n_lacking -= self._length(taken[-1])
                    self._n_samples -= self._length(taken[-1])
                self._emptied.notify_all()
            self._n_wanted = math.inf
        return taken

    def _length(self, item: Sequence[int]) -> int:
        return sum(self._lengths[item].tolist())
