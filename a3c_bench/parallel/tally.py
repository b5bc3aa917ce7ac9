"""The counts of a run whose work many do at once."""

from collections.abc import Sequence
from typing import Any

import torch

from a3c_bench.core.lag import Stamp
from a3c_bench.envs.episodes import Moment
from a3c_bench.runtime.clock import TrainingClock

_AGENT_STEPS, _UPDATES = 0, 1
EARLIER = -1  # the row of earlier attempts


class Tally:
    """Agent steps and updates, in a row for each who counts, so that none is lost without a lock; everybody reads all.

    Known elsewhere as a sharded counter. Threads use it as it is, processes once it is shared.

    Args:
        n_writers: N.
        frame_skip: frames per agent step.
        clock: of the run.
        n_ranks: of the run; each is taken to have taken as many agent steps as this one since `begin`.
    """

    def __init__(self, n_writers: int, frame_skip: int, clock: TrainingClock, n_ranks: int = 1) -> None:
        self._memory = torch.zeros((n_writers + 1, 2), dtype=torch.int64)
        self._rows = self._memory.numpy()
        self._frame_skip = frame_skip
        self._clock = clock
        self._n_ranks = n_ranks

    def share(self) -> "Tally":
        """The same, to be handed to worker processes."""
        self._clock.share()
        self._memory.share_memory_()  # type: ignore[no-untyped-call]
        self._rows = self._memory.numpy()
        return self

    def begin(self, agent_steps: int, updates: int) -> None:
        """Counts what earlier attempts did."""
        self._rows[EARLIER] = agent_steps, updates

    def correct(self, agent_steps: int) -> None:
        """Makes the agent steps so far be so many."""
        self._rows[EARLIER, _AGENT_STEPS] += agent_steps - self.agent_steps

    def add(self, writer: int, agent_steps: int = 0, updates: int = 0) -> None:
        """Counts what one has done."""
        row = self._rows[writer]
        row[_AGENT_STEPS] += agent_steps
        row[_UPDATES] += updates

    def of(self, writers: Sequence[int]) -> tuple[int, int]:
        """Agent steps and updates of some, of this attempt."""
        agent_steps, updates = self._rows[writers].sum(0).tolist()
        return agent_steps, updates

    @property
    def agent_steps(self) -> int:
        """Agent steps so far."""
        return self._of_all(self._rows[:, _AGENT_STEPS].tolist())

    @property
    def frames(self) -> int:
        """Frames simulated so far."""
        return self.agent_steps * self._frame_skip

    @property
    def version(self) -> int:
        """Updates applied to theta so far."""
        return sum(self._rows[:, _UPDATES].tolist())

    def stamp(self, version: int | None = None) -> Stamp:
        """Where the run stands now.

        Args:
            version: of a copy of theta, or of a part of it; None: of theta.
        """
        rows, updates = self._rows.T.tolist()  # of so few, numpy's sum takes several times as long
        agent_steps, version = self._of_all(rows), sum(updates) if version is None else version
        return Stamp(version, agent_steps * self._frame_skip, self._clock.seconds)

    def moment(self) -> Moment:
        """The same, as it is written down with a game that ends now."""
        agent_steps = self.agent_steps
        return Moment(agent_steps * self._frame_skip, agent_steps, self._clock.seconds)

    def _of_all(self, rows: list[int]) -> int:
        """Agent steps of all ranks, from those of each row."""
        return sum(rows) if self._n_ranks == 1 else rows[EARLIER] + self._n_ranks * sum(rows[:EARLIER])

    def __getstate__(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._rows = self._memory.numpy()
