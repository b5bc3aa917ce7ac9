"""Training time over all attempts: stopped during evaluation, saved in checkpoints."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class TrainingClock:
    """Seconds of training so far.

    Args:
        seconds: what earlier attempts spent.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    def start(self) -> None:
        """Lets it run."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Halts it."""
        self._before, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Halts it inside the block, if it ran."""
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()

    @property
    def seconds(self) -> float:
        """Training seconds, all attempts together."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)


class PhaseTimer:
    """Adds up the seconds spent in each named phase of a loop, as shares of their sum."""

    def __init__(self, *phases: str) -> None:
        self._seconds = dict.fromkeys(phases, 0.0)
        self._mark = time.perf_counter()

    def start(self) -> None:
        """What comes before this call belongs to no phase."""
        self._mark = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What passed since the last call belongs to `phase`."""
        now = time.perf_counter()
        self._seconds[phase] += now - self._mark
        self._mark = now

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return seconds

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what another timer, of another thread or process, has taken."""
        for phase, more in seconds.items():
            self._seconds[phase] += more

    def shares(self) -> dict[str, float]:
        """Share of each phase since the last call, as `share_<phase>`."""
        seconds = self.take()
        total = sum(seconds.values())
        return {f"share_{phase}": part / total if total else 0.0 for phase, part in seconds.items()}
