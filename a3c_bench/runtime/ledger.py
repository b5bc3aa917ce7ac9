"""Who keeps the counts of a run: what actors and learners tell, and what workers report of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from a3c_bench.core.lag import Samples, Stamp
from a3c_bench.envs.episodes import Episode
from a3c_bench.runtime.clock import PhaseTimer

Scalar = Tensor | float
Figures = Mapping[str, Any]  # of updates by name: scalars (tensors on any device, floats), or flat arrays of several
Fit = tuple[Any, Any, Any]  # values, returns and mask (bool) of samples, tensors or arrays of one shape


@dataclass
class Counters:
    """The global counters; phantom steps are in none of them."""

    frames: int = 0
    agent_steps: int = 0
    updates: int = 0


class LagLedger(Protocol):
    """Takes lag."""

    def add(self, **samples: Samples) -> None:
        """Takes the lags of the samples of one update, by unit."""


class Ledger(Protocol):
    """Who keeps the counts: the session, or the notes of a worker, which the session takes when they are reported.

    Known elsewhere as a metrics collector.
    """

    @property
    def timer(self) -> PhaseTimer:
        """Gets the seconds of the phases."""

    @property
    def lag(self) -> LagLedger:
        """Gets the lag of every valid sample that enters an update."""

    @property
    def theta_version(self) -> int:
        """Updates applied to theta so far, whoever acts."""

    @property
    def frames(self) -> int:
        """Simulated by the whole run so far."""

    def stamp(self) -> Stamp:
        """Where the run stands; the version is that of the policy that acts."""

    def count(self, n_agent_steps: int, episodes: Sequence[Episode]) -> None:
        """Takes what one step brought."""

    def updated(self, figures: Figures, fit: Fit | None = None, n_updates: int = 1) -> None:
        """Takes what updates showed."""

    def ratio(self, column: str, part: Scalar, whole: Scalar) -> None:
        """Adds to the two sums whose ratio is a column of metrics.csv."""


class Ratios:
    """Columns that are a ratio of two sums since the last row: a share, or the mean of what comes in other numbers."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._pending: list[tuple[str, Tensor, Tensor]] = []  # on their device until the row is due

    def add(self, column: str, part: Scalar, whole: Scalar) -> None:
        """Adds to both sums of a column; nobody waits for tensors."""
        if isinstance(part, Tensor) or isinstance(whole, Tensor):
            self._pending.append((column, torch.as_tensor(part), torch.as_tensor(whole)))
        else:
            before = self._sums.get(column, (0.0, 0.0))
            self._sums[column] = (before[0] + part, before[1] + whole)

    def waiting(self) -> list[tuple[str, Tensor, Tensor]]:
        """Takes out what is on a device, as it was added: whoever adds it again need not wait for it either."""
        pending, self._pending = self._pending, []
        return pending

    def sums(self) -> dict[str, tuple[float, float]]:
        """Both sums of each column since the last call."""
        pending, self._pending = self._pending, []
        for column in dict.fromkeys(column for column, *_ in pending):
            parts, wholes = zip(*((part, whole) for name, part, whole in pending if name == column), strict=True)
            self.add(column, _sum(parts), _sum(wholes))
        sums, self._sums = self._sums, {}
        return sums

    def take(self) -> dict[str, float]:
        """The columns since the last call; those of nothing at all are left out."""
        return {column: part / whole for column, (part, whole) in self.sums().items() if whole}


def _sum(parts: Sequence[Tensor]) -> float:
    """By one copy from the device."""
    return float(torch.stack([part.double() for part in parts]).sum())


@dataclass
class WorkerReport:
    """What a worker did since its last report."""

    n_agent_steps: int = 0
    n_updates: int = 0
    episodes: list[Episode] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    lags: list[dict[str, Samples]] = field(default_factory=list)
    ratios: dict[str, tuple[float, float]] = field(default_factory=dict)
    waiting: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # ratios too, still on a device
    seconds: dict[str, float] = field(default_factory=dict)  # by phase

    def with_share(self, column: str, phases: Sequence[str]) -> "WorkerReport":
        """The same, with the share of its time that these phases took in a column."""
        self.ratios[column] = sum(self.seconds[phase] for phase in phases), sum(self.seconds.values())
        return self

    def packed(self) -> "WorkerReport":
        """The same in few arrays, for a pipe: tensors would travel in a file each."""
        figures = {key: _array(parts, np.float32) for key, parts in _by_key(self.figures).items()}
        fit = [_array(parts) for parts in zip(*self.fits, strict=True)]
        lag: dict[str, Samples] = {unit: _array(parts) for unit, parts in _by_key(self.lags).items()}
        return replace(
            self,
            figures=[figures] if figures else [],
            fits=[(fit[0], fit[1], fit[2])] if fit else [],
            lags=[lag] if lag else [],
        )


def _by_key(mappings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What all of them have under each key, in order."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return {key: [mapping[key] for mapping in mappings if key in mapping] for key in keys}


def _array(parts: Sequence[Any], dtype: type[np.generic] | None = None) -> NDArray[Any]:
    flat = [np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part).reshape(-1) for part in parts]
    return np.concatenate(flat).astype(dtype) if dtype else np.concatenate(flat)


def hand_over(report: WorkerReport, ledger: Ledger) -> None:
    """Tells a ledger what a worker did."""
    ledger.count(report.n_agent_steps, report.episodes)
    if report.n_updates:
        ledger.updated({}, n_updates=report.n_updates)
    for figures in report.figures:
        ledger.updated(figures, n_updates=0)
    for fit in report.fits:
        ledger.updated({}, fit, n_updates=0)
    for samples in report.lags:
        ledger.lag.add(**samples)
    for column, (part, whole) in report.ratios.items():
        ledger.ratio(column, part, whole)
    for column, on_device, of_device in report.waiting:
        ledger.ratio(column, on_device, of_device)
    ledger.timer.add(report.seconds)
