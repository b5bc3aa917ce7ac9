"""When an agent may begin a rollout, if samples are to stay young and none is to be thrown away.

A rollout is on its way from its first action to the update that learns from it. By Little's law the mean lag in updates
is the samples on their way over the samples of an update: who bounds the former bounds the latter. This is admission
control, known elsewhere as back-pressure or credit-based flow control.

    begun          in the making        waiting, in order        taken        learnt from
      |  v: version of theta  |                 |                  |               |
      |<------------- no more than K updates until here ---------->|

An update takes at least B samples and at least one rollout. So let a rollout weigh min(its samples, B), and one in the
making what it may become, w = min(t_max, B): if all on their way weigh W, they are at most W / B updates. One more may
begin while

    version - v + floor(W / B) <= K

with v the oldest version of those whose place in the queue is not settled, itself included: for each of them W is what
may be learnt from before it, as w of its own have gone and w of the newcomer have come. A rollout that waits has its
place: whoever begins later is learnt from later, and no older for it.

Nobody waits forever, whatever K and B are, as long as rollouts are taken in order and by one trainer at a time: if none
is in the making and none is learnt from, those that wait are fewer samples than B, so that floor(W / B) = 0, and no
update can come before theirs, so that version - v <= K for whoever begins now.
"""

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


class Unpaced:
    """Lets every agent begin when it likes."""

    held_back = False

    def room(self) -> float:
        """How many rollouts may begin now."""
        return math.inf

    def begin(self, slot: int, version: int) -> bool:
        """Whether the rollout in this slot may begin, with an action chosen by theta of this version."""
        del slot, version
        return True

    def withdraw(self, slot: int) -> None:
        """The rollout in this slot does not begin after all."""

    def serial(self, slot: int) -> int:
        """The number of the rollout in this slot."""
        del slot
        return 0

    def queued(self, slot: int, serial: int) -> None:
        """The rollout of this number is in the queue, where nobody overtakes it. It may have been taken already."""

    def taken(self, slots: Sequence[int], lengths: NDArray[np.int64]) -> None:
        """A trainer has these rollouts, which have so many samples."""

    def learnt(self, slots: Sequence[int]) -> None:
        """The update from these rollouts has been counted, or there will be none."""

    def wait(self, seconds: float) -> None:
        """Until there may be room, or the time is over."""


class Pacing(Unpaced):
    """Lets an agent begin a rollout if no sample will be older than K updates when a trainer takes it.

    Args:
        n_slots: of rollouts.
        t_max: samples of a rollout, at most.
        min_samples: B, of an update at least.
        max_lag_updates: K.
        version: gives the updates so far. An update is counted before its rollouts are `learnt`.
    """

    held_back = True

    def __init__(
        self, n_slots: int, t_max: int, min_samples: int, max_lag_updates: int, version: Callable[[], int]
    ) -> None:
        self._batch = min_samples
        self._in_the_making = min(t_max, min_samples)
        self._bound = max_lag_updates
        self._version = version
        self._weights = np.zeros(n_slots, dtype=np.int64)  # 0: not on its way
        self._begun = np.full(n_slots, np.inf)  # theta's version then, while the place in the queue is not settled
        self._serials = np.zeros(n_slots, dtype=np.int64)
        self._changed = threading.Condition()

    @property
    def weight(self) -> int:
        """W, of the rollouts on their way."""
        return int(self._weights.sum())

    def room(self) -> int:
        """How many rollouts may begin now."""
        with self._changed:
            return self._room(self._version())

    def begin(self, slot: int, version: int) -> bool:
        """Whether the rollout in this slot may begin; one that has begun, with the phantom of a new game, goes on."""
        with self._changed:
            if not self._weights[slot]:
                if self._room(version) < 1:
                    return False
                self._weights[slot] = self._in_the_making
                self._serials[slot] += 1
            self._begun[slot] = version
            return True

    def withdraw(self, slot: int) -> None:
        """The rollout in this slot does not begin after all."""
        if self._weights[slot]:
            self.learnt([slot])

    def serial(self, slot: int) -> int:
        """The number of the rollout in this slot."""
        return int(self._serials[slot])

    def queued(self, slot: int, serial: int) -> None:
        """The rollout of this number has its place, if it is still in this slot."""
        with self._changed:
            if self._serials[slot] == serial:
                self._begun[slot] = np.inf
                self._changed.notify_all()

    def taken(self, slots: Sequence[int], lengths: NDArray[np.int64]) -> None:
        """A trainer has these rollouts, which have so many samples."""
        with self._changed:
            self._weights[slots] = np.minimum(lengths, self._batch)
            self._begun[slots] = np.inf
            self._changed.notify_all()

    def learnt(self, slots: Sequence[int]) -> None:
        """These rollouts are on their way no more."""
        with self._changed:
            self._weights[slots] = 0
            self._begun[slots] = np.inf
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until something has changed, or the time is over."""
        with self._changed:
            self._changed.wait(seconds)

    def _room(self, version: int) -> int:
        """The number n of rollouts, begun at this version, the last of which meets the condition above."""
        age = self._version() - min(self._begun.min(), version)
        left = (self._bound + 1 - age) * self._batch - self.weight
        return max(0, math.ceil(left / self._in_the_making))
