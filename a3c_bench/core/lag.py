"""Policy lag: how old the policy that chose an action is when the action is learnt from.

Every algorithm hands `LagMeter.add` the lag of each valid sample that enters an update, in the units it can measure.
docs/metrics.md defines the units; a "version" is the number of updates applied to the (shared) parameters so far.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Samples = NDArray[Any] | Tensor

UNITS = (
    "lag_updates",
    "lag_frames",
    "lag_seconds",
    "lag_kl_nats",
    "importance_ratio",
    "gradient_staleness_updates",
    "replay_age_frames",
)


def _edges() -> NDArray[np.float64]:
    """Left edges of the histogram bins: one bin for 0, whole numbers to 100, then 25 to a decade, and 25 below 1."""
    small = np.logspace(-9, 0, 9 * 25, endpoint=False)
    whole = np.arange(1, 100, dtype=np.float64)
    large = np.unique(np.round(np.logspace(2, 9, 7 * 25 + 1)))
    return np.concatenate([[0.0], small, whole, large])


BIN_EDGES = _edges()
SUMMARY = ("mean", "p50", "p95", "max")
_FOLD_AT = 1_000_000  # samples of one unit kept until an interval ends; beyond that, quantiles use the newest million


class LagMeter:
    """Collects lag per sample; summarises it per interval and as one histogram per unit for the whole run.

    Nothing is computed when samples are added: arrays (or tensors, on whatever device) are kept until `interval`.
    """

    def __init__(self) -> None:
        self.counts = {unit: np.zeros(len(BIN_EDGES), dtype=np.int64) for unit in UNITS}
        self._pending: dict[str, list[Samples]] = {unit: [] for unit in UNITS}
        self._n_pending = 0

    def add(self, **samples: Samples) -> None:
        """Takes the lags of the samples of one update, by unit; each a flat array or tensor of any length.

        Raises:
            KeyError: a unit that is not in UNITS.
        """
        for unit, values in samples.items():
            self._pending[unit].append(values)
        self._n_pending += max((len(values) for values in samples.values()), default=0)
        if self._n_pending >= _FOLD_AT:
            self.interval()

    def interval(self) -> dict[str, float]:
        """Mean, p50, p95 and max of each unit that got samples since the last call, e.g. `lag_updates_p95`."""
        summary: dict[str, float] = {}
        for unit, pending in self._pending.items():
            if not pending:
                continue
            values = np.concatenate([_to_numpy(part) for part in pending])
            pending.clear()
            if not len(values):
                continue
            self.counts[unit] += np.bincount(
                np.searchsorted(BIN_EDGES, values, side="right").clip(min=1) - 1, minlength=len(BIN_EDGES)
            )
            p50, p95 = np.quantile(values, (0.5, 0.95))
            figures = (values.mean(), p50, p95, values.max())
            summary |= {f"{unit}_{name}": float(figure) for name, figure in zip(SUMMARY, figures, strict=True)}
        self._n_pending = 0
        return summary

    def histogram(self) -> list[tuple[str, float, float, int]]:
        """The non-empty bins of the whole run as (unit, from, up to but without, samples)."""
        self.interval()
        rows = []
        for unit, counts in self.counts.items():
            for index in np.flatnonzero(counts):
                upper = BIN_EDGES[index + 1] if index + 1 < len(BIN_EDGES) else np.inf
                rows.append((unit, float(BIN_EDGES[index]), float(upper), int(counts[index])))
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """The histogram so far; samples of the current interval are not part of it."""
        return {unit: torch.from_numpy(counts.copy()) for unit, counts in self.counts.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved histogram."""
        for unit in UNITS:
            self.counts[unit] = state[unit].numpy().copy()


def policy_divergence(behaviour_log_probs: Tensor, current_log_probs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """KL(behaviour || current) in nats and the importance ratio pi/mu of the action taken, per sample.

    Args:
        behaviour_log_probs: [N, A], of the policy mu that acted.
        current_log_probs: [N, A], of the policy pi just before the update.
        actions: [N], int64.

    Returns:
        kl [N], not below 0 (rounding would allow it), and ratio [N].
    """
    difference = behaviour_log_probs - current_log_probs
    kl = (behaviour_log_probs.exp() * difference).sum(-1).clamp(min=0.0)
    ratio = (-difference.gather(-1, actions.unsqueeze(-1)).squeeze(-1)).exp()
    return kl, ratio


def _to_numpy(values: Samples) -> NDArray[np.float64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return array.astype(np.float64)
