"""Policy lag: how old the policy that chose an action is when the action is learnt from.

Every algorithm hands `LagMeter.add` the lag of each valid sample that enters an update, in the units it can measure.
docs/metrics.md defines the units; a "version" is the number of updates applied to the (shared) parameters so far.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Repeated:
    """Figures [T], each of so many samples: those are what it stands for, once somebody asks.

    Args:
        figures: [T].
        n_samples: [T], of each; on whatever device.
        most: samples of all that there can be.
    """

    def __init__(self, figures: NDArray[Any], n_samples: Tensor, most: int) -> None:
        self.figures = figures
        self.n_samples = n_samples
        self._most = most

    def __len__(self) -> int:
        return self._most

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = np.repeat(self.figures, self.n_samples.cpu().numpy())
        return found if dtype is None else found.astype(dtype)


Samples = NDArray[Any] | Tensor | Repeated


class Stamp(NamedTuple):
    """Where a run stands: the version of the parameters, and the frames and seconds so far."""

    version: int  # updates
    frames: int
    seconds: float


def age(stamps: NDArray[np.float64], now: Stamp) -> dict[str, NDArray[np.float64]]:
    """How old samples are now, by unit, that were chosen at these stamps [N, 3]."""
    ages = np.array(now) - stamps
    return {"lag_updates": ages[:, 0], "lag_frames": ages[:, 1], "lag_seconds": ages[:, 2]}


def split(
    chosen: NDArray[np.float64], complete: NDArray[np.float64] | int, taken: NDArray[np.float64] | int, now: int
) -> dict[str, NDArray[np.float64]]:
    """Where lag_updates arose, in three parts that add up to it for each sample [N].

    Args:
        chosen: [N], the versions that chose the actions.
        complete: theta's version when a sample's rollout was complete, of all or [N].
        taken: likewise, when a learner took it.
        now: theta's version just before the update.
    """
    parts = {
        "lag_rollout_updates": complete - chosen,
        "lag_queue_updates": taken - complete,
        "lag_gradient_updates": now - taken,
    }
    return {
        unit: part if isinstance(part, np.ndarray) else np.full(len(chosen), part, dtype=np.float64)
        for unit, part in parts.items()
    }


UNITS = (
    "lag_updates",
    "lag_rollout_updates",
    "lag_queue_updates",
    "lag_gradient_updates",
    "lag_frames",
    "lag_seconds",
    "lag_kl_nats",
    "importance_ratio",
    "value_lag",
    "gradient_staleness_updates",
    "replay_age_frames",
)


# Units that are not counts: a ratio or a time has no whole numbers to stop at.
REAL_UNITS = frozenset({"lag_seconds", "lag_kl_nats", "importance_ratio", "value_lag"})
_ZERO = 1e-9  # what is smaller counts as 0
_SMALLEST = 1e-37  # of a float32 that is not 0, about


def _whole_edges() -> NDArray[np.float64]:
    """Left edges of the bins of a count: one for 0, one per whole number to 100, then 25 to a decade."""
    large = np.unique(np.round(np.logspace(2, 9, 7 * 25 + 1)))
    return np.concatenate([[0.0, _ZERO], np.arange(1, 100, dtype=np.float64), large])


def _real_edges() -> NDArray[np.float64]:
    """Left edges of the bins of a real number: one for 0, then 100 to a decade (2.3% wide), up to 1,000.

    1 is an edge: importance ratios lie about it.
    """
    return np.concatenate([[0.0], 10.0 ** (np.arange(-900, 301) / 100)])


BIN_EDGES = {unit: _real_edges() if unit in REAL_UNITS else _whole_edges() for unit in UNITS}  # the last bin has no end
SUMMARY = ("mean", "p50", "p95", "max")
_FOLD_AT = 1_000_000  # samples of one unit that wait; of an interval with more, quantiles are of its newest million


class _Folded(NamedTuple):
    """What is known of the samples of an interval that were counted."""

    n: int
    total: float
    largest: float
    newest: NDArray[np.float64]


class LagMeter:
    """Collects lag per sample; summarises it per interval and as one histogram per unit for the whole run.

    Nothing is computed when samples are added: arrays (or tensors, on whatever device) are kept until `interval`.
    """

    def __init__(self) -> None:
        self.counts = {unit: np.zeros(len(edges), dtype=np.int64) for unit, edges in BIN_EDGES.items()}
        self._pending: dict[str, list[Samples]] = {unit: [] for unit in UNITS}
        self._n_pending = 0
        self._folded: dict[str, _Folded] = {}  # of the present interval

    def add(self, **samples: Samples) -> None:
        """Takes the lags of the samples of one update, by unit; each a flat array or tensor of any length.

        Raises:
            KeyError: a unit that is not in UNITS.
        """
        for unit, values in samples.items():
            self._pending[unit].append(values)
        self._n_pending += max((len(values) for values in samples.values()), default=0)
        if self._n_pending >= _FOLD_AT:
            self._fold()

    def interval(self) -> dict[str, float]:
        """Mean, p50, p95 and max of each unit that got samples since the last call, e.g. `lag_updates_p95`."""
        self._fold()
        summary: dict[str, float] = {}
        for unit, folded in self._folded.items():
            newest = folded.newest
            if newest.min() == newest.max():  # where there is no lag, or always the same, this costs next to nothing
                p50 = p95 = newest[0]
            else:
                p50, p95 = np.quantile(newest, (0.5, 0.95))
            figures = (folded.total / folded.n, p50, p95, folded.largest)
            summary |= {f"{unit}_{name}": float(figure) for name, figure in zip(SUMMARY, figures, strict=True)}
        self._folded = {}
        return summary

    def _fold(self) -> None:
        """Counts what waits."""
        for unit, pending in self._pending.items():
            values = _joined(pending) if pending else np.zeros(0)
            values = values[~np.isnan(values)]  # see `only`
            pending.clear()
            if not len(values):
                continue
            edges = BIN_EDGES[unit]
            alike = values.min() == values.max()
            bins = np.searchsorted(edges, values[:1] if alike else values, side="right").clip(min=1) - 1
            if alike:
                self.counts[unit][bins] += len(values)
            else:
                self.counts[unit] += np.bincount(bins, minlength=len(edges))
            n, total, largest, newest = self._folded.get(unit, _Folded(0, 0.0, -np.inf, values[:0]))
            newest = np.concatenate([newest, values])[-_FOLD_AT:]
            self._folded[unit] = _Folded(
                n + len(values), total + float(values.sum()), max(largest, float(values.max())), newest
            )
        self._n_pending = 0

    def histogram(self) -> list[tuple[str, float, float, int]]:
        """The non-empty bins of the whole run as (unit, from, up to but without, samples)."""
        self._fold()
        rows = []
        for unit, counts in self.counts.items():
            edges = np.append(BIN_EDGES[unit], np.inf)
            for index in np.flatnonzero(counts):
                rows.append((unit, float(edges[index]), float(edges[index + 1]), int(counts[index])))
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """The histogram so far; samples of the current interval are not part of it."""
        return {unit: torch.from_numpy(counts.copy()) for unit, counts in self.counts.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved histogram.

        Raises:
            ValueError: it was saved by a version with other bins.
        """
        for unit in self.counts.keys() & state.keys():  # older versions had fewer units
            if len(state[unit]) != len(self.counts[unit]):
                raise ValueError(
                    f"The checkpoint counts {unit} in {len(state[unit])} bins, this version in "
                    f"{len(self.counts[unit])}: go on with the version that saved it, or start the run anew."
                )
            self.counts[unit] = state[unit].numpy().copy()


