"""Hogwild: parameters that many processes read and change in shared memory, without a lock (Recht et al. 2011)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from a3c_bench.core.optim import SharedOptimizerState
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.tokens import Tokens


@dataclass(frozen=True)
class SharedModel:
    """What all workers see at once. Made by the parent, which hands each worker its own view when it starts it."""

    theta: Tensor  # [P]
    states: Sequence[SharedOptimizerState]  # of the optimiser: one for all workers, or one each
    tally: Tally  # a row for each worker
    lock: Tokens | None = None  # for comparison: one worker at a time reads or changes theta

    def for_worker(self, index: int) -> "SharedModel":
        """The same without the optimiser states of others."""
        return replace(self, states=[self.states[index % len(self.states)]])

    @property
    def state(self) -> SharedOptimizerState:
        """The optimiser's, of a worker's view."""
        (state,) = self.states
        return state

    def exclusively(self) -> AbstractContextManager[Any]:
        """The lock, where there is one."""
        return self.lock or nullcontext()

    @torch.no_grad()
    def fetch(self, into: Tensor) -> int:
        """Copies theta into a vector [P]; gives a version than which no part of the copy is older."""
        with self.exclusively():
            version = self.tally.version  # first: others may go on while we copy
            into.copy_(self.theta)
        return version
