"""The other ranks of a run, as its books and its learner see them; `parallel.ranks` has those there are.

rank 0      keeps the books: the run directory, the rows, evaluation, checkpoints
others      report to it, and stand still while it evaluates
all         meet once per rollout: they add up their agent steps, and agree on whether the run ends there
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from a3c_bench.core.optim import FlatParameters
from a3c_bench.runtime.ledger import WorkerReport
from a3c_bench.schema import Config


class Met(NamedTuple):
    """What all ranks know after a meeting."""

    n_agent_steps: int  # of all of them since the last one
    ends: bool  # one of them wants the run to end: a budget is spent, or a signal came
    signal: int  # that one of them got; 0: none


class Due:
    """When a row of metrics.csv and an evaluation are due: of ranks, each can tell, for all know the frames.

    Args:
        config: of the run.
        row_frames: of the last row.
        evaluated_frames: up to where evaluations took place.
    """

    def __init__(self, config: Config, row_frames: int = 0, evaluated_frames: int = 0) -> None:
        self._row_interval = config.metrics_interval_frames
        self._evaluation_interval = config.evaluation.interval_frames
        self.row_frames = row_frames
        self.evaluated_frames = evaluated_frames

    def row(self, frames: int) -> bool:
        """Whether a row is due."""
        return frames // self._row_interval > self.row_frames // self._row_interval

    def evaluation(self, frames: int) -> bool:
        """Whether a multiple of the interval was passed since the last one; of several, one evaluation is due."""
        interval = self._evaluation_interval
        return interval is not None and frames // interval > self.evaluated_frames // interval


class Start(NamedTuple):
    """Where a run begins, or goes on: what rank 0 tells the others."""

    counters: Mapping[str, int]
    wall_seconds: float
    due: Due
    ends: bool  # at once
    states: Mapping[str, Any]  # of all that is trained, by name


class Release(NamedTuple):
    """What rank 0 says when the others need not stand still any more."""

    ends: bool  # the run
    wall_seconds: float  # training seconds so far
    agent_steps: int  # of all ranks so far: some were taken since they met
    due: Due  # when rows and evaluations are due from now on
    status: Mapping[str, Any] = {}  # what status.json says at the end


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

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the store that rank 0 keeps, where other processes of the run may meet too."""

    @property
    def name(self) -> str:
        """Of this run in that store, where others may have been before."""

    def learn_on(self, device: torch.device, silence_seconds: float) -> None:
        """Gets ready to meet, and to add up gradients on this device; from then on nobody may be silent for so long."""

    def share(self, content: Any = None) -> Any:
        """What rank 0 gives, on all of them; any object that can be pickled."""

    def meet(self, n_agent_steps: int, ends: bool, signal: int) -> Met:
        """Adds up what all of them say."""

    def reduce(self, parameters: FlatParameters, weight: Tensor | None) -> None:
        """Replaces a gradient [P] by that of all ranks: the mean of theirs with these weights, or the sum.

        Args:
            parameters: whose gradient is that of this rank; changed in place.
            weight: what the loss of this rank was divided by, a scalar; None: by nothing, and the gradients add up.
        """

    def total(self, figures: Tensor) -> Tensor:
        """The sum over all ranks of a few figures [K], on their device; in place."""

    def take_sent(self) -> tuple[float, float]:
        """What this rank handed over since the last call: MiB and messages."""

    def gather(self, report: WorkerReport | None) -> Sequence[WorkerReport]:
        """The reports of the others, on rank 0, which gives none; nothing on these."""

    def heartbeat(self) -> int:
        """By rank 0, now and then while the others `stand`; gives the signal that one of them got, or 0."""

    def release(self, release: Release) -> None:
        """By rank 0: ends the others' `stand`."""

    def stand(self, signal: Callable[[], int]) -> Release:
        """By the others: stand still until rank 0 releases them, and tell it of a signal that comes meanwhile."""


class Alone:
    """A run that is one process."""

    index, size = 0, 1
    address, name = ("", 0), ""

    def learn_on(self, device: torch.device, silence_seconds: float) -> None:
        """See `Peers`."""

    def share(self, content: Any = None) -> Any:
        """See `Peers`."""
        return content

    def meet(self, n_agent_steps: int, ends: bool, signal: int) -> Met:
        """See `Peers`."""
        return Met(n_agent_steps, ends, signal)

    def reduce(self, parameters: FlatParameters, weight: Tensor | None) -> None:
        """See `Peers`."""

    def total(self, figures: Tensor) -> Tensor:
        """See `Peers`."""
        return figures

    def take_sent(self) -> tuple[float, float]:
        """See `Peers`."""
        return 0.0, 0.0

    def gather(self, report: WorkerReport | None) -> Sequence[WorkerReport]:
        """See `Peers`."""
        return []

    def heartbeat(self) -> int:
        """See `Peers`."""
        return 0

    def release(self, release: Release) -> None:
        """See `Peers`."""

    def stand(self, signal: Callable[[], int]) -> Release:
        """See `Peers`."""
        raise AssertionError("there is nobody to wait for")


ALONE = Alone()


def frames_are_spent(config: Config, frames: int) -> bool:
    """Whether the budget of frames is."""
    return config.budget.frames is not None and frames >= config.budget.frames
