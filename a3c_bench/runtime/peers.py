"""The other ranks of a run, as its books and its learner see them; `parallel.ranks` has those there are.

rank 0      keeps the books: the run directory, the rows, evaluation, checkpoints
others      report to it, and stand still while it evaluates
all         meet once per rollout: they add up their agent steps, and agree on whether the run ends there
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from a3c_bench.runtime.ledger import WorkerReport


class Met(NamedTuple):
    """What all ranks know after a meeting."""

    n_agent_steps: int  # of all of them since the last one
    ends: bool  # one of them wants the run to end: a budget is spent, or a signal came
    signal: int  # that one of them got; 0: none


class Release(NamedTuple):
    """What rank 0 says when the others need not stand still any more."""

    ends: bool  # the run, or the wait for its end
    wall_seconds: float  # training seconds so far
    content: Any = None  # of the end: what status.json says


class Peers(Protocol):
    """The ranks of a run. Every method but `heartbeat` is called by all of them, in the same order.

    Raises:
        RankError: each method, when a rank failed, died or said nothing for config.rank_silence_seconds.
    """

    @property
    def index(self) -> int:
        """Of this process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def share(self, content: Any = None) -> Any:
        """What rank 0 gives, on all of them; any object that can be pickled."""

    def meet(self, n_agent_steps: int, ends: bool, signal: int) -> Met:
        """Adds up what all of them say."""

    def reduce(self, gradients: Tensor, weight: Tensor | None) -> None:
        """Replaces a gradient [P] by that of all ranks: the mean of theirs with these weights, or the sum.

        Args:
            gradients: of this rank; changed in place.
            weight: what the loss of this rank was divided by, a scalar; None: by nothing, and the gradients add up.
        """

    def total(self, figures: Tensor) -> Tensor:
        """The sum over all ranks of a few figures [K], on their device."""

    def gather(self, report: WorkerReport | None) -> Sequence[WorkerReport]:
        """The reports of the others, on rank 0, which gives none; nothing on these."""

    def heartbeat(self) -> bool:
        """By rank 0, now and then while the others `stand`; says whether one of them was told to stop."""

    def release(self, release: Release) -> None:
        """By rank 0: ends the others' `stand`."""

    def stand(self, is_told: bool) -> Release:
        """By the others: stand still until rank 0 releases them, and tell it if they were told to stop."""


class Alone:
    """A run that is one process."""

    index, size = 0, 1

    def share(self, content: Any = None) -> Any:
        """See `Peers`."""
        return content

    def meet(self, n_agent_steps: int, ends: bool, signal: int) -> Met:
        """See `Peers`."""
        return Met(n_agent_steps, ends, signal)

    def reduce(self, gradients: Tensor, weight: Tensor | None) -> None:
        """See `Peers`."""

    def total(self, figures: Tensor) -> Tensor:
        """See `Peers`."""
        return figures

    def gather(self, report: WorkerReport | None) -> Sequence[WorkerReport]:
        """See `Peers`."""
        return []

    def heartbeat(self) -> bool:
        """See `Peers`."""
        return False

    def release(self, release: Release) -> None:
        """See `Peers`."""

    def stand(self, is_told: bool) -> Release:
        """See `Peers`."""
        raise AssertionError("there is nobody to wait for")
