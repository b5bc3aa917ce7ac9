"""Hogwild: parameters that many processes read and change in shared memory, without a lock (Recht et al. 2011)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from a3c_bench.core.optim import FlatParameters, SharedOptimizerState
from a3c_bench.parallel.tally import Tally
from a3c_bench.parallel.tokens import Tokens


@dataclass(frozen=True)
class SharedModel:
    """What all workers see at once. Made by the parent, which hands each worker its own view when it starts it."""

    theta: Tensor  # [P]
    states: Sequence[SharedOptimizerState]  # of the optimiser: one for all workers, or one each
    tally: Tally  # a row for each worker
    lock: Tokens | None = None  # for comparison: one worker at a time reads or changes theta

    @staticmethod
    def of(
        network: nn.Module,
        make_optimizer: Callable[[nn.Parameter], torch.optim.Optimizer],
        tally: Tally,
        n_workers: int,
        shared_statistics: bool,
        lock: bool,
    ) -> "SharedModel":
        """The parent's, whose network shows theta from now on.

        Args:
            network: its parameters are theta at the start.
            make_optimizer: over one vector of parameters.
            tally: already shared.
            n_workers: that there will be.
            shared_statistics: all have one optimiser state, or one each.
            lock: see `lock`.
        """
        theta = FlatParameters(network).values.detach().share_memory_()  # type: ignore[no-untyped-call]
        n_states = 1 if shared_statistics else n_workers
        states = [SharedOptimizerState(make_optimizer(nn.Parameter(theta))) for _ in range(n_states)]
        return SharedModel(theta, states, tally, Tokens(1) if lock else None)

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


class SharedTarget:
    """theta^-, one for all workers; whichever of them first sees that it is due renews it, and no other.

    Args:
        theta: [P].
        period_frames: it is renewed when the frames of the whole run have passed another multiple of this.
    """

    def __init__(self, theta: Tensor, period_frames: int) -> None:
        self._period_frames = period_frames
        self._values = theta.clone().share_memory_()  # type: ignore[no-untyped-call]
        self._passed = torch.zeros(1, dtype=torch.int64)  # multiples, when it was last renewed
        self._passed.share_memory_()  # type: ignore[no-untyped-call]
        self._turn = Tokens(1)  # of who copies, so that nobody sees half of one and half of another

    @property
    def version(self) -> int:
        """Changes when it is renewed."""
        return int(self._passed)

    def fetch(self, into: Tensor) -> int:
        """Copies it into a vector [P]; gives its version."""
        with self._turn:
            into.copy_(self._values)
            return self.version

    def renew(self, theta: Tensor, frames: int) -> bool:
        """theta^- <- theta [P] if it is due now that the run has simulated so many frames; gives whether it was."""
        passed = frames // self._period_frames
        if passed <= self.version:  # as nearly always: nobody has to wait
            return False
        with self._turn:
            if passed <= self.version:  # another worker was sooner
                return False
            self._values.copy_(theta)
            self._passed.fill_(passed)
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Part of checkpoints."""
        return {"values": self._values, "passed": self._passed}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from there, in place."""
        self._values.copy_(state["values"])
        self._passed.copy_(state["passed"])
