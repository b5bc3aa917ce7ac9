"""Progress on a terminal as a bar, elsewhere as plain log lines."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Shows how far a run is.

    Args:
        label: names the run.
        total_frames: the frame budget; None if the run ends by time or return.
        enabled: False shows nothing.
    """

    def __init__(self, label: str, total_frames: int | None, enabled: bool) -> None:
        self._label = label
        self._total = total_frames
        self._enabled = enabled
        self._last_line = 0.0
        self._bar: Progress | None = None
        if enabled and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("return {task.fields[mean_return]}  {task.fields[speed]} frames/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=total_frames, mean_return="-", speed="-")
            self._bar.start()

    def update(self, row: Mapping[str, Any]) -> None:
        """Takes one row of metrics.csv."""
        mean_return = row.get("mean_return_100_games")
        shown_return = "-" if mean_return is None else f"{mean_return:.1f}"
        speed = f"{row['frames_per_second']:,.0f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=row["frames"], mean_return=shown_return, speed=speed)
        elif self._enabled and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            of_total = f"/{self._total:,}{_time_left(row, self._total)}" if self._total else ""
            log.info("%s: frame %s%s, return %s, %s frames/s", self._label, f"{row['frames']:,.0f}", of_total,
                     shown_return, speed)  # fmt: skip

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside the block other lines may be written without breaking the bar."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()

    def close(self) -> None:
        """Leaves the terminal to others."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def _time_left(row: Mapping[str, Any], total: int) -> str:
    seconds = max(total - row["frames"], 0.0) / max(row["frames_per_second"], 1e-9)
    return f" ({seconds / 60:.0f} min left)" if seconds >= 90 else f" ({seconds:.0f} s left)"
