"""Progress on a terminal as a bar, elsewhere as plain log lines."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0
_BAR_WIDTH, _SHORTEST_BAR = 40, 5  # columns of a terminal


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
            self._bar = _bar(Console(stderr=True))
            self._task = self._bar.add_task(label, total=total_frames, mean_return="-", speed="-")
            self._bar.start()

    def update(self, row: Mapping[str, Any]) -> None:
        """Takes one row of metrics.csv."""
        mean_return = row.get("mean_return_100_games")
        shown_return = "-" if mean_return is None else f"{mean_return:.1f}"
        speed = f"{row['frames_per_second']:,.0f}"
        if self._bar is not None:
            with self._terminal() as bar:
                bar.update(self._task, completed=row["frames"], mean_return=shown_return, speed=speed)
        elif self._enabled and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            of_total = f"/{self._total:,}{_time_left(row, self._total)}" if self._total else ""
            log.info("%s: frame %s%s, return %s, %s frames/s", self._label, f"{row['frames']:,.0f}", of_total,
                     shown_return, speed)  # fmt: skip

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside the block other lines may be written without breaking the bar."""
        if self._bar is not None:
            with self._terminal() as bar:
                bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                with self._terminal() as bar:
                    bar.start()

    def close(self) -> None:
        """Leaves the terminal to others."""
        if self._bar is not None:
            with self._terminal() as bar:
                bar.stop()
        self._bar = None

    @contextmanager
    def _terminal(self) -> Iterator[Progress]:
        """The bar, for one act; a terminal that was closed ends the bar and not the run."""
        assert self._bar is not None
        try:
            yield self._bar
        except OSError:
            self._bar = None


class _NameAndBar(ProgressColumn):
    """The run's name and its bar, in the width that the numbers beside them leave."""

    def render(self, task: Task) -> "_Fitting":
        """See ProgressColumn."""
        return _Fitting(task)


@dataclass(frozen=True)
class _Fitting:
    """Where there is little room the bar goes first, then the end of the name."""

    task: Task

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = min(len(self.task.description) + 1 + _BAR_WIDTH, options.max_width)
        return Measurement(min(8, longest), longest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name = Text(self.task.description, no_wrap=True, overflow="ellipsis")
        room = min(options.max_width - name.cell_len - 1, _BAR_WIDTH)
        grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        if room < _SHORTEST_BAR:
            grid.add_row(name)
        else:
            total, now = self.task.total, self.task.get_time()
            grid.add_row(name, ProgressBar(total, self.task.completed, room, pulse=total is None, animation_time=now))
        yield grid


def _bar(console: Console) -> Progress:
    """A bar whose numbers are whole wherever there are 60 columns or more."""
    return Progress(
        _NameAndBar(),
        TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
        TextColumn(
            "return {task.fields[mean_return]}  {task.fields[speed]} frames/s", table_column=Column(no_wrap=True)
        ),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
    )


def _time_left(row: Mapping[str, Any], total: int) -> str:
    seconds = max(total - row["frames"], 0.0) / max(row["frames_per_second"], 1e-9)
    return f" ({seconds / 60:.0f} min left)" if seconds >= 90 else f" ({seconds:.0f} s left)"