def policy_divergence(behaviour_log_probs: Tensor, current_log_probs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """KL(behaviour || current) in nats and the importance ratio pi/mu of the action taken, per sample.

    Args:
        behaviour_log_probs: [..., A], of the policy mu that acted.
        current_log_probs: [..., A], of the policy pi just before the update.
        actions: [...], int64.

    Returns:
        kl [...], not below 0 (rounding would allow it), and ratio [...], within e^-80 and e^80: neither 0 nor infinite.
    """
    difference = behaviour_log_probs - current_log_probs
    kl = (behaviour_log_probs.exp() * difference).sum(-1).clamp(min=0.0)
    ratio = (-difference.gather(-1, actions.unsqueeze(-1)).squeeze(-1)).clamp(-80.0, 80.0).exp()
    return kl, ratio


def only(figures: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """The figures of some samples, [N] each, by unit.

    On a GPU it takes waiting to know how many these are: there all are kept, and NaN stands for the others, which
    `LagMeter` and `effective_sample_size` leave out.

    Args:
        figures: [T, B] each, of all.
        mask: [T, B] bool, the samples.
    """
    if mask.device.type != "cpu":
        return {unit: torch.where(mask, figure, torch.nan).flatten() for unit, figure in figures.items()}
    if mask.all():  # as almost always: to gather them takes longer than to find out
        return {unit: figure.flatten() for unit, figure in figures.items()}
    return {unit: figure[mask] for unit, figure in figures.items()}


def effective_sample_size(diverged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(sum w)^2 / (n sum w^2), a scalar in (0, 1]: the share of n samples that they are worth, by their ratios w.

    Args:
        diverged: with their importance_ratio [n]; nothing is given without any. Where only the device knows that there
            are none, 1 is.
    """
    ratios = diverged.get("importance_ratio")
    if ratios is None or not len(ratios):
        return {}
    missing = ratios.isnan()
    if ratios.device.type == "cpu" and not missing.any():
        return {"effective_sample_size": _worth(ratios, len(ratios))}
    n_samples = (~missing).sum()
    worth = _worth(ratios.masked_fill(missing, 0.0), n_samples)
    return {"effective_sample_size": torch.where(n_samples > 0, worth, 1.0)}


def _worth(ratios: Tensor, n_samples: Tensor | int) -> Tensor:
    """The effective share of n samples, a scalar."""
    ratios = ratios / ratios.max().clamp(min=_SMALLEST)  # else the squares of small ones would all be 0
    return ratios.sum().square() / (n_samples * ratios.square().sum()).clamp(min=_SMALLEST)


def _joined(pending: Sequence[Samples]) -> NDArray[np.float64]:
    """All samples in one array; of what lies on a device one copy is made."""
    repeated = [part for part in pending if isinstance(part, Repeated)]
    tensors = [part for part in pending if isinstance(part, Tensor)]
    if len(repeated) == len(pending):
        n_samples = torch.cat([part.n_samples for part in repeated])
        return np.asarray(Repeated(np.concatenate([part.figures for part in repeated]), n_samples, 0), np.float64)
    if len(tensors) == len(pending):
        return _to_numpy(torch.cat(tensors))
    return np.concatenate([_to_numpy(part) for part in pending])


def _to_numpy(values: Samples) -> NDArray[np.float64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array.astype(np.float64, copy=False)
