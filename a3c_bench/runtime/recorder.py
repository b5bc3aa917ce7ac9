"""Everything a run writes down while it trains: the CSV files, the guests (wandb, TensorBoard), progress."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from a3c_bench.core.adjustment import Sizes, Window
from a3c_bench.core.lag import SUMMARY, UNITS, LagMeter
from a3c_bench.core.losses import explained_variance
from a3c_bench.envs.episodes import Episode, Moment
from a3c_bench.errors import DivergedError
from a3c_bench.runtime.directory import CsvFile, RunDirectory, replace_file
from a3c_bench.runtime.ledger import Figures, Fit, Ratios
from a3c_bench.runtime.loggers import Logger

log = logging.getLogger(__name__)

COUNTERS = ("frames", "agent_steps", "updates", "wall_seconds")
EPISODE_COLUMNS = ("frames", "agent_steps", "wall_seconds", "episode_return", "episode_length")
METRIC_COLUMNS = (
    *COUNTERS,
    "frames_per_second",
    "pps",
    "tps",
    "mean_return_100_games",
    "loss",
    "loss_policy",
    "loss_value",
    "entropy_nats",
    "gradient_norm",
    "gradient_norm_q",
    "gradient_variance",
    "gradient_cosine",
    "learning_rate",
    "explained_variance",
    "unusable_share",
    "clip_share",
    "effective_sample_size",
    "discarded_share",
    "discarded_stale_share",
    "discarded_outlier_share",
    "td_error",
    "max_q",
    "discounted_return",
    "epsilon",
    "replay_agent_steps",
    "training_batch",
    "training_queue_depth",
    "prediction_batch",
    "n_agents",
    "n_agents_held_back",
    "n_predictors",
    "n_trainers",
    "share_simulate",
    "share_predict",
    "share_train",
    "share_wait",
    "share_communicate",
    "sent_mib_per_second",
    "sent_messages_per_second",
    "share_predictors_wait",
    "share_trainers_wait",
    "memory_mib",
)
LAG_COLUMNS = (*COUNTERS, *(f"{unit}_{name}" for unit in UNITS for name in SUMMARY))
HISTOGRAM_COLUMNS = ("unit", "lower", "upper", "samples")
EVALUATION_COLUMNS = (
    "frames",
    "updates",
    "wall_seconds",
    "final",
    "game_index",
    "episode_return",
    "episode_length",
    "human_normalised_percent",
    "policy",
    "noop_max",
    "max_episode_frames",
)

ADJUSTMENT_COLUMNS = (*COUNTERS, *Sizes._fields, "tps", "tps_before", "kept", "lag_updates_mean")


class Recorder:
    """Writes the tables of one run directory.

    Args:
        directory: where.
        loggers: guests that get every row too.
        saved: what `state_dict` gave, when a run goes on; rows after that point are dropped.
        columns: of metrics.csv that the algorithm adds.
    """

    def __init__(
        self,
        directory: RunDirectory,
        loggers: Sequence[Logger] = (),
        saved: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._loggers = loggers
        sizes = saved["sizes"] if saved else {}
        tables = {
            "episodes": EPISODE_COLUMNS,
            "metrics": tuple(dict.fromkeys((*METRIC_COLUMNS, *columns))),
            "lag": LAG_COLUMNS,
            "eval": EVALUATION_COLUMNS,
        }
        if "adjustments" in sizes:
            tables["adjustments"] = ADJUSTMENT_COLUMNS
        self._tables = {
            name: CsvFile(directory.path / f"{name}.csv", columns, sizes.get(name, 0))
            for name, columns in tables.items()
        }
        self.lag = LagMeter()
        self.recent_returns: deque[float] = deque(saved["recent_returns"] if saved else (), maxlen=100)
        self._start = dict(saved["start"]) if saved else dict.fromkeys(COUNTERS, 0.0)
        self.ratios = Ratios()
        self._updates: list[Figures] = []
        self._fits: list[Fit] = []
        if saved:
            self.lag.load_state_dict(saved["lag"])
        for logger in self._loggers:
            logger.start(self._start["frames"])

    @property
    def mean_return(self) -> float | None:
        """Mean unclipped return of the last 100 training games, or of those there are."""
        return sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else None

    def add_episodes(self, counters: Mapping[str, float], episodes: Sequence[Episode]) -> None:
        """Writes training games in the order in which they ended: when they say, or else at these counters."""
        now = Moment(int(counters["frames"]), int(counters["agent_steps"]), counters["wall_seconds"])
        rows = []
        for ended, episode in sorted(((game.ended or now, game) for game in episodes), key=lambda pair: pair[0]):
            self.recent_returns.append(episode.episode_return)
            figures = {"episode_return": episode.episode_return, "episode_length": episode.episode_length}
            rows.append(ended._asdict() | figures)
        self._tables["episodes"].append(rows)

    def add_updates(self, figures: Figures, fit: Fit | None = None) -> None:
        """Keeps the figures of updates until the interval ends; tensors stay on their device until then."""
        self._updates.append(figures)
        if fit is not None:
            self._fits.append(fit)

    def end_interval(self, counters: Mapping[str, float], extra: Mapping[str, float]) -> dict[str, Any]:
        """Writes one row of metrics.csv and one of lag.csv, and gives the former.

        Raises:
            DivergedError: a figure of the updates is NaN or infinite.
        """
        seconds = max(counters["wall_seconds"] - self._start["wall_seconds"], 1e-9)
        gained = {key: counters[key] - self._start[key] for key in COUNTERS}
        row = dict(counters) | {
            "frames_per_second": gained["frames"] / seconds,
            "pps": gained["agent_steps"] / seconds,
            "tps": gained["updates"] / seconds,
            "mean_return_100_games": self.mean_return,
        }
        row |= self._mean_of_updates(counters) | self.ratios.take() | dict(extra)
        lag_row = dict(counters) | self.lag.interval()
        self._tables["metrics"].append([row])
        self._tables["lag"].append([lag_row])
        self._start = dict(counters)
        for logger in self._loggers:
            logger.log(row | lag_row)
        return row

    def add_evaluation(
        self,
        counters: Mapping[str, float],
        final: bool,
        games: Sequence[Mapping[str, Any]],
        summary: Mapping[str, float],
    ) -> None:
        """Writes the games of one evaluation, one row each."""
        head = {key: counters[key] for key in ("frames", "updates", "wall_seconds")} | {"final": final}
        self._tables["eval"].append([head | {"game_index": i} | dict(game) for i, game in enumerate(games)])
        for logger in self._loggers:
            logger.log(dict(counters) | dict(summary))

    def add_adjustment(self, counters: Mapping[str, float], window: Window) -> None:
        """Writes what a window of the dynamic adjustment showed."""
        if "adjustments" not in self._tables:  # few runs have any
            self._tables["adjustments"] = CsvFile(self._directory.path / "adjustments.csv", ADJUSTMENT_COLUMNS)
        more = {"tps": window.tps, "tps_before": window.tps_before, "kept": window.kept}
        more["lag_updates_mean"] = window.mean_lag_updates
        self._tables["adjustments"].append([dict(counters) | window.sizes._asdict() | more])

    def write_histogram(self) -> None:
        """Replaces lag_histogram.csv by the counts so far."""
        lines = [",".join(HISTOGRAM_COLUMNS)]
        lines += [f"{unit},{low:.10g},{high:.10g},{count}" for unit, low, high, count in self.lag.histogram()]
        replace_file(self._directory.path / "lag_histogram.csv", "\n".join(lines) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Where the tables end; call it between intervals only, when nothing is pending."""
        return {
            "sizes": {name: table.size for name, table in self._tables.items()},
            "recent_returns": list(self.recent_returns),
            "start": dict(self._start),
            "lag": self.lag.state_dict(),
        }

    def close(self) -> None:
        """Closes the tables and the guests."""
        for table in self._tables.values():
            table.close()
        for logger in self._loggers:
            logger.close()

    def _mean_of_updates(self, counters: Mapping[str, float]) -> dict[str, float]:
        """Of each figure over the updates that have it."""
        means = {}
        for key in dict.fromkeys(key for update in self._updates for key in update):
            parts = [update[key] for update in self._updates if key in update]
            mean = float(_joined(parts).mean())
            if not abs(mean) < float("inf"):
                raise DivergedError(f"{key} became {mean} before frame {counters['frames']:.0f}: the run diverged.")
            means[key] = mean
        self._updates = []
        if self._fits:
            fits = (
                torch.cat([torch.as_tensor(part).reshape(-1) for part in parts])
                for parts in zip(*self._fits, strict=True)
            )
            means["explained_variance"] = float(explained_variance(*fits))
            self._fits = []
        return means


def _joined(parts: Sequence[Any]) -> Tensor:
    """The figures of updates, scalars or flat arrays, in one float32 tensor [N]."""
    if all(isinstance(part, Tensor) and part.dim() == 0 for part in parts):
        return torch.stack(list(parts)).float()
    if all(isinstance(part, float) for part in parts):
        return torch.tensor(parts, dtype=torch.float32)
    return torch.cat([torch.as_tensor(part, dtype=torch.float32).reshape(-1) for part in parts])
