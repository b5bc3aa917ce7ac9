"""The queue between those who act and those who learn: rollouts, by the numbers of their slots, in their order."""

import queue
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from a3c_bench.core.pacing import Unpaced
from a3c_bench.parallel.crew import Member


class TrainingQueue:
    """Bounded, first come, first served. An item is some slots that are learnt from together.

    Args:
        size: items at most.
        pacing: is told where each rollout is. If it holds agents back, one trainer at a time gathers a batch: two with
            half a batch each would wait for samples that nobody may begin.
    """

    def __init__(self, size: int, pacing: Unpaced) -> None:
        self._items: queue.Queue[list[int]] = queue.Queue(size)
        self._pacing = pacing
        self._gathering = threading.Lock() if pacing.held_back else None

    @property
    def depth(self) -> int:
        """Items that wait."""
        return self._items.qsize()

    @property
    def unfinished(self) -> int:
        """Items that were put and are not `done`."""
        return self._items.unfinished_tasks

    def put(self, member: Member, item: list[int]) -> None:
        """As soon as there is room, unless the crew is to end first."""
        serials = [self._pacing.serial(slot) for slot in item]
        if member.put(self._items, item):
            for slot, serial in zip(item, serials, strict=True):
                self._pacing.queued(slot, serial)

    def gather(self, member: Member, lengths: NDArray[np.int64], min_samples: int) -> list[list[int]]:
        """Items that have so many samples together, as soon as there are; none if the crew is to end first.

        Args:
            member: who waits.
            lengths: of the rollouts in all slots.
            min_samples: together.
        """
        if self._gathering is not None and not member.acquire(self._gathering):
            return []
        try:
            items: list[list[int]] = []
            n_samples = 0
            while n_samples < min_samples:
                item = member.get(self._items)
                if item is None:
                    return []
                self._pacing.taken(item, lengths[item])
                items.append(item)
                n_samples += int(lengths[item].sum())
            return items
        finally:
            if self._gathering is not None:
                self._gathering.release()

    def done(self, items: Sequence[list[int]]) -> None:
        """These were learnt from."""
        for _ in items:
            self._items.task_done()
